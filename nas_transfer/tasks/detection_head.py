"""What every detector is: sizes that a configuration states, and the network of torchvision that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import nn

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.cost import Cost
from nas_transfer.tasks.head_repair import HeadRepair
from nas_transfer.tasks.task import TaskSettings


def require_sides(min_size: int, max_size: int) -> None:
    """Raise ConfigError if the short side of images would be longer than their long side may be."""
    if min_size > max_size:
        raise ConfigError(
            f"task.build.detector.min_size must be at most task.build.detector.max_size, got {min_size} and {max_size}"
        )


class DetectionHead(Protocol):
    """The sizes of a detector: a frozen dataclass that ``task.build.detector`` names.

    To add a detector, write such a dataclass and its network in one Python file, and a YAML in ``conf/detector``. The
    network takes and returns what torchvision's detectors do, with labels from 1 up, and its ``backbone`` returns maps
    by name: maps of one name mean the same in all archs.

    Attributes:
        model: name of the detector in reports; weights of one detector do not fit another.
        smallest_batch: the fewest images of a training step on one device.
        untrained_genes: genes whose smaller choices can do with the weights of the largest.
        weightless_genes: genes that change no weight: one network runs at all choices.
        width_genes: widths among `untrained_genes`.
        head_repair: repairs neck and head of a subnet of one trained network.
    """

    model: ClassVar[str]
    smallest_batch: ClassVar[int]
    untrained_genes: ClassVar[tuple[str, ...]]
    weightless_genes: ClassVar[tuple[str, ...]]
    width_genes: ClassVar[tuple[str, ...]]
    head_repair: ClassVar[type[HeadRepair]]

    @property
    def min_size(self) -> int:
        """The short side of the image in pixels after resizing."""

    @property
    def max_size(self) -> int:
        """Upper bound of the long side; it takes precedence over `min_size`."""

    @property
    def genes(self) -> dict[str, int]:
        """The sizes that a gene may choose, by the name of the field, each the larger the costlier."""

    def build(self, settings: TaskSettings) -> nn.Module:
        """The network around the body of one arch, plain and static, or of the supernet, elastic."""

    def follow(self, network: nn.Module) -> None:
        """Make an elastic network, built from sizes that are at least as large, use these."""

    def costs(self, in_channels: Sequence[int], num_classes: int) -> dict[str, Cost]:
        """The costs behind the body for one image, by part (``neck``, ``head``).

        Args:
            in_channels: widths of the maps of the body at strides 4, 8, 16, 32.
            num_classes: without background.
        """
