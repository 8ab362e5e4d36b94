"""Several heads of segmentation and of pose behind one body: equal to each head alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.supernet.ops import leading_slice
from nas_transfer.tasks.pose import PoseTask
from nas_transfer.tasks.segmentation import SegmentationTask
from nas_transfer.tasks.several_keypoints import SeveralKeypointHeads
from nas_transfer.tasks.several_segmentation import SeveralSegmentationHeads
from nas_transfer.tasks.task import Task, TaskSettings, Teacher
from tests.tasks import test_lraspp as lraspp
from tests.tasks import test_pose_genes as heatmaps
from tests.tasks import test_segmentation, test_simcc
from tests.tasks import test_segmentation_genes as deeplab
from tests.tasks.test_segmentation_genes import with_random_statistics

TABLE = lraspp.TABLE
SHARED = ("scale_percent", "input_height")


def own(genes: dict[str, list[int]]) -> dict[str, list[int]]:
    """The genes of a head alone."""
    return {name: listed for name, listed in genes.items() if name not in SHARED}


PIXELS = SeveralSegmentationHeads(
    ("lraspp", "deeplab"),
    {
        "lraspp": {"head": lraspp.HEAD, "genes": own(lraspp.GENES)},
        "deeplab": {"head": deeplab.HEAD, "genes": own(deeplab.GENES)},
    },
)
KEYPOINTS = SeveralKeypointHeads(
    ("simcc", "heatmaps"),
    {
        "simcc": {"head": partial(replace, test_simcc.HEAD), "genes": own(dict(test_simcc.GENES))},
        "heatmaps": {"head": partial(replace, heatmaps.head_of()), "genes": own(dict(heatmaps.GENES))},
    },
    flip_test=True,
    score_threshold=0.2,
    oks_threshold=0.9,
)


def segmentation(arch: ArchOrSupernet = SUPERNET) -> SegmentationTask:
    torch.manual_seed(0)
    return SegmentationTask(
        TaskSettings(TABLE, arch, 4), head=PIXELS, evaluation=deeplab.WHOLE, input_size=(61, 90),
        class_names=list("abcd"), genes={"scale_percent": [50]},
    )  # fmt: skip


def pose(arch: ArchOrSupernet = SUPERNET) -> PoseTask:
    torch.manual_seed(0)
    return PoseTask(
        TaskSettings(TABLE, arch, num_classes=4), head=KEYPOINTS, input_size=heatmaps.SIZE, flip_pairs=[[1, 2]],
        sigmas=[0.1] * 4, genes={"input_height": [96, 128]},
    )  # fmt: skip


def alone(name: str) -> Task:
    """The supernet with one head, and the same genes."""
    if name in ("lraspp", "deeplab"):
        make, genes = (lraspp, lraspp.GENES) if name == "lraspp" else (deeplab, deeplab.GENES)
        return make.make_task(genes={**genes, "scale_percent": [50]})
    make, genes = (test_simcc, test_simcc.GENES) if name == "simcc" else (heatmaps, heatmaps.GENES)
    return make.make_task(genes={**genes, "input_height": [96, 128]})


MAKERS = [segmentation, pose]


def archs_of(task: Task, each: int) -> list[Arch]:
    generator = np.random.default_rng(0)
    drawn = [task.space.sample(generator, branch) for branch in task.space.branches() for _ in range(each)]
    return [*task.space.ends(), *drawn]


def same_alone(task: Task, single: Task, arch: Arch) -> Arch:
    prefix = f"{task.head_name(arch)}_"
    genes = {name.removeprefix(prefix): arch[name] for name in arch.names[len(TABLE.space.names) :]}
    names = single.space.names[len(TABLE.space.names) :]
    return single.space.from_dict({**task.body_arch(arch).to_dict(), **{name: genes[name] for name in names}})


@pytest.mark.parametrize("make", MAKERS)
def test_space_costs_and_input_sizes_are_those_of_each_head_alone(make: Callable[..., Task]) -> None:
    with torch.device("meta"):
        task = make()
        singles = {str(task.head_name(arch)): alone(str(task.head_name(arch))) for arch in task.space.ends()}
    assert task.space.size == sum(single.space.size for single in singles.values())
    for arch in archs_of(task, 4):
        single = singles[str(task.head_name(arch))]
        same = same_alone(task, single, arch)
        assert task.costs(arch) == single.costs(same)
        assert task.input_size(arch) == single.input_size(same)


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS)
def test_archs_of_every_head_are_extracted_exactly_with_outputs_losses_and_gradients(make: Callable[..., Task]) -> None:
    task = with_random_statistics(make().double())
    batch = test_segmentation.make_batch() if make is segmentation else heatmaps.make_batch()
    for arch in archs_of(task, 2):
        task.set_arch(arch)
        subnet = task.extract(arch)
        assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
        single = alone(str(task.head_name(arch)))
        expected = single.rebuild(replace(single.settings, arch=same_alone(task, single, arch)))
        shapes = [{k: v.shape for k, v in one.network.state_dict().items()} for one in (expected, subnet)]
        assert shapes[0] == shapes[1]
        assert subnet.kind.model == expected.kind.model
        with torch.no_grad():
            ours, theirs = (each.eval().forward_batch(batch) for each in (task, subnet))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        losses = []
        for each in (task.train(), subnet.train()):
            each.network.zero_grad(set_to_none=True)
            named, _ = each.losses(batch, regularise=True, teacher=None)
            losses.append(torch.stack(list(named.values())).sum())
            losses[-1].backward()
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
        shared = dict(task.network_of(arch).named_parameters())
        for name, parameter in subnet.body.named_parameters():  # heads cut some of their layers in other ways
            if parameter.grad is not None:
                active = leading_slice(shared[f"body.{name}"].grad, parameter.shape, name)
                torch.testing.assert_close(active, parameter.grad, rtol=1e-9, atol=1e-9)
        inside = set(map(id, shared.values()))
        assert all(p.grad is None for p in task.network.parameters() if id(p) not in inside)


@pytest.mark.parametrize("make", MAKERS)
def test_smaller_archs_imitate_the_largest_with_the_same_head(make: Callable[..., Task]) -> None:
    task = make().double().train()
    batch = test_segmentation.make_batch() if make is segmentation else heatmaps.make_batch()
    for branch in task.space.branches():
        task.set_arch(task.space.largest(branch))
        _, outputs = task.losses(batch, regularise=False, teacher=None)
        task.set_arch(task.space.smallest(branch))
        named, _ = task.losses(batch, regularise=False, teacher=Teacher(outputs, 0.5))
        assert named["distillation"].isfinite()
