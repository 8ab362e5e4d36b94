"""torchvision's ResNets: ``conv1``, ``layer<stage>.<block>.conv<n>``, ``fc``."""

from __future__ import annotations

from collections.abc import Collection

from nas_transfer.supernet.resnet.table import ResNetTable
from nas_transfer.supernet.weights.layout import Layout, torchvision_origin

ORIGIN = torchvision_origin("torchvision_resnet")


def matches(names: Collection[str]) -> bool:
    """Whether a file's tensors have these names."""
    return "layer1.0.conv3.weight" in names and "fc.weight" in names


def layout(table: ResNetTable, names: Collection[str]) -> Layout:
    """Where this layout keeps the tensors of the table's net: under the body's own names."""
    found = Layout()
    found.conv("body.conv1", "conv1")
    found.norm("body.bn1", "bn1")
    number = 0
    for stage, count in enumerate(table.blocks, start=1):
        for place in range(count):
            block = f"layer{stage}.{place}"
            for layer in (1, 2, 3):
                found.conv(f"body.{block}.conv{layer}", f"{block}.conv{layer}")
                found.norm(f"body.{block}.bn{layer}", f"{block}.bn{layer}")
            if table.positions[number].projects:
                found.conv(f"body.{block}.downsample.0", f"{block}.downsample.0")
                found.norm(f"body.{block}.downsample.1", f"{block}.downsample.1")
            number += 1
    found.conv("head.classifier", "fc", bias=True)
    return found
