"""Several detectors behind one body: equal to each detector alone, with one spelling for each network."""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

from nas_transfer.arch import SUPERNET, Arch, ArchOrSupernet
from nas_transfer.errors import ConfigError
from nas_transfer.supernet.ops import leading_slice
from nas_transfer.tasks.checkpoint import inherit, is_whole, load_checkpoint, load_whole, save_checkpoint
from nas_transfer.tasks.detection import DetectionTask
from nas_transfer.tasks.recipe import ArchSampling
from nas_transfer.tasks.several_detectors import SeveralDetectors
from nas_transfer.tasks.task import TaskSettings
from tests.conftest import load_supernet
from tests.tasks import test_detector_genes as faster_rcnn
from tests.tasks import test_fcos as fcos
from tests.tasks import test_ssdlite as ssdlite
from tests.tasks.test_detector_genes import own_gradients, with_statistics
from tests.tasks.test_ssdlite import PAIR

TABLE = load_supernet("bignas_nano")
SIZES = {"ssdlite": ssdlite.SIZES, "fcos": fcos.SIZES, "faster_rcnn": faster_rcnn.SIZES}
GENES = {"ssdlite": ssdlite.GENES, "fcos": fcos.GENES, "faster_rcnn": faster_rcnn.GENES}
IMAGE = {"min_size": [32, 48]}


def several(*names: str) -> SeveralDetectors:
    own = {
        name: {gene: listed for gene, listed in genes.items() if gene != "min_size"} for name, genes in GENES.items()
    }
    of = {name: {"detector": partial(replace, SIZES[name]), "genes": own[name]} for name in SIZES}
    return SeveralDetectors(names or tuple(SIZES), of, min_size=64, max_size=96, detections=10)


def detector(arch: ArchOrSupernet = SUPERNET, *names: str) -> DetectionTask:
    torch.manual_seed(0)
    return DetectionTask(
        TaskSettings(TABLE, arch, 3), category_ids=[1, 2, 3], detector=several(*names), genes=IMAGE
    )  # fmt: skip


def alone(name: str, arch: ArchOrSupernet = SUPERNET) -> DetectionTask:
    torch.manual_seed(0)
    settings = TaskSettings(TABLE, arch, 3)
    return DetectionTask(settings, category_ids=[1, 2, 3], detector=SIZES[name], genes=GENES[name])


def archs_of(task: DetectionTask, each: int) -> list[Arch]:
    """The ends of each head, and random archs of it."""
    generator = np.random.default_rng(0)
    drawn = [task.space.sample(generator, branch) for branch in task.space.branches() for _ in range(each)]
    return [*task.space.ends(), *drawn]


@cache
def blank(name: str) -> DetectionTask:
    """The supernet of a detector alone, for its archs and their costs."""
    with torch.device("meta"):
        return alone(name)


def same_alone(task: DetectionTask, arch: Arch) -> Arch:
    """The arch of the task with this head alone."""
    name = task.head_name(arch)
    values = {gene.removeprefix(f"{name}_"): arch[gene] for gene in arch.names[len(TABLE.space.names) :]}
    single = blank(str(name))
    own = {gene: values[gene] for gene in single.space.names[len(TABLE.space.names) :]}
    return single.space.from_dict({**task.body_arch(arch).to_dict(), **own})


def test_the_space_is_the_sum_of_those_of_the_heads() -> None:
    with torch.device("meta"):
        assert detector().space.size == sum(blank(name).space.size for name in SIZES)
        assert detector(SUPERNET, "fcos", "ssdlite").space.size == sum(
            blank(name).space.size for name in ("fcos", "ssdlite")
        )


def test_costs_are_those_of_each_detector_alone() -> None:
    with torch.device("meta"):
        task = detector()
        archs = archs_of(task, 6)
        totals = task.cost_totals(archs)
        for index, arch in enumerate(archs):
            single = blank(str(task.head_name(arch)))
            own = single.cost_totals([same_alone(task, arch)])
            assert (totals.macs[index], totals.params[index]) == (own.macs[0], own.params[0])
            assert task.input_size(arch) == single.input_size(same_alone(task, arch))


def test_the_network_of_an_arch_is_that_of_its_detector_alone() -> None:
    task = detector()
    for arch in map(task.space.smallest, task.space.branches()):
        subnet = detector(arch)
        expected = alone(task.head_name(arch), same_alone(task, arch))
        assert subnet.kind.model == expected.kind.model
        wanted, found = (one.network.state_dict() for one in (expected, subnet))
        assert list(wanted) == list(found)
        assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.slow
def test_archs_of_every_head_are_extracted_exactly_with_detections_losses_and_gradients() -> None:
    task = with_statistics(detector().double())
    for arch in archs_of(task, 3):
        task.set_arch(arch)
        subnet = task.extract(arch)
        assert not any("Elastic" in type(module).__name__ for module in subnet.network.modules())
        with torch.no_grad():
            ours, theirs = (each.eval().forward_batch(PAIR)[0] for each in (task, subnet))
        for name in task.outputs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-9)
        for each in (task.train(), subnet.train()):
            each.network.zero_grad(set_to_none=True)
            torch.manual_seed(1)
            losses, _ = each.losses(PAIR, regularise=True, teacher=None)
            torch.stack(list(losses.values())).sum().backward()
        head = task.head_name(arch)
        # The body is shared: the network that was registered first names it.
        shared = {id(p): p.grad for p in task.network.networks[head].parameters()}
        names = dict(task.network.networks[head].named_parameters())
        own = own_gradients(subnet)
        for name, gradient in own.items():
            active = leading_slice(shared[id(names[name])], gradient.shape, name)
            torch.testing.assert_close(active, gradient, rtol=1e-9, atol=1e-9)
        inside = set(map(id, names.values()))
        assert all(p.grad is None for p in task.network.parameters() if id(p) not in inside)


def test_all_heads_share_one_body() -> None:
    task = detector()
    bodies = {id(network.backbone.body) for network in task.network.networks.values()}
    assert bodies == {id(task.body)}
    counts = {name: sum(p.numel() for p in alone(name).network.parameters()) for name in SIZES}
    body = sum(p.numel() for p in task.body.parameters())
    total = sum(p.numel() for p in task.network.parameters())
    assert total == sum(counts.values()) - 2 * body


def test_every_step_has_a_sandwich_of_every_head() -> None:
    with torch.device("meta"):
        space = detector().space
    sampling = ArchSampling("sandwich", 1, None, 0.5)
    archs = sampling.draw(space, 0, 3, lambda archs: np.zeros(len(archs)))
    assert [arch["head"] for arch in archs] == [3, 3, 3, 2, 2, 2, 1, 1, 1]
    assert len(archs) == sampling.archs_per_step(space)
    ends = space.ends()
    assert (archs[0], archs[2], archs[6], archs[8]) == (ends[5], ends[4], ends[1], ends[0])


def saved(task: DetectionTask, folder: Path) -> Path:
    save_checkpoint(
        folder / "weights.pt", task, parent=None, metrics={}, versions={}, stage="finetune", config_sha256=""
    )
    return folder / "weights.pt"


def test_weights_of_the_supernet_hold_every_head(tmp_path: Path) -> None:
    task = detector()
    checkpoint = load_checkpoint(str(saved(task, tmp_path)), TABLE)
    assert not any(".body." in name for name in checkpoint.rest)
    for arch in map(task.space.smallest, task.space.branches()):
        torch.manual_seed(5)
        subnet = task.rebuild(replace(task.settings, arch=arch))
        assert inherit(subnet, checkpoint) == []
        expected = task.extract(arch).network.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in subnet.network.state_dict().items())


def test_one_whole_network_fills_its_own_head_alone(tmp_path: Path) -> None:
    task = detector()
    largest = task.extract(task.space.largest())
    checkpoint = load_checkpoint(str(saved(largest, tmp_path)), TABLE)
    assert is_whole(checkpoint, task)
    torch.manual_seed(3)
    other = task.rebuild(task.settings)
    before = {name: tensor.clone() for name, tensor in other.network.networks["fcos"].head.state_dict().items()}
    load_whole(other, checkpoint)
    found = other.extract(task.space.largest()).network.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in largest.network.state_dict().items())
    assert all(torch.equal(t, before[name]) for name, t in other.network.networks["fcos"].head.state_dict().items())


@pytest.mark.parametrize(
    ("names", "sentence"),
    [(("fcos",), "at least two"), (("fcos", "x"), "at least two"), (("fcos", "fcos"), "each once")],
)
def test_wrong_names_are_one_sentence(names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        several(*names)


def test_a_size_that_a_detector_cannot_have_is_named_by_its_own_key() -> None:
    of = {name: {"detector": partial(replace, sizes), "genes": None} for name, sizes in SIZES.items()}
    of["fcos"]["detector"] = partial(replace, SIZES["fcos"], fpn_levels=4)
    with pytest.raises(
        ConfigError, match=r"^task\.build\.detector\.of\.fcos\.detector\.fpn_levels must be 3 or 5, got 4$"
    ):
        SeveralDetectors(tuple(SIZES), of, min_size=64, max_size=96, detections=10)
    with pytest.raises(ConfigError, match=r"^task\.build\.detector\.min_size must be at most"):
        SeveralDetectors(tuple(SIZES), of, min_size=100, max_size=96, detections=10)
