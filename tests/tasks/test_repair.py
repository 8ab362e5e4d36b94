"""Subnets of one whole network of a task, repaired without training: body, norms of the head, neck and heads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas_transfer.arch import SUPERNET, Arch
from nas_transfer.supernet.activations import norm_moments
from nas_transfer.tasks.checkpoint import is_whole, load_checkpoint, load_whole, save_checkpoint
from nas_transfer.tasks.classification import ClassificationTask
from nas_transfer.tasks.detection import DetectionTask
from nas_transfer.tasks.detector_repair import DetectorRepair
from nas_transfer.tasks.head_repair import HeadRepair, Views, outer_norms, replayed
from nas_transfer.tasks.pose import PoseTask
from nas_transfer.tasks.pose_head import PoseHeadSize
from nas_transfer.tasks.repair import SubnetRepairer
from nas_transfer.tasks.task import Task, TaskSettings
from tests.conftest import load_supernet
from tests.tasks.test_detector_genes import detector, mask_detector
from tests.tasks.test_segmentation_genes import make_task as segmenter

TABLE = load_supernet("bignas_nano")


def smooth_images(count: int, height: int, width: int) -> Tensor:
    torch.manual_seed(3)
    maps = nn.functional.interpolate(torch.randn(count, 3, 9, 9), (height, width), mode="bicubic")
    return (127 + 60 * maps).clamp(0, 255).to(torch.uint8)


def classifier() -> ClassificationTask:
    torch.manual_seed(0)
    return ClassificationTask(TaskSettings(TABLE, SUPERNET, 5), label_smoothing=0.0, dropout=0.0)


def batches_for(task: Task) -> list[dict[str, object]]:
    if isinstance(task, DetectionTask):
        images = smooth_images(16, 64, 80).to(task.dtype)
        return [{"images": list(part)} for part in images.split(8)]
    return [{"images": part} for part in smooth_images(40, 48, 64).split(20)]


def trained(make: Callable[[], Task]) -> Task:
    """A supernet whose largest arch computes something that depends on the image, with statistics of its own."""
    task = make().eval()
    whole = task.extract(task.space.largest())
    for module in whole.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    whole.calibrate(batches_for(task))
    state = whole.network.state_dict()
    with torch.no_grad():
        for name, tensor in task.network.state_dict(keep_vars=True).items():
            if name in state:
                tensor.copy_(state[name])
    return task


def outputs_of(task: Task) -> list[Tensor]:
    """What the task computes for its images; for a detector boxes and scores."""
    found = []
    with torch.no_grad():
        for batch in batches_for(task):
            result = task.forward_batch(batch)
            rows = result if isinstance(result, list) else [{"maps": result}]
            found += [tensor.float() for row in rows for name, tensor in row.items() if name != "labels"]
    return found


MAKERS = {"classification": classifier, "segmentation": segmenter, "detection": detector, "masks": mask_detector}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_whole_network_computes_the_same_in_the_new_order_and_after_its_repair(kind: str) -> None:
    task = trained(MAKERS[kind])
    before = outputs_of(task.extract(task.space.largest()))
    repairer = SubnetRepairer(task, batches_for(task))
    for subnet in (repairer.whole, repairer.extract(task.space.largest())):
        for ours, theirs in zip(outputs_of(subnet), before, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segmentation", "masks"])
def test_a_repair_depends_on_nothing_that_came_before_it(kind: str) -> None:
    task = trained(MAKERS[kind])
    rng = np.random.default_rng(0)
    arch, other = task.space.sample(rng), task.space.sample(rng)
    first = SubnetRepairer(task, batches_for(task)).extract(arch).network.state_dict()
    fresh = SubnetRepairer(trained(MAKERS[kind]), batches_for(task))
    fresh.extract(other)
    state = fresh.extract(arch).network.state_dict()
    assert state.keys() == first.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in first.items())


@pytest.mark.slow
def test_a_shared_repair_gives_one_network_for_all_input_sizes() -> None:
    task = trained(segmenter)
    arch = narrow_body(task)
    small, wide = (task.space.from_dict({**arch.to_dict(), "scale_percent": scale}) for scale in (50, 100))
    shared = SubnetRepairer(task, batches_for(task), shared=True)
    at_small, at_wide = (shared.extract(size) for size in (small, wide))
    alone = SubnetRepairer(trained(segmenter), batches_for(task)).extract(wide)
    assert at_small.active_arch == small
    states = [net.network.state_dict() for net in (at_small, at_wide, alone)]
    for state in states[1:]:
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())
    images = batches_for(task)[0]
    assert not torch.equal(at_small.forward_batch(images), at_wide.forward_batch(images))


def test_norms_of_the_head_get_the_moments_of_the_whole_network() -> None:
    task = trained(segmenter)
    batches = batches_for(task)
    repairer = SubnetRepairer(task, batches)
    whole, subnet = repairer.whole, repairer.extract(narrow_body(task))
    moments = []
    for net in (whole, subnet):
        views = Views(batches, [net.normalise(batch["images"]) for batch in batches])
        with torch.no_grad():
            features = [net.body(images) for images in views.images]
            norms = outer_norms(net)
            with replayed(net.body, features):
                inputs = norm_moments(norms, lambda net=net: [net.forward_batch(batch) for batch in batches])
        outputs = {}
        for name, found in inputs.items():
            norm = norms[name]
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            mean = (found.mean - norm.running_mean) * scale + norm.bias
            outputs[name] = mean, found.deviation / found.count * scale.square()
        moments.append(outputs)
    theirs, ours = moments
    assert ours.keys() == theirs.keys()
    assert len(ours) > 3
    same = [name for name in theirs if theirs[name][0].shape == ours[name][0].shape]
    assert len(same) > len(theirs) // 2  # the others read maps of the body, which is narrower
    for name in same:
        mean, variance = theirs[name]
        torch.testing.assert_close(ours[name][0], mean, rtol=1e-3, atol=1e-3)
        varied = variance > 1e-4
        torch.testing.assert_close(ours[name][1][varied], variance[varied], rtol=1e-2, atol=1e-4)


def narrow_body(task: Task) -> Arch:
    """The smallest body with the largest head."""
    largest, smallest = task.space.largest().to_dict(), task.space.smallest().to_dict()
    kept = {name: largest[name] for name in task.space.names if "." not in name}
    return task.space.from_dict({**smallest, **kept})


def with_genes(task: Task, **genes: int) -> Arch:
    return task.space.from_dict({**task.space.largest().to_dict(), **genes})


def rpn_error(whole: Task, subnet: Task) -> float:
    """Squared error of the RPN's outputs on new images, relative to their variance."""
    images = whole.as_floats(smooth_images(40, 64, 80)[24:])
    with torch.no_grad():
        wanted, found = (
            torch.cat([maps.flatten() for maps in net.network.rpn.head(
                list(net.network.backbone(net.network.transform(list(images))[0].tensors).values())
            )[0]])
            for net in (whole, subnet)
        )  # fmt: skip
    return float((found - wanted).square().sum() / (wanted - wanted.mean()).square().sum())


@pytest.mark.slow
@pytest.mark.parametrize("make", [detector, mask_detector])
@pytest.mark.parametrize("width", [4, 8])
def test_a_narrow_pyramid_is_nearer_to_the_whole_after_its_repair(make: Callable[[], Task], width: int) -> None:
    plain = trained(make)
    whole = plain.extract(plain.space.largest())
    arch = with_genes(plain, fpn_channels=width)
    sliced = rpn_error(whole, plain.extract(arch))
    repaired = rpn_error(whole, SubnetRepairer(trained(make), batches_for(plain)).extract(arch))
    assert repaired < 0.85 * sliced


def test_leading_levels_of_the_pyramid_hold_the_most_variance() -> None:
    task = trained(detector)
    repairer = SubnetRepairer(task, batches_for(task))
    network = repairer.whole.network
    with torch.no_grad():
        images = network.transform(repairer.whole.as_floats(smooth_images(16, 64, 80)))[0].tensors
        levels = list(network.backbone(images).values())
    # Principal axes come in the order of their second moments, those of all levels counting alike.
    energy = sum(level.square().mean((0, 2, 3)) / level.square().mean() for level in levels)
    assert energy.tolist() == sorted(energy.tolist(), reverse=True)
    flat = [level.permute(1, 0, 2, 3).flatten(1) for level in levels]
    moments = sum(maps @ maps.T / maps.square().sum() for maps in flat)
    assert (moments - moments.diag().diag()).abs().max() < 1e-4


def test_the_box_head_of_a_subnet_is_the_least_squares_fit_of_the_whole() -> None:
    task = trained(detector)
    batches = batches_for(task)
    repairer = SubnetRepairer(task, batches)
    arch = with_genes(task, box_head_channels=8)
    whole, subnet = repairer.whole, repairer.extract(arch)
    sliced = task.extract(arch)
    repair = DetectorRepair(whole, Views(batches, [*bodies_input(whole, batches)]))
    with torch.no_grad():
        seen = {
            name: repair.probe.look(net.network, [net.body(images) for images in repair.probe.images]).boxes[1]
            for name, net in (("sliced", sliced), ("repaired", subnet))
        }
        predictors = {
            "sliced": sliced.network.roi_heads.box_predictor,
            "repaired": subnet.network.roi_heads.box_predictor,
        }
        errors = {
            name: float((torch.cat(predictor(seen[name]), 1) - repair.box_outputs).square().sum())
            for name, predictor in predictors.items()
        }
        rows = seen["repaired"].double()
        design = torch.cat([rows, torch.ones(len(rows), 1)], 1)
        best = np.linalg.lstsq(design.numpy(), repair.box_outputs.double().numpy(), rcond=None)[0]
        least = float(np.square(design.numpy() @ best - repair.box_outputs.double().numpy()).sum())
    assert least <= errors["repaired"] < 0.5 * errors["sliced"]


def bodies_input(task: Task, batches: list[dict[str, object]]) -> list[Tensor]:
    return [task.network.transform(task.as_floats(batch["images"]))[0].tensors for batch in batches]


def test_a_head_without_norms_is_left_alone() -> None:
    task = trained(classifier)
    whole = task.extract(task.space.largest())
    for name, module in whole.network.head.named_children():
        if isinstance(module, nn.Module) and any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
            setattr(whole.network.head, name, nn.Identity())
    before = {name: tensor.clone() for name, tensor in whole.network.state_dict().items()}
    batches = batches_for(task)
    HeadRepair(whole, Views(batches, [])).repair(whole)
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole.network.state_dict().items())


def test_the_pyramid_reads_narrower_maps_of_the_body_as_well_as_it_can() -> None:
    task = trained(detector)
    batches = batches_for(task)
    repairer = SubnetRepairer(task, batches)
    arch = narrow_body(task)
    whole, subnet, sliced = repairer.whole, repairer.extract(arch), task.extract(arch)
    images = bodies_input(whole, batches)
    errors = {}
    with torch.no_grad():
        wanted = [whole.network.backbone.neck.inner_blocks[2](whole.body(batch)[2]) for batch in images]
        for name, net in (("repaired", subnet), ("sliced", sliced)):
            lateral = net.network.backbone.neck.inner_blocks[2]
            found = [lateral(subnet.body(batch)[2]) for batch in images]  # both on the repaired body
            errors[name] = sum(float((one - other).square().sum()) for one, other in zip(found, wanted, strict=True))
    assert (
        task.table.feature_channels(subnet.body_arch(arch))[2]
        < task.table.feature_channels(whole.body_arch(task.space.largest()))[2]
    )
    assert errors["repaired"] < errors["sliced"]


def test_a_supernet_holds_the_weights_of_a_whole_network_with_narrower_layers(tmp_path: Path) -> None:
    head = PoseHeadSize((24, 16, 8), 2.0, flip_test=False, score_threshold=0.2, oks_threshold=0.9)
    sizes = {"head": head, "input_size": (96, 64), "flip_pairs": [], "sigmas": [0.1] * 3}
    genes = {"deconvolutions": [2]}
    whole = PoseTask(TaskSettings(TABLE, TABLE.space.largest(), 3), genes=None, **sizes)
    path = tmp_path / "weights.pt"
    save_checkpoint(path, whole, parent=None, metrics={}, versions={}, stage="finetune", config_sha256="")
    supernet = PoseTask(TaskSettings(TABLE, SUPERNET, 3), genes=genes, **sizes)
    checkpoint = load_checkpoint(str(path), TABLE)
    assert is_whole(checkpoint, supernet)
    load_whole(supernet, checkpoint)
    state = supernet.extract(supernet.space.largest()).network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.network.state_dict().items())
