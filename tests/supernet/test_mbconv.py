"""The elastic network against the subnets that are cut out of it, and their costs against torch's own counter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.errors import ArchError
from nas_transfer.supernet.mbconv.network import MBConvBody, MBConvClassifier
from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.ops import leading_slice
from tests.conftest import load_supernet
from tests.supernet.exactness import cut, cut_body, require_equal_subnets


@pytest.fixture(scope="module")
def table() -> MBConvTable:
    return load_supernet("bignas_nano")


def random_statistics(network: nn.Module) -> None:
    """Give every BatchNorm statistics and scales of its own, so that a wrong slice shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3),
            ):  # fmt: skip
                nn.init.uniform_(tensor, low, high)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("supernet", ["efficientnet_lite0", "ofa_mbv3_w10", "mobilenet_v3_large"])
def test_subnets_with_transformed_kernels_and_same_padding_equal_the_active_ones(supernet: str, training: bool) -> None:
    torch.manual_seed(0)
    table = load_supernet(supernet)
    body, classifier = MBConvBody(table).double(), MBConvClassifier(table, 7).double()
    random_statistics(body), random_statistics(classifier)
    for name, parameter in body.named_parameters():
        if "kernel_transforms" in name:
            nn.init.normal_(parameter, std=0.3)
    generator = np.random.default_rng(0)
    for _ in range(3):
        arch = table.space.sample(generator)
        images = torch.randn(3, 3, 75, 90, dtype=torch.float64)
        for network in (body, classifier):
            network.train(training).set_arch(arch)
        static_body, static_classifier = cut(table, body, classifier, arch)
        taps, static_taps = body(images), static_body(images)
        for ours, theirs in zip(taps, static_taps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(classifier(taps[-1]), static_classifier(static_taps[-1]), rtol=1e-9, atol=1e-9)
        # What reaches the first layer went back through every transformed kernel.
        taps[-1].square().sum().backward()
        static_taps[-1].square().sum().backward()
        stem, static_stem = body.first_conv.conv.weight, static_body.first_conv.conv.weight
        torch.testing.assert_close(stem.grad, static_stem.grad, rtol=1e-7, atol=1e-9)
        body.zero_grad(), classifier.zero_grad()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_an_extracted_subnet_equals_the_active_one_in_outputs_and_gradients(
    table: MBConvTable, dtype: torch.dtype, tolerance: float, training: bool
) -> None:
    torch.manual_seed(0)
    networks = MBConvBody(table).to(dtype), MBConvClassifier(table, 7).to(dtype)
    for network in networks:
        random_statistics(network.train(training))
    require_equal_subnets(table, *networks, tolerance, archs=20)


def test_an_extracted_subnet_holds_plain_torch_layers_and_its_own_weights(table: MBConvTable) -> None:
    body = MBConvBody(table)
    subnet = cut_body(table, body, table.space.smallest())
    assert {type(m) for m in subnet.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)} == {
        nn.Conv2d,
        nn.BatchNorm2d,
    }
    before = subnet.first_conv.conv.weight.clone()
    with torch.no_grad():
        body.first_conv.conv.weight.add_(1.0)
    torch.testing.assert_close(subnet.first_conv.conv.weight, before)


@pytest.mark.parametrize("size", [(64, 64), (45, 62)])
def test_costs_equal_torchs_flop_counter_and_parameter_count(table: MBConvTable, size: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    for arch in [table.space.smallest(), table.space.largest(), *(table.space.sample(generator) for _ in range(4))]:
        body, classifier = MBConvBody(table, arch).eval(), MBConvClassifier(table, 10, arch).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            features = body(torch.zeros(1, 3, *size))[-1]
        assert table.body_cost(arch, size).macs == counter.get_total_flops() // 2
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            classifier(features)
        cost = table.classifier_cost(arch, size, 10)
        assert cost.macs == counter.get_total_flops() // 2
        assert cost.params == sum(p.numel() for p in classifier.parameters())
        assert table.body_cost(arch, size).params == sum(p.numel() for p in body.parameters())


def test_bignas_costs_equal_torchs_flop_counter() -> None:
    table = load_supernet("bignas")
    arch = table.space.sample(np.random.default_rng(3))
    with torch.device("meta"):
        body = MBConvBody(table, arch).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            body(torch.zeros(1, 3, 256, 192))
    assert table.body_cost(arch, (256, 192)).macs == counter.get_total_flops() // 2


def test_feature_maps_have_the_strides_and_channels_that_the_table_says(table: MBConvTable) -> None:
    body = MBConvBody(table).eval()
    arch = table.space.sample(np.random.default_rng(5))
    body.set_arch(arch)
    maps = body(torch.zeros(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(table.feature_channels(arch), (4, 8, 16, 32), strict=True)
    ]


def test_an_arch_of_another_space_is_refused(table: MBConvTable) -> None:
    with pytest.raises(ArchError):
        MBConvBody(table).set_arch(replace(table.space.largest(), space="other"))


def test_a_slice_that_is_larger_than_its_tensor_names_the_tensor() -> None:
    with pytest.raises(ValueError, match="first_conv"):
        leading_slice(torch.zeros(4, 3), (5, 3), "first_conv")
