"""SimCC behind the elastic body: published shapes, extraction, costs, decoding, losses, training and export."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.deploy.engines import run_onnx, write_engines
from nas_transfer.deploy.modules import run_by
from nas_transfer.errors import ConfigError
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.supernet.ops import leading_slice
from nas_transfer.tasks.genes import Choices
from nas_transfer.tasks.pose import PoseTask
from nas_transfer.tasks.simcc import SimccSize
from nas_transfer.tasks.task import TaskSettings, Teacher
from tests.tasks.test_detector_genes import random_archs
from tests.tasks.test_pose_genes import SIZE, TABLE, make_batch, whole
from tests.tasks.test_segmentation_genes import with_random_statistics

HEAD = SimccSize(
    input_size=SIZE, channels=24, bins_per_pixel=2, kernel_size=3, sigma_percent=2.0, flip_test=True,
    score_threshold=0.2, oks_threshold=0.9,
)  # fmt: skip
GENES: Choices = {"input_height": [96, 128], "channels": [8, 16], "bins_per_pixel": [1]}


def make_task(arch: ArchOrSupernet = SUPERNET, head: SimccSize = HEAD, genes: Choices | None = GENES) -> PoseTask:
    torch.manual_seed(0)
    settings = TaskSettings(TABLE, arch, num_classes=4)
    return PoseTask(settings, head=head, input_size=head.input_size, flip_pairs=[[1, 2]], sigmas=[0.1] * 4, genes=genes)


def total(task: PoseTask, teacher: Teacher[Tensor] | None = None) -> Tensor:
    named, _ = task.losses(make_batch(), regularise=True, teacher=teacher)  # type: ignore[arg-type]
    return torch.stack(list(named.values())).sum()


def test_the_layers_have_the_shapes_of_rtmpose() -> None:
    """Those of the public weights of RTMPose for 17 keypoints in crops of 256x192, but for the channels of the body."""
    with torch.device("meta"):
        settings = TaskSettings(TABLE, TABLE.space.smallest(), num_classes=17)
        head = replace(HEAD, input_size=(256, 192), channels=256, kernel_size=7)
        network = PoseTask(settings, head=head, input_size=(256, 192)).network
    channels = TABLE.feature_channels(TABLE.space.smallest())[-1]
    shapes = [tuple(layer.weight.shape) for layer in (network.maps, network.hidden, network.columns, network.rows)]
    assert shapes == [(17, channels, 7, 7), (256, 48), (384, 256), (512, 256)]


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_ten_archs_are_extracted_exactly_in_outputs_losses_and_gradients(training: bool) -> None:
    task = with_random_statistics(make_task()).double().train(training)  # type: ignore[arg-type]
    for arch in random_archs(task, 10):  # type: ignore[arg-type]
        task.set_arch(arch)
        subnet = task.extract(arch)
        assert not any(
            word in type(module).__name__ for module in subnet.network.modules() for word in ("Elastic", "Bin")
        )
        for each in (task, subnet):
            each.zero_grad()
        ours, theirs = (each.forward_batch(make_batch()) for each in (task, subnet))  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        losses = [total(each) for each in (task, subnet)]
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
        for loss in losses:
            loss.backward()
        shared, own = (dict(each.network.named_parameters()) for each in (task, subnet))
        for name, parameter in own.items():
            if parameter.grad is None:
                continue
            gradient = shared[name].grad
            assert gradient is not None
            if name.startswith(("columns", "rows")):  # every row of a bin gets its share of the gradient
                joined = gradient.unflatten(0, (len(parameter), -1))
                gradient = joined.sum(1)
                torch.testing.assert_close(joined, joined[:, :1].expand_as(joined), rtol=1e-9, atol=1e-15)
            active = leading_slice(gradient, parameter.shape, name)
            torch.testing.assert_close(active, parameter.grad, rtol=1e-9, atol=1e-9)
            assert torch.count_nonzero(gradient) == torch.count_nonzero(active)
        assert all(p.grad is None or name in own or not p.grad.any() for name, p in shared.items())


@pytest.mark.slow
def test_the_costs_of_ten_archs_equal_torchs_counter() -> None:
    task = make_task().eval()
    archs = random_archs(task, 10)  # type: ignore[arg-type]
    totals = task.cost_totals(archs)
    for number, arch in enumerate(archs):
        subnet = task.extract(arch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            subnet.run_network(torch.zeros(1, 3, *task.input_size(arch)))
        assert counter.get_total_flops() // 2 == totals.macs[number] == sum(c.macs for c in task.costs(arch).values())
        assert sum(parameter.numel() for parameter in subnet.network.parameters()) == totals.params[number]


def decoded(logits: np.ndarray, width: int, split: float) -> tuple[np.ndarray, np.ndarray]:
    """The paper's decoding: the likeliest column and row divided by the splitting factor; bins start at pixel borders.

    Scores are the smaller maximum, as in RTMPose, each divided by the maximum of a Gaussian of 2 % of the side.
    """
    parts = logits[..., :width], logits[..., width:]
    places = np.stack([part.argmax(-1) for part in parts], -1)
    shares = []
    for part in parts:
        side = np.arange(-2 * part.shape[-1], 2 * part.shape[-1])
        peak = 1 / np.exp(-(side**2) / (2 * (0.02 * part.shape[-1]) ** 2)).sum()
        shares.append((np.exp(part) / np.exp(part).sum(-1, keepdims=True)).max(-1) / peak)
    return (places + 0.5) / split - 0.5, np.minimum(*shares)


@pytest.mark.parametrize("bins", [1, 2])
def test_places_are_those_of_the_papers_decoding(bins: int) -> None:
    head = replace(HEAD, bins_per_pixel=bins)
    logits = torch.randn(3, 4, bins * sum(SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for crop in (SIZE, (SIZE[0] // 2, SIZE[1] // 2)):
        points, scores = head.decode(logits, crop)
        places, likely = decoded(logits.numpy(), bins * SIZE[1], bins * SIZE[0] / crop[0])
        np.testing.assert_allclose(points, places, rtol=1e-12)
        np.testing.assert_allclose(scores, likely, rtol=1e-6)


def test_the_bins_of_a_keypoint_lead_back_to_it_and_a_perfect_answer_scores_1() -> None:
    batch = make_batch(8)
    for bins, crop in ((1, SIZE), (2, SIZE), (2, (96, 80))):
        head = replace(HEAD, bins_per_pixel=bins)
        sides = torch.tensor([crop[1], crop[0]], dtype=torch.float64)
        inside = 0.1 + 0.8 * torch.rand(8, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        batch["keypoints"], batch["images"] = inside * sides - 0.5, torch.zeros(8, 3, *crop)
        columns, rows = (
            head.target(inside[..., axis], count).clamp(min=1e-30).log() for axis, count in enumerate(head.bins)
        )
        perfect = torch.cat([columns, rows], 2)
        points, scores = head.decode(perfect, crop)
        assert (points - batch["keypoints"]).abs().max() <= 0.5 * crop[0] / SIZE[0] / bins + 1e-9
        assert scores.min() > 0.95
        assert head.loss(perfect, batch).item() == pytest.approx(0, abs=1e-9)  # type: ignore[arg-type]
        assert head.loss(torch.zeros_like(perfect), batch) > 1  # type: ignore[arg-type]


def test_the_loss_is_the_divergence_from_gaussians_over_labelled_keypoints_inside_the_crop() -> None:
    batch = make_batch()
    batch["keypoints"][0, 0] = torch.tensor([-3.0, 10.0])
    logits = torch.randn(2, 4, sum(HEAD.bins), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for person in range(2):
        for joint in range(4):
            if not batch["visible"][person, joint] or (person, joint) == (0, 0):
                continue
            start = 0
            for axis, side in enumerate((SIZE[1], SIZE[0])):
                part = logits[person, joint, start : start + 2 * side].numpy()
                start += 2 * side
                centres = (np.arange(2 * side) + 0.5) / 2 - 0.5
                target = np.exp(
                    -((centres - batch["keypoints"][person, joint, axis].item()) ** 2) / (2 * (0.02 * side) ** 2)
                )
                target /= target.sum()
                likely = part - np.log(np.exp(part).sum())
                known = target > 0
                expected += (target[known] * (np.log(target[known]) - likely[known])).sum() / 2
    assert HEAD.loss(logits, batch).item() == pytest.approx(expected / 8, rel=1e-6)  # type: ignore[arg-type]


def test_the_flip_test_mirrors_the_prediction() -> None:
    task = with_random_statistics(make_task())  # type: ignore[arg-type,assignment]
    subnet = task.extract(whole(task, input_height=128, bins_per_pixel=1)).eval()
    batch = make_batch()
    batch["to_image"] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64).repeat(2, 1, 1)
    with torch.no_grad():
        points, scores = subnet.predict(batch)  # type: ignore[arg-type]
        mirrored, same = subnet.predict(batch | {"images": batch["images"].flip(3)})  # type: ignore[arg-type]
    np.testing.assert_allclose(mirrored[:, [0, 2, 1, 3], 0], SIZE[1] - 1 - points[..., 0], atol=1e-2)
    np.testing.assert_allclose(same[:, [0, 2, 1, 3]], scores, rtol=1e-3)


def test_fewer_bins_imitate_the_sums_of_finer_ones() -> None:
    coarse = replace(HEAD, bins_per_pixel=1)
    teacher = torch.randn(1, 4, sum(HEAD.bins), dtype=torch.float64)
    parts = teacher[..., : HEAD.bins[0]], teacher[..., HEAD.bins[0] :]
    same = torch.cat([part.softmax(-1).view(1, 4, -1, 2).sum(-1).log() for part in parts], 2)
    assert coarse.imitation(same, teacher).item() == pytest.approx(0, abs=1e-9)
    assert coarse.imitation(torch.zeros_like(same), teacher) > 0.01
    task = make_task().train()
    _, outputs = task.losses(make_batch(), regularise=True, teacher=None)  # type: ignore[arg-type]
    task.set_arch(whole(task, input_height=96, bins_per_pixel=1))
    named, _ = task.losses(make_batch(), regularise=True, teacher=Teacher(outputs, 0.5))  # type: ignore[arg-type]
    assert set(named) == {"simcc", "distillation"}


def test_choices_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"must divide task\.build\.head\.bins_per_pixel, which is 3, got 2"):
        make_task(head=replace(HEAD, bins_per_pixel=3), genes={"bins_per_pixel": [2]})
    with pytest.raises(ConfigError, match=r"head.input_size must be task.build.input_size, which is \[96, 64\]"):
        PoseTask(TaskSettings(TABLE, SUPERNET, 4), head=HEAD, input_size=(96, 64))
    with pytest.raises(ConfigError, match="kernel_size must be odd, got 4"):
        replace(HEAD, kernel_size=4)


@pytest.mark.slow
def test_a_few_steps_learn_the_keypoints_of_two_crops() -> None:
    task = make_task(smallest_body(), replace(HEAD, channels=64), genes=None).train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    first = total(task).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = total(task)
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 4


def smallest_body() -> Arch:
    return TABLE.space.smallest()


@pytest.mark.slow
def test_a_small_arch_is_the_same_in_onnx_and_keeps_its_predictions(tmp_path: Path) -> None:
    task = with_random_statistics(make_task())  # type: ignore[arg-type,assignment]
    subnet = task.extract(whole(task, input_height=96, bins_per_pixel=1)).eval()
    batches = [255 * torch.rand(count, 3, 96, 96) for count in (1, 4)]
    with torch.no_grad():
        expected = [subnet.network(subnet.normalise(images)) for images in batches]
        points, _ = subnet.predict(make_batch())  # type: ignore[arg-type]
    fold_batch_norms(subnet.network)
    deployed = subnet.deployed()
    assert deployed.outputs == ("simcc",)
    write_engines(deployed, tmp_path / "model")
    run = run_onnx(tmp_path / "model.onnx", 1)
    for images, wanted in zip(batches, expected, strict=True):
        assert (run(images)[0] - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    with torch.no_grad():
        others, _ = run_by(subnet, run).predict(make_batch())  # type: ignore[arg-type]
    assert np.mean(np.abs(others - points) < 0.05) > 0.8  # an argmax may change sides where two bins are nearly equal
