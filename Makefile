.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PARALLEL := -n 2 --dist loadfile  # two processes with one thread each; the tests of a file share its trained networks

help:  ## show the targets of this file
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 8

# The environment is built again when the requirements change. Plain pip uses a torch that the machine provides.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $(READY)

# Each line of output starts with its route. pipefail reports a failure of the command, not that of sed.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
DEMO = $(BIN)/python -m nas_transfer $(1) 2>&1 | sed -u 's/^/$(2) | /'
PICKED = arch=runs/$(1)/demo/archs/picked.yaml

demo: $(READY)  ## run routes A, B and C from ImageNet weights to detection on drawn images, and report: five minutes on two cores
	$(MAKE) --no-print-directory -j 2 demo-a demo-bc
	$(BIN)/python -m nas_transfer stage=report name=demo runs_in='["runs/*/*/demo*"]'

demo-a:
	$(call DEMO,experiment=demo_net name=demo_max arch=max,A)
	$(call DEMO,experiment=demo_a1_finetune,A)
	$(call DEMO,experiment=demo_a2_search,A)
	$(call DEMO,experiment=demo_net name=demo_a weights=runs/finetune/shapes_det/demo trainer.max_steps=100 $(call PICKED,search/shapes_det),A)

demo-bc:
	$(call DEMO,experiment=demo_b1_pretrain,B)
	$(call DEMO,experiment=demo_b2_search,B)
	$(call DEMO,experiment=demo_net name=demo_b weights=runs/pretrain/shapes_cls/demo $(call PICKED,search/shapes_cls),B)
	$(call DEMO,experiment=demo_c_proxy,C)
	$(call DEMO,experiment=demo_net name=demo_c $(call PICKED,proxy/shapes_det),C)

test: $(READY)  ## run all tests but the nightly ones
	$(BIN)/python -m pytest $(PARALLEL)

nightly: $(READY)  ## run the tests that run the whole program at length
	$(BIN)/python -m pytest $(PARALLEL) -m nightly

fast: $(READY)  ## run the tests that are not slow
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

lint: $(READY)  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY)  ## build the documentation in docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html

bench: $(READY)  ## time training, the evaluation of trials and the computation of costs beside plain loops: half an hour on one core
	$(BIN)/python scripts/bench_supernet.py
	$(BIN)/python scripts/bench_training.py
	$(BIN)/python scripts/bench_evaluate.py
	$(BIN)/python scripts/bench_costs.py

campaign: $(READY)  ## try to break the program by kills, wrong configurations, malformed datasets and damaged files
	$(BIN)/python scripts/campaign.py

wheel: $(READY)  ## build dist/*.whl, with conf/ in it
	$(BIN)/python -m build --wheel --no-isolation

.PHONY: help demo demo-a demo-bc test fast lint docs bench campaign wheel
