"""A run's folder: what names it, whom it belongs to, and what is never touched."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf, open_dict

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.errors import ConfigError, RunError
from nas_transfer.paths import conf_dir
from nas_transfer.runs import Costs, Result
from nas_transfer.stages.common.run_directory import RANKS, RunDirectory
from nas_transfer.stages.config.entry import begin_run, config_sha256, identity
from tests.runs.test_lock import HOLDER

HYDRA = OmegaConf.create({"overrides": {"task": []}})


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [*overrides])


def opened(cfg: DictConfig) -> RunDirectory:
    with begin_run(cfg, HYDRA, imports=False) as (_, run):
        return run


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in RANKS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "name=mine",
        "runs=far",
        "resume=never",
        "num_workers=3",
        "trainer.enable_progress_bar=false",
        "logger=[csv,tensorboard]",
    ],
)
def test_what_is_only_shown_or_where_it_lies_does_not_change_the_identity(override: str) -> None:
    assert config_sha256(composed(override)) == config_sha256(composed())


@pytest.mark.parametrize("override", ["seed=1", "arch=min", "num_threads=7", "task.recipe.lr=0.5", "supernet=bignas"])
def test_what_changes_the_result_changes_the_identity(override: str) -> None:
    assert config_sha256(composed(override)) != config_sha256(composed())


def test_the_order_of_the_overrides_does_not_change_the_identity() -> None:
    assert config_sha256(composed("seed=1", "arch=max")) == config_sha256(composed("arch=max", "seed=1"))


def test_interpolations_are_part_of_the_identity_as_what_they_stand_for() -> None:
    interpolated = composed("seed=7", "num_threads=${seed}")
    assert config_sha256(interpolated) == config_sha256(composed("seed=7", "num_threads=7"))


def test_a_path_below_the_run_folder_does_not_make_the_name_depend_on_itself() -> None:
    cfg = composed()
    with open_dict(cfg):
        cfg.trainer.scratch = "${run_dir}/scratch"
    assert cfg.run_dir == f"runs/finetune/shapes_det/max-{config_sha256(cfg)[:8]}"
    assert cfg.trainer.scratch.startswith(cfg.run_dir)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.root"):
        identity(composed("task=coco_det"))


def test_a_missing_value_leaves_no_folder_behind(tmp_path: Path) -> None:
    cfg = composed("task=coco_det")
    folder = tmp_path / cfg.run_dir
    folder.mkdir(parents=True)  # as Hydra does
    with pytest.raises(ConfigError, match=r"data\.root"):
        opened(cfg)
    assert not folder.exists()


def test_an_infinite_limit_is_written_as_a_word() -> None:
    cfg = composed("task.recipe.clip_norm=inf")
    assert cfg.task.recipe.clip_norm == math.inf
    run = opened(cfg)
    assert json.loads((run.folder / "run.json").read_text())["config"]["task.recipe.clip_norm"] == "Infinity"
    assert opened(cfg) == run


def test_a_new_run_records_its_identity_and_its_configuration(tmp_path: Path) -> None:
    cfg = composed("seed=3")
    run = opened(cfg)
    record: dict[str, Any] = json.loads((run.folder / "run.json").read_text())
    assert record["config_sha256"] == config_sha256(cfg)
    assert record["config"]["seed"] == 3
    assert OmegaConf.load(run.folder / ".hydra" / "config.yaml") == OmegaConf.create(OmegaConf.to_container(cfg))
    assert run.result() is None


def test_the_same_configuration_finds_its_folder_and_its_result_again() -> None:
    run = opened(composed())
    costs = Costs({"total": 3}, {"total": 2}, 2, (96, 96), 6)
    result = Result(
        "finetune", "shapes_det", None, "map", 0.5, {"map": 0.5}, costs, seconds=1.0, devices=1, gpu_hours=0.0,
        images_seen=8, passes_per_image=1, samples_digest="", seed=0, config_sha256="",
    )  # fmt: skip
    result.write(run.folder)
    before = contents(run.folder)
    again = opened(composed())
    assert again == run
    assert again.result() == result
    assert contents(run.folder) == before


def test_another_configuration_is_refused_naming_the_key_and_both_values() -> None:
    run = opened(composed("name=mine", "seed=1"))
    before = contents(run.folder)
    with pytest.raises(RunError, match=r"runs/finetune/shapes_det/mine .*seed=1 \(now 2\)"):
        opened(composed("name=mine", "seed=2"))
    assert contents(run.folder) == before


def test_resume_never_leaves_its_own_run_untouched_in_a_folder_beside_it() -> None:
    run = opened(composed("resume=never", "seed=1", "name=mine"))
    (run.folder / "weights.pt").write_text("trained")
    before = {path.relative_to(run.folder): text for path, text in contents(run.folder).items()}
    for number in (1, 2):
        assert opened(composed("resume=never", "seed=1", "name=mine")) == run
        assert not (run.folder / "weights.pt").exists()
        assert run.folder.with_name(f"mine.{number}").is_dir()
    aside = run.folder.with_name("mine.1")
    assert {path.relative_to(aside): text for path, text in contents(aside).items()} == before


def test_two_equal_commands_at_once_do_not_run_in_one_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, "runs/finetune/shapes_det/mine"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as first:  # fmt: skip
        assert first.stdout is not None
        first.stdout.readline()
        for resume in ("auto", "never"):
            with pytest.raises(RunError, match=r"another process runs in .*mine: wait until it ends"):
                opened(composed("name=mine", f"resume={resume}"))
        first.kill()
    opened(composed("name=mine"))


def test_a_result_without_the_record_of_its_configuration_is_not_taken_for_this_run(tmp_path: Path) -> None:
    folder = tmp_path / "runs/finetune/shapes_det/mine"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"score": 0.9}')
    with pytest.raises(RunError, match=r"run\.json"):
        opened(composed("name=mine"))


@pytest.mark.parametrize("variable", RANKS)
def test_another_rank_writes_nothing_and_fails_no_check(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setitem(os.environ, variable, "1")
    early = opened(composed("name=early"))  # before rank 0 came to it
    assert not early.folder.exists()
    monkeypatch.delitem(os.environ, variable)
    run = opened(composed("resume=never"))
    before = contents(run.folder)
    monkeypatch.setitem(os.environ, variable, "1")
    assert opened(composed("resume=never")) == run
    assert contents(run.folder) == before
