.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PARALLEL := -n 2 --dist loadfile  # two processes of a thread each; a file's tests share what it trains

help:  ## show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 8

# Plain pip, so that a torch that the machine provides is picked up. Made anew when the requirements change.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $(READY)

DEMO := demo_a1_finetune demo_a2_search demo_b1_pretrain demo_b2_search demo_c_proxy
PICKED = runs/$(1)/demo/archs/picked.yaml

demo: $(READY)  ## routes A, B and C from ImageNet weights to detection on embedded data, and their report: some minutes on two cores
	for step in $(DEMO); do $(BIN)/python -m nas_transfer experiment=$$step || exit; done
	$(BIN)/python -m nas_transfer experiment=demo_net name=demo_a weights=runs/finetune/shapes_det/demo arch=$(call PICKED,search/shapes_det)
	$(BIN)/python -m nas_transfer experiment=demo_net name=demo_b weights=runs/pretrain/shapes_cls/demo arch=$(call PICKED,search/shapes_cls)
	$(BIN)/python -m nas_transfer experiment=demo_net name=demo_c arch=$(call PICKED,proxy/shapes_det)
	$(BIN)/python -m nas_transfer experiment=demo_net name=demo_max arch=max
	$(BIN)/python -m nas_transfer stage=report name=demo runs_in='["runs/*/*/demo*"]'

test: $(READY)  ## run all tests
	$(BIN)/python -m pytest $(PARALLEL)

fast: $(READY)  ## run the tests that are not slow
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## time the supernet against static subnets, candidate evaluation, costs
	$(BIN)/python scripts/bench_supernet.py
	$(BIN)/python scripts/bench_evaluate.py
	$(BIN)/python scripts/bench_costs.py

wheel: $(READY)  ## build dist/*.whl, which holds conf/ too
	$(BIN)/python -m build --wheel --no-isolation

.PHONY: help demo test fast lint bench wheel
