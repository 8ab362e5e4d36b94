"""Several heads of semantic segmentation around one body, among which a gene chooses (`nas_transfer.tasks.several`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict, cast

from torch import Tensor, nn

from nas_transfer.arch import Arch, Gene
from nas_transfer.supernet.layers import Layers
from nas_transfer.tasks.genes import Choices, task_genes
from nas_transfer.tasks.segmentation_head import SegmentationHead, SegmentationNetwork
from nas_transfer.tasks.several import Heads, SeveralHeads, SeveralNetworks

KEY = "task.build.head"


class SegmentationChoice(TypedDict):
    """One of the heads: its largest sizes, and smaller choices of its genes."""

    head: SegmentationHead
    genes: Choices | None


@dataclass(frozen=True)
class SeveralSegmentationHeads(SeveralHeads[SegmentationHead]):
    """Heads among which an arch chooses.

    Args:
        heads: the names of at least two of them, from the cheapest to the costliest: the smallest arch has the first,
            the largest arch the last.
        of: the heads by name.

    Raises:
        ConfigError: a name that is unknown or repeated.
    """

    heads: tuple[str, ...]
    of: Mapping[str, SegmentationChoice]

    @cached_property
    def candidates(self) -> Heads[SegmentationHead]:
        """The heads that are chosen from."""
        largest = {name: choice["head"] for name, choice in self.of.items()}
        return Heads(self.heads, largest, {name: choice["genes"] for name, choice in self.of.items()}, KEY)

    @property
    def taps(self) -> tuple[int, ...]:
        """Those of the largest head."""
        return self.candidates.largest[self.candidates.last].taps

    def task_genes(self, shared: Mapping[str, int], choices: Choices | None) -> tuple[Gene, ...]:
        """The genes of the task: those of all heads, the choice of the head, and the genes of each head."""
        return (*task_genes(shared, choices), *self.candidates.genes())

    def chosen(self, arch: Arch) -> SegmentationHead:
        """The head of an arch."""
        head, values = self.candidates.chosen(arch)
        return head.with_genes(values)

    def build(
        self, body: nn.Module, in_channels: Sequence[int], num_classes: int, layers: Layers
    ) -> SeveralSegmentationNetworks:
        """The elastic networks of all heads around one body."""
        heads = self.candidates.largest
        return SeveralSegmentationNetworks(
            {name: head.build(body, in_channels, num_classes, layers) for name, head in heads.items()}
        )


class SeveralSegmentationNetworks(SegmentationNetwork):
    """The networks of several heads around one body, of which one is active."""

    def __init__(self, networks: Mapping[str, SegmentationNetwork]) -> None:
        super().__init__()
        self.several = SeveralNetworks(networks, list(networks.values()))
        self.body = list(networks.values())[-1].body

    @property
    def network(self) -> SegmentationNetwork:
        """The active network."""
        return cast(SegmentationNetwork, self.several.network)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the active head."""
        return self.network(images)

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits and, in training, those of an auxiliary head of the active head."""
        return self.network.with_auxiliary(images)
