"""Public networks of timm and torchvision as supernets: equal to the library's own, down to features and costs."""

import copy
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.errors import ConfigError, WeightsError
from nas_transfer.supernet.networks import build_body, build_classifier
from nas_transfer.supernet.ops import copy_slices
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.public import reading, timm_table, torchvision_table
from nas_transfer.supernet.repair import order_channels
from nas_transfer.supernet.resnet.importance import order_by_importance
from nas_transfer.tasks.checkpoint import load_checkpoint
from tests.conftest import load_supernet
from tests.supernet.exactness import NUM_CLASSES, cut, require_equal_subnets
from tests.supernet.repair_families import randomise_norms

timm = pytest.importorskip("timm")

TABLES: dict[str, Callable[[str], SupernetTable]] = {"timm": timm_table, "torchvision": torchvision_table}
NETS = (
    ("timm", "resnet18"), ("timm", "resnet18d"), ("timm", "regnety_002"), ("timm", "mobilenetv3_small_050"),
    ("timm", "efficientnet_b0"), ("timm", "tf_efficientnetv2_b0"),
    ("torchvision", "regnet_x_400mf"), ("torchvision", "mobilenet_v3_small"), ("torchvision", "mnasnet0_5"),
)  # fmt: skip
SIZE = (64, 96)


@cache
def public_net(library: str, model: str) -> nn.Module:
    """The library's model with random weights and statistics."""
    torch.manual_seed(0)
    network = reading.LIBRARIES[library].build(reading.LIBRARIES[library].describe(model)).eval()
    randomise_norms(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network


def saved(library: str, model: str, folder: Path) -> str:
    path = folder / f"{library}_{model}.pth"
    torch.save(public_net(library, model).state_dict(), path)
    return str(path)


def largest_of(table: SupernetTable, weights: str) -> tuple[nn.Module, nn.Module]:
    """Body and head of the largest arch, from a file of the library's layout."""
    checkpoint = load_checkpoint(weights, table)
    body, head = build_body(table), build_classifier(table, checkpoint.num_classes)
    body.load_state_dict(checkpoint.body)
    head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in checkpoint.rest.items()})
    plain = build_body(table, table.space.largest())
    copy_slices(body, plain)
    return plain.eval(), head.eval()


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(("library", "model"), NETS)
def test_the_largest_arch_is_the_public_net(library: str, model: str, tmp_path: Path) -> None:
    table, network = TABLES[library](model), public_net(library, model)
    body, head = largest_of(table, saved(library, model, tmp_path))
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        wanted = network(images)
    with torch.no_grad():
        maps = body(images)
        close(head(maps[-1]), wanted)
        if library == "timm":
            features = timm.create_model(model, features_only=True).eval()
            features.load_state_dict(network.state_dict(), strict=False)
            strides = dict(zip(features.feature_info.reduction(), features(images), strict=True))
            for found, stride in zip(maps, (4, 8, 16, 32), strict=True):
                close(found, strides[stride])
    arch = table.space.largest()
    cost = table.body_cost(arch, SIZE) + table.classifier_cost(arch, SIZE, 1000)
    assert cost.macs == counter.get_total_flops() // 2
    assert cost.params == sum(parameter.numel() for parameter in network.parameters())
    assert table.feature_channels(arch) == tuple(features.shape[1] for features in maps)


@pytest.mark.parametrize("model", ["regnety_002", "tf_efficientnetv2_b0"])
def test_a_subnet_is_a_slice_of_the_supernet_with_the_cost_that_torch_counts(model: str) -> None:
    table = timm_table(model)
    torch.manual_seed(0)
    body, head = build_body(table).double(), build_classifier(table, NUM_CLASSES).double()
    require_equal_subnets(table, body, head, 1e-9, archs=1)
    arch = table.space.smallest()
    subnet, _ = cut(table, body, head, arch)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subnet(torch.randn(1, 3, *SIZE).double())
    cost, totals = table.body_cost(arch, SIZE), table.body_totals([arch], [SIZE])
    assert cost.macs == counter.get_total_flops() // 2 == totals.macs[0]
    assert cost.params == sum(parameter.numel() for parameter in subnet.parameters()) == totals.params[0]


def test_channels_are_ordered_in_whole_groups_and_the_net_stays_the_same() -> None:
    table = timm_table("regnety_002")
    torch.manual_seed(0)
    body = build_body(table).double().eval()
    images = torch.randn(1, 3, *SIZE).double()
    with torch.no_grad():
        before = body(images)
        order_by_importance(body)
        plain = build_body(table, table.space.largest()).double().eval()
        copy_slices(body, plain)
        for found, wanted in zip(plain(images), before, strict=True):
            close(found, wanted)
        weight = plain.stages[2][0].project.conv.weight.clone()
        order_channels(table, plain, [images.repeat(2, 1, 1, 1)])  # as for a repair
        assert not torch.equal(plain.stages[2][0].project.conv.weight, weight)
        for found, wanted in zip(plain(images), before, strict=True):
            close(found, wanted)
    block = body.stages[2][0]
    importance = sum(layer.conv.weight.detach().abs().sum((1, 2, 3)) for layer in block.inner)
    importance = importance + block.project.conv.weight.detach().abs().sum((0, 2, 3))
    by_group = importance.view(-1, table.stages[2].group_width).sum(1)
    assert (by_group.diff() <= 0).all()


def test_weights_say_where_they_come_from(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved("timm", "resnet18", tmp_path), timm_table("resnet18"))
    config = timm.get_pretrained_cfg("resnet18")
    (origin,) = checkpoint.lineage()
    assert origin.model == f"resnet18.{config.tag}"
    assert config.hf_hub_id in origin.url
    assert config.license in origin.licence
    assert f"centre crop {config.crop_pct}" in origin.published
    assert checkpoint.preprocessing.interpolation == config.interpolation
    assert checkpoint.preprocessing.mean == pytest.approx([255 * value for value in config.mean])


def test_the_weights_of_a_library_are_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    calls: list[str] = []

    def download(net: reading.PublicNet) -> nn.Module:
        calls.append(net.model)
        if len(calls) > 1:
            raise OSError("no route to host")
        return copy.deepcopy(public_net("timm", "resnet18"))

    monkeypatch.setattr(reading.LIBRARIES["timm"], "download", download)
    for _ in range(2):
        assert load_checkpoint("default", timm_table("resnet18")).format == "timm"
    assert calls == ["resnet18"]
    with pytest.raises(WeightsError, match=r"in no cache and cannot be downloaded .*no route to host.*weights=FILE"):
        load_checkpoint("default", timm_table("resnet18d"))


@pytest.mark.parametrize(
    ("library", "model", "message"),
    [
        ("timm", "resnt18", r"timm has no model 'resnt18': did you mean resnet18"),
        ("timm", "resnet18.nobody", r"timm has no weights 'nobody' for resnet18: did you mean a1_in1k"),
        ("torchvision", "resnet5", r"torchvision has no classification model 'resnet5': did you mean resnet"),
        ("torchvision", "fasterrcnn_resnet50_fpn", r"classification model .*: did you mean resnet50\?"),
        ("torchvision", "yolo", r"torchvision has no classification model 'yolo': see torchvision.models.list_models"),
        ("torchvision", "inception_v3", r"its class Inception3 is of none of the families"),
        ("timm", "mobilenetv4_conv_small", r"small cannot be read as a supernet: norm_head must be absent, got BatchN"),
        ("timm", "vit_tiny_patch16_224", r"its class VisionTransformer is of none of the families"),
        ("timm", "seresnet18", r"seresnet18 cannot be read as a supernet: layer1.0.se must be absent, got SEModule"),
        ("timm", "mixnet_s", r"mixnet_s cannot be read as a supernet: blocks.1.0.conv_pw must be .*got MixedConv2d"),
        ("timm", "skresnet18", r"skresnet18 .*: layer1.0.conv1 must be a plain convolution, got SelectiveKernel"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(library: str, model: str, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match=message):
            TABLES[library](model)


def test_a_file_of_a_model_without_published_weights_is_read(tmp_path: Path) -> None:
    assert reading.LIBRARIES["timm"].describe("mobilenetv2_035").tag == ""
    table = timm_table("mobilenetv2_035")
    assert load_checkpoint(saved("timm", "mobilenetv2_035", tmp_path), table).num_classes == 1000


def test_a_net_that_is_read_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, file = timm_table("resnet18"), saved("timm", "resnet18", tmp_path)
    build = reading.LIBRARIES["timm"].build

    def other(net: reading.PublicNet) -> nn.Module:
        network = build(net)
        if not network.fc.weight.is_meta:  # the one to compare with, not the one to read
            network.act1 = nn.Identity()  # what no tensor of the file tells
        return network

    monkeypatch.setattr(reading.LIBRARIES["timm"], "build", other)
    with pytest.raises(WeightsError, match="read wrongly"):
        load_checkpoint(file, table)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"another model, so choose its supernet.model"):
        load_checkpoint(saved("timm", "resnet18d", tmp_path), timm_table("resnet18"))
    with pytest.raises(WeightsError, match="weights=default needs supernet=timm or supernet=torchvision"):
        load_checkpoint("default", load_supernet("bignas_nano"))
