"""Whole detectors as archs: image size, pyramid and heads are genes beside those of the body."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.errors import ConfigError
from nas_transfer.supernet.ops import leading_slice
from nas_transfer.tasks.detection import DetectionTask
from nas_transfer.tasks.detector import DetectorSize, PyramidMaps, pyramid_distance
from nas_transfer.tasks.instance_segmentation import InstanceSegmentationTask, MaskDetectorSize
from nas_transfer.tasks.task import TaskSettings
from tests.conftest import load_supernet

SIZES = DetectorSize(
    fpn_levels=5, fpn_channels=16, box_head_channels=24, anchor_sizes=(8, 16, 32, 64, 96), min_size=64, max_size=96,
    proposals_train=50, proposals_test=30, rpn_batch=32, box_batch=16, detections=10,
)  # fmt: skip
GENES = {
    "min_size": [32, 48], "fpn_levels": [4], "fpn_channels": [4, 8], "box_head_channels": [8], "proposals_test": [10],
}  # fmt: skip
MASK_GENES = GENES | {"mask_channels": [6], "mask_convolutions": [1, 2]}
TABLE = load_supernet("bignas_nano")
BATCH = {
    "images": [torch.randint(256, (3, 64, 80), generator=torch.Generator().manual_seed(0)).double()],
    "targets": [{
        "boxes": torch.tensor([[5.0, 5.0, 40.0, 50.0]]).double(), "labels": torch.tensor([2]),
        "masks": torch.ones(1, 64, 80, dtype=torch.uint8),
    }],
}  # fmt: skip


def detector(arch: ArchOrSupernet = SUPERNET) -> DetectionTask:
    torch.manual_seed(0)
    return DetectionTask(TaskSettings(TABLE, arch, 3), category_ids=[1, 2, 3], detector=SIZES, genes=GENES)


def mask_detector(arch: ArchOrSupernet = SUPERNET) -> InstanceSegmentationTask:
    torch.manual_seed(0)
    sizes = MaskDetectorSize(**asdict(SIZES), mask_channels=12, mask_convolutions=4)
    return InstanceSegmentationTask(
        TaskSettings(TABLE, arch, 3), category_ids=[1, 2, 3], detector=sizes, genes=MASK_GENES
    )


def random_archs(task: DetectionTask, count: int) -> list[Arch]:
    generator = np.random.default_rng(0)
    drawn = [task.space.sample(generator) for _ in range(count - 2)]
    return [task.space.smallest(), *drawn, task.space.largest()]


def with_statistics(task: DetectionTask) -> DetectionTask:
    """The task with BatchNorm statistics and heads that give detections."""
    for module in task.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return task


def own_gradients(task: DetectionTask) -> dict[str, Tensor]:
    return {name: p.grad for name, p in task.network.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("make", [detector, mask_detector])
def test_20_whole_archs_are_extracted_exactly_with_outputs_losses_and_gradients(make) -> None:
    task = with_statistics(make().double())
    for arch in random_archs(task, 20):
        task.set_arch(arch)
        subnet = task.extract(arch)
        assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
        with torch.no_grad():
            ours, theirs = (t.eval().forward_batch(BATCH)[0] for t in (task, subnet))
        assert set(ours) == set(task.outputs)
        assert len(ours["boxes"]) > 0
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
        for module in (task.train(), subnet.train()):
            module.network.zero_grad(set_to_none=True)
            torch.manual_seed(1)  # the same anchors and proposals are sampled
            losses, _ = module.losses(BATCH, regularise=True, teacher=None)
            torch.stack(list(losses.values())).sum().backward()
        shared, own = own_gradients(task), own_gradients(subnet)
        for name, gradient in own.items():
            active = leading_slice(shared[name], gradient.shape, name)
            torch.testing.assert_close(active, gradient, rtol=1e-9, atol=1e-9)
            assert torch.count_nonzero(shared[name]) == torch.count_nonzero(active)  # nothing outside the slice
        assert all(name in own or not gradient.any() for name, gradient in shared.items())


@pytest.mark.parametrize("make", [detector, mask_detector])
def test_costs_of_20_whole_archs_equal_torchs_counter(make) -> None:
    supernet = make()
    archs = random_archs(supernet, 20)
    totals = supernet.cost_totals(archs)
    for index, arch in enumerate(archs):
        subnet, sizes = supernet.extract(arch).eval(), supernet.sizes(arch)
        network = subnet.network
        assert (sizes.min_size, sizes.max_size) == subnet.input_size(arch)
        maps = counted(network.backbone, torch.zeros(1, 3, sizes.min_size, sizes.max_size))
        with torch.no_grad():
            levels = list(network.backbone(torch.zeros(1, 3, sizes.min_size, sizes.max_size)).values())
        assert len(levels) == sizes.fpn_levels
        pooled = torch.zeros(sizes.proposals_test, sizes.fpn_channels, 7, 7)
        heads = network.roi_heads
        macs = maps + counted(network.rpn.head, levels) + counted(heads.box_head, pooled)
        macs += counted(heads.box_predictor, torch.zeros(sizes.proposals_test, sizes.box_head_channels))
        if isinstance(sizes, MaskDetectorSize):
            inside = torch.zeros(sizes.detections, sizes.fpn_channels, 14, 14)
            macs += counted(nn.Sequential(heads.mask_head, heads.mask_predictor), inside)
        assert macs == totals.macs[index] == sum(cost.macs for cost in subnet.costs(arch).values())
        assert sum(p.numel() for p in network.parameters()) == totals.params[index]


def counted(module: nn.Module, *inputs: object) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops() // 2


def test_a_network_without_task_genes_is_the_same_one() -> None:
    torch.manual_seed(0)
    fixed = DetectionTask(TaskSettings(TABLE, SUPERNET, 3), category_ids=[1, 2, 3], detector=SIZES)
    assert fixed.space is TABLE.space
    searched = detector()
    assert set(searched.space.names) - set(TABLE.space.names) == set(GENES)
    for (name, ours), (other, theirs) in zip(
        fixed.network.state_dict().items(), searched.network.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(ours, theirs)


def test_a_detector_from_stride_8_is_torchvisions_on_the_three_coarser_maps() -> None:
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    arch = replace_gene(detector(), detector().space.largest(), fpn_levels=4)
    subnet = detector().extract(arch).eval()
    stock = FeaturePyramidNetwork([*TABLE.feature_channels(TABLE.space.largest())[1:]], 16, LastLevelMaxPool())
    own = subnet.network.backbone.neck
    for index in range(3):
        stock.inner_blocks[index].load_state_dict(own.inner_blocks[index + 1].state_dict())
        stock.layer_blocks[index].load_state_dict(own.layer_blocks[index + 1].state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = subnet.body(images)
        expected = stock({str(index + 1): maps[index + 1] for index in range(3)})
        levels = subnet.network.backbone(images)
    assert list(levels) == list(expected) == ["1", "2", "3", "pool"]
    for name in expected:
        torch.testing.assert_close(levels[name], expected[name])
    assert subnet.network.roi_heads.box_roi_pool.featmap_names == ["1", "2", "3"]
    assert [size for (size,) in subnet.network.rpn.anchor_generator.sizes] == [16, 32, 64, 96]


def replace_gene(task: DetectionTask, arch: Arch, **values: int) -> Arch:
    return task.space.arch([values.get(name, value) for name, value in zip(arch.names, arch.values, strict=True)])


def test_proposals_and_image_size_follow_the_arch() -> None:
    task = detector()
    small = replace_gene(task, task.space.largest(), min_size=32, proposals_test=10)
    task.set_arch(small)
    images = task.network.transform([torch.rand(3, 64, 80)])[0]
    assert tuple(images.image_sizes[0]) == (32, 40)
    assert task.eval().network.rpn.post_nms_top_n() == 10
    assert task.train().network.rpn.post_nms_top_n() == 50
    assert task.resize_factor(64, 80) == 0.5
    task.set_arch(task.space.largest())
    assert tuple(task.network.transform([torch.rand(3, 64, 80)])[0].image_sizes[0]) == (64, 80)


def pyramid(levels: Sequence[torch.Tensor], shares: tuple[float, float] = (1.0, 1.0)) -> PyramidMaps:
    """The coarsest levels, with the share of the width and of the height that each image takes."""
    names = [str(number) for number in range(5 - len(levels), 5)]
    return PyramidMaps(dict(zip(names, levels, strict=True)), torch.tensor([shares] * len(levels[0])))


def test_a_smaller_pyramid_is_compared_with_its_part_of_the_largest_one() -> None:
    whole = [torch.randn(1, 4, side, side) for side in (16, 8, 4, 2, 1)]
    part = [level[:, :2] for level in whole[1:]]
    assert pyramid_distance(pyramid(part), pyramid(whole)).item() == pytest.approx(0)
    constant = [torch.full_like(level, 3.0) for level in whole]
    halved = [torch.full_like(nn.functional.avg_pool2d(level, 2), 3.0) for level in part[:-1]]
    smaller = PyramidMaps(dict(zip("012", halved, strict=True)), torch.ones(1, 2))
    assert pyramid_distance(smaller, pyramid(constant)).item() < 1e-10


@pytest.mark.parametrize(("size", "share"), [((32, 64), (40 / 64, 1.0)), ((64, 96), (60 / 96, 48 / 64))])
def test_padding_moves_no_part_of_an_image_to_another(size: tuple[int, int], share: tuple[float, float]) -> None:
    """Each level holds the place in the image; images have 5:4 sides and are padded to multiples of 32."""

    def places(height: int, width: int, shares: tuple[float, float]) -> torch.Tensor:
        x = (torch.arange(width) + 0.5) / width / shares[0]
        y = (torch.arange(height) + 0.5) / height / shares[1]
        return torch.stack(torch.meshgrid(1 + y, 1 + x, indexing="ij"))[None]

    whole_share = (80 / 96, 1.0)  # 64 x 80 pixels in 64 x 96
    whole, small = places(64, 96, whole_share), places(*size, share)
    small[..., round(size[1] * share[0]) :] = 1e3  # what is in the padding does not count
    near = pyramid_distance(pyramid([small], share), pyramid([whole], whole_share)).item()
    assert near < 1e-4
    resized = nn.functional.interpolate(whole, size, mode="bilinear", antialias=True)
    image = [..., slice(round(size[0] * share[1])), slice(round(size[1] * share[0]))]
    assert (resized - small)[image].square().sum() / small[image].square().sum() > 1e-3


def test_pyramids_of_other_depths_are_refused() -> None:
    with pytest.raises(ConfigError, match="fpn_levels must be 4 or 5, got 3"):
        replace(SIZES, fpn_levels=3)
    with pytest.raises(ConfigError, match="genes must name sizes"):
        DetectionTask(TaskSettings(TABLE, SUPERNET, 3), detector=SIZES, genes={"anchor_sizes": [8]})


def test_boxes_are_pooled_alike_whatever_the_first_image_was() -> None:
    images = [torch.randint(256, (3, 60, 90), generator=torch.Generator().manual_seed(n)) for n in range(2)]
    arch = mask_detector().space.from_dict({**mask_detector().space.largest().to_dict(), "min_size": 32})
    found = []
    for first in (torch.zeros(3, 64, 96), torch.zeros(3, 34, 96)):  # the second is padded from 32 x 48 to 64 rows
        task = with_statistics(mask_detector(arch)).eval()
        with torch.no_grad():
            task.forward_batch({"images": [first]})
            found.append(task.forward_batch({"images": images}))
    for one, other in zip(*found, strict=True):
        assert len(one["boxes"]) > 0
        for name, values in one.items():
            torch.testing.assert_close(other[name], values)
