"""Elastic ResNets as tables: ResNet, its -D variants, ResNeXt and RegNet, whose largest arch is a public net.

Each stage chooses how many of its blocks are active, and how wide the convolutions inside its blocks are. The width of
a stage's output is fixed, since the shortcuts add up the outputs of its blocks.

References: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385); Xie et al.,
"Aggregated Residual Transformations", CVPR 2017 (1611.05431); He et al., "Bag of Tricks for Image Classification", CVPR
2019 (1812.01187); Radosavovic et al., "Designing Network Design Spaces", CVPR 2020 (2003.13678).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ConfigError
from nas_transfer.space import SearchSpace
from nas_transfer.supernet.cost import Cost, CostTotals, Size, linear_cost, strided_size, totals_by_group
from nas_transfer.supernet.fields import as_squeeze_activations
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.supernet.readers import PublicNet
from nas_transfer.supernet.resnet.rows import (
    ResidualPlan,
    ResidualStage,
    StemConv,
    block_cost,
    plan_of,
    stem_cost,
)

STEM = "stem"


@dataclass(frozen=True)
class ElasticResNetTable:
    """A residual network whose stages choose their depth and the width inside their blocks.

    Args:
        name: name of the supernet and of its space.
        resolutions: choices of the gene ``resolution`` in pixels, the height and width of images in classification.
        stem: its convolutions in order; adds the genes ``width.stem.<n>`` and ``kernel_size.stem.<n>`` where there is
            a choice.
        max_pool: whether 3x3 max pooling of stride 2 follows the stem.
        stages: in order; each adds the genes ``depth.<name>`` and ``inner_width.<name>``.
        batch_norm_eps: epsilon of every BatchNorm.
        preprocessing: preprocessing of images, unless the weights come with a preprocessing of their own.
        squeeze_activations: names of the two activations of squeeze-and-excitation.
        source: the public network that was read.

    Raises:
        ConfigError: the strides of the stages are not 4, 8, 16 and 32, or `squeeze_activations` are unknown.
    """

    network_module: ClassVar[str] = "nas_transfer.supernet.resnet.elastic_network"
    repair_module: ClassVar[str] = "nas_transfer.supernet.resnet.elastic_repair"
    importance_module: ClassVar[str] = "nas_transfer.supernet.resnet.importance"

    name: str
    resolutions: tuple[int, ...]
    stem: tuple[StemConv, ...]
    max_pool: bool
    stages: tuple[ResidualStage, ...]
    batch_norm_eps: float
    preprocessing: Preprocessing
    squeeze_activations: tuple[str, str] = ("relu", "sigmoid")
    source: PublicNet | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "squeeze_activations", as_squeeze_activations(self.squeeze_activations))
        strides, stride = [], self.stem_stride
        for stage in self.stages:
            stride *= stage.stride
            strides.append(stride)
        if tuple(strides) != TAP_STRIDES:
            raise ConfigError(f"the stages of '{self.name}' must have strides {list(TAP_STRIDES)}, got {strides}")
        _ = self.space

    @property
    def stem_stride(self) -> int:
        """The stride of the first stage's input relative to the image."""
        stride = 2 if self.max_pool else 1
        for conv in self.stem:
            stride *= conv.stride
        return stride

    @cached_property
    def space(self) -> SearchSpace:
        """The genes ``resolution``, those of the stem, ``depth.*`` and ``inner_width.*``, in this order."""
        genes = [Gene("resolution", self.resolutions)]
        for group, fields in (("width", "width"), ("kernel_size", "kernel_size")):
            for number, conv in enumerate(self.stem):
                choices = getattr(conv, fields)
                if len(choices) > 1:
                    genes.append(Gene(f"{group}.{STEM}.{number}", choices))
        genes += [Gene(f"depth.{stage.name}", stage.depth) for stage in self.stages]
        genes += [Gene(f"inner_width.{stage.name}", stage.inner_width) for stage in self.stages]
        return SearchSpace(self.name, tuple(genes))

    def stem_choice(self, arch: Arch) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The widths and the kernel sizes of the stem's convolutions."""
        names = set(self.space.names)
        widths, kernels = [], []
        for number, conv in enumerate(self.stem):
            width, kernel = f"width.{STEM}.{number}", f"kernel_size.{STEM}.{number}"
            widths.append(arch[width] if width in names else conv.width[-1])
            kernels.append(arch[kernel] if kernel in names else conv.kernel_size[-1])
        return tuple(widths), tuple(kernels)

    def blocks(self, arch: Arch) -> tuple[ResidualPlan, ...]:
        """The active blocks in order; raises ArchError if `arch` does not belong to this space."""
        self.space.validate(arch)
        return tuple(
            plan
            for index, stage in enumerate(self.stages)
            for plan in self._stage_plans(index, arch[f"depth.{stage.name}"], arch[f"inner_width.{stage.name}"])
        )

    def feature_channels(self, arch: Arch) -> tuple[int, int, int, int]:
        """Channels of the feature maps at strides 4, 8, 16 and 32."""
        four, eight, sixteen, thirty_two = (stage.width for stage in self.stages)
        return four, eight, sixteen, thirty_two

    def body_cost(self, arch: Arch, input_size: Size) -> Cost:
        """Cost of the stem and of every active block for one image of `input_size` (H, W).

        Raises:
            ArchError: `arch` does not belong to this space.
        """
        self.space.validate(arch)
        size = (int(input_size[0]), int(input_size[1]))
        modules = [stem_cost(self.stem, *self.stem_choice(arch), size)]
        size = self._after_stem(size)
        for plan in self.blocks(arch):
            modules.append(block_cost(f"{self.stages[plan.stage_index].name}.{plan.block_index}", plan, size))
            size = strided_size(size, plan.stride)
        return Cost(tuple(modules))

    def body_totals(self, archs: Sequence[Arch], input_sizes: Sequence[Size]) -> CostTotals:
        """Totals of `body_cost` for many archs, each at its own input size (H, W); equal stages are computed once."""
        sizes = np.asarray(input_sizes, dtype=np.int64).reshape(len(archs), 2)

        def stem(row: int) -> tuple[int, int]:
            size = (int(sizes[row, 0]), int(sizes[row, 1]))
            cost = stem_cost(self.stem, *self.stem_choice(archs[row]), size)
            return cost.macs, cost.params

        choices = np.asarray([np.concatenate(self.stem_choice(arch)) for arch in archs], dtype=np.int64)
        totals = totals_by_group(np.concatenate([sizes, choices.reshape(len(archs), -1)], 1), stem)
        for conv in self.stem:
            sizes = -(-sizes // conv.stride)
        if self.max_pool:
            sizes = -(-sizes // 2)
        for index, stage in enumerate(self.stages):
            genes = (f"depth.{stage.name}", f"inner_width.{stage.name}")
            values = np.asarray([[arch[name] for name in genes] for arch in archs], dtype=np.int64)
            keys = np.concatenate([sizes, values.reshape(len(archs), 2)], 1)
            totals = totals + totals_by_group(keys, partial(self._stage_totals, index, keys))
            sizes = -(-sizes // stage.stride)
        return totals

    def head_keys(self, archs: Sequence[Arch]) -> npt.NDArray[np.int64]:
        """The resolution (N, 1): the widths of the feature maps are fixed."""
        return np.asarray([arch["resolution"] for arch in archs], dtype=np.int64).reshape(len(archs), 1)

    @property
    def classifier_genes(self) -> tuple[str, ...]:
        """The resolution, which other tasks replace by their own input size."""
        return ("resolution",)

    def classifier_cost(self, arch: Arch, input_size: Size, num_classes: int) -> Cost:
        """Cost of ``classifier``."""
        return Cost((linear_cost("classifier", self.stages[-1].width, num_classes),))

    def _after_stem(self, size: Size) -> Size:
        for conv in self.stem:
            size = strided_size(size, conv.stride)
        return strided_size(size, 2) if self.max_pool else size

    def _stage_plans(self, index: int, depth: int, inner_channels: int) -> list[ResidualPlan]:
        before = self.stages[index - 1].width if index else self.stem[-1].width[-1]
        stage = self.stages[index]
        return [
            plan_of(stage, index, block, stage.width if block else before, inner_channels) for block in range(depth)
        ]

    def _stage_totals(self, index: int, keys: npt.NDArray[np.int64], row: int) -> tuple[int, int]:
        """MACs and parameters of a stage; a row of `keys` holds H, W, depth and inner width."""
        height, width, depth, inner_channels = keys[row].tolist()
        size, macs, params = (height, width), 0, 0
        for plan in self._stage_plans(index, depth, inner_channels):
            cost = block_cost("", plan, size)
            macs, params, size = macs + cost.macs, params + cost.params, strided_size(size, plan.stride)
        return macs, params
