"""ConvNeXt: subnets against the active ones, and readers against timm's and torchvision's own networks."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.convnext import ConvNeXtTable
from nas_transfer.supernet.convnext.importance import order_by_importance
from nas_transfer.supernet.convnext.reader import read
from nas_transfer.supernet.convnext.rows import HeadTable, StemTable
from nas_transfer.supernet.importing import fill_supernet
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.supernet.networks import build_body, build_classifier, latency_pieces
from nas_transfer.supernet.norms import LayerScale
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.public.reading import origin_of
from nas_transfer.supernet.readers import PublicNet, Reading
from tests.conftest import load_supernet
from tests.supernet.exactness import NUM_CLASSES, cut_body, randomise_convnext, require_equal_subnets

SIZES = {"depths": (1, 2, 3, 1), "dims": (8, 16, 24, 32)}
TIMM = {
    "convolutions": {"conv_mlp": True},
    "linear": {},
    "version 2": {"use_grn": True, "ls_init_value": None},
    "version 2 of convolutions": {"use_grn": True, "ls_init_value": None, "conv_mlp": True},
    "overlapping stem": {"stem_type": "overlap_tiered", "conv_mlp": True},
    "activated stem": {"stem_type": "overlap_act", "act_layer": "silu"},
    "norm first": {"head_norm_first": True, "norm_eps": 1e-5},
    "hidden layer": {"head_hidden_size": 20, "act_layer": "gelu_tanh"},
    "kernels": {"kernel_sizes": (7, 5, 5, 3)},
}


@pytest.fixture(scope="module")
def table() -> ConvNeXtTable:
    found = load_supernet("convnext_micro")
    assert isinstance(found, ConvNeXtTable)
    return found


def variant(table: ConvNeXtTable, version: int) -> ConvNeXtTable:
    """The first version of the blocks, or the second with other options that a table has."""
    if version == 1:
        return table
    return replace(
        table, layer_scale=False, response_norm=True, stem=StemTable(8, True), head=HeadTable(True, 24),
        stages=tuple(replace(stage, per_block=True) for stage in table.stages),
    )  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_an_extracted_subnet_equals_the_active_one_in_outputs_and_gradients(
    table: ConvNeXtTable, version: int, training: bool, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    table = variant(table, version)
    networks = build_body(table).to(dtype), build_classifier(table, NUM_CLASSES).to(dtype)
    for network in networks:
        randomise_convnext(network.train(training))
    require_equal_subnets(table, *networks, tolerance, archs=5)


def test_an_extracted_subnet_holds_plain_torch_layers_and_its_own_weights(table: ConvNeXtTable) -> None:
    body = build_body(table)
    subnet = cut_body(table, body, table.space.smallest())
    assert not any("Elastic" in type(module).__name__ for module in subnet.modules())
    before = subnet.stages[0][0].expand.conv.weight.clone()
    with torch.no_grad():
        body.stages[0][0].expand.conv.weight.add_(1.0)
    assert torch.equal(subnet.stages[0][0].expand.conv.weight, before)


def test_costs_of_every_option_equal_torchs_counter(table: ConvNeXtTable) -> None:
    table, size = variant(table, 2), (75, 50)
    generator = np.random.default_rng(0)
    archs = [table.space.sample(generator) for _ in range(3)]
    totals = table.body_totals(archs, [size] * len(archs))
    for index, arch in enumerate(archs):
        body, head = build_body(table, arch), build_classifier(table, 10, arch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            maps = body(torch.zeros(1, 3, *size))
        cost, whole = table.body_cost(arch, size), table.classifier_cost(arch, size, 10)
        assert cost.macs == counter.get_total_flops() // 2 == totals.macs[index]
        assert cost.params == sum(parameter.numel() for parameter in body.parameters()) == totals.params[index]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            head(maps[-1])
        assert whole.macs == counter.get_total_flops() // 2
        assert whole.params == sum(parameter.numel() for parameter in head.parameters())


def test_pieces_run_one_after_another_and_cost_what_the_body_costs(table: ConvNeXtTable) -> None:
    arch, size = table.space.largest(), (70, 100)
    features, macs = torch.zeros(1, 3, *size), 0
    for piece in latency_pieces(table, arch, size):
        assert tuple(features.shape[1:]) == piece.shape
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            features = piece.build()(features)
        macs += counter.get_total_flops() // 2
    assert macs == table.body_cost(arch, size).macs


def test_folding_the_layer_scale_leaves_the_outputs(table: ConvNeXtTable) -> None:
    torch.manual_seed(0)
    body = build_body(table, table.space.smallest()).double().eval()
    randomise_convnext(body)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    before = body(images)
    fold_batch_norms(body)
    assert not any(isinstance(module, LayerScale) for module in body.modules())
    for ours, theirs in zip(body(images), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_blocks_are_skipped_at_random_in_training_alone(table: ConvNeXtTable) -> None:
    torch.manual_seed(0)
    body = build_body(table)
    randomise_convnext(body)
    images = torch.randn(2, 3, 64, 64)
    before = body.eval()(images)
    body.set_drop_path(0.999999)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(body(images), before, strict=True))
    last = body.stages[-1][-1]
    assert last.drop_path == pytest.approx(1.0, abs=1e-5)
    features = torch.randn(2, 96, 2, 2)
    assert torch.equal(last.train()(features), features)
    assert body.stages[0][0].drop_path == 0


def public_net(library: str) -> PublicNet:
    preprocessing = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    return PublicNet(library, "tiny", "", "", "2201.03545", "Apache-2.0", preprocessing, 224)


def timm_net(**options: object) -> nn.Module:
    convnext = pytest.importorskip("timm.models.convnext")
    torch.manual_seed(0)
    return convnext.ConvNeXt(**SIZES, num_classes=11, **options).eval()


def filled(reading: Reading, net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The largest arch with the weights of the network, whose hidden channels are ordered."""
    source = reading.table.source  # type: ignore[attr-defined]
    body, head = fill_supernet(net.state_dict(), reading.layout, reading.table, origin_of(source), Path("net"), 11)
    order_by_importance(body)
    block = body.stages[0][0]
    importance = block.expand.conv.weight.abs().sum((1, 2, 3)) + block.project.conv.weight.abs().sum((0, 2, 3))
    assert (importance[:-1] >= importance[1:]).all()
    return cut_body(reading.table, body, reading.table.space.largest()).eval(), head.eval()


def require_equal_nets(reading: Reading, net: nn.Module, maps: list[Tensor], images: Tensor) -> None:
    """Compare features, logits, MACs and parameters with those of the public network."""
    body, head = filled(reading, net)
    ours = body(images)
    for own, theirs in zip(ours, maps, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head(ours[-1]), net(images), rtol=1e-5, atol=1e-5)
    table, size = reading.table, tuple(images.shape[2:])
    cost = table.body_cost(table.space.largest(), size) + table.classifier_cost(table.space.largest(), size, 11)
    with FlopCounterMode(display=False) as counter:
        net(images[:1])
    assert cost.macs == counter.get_total_flops() // 2
    assert cost.params == sum(parameter.numel() for parameter in net.parameters())


@torch.no_grad()
@pytest.mark.parametrize("options", TIMM.values(), ids=TIMM)
def test_the_largest_arch_is_timms_net(options: Mapping[str, object]) -> None:
    net = timm_net(**options)
    randomise_convnext(net)
    reading = read(net, public_net("timm"))
    assert reading is not None
    from timm.models._features import FeatureListNet

    images = torch.randn(2, 3, 64, 96)
    maps = FeatureListNet(net, out_indices=(0, 1, 2, 3), flatten_sequential=True)(images)
    require_equal_nets(reading, net, maps, images)


@torch.no_grad()
def test_the_largest_arch_is_torchvisions_net() -> None:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    widths = (8, 16, 24, 32, None)
    stages = [CNBlockConfig(*widths[index : index + 2], count) for index, count in enumerate(SIZES["depths"])]
    net = ConvNeXt(stages, num_classes=11).eval()
    randomise_convnext(net)
    reading = read(net, public_net("torchvision"))
    assert reading is not None
    images = torch.randn(2, 3, 64, 96)
    maps = create_feature_extractor(net, [f"features.{stage}" for stage in (1, 3, 5, 7)])(images)
    require_equal_nets(reading, net, list(maps.values()), images)


def test_a_reader_offers_smaller_depths_kernels_and_expand_ratios() -> None:
    reading = read(timm_net(), public_net("timm"))
    assert reading is not None
    genes = {gene.name: gene.choices for gene in reading.table.space.genes}
    assert [genes[f"depth.s{stage}"] for stage in (1, 2, 3, 4)] == [(1,), (1, 2), (2, 3), (1,)]
    assert genes["kernel_size.s1"] == (3, 5, 7)
    assert genes["expand_ratio.s1"] == (2, 3, 4)
    assert reading.table.source == public_net("timm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_mlp": True, "norm_layer": "rmsnorm2d"}, "stages.0.blocks.0.norm must be a LayerNorm, got RmsNorm2d"),
        ({"output_stride": 16}, "stages.3.blocks.0.conv_dw must be a 7x7 convolution of stride 1"),
        ({"conv_bias": False}, "stages.0.blocks.0.conv_dw must be .* with a bias"),
        ({"patch_size": 2}, "stem.0 must be a 4x4 convolution of stride 4"),
        ({"act_layer": "mish"}, "stages.0.blocks.0.mlp.act must be one of GELU, .* got Mish"),
        ({"global_pool": "max"}, "head.global_pool must be global average pooling"),
        ({"num_classes": 0}, "head.fc must be a linear layer, got Identity"),
    ],
)
def test_what_a_table_cannot_express_is_named(options: Mapping[str, object], message: str) -> None:
    make = partial(pytest.importorskip("timm.models.convnext").ConvNeXt, **SIZES)
    with pytest.raises(ConfigError, match=message):
        read(make(**options), public_net("timm"))


def test_a_net_of_another_family_is_left_to_other_readers() -> None:
    timm = pytest.importorskip("timm")
    assert read(timm.create_model("resnet18"), public_net("timm")) is None
    assert read(nn.Linear(2, 2), public_net("torchvision")) is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stages", [], "4 stages at strides"),
        ("activation", "mish", "activation must be one of"),
        ("layer_norm_eps", "1e-6", "layer_norm_eps must be above 0"),
        ("layer_scale", 1, "layer_scale must be true or false"),
        ("stem", {"activation": True}, "beside a mid_width"),
        ("head", {"norm_first": 1}, "norm_first must be true or false"),
    ],
)
def test_malformed_fields_are_refused(table: ConvNeXtTable, field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(table, **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("width", (8, 16), "a single choice"), ("kernel_size", (4,), "must be odd"), ("name", "a.b", "without dots")],
)
def test_malformed_stages_are_refused(table: ConvNeXtTable, field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(table.stages[0], **{field: value})
