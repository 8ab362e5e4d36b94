"""MBConv supernets as tables: what each stage may choose, which blocks an arch activates, and what they cost.

The table is the single truth about channel counts: the torch module in `nas_transfer.supernet.mbconv` and the costs
are both derived from its `blocks`. It is built from ``conf/supernet/*.yaml`` and needs no torch.

Reference: Wang et al., "AttentiveNAS: Improving Neural Architecture Search via Attentive Sampling", CVPR 2021
(arXiv 2011.09011), whose space AlphaNet (arXiv 2102.07954) shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from nas_transfer.errors import ConfigError
from nas_transfer.space import Arch, Gene, SearchSpace
from nas_transfer.supernet.cost import (
    Cost,
    CostTotals,
    ModuleCost,
    Size,
    block_cost,
    convolution_cost,
    linear_cost,
    strided_size,
    totals_by_group,
)
from nas_transfer.supernet.pieces import Piece
from nas_transfer.supernet.table_rows import (
    IMAGE_CHANNELS,
    FirstConv,
    LastConv,
    Preprocessing,
    StageTable,
    as_record,
    as_tuple,
    check_positive,
    expanded_channels,
    is_number,
    make_divisible,
    squeeze_channels,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "IMAGE_CHANNELS",
    "BlockPlan",
    "FirstConv",
    "LastConv",
    "MBConvTable",
    "Preprocessing",
    "StageTable",
    "SupernetTable",
    "expanded_channels",
    "make_divisible",
    "squeeze_channels",
]

TAP_STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class BlockPlan:
    """One active inverted-bottleneck block with every number that its module and its cost need.

    Args:
        stage_index: 0-based position of the stage in the table.
        block_index: 0-based position of the block in its stage.
        expand: whether an expansion convolution exists; without one, `mid_channels` equals `in_channels`.
        squeeze_channels: 0 where the block has no squeeze-and-excitation.
    """

    stage_index: int
    block_index: int
    in_channels: int
    mid_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    expand: bool
    squeeze_channels: int
    activation: str


class SupernetTable(Protocol):
    """What stages and tasks need to know of a supernet before any module is built."""

    @property
    def name(self) -> str:
        """Names the supernet in reports and its space in arch files."""

    @property
    def space(self) -> SearchSpace:
        """All archs of the supernet."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are normalised for its weights."""

    @property
    def batch_norm_eps(self) -> float:
        """Epsilon of every BatchNorm, of the heads behind the body too."""

    def feature_channels(self, arch: Arch) -> tuple[int, int, int, int]:
        """Channels of the body's feature maps at strides 4, 8, 16 and 32."""

    def body_cost(self, arch: Arch, input_size: Size) -> Cost:
        """Cost of the body for one image of `input_size` (H, W)."""

    def body_totals(self, archs: Sequence[Arch], input_sizes: Sequence[Size]) -> CostTotals:
        """`body_cost` of many archs of this space, each at its own input size (H, W)."""

    def head_keys(self, archs: Sequence[Arch]) -> npt.NDArray[np.int64]:
        """All of each arch that the costs of what follows the body depend on: (N, K)."""

    @property
    def classifier_genes(self) -> tuple[str, ...]:
        """Genes that the body does not have: only classification sees them."""

    def classifier_cost(self, arch: Arch, input_size: Size, num_classes: int) -> Cost:
        """Cost of the classification head for one image of `input_size` (H, W)."""

    def pieces(self, arch: Arch, input_size: Size) -> list[Piece]:
        """The parts of an arch's body for one image of `input_size` (H, W), in order; imports torch."""

    def build_body(self, arch: Arch | None = None) -> nn.Module:
        """The body: the supernet's (`arch` is None) or one subnet's, a plain static module; imports torch.

        It has `set_drop_path(rate)`, and the supernet's also `set_arch(arch)`.
        """

    def build_classifier(self, num_classes: int, arch: Arch | None = None) -> nn.Module:
        """The classification head: the supernet's or one subnet's; imports torch."""


@dataclass(frozen=True)
class MBConvTable:
    """A supernet of MBConv stages between a stem and a classification head (AttentiveNAS, AlphaNet).

    Hydra instantiates it from YAML with ``_convert_: all``; lists become tuples, and mappings become the dataclasses.

    Args:
        name: names the search space.
        resolutions: choices of the gene ``resolution``, in pixels; classification runs at resolution x resolution.
        first_conv: the stem, an elastic width with the gene ``width.first_conv``.
        stages: in order; each adds the genes ``width``, ``depth``, ``kernel_size`` and ``expand_ratio`` of its name.
        last_conv: the classifier's convolutions, with the gene ``width.last_conv``.
        tap_stages: the four stages whose outputs are the feature maps at strides 4, 8, 16 and 32.
        batch_norm_eps: epsilon of every BatchNorm.
        preprocessing: image normalisation.

    Raises:
        ConfigError: a field that is malformed, or taps whose strides are not 4, 8, 16 and 32.
    """

    name: str
    resolutions: tuple[int, ...]
    first_conv: FirstConv
    stages: tuple[StageTable, ...]
    last_conv: LastConv
    tap_stages: tuple[str, ...]
    batch_norm_eps: float
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"expected a name for the supernet, got {self.name!r}")
        object.__setattr__(self, "resolutions", as_tuple(self.resolutions, "resolutions"))
        check_positive("resolutions", self.resolutions)
        object.__setattr__(self, "first_conv", as_record(self.first_conv, FirstConv, "first_conv"))
        rows = as_tuple(self.stages, "stages")
        object.__setattr__(self, "stages", tuple(as_record(row, StageTable, "stages") for row in rows))
        object.__setattr__(self, "last_conv", as_record(self.last_conv, LastConv, "last_conv"))
        object.__setattr__(self, "tap_stages", as_tuple(self.tap_stages, "tap_stages"))
        object.__setattr__(self, "preprocessing", as_record(self.preprocessing, Preprocessing, "preprocessing"))
        if not is_number(self.batch_norm_eps) or self.batch_norm_eps <= 0:
            raise ConfigError(
                f"expected batch_norm_eps above 0 (YAML reads 1e-5 as text: write 1.0e-5), got {self.batch_norm_eps!r}"
            )
        if not self.stages:
            raise ConfigError(f"expected at least one stage in supernet '{self.name}', got none")
        self._check_taps()
        _ = self.space  # building the genes checks that all choices ascend and that stage names are unique

    def _check_taps(self) -> None:
        strides = self.stage_strides
        tapped = tuple(strides.get(stage) for stage in self.tap_stages)
        if tapped != TAP_STRIDES:
            raise ConfigError(
                f"expected four tap_stages at strides {list(TAP_STRIDES)}, got {list(self.tap_stages)} "
                f"in a supernet whose stages have the strides {strides}"
            )

    @cached_property
    def space(self) -> SearchSpace:
        """The genes ``resolution``, ``width.*`` (stem, stages, last_conv), then depth, kernel size and expand ratio."""
        genes = [Gene("resolution", self.resolutions), Gene("width.first_conv", self.first_conv.width)]
        genes += [Gene(f"width.{stage.name}", stage.width) for stage in self.stages]
        genes.append(Gene("width.last_conv", self.last_conv.width))
        for group in ("depth", "kernel_size", "expand_ratio"):
            genes += [Gene(f"{group}.{stage.name}", getattr(stage, group)) for stage in self.stages]
        return SearchSpace(self.name, tuple(genes))

    @cached_property
    def stage_strides(self) -> dict[str, int]:
        """The stride of each stage's output against the image."""
        strides: dict[str, int] = {}
        stride = self.first_conv.stride
        for stage in self.stages:
            stride *= stage.stride
            strides[stage.name] = stride
        return strides

    @cached_property
    def tap_indices(self) -> tuple[int, ...]:
        """The positions of the tapped stages."""
        names = [stage.name for stage in self.stages]
        return tuple(names.index(stage) for stage in self.tap_stages)

    def blocks(self, arch: Arch) -> tuple[BlockPlan, ...]:
        """The active blocks in order; raises ArchError if `arch` is not of this space."""
        return tuple(block for choice in self._stage_choices(arch) for block in _plan_stage(*choice))

    def max_blocks(self) -> tuple[BlockPlan, ...]:
        """Every block at its largest in, mid and out channels and kernel: what the supernet allocates.

        Widths are multiples of 8, so the largest arch's mid channels are the paper's round(max_in * max_expand_ratio).
        """
        return self.blocks(self.space.largest())

    def feature_channels(self, arch: Arch) -> tuple[int, int, int, int]:
        """Channels of the feature maps at strides 4, 8, 16 and 32; raises ArchError for a foreign arch."""
        self.space.validate(arch)
        four, eight, sixteen, thirty_two = (arch[f"width.{stage}"] for stage in self.tap_stages)
        return four, eight, sixteen, thirty_two

    def final_expand_channels(self, last_stage_width: int) -> int:
        """Channels of the classifier's first convolution for this width of the last stage."""
        return expanded_channels(last_stage_width, self.last_conv.expand_ratio)

    def body_cost(self, arch: Arch, input_size: Size) -> Cost:
        """Cost of ``first_conv`` and the active blocks ``<stage>.<block>`` for one image of `input_size` (H, W).

        Raises:
            ArchError: `arch` is not of this space.
        """
        choices = self._stage_choices(arch)
        size = (int(input_size[0]), int(input_size[1]))
        first_conv, size = _first_conv_cost(self.first_conv, choices[0][2], size)
        modules = [first_conv]
        for choice in choices:
            stage_modules, size = _stage_cost(choice, size)
            modules += stage_modules
        return Cost(tuple(modules))

    def body_totals(self, archs: Sequence[Arch], input_sizes: Sequence[Size]) -> CostTotals:
        """`body_cost` of many archs of this space, each at its own input size (H, W): int64 (N,).

        Stages that cost the same are costed once: 10,000 archs differ in a few thousand stages.
        """
        count = len(self.stages)
        values = np.asarray([arch.values for arch in archs], dtype=np.int64).reshape(len(archs), -1)
        sizes = np.asarray(input_sizes, dtype=np.int64).reshape(len(archs), 2)

        def first_conv(place: int) -> tuple[int, int]:
            size = (int(sizes[place, 0]), int(sizes[place, 1]))
            cost = _first_conv_cost(self.first_conv, int(values[place, 1]), size)[0]
            return cost.macs, cost.params

        totals = totals_by_group(np.concatenate([sizes, values[:, 1:2]], 1), first_conv)
        sizes = -(-sizes // self.first_conv.stride)
        for index, stage in enumerate(self.stages):
            # in width, width, depth, kernel size, expand ratio: the gene order is that of `space`
            starts = (1, 2, count + 3, 2 * count + 3, 3 * count + 3)
            keys = np.concatenate([sizes, values[:, [start + index for start in starts]]], 1)
            totals = totals + totals_by_group(keys, partial(_stage_totals, stage, index, keys))
            sizes = -(-sizes // stage.stride)
        return totals

    def head_keys(self, archs: Sequence[Arch]) -> npt.NDArray[np.int64]:
        """Resolution and widths: (N, K)."""
        last_width = len(self.stages) + 3
        return np.asarray([arch.values[:last_width] for arch in archs], dtype=np.int64).reshape(len(archs), last_width)

    @property
    def classifier_genes(self) -> tuple[str, ...]:
        """The resolution, which follows a task's own input elsewhere, and the width of the last convolution."""
        return "resolution", "width.last_conv"

    def classifier_cost(self, arch: Arch, input_size: Size, num_classes: int) -> Cost:
        """Cost of ``final_expand``, ``feature_mix`` and ``classifier`` for one image of `input_size` (H, W).

        Raises:
            ArchError: `arch` is not of this space.
        """
        self.space.validate(arch)
        size = (int(input_size[0]), int(input_size[1]))
        for stride in (self.first_conv.stride, *(stage.stride for stage in self.stages)):
            size = strided_size(size, stride)
        last_stage_width = arch[f"width.{self.stages[-1].name}"]
        return _classifier_cost(self.last_conv, last_stage_width, arch["width.last_conv"], size, num_classes)

    def pieces(self, arch: Arch, input_size: Size) -> list[Piece]:
        """Stem and blocks for one image of `input_size` (H, W)."""
        from nas_transfer.supernet.mbconv import build_block, build_stem

        size = (int(input_size[0]), int(input_size[1]))
        width = arch["width.first_conv"]
        found = [Piece(f"stem {self.first_conv} {width} {size}", partial(build_stem, self, width), (3, *size))]
        size = strided_size(size, self.first_conv.stride)
        for plan in self.blocks(arch):
            plan = replace(plan, stage_index=0, block_index=int(plan.block_index > 0))
            build = partial(build_block, self, plan)
            found.append(Piece(f"mbconv {plan} {size}", build, (plan.in_channels, *size)))
            size = strided_size(size, plan.stride)
        return found

    def build_body(self, arch: Arch | None = None) -> nn.Module:
        """Stem and stages: of the supernet (None) or, plain and static, of one arch."""
        from nas_transfer.supernet.mbconv import MBConvBody

        return MBConvBody(self, arch)

    def build_classifier(self, num_classes: int, arch: Arch | None = None) -> nn.Module:
        """The classification head: of the supernet (None) or, plain and static, of one arch."""
        from nas_transfer.supernet.mbconv import MBConvClassifier

        return MBConvClassifier(self, num_classes, arch)

    def _stage_choices(self, arch: Arch) -> list[StageChoice]:
        self.space.validate(arch)
        count = len(self.stages)
        widths = arch.values[1 : count + 2]  # first_conv, then the stages; the gene order is that of `space`
        depths, kernel_sizes, expand_ratios = (
            arch.values[start : start + count] for start in (count + 3, 2 * count + 3, 3 * count + 3)
        )
        rows = zip(self.stages, widths, widths[1:], depths, kernel_sizes, expand_ratios, strict=False)
        return [(stage, index, *row) for index, (stage, *row) in enumerate(rows)]  # type: ignore[misc]


def _stage_totals(stage: StageTable, index: int, keys: npt.NDArray[np.int64], place: int) -> tuple[int, int]:
    """MACs and parameters of a stage: `keys` holds (H, W, in width, width, depth, kernel size, expand ratio)."""
    height, width, *choice = keys[place].tolist()
    modules, _ = _stage_cost((stage, index, *choice), (height, width))
    return sum([module.macs for module in modules]), sum([module.params for module in modules])


StageChoice = tuple[StageTable, int, int, int, int, int, int]
"""Stage, its index, in width, out width, depth, kernel size, expand ratio."""


@lru_cache(maxsize=1 << 16)
def _plan_stage(
    stage: StageTable, stage_index: int, in_width: int, width: int, depth: int, kernel_size: int, expand_ratio: int
) -> tuple[BlockPlan, ...]:
    blocks = []
    for block_index in range(depth):
        in_channels = width if block_index else in_width
        mid_channels = expanded_channels(in_channels, expand_ratio)
        blocks.append(
            BlockPlan(
                stage_index=stage_index,
                block_index=block_index,
                in_channels=in_channels,
                mid_channels=mid_channels,
                out_channels=width,
                kernel_size=kernel_size,
                stride=1 if block_index else stage.stride,
                expand=stage.expands,
                squeeze_channels=squeeze_channels(mid_channels) if stage.squeeze_excite else 0,
                activation=stage.activation,
            )
        )
    return tuple(blocks)


@lru_cache(maxsize=1 << 16)
def _stage_cost(choice: StageChoice, input_size: Size) -> tuple[tuple[ModuleCost, ...], Size]:
    stage = choice[0]
    modules = []
    for plan in _plan_stage(*choice):
        modules.append(block_cost(f"{stage.name}.{plan.block_index}", plan, input_size))
        input_size = strided_size(input_size, plan.stride)
    return tuple(modules), input_size


@lru_cache(maxsize=1 << 12)
def _first_conv_cost(first_conv: FirstConv, width: int, input_size: Size) -> tuple[ModuleCost, Size]:
    size = strided_size(input_size, first_conv.stride)
    cost = convolution_cost("first_conv", IMAGE_CHANNELS, width, first_conv.kernel_size, size, batch_norm=True)
    return cost, size


@lru_cache(maxsize=1 << 12)
def _classifier_cost(
    last_conv: LastConv, last_stage_width: int, last_conv_width: int, feature_size: Size, num_classes: int
) -> Cost:
    expanded = expanded_channels(last_stage_width, last_conv.expand_ratio)
    return Cost(
        (
            convolution_cost("final_expand", last_stage_width, expanded, 1, feature_size, batch_norm=True),
            convolution_cost("feature_mix", expanded, last_conv_width, 1, (1, 1)),  # after global pooling
            linear_cost("classifier", last_conv_width, num_classes),
        )
    )
