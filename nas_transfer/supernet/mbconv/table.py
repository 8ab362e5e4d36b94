"""MBConv supernets as tables: the choices of each stage, the active blocks of an arch, and their costs.

Both the networks (`nas_transfer.supernet.mbconv.network`) and the costs are derived from `MBConvTable.blocks`, the only
definition of channel counts. The table is built from ``conf/supernet/*.yaml`` and needs no torch.

References: Wang et al., "AttentiveNAS: Improving Neural Architecture Search via Attentive Sampling", CVPR 2021 (arXiv
2011.09011), whose space AlphaNet (arXiv 2102.07954) shares; Cai et al., "Once-for-All", ICLR 2020 (arXiv 1908.09791).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Positive, Range
from nas_transfer.space import SearchSpace
from nas_transfer.supernet.cost import Cost, CostTotals, Size, strided_size, totals_by_group
from nas_transfer.supernet.fields import as_record, as_squeeze_activations, as_tuple, check_positive, is_number
from nas_transfer.supernet.mbconv.blocks import (
    POOLED,
    SHORTCUTS,
    SQUEEZE_ACTIVATIONS,
    BlockPlan,
    StageChoice,
    first_conv_cost,
    last_conv_cost,
    plan_stage,
    stage_cost,
)
from nas_transfer.supernet.mbconv.rows import FirstConv, LastConv, StageTable
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.supernet.readers import PublicNet


@dataclass(frozen=True)
class MBConvTable:
    """A supernet of MBConv stages between a stem and a classification head (AttentiveNAS, OFA, EfficientNet-Lite).

    Hydra instantiates it from YAML with ``_convert_: all``; lists become tuples, and mappings become the dataclasses.

    Args:
        name: name of the supernet and of its space.
        resolutions: choices of the gene ``resolution`` in pixels, the height and width of images in classification.
        first_conv: the stem, whose width is the gene ``width.first_conv``.
        stages: in order; each adds the genes ``width.<name>``, ``depth.<name>``, ``kernel_size.<name>`` and
            ``expand_ratio.<name>``, the last two for each block (``.<block>``) if `StageTable.per_block` is set.
        last_conv: convolutions of the classification head, whose width is the gene ``width.last_conv``.
        tap_stages: the four stages whose outputs are the feature maps at strides 4, 8, 16 and 32.
        batch_norm_eps: epsilon of every BatchNorm.
        preprocessing: preprocessing of images, unless the weights come with a preprocessing of their own.
        shortcut: shortcut of the blocks, see `BlockPlan`.
        same_padding: whether strided convolutions pad as TensorFlow's "same" does, an odd zero at the end.
        kernel_transform: whether a smaller kernel is a learned map of the next larger kernel's centre (once-for-all)
            instead of the centre itself; a subnet only has the result.
        squeeze_activations: names of the two activations of squeeze-and-excitation.
        source: the public network that was read, if the table was made by a reader.

    Raises:
        ConfigError: a field is malformed, or the strides of `tap_stages` are not 4, 8, 16 and 32.
    """

    network_module: ClassVar[str] = "nas_transfer.supernet.mbconv.network"
    repair_module: ClassVar[str] = "nas_transfer.supernet.mbconv.repair"
    importance_module: ClassVar[str] = "nas_transfer.supernet.mbconv.importance"

    name: str
    resolutions: tuple[Positive, ...]
    first_conv: FirstConv
    stages: tuple[StageTable, ...]
    last_conv: LastConv
    tap_stages: tuple[str, ...]
    batch_norm_eps: Annotated[float, Range(above=0, below=1)]
    preprocessing: Preprocessing
    shortcut: str = POOLED
    same_padding: bool = False
    kernel_transform: bool = False
    squeeze_activations: tuple[str, str] = SQUEEZE_ACTIVATIONS
    source: PublicNet | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"supernet.name must be a word, got {self.name!r}")
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
                f"supernet.batch_norm_eps must be above 0, got {self.batch_norm_eps!r}: write 1.0e-5, since YAML "
                "reads 1e-5 as text"
            )
        object.__setattr__(self, "squeeze_activations", as_squeeze_activations(self.squeeze_activations))
        for field in ("same_padding", "kernel_transform"):
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(f"supernet.{field} must be true or false, got {getattr(self, field)!r}")
        if self.shortcut not in SHORTCUTS:
            raise ConfigError(f"supernet.shortcut must be one of {list(SHORTCUTS)}, got {self.shortcut!r}")
        if not self.stages:
            raise ConfigError(f"supernet.stages must hold at least one stage, got none in supernet '{self.name}'")
        self._check_taps()
        for stage in self.stages:
            if stage.mid_channels is not None and (len(stage.width) > 1 or not stage.expands):
                raise ConfigError(f"a stage with mid_channels must have one width and an expansion, got {stage}")
        _ = self.space  # building the genes checks that choices are ascending and stage names unique

    def _check_taps(self) -> None:
        strides = self.stage_strides
        tapped = tuple(strides.get(stage) for stage in self.tap_stages)
        if tapped != TAP_STRIDES:
            raise ConfigError(
                f"supernet.tap_stages must be four stages at strides {list(TAP_STRIDES)}, got {list(self.tap_stages)} "
                f"of stages with the strides {strides}"
            )

    @cached_property
    def space(self) -> SearchSpace:
        """The genes ``resolution``, ``width.*`` (stem, stages, last_conv), ``depth.*``, ``kernel_size.*`` and
        ``expand_ratio.*``, in this order."""
        genes = [Gene("resolution", self.resolutions), Gene("width.first_conv", self.first_conv.width)]
        genes += [Gene(f"width.{stage.name}", stage.width) for stage in self.stages]
        genes.append(Gene("width.last_conv", self.last_conv.width))
        genes += [Gene(f"depth.{stage.name}", stage.depth) for stage in self.stages]
        for group in ("kernel_size", "expand_ratio"):
            for stage in self.stages:
                genes += _block_genes(group, stage)
        return SearchSpace(self.name, tuple(genes))

    @cached_property
    def stage_strides(self) -> dict[str, int]:
        """The stride of each stage's output relative to the image."""
        strides: dict[str, int] = {}
        stride = self.first_conv.stride
        for stage in self.stages:
            stride *= stage.stride
            strides[stage.name] = stride
        return strides

    @cached_property
    def tap_indices(self) -> tuple[int, ...]:
        """The indices of the tapped stages."""
        names = [stage.name for stage in self.stages]
        return tuple(names.index(stage) for stage in self.tap_stages)

    def blocks(self, arch: Arch) -> tuple[BlockPlan, ...]:
        """The active blocks in order; raises ArchError if `arch` does not belong to this space."""
        return tuple(block for choice in self._stage_choices(arch) for block in plan_stage(choice))

    def max_blocks(self) -> tuple[BlockPlan, ...]:
        """Every block with its largest channel counts and kernel size, as the supernet allocates them.

        Widths are multiples of 8, so the mid channels are the round(max_in * max_expand_ratio) of the paper.
        """
        return self.blocks(self.space.largest())

    def feature_channels(self, arch: Arch) -> tuple[int, int, int, int]:
        """Channels of the feature maps at strides 4, 8, 16 and 32; raises ArchError outside the space."""
        self.space.validate(arch)
        four, eight, sixteen, thirty_two = (arch[f"width.{stage}"] for stage in self.tap_stages)
        return four, eight, sixteen, thirty_two

    def body_cost(self, arch: Arch, input_size: Size) -> Cost:
        """Cost of ``first_conv`` and the active blocks ``<stage>.<block>`` for one image of `input_size` (H, W).

        Raises:
            ArchError: `arch` does not belong to this space.
        """
        choices = self._stage_choices(arch)
        size = (int(input_size[0]), int(input_size[1]))
        first_conv, size = first_conv_cost(self.first_conv, choices[0].in_width, size)
        modules = [first_conv]
        for choice in choices:
            stage_modules, size = stage_cost(choice, size)
            modules += stage_modules
        return Cost(tuple(modules))

    def body_totals(self, archs: Sequence[Arch], input_sizes: Sequence[Size]) -> CostTotals:
        """Totals of `body_cost` for many archs of this space, each at its own input size (H, W).

        The cost of equal stages is computed once: 10,000 archs have a few thousand distinct stages.
        """
        values = np.asarray([arch.values for arch in archs], dtype=np.int64).reshape(len(archs), -1)
        sizes = np.asarray(input_sizes, dtype=np.int64).reshape(len(archs), 2)

        def first_conv(row: int) -> tuple[int, int]:
            size = (int(sizes[row, 0]), int(sizes[row, 1]))
            cost = first_conv_cost(self.first_conv, int(values[row, 1]), size)[0]
            return cost.macs, cost.params

        totals = totals_by_group(np.concatenate([sizes, values[:, 1:2]], 1), first_conv)
        sizes = -(-sizes // self.first_conv.stride)
        for index, stage in enumerate(self.stages):
            columns = self._stage_columns[index]
            keys = np.concatenate([sizes, values[:, columns]], 1)
            totals = totals + totals_by_group(keys, partial(self._stage_totals, index, keys))
            sizes = -(-sizes // stage.stride)
        return totals

    def head_keys(self, archs: Sequence[Arch]) -> npt.NDArray[np.int64]:
        """Values of the gene resolution and of all widths: (N, K)."""
        last_width = len(self.stages) + 3
        return np.asarray([arch.values[:last_width] for arch in archs], dtype=np.int64).reshape(len(archs), last_width)

    @property
    def classifier_genes(self) -> tuple[str, ...]:
        """The resolution, which other tasks replace by their own input size, and the width of the last convolution."""
        return "resolution", "width.last_conv"

    def classifier_cost(self, arch: Arch, input_size: Size, num_classes: int) -> Cost:
        """Cost of ``final_expand``, ``feature_mix`` and ``classifier`` for one image of `input_size` (H, W).

        Raises:
            ArchError: `arch` does not belong to this space.
        """
        self.space.validate(arch)
        size = (int(input_size[0]), int(input_size[1]))
        for stride in (self.first_conv.stride, *(stage.stride for stage in self.stages)):
            size = strided_size(size, stride)
        last_stage_width = arch[f"width.{self.stages[-1].name}"]
        return last_conv_cost(self.last_conv, last_stage_width, arch["width.last_conv"], size, num_classes)

    @cached_property
    def _stage_columns(self) -> tuple[list[int], ...]:
        """For each stage, the indices of its genes: in width, width, depth, kernel sizes, expand ratios."""
        indices = {name: index for index, name in enumerate(self.space.names)}
        columns = []
        before = "first_conv"
        for stage in self.stages:
            names = [f"width.{before}", f"width.{stage.name}", f"depth.{stage.name}"]
            names += [gene.name for group in ("kernel_size", "expand_ratio") for gene in _block_genes(group, stage)]
            columns.append([indices[name] for name in names])
            before = stage.name
        return tuple(columns)

    def _stage_choices(self, arch: Arch) -> list[StageChoice]:
        self.space.validate(arch)
        return [
            self._stage_choice(index, [arch.values[column] for column in columns])
            for index, columns in enumerate(self._stage_columns)
        ]

    def _stage_choice(self, index: int, values: Sequence[int]) -> StageChoice:
        """A stage with these values of its genes, in the order of `_stage_columns`."""
        in_width, width, depth, *blocks = values
        half = len(blocks) // 2
        kernel_sizes, expand_ratios = tuple(blocks[:half]), tuple(blocks[half:])
        return StageChoice(
            self.stages[index], index, in_width, width, depth, kernel_sizes, expand_ratios,
            self.shortcut, self.same_padding, self.squeeze_activations,
        )  # fmt: skip

    def _stage_totals(self, index: int, keys: npt.NDArray[np.int64], row: int) -> tuple[int, int]:
        """MACs and parameters of a stage; a row of `keys` holds H, W and the values of the stage's genes."""
        height, width, *values = keys[row].tolist()
        modules, _ = stage_cost(self._stage_choice(index, values), (height, width))
        return sum([module.macs for module in modules]), sum([module.params for module in modules])


def _block_genes(group: str, stage: StageTable) -> list[Gene]:
    """The genes of a stage's kernel size or expand ratio: one, or one for each block of the deepest arch."""
    choices = getattr(stage, group)
    if not stage.per_block:
        return [Gene(f"{group}.{stage.name}", choices)]
    depth = f"depth.{stage.name}"
    return [
        Gene(f"{group}.{stage.name}.{block}", choices, None if block < stage.depth[0] else (depth, block + 1))
        for block in range(stage.depth[-1])
    ]
