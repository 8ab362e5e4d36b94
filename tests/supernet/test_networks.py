"""Networks are built by the module that a table names, which may lie outside the package; origins of public weights."""

import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from nas_transfer.errors import ArchError, ConfigError
from nas_transfer.supernet.importing import IMPORTERS
from nas_transfer.supernet.mbconv import MBConvTable
from nas_transfer.supernet.networks import build_body, build_classifier, latency_pieces
from tests.conftest import load_supernet

FAMILY = """
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.pieces import Piece


@dataclass(frozen=True)
class PlainTable(MBConvTable):
    network_module: ClassVar[str] = __name__


def build_body(table, arch):
    return nn.Conv2d(3, table.space.arch_or_largest(arch)["width.first_conv"], 1)


def build_classifier(table, num_classes, arch):
    return nn.Linear(8, num_classes)


def build_pieces(table, arch, input_size):
    return [Piece("all", lambda: build_body(table, arch), (3, *input_size))]
"""


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module outside the package that defines a family of supernets."""
    (tmp_path / "plain_family.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "plain_family"
    sys.modules.pop("plain_family", None)


def test_a_family_outside_the_package_builds_its_own_networks(family: str) -> None:
    nano = load_supernet("bignas_nano")
    values = {field.name: getattr(nano, field.name) for field in fields(MBConvTable)}
    table = instantiate({"_target_": f"{family}.PlainTable", "_convert_": "all"}, **values)
    assert build_body(table).out_channels == 16
    assert build_body(table, table.space.smallest()).out_channels == 8
    assert build_classifier(table, 5).out_features == 5
    (piece,) = latency_pieces(table, table.space.largest(), (4, 6))
    assert piece.build()(torch.zeros(1, *piece.shape)).shape == (1, 16, 4, 6)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("no_such_module", "'no_such_module' of MBConvTable cannot be imported"),
        ("json", "'json' must define .* got no build_body, build_classifier"),
    ],
)
def test_a_network_module_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, message: str
) -> None:
    monkeypatch.setattr(MBConvTable, "network_module", module)
    with pytest.raises(ConfigError, match=message):
        build_body(load_supernet("bignas_nano"))


@pytest.mark.parametrize("supernet", ["bignas_nano", "detnas_nano", "resnet50", "convnext_micro"])
def test_an_arch_of_another_space_is_refused_by_every_family(supernet: str) -> None:
    table = load_supernet(supernet)
    stranger = replace(table.space.largest(), space="other")
    with pytest.raises(ArchError, match="'other'"):
        build_body(table, stranger)
    with pytest.raises(ArchError, match="'other'"):
        latency_pieces(table, stranger, (64, 64))


@pytest.mark.parametrize("name", IMPORTERS)
def test_the_origin_of_public_weights_is_complete(name: str) -> None:
    importer = IMPORTERS[name]
    origin = importer.origin
    assert origin.name == name
    assert origin.url.startswith("https://")
    assert origin.files
    assert origin.licence
    year_and_month, _, number = origin.paper.partition(".")
    assert (len(year_and_month), len(number)) == (4, 5)
    overrides = dict(override.split("=") for override in origin.command.split())
    assert isinstance(load_supernet(overrides["supernet"]), importer.table)
    assert overrides.get("weights_format", name) == name
