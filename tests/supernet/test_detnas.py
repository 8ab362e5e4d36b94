"""DetNAS's networks against plain torch modules that follow the authors' code, for both channel shuffles."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.cost import Cost
from nas_transfer.supernet.importing import import_supernet
from nas_transfer.supernet.networks import build_body, build_classifier, latency_pieces
from nas_transfer.supernet.ops import copy_slices
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.shufflenet.network import shuffle_and_split
from tests.conftest import load_supernet, nightly_but
from tests.supernet import public_nets
from tests.supernet.detnas_modules import DetNAS, shuffled_order

PATH = Path("public.pkl")
NETS = {
    "detnas_nano": (public_nets.DETNAS_NANO_STAGES, 128),
    "detnas_300m": (public_nets.DETNAS_STAGES, 1024),
}


def detnas_table(name: str, method: int) -> SupernetTable:
    return replace(load_supernet(name), channel_shuffle_method=method)


def public_net(name: str, method: int) -> tuple[dict[str, Tensor], DetNAS]:
    """A public file's tensors, and the network of the authors' code that holds them, in double precision."""
    stages, last = NETS[name]
    state = public_nets.detnas_state(stages, last)
    network = DetNAS(16, stages, last, 1000, method)
    network.load_state_dict(state)
    return state, network.double()


@pytest.mark.parametrize(
    ("method", "order"), [(1, [0, 4, 1, 5, 2, 6, 3, 7]), (2, [0, 2, 4, 6, 1, 3, 5, 7])], ids=["1", "2"]
)
def test_a_shuffle_orders_eight_channels_as_the_authors_code_does(method: int, order: list[int]) -> None:
    assert shuffled_order(8, method) == order
    channels = torch.arange(8.0)[None, :, None, None].expand(2, 8, 3, 5)
    halves = shuffle_and_split(channels, method)
    assert [half.shape for half in halves] == [(2, 4, 3, 5)] * 2
    assert torch.cat(halves, 1)[1, :, 2, 4].tolist() == order


def test_method_1_is_torchs_channel_shuffle_of_two_groups() -> None:
    features = torch.randn(2, 24, 3, 5)
    expected = nn.functional.channel_shuffle(features, 2)
    assert torch.equal(torch.cat(shuffle_and_split(features, 1), 1), expected)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("method", [1, 2])
@pytest.mark.parametrize("name", nightly_but(NETS, "detnas_nano"))
def test_supernet_and_subnets_equal_the_authors_network(name: str, method: int, training: bool) -> None:
    state, public = public_net(name, method)
    public.train(training)
    table = detnas_table(name, method)
    imported = import_supernet(state, table, PATH, "auto")
    supernet = nn.ModuleList([build_body(table), build_classifier(table, 1000)])
    for part, tensors in zip(supernet, (imported.body, imported.head), strict=True):
        part.load_state_dict(tensors)
    supernet.double().train(training)
    body, head = supernet
    images = torch.randn(3, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(0)
    for arch in (table.space.smallest(), table.space.largest(), *(table.space.sample(rng) for _ in range(3))):
        static = nn.ModuleList([build_body(table, arch), build_classifier(table, 1000, arch)])
        static.double().train(training)
        copy_slices(supernet, static)
        body.set_arch(arch)  # type: ignore[operator]
        with torch.no_grad():
            logits, maps = public(images, arch.group("op")), public.maps(images, arch.group("op"))
            assert 1e-3 < logits.std() < 1e3  # neither vanished nor exploded: a comparison means something
            for own_body, own_head in ((body, head), static):
                for found, expected in zip(own_body(images), maps, strict=True):
                    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(own_head(own_body(images)[-1]), logits, rtol=1e-10, atol=1e-10)


def test_the_other_method_computes_something_else() -> None:
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    networks = [public_net("detnas_nano", method)[1].eval() for method in (1, 2)]
    operations = load_supernet("detnas_nano").space.smallest().group("op")
    with torch.no_grad():
        first, second = (network(images, operations) for network in networks)
    assert (first - second).abs().mean() > 0.1 * first.abs().mean()


def test_a_public_file_says_method_1_and_new_networks_use_method_2() -> None:
    table = load_supernet("detnas_nano")
    assert table.channel_shuffle_method == 2  # type: ignore[attr-defined]
    state, _ = public_net("detnas_nano", 1)
    assert import_supernet(state, table, PATH, "auto").origin.table_fields == {"channel_shuffle_method": 1}


@pytest.mark.parametrize("value", [0, 3, True, "1", None])
def test_another_method_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"channel_shuffle_method must be 1 or 2 in 'detnas_nano', got"):
        replace(load_supernet("detnas_nano"), channel_shuffle_method=value)  # type: ignore[type-var]


def test_the_method_changes_no_cost_and_keeps_its_own_latencies() -> None:
    tables = [detnas_table("detnas_nano", method) for method in (1, 2)]
    arch = tables[0].space.sample(np.random.default_rng(0))
    first, second = (table.body_cost(arch, (64, 96)) for table in tables)
    assert isinstance(first, Cost)
    assert first == second
    keys = [{piece.key: piece for piece in latency_pieces(table, arch, (64, 96))} for table in tables]
    own = [piece.build() for key, piece in keys[0].items() if key not in keys[1]]
    assert own
    assert all(block.projection is None for block in own)
    assert sum(key in keys[1] for key in keys[0]) == 1 + 4  # the stem, and the first block of each stage
