"""The rows of an MBConv supernet's table, and the rounding of channel counts that networks and costs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive
from nas_transfer.supernet.fields import as_record, as_tuple, check_positive

ACTIVATIONS = ("silu", "relu", "relu6", "hardswish")
INVERTED, FUSED, PLAIN = "inverted", "fused", "plain"
KINDS = (INVERTED, FUSED, PLAIN)
CHANNEL_DIVISOR = 8
SQUEEZE_DIVISOR = 4


def make_divisible(value: float, divisor: int = CHANNEL_DIVISOR) -> int:
    """Round a channel count to a multiple of `divisor` that is at least `divisor` and at least 0.9 of `value`."""
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
    """The stem: one convolution of the image with BatchNorm and an activation.

    Args:
        width: output channel choices, multiples of 8.
        kernel_size: odd.
        stride: 1 or 2.
        activation: one of `ACTIVATIONS`.
    """

    width: tuple[Positive, ...]
    kernel_size: Positive
    stride: Positive
    activation: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", as_tuple(self.width, "first_conv.width"))
        _check_widths("first_conv", self.width)
        _check_kernel_sizes("first_conv", (self.kernel_size,))
        _check_stride("first_conv", self.stride)
        _check_activation("first_conv", self.activation)


@dataclass(frozen=True)
class BlockRow:
    """One block of a stage whose blocks differ, at its largest sizes.

    Args:
        mid_channels: channels between the expansion and the projection; those of the input without an expansion.
        kernel_size: the largest kernel size; the block has the smaller one of it and of the stage's gene.
        squeeze_channels: between the two layers of squeeze-and-excitation at all expand ratios; 0: there is none.
        expand: whether there is an expansion convolution.
    """

    mid_channels: int
    kernel_size: int
    squeeze_channels: int
    expand: bool


@dataclass(frozen=True)
class StageTable:
    """One stage. Its blocks share the width and, unless `per_block`, the kernel size and the expand ratio.

    Args:
        name: name of the stage, without dots; used in the names of its genes (``width.<name>``, ...) and modules.
        width: output channel choices, multiples of 8.
        depth: choices of the number of active blocks; an arch of depth d uses the first d blocks.
        kernel_size: odd choices of the depthwise kernel size; a smaller kernel is the centre crop of the largest, or a
            learned map of it (`MBConvTable.kernel_transform`).
        expand_ratio: choices of mid channels / in channels; ``(1,)`` means that the blocks do not expand.
        stride: stride of the first block, 1 or 2.
        squeeze_excite: whether the blocks have squeeze-and-excitation.
        activation: one of `ACTIVATIONS`.
        per_block: whether each block chooses its kernel size and expand ratio separately (once-for-all).
        mid_channels: the mid channels of each block at the largest expand ratio, for nets that expand irregularly; a
            smaller ratio reduces them proportionally. None: the expand ratio times the block's input channels.
        kind: ``inverted``: expand 1x1, depthwise, project 1x1; ``fused``: expand with the kernel, project 1x1
            (EfficientNetV2); ``plain``: one convolution with BatchNorm and activation.
        blocks: the blocks of a net whose blocks differ; they decide instead of `squeeze_excite` and `mid_channels`.

    Raises:
        ConfigError: a field is malformed; the message names the stage, the field and the value.
    """

    name: str
    width: tuple[Positive, ...]
    depth: tuple[Positive, ...]
    kernel_size: tuple[Positive, ...]
    expand_ratio: tuple[Positive, ...]
    stride: Positive
    squeeze_excite: bool
    activation: str
    per_block: bool = False
    mid_channels: tuple[int, ...] | None = None
    kind: str = INVERTED
    blocks: tuple[BlockRow, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "." in self.name:
            raise ConfigError(f"the name of a stage in supernet.stages must be a word without dots, got {self.name!r}")
        where = f"stages[{self.name}]"
        for field in ("width", "depth", "kernel_size", "expand_ratio"):
            object.__setattr__(self, field, as_tuple(getattr(self, field), f"{where}.{field}"))
        _check_widths(where, self.width)
        check_positive(f"{where}.depth", self.depth)
        _check_kernel_sizes(where, self.kernel_size)
        check_positive(f"{where}.expand_ratio", self.expand_ratio)
        _check_stride(where, self.stride)
        for field in ("squeeze_excite", "per_block"):
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(f"supernet.{where}.{field} must be true or false, got {getattr(self, field)!r}")
        if self.mid_channels is not None:
            object.__setattr__(self, "mid_channels", as_tuple(self.mid_channels, f"{where}.mid_channels"))
            check_positive(f"{where}.mid_channels", self.mid_channels)
            if len(self.mid_channels) != self.depth[-1]:
                raise ConfigError(
                    f"supernet.{where}.mid_channels must be {self.depth[-1]} values, one for each block, "
                    f"got {list(self.mid_channels)}"
                )
        _check_activation(where, self.activation)
        if self.kind not in KINDS:
            raise ConfigError(f"supernet.{where}.kind must be one of {list(KINDS)}, got {self.kind!r}")
        if self.blocks is not None:
            rows = as_tuple(self.blocks, f"{where}.blocks")
            object.__setattr__(self, "blocks", tuple(as_record(row, BlockRow, f"{where}.blocks") for row in rows))
            if len(rows) != self.depth[-1] or len(self.width) > 1:
                raise ConfigError(
                    f"supernet.{where}.blocks must be {self.depth[-1]} blocks, of a stage of one width, got {len(rows)}"
                )

    @property
    def expands(self) -> bool:
        """Whether the stage's blocks have an expansion convolution."""
        return self.expand_ratio != (1,)

    def block_expands(self, block_index: int) -> bool:
        """Whether a block has an expansion convolution."""
        return self.expands if self.blocks is None else self.blocks[block_index].expand

    def block_mid_channels(self, block_index: int, in_channels: int, expand_ratio: int) -> int:
        """Channels between the expansion and the projection of a block."""
        if self.blocks is not None:
            row = self.blocks[block_index]
            if not row.expand or expand_ratio == self.expand_ratio[-1]:
                return row.mid_channels
            return make_divisible(round(row.mid_channels * expand_ratio / self.expand_ratio[-1]))
        if self.mid_channels is None:
            return expanded_channels(in_channels, expand_ratio)
        return make_divisible(round(self.mid_channels[block_index] * expand_ratio / self.expand_ratio[-1]))

    def block_kernel_size(self, block_index: int, kernel_size: int) -> int:
        """Kernel size of a block, given the value of its gene."""
        return kernel_size if self.blocks is None else min(kernel_size, self.blocks[block_index].kernel_size)

    def block_squeeze_channels(self, block_index: int, mid_channels: int) -> int:
        """Channels of a block's squeeze-and-excitation; 0 if it has none."""
        if self.blocks is not None:
            return self.blocks[block_index].squeeze_channels
        return squeeze_channels(mid_channels) if self.squeeze_excite else 0


@dataclass(frozen=True)
class LastConv:
    """The convolutions of the classification head.

    With an `expand_ratio` (the head of MobileNetV3, AttentiveNAS's "v3 head"), a 1x1 convolution with BatchNorm and
    activation expands the last stage's width by that ratio; after global pooling, a 1x1 convolution without BatchNorm
    and with activation maps to `width`. Without one (EfficientNet, BigNAS), a 1x1 convolution with BatchNorm and
    activation maps to `width`, and global pooling follows. With `pools_first`, global pooling comes first, and then the
    1x1 convolution without BatchNorm (timm's MobileNetV3, whose body ends in the expansion).

    Args:
        width: choices of the number of features that the linear classifier reads, multiples of 8.
        expand_ratio: see above, or None.
        activation: one of `ACTIVATIONS`.
        bias: whether the convolution after the pooling has a bias.
        pools_first: see above; `expand_ratio` is None then.
    """

    width: tuple[Positive, ...]
    expand_ratio: Positive | None
    activation: str
    bias: bool = False
    pools_first: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", as_tuple(self.width, "last_conv.width"))
        _check_widths("last_conv", self.width)
        if self.expand_ratio is not None:
            check_positive("last_conv.expand_ratio", (self.expand_ratio,))
        _check_activation("last_conv", self.activation)

    def pooled_channels(self, last_stage_width: int, width: int) -> int:
        """Channels of the feature map that is pooled."""
        if self.pools_first:
            return last_stage_width
        return width if self.expand_ratio is None else expanded_channels(last_stage_width, self.expand_ratio)

    @property
    def mixes(self) -> bool:
        """Whether a convolution follows the pooling."""
        return self.pools_first or self.expand_ratio is not None


def _check_widths(where: str, widths: Sequence[int]) -> None:
    check_positive(f"{where}.width", widths)
    if any(width % CHANNEL_DIVISOR for width in widths):
        raise ConfigError(f"supernet.{where}.width must be multiples of {CHANNEL_DIVISOR}, got {list(widths)}")


def _check_kernel_sizes(where: str, kernel_sizes: Sequence[int]) -> None:
    check_positive(f"{where}.kernel_size", kernel_sizes)
    if any(kernel_size % 2 == 0 for kernel_size in kernel_sizes):
        raise ConfigError(f"supernet.{where}.kernel_size must be odd, got {list(kernel_sizes)}")


def _check_stride(where: str, stride: object) -> None:
    if isinstance(stride, bool) or stride not in (1, 2):
        raise ConfigError(f"supernet.{where}.stride must be 1 or 2, got {stride!r}")


def _check_activation(where: str, activation: object) -> None:
    if activation not in ACTIVATIONS:
        raise ConfigError(f"supernet.{where}.activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
