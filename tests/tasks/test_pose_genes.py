"""Pose archs with a crop and a head of their own: costs, extraction, coordinates, imitation, deployment, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.deploy.engines import run_onnx, write_engines
from nas_transfer.deploy.modules import run_by
from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.search.objectives.macs import Macs
from nas_transfer.stages.common.build import build_task
from nas_transfer.stages.config.base import TaskRunConfig
from nas_transfer.stages.config.entry import read_config
from nas_transfer.supernet.ops import leading_slice
from nas_transfer.tasks.genes import Choices
from nas_transfer.tasks.heatmaps import encode_heatmaps
from nas_transfer.tasks.pose import PoseTask
from nas_transfer.tasks.pose_crops import resized_crops
from nas_transfer.tasks.pose_head import PoseHeadSize
from nas_transfer.tasks.pose_sizes import PoseSizes
from nas_transfer.tasks.task import TaskSettings, Teacher
from tests.conftest import load_supernet

TABLE = load_supernet("bignas_nano")
SIZE = (192, 160)
GENES: Choices = {"input_height": [96, 128, 160], "deconvolutions": [2], "deconvolution_channels": [8, 16]}
INPUT_SIZES = {96: (96, 96), 128: (128, 96), 160: (160, 128), 192: SIZE}


def head_of(channels: tuple[int, ...] = (24, 24, 24), sigma: float = 2.0) -> PoseHeadSize:
    return PoseHeadSize(channels, sigma, flip_test=True, score_threshold=0.2, oks_threshold=0.9)


def make_task(
    arch: ArchOrSupernet = SUPERNET,
    genes: Choices | None = GENES,
    channels: tuple[int, ...] = (24, 24, 24),
    size: tuple[int, int] = SIZE,
) -> PoseTask:
    torch.manual_seed(0)
    settings = TaskSettings(TABLE, arch, num_classes=4)
    return PoseTask(
        settings, head=head_of(channels), input_size=size, flip_pairs=[[1, 2]], sigmas=[0.1] * 4, genes=genes
    )


def whole(task: PoseTask, **genes: int) -> Arch:
    """The smallest body with these genes of the task, the others the largest."""
    return task.space.from_dict({**task.table.space.smallest().to_dict(), **genes})


def make_batch(count: int = 2, size: tuple[int, int] = SIZE) -> dict[str, Tensor]:
    generator, dtype = torch.Generator().manual_seed(0), torch.float64
    points = torch.rand(count, 4, 2, generator=generator, dtype=dtype) * torch.tensor([size[1] - 1, size[0] - 1])
    return {
        "images": torch.randint(256, (count, 3, *size), generator=generator, dtype=torch.uint8),
        "keypoints": points,
        "visible": torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=dtype).repeat(count, 1),
        "to_image": torch.tensor([[0.6, -0.8, 7.0], [0.8, 0.6, -2.0]], dtype=torch.float64).repeat(count, 1, 1),
        "image_ids": torch.arange(count),
        "sample_ids": torch.arange(count),
        "areas": torch.full((count,), 900.0),
        "box_scores": torch.ones(count),
    }


def lively(task: PoseTask) -> PoseTask:
    """Weights and statistics that no symmetry hides; the initial maps are nearly flat."""
    generator = torch.Generator().manual_seed(1)
    for module in task.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)
    for parameter in (*task.network.deconvolutions.parameters(), *task.network.maps.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return task


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "count"), [((24, 24, 24), 8), ((32, 24, 16), 4)])
def test_random_networks_are_extracted_with_equal_outputs_losses_and_gradients(
    channels: tuple[int, ...], count: int
) -> None:
    size = (96, 64)
    widths = [8, 16] if len(set(channels)) == 1 else None
    genes: Choices = {"input_height": [64], "deconvolutions": [2], "deconvolution_channels": widths}
    task = lively(make_task(genes=genes, channels=channels, size=size)).double()
    generator, batch = np.random.default_rng(0), make_batch(size=size)
    archs = [task.space.smallest(), task.space.largest(), *(task.space.sample(generator) for _ in range(count - 2))]
    teacher = Teacher(torch.rand(2, 4, 24, 16, dtype=torch.float64), 0.3)
    for arch in archs:
        subnet = task.extract(arch)
        task.set_arch(arch)
        assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
        with torch.no_grad():
            ours, theirs = (module.eval().forward_batch(batch) for module in (task, subnet))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        for share in (None, teacher):
            task.zero_grad()
            subnet.zero_grad()
            losses = [module.train().losses(batch, regularise=True, teacher=share)[0] for module in (task, subnet)]
            for mine, other in zip(losses[0].values(), losses[1].values(), strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
            for each in losses:
                torch.stack(list(each.values())).sum().backward()
            shared = {name: p.grad for name, p in task.network.named_parameters() if p.grad is not None}
            for name, parameter in subnet.network.named_parameters():
                part = leading_slice(shared[name], parameter.shape, name)
                torch.testing.assert_close(part, parameter.grad, rtol=1e-9, atol=1e-9)
                assert shared[name].abs().sum().item() == pytest.approx(part.abs().sum().item())


def test_the_costs_of_twenty_random_networks_equal_torchs_counter_and_their_parameters() -> None:
    task = make_task()
    generator = np.random.default_rng(0)
    archs = [task.space.smallest(), task.space.largest(), *(task.space.sample(generator) for _ in range(18))]
    totals = task.cost_totals(archs)
    for index, arch in enumerate(archs):
        subnet = task.extract(arch).eval()
        height, width = task.input_size(arch)
        assert (height, width) == INPUT_SIZES[arch["input_height"]]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            maps = subnet.network(torch.zeros(1, 3, height, width))
        stride = {2: 8, 3: 4}[arch["deconvolutions"]]
        assert maps.shape == (1, 4, height // stride, width // stride)
        costs = task.costs(arch)
        assert list(costs) == ["body", "head"]
        assert counter.get_total_flops() // 2 == sum(cost.macs for cost in costs.values()) == totals.macs[index]
        params = sum(p.numel() for p in subnet.network.parameters())
        assert params == sum(cost.params for cost in costs.values()) == totals.params[index]


def test_the_macs_of_the_body_alone_at_one_size_ignore_the_genes_of_the_task() -> None:
    task = make_task()
    archs = [whole(task), whole(task, input_height=96, deconvolutions=2)]
    found = Macs("minimize", (64, 64)).of_archs(task, archs)
    assert found.tolist() == [TABLE.body_cost(TABLE.space.smallest(), (64, 64)).macs] * 2


def test_a_small_head_is_the_first_deconvolutions_with_their_leading_channels() -> None:
    task = lively(make_task()).eval()
    arch = whole(task, input_height=128, deconvolutions=2, deconvolution_channels=8)
    task.set_arch(arch)
    state = task.network.state_dict()
    channels = TABLE.feature_channels(task.body_arch(arch))[-1]
    plain = nn.Sequential()
    for index, wide in ((0, channels), (3, 8)):
        deconvolution = nn.ConvTranspose2d(wide, 8, 4, 2, 1, bias=False)
        norm = nn.BatchNorm2d(8, eps=TABLE.batch_norm_eps)
        deconvolution.weight.data = state[f"deconvolutions.{index}.weight"][:wide, :8].clone()
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).data = state[f"deconvolutions.{index + 1}.{name}"][:8].clone()
        plain.extend([deconvolution, norm, nn.ReLU()])
    maps = nn.Conv2d(8, 4, 1)
    maps.weight.data, maps.bias.data = state["maps.weight"][:, :8].clone(), state["maps.bias"].clone()
    images = make_batch()["images"]
    with torch.no_grad():
        crops = nn.functional.interpolate(task.normalise(images), (128, 96), mode="bilinear", antialias=True)
        expected = maps(plain.eval()(task.network.body(crops)[-1]))
        found = task(images)
    assert found.shape == (2, 4, 16, 12)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class BrightDot(nn.Module):
    """Stands for a trained network: each map is the brightness of the crop, averaged over the pixels of each cell."""

    def __init__(self, task: PoseTask, stride: int) -> None:
        super().__init__()
        self.preprocessing, self.stride = task.table.preprocessing, stride

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised crops (B, 3, H, W) to four equal maps."""
        brightness = images[:, :1] * self.preprocessing.std[0] + self.preprocessing.mean[0]
        return nn.functional.avg_pool2d(brightness / 255, self.stride).repeat(1, 4, 1, 1)


@pytest.mark.parametrize("height", INPUT_SIZES)
@pytest.mark.parametrize("deconvolutions", [2, 3])
def test_a_drawn_keypoint_is_found_at_its_place_from_every_crop(height: int, deconvolutions: int) -> None:
    task = make_task()
    subnet = task.extract(whole(task, input_height=height, deconvolutions=deconvolutions)).eval()
    stride = {2: 8, 3: 4}[deconvolutions]
    subnet.network = BrightDot(task, stride)
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(24)
    points = 40 + torch.rand(24, 2, generator=generator, dtype=torch.float64) * torch.tensor([80.0, 112.0])
    rows, columns = torch.arange(192)[:, None], torch.arange(160)[None, :]
    squares = (rows - points[:, 1, None, None]) ** 2 + (columns - points[:, 0, None, None]) ** 2
    batch["images"] = (255 * torch.exp(-squares / (2 * 10**2))).round().to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
    found, scores = subnet.predict(batch)
    cell = stride * 192 / height
    for number, (x, y) in enumerate(points.tolist()):
        place = np.array([0.6 * x - 0.8 * y + 7, 0.8 * x + 0.6 * y - 2])
        assert np.linalg.norm(found[number] - place, axis=1).max() < 0.1 * cell
    assert scores.min() > 0.4


def test_a_resized_crop_shows_each_keypoint_where_it_is_and_leads_back_to_the_same_place() -> None:
    """In an image whose pixels hold their own coordinate, brightness is the place in the large crop."""
    batch = make_batch()
    ramp = torch.arange(160, dtype=torch.float64).expand(2, 3, 192, 160).clone()
    ramp[:, 1] = torch.arange(192, dtype=torch.float64)[:, None]
    for size in INPUT_SIZES.values():
        small = resized_crops(batch, ramp, size)
        inside = (slice(4, size[0] - 4), slice(4, size[1] - 4))
        rows, columns = (np.arange(side)[part] for side, part in zip(size, inside, strict=True))
        across = small["images"][0, 0, 10].numpy()[inside[1]] - ((columns + 0.5) * 160 / size[1] - 0.5)
        down = small["images"][0, 1, :, 10].numpy()[inside[0]] - ((rows + 0.5) * 192 / size[0] - 0.5)
        # Filters of a few taps are off by a tenth of a pixel where the sizes do not divide each other, on both sides.
        for error in (across, down):
            assert np.abs(error).max() < 0.1
            assert abs(error.mean()) < 0.005
        for point, (x, y) in zip(small["keypoints"][0], batch["keypoints"][0].tolist(), strict=True):
            assert point.tolist() == pytest.approx([(x + 0.5) * size[1] / 160 - 0.5, (y + 0.5) * size[0] / 192 - 0.5])
        places = [
            torch.einsum("bij,bkj->bki", each["to_image"][:, :, :2], each["keypoints"])
            + each["to_image"][:, None, :, 2]
            for each in (batch, small)
        ]
        torch.testing.assert_close(places[0], places[1], rtol=0, atol=1e-9)
        assert small["keypoints"].dtype == small["to_image"].dtype == torch.float64


def test_the_flip_test_of_a_small_crop_mirrors_the_prediction() -> None:
    task = lively(make_task())
    subnet = task.extract(whole(task, input_height=96, deconvolutions=2, deconvolution_channels=8)).eval()
    batch = make_batch()
    batch["to_image"] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64).repeat(2, 1, 1)
    with torch.no_grad():
        points, scores = subnet.predict(batch)
        mirrored, same = subnet.predict(batch | {"images": batch["images"].flip(3)})
    np.testing.assert_allclose(mirrored[:, [0, 2, 1, 3], 0], 159 - points[..., 0], atol=1e-2)
    np.testing.assert_allclose(mirrored[:, [0, 2, 1, 3], 1], points[..., 1], atol=1e-2)
    np.testing.assert_allclose(same[:, [0, 2, 1, 3]], scores, atol=1e-4)


def test_a_prepared_batch_gives_the_same_losses_and_predictions() -> None:
    task = lively(make_task()).double()
    batch = make_batch()
    for height in INPUT_SIZES:
        arch = whole(task, input_height=height)
        subnet = task.extract(arch).eval()
        prepared = task.prepared(batch, arch)
        assert (prepared["images"] is batch["images"]) == (height == 192)
        with torch.no_grad():
            for before, after in zip(subnet.predict(batch), subnet.predict(prepared), strict=True):
                np.testing.assert_array_equal(before, after)
            assert torch.equal(subnet.forward_batch(batch), subnet.forward_batch(prepared))
            assert torch.equal(subnet(batch["images"]), subnet(prepared["images"]))
            losses = [subnet.losses(each, regularise=False, teacher=None)[0] for each in (batch, prepared)]
        assert torch.equal(losses[0]["heatmaps"], losses[1]["heatmaps"])


def test_the_loss_is_that_of_targets_in_the_small_crop_with_the_sigma_of_its_maps() -> None:
    task = lively(make_task()).double().train()
    arch = whole(task, input_height=160, deconvolutions=3)
    task.set_arch(arch)
    batch = make_batch()
    losses, maps = task.losses(batch, regularise=False, teacher=None)
    points = torch.stack(
        [(batch["keypoints"][..., 0] + 0.5) * 128 / 160 - 0.5, (batch["keypoints"][..., 1] + 0.5) * 160 / 192 - 0.5], -1
    )
    targets, _ = encode_heatmaps(points, batch["visible"], (40, 32), 4, 2.0 * 40 / 48)
    by_hand = sum((maps[b, k] - targets[b, k]).square().mean() for b in range(2) for k in (0, 1, 3)) / (2 * 4)
    # A Gaussian of sigma 2 covers 2^2 of 48x40 cells, here (2 * 40 / 48)^2 of 40x32.
    factor = (40 * 32 / (2.0 * 40 / 48) ** 2) / (48 * 40 / 2.0**2)
    assert losses["heatmaps"].item() == pytest.approx(factor * by_hand.item(), rel=1e-9)


def test_errors_of_smaller_maps_count_as_much_as_those_of_the_largest() -> None:
    task = make_task()
    maps = {}
    for genes in ({}, {"input_height": 96}, {"input_height": 96, "deconvolutions": 2}):
        arch = whole(task, **genes)
        size, head = task.input_size(arch), task.sizes.head(arch)
        cells = (size[0] // head.stride, size[1] // head.stride)
        keypoints = torch.tensor([[[size[1] / 2, size[0] / 2]]])
        targets, _ = encode_heatmaps(keypoints, torch.ones(1, 1), cells, head.stride, head.sigma)
        # The loss of maps of zeros, which is the share of the map that the Gaussian covers.
        maps[arch] = float(targets.square().mean()) * task.sizes.loss_factor(cells, head)
    largest, *others = maps.values()
    assert others == pytest.approx([largest] * len(others), rel=0.05)
    assert task.sizes.loss_factor((48, 40), task.head) == 1.0


@pytest.mark.parametrize(
    ("genes", "sigma"),
    [
        ({}, 3.0),
        ({"input_height": 256}, 2.0),  # Xiao et al.: 3 at 96x72 and 2 at 64x48
        ({"input_height": 256, "deconvolutions": 2}, 1.0),
        ({"input_height": 128}, 1.0),
        ({"input_height": 128, "deconvolutions": 2}, 1.0),  # not half a cell
        ({"deconvolutions": 2}, 1.5),
        ({"deconvolution_channels": 64}, 3.0),
    ],
)
def test_sigma_follows_the_height_of_the_map_and_is_at_least_one_cell(genes: dict[str, int], sigma: float) -> None:
    choices = {"input_height": [128, 256], "deconvolutions": [2], "deconvolution_channels": [64]}
    sizes = PoseSizes(head_of((256, 256, 256), 3.0), (384, 288), choices, TABLE.space)
    arch = TABLE.space.extended(sizes.genes).from_dict(TABLE.space.smallest().to_dict() | genes)
    assert sizes.head(arch).sigma == pytest.approx(sigma)


def test_a_stated_sigma_below_one_cell_is_kept() -> None:
    sizes = PoseSizes(head_of(sigma=0.7), SIZE, GENES, TABLE.space)
    space = TABLE.space.extended(sizes.genes)
    assert [sizes.head(arch).sigma for arch in (space.largest(), space.smallest())] == [0.7, 0.7]


def test_a_smaller_arch_imitates_the_antialiased_maps_of_the_largest_one() -> None:
    task = lively(make_task()).double().train()
    task.set_arch(whole(task, deconvolutions=2))
    teacher = torch.rand(2, 4, 48, 40, dtype=torch.float64)
    losses, maps = task.losses(make_batch(), regularise=False, teacher=Teacher(teacher, 0.25))
    assert maps.shape == (2, 4, 24, 20)
    # Halved, a cell is the mean of the four around its centre, weighted by a triangle that is as wide as two cells.
    small = torch.zeros_like(maps)
    for row in range(24):
        for column in range(20):
            total, weights = torch.zeros(2, 4, dtype=torch.float64), 0.0
            for down, first in zip(range(2 * row - 1, 2 * row + 3), (1, 3, 3, 1), strict=True):
                for across, second in zip(range(2 * column - 1, 2 * column + 3), (1, 3, 3, 1), strict=True):
                    if 0 <= down < 48 and 0 <= across < 40:
                        total += first * second * teacher[:, :, down, across]
                        weights += first * second
            small[:, :, row, column] = total / weights
    assert losses["distillation"].item() == pytest.approx(0.25 * (maps - small).square().mean().item(), rel=1e-9)
    task.set_arch(whole(task, deconvolution_channels=8))
    losses, maps = task.losses(make_batch(), regularise=False, teacher=Teacher(teacher, 0.25))
    assert losses["distillation"].item() == pytest.approx(0.25 * (maps - teacher).square().mean().item(), rel=1e-12)


def test_without_genes_nothing_changes_and_the_largest_arch_is_the_network_without_genes() -> None:
    fixed, elastic = make_task(genes=None), make_task()
    assert fixed.space is TABLE.space
    assert [gene.name for gene in elastic.space.genes[-3:]] == list(GENES)
    assert fixed.deployed().size is None
    weights, others = fixed.network.state_dict(), elastic.network.state_dict()
    assert list(weights) == list(others)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    arch = TABLE.space.largest()
    images = make_batch()["images"]
    with torch.no_grad():
        maps = fixed.extract(arch).eval()(images)
        assert torch.equal(maps, fixed.eval()(images))
        assert torch.equal(maps, elastic.extract(elastic.space.largest()).eval()(images))
    assert fixed.costs(arch) == elastic.costs(elastic.space.largest())


@pytest.mark.slow
def test_the_network_of_a_small_arch_is_the_same_in_onnx_and_takes_its_own_crops(tmp_path: Path) -> None:
    task = lively(make_task())
    subnet = task.extract(whole(task, input_height=128, deconvolutions=2, deconvolution_channels=8)).eval()
    deployed = subnet.deployed()
    assert (deployed.size, deployed.outputs) == ((128, 96), ("heatmaps",))
    write_engines(deployed, tmp_path / "pose")
    run = run_onnx(tmp_path / "pose.onnx", 1)
    images = 255 * torch.rand(3, 3, 128, 96)
    with torch.no_grad():
        expected = deployed.module(images)[0]
        found = run(images)[0]
        assert found.shape == (3, 4, 16, 12)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        points, scores = subnet.predict(make_batch())
        others, same = run_by(subnet, run).predict(make_batch())
    np.testing.assert_allclose(others, points, atol=0.05)
    np.testing.assert_allclose(same, scores, rtol=1e-3)


@pytest.mark.parametrize(
    ("genes", "channels", "message"),
    [
        ({"input_height": [100]}, (24, 24), "input_height must be multiples of 32 pixels, got 100: use 96"),
        ({"deconvolution_channels": [8]}, (24, 16), r"differ in width, got task.build.head.channels=\[24, 16\]: make"),
        ({"deconvolutions": [1], "input_height": [32]}, (8, 8), "3x3 cells or more, got crops of 32x32 pixels with 1 "),
        ({"width": [8]}, (24, 24), "must name sizes that this task can change, got 'width'"),
    ],
)
def test_choices_that_cannot_be_are_refused(genes: Choices, channels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(genes=genes, channels=channels)


@pytest.mark.parametrize("name", ["small_pose", "coco_pose"])
def test_the_archs_of_a_task_differ_at_least_five_times_in_cost(name: str) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = read_config(compose("config", [f"task={name}"]), TaskRunConfig)
    with torch.device("meta"):
        task = build_task(config, config.supernet.build(), SUPERNET, None)
    assert [gene.name for gene in task.space.genes[-3:]] == list(GENES)
    smallest, largest = task.cost_totals([task.space.smallest(), task.space.largest()]).macs
    assert largest > 5 * smallest
