"""Where networks run, and what is said of it, although Lightning leaves a network on the CPU when it is done."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.arch import SUPERNET
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.build import build_data, build_task, evaluation_device
from nas_transfer.stages.common.evaluation import extract_calibrated
from nas_transfer.stages.common.results import make_result
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import TrainConfig
from nas_transfer.tasks.task import Task
from tests.stages.test_search import CLASSIFY


@dataclass
class Recorder:
    """A subnet that notes where it is calibrated."""

    places: list[str] = field(default_factory=list)

    def to(self, device: torch.device) -> "Recorder":
        self.places.append(device.type)
        return self

    def calibrate(self, batches: Any) -> int:
        self.places.append("calibrated")  # without a GPU, batches for one cannot be loaded
        return 0


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [*CLASSIFY, "stage=pretrain", f"data.root={tmp_path}/data", "arch=supernet"])
    return read_config(cfg, TrainConfig)


@pytest.fixture
def supernet(config: TrainConfig) -> Task:
    return build_task(config, config.supernet.build(), SUPERNET, None)


def test_a_supernets_subnet_is_calibrated_on_the_gpu_and_comes_back(
    config: TrainConfig, supernet: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = build_data(config.data, SUPERNET, supernet.table.preprocessing)
    subnet = Recorder()
    monkeypatch.setattr(Task, "extract", lambda *_: subnet)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    extract_calibrated(config, supernet, supernet.table.space.smallest(), data)
    assert subnet.places == ["cuda", "calibrated", "cpu"]


def test_a_gpu_is_used_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [evaluation_device(name).type for name in ("auto", "gpu", "cpu")] == ["cuda", "cuda", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert evaluation_device("auto").type == "cpu"


@pytest.mark.parametrize(("on_accelerator", "gpu_hours"), [(True, 2.0), (False, 0.0)])
def test_gpu_hours_count_the_devices_that_trained(
    config: TrainConfig, supernet: Task, on_accelerator: bool, gpu_hours: float
) -> None:
    result = make_result(config, supernet, {}, seconds=3600.0, devices=2, on_accelerator=on_accelerator)
    assert result.gpu_hours == gpu_hours
