"""The protocol of every table: all that stages and tasks use of a supernet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nas_transfer.arch import Arch
from nas_transfer.space import SearchSpace
from nas_transfer.supernet.cost import Cost, CostTotals, Size
from nas_transfer.supernet.preprocessing import Preprocessing

TAP_STRIDES = (4, 8, 16, 32)
"""Strides of a body's four feature maps against the image."""


class SupernetTable(Protocol):
    """The description of a supernet: its space, its costs and the module that builds its networks.

    A table is built from ``conf/supernet/*.yaml``, needs no torch, and is what ``supernet=NAME`` selects. To add a
    family of supernets, write a class with these members and a module with the functions of
    `nas_transfer.supernet.networks.NetworkModule`, in one Python file or two, and a YAML whose ``_target_`` is the
    class. A field that changes what given weights compute, and no tensor's shape, has the metadata
    `nas_transfer.supernet.fields.OF_WEIGHTS`, so that it is kept with the weights. A table whose subnets can be
    repaired has an attribute ``repair_module``, the dotted name of a module with the functions of
    `nas_transfer.supernet.links.RepairModule`. One whose channels can be ordered has an attribute
    ``importance_module``, the dotted name of a module with the function ``order_by_importance(body)``. One that was
    read from a public network has an attribute ``source``, see `nas_transfer.supernet.readers.PublicNet`.
    """

    @property
    def network_module(self) -> str:
        """Dotted name of the module that builds this table's networks (`nas_transfer.supernet.networks`)."""

    @property
    def name(self) -> str:
        """Name of the supernet in reports and of its space in arch files."""

    @property
    def space(self) -> SearchSpace:
        """All archs of the supernet."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are normalised, unless the weights come with a preprocessing of their own."""

    @property
    def batch_norm_eps(self) -> float:
        """Epsilon of every BatchNorm in the body and in the heads behind it."""

    def feature_channels(self, arch: Arch) -> tuple[int, int, int, int]:
        """Channels of the body's feature maps at strides 4, 8, 16 and 32."""

    def body_cost(self, arch: Arch, input_size: Size) -> Cost:
        """Cost of the body for one image of `input_size` (H, W)."""

    def body_totals(self, archs: Sequence[Arch], input_sizes: Sequence[Size]) -> CostTotals:
        """Total `body_cost` of many archs of this space, each at its own input size (H, W)."""

    def head_keys(self, archs: Sequence[Arch]) -> npt.NDArray[np.int64]:
        """Everything in an arch that the costs of neck and head depend on, one row for each arch: (N, K)."""

    @property
    def classifier_genes(self) -> tuple[str, ...]:
        """Genes that only matter to classification: the body does not depend on them."""

    def classifier_cost(self, arch: Arch, input_size: Size, num_classes: int) -> Cost:
        """Cost of the classification head for one image of `input_size` (H, W)."""
