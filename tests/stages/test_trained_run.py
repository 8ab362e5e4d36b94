"""Stages that go on with a run's network take what the run was, and say so where a command says otherwise."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.stages.config.trained import changes_since, trained_task, with_trained_groups
from tests.test_cli import forked


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The configuration that a run of a small detector leaves."""
    cfg = composed(
        "task=shapes_det", "supernet=efficientnet_lite0", "task.build.detector.min_size=64", "data.root=here"
    )
    (tmp_path / "run/.hydra").mkdir(parents=True)
    OmegaConf.save(cfg, tmp_path / "run/.hydra/config.yaml")
    return tmp_path / "run"


def test_an_export_takes_the_runs_own_network_and_data(run: Path) -> None:
    cfg = with_trained_groups(composed("stage=export", f"weights={run}", "arch=min"))
    assert cfg.supernet.name == "efficientnet_lite0"
    assert cfg.task.build.detector.min_size == 64
    assert (cfg.data.root, cfg.arch, cfg.stage.name) == ("here", "min", "export")
    assert with_trained_groups(composed("stage=export", f"weights={run}", "data.root=there")).data.root == "there"
    assert Path(cfg.run_dir).parts[:3] == ("runs", "export", "shapes_det")
    command = composed("stage=export", f"weights={run}", "arch=min")
    assert cfg.run_dir == command.run_dir == f"runs/export/shapes_det/{command.name}"  # what it reads is recorded there
    public = composed("stage=export", "weights=efficientnet_lite0", "task=imagenet", "data.root=there")
    assert with_trained_groups(public) == public
    assert Path(public.run_dir).parts[:3] == ("runs", "export", "imagenet")
    with pytest.raises(
        ConfigError, match=r"weights must be a run folder, got efficientnet_lite0: name one, or set data\.root=FOLDER"
    ):
        with_trained_groups(composed("stage=export", "weights=efficientnet_lite0", "task=imagenet"))


def test_what_runs_of_earlier_versions_lack_is_filled_with_what_they_did(run: Path) -> None:
    saved = OmegaConf.load(run / ".hydra/config.yaml")
    del saved.data["cache_mib"], saved.data.split["val_fraction"]
    OmegaConf.save(saved, run / ".hydra/config.yaml")
    cfg = with_trained_groups(composed("stage=export", f"weights={run}"))
    assert (cfg.data.cache_mib, cfg.data.split.val_fraction) == (0, None)


def test_a_task_by_another_name_has_no_run(run: Path) -> None:
    assert trained_task(str(run)) == trained_task(f"{run}/weights.pt") == "shapes_det"
    assert trained_task("efficientnet_lite0") == "unknown"
    assert trained_task(None, "imagenet") == "imagenet"


def test_what_an_evaluation_changes_is_named(run: Path) -> None:
    same = ["task=shapes_det", f"weights={run}", "task.build.detector.min_size=64"]
    assert changes_since(composed("stage=evaluate", *same)) == []
    (sentence,) = changes_since(composed("stage=evaluate", *same[:2]))
    assert sentence.startswith("task.build.detector.min_size is 96, the run in")
    assert sentence.endswith("had 64")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("task=shapes_cls", "task=shapes_cls differs from the run in {run} (shapes_det): remove task from the command"),
        ("supernet=bignas_nano", "supernet=bignas_nano differs from the run in {run} (efficientnet_lite0): remove"),
        (
            "task.build.detector.min_size=96",
            "task.build.detector.min_size=96 differs from the run in {run} (64): remove task.build.detector.min_size",
        ),
        ("task=shapes_det", "{run}/weights.pt does not exist"),  # said for nothing, but no contradiction
    ],
)
def test_another_network_than_the_runs_is_refused(run: Path, given: str, sentence: str) -> None:
    done = forked(run.parent, "stage=export", f"weights={run}", given, code=2)
    assert sentence.format(run=run) in done.stderr
