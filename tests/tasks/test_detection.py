"""The detector: extraction, elastic laterals, and costs against torch's counter."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.errors import ConfigError
from nas_transfer.supernet.calibrate import recalibrate_batch_norm
from nas_transfer.tasks.detection import DetectionTask
from nas_transfer.tasks.detector import DetectorSize, pyramid_distance
from nas_transfer.tasks.task import TaskSettings, Teacher
from nas_transfer.tasks.traced_resizing import with_traced_resizing
from tests.conftest import load_supernet

SIZES = DetectorSize(
    fpn_levels=5, fpn_channels=16, box_head_channels=24, anchor_sizes=(8, 16, 32, 64, 96), min_size=64, max_size=96,
    proposals_train=50, proposals_test=30, rpn_batch=32, box_batch=16, detections=10,
)  # fmt: skip


def make_task(arch: ArchOrSupernet = SUPERNET) -> DetectionTask:
    torch.manual_seed(0)
    settings = TaskSettings(load_supernet("bignas_nano"), arch, num_classes=3)
    return DetectionTask(settings, category_ids=[1, 2, 3], detector=SIZES)


def test_the_extracted_detectors_pyramid_and_losses_equal_the_active_ones() -> None:
    task = make_task().double()
    for module in task.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    batch = {
        "images": [torch.randint(256, (3, 64, 80), dtype=torch.uint8)],
        "targets": [{"boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]).double(), "labels": torch.tensor([2])}],
    }
    images = torch.randn(2, 3, 64, 96).double()
    generator = np.random.default_rng(0)
    for arch in [task.table.space.smallest(), *(task.table.space.sample(generator) for _ in range(4))]:
        subnet = task.extract(arch)
        task.set_arch(arch)
        assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
        ours, theirs = (t.eval().network.backbone(images) for t in (task, subnet))
        for level in ours:
            torch.testing.assert_close(ours[level], theirs[level], rtol=1e-9, atol=1e-9)
        losses = []
        for module in (task.train(), subnet.train()):
            torch.manual_seed(1)  # the same anchors and proposals are sampled
            losses.append(module.losses(as_double(batch), regularise=True, teacher=None)[0])
        assert set(losses[0]) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
        for name, loss in losses[0].items():
            torch.testing.assert_close(loss, losses[1][name], rtol=1e-8, atol=1e-8)


def as_double(batch: dict[str, list]) -> dict[str, list]:
    return batch | {"images": [image.double() for image in batch["images"]]}


def test_costs_equal_torchs_counter_on_body_neck_and_heads_run_separately() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    network, size = task.network, task.input_size(task.arch)
    costs = task.costs(task.arch)

    def counted(module: nn.Module, *inputs: object) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*inputs)
        return counter.get_total_flops() // 2

    images = torch.zeros(1, 3, *size)
    assert counted(network.backbone, images) == costs["body"].macs + costs["neck"].macs
    with torch.no_grad():
        maps = list(network.backbone(images).values())
    pooled = torch.zeros(SIZES.proposals_test, 16, 7, 7)
    box_head = nn.Sequential(network.roi_heads.box_head, _Both(network.roi_heads.box_predictor))
    assert counted(network.rpn.head, maps) + counted(box_head, pooled) == costs["head"].macs
    assert sum(cost.params for cost in costs.values()) == sum(p.numel() for p in network.parameters())


class _Both(nn.Module):
    def __init__(self, predictor: nn.Module) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.predictor(features)[0]


def test_smaller_archs_imitate_the_largest_ones_pyramid() -> None:
    task = make_task().train()
    batch = {
        "images": [torch.randint(256, (3, 64, 80), dtype=torch.uint8)],
        "targets": [{"boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]), "labels": torch.tensor([2])}],
    }
    torch.manual_seed(1)
    plain, pyramid = task.losses(batch, regularise=True, teacher=None)
    levels = list(pyramid.levels.values())
    torch.testing.assert_close(pyramid.shares, torch.tensor([[80 / 96, 1.0]]))
    assert [tuple(level.shape[:2]) for level in levels] == [(1, SIZES.fpn_channels)] * 5
    torch.manual_seed(1)
    same, _ = task.losses(batch, regularise=False, teacher=Teacher(pyramid, 0.25))
    assert same["distillation"].item() == pytest.approx(0, abs=1e-6)
    assert same["loss_classifier"].item() == pytest.approx(0.75 * plain["loss_classifier"].item(), rel=1e-4)
    zeros = {name: torch.zeros_like(level) for name, level in pyramid.levels.items()}
    assert pyramid_distance(replace(pyramid, levels=zeros), pyramid).item() == pytest.approx(1.0)
    task.set_arch(task.table.space.smallest())
    imitated, _ = task.losses(batch, regularise=False, teacher=Teacher(pyramid, 0.25))
    assert imitated["distillation"] > 0.01


def test_anchor_sizes_must_be_one_a_level() -> None:
    with pytest.raises(ConfigError, match="anchor_sizes"):
        replace(SIZES, anchor_sizes=(32, 64))


def test_detections_do_not_depend_on_the_other_images_of_a_batch_unless_a_search_scores_them() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    generator = torch.Generator().manual_seed(1)
    sizes = [(64, 64), (60, 96), (64, 64), (96, 50)]
    images = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]

    def found(*batches: list[int]) -> list[torch.Tensor]:
        for batch in batches:
            targets = [{"image_id": index} for index in batch]
            task.update_metrics({"images": [images[index] for index in batch], "targets": targets})  # type: ignore[typeddict-item]
        assert task.metric.rows("image_ids").tolist() == [0, 1, 2, 3]
        rows = [task.metric.rows(name).double() for name in ("counts", "labels", "scores", "boxes")]
        task.metric.reset()
        return rows

    with torch.inference_mode():
        together, alone = found([0, 1, 2, 3]), found([0], [1], [2], [3])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        task.as_deployed = False
        assert any(len(one) != len(other) or not one.equal(other) for one, other in zip(found([0, 1, 2, 3]), alone))


def test_statistics_equal_those_of_passes_through_the_whole_detector() -> None:
    task = make_task(load_supernet("bignas_nano").space.smallest()).eval()
    generator = torch.Generator().manual_seed(2)
    batches = [
        {"images": [torch.randint(256, (3, 64, 80), dtype=torch.uint8, generator=generator) for _ in range(2)]}
        for _ in range(2)
    ]
    whole = copy.deepcopy(task)
    recalibrate_batch_norm(whole.network, batches, whole.forward_batch)  # type: ignore[arg-type]
    heads: list[nn.Module] = []
    task.network.roi_heads.register_forward_hook(lambda module, *_: heads.append(module))
    assert task.calibrate(batches) == 2  # type: ignore[arg-type]
    assert not heads
    for (name, one), other in zip(task.network.state_dict().items(), whole.network.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    with torch.no_grad():
        task.forward_batch(batches[0])  # type: ignore[arg-type]
    assert len(heads) == 1


@pytest.mark.parametrize("size", [(77, 154), (64, 64), (303, 77)])
def test_a_traced_detector_resizes_to_the_size_of_the_detector(tmp_path: Path, size: tuple[int, int]) -> None:
    class Resizer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform = GeneralizedRCNNTransform(64, 80, [0.0] * 3, [1.0] * 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.transform.resize(image, None)[0]

    resizer = Resizer()
    torch.onnx.export(
        with_traced_resizing(resizer), (torch.zeros(3, 50, 60),), str(tmp_path / "resize.onnx"), dynamo=False,
        opset_version=17, input_names=["image"], dynamic_axes={"image": {1: "height", 2: "width"}},
    )  # fmt: skip
    image = torch.rand(3, *size)
    (found,) = onnxruntime.InferenceSession(tmp_path / "resize.onnx").run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), resizer(image), rtol=1e-4, atol=1e-4)
