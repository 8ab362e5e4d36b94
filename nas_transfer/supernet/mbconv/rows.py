"""The rows of an MBConv supernet's table, and the rounding of channel counts that its module and its costs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.fields import as_tuple, check_positive

ACTIVATIONS = ("silu", "relu", "relu6", "hardswish")
CHANNEL_DIVISOR = 8
SQUEEZE_DIVISOR = 4


def make_divisible(value: float, divisor: int = CHANNEL_DIVISOR) -> int:
    """Round a channel count to a multiple of `divisor`, at least `divisor`, and never below 0.9 of `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def expanded_channels(in_channels: int, expand_ratio: float) -> int:
    """Channels between the expansion and the projection of a block."""
    return make_divisible(round(in_channels * expand_ratio))


def squeeze_channels(mid_channels: int) -> int:
    """Channels between the two layers of squeeze-and-excitation."""
    return make_divisible(mid_channels // SQUEEZE_DIVISOR)


@dataclass(frozen=True)
class FirstConv:
    """The stem: one convolution from RGB with BatchNorm and an activation; `width` lists its choices."""

    width: tuple[int, ...]
    kernel_size: int
    stride: int
    activation: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", as_tuple(self.width, "first_conv.width"))
        _check_widths("first_conv", self.width)
        _check_kernel_sizes("first_conv", (self.kernel_size,))
        _check_stride("first_conv", self.stride)
        _check_activation("first_conv", self.activation)


@dataclass(frozen=True)
class StageTable:
    """One stage: all its blocks share width, and, unless `per_block`, kernel size and expand ratio.

    Args:
        name: names the stage's genes (``width.<name>``, ...) and its modules; no dots.
        width: output channel choices, multiples of 8.
        depth: choices of how many blocks are active; an arch of depth d uses the first d.
        kernel_size: odd depthwise kernel choices; a smaller one is the centre crop of the largest, or a learned map
            of it (`MBConvTable.kernel_transform`).
        expand_ratio: choices of mid / in channels; ``(1,)`` alone means that the blocks have no expansion convolution.
        stride: 1 or 2, of the first block.
        squeeze_excite: whether the blocks have squeeze-and-excitation.
        activation: one of `ACTIVATIONS`.
        per_block: whether every block has a kernel size and an expand ratio of its own (once-for-all).
        mid_channels: for a net whose blocks expand irregularly, each block's mid channels at the largest expand ratio;
            the others' follow in proportion. Null: `expand_ratio` times the block's input.

    Raises:
        ConfigError: naming the stage, the field and the value.
    """

    name: str
    width: tuple[int, ...]
    depth: tuple[int, ...]
    kernel_size: tuple[int, ...]
    expand_ratio: tuple[int, ...]
    stride: int
    squeeze_excite: bool
    activation: str
    per_block: bool = False
    mid_channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "." in self.name:
            raise ConfigError(f"expected a stage name without dots, got {self.name!r}")
        for field in ("width", "depth", "kernel_size", "expand_ratio"):
            object.__setattr__(self, field, as_tuple(getattr(self, field), f"{self.name}.{field}"))
        _check_widths(self.name, self.width)
        check_positive(f"{self.name}.depth", self.depth)
        _check_kernel_sizes(self.name, self.kernel_size)
        check_positive(f"{self.name}.expand_ratio", self.expand_ratio)
        _check_stride(self.name, self.stride)
        for field in ("squeeze_excite", "per_block"):
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(f"expected true or false for {self.name}.{field}, got {getattr(self, field)!r}")
        if self.mid_channels is not None:
            object.__setattr__(self, "mid_channels", as_tuple(self.mid_channels, f"{self.name}.mid_channels"))
            check_positive(f"{self.name}.mid_channels", self.mid_channels)
            if len(self.mid_channels) != self.depth[-1]:
                raise ConfigError(
                    f"expected {self.depth[-1]} {self.name}.mid_channels, one a block, got {list(self.mid_channels)}"
                )
        _check_activation(self.name, self.activation)

    @property
    def expands(self) -> bool:
        """Whether the stage's blocks hold an expansion convolution."""
        return self.expand_ratio != (1,)

    def block_mid_channels(self, block_index: int, in_channels: int, expand_ratio: int) -> int:
        """Channels between the expansion and the projection of a block."""
        if self.mid_channels is None:
            return expanded_channels(in_channels, expand_ratio)
        return make_divisible(round(self.mid_channels[block_index] * expand_ratio / self.expand_ratio[-1]))


@dataclass(frozen=True)
class LastConv:
    """The classifier's convolutions.

    With an `expand_ratio` (MobileNetV3's head, AttentiveNAS's "v3 head"): 1x1 to so many times the last stage's width
    with BatchNorm and activation, global pooling, then 1x1 without BatchNorm to one of the `width` choices with
    activation. Without one (EfficientNet's, BigNAS's): 1x1 to `width` with BatchNorm and activation, global pooling.

    Args:
        bias: whether the convolution after the pooling has one.
    """

    width: tuple[int, ...]
    expand_ratio: int | None
    activation: str
    bias: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", as_tuple(self.width, "last_conv.width"))
        _check_widths("last_conv", self.width)
        if self.expand_ratio is not None:
            check_positive("last_conv.expand_ratio", (self.expand_ratio,))
        _check_activation("last_conv", self.activation)

    def pooled_channels(self, last_stage_width: int, width: int) -> int:
        """Channels of the feature map that is pooled."""
        return width if self.expand_ratio is None else expanded_channels(last_stage_width, self.expand_ratio)


def _check_widths(where: str, widths: Sequence[Any]) -> None:
    check_positive(f"{where}.width", widths)
    if any(width % CHANNEL_DIVISOR for width in widths):
        raise ConfigError(f"expected multiples of {CHANNEL_DIVISOR} for {where}.width, got {list(widths)}")


def _check_kernel_sizes(where: str, kernel_sizes: Sequence[Any]) -> None:
    check_positive(f"{where}.kernel_size", kernel_sizes)
    if any(kernel_size % 2 == 0 for kernel_size in kernel_sizes):
        raise ConfigError(f"expected odd numbers for {where}.kernel_size, got {list(kernel_sizes)}")


def _check_stride(where: str, stride: Any) -> None:
    if isinstance(stride, bool) or stride not in (1, 2):
        raise ConfigError(f"expected 1 or 2 for {where}.stride, got {stride!r}")


def _check_activation(where: str, activation: Any) -> None:
    if activation not in ACTIVATIONS:
        raise ConfigError(f"expected one of {list(ACTIVATIONS)} for {where}.activation, got {activation!r}")
