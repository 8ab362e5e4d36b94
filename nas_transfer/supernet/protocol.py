"""What stages and tasks need to know of any supernet: the protocol that every table fulfils."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from nas_transfer.space import SUPERNET, Arch, ArchOrSupernet, SearchSpace
from nas_transfer.supernet.cost import Cost, CostTotals, Size
from nas_transfer.supernet.pieces import Piece
from nas_transfer.supernet.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import nn

TAP_STRIDES = (4, 8, 16, 32)


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

    def build_body(self, arch: ArchOrSupernet = SUPERNET) -> nn.Module:
        """The body: the supernet's (`arch` is `SUPERNET`) or one subnet's, a plain static module; imports torch.

        It has `set_drop_path(rate)`, and the supernet's also `set_arch(arch)`.
        """

    def build_classifier(self, num_classes: int, arch: ArchOrSupernet = SUPERNET) -> nn.Module:
        """The classification head: the supernet's or one subnet's; imports torch."""
