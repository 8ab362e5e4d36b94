"""DetNAS's ShuffleNetV2 supernet: Chen et al. 2019 (arXiv 1903.10979).

Stages are numbered from 1 and blocks in them lettered from a; each of a block's four operations is a small tree of its
own: ``features.0.1.conv.0.interstellar1a_shufflenet_5x5_branch2a.weight``.
"""

from __future__ import annotations

from collections.abc import Collection

from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.shufflenet.table import XCEPTION, BlockPlan, ShuffleNetTable
from nas_transfer.supernet.weights.layout import Layout, Origin

OPERATION_NAMES = ("shufflenet_3x3", "shufflenet_5x5", "shufflenet_7x7", "xception_3x3")
ORIGIN = Origin(
    name="detnas",
    preprocessing=Preprocessing((0, 0, 0), (1, 1, 1), channel_order="bgr", interpolation="bilinear"),
    licence="none stated (Megvii's DetNAS): ask its authors",
)


def matches(names: Collection[str]) -> bool:
    """Whether a file's tensors have these names."""
    return any(".interstellar" in name for name in names)


def layout(table: ShuffleNetTable, names: Collection[str]) -> Layout:
    """Where this layout keeps the tensors of the table's supernet."""
    found = Layout()
    found.conv_norm("body.first_conv", "first_conv.conv", "first_conv.bn", bias=True)
    prefixes = [
        f"{stage}{chr(ord('a') + block)}"
        for stage, repeats in enumerate(table.repeats, start=1)
        for block in range(repeats)
    ]
    for number, (prefix, position) in enumerate(zip(prefixes, table.positions, strict=True)):
        for operation, name in enumerate(OPERATION_NAMES):
            plan = BlockPlan(operation, *position)
            target, source = f"body.blocks.{number}.{operation}", f"features.{number}.{operation}"
            _main_branch(found, plan, f"{target}.main", f"{source}.conv", f"{prefix}_{name}")
            if plan.projection:
                conv, norm = f"{source}.proj_conv.interstellar{prefix}_proj", f"{source}.proj_conv.bn{prefix}_proj"
                found.conv_norm(f"{target}.projection.0", f"{conv}_s", f"{conv}_s_bn")
                found.conv_norm(f"{target}.projection.1", conv, norm)
    found.conv_norm("head.last_conv", "last_conv.conv", "last_conv.bn", bias=True)
    found.conv("head.classifier", "fc.fc", bias=True)
    return found


def _main_branch(found: Layout, plan: BlockPlan, target: str, source: str, name: str) -> None:
    """Xception: three pairs of a depthwise and a 1x1 convolution; else 1x1, then one such pair."""
    place = 0
    for number, letter in enumerate("abc" if plan.operation == XCEPTION else "ab"):
        conv, norm = (
            f"{source}.{number}.interstellar{name}_branch2{letter}",
            f"{source}.{number}.bn{name}_branch2{letter}",
        )
        if plan.operation == XCEPTION or number > 0:
            found.conv_norm(f"{target}.{place}", f"{conv}_s", f"{conv}_s_bn")
            place += 1
        found.conv_norm(f"{target}.{place}", conv, norm)
        place += 1
