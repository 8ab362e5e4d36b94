"""AttentiveNAS's supernet, which AlphaNet's files share: Wang et al. 2021 (arXiv 2011.09011, 2102.07954).

Every key has the prefix ``module.``, which reading removes. The files hold a shortcut convolution for every block, used
only where the channel counts can differ, and a second set of BatchNorm statistics that nothing reads. Their statistics
are meaningless (momentum 0): every subnet is recalibrated.
"""

from __future__ import annotations

from collections.abc import Collection

from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.weights.layout import Layout, Origin

PREPROCESSING = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), interpolation="bicubic")
ORIGIN = Origin("attentivenas", PREPROCESSING, "CC-BY-NC-4.0: not for commercial use (Meta's AttentiveNAS)")
ALPHANET = Origin("alphanet", PREPROCESSING, "CC-BY-NC-4.0: not for commercial use (Meta's AlphaNet)")
"""The same layout with other values; the names alone do not tell the two apart."""

TRACKING = ".bn.bn_tracking."


def matches(names: Collection[str]) -> bool:
    """Whether a file's tensors have these names."""
    return "last_conv.final_expand_layer.conv.conv.weight" in names and "first_conv.conv.conv.weight" in names


def layout(table: MBConvTable, names: Collection[str]) -> Layout:
    """Where this layout keeps the tensors of the table's supernet."""
    found = Layout()
    _conv_norm(found, "body.first_conv", "first_conv")
    for number, plan in enumerate(table.max_blocks()):
        block, source = f"body.stages.{plan.stage_index}.{plan.block_index}", f"blocks.{number}"
        inside = f"{source}.mobile_inverted_conv"
        if plan.expand:
            _conv_norm(found, f"{block}.expand", f"{inside}.inverted_bottleneck")
        _conv_norm(found, f"{block}.depthwise", f"{inside}.depth_conv")
        if plan.squeeze_channels:
            found.conv(f"{block}.squeeze_excite.squeeze", f"{inside}.depth_conv.se.fc.reduce", bias=True)
            found.conv(f"{block}.squeeze_excite.excite", f"{inside}.depth_conv.se.fc.expand", bias=True)
        _conv_norm(found, f"{block}.project", f"{inside}.point_linear")
        shortcut = f"{source}.shortcut.conv.conv"
        if plan.block_index == 0:
            found.conv(f"{block}.shortcut", shortcut)
        else:
            found.ignored[f"{shortcut}.weight"] = "a shortcut convolution where the channel counts never differ"
    _conv_norm(found, "head.final_expand", "last_conv.final_expand_layer")
    found.conv("head.feature_mix", "last_conv.feature_mix_layer.conv.conv")
    found.conv("head.classifier", "classifier.linear.linear", bias=True)
    reason = "a second set of statistics that the network never reads"
    found.ignored |= {name: reason for name in names if TRACKING in name}
    return found


def _conv_norm(found: Layout, target: str, source: str) -> None:
    found.conv_norm(target, f"{source}.conv.conv", f"{source}.bn.bn")
