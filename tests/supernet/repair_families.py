"""Small networks of each family that can be repaired, with random weights, and ways to cut subnets out of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from nas_transfer.arch import Arch
from nas_transfer.supernet.calibrate import recalibrate_batch_norm
from nas_transfer.supernet.mbconv.network import MBConvBody
from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.networks import build_body
from nas_transfer.supernet.ops import copy_slices
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.resnet.elastic import ElasticResNetTable
from nas_transfer.supernet.resnet.network import ResNetBody
from nas_transfer.supernet.resnet.rows import ResidualStage, StemConv
from nas_transfer.supernet.resnet.table import ResNetTable
from tests.conftest import load_supernet
from tests.supernet.exactness import cut_body, randomise_convnext

RESNET_BLOCKS = (2, 2, 3, 2)


@dataclass(frozen=True)
class Family:
    """A trained network, which has the statistics of the images, and its subnets.

    Attributes:
        table: the table of the supernet.
        largest: the plain body of the largest arch.
        cuts: each makes the plain body of one subnet.
    """

    table: SupernetTable
    largest: nn.Module
    cuts: tuple[Callable[[], nn.Module], ...]

    def whole(self) -> nn.Module:
        """A copy of the largest network."""
        return copy.deepcopy(self.largest)


def randomise_norms(network: nn.Module) -> None:
    """Draw scales and shifts of all BatchNorms."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)


def mbconv_supernet(table: MBConvTable, batches: list[Tensor]) -> MBConvBody:
    """A supernet with random weights whose largest arch has the statistics of the images."""
    torch.manual_seed(0)
    body = MBConvBody(table)
    for name, parameter in body.named_parameters():
        if "kernel_transforms" in name:
            nn.init.normal_(parameter, std=0.2)
            parameter.data.diagonal().add_(1)
    largest = cut_body(table, body, table.space.largest())
    randomise_norms(largest)
    recalibrate_batch_norm(largest, batches, largest)
    body.load_state_dict(largest.state_dict(), strict=False)  # a supernet has more shortcuts
    return body.eval()


def archs_of(table: SupernetTable) -> list[Arch]:
    """The smallest arch and two random ones."""
    generator = np.random.default_rng(0)
    return [table.space.smallest(), *(table.space.sample(generator) for _ in range(2))]


def mbconv(batches: list[Tensor]) -> Family:
    """Squeeze-and-excitation, pooled shortcuts and two kernel sizes."""
    return mbconv_family(load_supernet("bignas_nano"), batches)


def once_for_all(batches: list[Tensor]) -> Family:
    """MBConv with identity shortcuts, and smaller kernels that are learned maps of larger ones."""
    nano = load_supernet("bignas_nano")
    stages = tuple(replace(stage, kernel_size=(3, 5, 7), per_block=True) for stage in nano.stages)
    return mbconv_family(replace(nano, stages=stages, shortcut="identity", kernel_transform=True), batches)


def mbconv_family(table: MBConvTable, batches: list[Tensor]) -> Family:
    """The subnets of `archs_of`, and the largest one with kernels of size 3."""
    body = mbconv_supernet(table, batches)
    whole = table.space.largest()
    small = table.space.from_dict({**whole.to_dict(), "kernel_size": [3 for _ in whole.group("kernel_size")]})
    cuts = tuple(partial(cut_body, table, body, arch) for arch in (*archs_of(table), small))
    return Family(table, cut_body(table, body, whole), cuts)


def shufflenet(batches: list[Tensor]) -> Family:
    """Operations with weights of their own; each path of one operation has the statistics of the images."""
    table = load_supernet("detnas_nano")
    torch.manual_seed(0)
    body = build_body(table).eval()
    randomise_norms(body)

    cut = partial(cut_body, table, body)
    for operation in range(4):
        path = cut(table.space.from_dict({"resolution": 64, "op": [operation] * len(table.positions)}))
        recalibrate_batch_norm(path, batches, path)
        body.load_state_dict(path.state_dict(), strict=False)
    largest = cut(table.space.largest())
    recalibrate_batch_norm(largest, batches, largest)
    body.load_state_dict(largest.state_dict(), strict=False)
    return Family(table, largest, tuple(partial(cut, arch) for arch in archs_of(table)))


def resnet(batches: list[Tensor]) -> Family:
    """A thin ResNet; its subnets have fewer blocks, narrower 3x3 convolutions, or both."""
    table = load_supernet("resnet50")
    torch.manual_seed(0)
    largest = thin_resnet(table, RESNET_BLOCKS, hidden=16)
    randomise_norms(largest)
    recalibrate_batch_norm(largest, batches, largest)

    def cut(blocks: tuple[int, ...], hidden: int) -> nn.Module:
        subnet = thin_resnet(table, blocks, hidden)
        copy_slices(largest, subnet)
        return subnet

    sizes = (((1, 1, 2, 1), 16), (RESNET_BLOCKS, 8), ((2, 1, 3, 1), 12))
    return Family(table, largest, tuple(partial(cut, *size) for size in sizes))


def thin_resnet(table: ResNetTable, blocks: tuple[int, ...], hidden: int) -> ResNetBody:
    """A plain ResNet in eval mode with 32 to 256 output channels and `hidden` to 8 x `hidden` hidden ones."""
    with torch.device("meta"):
        body = ResNetBody(replace(table, blocks=blocks))
    channels = 32
    body.conv1, body.bn1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels)
    for stage, count in enumerate(blocks):
        width, outside = hidden << stage, 32 << stage
        layers = nn.Sequential()
        for index in range(count):
            stride, downsample = (2 if stage and not index else 1), None
            if not index:
                conv = nn.Conv2d(channels, outside, 1, stride, bias=False)
                downsample = nn.Sequential(conv, nn.BatchNorm2d(outside))
            block = Bottleneck(channels, outside // 4, stride, downsample)
            block.conv1, block.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
            block.conv2, block.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            block.conv3 = nn.Conv2d(width, outside, 1, bias=False)
            layers.append(block)
            channels = outside
        setattr(body, f"layer{stage + 1}", layers)
    return body.eval()


def convnext(batches: list[Tensor]) -> Family:
    """Blocks with LayerNorm, global response normalisation and layer scale, and three kernel sizes."""
    table = replace(load_supernet("convnext_micro"), response_norm=True)
    torch.manual_seed(0)
    body = build_body(table).eval()
    randomise_convnext(body)
    archs = (*archs_of(table), table.space.largest({"kernel_size.s1": 3, "kernel_size.s3": 5}))
    cuts = tuple(partial(cut_body, table, body, arch) for arch in archs)
    return Family(table, cut_body(table, body, table.space.largest()), cuts)


def elastic_resnet(batches: list[Tensor]) -> Family:
    """Basic blocks, and bottlenecks with groups, squeeze-and-excitation and pooled shortcuts."""
    stages = tuple(
        ResidualStage(
            name=f"s{index}", width=32 << index, inner_width=(8 << index, 16 << index), depth=(1, 2),
            stride=2 if index else 1, bottleneck=index > 0, group_width=8 if index == 1 else 0,
            squeeze_channels=(8, 8) if index == 2 else (0, 0), shortcut="pool" if index == 3 else "conv",
        )
        for index in range(4)
    )  # fmt: skip
    table = ElasticResNetTable(
        name="small", resolutions=(64,), stem=(StemConv((16,), (3, 5), 2),), max_pool=True, stages=stages,
        batch_norm_eps=1e-5, preprocessing=load_supernet("resnet50").preprocessing,
    )  # fmt: skip
    torch.manual_seed(0)
    body = build_body(table)
    largest = build_body(table, table.space.largest())
    copy_slices(body, largest)
    randomise_norms(largest)
    recalibrate_batch_norm(largest, batches, largest)
    body.load_state_dict(largest.state_dict(), strict=False)  # the stem's smaller kernels are maps

    cut = partial(cut_body, table, body.eval())
    genes = table.space.largest().to_dict()
    narrow = table.space.from_dict({**genes, "inner_width": table.space.smallest().to_dict()["inner_width"]})
    return Family(table, largest.eval(), (partial(cut, table.space.smallest()), partial(cut, narrow)))


FAMILIES = {
    "mbconv": mbconv, "once_for_all": once_for_all, "shufflenet": shufflenet, "resnet": resnet, "convnext": convnext,
    "elastic_resnet": elastic_resnet,
}  # fmt: skip
