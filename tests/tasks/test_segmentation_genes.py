"""The genes of semantic segmentation: scale of the images, width of the head, number of dilated branches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.deploy.engines import largest_difference, run_onnx, run_torch, write_engines
from nas_transfer.deploy.modules import run_by
from nas_transfer.errors import ArchError, ConfigError
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.supernet.networks import build_body
from nas_transfer.tasks.deeplab import DeepLabSize
from nas_transfer.tasks.genes import Choices
from nas_transfer.tasks.pixel_losses import pixel_cross_entropy
from nas_transfer.tasks.segmentation import SegmentationEvaluation, SegmentationTask
from nas_transfer.tasks.task import TaskSettings, Teacher
from tests.conftest import load_supernet
from tests.tasks.test_segmentation import make_batch

HEAD = DeepLabSize(
    channels=24, low_level_channels=8, dilations=(1, 2, 3), dropout=0.0, auxiliary_channels=16, auxiliary_weight=0.4
)
WHOLE = SegmentationEvaluation("whole", (32, 48), (16, 24), keep_predictions=False)
GENES = {"scale_percent": [50, 75], "channels": [8, 12], "num_dilations": [1, 2]}
SMALL = {"scale_percent": 50, "channels": 8, "num_dilations": 2}


def make_task(
    arch: ArchOrSupernet = SUPERNET, genes: Choices | None = GENES, supernet: str = "bignas_nano"
) -> SegmentationTask:
    torch.manual_seed(0)
    settings = TaskSettings(load_supernet(supernet), arch, num_classes=4)
    return SegmentationTask(
        settings, head=HEAD, evaluation=WHOLE, input_size=(61, 90), class_names=list("abcd"), genes=genes
    )


def with_random_statistics(task: SegmentationTask) -> SegmentationTask:
    """Give every BatchNorm values of its own, so that a wrong slice shows."""
    for module in task.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3),
            ):  # fmt: skip
                nn.init.uniform_(tensor, low, high)
    return task


def arch_with(task: SegmentationTask, **values: int) -> Arch:
    """The smallest body with these genes of the task, the others at their largest."""
    return task.space.from_dict({**task.table.space.smallest().to_dict(), **values})


def archs_of(task: SegmentationTask, count: int) -> list[Arch]:
    generator = np.random.default_rng(0)
    return [task.space.smallest(), task.space.largest(), *(task.space.sample(generator) for _ in range(count - 2))]


def test_the_genes_follow_those_of_the_body() -> None:
    task = make_task()
    own = task.space.genes[len(task.table.space.genes) :]
    assert {gene.name: gene.choices for gene in own} == {
        "scale_percent": (50, 75, 100), "channels": (8, 12, 24), "num_dilations": (1, 2, 3),
    }  # fmt: skip
    fixed = make_task(genes=None)
    assert fixed.space is fixed.table.space
    with pytest.raises(ConfigError, match=r"must name sizes .* got 'scale_percents': try scale_percent"):
        make_task(genes={"scale_percents": [50]})
    with pytest.raises(ArchError, match=r"'channels' .* must be one of \[8, 12, 24\], got 13"):
        arch_with(task, channels=13)


def test_the_largest_arch_is_the_task_without_genes() -> None:
    task, fixed = make_task(), make_task(genes=None)
    assert list(task.state_dict()) == list(fixed.state_dict())
    assert all(torch.equal(own, other) for own, other in zip(task.parameters(), fixed.parameters(), strict=True))
    task.set_arch(task.space.smallest())
    task.set_arch(task.space.largest())
    losses = [each.train().losses(make_batch(), regularise=True, teacher=None) for each in (task, fixed)]
    assert torch.equal(losses[0][1], losses[1][1])
    for named, _ in losses:
        torch.stack(list(named.values())).sum().backward()
    for (name, own), other in zip(task.network.named_parameters(), fixed.network.parameters(), strict=True):
        if own.grad is None:  # a shortcut that no block uses
            assert other.grad is None, name
            assert name.startswith("body."), name
        else:
            assert torch.equal(own.grad, other.grad), name
    arch = fixed.space.largest()
    assert task.costs(task.space.largest()) == fixed.costs(arch)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("supernet", ["bignas_nano", "efficientnet_lite0"])
def test_an_extracted_arch_equals_the_active_one_in_outputs_and_gradients(supernet: str, training: bool) -> None:
    task = with_random_statistics(make_task(supernet=supernet)).double().train(training)
    for arch in archs_of(task, 20 if supernet == "bignas_nano" else 4):
        subnet = task.extract(arch)
        task.set_arch(arch)
        task.zero_grad()
        assert not any(
            word in type(module).__name__ for module in subnet.network.modules() for word in ("Elastic", "Joined")
        )
        results = [each.losses(make_batch(61, 90), regularise=True, teacher=None) for each in (task, subnet)]
        torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-9)
        assert set(results[1][0]) == ({"cross_entropy", "auxiliary"} if training else {"cross_entropy"})
        for name, loss in results[0][0].items():
            torch.testing.assert_close(loss, results[1][0][name], rtol=1e-9, atol=1e-9)
        for named, _ in results:
            torch.stack(list(named.values())).sum().backward()
        ours, theirs = (dict(each.network.named_parameters()) for each in (task, subnet))
        for name, parameter in theirs.items():
            own, other = ours[name].grad, parameter.grad
            assert (own is None) == (other is None), name
            if own is not None:  # all that the arch uses, and nothing else
                assert own.square().sum().item() == pytest.approx(other.square().sum().item(), rel=1e-7, abs=1e-18)
                assert own.sum().item() == pytest.approx(other.sum().item(), rel=1e-6, abs=1e-9)
        assert all(
            parameter.grad is None or not parameter.grad.any()
            for name, parameter in ours.items()
            if name not in theirs and "kernel_transforms" not in name
        )


def scaled(size: Sequence[int], percent: int) -> tuple[int, ...]:
    """Sides in percent, halves rounded up."""
    return tuple(int(side * percent / 100 + 0.5) for side in size)


def plain_logits(task: SegmentationTask, arch: Arch, images: Tensor, state: dict[str, Tensor]) -> Tensor:
    """The logits of an arch in eval mode, layer by layer, with weights picked by index and no module of the head."""
    width, count, percent = arch["channels"], arch["num_dilations"], arch["scale_percent"]
    low, most = HEAD.low_level_channels, HEAD.channels
    size = scaled(images.shape[2:], percent)
    inputs = F.interpolate(task.normalise.normalise(images), size, mode="bilinear", antialias=percent < 100)
    maps = task.extract(arch).body(inputs)

    def layer(name: str, features: Tensor, rows: list[int], columns: list[int], dilation: int = 1) -> Tensor:
        weight = state[f"{name}.conv.weight"][rows][:, columns] if columns else state[f"{name}.conv.weight"][rows]
        moments = [state[f"{name}.norm.{key}"][rows] for key in ("running_mean", "running_var", "weight", "bias")]
        padding = dilation * (weight.shape[-1] // 2)
        groups = 1 if columns else len(rows)
        found = F.conv2d(features, weight, None, 1, padding, dilation, groups)
        return F.batch_norm(found, *moments, eps=task.table.batch_norm_eps).relu()

    first, top = list(range(width)), list(range(maps[3].shape[1]))
    pooled = layer("pooled", maps[3].mean((2, 3), keepdim=True), first, top).expand(-1, -1, *maps[3].shape[2:])
    joined = [pooled]
    for number, dilation in enumerate(HEAD.dilations[:count]):
        features, name = maps[3], f"branches.{number}"
        if dilation > 1:
            features = layer(f"{name}.0", features, top, [], dilation)
            name += ".1"
        joined.append(layer(name, features, first, top))
    channels = [branch * most + channel for branch in range(count + 1) for channel in range(width)]
    context = layer("bottleneck", torch.cat(joined, 1), first, channels)
    lower = layer("low_level", maps[0], list(range(low)), list(range(maps[0].shape[1])))
    context = F.interpolate(context, lower.shape[2:], mode="bilinear", align_corners=False)
    both = first + [most + channel for channel in range(low)]
    features = layer("decoder.0.1", layer("decoder.0.0", torch.cat([context, lower], 1), both, []), first, both)
    features = layer("decoder.1.1", layer("decoder.1.0", features, first, []), first, first)
    return F.conv2d(features, state["classifier.weight"][:, :width], state["classifier.bias"])


def test_every_arch_computes_and_learns_what_a_head_written_out_by_hand_does() -> None:
    task = with_random_statistics(make_task()).double().eval()
    images = torch.stack(make_batch(61, 90)["images"])  # type: ignore[arg-type]
    for arch in archs_of(task, 10):
        task.set_arch(arch)
        task.zero_grad()
        state = {name: tensor.detach().clone() for name, tensor in task.network.state_dict().items()}
        head = {name: state[name].requires_grad_(True) for name, _ in task.network.named_parameters()}
        found, expected = task.network(task.normalise(images)), plain_logits(task, arch, images, state)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        found.square().sum().backward(), expected.square().sum().backward()
        for name, parameter in task.network.named_parameters():
            if not name.startswith(("body.", "auxiliary.")):
                pair = [
                    torch.zeros_like(parameter) if each.grad is None else each.grad for each in (parameter, head[name])
                ]
                torch.testing.assert_close(*pair, rtol=1e-7, atol=1e-12, msg=name)


@pytest.mark.slow
def test_the_costs_of_random_archs_equal_torchs_counter_and_the_parameters_of_the_extracted_network() -> None:
    task = make_task().eval()
    archs = archs_of(task, 20)
    totals = task.cost_totals(archs)
    for number, arch in enumerate(archs):
        subnet, costs = task.extract(arch), task.costs(arch)
        size = task.input_size(arch)
        assert size == scaled((61, 90), arch["scale_percent"])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            subnet.forward_batch(make_batch(61, 90))
        macs = sum(cost.macs for cost in costs.values())
        assert counter.get_total_flops() // 2 == 2 * macs == 2 * totals.macs[number]  # two images
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            task.set_arch(arch)
            task.run_network(torch.zeros(1, 3, *size))
        assert counter.get_total_flops() // 2 == macs
        own = sum(p.numel() for name, p in subnet.network.named_parameters() if not name.startswith("auxiliary"))
        assert own == sum(cost.params for cost in costs.values()) == totals.params[number]


def test_images_are_scaled_before_the_network_in_every_evaluation() -> None:
    task = make_task().eval()
    subnet = with_random_statistics(task).extract(arch_with(task, **SMALL))
    image = make_batch(51, 70)["images"][0]  # type: ignore[index]

    def logits(part: Tensor) -> Tensor:
        normal = subnet.normalise.normalise(part[None])
        half = F.interpolate(normal, scaled(part.shape[1:], 50), mode="bilinear", antialias=True)
        return F.interpolate(subnet.network(half), part.shape[1:], mode="bilinear", align_corners=False)[0]

    with torch.no_grad():
        assert torch.equal(subnet.predict(image), logits(image).argmax(0))
        subnet.evaluation = replace(WHOLE, mode="slide", window=(32, 48), stride=(19, 22))
        total, counts = torch.zeros(4, 51, 70), torch.zeros(51, 70)
        for top in (0, 19):
            for left in (0, 22):
                area = (slice(top, top + 32), slice(left, left + 48))
                total[:, area[0], area[1]] += logits(image[:, area[0], area[1]])
                counts[area] += 1
        assert torch.equal(subnet.predict(image), (total / counts).argmax(0))
    assert subnet.resize_factor(51, 70) == 0.5


def test_the_labels_keep_their_size_and_the_teacher_is_resized_to_the_students() -> None:
    task = make_task().train()
    _, teacher = task.losses(make_batch(), regularise=True, teacher=None)
    assert teacher.shape == (2, 4, 16, 24)
    arch = arch_with(task, **SMALL)
    task.set_arch(arch)
    losses, own = task.losses(make_batch(), regularise=False, teacher=Teacher(teacher, 0.25))
    assert own.shape == (2, 4, 8, 12)
    labels = torch.stack(make_batch()["labels"]).long()  # type: ignore[arg-type]
    torch.testing.assert_close(losses["cross_entropy"], 0.75 * pixel_cross_entropy(own, labels))
    # Halving with smoothing is a triangle of weights 1, 3, 3, 1 in each direction, cut off at the border.
    inner = F.conv2d(teacher.flatten(0, 1)[:, None], torch.ones(1, 1, 1, 1))
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    weights = torch.outer(row, row)[None, None]
    sums = F.conv2d(F.pad(inner, [1] * 4), weights, stride=2)
    sums /= F.conv2d(F.pad(torch.ones_like(inner), [1] * 4), weights, stride=2)
    soft = sums.view(2, 4, 8, 12).softmax(1)
    expected = -(soft * own.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses["distillation"], 0.25 * expected)


def test_a_sandwich_of_archs_learns_in_every_part() -> None:
    task = make_task().train()
    teacher: Teacher[Tensor] | None = None
    for arch in (task.space.largest(), arch_with(task, **SMALL), task.space.smallest()):
        task.set_arch(arch)
        losses, outputs = task.losses(make_batch(), regularise=teacher is None, teacher=teacher)
        torch.stack(list(losses.values())).sum().backward()
        teacher = teacher or Teacher(outputs, 0.5)
    for name, parameter in task.network.named_parameters():
        if not name.startswith("body."):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_a_small_arch_imitates_the_largest_in_mixed_precision() -> None:
    task = make_task().train()
    _, exact = task.losses(make_batch(), regularise=True, teacher=None)
    task.set_arch(arch_with(task, **SMALL))
    expected, _ = task.losses(make_batch(), regularise=False, teacher=Teacher(exact, 1.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = task.losses(make_batch(), regularise=False, teacher=Teacher(exact.to(torch.bfloat16), 1.0))
    assert losses["distillation"].item() == pytest.approx(expected["distillation"].item(), rel=0.02)


def test_archs_are_costed_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(genes=GENES, supernet="efficientnet_lite0")
    generator = np.random.default_rng(0)
    archs = [task.space.sample(generator) for _ in range(4000)]
    with monkeypatch.context() as patch:
        patch.setattr(type(task), "costs", lambda *_: pytest.fail("an arch is costed alone"))
        totals = task.cost_totals(archs)
    for number in (0, 1999, 3999):
        costs = task.costs(archs[number]).values()
        assert totals.macs[number] == sum(cost.macs for cost in costs)
        assert totals.params[number] == sum(cost.params for cost in costs)


@pytest.mark.nightly
@pytest.mark.parametrize(("supernet", "percent"), [("bignas_nano", 50), ("efficientnet_lite0", 75)])
def test_a_scaled_arch_is_the_same_in_onnx_at_any_size(tmp_path: Path, supernet: str, percent: int) -> None:
    task = with_random_statistics(make_task(supernet=supernet)).eval()
    subnet = task.extract(arch_with(task, **SMALL | {"scale_percent": percent}))
    images = [255 * torch.rand(1, 3, 128, 256), 255 * torch.rand(3, 3, 256, 128)]
    with torch.no_grad():
        expected = [
            F.interpolate(subnet.network(subnet.normalise(batch)), batch.shape[2:], mode="bilinear") for batch in images
        ]
    fold_batch_norms(subnet.network)
    deployed = subnet.deployed()
    assert deployed.takes == f"any batch of RGB images of sides in multiples of {64 if percent == 50 else 128}"
    write_engines(deployed, tmp_path / "model")
    onnx = run_onnx(tmp_path / "model.onnx", 1)
    for batch, want in zip(images, expected, strict=True):
        assert (onnx(batch)[0] - want).abs().max() <= 1e-4 * want.abs().max()
    assert largest_difference(run_torch(deployed.module), onnx, images) < 1e-4
    scored = run_by(subnet, onnx)
    image = images[0][0].to(torch.uint8)
    with torch.no_grad():
        assert (scored.predict(image) == subnet.predict(image)).float().mean() > 0.999


def test_the_body_of_an_arch_is_built_from_the_whole_arch() -> None:
    task = make_task()
    arch = task.space.sample(np.random.default_rng(2))
    whole, part = (build_body(task.table, each) for each in (arch, task.body_arch(arch)))
    assert [tuple(p.shape) for p in whole.parameters()] == [tuple(p.shape) for p in part.parameters()]
