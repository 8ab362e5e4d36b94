"""The damage of single choices of one trained network, and its sums."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes

from nas_transfer.errors import ArchError, ConfigError
from nas_transfer.supernet.activations import stretched
from nas_transfer.tasks.damage import Choice, DamageMeter, Damages, measurable_genes
from nas_transfer.tasks.head_repair import body_inputs, resized_batches
from nas_transfer.tasks.repair import SubnetRepairer
from nas_transfer.tasks.task import Task
from tests.tasks.test_detector_genes import detector
from tests.tasks.test_fcos import detector as fcos
from tests.tasks.test_repair import batches_for, classifier, segmenter, trained

HELD_OUT = 16
"""One image in so many is held out, as the repair says."""


@pytest.fixture(scope="module")
def repairer() -> SubnetRepairer:
    task = trained(classifier)
    return SubnetRepairer(task, batches_for(task))


@pytest.fixture(scope="module")
def meter(repairer: SubnetRepairer) -> DamageMeter:
    return DamageMeter(repairer)


def held_out(images: list[Tensor]) -> Tensor:
    """The held-out images of batches, counted by hand."""
    return torch.cat(images)[HELD_OUT - 1 :: HELD_OUT]


def last_map(body: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return body(images)[-1].double()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Squared error over variance, of all channels; a missing channel is replaced by its mean."""
    mean = wanted.mean((0, 2, 3), keepdim=True)
    filled = mean.expand_as(wanted).clone()
    filled[:, : found.shape[1]] = found
    return float((filled - wanted).square().sum() / (wanted - mean).square().sum())


def outputs_error(repairer: SubnetRepairer, subnet: Task) -> float:
    """Squared error of the logits over their variance, of the held-out images."""
    raw = held_out([batch["images"] for batch in repairer.views])
    with torch.no_grad():
        wanted, found = (net.forward_batch({"images": raw}).double() for net in (repairer.whole, subnet))
    return float((found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gene", "value"),
    [("expand_ratio.mb5", 2), ("kernel_size.mb6", 3), ("depth.mb5", 1), ("width.mb4", 32), ("width.mb7", 96)],
)
def test_the_damage_of_a_choice_is_the_error_of_the_repaired_subnet_measured_by_hand(
    repairer: SubnetRepairer, meter: DamageMeter, gene: str, value: int
) -> None:
    task = repairer.supernet
    damages = meter.damages(Choice(gene, value))
    arch = task.space.with_value(task.space.largest(), gene, value)
    whole, subnet = repairer.whole, task.extract(arch).eval()
    repair = repairer.whole_at(arch).body
    assert repair.repair_changes(subnet.body, repair.walk())
    images = held_out(body_inputs(whole, repairer.views))
    expected = relative_error(last_map(subnet.body, images), last_map(whole.body, images))
    assert damages.features == pytest.approx(expected, rel=1e-4)
    assert damages.features > 1e-4
    with torch.no_grad():
        repairer.whole_at(arch).head.repair(subnet)
    assert damages.outputs == pytest.approx(outputs_error(repairer, subnet), rel=1e-4)


def test_only_the_changed_blocks_are_repaired(repairer: SubnetRepairer) -> None:
    task = repairer.supernet
    subnet = task.extract(task.space.with_value(task.space.largest(), "depth.mb5", 2)).eval()
    before = {name: tensor.clone() for name, tensor in subnet.body.state_dict().items()}
    repair = repairer.whole_at(task.space.largest()).body
    blocks = repair.repair_changes(subnet.body, repair.walk())
    assert [block.name for block in blocks] == ["mb5.1"]  # it stands in for mb5.2
    changed = {name for name, tensor in subnet.body.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("stages.4.1.") for name in changed)


def test_a_choice_of_the_head_damages_the_outputs_alone(repairer: SubnetRepairer, meter: DamageMeter) -> None:
    task = repairer.supernet
    damages = meter.damages(Choice("width.last_conv", 192))
    subnet = repairer.extract(task.space.with_value(task.space.largest(), "width.last_conv", 192))
    assert damages.features == pytest.approx(0, abs=1e-9)
    assert damages.outputs == pytest.approx(outputs_error(repairer, subnet), rel=1e-4)


def test_smaller_images_damage_the_maps_of_the_same_network(repairer: SubnetRepairer, meter: DamageMeter) -> None:
    whole, task = repairer.whole, repairer.supernet
    small = task.extract(task.space.with_value(task.space.largest(), "resolution", 48)).eval()
    wanted = last_map(whole.body, held_out(body_inputs(whole, repairer.views)))
    found = last_map(small.body, held_out(body_inputs(small, repairer.views)))
    resized = nn.functional.interpolate(found, wanted.shape[2:], mode="bilinear")
    damages = meter.damages(Choice("resolution", 48))
    assert damages.features == pytest.approx(relative_error(resized, wanted), rel=1e-4)
    assert damages.outputs == pytest.approx(outputs_error(repairer, small), rel=1e-4)


def test_the_largest_choice_has_no_damage_and_others_are_refused(meter: DamageMeter) -> None:
    assert meter.damages(Choice("depth.mb5", 3)) == Damages(0.0, 0.0)
    with pytest.raises(ArchError, match=r"gene 'depth\.mb5' of space 'bignas_nano' must be one of \[1, 2, 3\], got 7"):
        meter.damages(Choice("depth.mb5", 7))
    with pytest.raises(ArchError, match=r"a gene must be one of space 'bignas_nano', got 'depth\.mb9'"):
        meter.damages(Choice("depth.mb9", 1))


def test_all_choices_are_measured_once_in_the_order_of_their_blocks(meter: DamageMeter) -> None:
    choices = meter.choices()
    genes = {gene.name: gene for gene in meter.task.space.genes}
    assert set(choices) == {Choice(name, value) for name, gene in genes.items() for value in gene.choices[:-1]}
    stages = [choice.gene.rsplit(".", 1)[1] for choice in choices if "." in choice.gene and "conv" not in choice.gene]
    assert stages == sorted(stages)


@pytest.mark.slow
@pytest.mark.parametrize("make", [fcos, segmenter])
def test_other_heads_have_damages(make: Callable[[], Task]) -> None:
    task = trained(make)
    meter = DamageMeter(SubnetRepairer(task, batches_for(task)))
    body = meter.damages(Choice("depth.mb5", 1))
    assert 0 < body.features < 1
    assert body.outputs > 0
    assert task.input_gene in task.space.names
    size = meter.damages(Choice(task.input_gene, task.space.smallest()[task.input_gene]))
    assert size.features > 0
    assert size.outputs > 0
    assert (body.outputs == body.features) == (make is fcos)


def test_places_of_smaller_images_are_found_beside_their_padding() -> None:
    """A detector pads its images to multiples of 32."""
    task = trained(detector)
    batches = batches_for(task)
    smallest = task.space.with_value(task.space.largest(), "min_size", task.space.smallest()["min_size"])
    large, small = (resized_batches(task.extract(arch), batches)[0] for arch in (task.space.largest(), smallest))
    assert [tuple(large.images.shape[2:]), tuple(small.images.shape[2:])] == [(64, 96), (32, 64)]
    assert [set(large.sizes), set(small.sizes)] == [{(64, 80)}, {(32, 40)}]
    boxes = torch.rand(5, 4) * 40
    for image, scale in enumerate(large.scales_to(small)):
        expected = resize_boxes(boxes, large.sizes[image], small.sizes[image])
        torch.testing.assert_close(boxes * scale.repeat(2), expected)
    # Maps that hold the place in the image, as a share of its width and height, and go on into the padding.
    maps = [
        torch.stack(torch.meshgrid((torch.arange(h) + 0.5) / height, (torch.arange(w) + 0.5) / width, indexing="ij"))
        for (h, w), (height, width) in (((64, 96), (64, 80)), ((32, 64), (32, 40)))
    ]
    found = stretched(maps[1][None], (64, 96), large.stretches_to(small)[:1])[0]
    torch.testing.assert_close(found[:, 1:63, 1:80], maps[0][:, 1:63, 1:80])
    assert float((found - maps[0])[:, :, 82:].abs().max()) < 0.2


def test_maps_are_stretched_as_torch_resizes_them() -> None:
    maps = torch.randn(2, 3, 7, 9)
    for size in ((7, 9), (5, 6), (14, 20)):
        expected = nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(stretched(maps, size, torch.ones(2, 2)), expected)


@pytest.mark.slow
def test_the_genes_of_a_detector_are_measured_where_they_show() -> None:
    task = trained(detector)
    batches = batches_for(task)
    repairer = SubnetRepairer(task, batches)
    meter = DamageMeter(repairer)
    largest = task.space.largest()
    damages = {}
    for gene in task.space.genes:
        if gene.name in measurable_genes(task) and gene.name not in task.table.space.names:
            damages[gene.name] = [meter.damages(Choice(gene.name, value)).outputs for value in gene.choices]
    assert set(damages) == set(task.untrained_genes) - {"proposals_test"}
    for found in damages.values():
        assert found[-1] == 0
        assert found[0] > 0
    with pytest.raises(ConfigError, match=r"the damage of proposals_test=.* cannot be measured"):
        meter.damages(Choice("proposals_test", task.space.smallest()["proposals_test"]))
    # The box head: squared error of its outputs over their variance, on proposals of the held-out image.
    arch = task.space.with_value(largest, "box_head_channels", task.space.smallest()["box_head_channels"])
    whole, subnet = repairer.whole.network, repairer.extract(arch).network
    images = held_out(body_inputs(repairer.whole, batches))
    sizes = [tuple(images.shape[2:])] * len(images)
    with torch.no_grad():
        pyramid = whole.backbone(images)
        proposals = whole.rpn(ImageList(images, sizes), pyramid)[0]
        chosen = [boxes[:: -(-len(boxes) // 32)] for boxes in proposals]
        wanted, found = (
            torch.cat(heads.box_predictor(heads.box_head(heads.box_roi_pool(levels, chosen, sizes))), 1).double()
            for heads, levels in ((whole.roi_heads, pyramid), (subnet.roi_heads, subnet.backbone(images)))
        )
    expected = (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert damages["box_head_channels"][0] == pytest.approx(float(expected), rel=1e-3)
