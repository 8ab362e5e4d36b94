"""Once-for-all's MobileNetV3 supernets: Cai et al. 2020 (arXiv 1908.09791).

The public files say ``mobile_inverted_conv`` where the authors' code now says ``conv``, and their elastic layers are
nested one level deeper (``conv.conv``, ``bn.bn``, ``linear.linear``) than static ones. Both spellings are read.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.weights.layout import NORM_TENSORS, Layout
from nas_transfer.supernet.weights.origin import WeightsOrigin

ORIGIN = WeightsOrigin(
    name="ofa_mbv3",
    paper="1908.09791",
    url="https://github.com/mit-han-lab/once-for-all",
    files=("ofa_mbv3_d234_e346_k357_w1.0", "ofa_mbv3_d234_e346_k357_w1.2"),
    licence="MIT (MIT HAN Lab's once-for-all)",
    preprocessing=Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), interpolation="bilinear"),
    command="supernet=ofa_mbv3_w10 weights=FILE weights_format=ofa_mbv3",
)


def matches(names: Collection[str]) -> bool:
    """Whether the tensors of a file with these names have this layout."""
    return any(name.endswith("5to3_matrix") for name in names) and any("feature_mix_layer" in name for name in names)


def layout(table: MBConvTable, names: Collection[str]) -> Layout:
    """Map the tensors of the table's supernet to those of a file that has these names."""
    mapping = Layout()
    _conv_norm(mapping, names, "body.first_conv", "first_conv")
    for number, plan in enumerate(table.max_blocks()):
        block, source = f"body.stages.{plan.stage_index}.{plan.block_index}", f"blocks.{number}"
        inside = next(
            (f"{source}.{word}" for word in ("mobile_inverted_conv", "conv") if _any(names, source, word)), ""
        )
        if plan.expand:
            _conv_norm(mapping, names, f"{block}.expand", f"{inside}.inverted_bottleneck")
        _conv_norm(mapping, names, f"{block}.depthwise", f"{inside}.depth_conv")
        sizes = table.stages[plan.stage_index].kernel_size
        for smaller, larger in pairwise(sizes):
            target = f"{block}.depthwise.conv.kernel_transforms.{smaller}"
            mapping.sources[target] = f"{inside}.depth_conv.conv.{larger}to{smaller}_matrix"
        if plan.squeeze_channels:
            mapping.conv(f"{block}.squeeze_excite.squeeze", f"{inside}.depth_conv.se.fc.reduce", bias=True)
            mapping.conv(f"{block}.squeeze_excite.excite", f"{inside}.depth_conv.se.fc.expand", bias=True)
        _conv_norm(mapping, names, f"{block}.project", f"{inside}.point_linear")
    _conv_norm(mapping, names, "head.final_expand", "final_expand_layer")
    mapping.sources["head.feature_mix.weight"] = _nested(names, "feature_mix_layer.conv", "conv", "weight")
    for tensor in ("weight", "bias"):
        mapping.sources[f"head.classifier.{tensor}"] = _nested(names, "classifier.linear", "linear", tensor)
    return mapping


def _any(names: Collection[str], source: str, word: str) -> bool:
    return any(name.startswith(f"{source}.{word}.") for name in names)


def _conv_norm(mapping: Layout, names: Collection[str], target: str, source: str) -> None:
    mapping.sources[f"{target}.conv.weight"] = _nested(names, f"{source}.conv", "conv", "weight")
    for tensor in NORM_TENSORS:
        mapping.sources[f"{target}.norm.{tensor}"] = _nested(names, f"{source}.bn", "bn", tensor)


def _nested(names: Collection[str], layer: str, word: str, tensor: str) -> str:
    """The tensor's name, nested once more where the file has it so."""
    deeper = f"{layer}.{word}.{tensor}"
    return deeper if deeper in names else f"{layer}.{tensor}"
