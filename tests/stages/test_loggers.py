"""Lightning's loggers, chosen as a group."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from pytorch_lightning.loggers import CSVLogger, Logger

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.build import build_trainer
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import TrainConfig
from tests.test_configs import GROUPS

MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def loggers(folder: Path, *overrides: str) -> list[Logger]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [*overrides, f"run_dir={folder}", "trainer.accelerator=cpu"])
    return build_trainer(read_config(cfg, TrainConfig), folder).loggers


def test_the_default_writes_csv_into_the_run(tmp_path: Path) -> None:
    (logger,) = loggers(tmp_path)
    assert isinstance(logger, CSVLogger)
    logger.log_metrics({"val/map": 0.5}, step=3)
    logger.save()
    assert (tmp_path / "logs/version_0/metrics.csv").read_text().splitlines() == ["step,val/map", "3,0.5"]


def test_none_is_a_choice(tmp_path: Path) -> None:
    assert loggers(tmp_path, "logger=[]") == []


@pytest.mark.parametrize("name", sorted(set(GROUPS["logger"]) - {"csv"}))
def test_every_other_logger_is_built_beside_it(tmp_path: Path, name: str) -> None:
    pytest.importorskip(MODULES[name])
    overrides = ["logger.wandb.offline=true"] if name == "wandb" else []
    found = loggers(tmp_path, f"logger=[csv,{name}]", *overrides)
    assert [type(logger).__name__.lower().removesuffix("logger") for logger in found] == ["csv", name]


def test_a_logger_without_its_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytorch_lightning.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(ConfigError, match=r"^logger=wandb needs a package that is not installed: pip install wandb$"):
        loggers(tmp_path, "logger=[wandb]")
