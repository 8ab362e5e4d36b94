"""The links of ResNet bodies, see `nas_transfer.supernet.links`.

The space of a `ResNetTable` has one arch, which a repair leaves as it is. What is repaired are bodies whose tensors are
slices of the largest network's: those of a table with fewer blocks, and those with narrower 3x3 convolutions.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from nas_transfer.supernet.layers import ConvNormActivation
from nas_transfer.supernet.links import Branch, Link, Part
from nas_transfer.supernet.resnet.network import ResNetBody


def stem(body: ResNetBody) -> nn.Module:
    """Convolution, BatchNorm, ReLU and max pooling."""
    return nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)


def links(body: ResNetBody) -> list[Link]:
    """The blocks in order."""
    found = []
    for stage, blocks in enumerate((body.layer1, body.layer2, body.layer3, body.layer4)):
        for index, block in enumerate(blocks):
            found.append(Link(f"layer{stage + 1}.{index}", stage, block, (_part(block),), rectified=True))
    return found


def _part(block: Bottleneck) -> Part:
    """The three convolutions, and the shortcut, whose convolution is a branch of its own."""
    inner = (ConvNormActivation(block.conv1, block.bn1, "relu"), ConvNormActivation(block.conv2, block.bn2, "relu"))
    main = Branch(inner, ConvNormActivation(block.conv3, block.bn3, None))
    channels = block.bn3.num_features
    if block.downsample is None:
        return Part(channels, (main,), _identity)
    strided, norm = block.downsample
    stride = strided.stride[0]
    conv = copy.copy(strided)  # with the same weight
    conv.stride = (1, 1)
    shortcut = Branch((), ConvNormActivation(conv, norm, None), reads=lambda features: _every(features, stride))
    return Part(channels, (main, shortcut))


def _identity(features: Tensor, channels: int) -> Tensor:
    return features


def _every(features: Tensor, stride: int) -> Tensor:
    """The pixels that a 1x1 convolution of this stride reads."""
    return features[:, :, ::stride, ::stride]
