"""ConvNeXt supernets as tables: the choices of each stage, the active blocks of an arch, and their costs.

References: Liu et al., "A ConvNet for the 2020s", CVPR 2022 (arXiv 2201.03545); Woo et al., "ConvNeXt V2", CVPR 2023
(arXiv 2301.00808), whose blocks have a global response normalisation and no layer scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive, Range
from nas_transfer.space import SearchSpace
from nas_transfer.supernet.convnext.rows import PATCHES, PLAIN_HEAD, HeadTable, StageTable, StemTable
from nas_transfer.supernet.cost import (
    Cost,
    CostTotals,
    ModuleCost,
    Size,
    convolution_cost,
    linear_cost,
    strided_size,
    total_cost,
    totals_by_group,
)
from nas_transfer.supernet.fields import as_record, as_tuple, check_positive, is_number
from nas_transfer.supernet.preprocessing import IMAGE_CHANNELS, Preprocessing
from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.supernet.readers import PublicNet

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")
PATCH, STEM_STRIDE = 4, 4


@dataclass(frozen=True)
class BlockPlan:
    """One active block: every number that its module and its cost depend on.

    Attributes:
        channels: input and output channels.
        hidden: channels between the two linear layers.
        kernel_size: of the depthwise convolution.
        layer_scale: whether a learned factor scales each channel before the shortcut is added.
        response_norm: whether a global response normalisation follows the activation.
        activation: one of `ACTIVATIONS`.
    """

    channels: int
    hidden: int
    kernel_size: int
    layer_scale: bool
    response_norm: bool
    activation: str


@dataclass(frozen=True)
class ConvNeXtTable:
    """A ConvNeXt as a supernet: a stem, four stages of blocks with LayerNorms between them, and a classification head.

    Hydra instantiates it from YAML with ``_convert_: all``; lists become tuples, and mappings become the dataclasses.

    Args:
        name: name of the supernet and of its space.
        resolutions: choices of the gene ``resolution`` in pixels, the height and width of images in classification.
        stem: the convolutions before the first stage.
        stages: at strides 4, 8, 16 and 32, the feature maps; each adds the genes ``width.<name>``, ``depth.<name>``,
            ``kernel_size.<name>`` and ``expand_ratio.<name>``, the last two for each block (``.<block>``) if
            `StageTable.per_block` is set.
        batch_norm_eps: epsilon of the BatchNorms of the heads behind the body, which has none.
        preprocessing: preprocessing of images, unless the weights come with a preprocessing of their own.
        head: the classification head.
        layer_norm_eps: epsilon of every LayerNorm.
        layer_scale: whether each block scales its channels (ConvNeXt), from 1e-6 where the weights are random.
        response_norm: whether each block has a global response normalisation (ConvNeXtV2).
        activation: activation of the blocks and of the stem, one of `ACTIVATIONS`.
        source: the public network that the table was read from, if any.

    Raises:
        ConfigError: a field is malformed.
    """

    network_module: ClassVar[str] = "nas_transfer.supernet.convnext.network"
    repair_module: ClassVar[str] = "nas_transfer.supernet.convnext.repair"
    importance_module: ClassVar[str] = "nas_transfer.supernet.convnext.importance"

    name: str
    resolutions: tuple[Positive, ...]
    stages: tuple[StageTable, ...]
    batch_norm_eps: Annotated[float, Range(above=0, below=1)]
    preprocessing: Preprocessing
    stem: StemTable = PATCHES
    head: HeadTable = PLAIN_HEAD
    layer_norm_eps: Annotated[float, Range(above=0, below=1)] = 1e-6
    layer_scale: bool = True
    response_norm: bool = False
    activation: str = "gelu"
    source: PublicNet | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"supernet.name must be a word, got {self.name!r}")
        object.__setattr__(self, "resolutions", as_tuple(self.resolutions, "resolutions"))
        check_positive("resolutions", self.resolutions)
        rows = as_tuple(self.stages, "stages")
        object.__setattr__(self, "stages", tuple(as_record(row, StageTable, "stages") for row in rows))
        object.__setattr__(self, "stem", as_record(self.stem, StemTable, "stem"))
        object.__setattr__(self, "head", as_record(self.head, HeadTable, "head"))
        object.__setattr__(self, "preprocessing", as_record(self.preprocessing, Preprocessing, "preprocessing"))
        for field in ("batch_norm_eps", "layer_norm_eps"):
            value = getattr(self, field)
            if not is_number(value) or value <= 0:
                raise ConfigError(
                    f"supernet.{field} must be above 0, got {value!r}: write 1.0e-5, since YAML reads 1e-5 as text"
                )
        for field in ("layer_scale", "response_norm"):
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(f"supernet.{field} must be true or false, got {getattr(self, field)!r}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"supernet.activation must be one of {list(ACTIVATIONS)}, got {self.activation!r}")
        if len(self.stages) != len(TAP_STRIDES):
            raise ConfigError(
                f"supernet.stages must be {len(TAP_STRIDES)} stages at strides {list(TAP_STRIDES)}, got "
                f"{len(self.stages)} in supernet '{self.name}'"
            )
        _ = self.space  # building the genes checks that choices are ascending and stage names unique

    @cached_property
    def space(self) -> SearchSpace:
        """The genes ``resolution``, ``width.*``, ``depth.*``, ``kernel_size.*`` and ``expand_ratio.*``, in order."""
        genes = [Gene("resolution", self.resolutions)]
        for group in ("width", "depth", "kernel_size", "expand_ratio"):
            for stage in self.stages:
                genes += _genes(group, stage)
        return SearchSpace(self.name, tuple(genes))

    def blocks(self, arch: Arch) -> tuple[tuple[BlockPlan, ...], ...]:
        """The active blocks of each stage in order; raises ArchError if `arch` does not belong to this space."""
        self.space.validate(arch)
        return tuple(
            self._plans(index, [arch.values[column] for column in columns])
            for index, columns in enumerate(self._stage_columns)
        )

    def feature_channels(self, arch: Arch) -> tuple[int, int, int, int]:
        """Channels of the feature maps at strides 4, 8, 16 and 32."""
        four, eight, sixteen, thirty_two = (stage.channels for stage in self.stages)
        return four, eight, sixteen, thirty_two

    def body_cost(self, arch: Arch, input_size: Size) -> Cost:
        """Cost of the stem, the active blocks and the layers between stages for one image of `input_size` (H, W).

        Raises:
            ArchError: `arch` does not belong to this space.
        """
        modules = [self._stem_cost(input_size)]
        size = strided_size(input_size, STEM_STRIDE)
        for index, plans in enumerate(self.blocks(arch)):
            if index:
                size = strided_size(size, 2)
                modules.append(self._downsample_cost(index, size))
            name = self.stages[index].name
            modules += [block_cost(f"{name}.{block}", plan, size) for block, plan in enumerate(plans)]
        return Cost(tuple(modules))

    def body_totals(self, archs: Sequence[Arch], input_sizes: Sequence[Size]) -> CostTotals:
        """Totals of `body_cost` for many archs of this space, each at its own input size (H, W).

        The cost of equal stages is computed once.
        """
        values = np.asarray([arch.values for arch in archs], dtype=np.int64).reshape(len(archs), -1)
        sizes = np.asarray(input_sizes, dtype=np.int64).reshape(len(archs), 2)
        totals = totals_by_group(sizes, partial(self._stem_totals, sizes))
        sizes = -(-sizes // STEM_STRIDE)
        for index, columns in enumerate(self._stage_columns):
            if index:
                sizes = -(-sizes // 2)
            keys = np.concatenate([sizes, values[:, columns]], 1)
            totals = totals + totals_by_group(keys, partial(self._stage_totals, index, keys))
        return totals

    def head_keys(self, archs: Sequence[Arch]) -> npt.NDArray[np.int64]:
        """Values of the gene resolution (N, 1): all archs have the same widths."""
        return np.asarray([arch.values[:1] for arch in archs], dtype=np.int64).reshape(len(archs), 1)

    @property
    def classifier_genes(self) -> tuple[str, ...]:
        """The resolution, which other tasks replace by their own input size."""
        return ("resolution",)

    def classifier_cost(self, arch: Arch, input_size: Size, num_classes: int) -> Cost:
        """Cost of ``head_norm``, ``hidden`` if there is one, and ``classifier``, which do not depend on the image."""
        width = self.stages[-1].channels
        modules = [ModuleCost("head_norm", 0, 2 * width)]
        if self.head.hidden_width is not None:
            modules.append(linear_cost("hidden", width, self.head.hidden_width))
            width = self.head.hidden_width
        return Cost((*modules, linear_cost("classifier", width, num_classes)))

    @cached_property
    def _stage_columns(self) -> tuple[list[int], ...]:
        """For each stage, the indices of its genes: depth, kernel sizes, expand ratios."""
        indices = {name: index for index, name in enumerate(self.space.names)}
        return tuple(
            [
                indices[gene.name]
                for group in ("depth", "kernel_size", "expand_ratio")
                for gene in _genes(group, stage)
            ]
            for stage in self.stages
        )  # fmt: skip

    def _plans(self, index: int, values: Sequence[int]) -> tuple[BlockPlan, ...]:
        """The active blocks of a stage with these values of its genes, in the order of `_stage_columns`."""
        stage, depth, half = self.stages[index], values[0], len(values) // 2
        kernel_sizes, expand_ratios = values[1 : half + 1], values[half + 1 :]
        plans = []
        for block in range(depth):
            choice = block if stage.per_block else 0
            hidden = stage.channels * expand_ratios[choice]
            plans.append(
                BlockPlan(
                    stage.channels, hidden, kernel_sizes[choice], self.layer_scale, self.response_norm, self.activation
                )
            )
        return tuple(plans)

    def _stem_cost(self, input_size: Size) -> ModuleCost:
        width, mid = self.stages[0].channels, self.stem.mid_width
        if mid is None:
            size = strided_size(input_size, STEM_STRIDE)
            parts = [convolution_cost("patches", IMAGE_CHANNELS, width, PATCH, size, bias=True, batch_norm=True)]
        else:
            first = strided_size(input_size, 2)
            parts = [
                convolution_cost("first", IMAGE_CHANNELS, mid, 3, first, bias=True),
                convolution_cost("last", mid, width, 3, strided_size(first, 2), bias=True, batch_norm=True),
            ]
        return total_cost("stem", parts)

    def _downsample_cost(self, index: int, output_size: Size) -> ModuleCost:
        before, stage = self.stages[index - 1].channels, self.stages[index]
        conv = convolution_cost("conv", before, stage.channels, 2, output_size, bias=True)
        return total_cost(f"{stage.name}.downsample", [ModuleCost("norm", 0, 2 * before), conv])

    def _stem_totals(self, sizes: npt.NDArray[np.int64], row: int) -> tuple[int, int]:
        cost = self._stem_cost((int(sizes[row, 0]), int(sizes[row, 1])))
        return cost.macs, cost.params

    def _stage_totals(self, index: int, keys: npt.NDArray[np.int64], row: int) -> tuple[int, int]:
        """MACs and parameters of a stage; a row of `keys` holds H, W of its output and the values of its genes."""
        height, width, *values = keys[row].tolist()
        modules = [block_cost("block", plan, (height, width)) for plan in self._plans(index, values)]
        if index:
            modules.append(self._downsample_cost(index, (height, width)))
        return sum(module.macs for module in modules), sum(module.params for module in modules)


@lru_cache(maxsize=1 << 12)
def block_cost(name: str, plan: BlockPlan, size: Size) -> ModuleCost:
    """The cost of one block for feature maps of `size` (H, W); a LayerNorm has as many parameters as a BatchNorm."""
    channels, hidden = plan.channels, plan.hidden
    return total_cost(
        name,
        [
            convolution_cost(
                "depthwise", channels, channels, plan.kernel_size, size, groups=channels, bias=True, batch_norm=True
            ),
            convolution_cost("expand", channels, hidden, 1, size, bias=True),
            ModuleCost("response_norm", 0, 2 * hidden * plan.response_norm),
            convolution_cost("project", hidden, channels, 1, size, bias=True),
            ModuleCost("layer_scale", 0, channels * plan.layer_scale),
        ],
    )


def _genes(group: str, stage: StageTable) -> list[Gene]:
    """The genes of one group of a stage: one, or one for each block of the deepest arch."""
    choices = getattr(stage, group)
    if not stage.per_block or group in ("width", "depth"):
        return [Gene(f"{group}.{stage.name}", choices)]
    depth = f"depth.{stage.name}"
    return [
        Gene(f"{group}.{stage.name}.{block}", choices, None if block < stage.depth[0] else (depth, block + 1))
        for block in range(stage.depth[-1])
    ]
