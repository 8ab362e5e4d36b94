"""What every head of semantic segmentation is: sizes that a configuration states, and the network they describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn
from typing_extensions import Self

from nas_transfer.supernet.cost import Cost, Size
from nas_transfer.supernet.layers import Layers


class SegmentationNetwork(nn.Module):
    """A body and a head: normalised images (B, 3, H, W) to logits (B, C, H / s, W / s) at the stride s of the head.

    Attributes:
        body: gives maps at strides 4, 8, 16, 32.
    """

    body: nn.Module

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits and, in training, those of an auxiliary head, if there is one."""
        return self(images), None

    def set_dropout(self, rate: float) -> None:
        """Set the dropout of all heads."""
        for module in self.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = rate


class SegmentationHead(Protocol):
    """The sizes of a head: a frozen dataclass that ``task.build.head`` names.

    To add a head, write such a dataclass and its network in one Python file, and a YAML in ``conf/head``.

    Attributes:
        model: name of the head in reports; weights of one head do not fit another.
        smallest_batch: the fewest images of a training step on one device.
        untrained_genes: genes whose smaller choices can do with the weights of the largest.
    """

    model: ClassVar[str]
    smallest_batch: ClassVar[int]
    untrained_genes: ClassVar[tuple[str, ...]]

    @property
    def taps(self) -> tuple[int, ...]:
        """Indices of the maps of the body that the head reads."""

    @property
    def dropout(self) -> float:
        """Probability of dropping a channel before the last layer; in a sandwich for the largest arch only."""

    @property
    def auxiliary_weight(self) -> float:
        """Weight of the loss of an auxiliary head."""

    @property
    def genes(self) -> dict[str, int]:
        """The sizes that a gene may choose, by the name of the gene, each the larger the costlier."""

    def with_genes(self, values: Mapping[str, int]) -> Self:
        """The head with other values of `genes`; further names are left alone."""

    def build(
        self, body: nn.Module, in_channels: Sequence[int], num_classes: int, layers: Layers
    ) -> SegmentationNetwork:
        """The network around a body, whose maps have at most `in_channels` channels."""

    def follow(self, network: SegmentationNetwork) -> None:
        """Make an elastic network, built from sizes that are at least as large, use these."""

    def cost(self, in_channels: tuple[int, ...], input_size: Size, num_classes: int) -> Cost:
        """The cost of the head for one image of `input_size` (H, W), behind maps of these channels."""
