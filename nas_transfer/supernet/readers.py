"""The contract by which a family reads the modules of a public network into its table.

A family of supernets is a folder with a table (`nas_transfer.supernet.protocol.SupernetTable`), a network module
(`nas_transfer.supernet.networks.NetworkModule`) and a reader: a module ``reader.py`` with the function ``read`` of
`Reader`, whose name is in `nas_transfer.supernet.public.reading.READERS`. A reader looks at modules and never at the
name of the model, so every model of a library that is built from the same modules can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nas_transfer.errors import ConfigError
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.supernet.weights.layout import Layout

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("timm", "torchvision")
MOST_CHOICES = 4
STRIDE = 32


@dataclass(frozen=True)
class PublicNet:
    """What a library says of one of its networks.

    A table that was read keeps it in its field ``source: PublicNet | None = None``, by which
    `nas_transfer.supernet.importing` finds the layout of its weights.

    Attributes:
        library: ``timm`` or ``torchvision``.
        model: name of the model in the library, without the tag of its weights.
        tag: tag of the library's weights; empty if it has none.
        url: where these weights are published; empty if there are none.
        paper: arXiv identifier or title, as far as the library says.
        licence: under which these weights are published.
        preprocessing: with which they were trained.
        resolution: height and width of images in classification.
        crop_ratio: share of the short side of an image that its centre crop has in the library's evaluation.
        num_classes: outputs of the classifier.
    """

    library: str
    model: str
    tag: str
    url: str
    paper: str
    licence: str
    preprocessing: Preprocessing
    resolution: int
    crop_ratio: float = 0.875
    num_classes: int = 1000

    @property
    def name(self) -> str:
        """Name of the supernet and of its space."""
        return f"{self.library}_{self.model}"

    @property
    def full_name(self) -> str:
        """The model with the tag of its weights, where the library takes both in one name."""
        return f"{self.model}.{self.tag}" if self.library == "timm" and self.tag else self.model

    @property
    def command(self) -> str:
        """The overrides that choose the supernet."""
        return override_of(self.name)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Choices of the gene ``resolution``: the public one, and about 6/7, 5/7 and 4/7 of it in multiples of 32."""
        smaller = {max(STRIDE, round(self.resolution * part / 7 / STRIDE) * STRIDE) for part in (4, 5, 6)}
        return (*sorted(size for size in smaller if size < self.resolution), self.resolution)


@dataclass(frozen=True)
class Reading:
    """A public network as a supernet.

    Attributes:
        table: its table, whose largest arch is the public network.
        layout: maps every tensor of the supernet's body (``body.``) and classification head (``head.``) to the tensor
            of the public network. Tensors of kernel transforms have no source.
    """

    table: SupernetTable
    layout: Layout


class Reader(Protocol):
    """The module ``reader.py`` of a family."""

    def read(self, model: nn.Module, net: PublicNet) -> Reading | None:
        """Read a network into a table of the family.

        Args:
            model: the whole classification network in eval mode. Its modules and shapes count; its tensors have no
                values, since most models are built on the device ``meta``.
            net: what the library says of it.

        Returns:
            The table and the layout of the weights, or None if the network is of another family.

        Raises:
            ConfigError: the network is of this family, but a module cannot be expressed (`unreadable`).
        """


def override_of(name: str) -> str:
    """The overrides that choose the supernet of this name, that of a `PublicNet` or of a file in ``conf/supernet``."""
    library, _, model = name.partition("_")
    return f"supernet={library} supernet.model={model}" if library in LIBRARIES and model else f"supernet={name}"


def unreadable(net: PublicNet, name: str, module: object, needed: str) -> ConfigError:
    """The error for a module that a family's table cannot express.

    Args:
        net: the network.
        name: dotted name of the module in the network.
        module: the module, whose class is named; or text that says what is wrong with it.
        needed: what the family can express in its place, such as "a depthwise convolution".
    """
    what = module if isinstance(module, str) else type(module).__name__
    return ConfigError(
        f"{net.library}'s {net.model} cannot be read as a supernet: {name} must be {needed}, got {what}; choose "
        "another supernet.model"
    )


def fewer_choices(count: int) -> tuple[int, ...]:
    """Choices of a number of blocks up to `count`: from half of them on, at most `MOST_CHOICES`, evenly spread."""
    least = (count + 1) // 2
    steps = min(MOST_CHOICES, count - least + 1) - 1
    return (*(least + round(index * (count - least) / max(steps, 1)) for index in range(steps)), count)


def narrower_choices(ratio: int) -> tuple[int, ...]:
    """Choices of an integer ratio of channels: the ratio itself, about two thirds and half of it."""
    return tuple(sorted({max(1, -(-ratio // 2)), max(1, -(-2 * ratio // 3)), ratio}))
