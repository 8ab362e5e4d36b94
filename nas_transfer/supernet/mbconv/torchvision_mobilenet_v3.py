"""torchvision's MobileNetV3-Large, a single net whose tensors are named ``features.N.block.M``."""

from __future__ import annotations

from collections.abc import Collection

from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.weights.layout import Layout
from nas_transfer.supernet.weights.origin import torchvision_origin

ORIGIN = torchvision_origin(
    "torchvision_mobilenet_v3",
    paper="1905.02244",
    files=("mobilenet_v3_large-5c1a4163.pth",),
    supernet="mobilenet_v3_large",
)


def matches(names: Collection[str]) -> bool:
    """Whether the tensors of a file with these names have this layout."""
    return "features.1.block.0.0.weight" in names and "classifier.3.weight" in names


def layout(table: MBConvTable, names: Collection[str]) -> Layout:
    """Map the tensors of the table's supernet to those of a file that has these names."""
    mapping = Layout()
    mapping.conv_norm("body.first_conv", "features.0.0", "features.0.1")
    blocks = table.max_blocks()
    for number, plan in enumerate(blocks, start=1):
        block = f"body.stages.{plan.stage_index}.{plan.block_index}"
        parts = ["expand"] * plan.expand + ["depthwise"]
        parts += ["squeeze_excite"] * bool(plan.squeeze_channels) + ["project"]
        for index, part in enumerate(parts):
            source = f"features.{number}.block.{index}"
            if part == "squeeze_excite":
                mapping.conv(f"{block}.squeeze_excite.squeeze", f"{source}.fc1", bias=True)
                mapping.conv(f"{block}.squeeze_excite.excite", f"{source}.fc2", bias=True)
            else:
                mapping.conv_norm(f"{block}.{part}", f"{source}.0", f"{source}.1")
    last = len(blocks) + 1
    mapping.conv_norm("head.final_expand", f"features.{last}.0", f"features.{last}.1")
    mapping.conv("head.feature_mix", "classifier.0", bias=True)
    mapping.conv("head.classifier", "classifier.3", bias=True)
    return mapping
