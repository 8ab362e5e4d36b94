"""FCOS behind the elastic body: torchvision's own detector, extraction, costs, imitation and a short training."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.errors import ConfigError
from nas_transfer.supernet.ops import leading_slice
from nas_transfer.tasks.detection import DetectionTask
from nas_transfer.tasks.fcos import FcosSize, SeparableFcosSize
from nas_transfer.tasks.task import TaskSettings, Teacher
from tests.conftest import load_supernet
from tests.tasks.test_detector_genes import BATCH, counted, own_gradients, random_archs, replace_gene, with_statistics
from tests.tasks.test_ssdlite import export_gives_the_same_boxes

SIZES = FcosSize(
    fpn_levels=5, fpn_channels=32, tower_convolutions=4, group_channels=8, min_size=64, max_size=96,
    score_threshold=0.05, detections=10,
)  # fmt: skip
GENES = {"min_size": [32, 48], "fpn_levels": [3], "fpn_channels": [8, 16], "tower_convolutions": [1, 2]}
SEPARABLE = SeparableFcosSize(**asdict(SIZES))
TABLE = load_supernet("bignas_nano")


def detector(arch: ArchOrSupernet = SUPERNET, sizes: FcosSize = SIZES, genes: bool = True) -> DetectionTask:
    torch.manual_seed(0)
    return DetectionTask(
        TaskSettings(TABLE, arch, 3), category_ids=[1, 2, 3], detector=sizes, genes=GENES if genes else None
    )


class StockBackbone(nn.Module):
    """torchvision's pyramid on the maps of a body at strides 8 to 32."""

    def __init__(self, body: nn.Module, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, width
        self.fpn = FeaturePyramidNetwork(list(channels), width, LastLevelP6P7(width, width))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        return self.fpn({str(index): maps[index] for index in (1, 2, 3)})


def stock_fcos(task: DetectionTask, arch: Arch) -> FCOS:
    """torchvision's detector with 32 groups in its norms, and the weights of ours."""
    own, channels = task.network, TABLE.feature_channels(arch)[1:]
    stock = FCOS(
        StockBackbone(task.body, channels, own.backbone.out_channels), 3, min_size=64, max_size=96,
        image_mean=list(TABLE.preprocessing.mean), image_std=list(TABLE.preprocessing.std), score_thresh=0.05,
        detections_per_img=10,
    )  # fmt: skip
    for index in range(3):
        stock.backbone.fpn.inner_blocks[index].load_state_dict(own.backbone.neck.inner_blocks[index + 1].state_dict())
        stock.backbone.fpn.layer_blocks[index].load_state_dict(own.backbone.neck.layer_blocks[index + 1].state_dict())
    stock.backbone.fpn.extra_blocks.load_state_dict(own.backbone.neck.extra_blocks.state_dict())
    stock.head.load_state_dict(own.head.state_dict())
    return stock


def test_torchvisions_fcos_with_the_same_weights_gives_the_same_detections_and_losses() -> None:
    arch = TABLE.space.smallest()
    task = with_statistics(detector(arch, replace(SIZES, fpn_channels=64, group_channels=2), genes=False)).double()
    stock = stock_fcos(task, arch).double()
    with torch.no_grad():
        ours, theirs = task.eval().forward_batch(BATCH)[0], stock.eval()(BATCH["images"])[0]
    assert len(ours["boxes"]) == 10
    torch.testing.assert_close(ours["labels"], theirs["labels"] + 1)
    for name in ("boxes", "scores"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)
    targets = [{**target, "labels": target["labels"] - 1} for target in BATCH["targets"]]
    expected = stock.train()(BATCH["images"], targets)
    losses, _ = task.train().losses(BATCH, regularise=True, teacher=None)
    assert set(losses) == set(expected) == {"classification", "bbox_regression", "bbox_ctrness"}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-6, atol=1e-6)


def require_exact_extraction(task: DetectionTask, arch: Arch) -> None:
    """The subnet of an arch has the detections, losses and gradients of the supernet."""
    task.set_arch(arch)
    subnet = task.extract(arch)
    assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
    with torch.no_grad():
        ours, theirs = (each.eval().forward_batch(BATCH)[0] for each in (task, subnet))
    assert len(ours["boxes"]) > 0
    for name in task.outputs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
    for each in (task.train(), subnet.train()):
        each.network.zero_grad(set_to_none=True)
        losses, _ = each.losses(BATCH, regularise=True, teacher=None)
        torch.stack(list(losses.values())).sum().backward()
    shared, own = own_gradients(task), own_gradients(subnet)
    for name, gradient in own.items():
        active = leading_slice(shared[name], gradient.shape, name)
        torch.testing.assert_close(active, gradient, rtol=1e-9, atol=1e-9)
        assert torch.count_nonzero(shared[name]) == torch.count_nonzero(active)
    assert all(name in own or not gradient.any() for name, gradient in shared.items())


@pytest.mark.slow
def test_ten_whole_archs_are_extracted_exactly_with_detections_losses_and_gradients() -> None:
    task = with_statistics(detector().double())
    for arch in random_archs(task, 10):
        require_exact_extraction(task, arch)


def require_counted_costs(supernet: DetectionTask, archs: Sequence[Arch]) -> None:
    """The costs of archs are those of torch's counter and of their parameters."""
    totals = supernet.cost_totals(archs)
    for index, arch in enumerate(archs):
        subnet = supernet.extract(arch).eval()
        images = torch.zeros(1, 3, *subnet.input_size(arch))
        with torch.no_grad():
            levels = list(subnet.network.backbone(images).values())
        assert len(levels) == supernet.sizes(arch).genes["fpn_levels"]
        macs = counted(subnet.network.backbone, images) + counted(subnet.network.head, levels)
        assert macs == totals.macs[index] == sum(cost.macs for cost in subnet.costs(arch).values())
        assert sum(p.numel() for p in subnet.network.parameters()) == totals.params[index]


@pytest.mark.slow
def test_costs_of_ten_whole_archs_equal_torchs_counter() -> None:
    supernet = detector()
    archs = random_archs(supernet, 10)
    require_counted_costs(supernet, archs)


@pytest.mark.slow
def test_separable_towers_are_extracted_exactly_and_cost_what_torch_counts() -> None:
    task = with_statistics(detector(sizes=SEPARABLE).double())
    archs = random_archs(task, 3)
    require_exact_extraction(task, archs[0])
    require_counted_costs(detector(sizes=SEPARABLE), archs)


def test_a_separable_tower_is_a_tower_whose_kernels_are_products() -> None:
    arch = TABLE.space.smallest()
    sizes = replace(SEPARABLE, fpn_channels=64, group_channels=2)
    task = with_statistics(detector(arch, sizes, genes=False)).double()
    plain = detector(arch, FcosSize(**asdict(sizes)), genes=False).double()
    assert (task.kind.name, plain.kind.name) == ("detection_fcos_separable", "detection_fcos")
    tensors = task.network.state_dict()
    towers = [f"head.{head}_head.conv." for head in ("classification", "regression")]
    expected = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(towers))}
    for tower in towers:
        for number in range(4):  # depthwise and 1x1 convolution, norm and ReLU; without the first, three layers
            ours, theirs = f"{tower}{4 * number + 1}.", f"{tower}{3 * number}."
            expected[theirs + "weight"] = tensors[ours + "weight"] * tensors[f"{tower}{4 * number}.weight"][None, :, 0]
            expected[theirs + "bias"] = tensors[ours + "bias"]
            for name in ("weight", "bias"):
                expected[f"{tower}{3 * number + 1}.{name}"] = tensors[f"{tower}{4 * number + 2}.{name}"]
    plain.network.load_state_dict(expected)
    with torch.no_grad():
        ours, theirs = task.eval().forward_batch(BATCH)[0], stock_fcos(plain, arch).double().eval()(BATCH["images"])[0]
    assert len(ours["boxes"]) == 10
    for name in ("boxes", "scores"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


def test_smaller_archs_imitate_the_levels_of_the_same_stride() -> None:
    task = detector().double().train()
    _, pyramid = task.losses(BATCH, regularise=True, teacher=None)
    assert list(pyramid.levels) == ["1", "2", "3", "p6", "p7"]
    small = replace_gene(task, task.space.largest(), fpn_levels=3)
    task.set_arch(small)
    losses, own = task.losses(BATCH, regularise=True, teacher=Teacher(pyramid, 0.5))
    assert list(own.levels) == ["1", "2", "3"]
    assert losses["distillation"].item() == pytest.approx(0, abs=1e-12)  # the same weights, fewer levels


def test_sizes_that_cannot_be_are_refused_when_the_task_is_built() -> None:
    with pytest.raises(ConfigError, match="fpn_levels must be 3 or 5, got 4"):
        replace(SIZES, fpn_levels=4)
    settings = TaskSettings(TABLE, SUPERNET, 3)
    with pytest.raises(ConfigError, match="fpn_channels must be a multiple of group_channels, which is 8, got 12"):
        DetectionTask(settings, detector=SIZES, genes={"fpn_channels": [12]})


def test_an_image_without_objects_has_finite_losses() -> None:
    target = {"boxes": torch.zeros(0, 4).double(), "labels": torch.zeros(0, dtype=torch.int64)}
    losses, _ = detector().double().train().losses(BATCH | {"targets": [target]}, regularise=True, teacher=None)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.slow
def test_a_few_steps_on_one_image_find_its_object_and_are_exported(tmp_path: Path) -> None:
    task = detector(TABLE.space.smallest(), replace(SIZES, tower_convolutions=1), genes=False).double().train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    first = None
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.stack(list(task.losses(BATCH, regularise=True, teacher=None)[0].values())).sum()
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
    assert loss.item() < first / 2
    export_gives_the_same_boxes(task, tmp_path)
