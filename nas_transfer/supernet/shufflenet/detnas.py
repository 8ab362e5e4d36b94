"""DetNAS's ShuffleNetV2 supernet: Chen et al. 2019 (arXiv 1903.10979).

Stages are numbered from 1 and the blocks of a stage are lettered from a. Each of a block's four operations has a tree
of names, such as ``features.0.1.conv.0.interstellar1a_shufflenet_5x5_branch2a.weight``.

Such files are supernets, which the authors' code trains with channel shuffle method 1, see
`nas_transfer.supernet.shufflenet.table`. Its final networks, trained with method 2, have another layout, without the
number of the operation in their names.
"""

from __future__ import annotations

from collections.abc import Collection

from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.shufflenet.table import INTERLEAVE_HALVES, XCEPTION, BlockPlan, ShuffleNetTable
from nas_transfer.supernet.weights.layout import Layout
from nas_transfer.supernet.weights.origin import WeightsOrigin

OPERATION_NAMES = ("shufflenet_3x3", "shufflenet_5x5", "shufflenet_7x7", "xception_3x3")
ORIGIN = WeightsOrigin(
    name="detnas",
    paper="1903.10979",
    url="https://github.com/megvii-model/DetNAS",
    files=("COCO_FPN_300M_supernet.pkl",),
    licence="MIT (Megvii's DetNAS, 2019), trained on ImageNet, whose images are for research",
    preprocessing=Preprocessing((0, 0, 0), (1, 1, 1), channel_order="bgr", interpolation="bilinear"),
    command="supernet=detnas_300m weights=FILE weights_format=detnas",
    table_fields={"channel_shuffle_method": INTERLEAVE_HALVES},
)


def matches(names: Collection[str]) -> bool:
    """Whether the tensors of a file with these names have this layout."""
    return any(".interstellar" in name for name in names)


def layout(table: ShuffleNetTable, names: Collection[str]) -> Layout:
    """Map the tensors of the table's supernet to those of a file that has these names."""
    mapping = Layout()
    mapping.conv_norm("body.first_conv", "first_conv.conv", "first_conv.bn", bias=True)
    prefixes = [
        f"{stage}{chr(ord('a') + block)}"
        for stage, repeats in enumerate(table.repeats, start=1)
        for block in range(repeats)
    ]
    for number, (prefix, position) in enumerate(zip(prefixes, table.positions, strict=True)):
        for operation, name in enumerate(OPERATION_NAMES):
            plan = BlockPlan(operation, *position)
            target, source = f"body.blocks.{number}.{operation}", f"features.{number}.{operation}"
            _main_branch(mapping, plan, f"{target}.main", f"{source}.conv", f"{prefix}_{name}")
            if plan.projection:
                conv, norm = f"{source}.proj_conv.interstellar{prefix}_proj", f"{source}.proj_conv.bn{prefix}_proj"
                mapping.conv_norm(f"{target}.projection.0", f"{conv}_s", f"{conv}_s_bn")
                mapping.conv_norm(f"{target}.projection.1", conv, norm)
    mapping.conv_norm("head.last_conv", "last_conv.conv", "last_conv.bn", bias=True)
    mapping.conv("head.classifier", "fc.fc", bias=True)
    return mapping


def _main_branch(mapping: Layout, plan: BlockPlan, target: str, source: str, name: str) -> None:
    """Xception: three pairs of a depthwise and a 1x1 convolution; else 1x1, then one such pair."""
    layer = 0
    for number, letter in enumerate("abc" if plan.operation == XCEPTION else "ab"):
        conv, norm = (
            f"{source}.{number}.interstellar{name}_branch2{letter}",
            f"{source}.{number}.bn{name}_branch2{letter}",
        )
        if plan.operation == XCEPTION or number > 0:
            mapping.conv_norm(f"{target}.{layer}", f"{conv}_s", f"{conv}_s_bn")
            layer += 1
        mapping.conv_norm(f"{target}.{layer}", conv, norm)
        layer += 1
