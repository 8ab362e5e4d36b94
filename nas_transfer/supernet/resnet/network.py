"""ResNets built from a table, from torchvision's modules and under its names."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from nas_transfer.arch import Arch, ArchOrSupernet
from nas_transfer.supernet.cost import Size, strided_size
from nas_transfer.supernet.pieces import Piece
from nas_transfer.supernet.preprocessing import IMAGE_CHANNELS
from nas_transfer.supernet.resnet.table import EXPANSION, STEM_WIDTH, WIDTHS, Position, ResNetTable


class ResNetBody(nn.Module):
    """The body of a ResNet: images (B, 3, H, W) to feature maps at strides 4, 8, 16 and 32."""

    def __init__(self, table: ResNetTable) -> None:
        super().__init__()
        self.arch = table.space.largest()
        network = ResNet(Bottleneck, list(table.blocks), norm_layer=partial(nn.BatchNorm2d, eps=table.batch_norm_eps))
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(network, name))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map normalised images (B, 3, H, W) to four maps (B, C, ceil(H / s), ceil(W / s)), s = 4, 8, 16, 32."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
            maps.append(features)
        return maps

    def set_drop_path(self, rate: float) -> None:
        """Do nothing: torchvision's blocks have no stochastic depth."""

    def set_arch(self, arch: object) -> None:
        """Do nothing: there is only one arch."""


class ResNetClassifier(nn.Module):
    """The classification head: global pooling, dropout, linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.0)
        self.classifier = nn.Linear(EXPANSION * WIDTHS[-1], num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map the last feature map (B, C, H, W) to logits (B, num_classes)."""
        return self.classifier(self.dropout(features.mean((2, 3))))


def build_stem(table: ResNetTable) -> nn.Module:
    """Convolution, BatchNorm, ReLU and max pooling."""
    body = ResNetBody(table)
    return nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)


def build_block(table: ResNetTable, position: Position) -> nn.Module:
    """One block with random weights."""
    outside = EXPANSION * position.width
    norm = partial(nn.BatchNorm2d, eps=table.batch_norm_eps)
    downsample = None
    if position.projects:
        downsample = nn.Sequential(
            nn.Conv2d(position.in_channels, outside, 1, position.stride, bias=False), norm(outside)
        )
    return Bottleneck(
        position.in_channels, position.width, position.stride, downsample, base_width=STEM_WIDTH, norm_layer=norm
    )


def build_body(table: ResNetTable, arch: ArchOrSupernet) -> ResNetBody:
    """torchvision's network without its last two layers, see `nas_transfer.supernet.networks.build_body`."""
    table.space.validate(table.space.arch_or_largest(arch))
    return ResNetBody(table)


def build_classifier(table: ResNetTable, num_classes: int, arch: ArchOrSupernet) -> ResNetClassifier:
    """Global pooling and the last layer, see `nas_transfer.supernet.networks.build_classifier`."""
    return ResNetClassifier(num_classes)


def build_pieces(table: ResNetTable, arch: Arch, input_size: Size) -> list[Piece]:
    """Stem and blocks for one image of `input_size` (H, W), see `nas_transfer.supernet.networks.latency_pieces`."""
    table.space.validate(arch)
    size = (int(input_size[0]), int(input_size[1]))
    pieces = [Piece(f"resnet stem {size}", partial(build_stem, table), (IMAGE_CHANNELS, *size))]
    size = strided_size(strided_size(size, 2), 2)
    for position in table.positions:
        key = f"resnet {position} {size}"
        pieces.append(Piece(key, partial(build_block, table, position), (position.in_channels, *size)))
        size = strided_size(size, position.stride)
    return pieces
