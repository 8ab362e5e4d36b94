"""Several detectors around one body, among which a gene chooses (`nas_transfer.tasks.several`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from torch import nn

from nas_transfer.arch import Arch, Gene
from nas_transfer.ranges import Positive
from nas_transfer.tasks.detection_head import DetectionHead, require_sides
from nas_transfer.tasks.genes import Choices, task_genes
from nas_transfer.tasks.head_repair import HeadRepair
from nas_transfer.tasks.several import Heads, SeveralHeads, SeveralNetworks, made
from nas_transfer.tasks.task import TaskSettings

KEY = "task.build.detector"
SHARED = ("min_size",)
"""The genes that all detectors have in common."""


class DetectorChoice(TypedDict):
    """One of the detectors: makes its largest sizes from those that all share, and has smaller choices of its genes."""

    detector: Callable[..., DetectionHead]
    genes: Choices | None


@dataclass(frozen=True)
class SeveralDetectors(SeveralHeads[DetectionHead]):
    """Detectors among which an arch chooses.

    Args:
        heads: the names of at least two of them, from the cheapest to the costliest: the smallest arch has the first,
            the largest arch the last.
        of: the detectors by name.
        min_size: the short side of the image in pixels after resizing, that of all detectors.
        max_size: upper bound of the long side; it takes precedence over `min_size`.
        detections: boxes kept per image.

    Raises:
        ConfigError: a name that is unknown or repeated, or a size that a detector cannot have.
    """

    heads: tuple[str, ...]
    of: Mapping[str, DetectorChoice]
    min_size: Positive
    max_size: Positive
    detections: Positive

    def __post_init__(self) -> None:
        require_sides(self.min_size, self.max_size)
        super().__post_init__()

    @cached_property
    def candidates(self) -> Heads[DetectionHead]:
        """The detectors that are chosen from."""
        shared = {"min_size": self.min_size, "max_size": self.max_size, "detections": self.detections}
        largest = {
            name: made(choice["detector"], shared, KEY, f"{KEY}.of.{name}.detector") for name, choice in self.of.items()
        }
        choices = {name: choice["genes"] for name, choice in self.of.items()}
        return Heads(self.heads, largest, choices, KEY, SHARED)

    @property
    def weightless_genes(self) -> tuple[str, ...]:
        """Those of all detectors."""
        renamed = [
            gene
            for name, detector in self.candidates.largest.items()
            for gene in self.candidates.renamed(name, detector.weightless_genes)
        ]
        return tuple(dict.fromkeys(renamed))

    @property
    def width_genes(self) -> tuple[str, ...]:
        """Those of the largest detector."""
        candidates = self.candidates
        return candidates.renamed(candidates.last, candidates.largest[candidates.last].width_genes)

    @property
    def head_repair(self) -> type[HeadRepair]:
        """That of the largest detector."""
        return self.candidates.largest[self.candidates.last].head_repair

    def task_genes(self, choices: Choices | None) -> tuple[Gene, ...]:
        """The genes of the task: the size of the image, the choice of the detector, and the genes of each detector."""
        return (*task_genes({"min_size": self.min_size}, choices), *self.candidates.genes())

    def chosen(self, arch: Arch) -> tuple[DetectionHead, dict[str, int]]:
        """The detector of an arch in its largest sizes, and the values of its genes."""
        return self.candidates.chosen(arch)

    def build(self, settings: TaskSettings) -> SeveralDetectorNetworks:
        """The elastic networks of all detectors around one body."""
        return SeveralDetectorNetworks(
            {name: detector.build(settings) for name, detector in self.candidates.largest.items()}
        )


class SeveralDetectorNetworks(SeveralNetworks):
    """The networks of several detectors around one body, of which one is active."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__(networks, [network.backbone for network in networks.values()])

    @property
    def backbone(self) -> nn.Module:
        """The body and the neck of the active detector."""
        return self.network.backbone
