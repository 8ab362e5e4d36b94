"""The rows of an MBConv supernet's table, and the rounding of channel counts that its module and its costs share.

`nas_transfer.supernet.table` puts the rows together and re-exports what other modules need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nas_transfer.errors import ConfigError

ACTIVATIONS = ("silu", "relu", "hardswish")
CHANNEL_DIVISOR = 8
SQUEEZE_DIVISOR = 4
IMAGE_CHANNELS = 3


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
class Preprocessing:
    """How the supernet's weights expect an image: RGB divided by 255, minus `mean`, divided by `std`, per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for field in ("mean", "std"):
            values = as_tuple(getattr(self, field), f"preprocessing.{field}")
            if len(values) != IMAGE_CHANNELS or not all(is_number(v) and 0 <= v <= 1 for v in values):
                raise ConfigError(
                    f"expected three fractions in 0-1 for preprocessing.{field} (divide a 0-255 mean by 255), "
                    f"got {list(values)}"
                )
            object.__setattr__(self, field, tuple(float(value) for value in values))
        if min(self.std) == 0:
            raise ConfigError(f"expected preprocessing.std above 0, got {list(self.std)}")


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
    """One stage: all its blocks share width, kernel size and expand ratio.

    Args:
        name: names the stage's genes (``width.<name>``, ...) and its modules; no dots.
        width: output channel choices, multiples of 8.
        depth: choices of how many blocks are active; an arch of depth d uses the first d.
        kernel_size: odd depthwise kernel choices; a smaller one is the centre crop of the largest.
        expand_ratio: choices of mid / in channels; ``(1,)`` alone means that the blocks have no expansion convolution.
        stride: 1 or 2, of the first block.
        squeeze_excite: whether the blocks have squeeze-and-excitation.
        activation: one of `ACTIVATIONS`.

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
        if not isinstance(self.squeeze_excite, bool):
            raise ConfigError(f"expected true or false for {self.name}.squeeze_excite, got {self.squeeze_excite!r}")
        _check_activation(self.name, self.activation)

    @property
    def expands(self) -> bool:
        """Whether the stage's blocks hold an expansion convolution."""
        return self.expand_ratio != (1,)


@dataclass(frozen=True)
class LastConv:
    """The classifier's last two convolutions (AttentiveNAS's "v3 head").

    1x1 to `expand_ratio` times the last stage's width with BatchNorm and activation, global pooling, then 1x1 without
    BatchNorm or bias to one of the `width` choices with activation.
    """

    width: tuple[int, ...]
    expand_ratio: int
    activation: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", as_tuple(self.width, "last_conv.width"))
        _check_widths("last_conv", self.width)
        check_positive("last_conv.expand_ratio", (self.expand_ratio,))
        _check_activation("last_conv", self.activation)


Record = TypeVar("Record")


def as_record(value: Any, kind: type[Record], where: str) -> Record:
    """`value` as a record of `kind`, built from a mapping with exactly its fields; raises ConfigError otherwise."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a mapping with the fields of {kind.__name__} for {where}, got {value!r}")
    fields = set(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    if set(value) != fields:
        raise ConfigError(
            f"expected exactly the fields {sorted(fields)} in {where}, got {sorted(fields - set(value)) or 'none'} "
            f"missing and {sorted(set(value) - fields) or 'none'} unknown in {dict(value)}"
        )
    return kind(**value)


def as_tuple(value: Any, where: str) -> tuple[Any, ...]:
    """A list from YAML as a tuple; raises ConfigError for text or a single value."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"expected a list for {where}, got {value!r}")
    return tuple(value)


def is_number(value: Any) -> bool:
    """Whether `value` is an int or float and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_positive(where: str, values: Sequence[Any]) -> None:
    """Raise ConfigError unless `values` are one or more integers above 0."""
    if not values or not all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values):
        raise ConfigError(f"expected integers above 0 for {where}, got {list(values)}")


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
