"""LR-ASPP behind the elastic body: torchvision's own module, extraction, costs, training and export."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.segmentation.lraspp import LRASPP

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.deploy.engines import largest_difference, run_onnx, run_torch, write_engines
from nas_transfer.errors import ConfigError
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.supernet.ops import leading_slice
from nas_transfer.tasks.genes import Choices
from nas_transfer.tasks.lraspp import LrasppSize
from nas_transfer.tasks.segmentation import SegmentationTask
from nas_transfer.tasks.task import TaskSettings
from tests.conftest import load_supernet
from tests.tasks.test_segmentation import make_batch
from tests.tasks.test_segmentation_genes import WHOLE, archs_of, with_random_statistics

HEAD = LrasppSize(channels=24, levels=4)
GENES = {"scale_percent": [50], "channels": [8, 12], "levels": [2, 3]}
TABLE = load_supernet("bignas_nano")


def make_task(
    arch: ArchOrSupernet = SUPERNET, head: LrasppSize = HEAD, genes: Choices | None = GENES
) -> SegmentationTask:
    torch.manual_seed(0)
    return SegmentationTask(
        TaskSettings(TABLE, arch, 4), head=head, evaluation=WHOLE, input_size=(61, 90), class_names=list("abcd"),
        genes=genes,
    )  # fmt: skip


def losses(task: SegmentationTask) -> Tensor:
    named, _ = task.losses(make_batch(), regularise=True, teacher=None)  # type: ignore[arg-type]
    return torch.stack(list(named.values())).sum()


class TwoMaps(nn.Module):
    """A body as torchvision's head wants it."""

    def __init__(self, body: nn.Module, low: int) -> None:
        super().__init__()
        self.body, self.low = body, low

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(images)
        return OrderedDict(low=maps[self.low], high=maps[3])


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_torchvisions_lraspp_with_the_same_weights_computes_the_same(levels: int) -> None:
    arch = TABLE.space.smallest()
    task = with_random_statistics(make_task(arch, replace(HEAD, levels=levels), genes=None))
    channels = TABLE.feature_channels(arch)
    stock = LRASPP(TwoMaps(task.body, 4 - levels), channels[4 - levels], channels[3], 4, inter_channels=24)
    network = task.network
    for ours, theirs in (
        (network.deep.conv, stock.classifier.cbr[0]),
        (network.deep.norm, stock.classifier.cbr[1]),
        (network.attention, stock.classifier.scale[1]),
        (next(iter(network.low_classifiers.values())), stock.classifier.low_classifier),
        (network.high_classifier, stock.classifier.high_classifier),
    ):
        theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 96)
    for mode in (False, True):
        logits = task.train(mode).network(images)
        expected = stock.train(mode)(images)["out"]
        enlarged = nn.functional.interpolate(logits, (64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(enlarged, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_ten_archs_are_extracted_exactly_in_outputs_and_gradients(training: bool) -> None:
    task = with_random_statistics(make_task()).double().train(training)
    for arch in archs_of(task, 10):
        task.set_arch(arch)
        subnet = task.extract(arch)
        assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
        for each in (task, subnet):
            each.zero_grad()
        ours, theirs = (each.forward_batch(make_batch(61, 90)) for each in (task, subnet))  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        for each in (task, subnet):
            losses(each).backward()
        own = dict(subnet.network.named_parameters())
        for name, parameter in task.network.named_parameters():
            if name in own and own[name].grad is not None and not name.startswith("body."):
                active = leading_slice(parameter.grad, own[name].shape, name)  # type: ignore[arg-type]
                torch.testing.assert_close(active, own[name].grad, rtol=1e-9, atol=1e-9)
                assert torch.count_nonzero(parameter.grad) == torch.count_nonzero(active)
            elif name not in own:
                assert parameter.grad is None or not parameter.grad.any(), name


def test_the_costs_of_ten_archs_equal_torchs_counter() -> None:
    task = make_task().eval()
    archs = archs_of(task, 10)
    totals = task.cost_totals(archs)
    for number, arch in enumerate(archs):
        subnet = task.extract(arch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            subnet.run_network(torch.zeros(1, 3, *task.input_size(arch)))
        assert counter.get_total_flops() // 2 == totals.macs[number] == sum(c.macs for c in task.costs(arch).values())
        assert sum(parameter.numel() for parameter in subnet.network.parameters()) == totals.params[number]


def test_one_image_is_enough_for_a_step_and_one_level_is_not_for_a_head() -> None:
    batch = make_batch()
    alone = {name: values[:1] for name, values in batch.items()}  # type: ignore[index]
    named, logits = make_task().train().losses(alone, regularise=True, teacher=None)  # type: ignore[arg-type]
    assert logits.shape == (1, 4, 16, 24)
    assert set(named) == {"cross_entropy"}
    with pytest.raises(ConfigError, match=r"task\.build\.head\.levels must be from 2 to 4, got 1"):
        LrasppSize(channels=8, levels=1)


def test_its_weights_are_of_another_kind_than_those_of_deeplab() -> None:
    kind = make_task().kind
    assert (kind.name, kind.model, kind.title) == ("segmentation_lraspp", "lraspp", "Semantic segmentation")
    assert kind.family == SegmentationTask.kind.family


@pytest.mark.nightly
def test_a_calibrated_arch_is_the_same_in_onnx_and_torch_export(tmp_path: Path) -> None:
    task = make_task()
    arch = task.space.from_dict({**task.space.smallest().to_dict(), "levels": 3, "scale_percent": 100})
    subnet = task.extract(arch).eval()
    assert subnet.calibrate([make_batch(), make_batch(64, 128)]) == 2  # type: ignore[list-item]
    assert subnet.network.deep.norm.running_mean.any()
    images = [255 * torch.rand(1, 3, 64, 96), 255 * torch.rand(4, 3, 96, 64)]
    expected = [output for batch in images for output in run_torch(subnet.deployed().module)(batch)]
    fold_batch_norms(subnet.network)
    write_engines(subnet.deployed(), tmp_path / "model")
    onnx = run_onnx(tmp_path / "model.onnx", 1)
    for batch, want in zip(images, expected, strict=True):
        torch.testing.assert_close(onnx(batch)[0], want, rtol=1e-3, atol=1e-4 * want.abs().max().item())
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert largest_difference(run_torch(program), onnx, images) < 1e-4
