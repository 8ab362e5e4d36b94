"""The rows of a ConvNeXt supernet's table: stem, stages and classification head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive
from nas_transfer.supernet.fields import as_tuple, check_positive


@dataclass(frozen=True)
class StemTable:
    """The stem, which has stride 4 and ends in a LayerNorm.

    Args:
        mid_width: None for one 4x4 convolution of stride 4, the patches of the paper. Otherwise two 3x3 convolutions of
            stride 2 (timm's overlapping stems), with this many channels between them.
        activation: whether there is an activation between the two convolutions.
    """

    mid_width: Positive | None = None
    activation: bool = False

    def __post_init__(self) -> None:
        if self.mid_width is not None:
            check_positive("stem.mid_width", (self.mid_width,))
        if not isinstance(self.activation, bool) or (self.activation and self.mid_width is None):
            raise ConfigError(
                f"supernet.stem.activation must be false, or true beside a mid_width, got {self.activation!r}"
            )


@dataclass(frozen=True)
class StageTable:
    """One stage. Its blocks share the width and, unless `per_block`, the kernel size and the expand ratio.

    Args:
        name: name of the stage, without dots; used in the names of its genes (``depth.<name>``, ...) and modules.
        width: output channels; the choices are a single one.
        depth: choices of the number of active blocks; an arch of depth d uses the first d blocks.
        kernel_size: odd choices of the depthwise kernel size; a smaller kernel is the centre crop of the largest.
        expand_ratio: choices of the hidden channels of a block's two linear layers, as a multiple of `width`; 4 in the
            paper, which calls it the ratio of the MLP.
        per_block: whether each block chooses its kernel size and expand ratio separately.

    Raises:
        ConfigError: a field is malformed; the message names the stage, the field and the value.
    """

    name: str
    width: tuple[Positive, ...]
    depth: tuple[Positive, ...]
    kernel_size: tuple[Positive, ...]
    expand_ratio: tuple[Positive, ...]
    per_block: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "." in self.name:
            raise ConfigError(f"the name of a stage in supernet.stages must be a word without dots, got {self.name!r}")
        where = f"stages[{self.name}]"
        for field in ("width", "depth", "kernel_size", "expand_ratio"):
            values = as_tuple(getattr(self, field), f"{where}.{field}")
            check_positive(f"{where}.{field}", values)
            object.__setattr__(self, field, values)
        if len(self.width) != 1:
            raise ConfigError(f"supernet.{where}.width must be a single choice, got {list(self.width)}")
        _check_odd(where, self.kernel_size)
        if not isinstance(self.per_block, bool):
            raise ConfigError(f"supernet.{where}.per_block must be true or false, got {self.per_block!r}")

    @property
    def channels(self) -> int:
        """Output channels of every block."""
        return self.width[0]


@dataclass(frozen=True)
class HeadTable:
    """The classification head: pooling, LayerNorm, and the classifier.

    Args:
        norm_first: whether the LayerNorm reads the feature map rather than the pooled features.
        hidden_width: channels of a linear layer with GELU before the classifier; None for none.
    """

    norm_first: bool = False
    hidden_width: Positive | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.norm_first, bool):
            raise ConfigError(f"supernet.head.norm_first must be true or false, got {self.norm_first!r}")
        if self.hidden_width is not None:
            check_positive("head.hidden_width", (self.hidden_width,))


PATCHES, PLAIN_HEAD = StemTable(), HeadTable()
"""Stem and head of the paper."""


def _check_odd(where: str, kernel_sizes: Sequence[int]) -> None:
    if any(kernel_size % 2 == 0 for kernel_size in kernel_sizes):
        raise ConfigError(f"supernet.{where}.kernel_size must be odd, got {list(kernel_sizes)}")
