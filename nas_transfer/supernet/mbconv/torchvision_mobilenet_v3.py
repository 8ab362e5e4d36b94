"""torchvision's MobileNetV3-Large: one net, ``features.N.block.M`` names."""

from __future__ import annotations

from collections.abc import Collection

from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.weights.layout import Layout, torchvision_origin

ORIGIN = torchvision_origin("torchvision_mobilenet_v3")


def matches(names: Collection[str]) -> bool:
    """Whether a file's tensors have these names."""
    return "features.1.block.0.0.weight" in names and "classifier.3.weight" in names


def layout(table: MBConvTable, names: Collection[str]) -> Layout:
    """Where this layout keeps the tensors of the table's supernet."""
    found = Layout()
    found.conv_norm("body.first_conv", "features.0.0", "features.0.1")
    blocks = table.max_blocks()
    for number, plan in enumerate(blocks, start=1):
        block = f"body.stages.{plan.stage_index}.{plan.block_index}"
        parts = ["expand"] * plan.expand + ["depthwise"]
        parts += ["squeeze_excite"] * bool(plan.squeeze_channels) + ["project"]
        for place, part in enumerate(parts):
            source = f"features.{number}.block.{place}"
            if part == "squeeze_excite":
                found.conv(f"{block}.squeeze_excite.squeeze", f"{source}.fc1", bias=True)
                found.conv(f"{block}.squeeze_excite.excite", f"{source}.fc2", bias=True)
            else:
                found.conv_norm(f"{block}.{part}", f"{source}.0", f"{source}.1")
    last = len(blocks) + 1
    found.conv_norm("head.final_expand", f"features.{last}.0", f"features.{last}.1")
    found.conv("head.feature_mix", "classifier.0", bias=True)
    found.conv("head.classifier", "classifier.3", bias=True)
    return found
