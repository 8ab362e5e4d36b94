"""Public checkpoints made of random tensors, and plain networks that read them: written from the published layouts.

Nothing here uses the package: shapes come from the published tables, and every network is a function of its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Act = Callable[[Tensor], Tensor]


class Random:
    """Fills a state with random tensors that keep a deep network's values near 1."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.state: State = {}

    def tensor(self, name: str, *shape: int) -> None:
        fan = max(1, int(torch.tensor(shape[1:]).prod()))
        self.state[name] = torch.randn(shape, generator=self.generator) * (1 / fan) ** 0.5

    def vector(self, name: str, size: int) -> None:
        self.state[name] = torch.rand(size, generator=self.generator) - 0.5

    def norm(self, name: str, channels: int) -> None:
        self.state[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=self.generator)
        self.vector(f"{name}.bias", channels)
        self.statistics(name, channels)

    def statistics(self, name: str, channels: int) -> None:
        self.vector(f"{name}.running_mean", channels)
        self.state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=self.generator)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def norm(state: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    c = x.shape[1]
    mean, var, weight, bias = (state[f"{name}.{key}"][:c] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)


def divisible(value: float) -> int:
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def centre(kernel: Tensor, size: int) -> Tensor:
    start = (kernel.shape[-1] - size) // 2
    return kernel[..., start : start + size, start : start + size]


def squeeze_excite(state: Mapping[str, Tensor], name: str, x: Tensor, keys: tuple[str, str]) -> Tensor:
    mid = x.shape[1]
    squeezed = divisible(mid // 4)
    first, second = (f"{name}.{key}" for key in keys)
    y = x.mean((2, 3), keepdim=True)
    y = F.conv2d(y, state[f"{first}.weight"][:squeezed, :mid], state[f"{first}.bias"][:squeezed]).relu()
    y = F.conv2d(y, state[f"{second}.weight"][:mid, :squeezed], state[f"{second}.bias"][:mid])
    return x * (F.relu6(y + 3) / 6)


# EfficientNet-Lite: stage repeats, kernel, stride, expansion, width of version 0

LITE0 = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
         (1, 3, 1, 6, 320)]  # fmt: skip


def lite0_state(num_classes: int = 1000) -> State:
    make = Random()
    make.tensor("_conv_stem.weight", 32, 3, 3, 3)
    make.norm("_bn0", 32)
    number, width = 0, 32
    for repeats, kernel, _, expand, out in LITE0:
        for _ in range(repeats):
            block, mid = f"_blocks.{number}", width * expand
            if expand > 1:
                make.tensor(f"{block}._expand_conv.weight", mid, width, 1, 1)
                make.norm(f"{block}._bn0", mid)
            make.tensor(f"{block}._depthwise_conv.weight", mid, 1, kernel, kernel)
            make.norm(f"{block}._bn1", mid)
            make.tensor(f"{block}._project_conv.weight", out, mid, 1, 1)
            make.norm(f"{block}._bn2", out)
            number, width = number + 1, out
    make.tensor("_conv_head.weight", 1280, 320, 1, 1)
    make.norm("_bn1", 1280)
    make.tensor("_fc.weight", num_classes, 1280)
    make.vector("_fc.bias", num_classes)
    return make.state


def same_conv(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """TensorFlow's "same": what is missing to cover ceil(n / stride) windows, the larger half behind."""
    kernel = weight.shape[-1]
    height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
    x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
    return F.conv2d(x, weight, None, stride, 0, 1, groups)


def lite0_forward(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    eps = 1e-3
    x = F.relu6(norm(state, "_bn0", same_conv(images, state["_conv_stem.weight"], 2), eps))
    number = 0
    for repeats, _, stride, expand, _ in LITE0:
        for repeat in range(repeats):
            block, before = f"_blocks.{number}", x
            if expand > 1:
                x = F.relu6(norm(state, f"{block}._bn0", F.conv2d(x, state[f"{block}._expand_conv.weight"]), eps))
            own = 1 if repeat else stride
            x = same_conv(x, state[f"{block}._depthwise_conv.weight"], own, x.shape[1])
            x = F.relu6(norm(state, f"{block}._bn1", x, eps))
            x = norm(state, f"{block}._bn2", F.conv2d(x, state[f"{block}._project_conv.weight"]), eps)
            x = x + before if own == 1 and x.shape == before.shape else x
            number += 1
    x = F.relu6(norm(state, "_bn1", F.conv2d(x, state["_conv_head.weight"]), eps)).mean((2, 3))
    return F.linear(x, state["_fc.weight"], state["_fc.bias"])


# AttentiveNAS: largest width, depth and expansion, stride, squeeze-and-excitation of every stage

ATTENTIVE = [(24, 2, 1, 1, False), (32, 5, 6, 2, False), (40, 6, 6, 2, True), (72, 6, 6, 2, False),
             (128, 8, 6, 1, True), (216, 8, 6, 2, True), (224, 2, 6, 1, True)]  # fmt: skip


def attentivenas_state() -> State:
    make = Random()

    def elastic_norm(name: str, channels: int) -> None:
        make.norm(f"{name}.bn.bn", channels)
        for index in (0, 1):
            make.statistics(f"{name}.bn.bn_tracking.{index}", channels)

    make.tensor("first_conv.conv.conv.weight", 24, 3, 3, 3)
    elastic_norm("first_conv", 24)
    number, width = 0, 24
    for out, depth, expand, _, se in ATTENTIVE:
        for _ in range(depth):
            block, mid = f"blocks.{number}.mobile_inverted_conv", round(width * expand)
            if expand > 1:
                make.tensor(f"{block}.inverted_bottleneck.conv.conv.weight", mid, width, 1, 1)
                elastic_norm(f"{block}.inverted_bottleneck", mid)
            make.tensor(f"{block}.depth_conv.conv.conv.weight", mid, 1, 5, 5)
            elastic_norm(f"{block}.depth_conv", mid)
            if se:
                squeezed = divisible(mid // 4)
                for key, shape in (("reduce", (squeezed, mid)), ("expand", (mid, squeezed))):
                    make.tensor(f"{block}.depth_conv.se.fc.{key}.weight", *shape, 1, 1)
                    make.vector(f"{block}.depth_conv.se.fc.{key}.bias", shape[0])
            make.tensor(f"{block}.point_linear.conv.conv.weight", out, mid, 1, 1)
            elastic_norm(f"{block}.point_linear", out)
            make.tensor(f"blocks.{number}.shortcut.conv.conv.weight", out, width, 1, 1)
            number, width = number + 1, out
    make.tensor("last_conv.final_expand_layer.conv.conv.weight", 1344, 224, 1, 1)
    elastic_norm("last_conv.final_expand_layer", 1344)
    make.tensor("last_conv.feature_mix_layer.conv.conv.weight", 1984, 1344, 1, 1)
    make.tensor("classifier.linear.linear.weight", 1000, 1984)
    make.vector("classifier.linear.linear.bias", 1000)
    return make.state


def attentivenas_forward(
    state: Mapping[str, Tensor], images: Tensor, width: Sequence[int], depth: Sequence[int], kernel: Sequence[int],
    expand: Sequence[int],
) -> Tensor:  # fmt: skip
    eps = 1e-5

    def conv(x: Tensor, name: str, out: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.conv.conv.weight"][:out, : x.shape[1]])

    x = F.conv2d(images, state["first_conv.conv.conv.weight"][: width[0]], None, 2, 1)
    x = F.silu(norm(state, "first_conv.bn.bn", x, eps))
    first = 0
    for stage, (_, largest_depth, _, stride, se) in enumerate(ATTENTIVE):
        for number in range(depth[stage]):
            block, before = f"blocks.{first + number}.mobile_inverted_conv", x
            mid, out = divisible(round(x.shape[1] * expand[stage])), width[stage + 1]
            if stage > 0:
                x = conv(x, f"{block}.inverted_bottleneck", mid)
                x = F.silu(norm(state, f"{block}.inverted_bottleneck.bn.bn", x, eps))
            weight = centre(state[f"{block}.depth_conv.conv.conv.weight"][:mid], kernel[stage])
            own = 1 if number else stride
            x = F.conv2d(x, weight, None, own, kernel[stage] // 2, 1, mid)
            x = F.silu(norm(state, f"{block}.depth_conv.bn.bn", x, eps))
            if se:
                x = squeeze_excite(state, f"{block}.depth_conv.se.fc", x, ("reduce", "expand"))
            x = norm(state, f"{block}.point_linear.bn.bn", conv(x, f"{block}.point_linear", out), eps)
            shortcut = F.avg_pool2d(before, own, padding=before.shape[-1] % own) if own > 1 else before
            if before.shape[1] != out:
                shortcut = conv(shortcut, f"blocks.{first + number}.shortcut", out)
            x = x + shortcut
        first += largest_depth
    head = "last_conv.final_expand_layer"
    x = F.silu(norm(state, f"{head}.bn.bn", conv(x, head, divisible(x.shape[1] * 6)), eps)).mean((2, 3), keepdim=True)
    x = F.silu(conv(x, "last_conv.feature_mix_layer", width[-1])).flatten(1)
    return F.linear(x, state["classifier.linear.linear.weight"][:, : width[-1]], state["classifier.linear.linear.bias"])


# Once-for-all MobileNetV3: width of the first two blocks and of the stages, stride, activation, squeeze-and-excitation

OFA_WIDTHS = {"w10": (16, 24, 40, 80, 112, 160, 960, 1280), "w12": (24, 32, 48, 96, 136, 192, 1152, 1536)}
OFA_STAGES = [(2, F.relu, False), (2, F.relu, True), (2, F.hardswish, False), (1, F.hardswish, True),
              (2, F.hardswish, True)]  # fmt: skip


def ofa_state(width: str, *, public_names: bool) -> State:
    """As the public files name the tensors, or as the code's own state_dict does."""
    make = Random()
    first, *outs, expanded, mixed = OFA_WIDTHS[width]
    word = "mobile_inverted_conv" if public_names else "conv"
    make.tensor("first_conv.conv.weight", first, 3, 3, 3)
    make.norm("first_conv.bn", first)
    for part, shape in (("depth_conv", (first, 1, 3, 3)), ("point_linear", (first, first, 1, 1))):
        make.tensor(f"blocks.0.{word}.{part}.conv.weight", *shape)
        make.norm(f"blocks.0.{word}.{part}.bn", first)
    number, channels = 1, first
    for out, (_, _, se) in zip(outs, OFA_STAGES, strict=True):
        for _ in range(4):
            block, mid = f"blocks.{number}.{word}", channels * 6
            make.tensor(f"{block}.inverted_bottleneck.conv.conv.weight", mid, channels, 1, 1)
            make.norm(f"{block}.inverted_bottleneck.bn.bn", mid)
            make.tensor(f"{block}.depth_conv.conv.conv.weight", mid, 1, 7, 7)
            make.tensor(f"{block}.depth_conv.conv.5to3_matrix", 9, 9)
            make.tensor(f"{block}.depth_conv.conv.7to5_matrix", 25, 25)
            make.norm(f"{block}.depth_conv.bn.bn", mid)
            if se:
                squeezed = divisible(mid // 4)
                for key, shape in (("reduce", (squeezed, mid)), ("expand", (mid, squeezed))):
                    make.tensor(f"{block}.depth_conv.se.fc.{key}.weight", *shape, 1, 1)
                    make.vector(f"{block}.depth_conv.se.fc.{key}.bias", shape[0])
            make.tensor(f"{block}.point_linear.conv.conv.weight", out, mid, 1, 1)
            make.norm(f"{block}.point_linear.bn.bn", out)
            number, channels = number + 1, out
    make.tensor("final_expand_layer.conv.weight", expanded, channels, 1, 1)
    make.norm("final_expand_layer.bn", expanded)
    make.tensor("feature_mix_layer.conv.weight", mixed, expanded, 1, 1)
    linear = "classifier.linear.linear" if public_names else "classifier.linear"
    make.tensor(f"{linear}.weight", 1000, mixed)
    make.vector(f"{linear}.bias", 1000)
    return make.state


def ofa_forward(
    state: Mapping[str, Tensor], images: Tensor, kernel: Sequence[int], expand: Sequence[int], depth: Sequence[int]
) -> Tensor:
    """`kernel` and `expand` of the 20 blocks, `depth` of the five stages; tensors named as in public files."""
    eps = 1e-5
    x = F.conv2d(images, state["first_conv.conv.weight"], None, 2, 1)
    x = F.hardswish(norm(state, "first_conv.bn", x, eps))
    block = "blocks.0.mobile_inverted_conv"
    y = F.conv2d(x, state[f"{block}.depth_conv.conv.weight"], None, 1, 1, 1, x.shape[1])
    y = norm(state, f"{block}.depth_conv.bn", y, eps).relu()
    x = x + norm(state, f"{block}.point_linear.bn", F.conv2d(y, state[f"{block}.point_linear.conv.weight"]), eps)
    for stage, (stride, act, se) in enumerate(OFA_STAGES):
        for place in range(depth[stage]):
            index = 4 * stage + place
            block, before = f"blocks.{index + 1}.mobile_inverted_conv", x
            mid = divisible(round(x.shape[1] * expand[index]))
            x = F.conv2d(x, state[f"{block}.inverted_bottleneck.conv.conv.weight"][:mid])
            x = act(norm(state, f"{block}.inverted_bottleneck.bn.bn", x, eps))
            weights = state[f"{block}.depth_conv.conv.conv.weight"][:mid]
            for larger, smaller in pairwise((7, 5, 3)):
                if kernel[index] < larger:
                    matrix = state[f"{block}.depth_conv.conv.{larger}to{smaller}_matrix"]
                    flat = centre(weights, smaller).reshape(mid, -1)
                    weights = (flat @ matrix.T).reshape(mid, 1, smaller, smaller)
            own = 1 if place else stride
            x = F.conv2d(x, weights, None, own, kernel[index] // 2, 1, mid)
            x = act(norm(state, f"{block}.depth_conv.bn.bn", x, eps))
            if se:
                x = squeeze_excite(state, f"{block}.depth_conv.se.fc", x, ("reduce", "expand"))
            x = F.conv2d(x, state[f"{block}.point_linear.conv.conv.weight"][:, :mid])
            x = norm(state, f"{block}.point_linear.bn.bn", x, eps)
            x = x + before if own == 1 and x.shape == before.shape else x
    x = F.hardswish(norm(state, "final_expand_layer.bn", F.conv2d(x, state["final_expand_layer.conv.weight"]), eps))
    x = F.hardswish(F.conv2d(x.mean((2, 3), keepdim=True), state["feature_mix_layer.conv.weight"])).flatten(1)
    return F.linear(x, state["classifier.linear.linear.weight"], state["classifier.linear.linear.bias"])


# DetNAS: repeats and width of the stages, 300M and our nano; `detnas_modules` computes with such tensors

DETNAS_STAGES = [(4, 64), (4, 160), (8, 320), (4, 640)]
DETNAS_NANO_STAGES = [(2, 32), (2, 64), (4, 128), (2, 192)]
DETNAS_OPS = ["shufflenet_3x3", "shufflenet_5x5", "shufflenet_7x7", "xception_3x3"]
DETNAS_KERNELS = [3, 5, 7, 3]


def detnas_state(stages: Sequence[tuple[int, int]] = tuple(DETNAS_STAGES), last: int = 1024) -> State:
    make = Random()

    def separable(place: str, name: str, channels: int, out: int, kernel: int) -> None:
        make.tensor(f"{place}.interstellar{name}_s.weight", channels, 1, kernel, kernel)
        make.norm(f"{place}.interstellar{name}_s_bn", channels)
        make.tensor(f"{place}.interstellar{name}.weight", out, channels, 1, 1)
        make.norm(f"{place}.bn{name}", out)

    make.tensor("first_conv.conv.weight", 16, 3, 3, 3)
    make.vector("first_conv.conv.bias", 16)
    make.norm("first_conv.bn", 16)
    number, channels = 0, 16
    for stage, (repeats, out) in enumerate(stages, start=1):
        for repeat in range(repeats):
            inside = channels if repeat == 0 else channels // 2
            mid, outside = out // 2, out - inside
            for op, (op_name, kernel) in enumerate(zip(DETNAS_OPS, DETNAS_KERNELS, strict=True)):
                letter = f"{stage}{'abcdefgh'[repeat]}"
                block, name = f"features.{number}.{op}", f"{letter}_{op_name}_branch2"
                if op < 3:
                    make.tensor(f"{block}.conv.0.interstellar{name}a.weight", mid, inside, 1, 1)
                    make.norm(f"{block}.conv.0.bn{name}a", mid)
                    separable(f"{block}.conv.1", f"{name}b", mid, outside, kernel)
                else:
                    for place, (before, after) in enumerate(pairwise((inside, mid, mid, outside))):
                        separable(f"{block}.conv.{place}", f"{name}{'abc'[place]}", before, after, 3)
                if repeat == 0:
                    separable(f"{block}.proj_conv", f"{letter}_proj", channels, channels, kernel)
            number, channels = number + 1, out
    make.tensor("last_conv.conv.weight", last, channels, 1, 1)
    make.vector("last_conv.conv.bias", last)
    make.norm("last_conv.bn", last)
    make.tensor("fc.fc.weight", 1000, last)
    make.vector("fc.fc.bias", 1000)
    return make.state
