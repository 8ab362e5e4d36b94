"""DetNAS's space: published costs, torch's counter, and paths that equal the subnets cut out of the supernet."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.errors import ArchError, ConfigError
from nas_transfer.supernet.networks import build_body, build_classifier
from nas_transfer.supernet.ops import copy_slices
from tests.conftest import load_supernet
from tests.supernet.test_mbconv import random_statistics

FPN_300M = [2, 1, 2, 0, 2, 1, 1, 2, 3, 3, 1, 3, 0, 0, 3, 1, 3, 1, 3, 2]
RETINANET_300M = [2, 3, 1, 1, 3, 2, 1, 3, 3, 1, 1, 1, 3, 3, 2, 0, 3, 3, 3, 3]
NET_1300M = [0, 0, 3, 1, 2, 1, 0, 2, 0, 3, 1, 2, 3, 3, 2, 0, 2, 1, 1, 3,
             2, 0, 2, 2, 2, 1, 3, 1, 0, 3, 3, 3, 1, 3, 3, 3, 3, 3, 3, 3]  # fmt: skip


@pytest.mark.parametrize(
    ("supernet", "operations", "published"),
    [
        ("detnas_300m", FPN_300M, 321.2),
        ("detnas_300m", RETINANET_300M, 324.3),
        ("detnas_300m", [0] * 20, 295.8),
        ("detnas_300m", [1] * 20, 313.7),
        ("detnas_300m", [2] * 20, 340.4),
        ("detnas_300m", [3] * 20, 358.8),
        ("detnas_1300m", NET_1300M, 1318.4),
    ],
)
def test_published_nets_cost_what_was_published(supernet: str, operations: list[int], published: float) -> None:
    table = load_supernet(supernet)
    arch = table.space.from_dict({"resolution": 224, "op": operations})
    cost = table.body_cost(arch, (224, 224)) + table.classifier_cost(arch, (224, 224), 1000)
    assert round(cost.macs / 1e6, 1) == published


def test_the_supernet_holds_as_many_parameters_as_published() -> None:
    table = load_supernet("detnas_300m")
    with torch.device("meta"):
        networks = nn.ModuleList([build_body(table), build_classifier(table, 1000)])
    assert round(sum(parameter.numel() for parameter in networks.parameters()) / 1e6, 2) == 8.49


def test_costs_equal_torchs_counter_and_those_of_many_archs_at_once() -> None:
    table = load_supernet("detnas_nano")
    rng = np.random.default_rng(0)
    archs = [table.space.smallest(), table.space.largest(), *(table.space.sample(rng) for _ in range(6))]
    totals = table.body_totals(archs, [(50, 70)] * len(archs))
    for number, arch in enumerate(archs):
        body, classifier = build_body(table, arch).eval(), build_classifier(table, 6, arch).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            features = body(torch.zeros(1, 3, 50, 70))[-1]
        assert counter.get_total_flops() // 2 == table.body_cost(arch, (50, 70)).macs == totals.macs[number]
        assert sum(p.numel() for p in body.parameters()) == totals.params[number]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            classifier(features)
        assert counter.get_total_flops() // 2 == table.classifier_cost(arch, (50, 70), 6).macs


@pytest.mark.parametrize("training", [False, True])
def test_a_path_equals_its_extracted_subnet_and_trains_only_its_operations(training: bool) -> None:
    table = load_supernet("detnas_nano")
    torch.manual_seed(0)
    body = build_body(table).double().train(training)
    random_statistics(body)
    rng = np.random.default_rng(1)
    for _ in range(4):
        arch = table.space.sample(rng)
        subnet = build_body(table, arch).double().train(training)
        copy_slices(body, subnet)
        assert not any("Elastic" in type(module).__name__ for module in subnet.modules())
        body.set_arch(arch)
        images = torch.randn(3, 3, 64, 96, dtype=torch.float64)
        maps = body(images)
        for ours, theirs in zip(maps, subnet(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert [tuple(m.shape[1:]) for m in maps] == [
            (channels, 64 // stride, 96 // stride)
            for channels, stride in zip(table.feature_channels(arch), (4, 8, 16, 32), strict=True)
        ]
        body.zero_grad(set_to_none=True)
        sum(m.square().mean() for m in maps).backward()
        sum(m.square().mean() for m in subnet(images)).backward()
        gradients = {name: p.grad for name, p in body.named_parameters() if p.grad is not None}
        own = dict(subnet.named_parameters())
        assert gradients.keys() == own.keys()
        for name, parameter in own.items():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-7, atol=1e-9)


def test_a_foreign_arch_and_drop_path_are_refused() -> None:
    table = load_supernet("detnas_nano")
    with pytest.raises(ArchError):
        build_body(table, load_supernet("bignas_nano").space.largest())
    with pytest.raises(ConfigError, match="drop_path=0"):
        build_body(table, table.space.smallest()).set_drop_path(0.2)
