"""Every task normalises as its weights expect, and by nothing else."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor

import nas_transfer.cli  # noqa: F401 (registers the resolvers of the configuration)
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.build import build_space, build_task
from nas_transfer.stages.config.base import TaskRunConfig
from nas_transfer.stages.config.entry import read_config
from nas_transfer.supernet.importing import IMPORTERS
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.tasks.task import Task

PREPROCESSINGS = [
    Preprocessing((10, 20, 30), (2, 3, 4), channel_order="bgr"),
    Preprocessing((127, 127, 127), (128, 128, 128)),
]
TASKS = ["shapes_cls", "shapes_det", "shapes_insseg", "shapes_pose", "shapes_seg"]


def make_task(name: str, preprocessing: Preprocessing) -> Task:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [f"task={name}", "supernet=bignas_nano"])
    config = read_config(cfg, TaskRunConfig)
    table = replace(config.supernet.build(), preprocessing=preprocessing)
    return build_task(config, table, build_space(config, table).largest(), None).eval()


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS, ids=["bgr", "lite"])
@pytest.mark.parametrize("name", TASKS)
def test_the_body_sees_images_as_the_weights_expect_them(name: str, preprocessing: Preprocessing) -> None:
    task = make_task(name, preprocessing)
    height, width = (96, 96) if name.endswith(("cls", "det", "insseg")) else task.input_size(task.table.space.largest())
    images = torch.randint(256, (2, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen: list[Tensor] = []
    task.body.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        task.forward_batch(batch_of(name, images))
    expected = images.float()
    if preprocessing.channel_order == "bgr":
        expected = torch.stack([expected[:, 2], expected[:, 1], expected[:, 0]], 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close(seen[0][:, :, :height, :width], (expected - mean) / std)


@pytest.mark.parametrize(("own", "used"), [("bicubic", "bicubic"), ("bilinear", "bilinear"), (None, "bilinear")])
def test_a_batch_is_brought_to_the_resolution_of_an_arch_by_an_interpolation_of_its_own(
    own: str | None, used: str
) -> None:
    preprocessing = Preprocessing((0, 0, 0), (1, 1, 1), interpolation="bilinear", resolution_interpolation=own)
    task = make_task("shapes_cls", preprocessing)
    arch = task.table.space.largest()
    images = torch.randint(256, (2, 3, 41, 41), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    prepared = task.prepared(batch_of("shapes_cls", images), arch)["images"]
    size = task.input_size(arch)
    torch.testing.assert_close(prepared, F.interpolate(images.float(), size, mode=used, align_corners=False))


def test_attentivenas_evaluates_on_bilinear_images_and_alphanet_on_bicubic_ones() -> None:
    for name, files in (("attentivenas", "bilinear"), ("alphanet", "bicubic")):
        preprocessing = IMPORTERS[name].origin.preprocessing
        assert (preprocessing.interpolation, preprocessing.resolution_interpolation) == (files, "bicubic")


def batch_of(name: str, images: Tensor) -> dict[str, Any]:
    return {"images": images if name.endswith(("cls", "pose")) else list(images)}
