"""Once-for-all's MobileNetV3 supernets: Cai et al. 2020 (arXiv 1908.09791).

Public files say ``mobile_inverted_conv`` where the code now says ``conv``, and nest elastic layers once more
(``conv.conv``, ``bn.bn``, ``linear.linear``) than static ones; both ways are read.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.weights.layout import NORM_TENSORS, Layout, Origin

ORIGIN = Origin(
    name="ofa_mbv3",
    preprocessing=Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), interpolation="bilinear"),
    licence="MIT (MIT HAN Lab's once-for-all)",
)


def matches(names: Collection[str]) -> bool:
    """Whether a file's tensors have these names."""
    return any(name.endswith("5to3_matrix") for name in names) and any("feature_mix_layer" in name for name in names)


def layout(table: MBConvTable, names: Collection[str]) -> Layout:
    """Where this layout keeps the tensors of the table's supernet."""
    found = Layout()
    _conv_norm(found, names, "body.first_conv", "first_conv")
    for number, plan in enumerate(table.max_blocks()):
        block, source = f"body.stages.{plan.stage_index}.{plan.block_index}", f"blocks.{number}"
        inside = next(
            (f"{source}.{word}" for word in ("mobile_inverted_conv", "conv") if _any(names, source, word)), ""
        )
        if plan.expand:
            _conv_norm(found, names, f"{block}.expand", f"{inside}.inverted_bottleneck")
        _conv_norm(found, names, f"{block}.depthwise", f"{inside}.depth_conv")
        sizes = table.stages[plan.stage_index].kernel_size
        for smaller, larger in pairwise(sizes):
            target = f"{block}.depthwise.conv.kernel_transforms.{smaller}"
            found.sources[target] = f"{inside}.depth_conv.conv.{larger}to{smaller}_matrix"
        if plan.squeeze_channels:
            found.conv(f"{block}.squeeze_excite.squeeze", f"{inside}.depth_conv.se.fc.reduce", bias=True)
            found.conv(f"{block}.squeeze_excite.excite", f"{inside}.depth_conv.se.fc.expand", bias=True)
        _conv_norm(found, names, f"{block}.project", f"{inside}.point_linear")
    _conv_norm(found, names, "head.final_expand", "final_expand_layer")
    found.sources["head.feature_mix.weight"] = _nested(names, "feature_mix_layer.conv", "conv", "weight")
    for tensor in ("weight", "bias"):
        found.sources[f"head.classifier.{tensor}"] = _nested(names, "classifier.linear", "linear", tensor)
    return found


def _any(names: Collection[str], source: str, word: str) -> bool:
    return any(name.startswith(f"{source}.{word}.") for name in names)


def _conv_norm(found: Layout, names: Collection[str], target: str, source: str) -> None:
    found.sources[f"{target}.conv.weight"] = _nested(names, f"{source}.conv", "conv", "weight")
    for tensor in NORM_TENSORS:
        found.sources[f"{target}.norm.{tensor}"] = _nested(names, f"{source}.bn", "bn", tensor)


def _nested(names: Collection[str], layer: str, word: str, tensor: str) -> str:
    """The tensor's name, nested once more where the file has it so."""
    deeper = f"{layer}.{word}.{tensor}"
    return deeper if deeper in names else f"{layer}.{tensor}"
