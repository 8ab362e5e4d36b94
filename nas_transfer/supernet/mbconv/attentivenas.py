"""AttentiveNAS's supernet, which AlphaNet's files share: Wang et al. 2021 (arXiv 2011.09011, 2102.07954).

Every name has the prefix ``module.``, which is removed when the file is read. The files hold a shortcut convolution for
every block, used only where the channel counts can differ, and a second set of BatchNorm statistics that nothing reads.
The first set is meaningless too (it was updated with momentum 0), so every subnet is recalibrated.

AttentiveNAS recalibrates and evaluates its networks on images that were resized bilinearly (``interpolation`` in
``configs/eval_attentive_nas_models.yml``, read by ``data/data_transform.py``). AlphaNet's configuration has no such
entry, and the code's default is bicubic; AttentiveNAS's supernet was trained with this default too. The networks of
both resize the batch to their resolution by bicubic interpolation (``forward`` in
``models/attentive_nas_static_model.py``).
"""

from __future__ import annotations

from collections.abc import Collection

from nas_transfer.supernet.mbconv.table import MBConvTable
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.weights.layout import Layout
from nas_transfer.supernet.weights.origin import WeightsOrigin

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
ORIGIN = WeightsOrigin(
    name="attentivenas",
    paper="2011.09011",
    url="https://github.com/facebookresearch/AttentiveNAS",
    files=("attentive_nas_pretrained.pth.tar",),
    licence="CC-BY-NC-4.0: not for commercial use (Meta's AttentiveNAS)",
    preprocessing=Preprocessing(MEAN, STD, interpolation="bilinear", resolution_interpolation="bicubic"),
    command="supernet=bignas weights=FILE weights_format=attentivenas",
)
ALPHANET = WeightsOrigin(
    name="alphanet",
    paper="2102.07954",
    url="https://github.com/facebookresearch/AlphaNet",
    files=("alphanet_pretrained.pth.tar",),
    licence="CC-BY-NC-4.0: not for commercial use (Meta's AlphaNet)",
    preprocessing=Preprocessing(MEAN, STD, interpolation="bicubic"),
    command="supernet=bignas weights=FILE weights_format=alphanet",
)
"""The layout of AttentiveNAS with other values; the two cannot be told apart by the names of their tensors."""

TRACKING = ".bn.bn_tracking."


def matches(names: Collection[str]) -> bool:
    """Whether the tensors of a file with these names have this layout."""
    return "last_conv.final_expand_layer.conv.conv.weight" in names and "first_conv.conv.conv.weight" in names


def layout(table: MBConvTable, names: Collection[str]) -> Layout:
    """Map the tensors of the table's supernet to those of a file that has these names."""
    mapping = Layout()
    _conv_norm(mapping, "body.first_conv", "first_conv")
    for number, plan in enumerate(table.max_blocks()):
        block, source = f"body.stages.{plan.stage_index}.{plan.block_index}", f"blocks.{number}"
        inside = f"{source}.mobile_inverted_conv"
        if plan.expand:
            _conv_norm(mapping, f"{block}.expand", f"{inside}.inverted_bottleneck")
        _conv_norm(mapping, f"{block}.depthwise", f"{inside}.depth_conv")
        if plan.squeeze_channels:
            mapping.conv(f"{block}.squeeze_excite.squeeze", f"{inside}.depth_conv.se.fc.reduce", bias=True)
            mapping.conv(f"{block}.squeeze_excite.excite", f"{inside}.depth_conv.se.fc.expand", bias=True)
        _conv_norm(mapping, f"{block}.project", f"{inside}.point_linear")
        shortcut = f"{source}.shortcut.conv.conv"
        if plan.block_index == 0:
            mapping.conv(f"{block}.shortcut", shortcut)
        else:
            mapping.ignored[f"{shortcut}.weight"] = "a shortcut convolution where the channel counts never differ"
    _conv_norm(mapping, "head.final_expand", "last_conv.final_expand_layer")
    mapping.conv("head.feature_mix", "last_conv.feature_mix_layer.conv.conv")
    mapping.conv("head.classifier", "classifier.linear.linear", bias=True)
    reason = "a second set of statistics that the network never reads"
    mapping.ignored |= {name: reason for name in names if TRACKING in name}
    return mapping


def _conv_norm(mapping: Layout, target: str, source: str) -> None:
    mapping.conv_norm(target, f"{source}.conv.conv", f"{source}.bn.bn")
