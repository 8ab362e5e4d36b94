"""How Lightning trains a task: which archs are regularised, and what gradients are clipped."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.arch import SUPERNET, Arch
from nas_transfer.tasks.classification import ClassificationTask
from nas_transfer.tasks.recipe import ArchSampling
from nas_transfer.tasks.task import Task, TaskSettings
from nas_transfer.tasks.training import TaskModule, TrainingSettings
from tests.conftest import load_supernet
from tests.tasks import test_segmentation as segmentation
from tests.tasks.test_recipe import recipe

DROPOUT, DROP_PATH = 0.4, 0.2
CLASSES = 6


def classifier() -> ClassificationTask:
    torch.manual_seed(0)
    settings = TaskSettings(load_supernet("bignas_nano"), SUPERNET, CLASSES)
    return ClassificationTask(settings, label_smoothing=0.0, dropout=DROPOUT)


def segmenter() -> segmentation.SegmentationTask:
    torch.manual_seed(0)
    settings = TaskSettings(load_supernet("bignas_nano"), SUPERNET, num_classes=4)
    head = replace(segmentation.HEAD, dropout=DROPOUT)
    return segmentation.SegmentationTask(settings, head=head, evaluation=segmentation.WHOLE, input_size=(64, 96))


def images_with_labels() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randint(256, (4, 3, 48, 48), generator=generator, dtype=torch.uint8),
        "labels": torch.randint(CLASSES, (4,), generator=generator),
        "sample_ids": torch.arange(4),
    }


def train(task: Task, batch: dict, sampling: ArchSampling, plugins: object = None, **changes: object) -> TaskModule:
    """One optimiser step."""
    return fitted(
        TaskModule(task, TrainingSettings(recipe(**changes), sampling, seed=0, total_steps=2)), batch, plugins
    )


def fitted(module: TaskModule, batch: dict, plugins: object = None) -> TaskModule:
    """The module after one optimiser step."""
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, plugins=plugins,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch], batch_size=None))
    return module


@pytest.mark.parametrize("distillation", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_sandwich_regularises_the_largest_arch_alone(kind: str, distillation: float) -> None:
    task, batch = (
        (classifier(), images_with_labels()) if kind == "classification" else (segmenter(), segmentation.make_batch())
    )
    passes: list[tuple[bool, set[float]]] = []
    paths: list[float] = []

    def look_at_body(*_: object) -> None:
        rates = {module.p for module in task.network.modules() if isinstance(module, nn.Dropout | nn.Dropout2d)}
        passes.append((task.body.arch == task.table.space.largest(), rates))
        paths.append(0.0)

    def look_at_block(block: nn.Module, _: object) -> None:
        paths[-1] = max(paths[-1], block.drop_path)

    task.body.register_forward_pre_hook(look_at_body)
    for module in task.body.modules():
        if hasattr(module, "drop_path"):
            module.register_forward_pre_hook(look_at_block)
    train(task, batch, ArchSampling("sandwich", 2, None, distillation), drop_path=DROP_PATH)
    assert passes == [(True, {DROPOUT}), *[(False, {0.0})] * 3]
    assert paths == pytest.approx([DROP_PATH, 0.0, 0.0, 0.0])


def test_a_single_path_is_regularised() -> None:
    task = classifier()
    train(task, images_with_labels(), ArchSampling("single_path", 0, None, 0.0))
    assert task.network.head.dropout.p == DROPOUT


class Scaling(MixedPrecision):
    """Scales losses as float16 does, with float32 arithmetic, so that updates are those of float32 to the last bit."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**16))

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_gradients_of_mixed_precision_are_unscaled_before_they_are_clipped(clip_norm: float | None) -> None:
    sampling = ArchSampling("sandwich", 1, None, 1.0)
    updates = []
    for plugins in (None, [Scaling()]):
        task = classifier()
        before = [parameter.detach().clone() for parameter in task.network.parameters()]
        train(task, images_with_labels(), sampling, plugins, clip_norm=clip_norm, momentum=0.0, weight_decay=0.0)
        updates.append([after.detach() - old for after, old in zip(task.network.parameters(), before, strict=True)])
    norms = [torch.cat([update.flatten() for update in own]).norm().item() for own in updates]
    assert norms[0] == (pytest.approx(0.1 * clip_norm, rel=1e-3) if clip_norm else pytest.approx(norms[1]))
    for plain, scaled in zip(*updates, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-9)


def forward_macs(task: Task, arch: Arch) -> dict[str, int]:
    """MACs of the body and of the whole network for one image, by torch's counter of operations."""
    subnet = task.extract(arch).eval()
    images = torch.zeros(1, 3, *task.input_size(arch))
    found = {}
    for name, network in (("body", subnet.body), ("total", subnet.network)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(images)
        found[name] = counter.get_total_flops() // 2
    return found


@pytest.mark.parametrize("frozen", [False, True])
def test_training_macs_are_those_of_the_archs_that_ran(frozen: bool) -> None:
    task = classifier()
    ran: list[Arch] = []
    task.body.requires_grad_(not frozen)
    task.body.register_forward_pre_hook(lambda *_: ran.append(task.active_arch))
    module = train(task, images_with_labels(), ArchSampling("sandwich", 2, None, 1.0))
    assert len(set(ran)) == 4
    per_image = 0
    for arch in ran:
        macs = forward_macs(task, arch)
        backward = 2 * (macs["total"] - macs["body"]) if frozen else 2 * macs["total"]
        per_image += macs["total"] + backward
    assert module.training_macs == 4 * per_image


def test_a_teacher_costs_a_forward_pass() -> None:
    task = classifier()
    whole = task.extract(task.space.largest())
    subnet = task.extract(task.space.smallest())
    settings = TrainingSettings(recipe(), ArchSampling("sandwich", 0, None, 1.0), seed=0, total_steps=2)
    module = fitted(TaskModule(subnet, settings, whole), images_with_labels())
    macs = [forward_macs(task, arch)["total"] for arch in (task.space.smallest(), task.space.largest())]
    assert module.training_macs == 4 * (3 * macs[0] + macs[1])
