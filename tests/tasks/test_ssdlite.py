"""SSDLite behind the elastic body: torchvision's own layers and detector, extraction, costs and a short training."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.deploy.engines import run_onnx, run_torch, unmatched_detections, write_engines
from nas_transfer.errors import ConfigError
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.supernet.ops import leading_slice
from nas_transfer.tasks.detection import DetectionTask
from nas_transfer.tasks.ssdlite import SsdliteSize
from nas_transfer.tasks.task import TaskSettings
from tests.conftest import load_supernet
from tests.tasks.test_detector_genes import BATCH, counted, own_gradients, random_archs, with_statistics

SIZES = SsdliteSize(
    taps=3, extra_layers=3, extra_channels=32, smallest_anchor=0.1, largest_anchor=0.95, min_size=64, max_size=96,
    score_threshold=0.01, detections=10,
)  # fmt: skip
GENES = {"min_size": [32, 48], "taps": [2], "extra_layers": [1, 2], "extra_channels": [8, 16]}
TABLE = load_supernet("bignas_nano")
OTHER = {"boxes": torch.tensor([[30.0, 20.0, 75.0, 60.0]]).double(), "labels": torch.tensor([1])}
PAIR = {"images": [*BATCH["images"], BATCH["images"][0].flip(2)], "targets": [BATCH["targets"][0], OTHER]}


def detector(arch: ArchOrSupernet = SUPERNET, sizes: SsdliteSize = SIZES, genes: bool = True) -> DetectionTask:
    torch.manual_seed(0)
    return DetectionTask(
        TaskSettings(TABLE, arch, 3), category_ids=[1, 2, 3], detector=sizes, genes=GENES if genes else None
    )


class StockBackbone(nn.Module):
    """The last maps of a body and torchvision's extra layers."""

    def __init__(self, body: nn.Module, taps: int, extra: nn.ModuleList) -> None:
        super().__init__()
        self.body, self.taps, self.extra = body, taps, extra

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = list(self.body(images))[-self.taps :]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(index), features) for index, features in enumerate(maps))


def stock_ssdlite(task: DetectionTask, sizes: SsdliteSize) -> SSD:
    """torchvision's detector with the weights of ours."""
    channels, widths = TABLE.feature_channels(TABLE.space.smallest()), sizes.widths
    inputs = [channels[-1], *widths[:-1]]
    extra = nn.ModuleList(_extra_block(*pair, nn.BatchNorm2d) for pair in zip(inputs, widths, strict=True))
    outputs = [*channels[-sizes.taps :], *widths]
    anchors = DefaultBoxGenerator([[2, 3]] * len(outputs), min_ratio=0.1, max_ratio=0.95)
    head = SSDLiteHead(outputs, anchors.num_anchors_per_location(), 4, nn.BatchNorm2d)
    own = task.network
    for ours, theirs in (
        *(
            (layer[index], extra[number][index])
            for number, layer in enumerate(own.backbone.extra)
            for index in range(3)
        ),
        *((ours[0], head.classification_head.module_list[k][0]) for k, ours in enumerate(own.head.classes.values())),
        *((ours[0], head.regression_head.module_list[k][0]) for k, ours in enumerate(own.head.boxes.values())),
    ):
        theirs[0].load_state_dict(ours.conv.state_dict())
        theirs[1].load_state_dict(ours.norm.state_dict())
    for predictors, theirs in (
        (own.head.classes, head.classification_head.module_list),
        (own.head.boxes, head.regression_head.module_list),
    ):
        for ours, block in zip(predictors.values(), theirs, strict=True):
            block[1].load_state_dict(ours[1].state_dict())
    stock = SSD(
        StockBackbone(task.body, sizes.taps, extra), anchors, (64, 64), 4, head=head, score_thresh=0.01,
        nms_thresh=0.55, topk_candidates=300, detections_per_img=10,
    )  # fmt: skip
    mean, std = TABLE.preprocessing.mean, TABLE.preprocessing.std
    stock.transform = GeneralizedRCNNTransform(64, 64, list(mean), list(std))
    return stock


@pytest.mark.parametrize("taps", [2, 3])
def test_torchvisions_ssdlite_with_the_same_weights_gives_the_same_detections_and_losses(taps: int) -> None:
    sizes = replace(SIZES, taps=taps, max_size=64)
    task = with_statistics(detector(TABLE.space.smallest(), sizes, genes=False)).double()
    stock = stock_ssdlite(task, sizes).double()
    with torch.no_grad():
        ours, theirs = task.eval().forward_batch(PAIR), stock.eval()(PAIR["images"])
    for one, other in zip(ours, theirs, strict=True):
        assert len(one["boxes"]) == 10
        for name in ("boxes", "labels", "scores"):
            torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-6)
    expected = stock.train()(PAIR["images"], PAIR["targets"])
    losses, _ = task.train().losses(PAIR, regularise=True, teacher=None)
    assert set(losses) == set(expected) == {"classification", "bbox_regression"}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_ten_whole_archs_are_extracted_exactly_with_detections_losses_and_gradients() -> None:
    task = with_statistics(detector().double())
    for arch in random_archs(task, 10):
        task.set_arch(arch)
        subnet = task.extract(arch)
        assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
        with torch.no_grad():
            ours, theirs = (each.eval().forward_batch(PAIR)[0] for each in (task, subnet))
        assert len(ours["boxes"]) > 0
        for name in task.outputs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
        for each in (task.train(), subnet.train()):
            each.network.zero_grad(set_to_none=True)
            losses, _ = each.losses(PAIR, regularise=True, teacher=None)
            torch.stack(list(losses.values())).sum().backward()
        shared, own = own_gradients(task), own_gradients(subnet)
        for name, gradient in own.items():
            active = leading_slice(shared[name], gradient.shape, name)
            torch.testing.assert_close(active, gradient, rtol=1e-9, atol=1e-9)
            assert torch.count_nonzero(shared[name]) == torch.count_nonzero(active)
        assert all(name in own or not gradient.any() for name, gradient in shared.items())


@pytest.mark.slow
def test_costs_of_ten_whole_archs_equal_torchs_counter() -> None:
    supernet = detector()
    archs = random_archs(supernet, 10)
    totals = supernet.cost_totals(archs)
    for index, arch in enumerate(archs):
        subnet = supernet.extract(arch).eval()
        images = torch.zeros(1, 3, *subnet.input_size(arch))
        with torch.no_grad():
            maps = list(subnet.network.backbone(images).values())
        macs = counted(subnet.network.backbone, images) + counted(subnet.network.head, maps)
        assert macs == totals.macs[index] == sum(cost.macs for cost in subnet.costs(arch).values())
        assert sum(p.numel() for p in subnet.network.parameters()) == totals.params[index]


def test_anchors_of_a_map_have_the_same_sides_in_wide_and_tall_images() -> None:
    """Else the same pixels would have to give other offsets in each image."""
    sides = []
    for height, width in ((64, 96), (96, 64)):
        images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
        boxes = SIZES.anchors()(
            images, [torch.zeros(1, 1, height // stride, width // stride) for stride in (8, 16, 32)]
        )
        sides.append((boxes[0][:, 2:] - boxes[0][:, :2]).reshape(-1, 6, 2))
    torch.testing.assert_close(sides[0], sides[1])
    torch.testing.assert_close(sides[0][0, 0], torch.full((2,), 0.1 * (64 * 96) ** 0.5))


def test_the_extra_layers_are_as_wide_as_torchvisions() -> None:
    assert replace(SIZES, extra_layers=4, extra_channels=256).widths == [512, 256, 256, 128]


def test_sizes_that_cannot_be_are_refused_when_the_task_is_built() -> None:
    for values, message in (
        ({"taps": 1}, "taps must be 2 or 3, got 1"),
        ({"extra_layers": 5}, "extra_layers must be at most 4, got 5"),
        ({"extra_channels": 30}, "extra_channels must be a multiple of 4, got 30"),
        ({"smallest_anchor": 0.95}, "smallest_anchor must be below"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(SIZES, **values)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs at least 2 images per training step, got 1"):
        detector(TABLE.space.smallest(), genes=False).double().train().losses(BATCH, regularise=True, teacher=None)


@pytest.mark.slow
def test_a_few_steps_on_two_images_learn_their_objects_and_are_exported(tmp_path: Path) -> None:
    task = detector(TABLE.space.smallest(), genes=False).double().train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    first = None
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.stack(list(task.losses(PAIR, regularise=True, teacher=None)[0].values())).sum()
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
    assert loss.item() < first / 3
    export_gives_the_same_boxes(task, tmp_path)


def export_gives_the_same_boxes(task: DetectionTask, folder: Path) -> None:
    """Compare a trained detector with its ONNX file on images of other sizes than that it was traced with."""
    task.calibrate([PAIR])
    task.float().eval()
    fold_batch_norms(task.network)
    write_engines(task.deployed(), folder / "model")
    image = PAIR["images"][0][None].float()
    images = [nn.functional.interpolate(image, size, mode="bilinear") for size in ((64, 80), (90, 60), (120, 200))]
    engines = run_torch(task.deployed().module), run_onnx(folder / "model.onnx", 1)
    assert all(len(engines[0](each)[0]) > 0 for each in images)
    assert unmatched_detections(*engines, images)[0] == 0
