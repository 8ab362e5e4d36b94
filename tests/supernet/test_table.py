"""The table of an MBConv supernet: channel arithmetic, block plans, validation, and its YAML through Hydra."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from nas_transfer.arch_files import known_arch_names, resolve_arch
from nas_transfer.errors import ArchError, ConfigError
from nas_transfer.supernet.mbconv.rows import StageTable, expanded_channels, make_divisible, squeeze_channels
from nas_transfer.supernet.mbconv.table import MBConvTable

CONF = Path(__file__).parents[2] / "conf"


def fields_of(name: str) -> dict:
    fields = yaml.safe_load((CONF / "supernet" / f"{name}.yaml").read_text())
    return {key: value for key, value in fields.items() if not key.startswith("_")}


@pytest.fixture(params=["bignas", "bignas_nano", "efficientnet_lite2", "ofa_mbv3_w10", "mobilenet_v3_large"])
def table(request) -> MBConvTable:
    return MBConvTable(**fields_of(request.param))


@pytest.fixture(scope="module")
def bignas() -> MBConvTable:
    return MBConvTable(**fields_of("bignas"))


@pytest.mark.parametrize(
    ("value", "expected"),
    # by hand: nearest multiple of 8 (halves up), at least 8, and one step more where that is below 0.9 of the value
    [(1, 8), (8, 8), (11, 16), (12, 16), (19, 24), (20, 24), (35, 32), (36, 40), (24.4, 24), (84, 88), (9, 16)],
)
def test_make_divisible_follows_attentivenas(value, expected) -> None:
    assert make_divisible(value) == expected


def test_make_divisible_never_loses_more_than_a_tenth() -> None:
    for value in range(1, 2000):
        rounded = make_divisible(value)
        assert rounded % 8 == 0
        assert 0.9 * value <= rounded
        assert rounded - 8 < value or rounded == 8


def test_channel_helpers_give_the_channels_of_a_known_block() -> None:
    assert expanded_channels(24, 4) == 96
    assert squeeze_channels(96) == 24
    assert squeeze_channels(128) == 32
    assert squeeze_channels(160) == 40


def test_hydra_builds_the_same_table_as_plain_yaml(table) -> None:
    config = OmegaConf.load(CONF / "supernet" / f"{table.name}.yaml")
    built = instantiate(config)
    assert built == table
    assert hash(built) == hash(table)  # no list survived the conversion
    assert type(built.stages[0].width) is tuple


def test_the_space_lists_the_genes_in_the_order_of_the_arch_files(bignas) -> None:
    stages = [f"mb{index}" for index in range(1, 8)]
    assert bignas.space.names == (
        "resolution",
        *(f"width.{where}" for where in ("first_conv", *stages, "last_conv")),
        *(f"{group}.{stage}" for group in ("depth", "kernel_size", "expand_ratio") for stage in stages),
    )
    # 4 resolutions; widths 2^7 * 3 * 4; depths 2*3*4*4*6*6*2; kernels 2^7; expansions 3^4
    assert bignas.space.size == 4 * (2**7 * 3 * 4) * (2 * 3 * 4 * 4 * 6 * 6 * 2) * 2**7 * 3**4


def test_blocks_of_the_smallest_arch_chain_channels_and_strides(bignas) -> None:
    blocks = bignas.blocks(bignas.space.smallest())
    assert len(blocks) == sum((1, 3, 3, 3, 3, 3, 1))
    assert blocks[0].in_channels == 16
    assert all(left.out_channels == right.in_channels for left, right in itertools.pairwise(blocks))
    first_blocks = [block for block in blocks if block.block_index == 0]
    assert [block.stride for block in first_blocks] == [1, 2, 2, 2, 1, 2, 1]
    assert all(block.stride == 1 for block in blocks if block.block_index)
    assert [block.expand for block in first_blocks] == [False, True, True, True, True, True, True]
    assert [bool(block.squeeze_channels) for block in first_blocks] == [False, False, True, False, True, True, True]
    assert first_blocks[2].mid_channels == 24 * 4
    assert first_blocks[2].squeeze_channels == 24


def test_max_blocks_are_the_37_blocks_of_the_public_checkpoint(bignas) -> None:
    blocks = bignas.max_blocks()
    assert len(blocks) == 37
    first_of_stage = [index for index, block in enumerate(blocks) if block.block_index == 0]
    assert first_of_stage == [0, 2, 7, 13, 19, 27, 35]
    widths_in = [24, 24, 32, 40, 72, 128, 216]
    ratios = [1, 6, 6, 6, 6, 6, 6]
    assert [blocks[index].mid_channels for index in first_of_stage] == [
        round(width * ratio) for width, ratio in zip(widths_in, ratios, strict=True)
    ]
    assert {block.kernel_size for block in blocks} == {5}
    assert bignas.last_conv.pooled_channels(224, 1984) == 1344


def test_no_arch_needs_more_than_max_blocks_allocates(table) -> None:
    allocated = {(block.stage_index, block.block_index): block for block in table.max_blocks()}
    rng = np.random.default_rng(0)
    for _ in range(200):
        for block in table.blocks(table.space.sample(rng)):
            largest = allocated[block.stage_index, block.block_index]
            assert block.in_channels <= largest.in_channels
            assert block.mid_channels <= largest.mid_channels
            assert block.out_channels <= largest.out_channels
            assert block.kernel_size <= largest.kernel_size
            assert block.squeeze_channels <= largest.squeeze_channels
            assert (block.stride, block.expand, block.activation) == (
                largest.stride,
                largest.expand,
                largest.activation,
            )


def test_feature_channels_are_the_widths_of_the_tapped_stages(table) -> None:
    arch = table.space.largest()
    assert table.feature_channels(arch) == tuple(arch[f"width.{stage}"] for stage in table.tap_stages)


def test_genes_of_dropped_blocks_have_no_effect() -> None:
    table = MBConvTable(**fields_of("ofa_mbv3_w10"))
    assert table.space.size == 4 * (9**2 + 9**3 + 9**4) ** 5  # about 2e19 at each resolution, as the paper says
    fields = table.space.largest().to_dict()
    fields["kernel_size"][1:5], fields["expand_ratio"][1:5] = [7, 3, 5, 7], [3, 6, 4, 6]
    fields["depth"][1] = 3
    arch = table.space.from_dict(fields)
    blocks = [block for block in table.blocks(arch) if block.stage_index == 1]
    assert [(block.kernel_size, block.mid_channels) for block in blocks] == [(7, 48), (3, 144), (5, 96)]
    assert arch["kernel_size.s1.3"] == 3  # the first choice, whatever the file says of a block that is not there
    assert table.space.from_dict(arch.to_dict()) == arch


def test_irregular_mid_channels_are_those_of_the_published_net_and_shrink_proportionally() -> None:
    table = MBConvTable(**fields_of("mobilenet_v3_large"))
    mids = [block.mid_channels for block in table.max_blocks()]
    assert mids == [16, 64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960]
    stage = table.stages[3]
    assert [stage.block_mid_channels(block, 80, 2) for block in range(4)] == [160, 136, 120, 120]


def test_every_arch_file_belongs_to_a_shipped_supernet() -> None:
    spaces = {name: MBConvTable(**fields_of(name)).space for name in ("bignas", "bignas_nano")}
    names = known_arch_names([CONF / "archs"])
    assert len(names) >= 13
    for name in names:
        mapping = yaml.safe_load((CONF / "archs" / f"{name}.yaml").read_text())
        assert resolve_arch(name, spaces[mapping["space"]], [CONF / "archs"]) is not None


def test_an_arch_of_another_space_is_refused_everywhere(bignas) -> None:
    stranger = MBConvTable(**fields_of("bignas_nano")).space.smallest()
    for use in (
        bignas.blocks,
        bignas.feature_channels,
        lambda arch: bignas.body_cost(arch, (64, 64)),
        lambda arch: bignas.classifier_cost(arch, (64, 64), 10),
    ):
        with pytest.raises(ArchError, match="'bignas', got one of space 'bignas_nano'"):
            use(stranger)


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("mb3", "width", [32, 36]),
        ("mb3", "width", [40, 32]),
        ("mb3", "width", []),
        ("mb3", "width", 32),
        ("mb3", "depth", [0, 1]),
        ("mb3", "kernel_size", [3, 4]),
        ("mb3", "expand_ratio", [1.5]),
        ("mb3", "stride", 3),
        ("mb3", "squeeze_excite", "yes"),
        ("mb3", "activation", "swish"),
        ("mb3", "name", "mb.3"),
    ],
)
def test_a_malformed_stage_is_refused_with_the_field_and_the_value(stage, field, value) -> None:
    fields = fields_of("bignas_nano")
    row = next(row for row in fields["stages"] if row["name"] == stage)
    row[field] = value
    with pytest.raises(ConfigError) as caught:
        MBConvTable(**fields)
    assert str(value) in str(caught.value)
    assert "mb3" in str(caught.value) or field == "name"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tap_stages", ["mb2", "mb3", "mb4", "mb6"], None),  # mb4 and mb6 open their strides: allowed
        ("tap_stages", ["mb2", "mb3", "mb5"], "strides"),
        ("tap_stages", ["mb1", "mb3", "mb5", "mb7"], "strides"),
        ("tap_stages", ["mb2", "mb3", "mb5", "mb9"], "mb9"),
        ("batch_norm_eps", "1e-5", "1.0e-5"),
        ("shortcut", "none", "pooled"),
        ("same_padding", "yes", "same_padding"),
        ("squeeze_activations", ["gelu", "sigmoid"], "squeeze_activations must be one of .*got .'gelu', 'sigmoid'"),
        ("squeeze_activations", ["relu", "relu"], "squeeze_activations must be"),
        ("last_conv", {"width": [8], "expand_ratio": 0, "activation": "silu"}, "expand_ratio"),
        ("preprocessing", {"mean": [0, 0, 0], "std": [1, 1, 1], "channel_order": "rbg"}, "channel_order"),
        ("preprocessing", {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "area"}, "interpolation"),
        (
            "preprocessing",
            {"mean": [0, 0, 0], "std": [1, 1, 1], "resolution_interpolation": "area"},
            "resolution_interpolation",
        ),
        ("resolutions", [96, 48], "resolution"),
        ("stages", [], "at least one stage"),
        ("preprocessing", {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}, "at least 1"),
        ("preprocessing", {"mean": [0.5, 0.5, 0.5]}, "std"),
        ("first_conv", {"width": [8], "kernel_size": 3, "stride": 2, "activation": "silu", "pad": 1}, "pad"),
    ],
)
def test_malformed_fields_are_refused(field, value, message) -> None:
    fields = {**fields_of("bignas_nano"), field: value}
    if message is None:
        MBConvTable(**fields)
    else:
        with pytest.raises(ConfigError, match=message):
            MBConvTable(**fields)


def test_duplicate_stage_names_are_refused() -> None:
    fields = fields_of("bignas_nano")
    fields["stages"][3]["name"] = "mb3"
    with pytest.raises(ConfigError, match="mb3"):
        MBConvTable(**fields)


def test_a_stage_expands_unless_1_is_its_only_ratio() -> None:
    row: dict[str, Any] = {
        "name": "s",
        "width": [8],
        "depth": [1],
        "kernel_size": [3],
        "stride": 1,
        "squeeze_excite": False,
        "activation": "relu",
    }
    assert not StageTable(**row, expand_ratio=(1,)).expands
    assert StageTable(**row, expand_ratio=(1, 4)).expands


def test_spaces_tables_and_costs_import_without_torch() -> None:
    program = (
        "import sys, nas_transfer.space, nas_transfer.supernet.mbconv.table, nas_transfer.supernet.cost; "
        "sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
