"""torchvision's ResNets, whose tensors are named ``conv1``, ``layer<stage>.<block>.conv<n>`` and ``fc``."""

from __future__ import annotations

from collections.abc import Collection

from nas_transfer.supernet.resnet.table import ResNetTable
from nas_transfer.supernet.weights.layout import Layout
from nas_transfer.supernet.weights.origin import torchvision_origin

ORIGIN = torchvision_origin(
    "torchvision_resnet",
    paper="1512.03385",
    files=("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"),
    supernet="resnet50",
)


def matches(names: Collection[str]) -> bool:
    """Whether the tensors of a file with these names have this layout."""
    return "layer1.0.conv3.weight" in names and "fc.weight" in names


def layout(table: ResNetTable, names: Collection[str]) -> Layout:
    """Map the tensors of the table's net, whose body has torchvision's names."""
    mapping = Layout()
    mapping.conv("body.conv1", "conv1")
    mapping.norm("body.bn1", "bn1")
    number = 0
    for stage, count in enumerate(table.blocks, start=1):
        for index in range(count):
            block = f"layer{stage}.{index}"
            for layer in (1, 2, 3):
                mapping.conv(f"body.{block}.conv{layer}", f"{block}.conv{layer}")
                mapping.norm(f"body.{block}.bn{layer}", f"{block}.bn{layer}")
            if table.positions[number].projects:
                mapping.conv(f"body.{block}.downsample.0", f"{block}.downsample.0")
                mapping.norm(f"body.{block}.downsample.1", f"{block}.downsample.1")
            number += 1
    mapping.conv("head.classifier", "fc", bias=True)
    return mapping
