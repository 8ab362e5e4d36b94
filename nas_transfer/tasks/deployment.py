"""What of a task is deployed: plain modules from raw pixels to named outputs, and a task run by another engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.tasks.normalise import Normalise

TOP_STRIDE = TAP_STRIDES[-1]

Run = Callable[[Tensor], tuple[Tensor, ...]]
"""Maps raw images to a deployed module's outputs, by whatever engine."""


@dataclass(frozen=True)
class Deployed:
    """A network as others use it.

    Attributes:
        module: maps RGB images float32 (B, 3, H, W) with values 0-255 to a tuple of tensors. It normalises by itself.
        outputs: their names.
        size: (H, W) that it takes, None for any multiples of 32.
        one_image: whether it takes one image of any size instead of a batch, as a detector does.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    size: tuple[int, int] | None = None
    one_image: bool = False

    @property
    def takes(self) -> str:
        """What it takes, for people."""
        if self.one_image:
            return "one RGB image of any size"
        sides = "sides in multiples of 32" if self.size is None else f"{self.size[0]}x{self.size[1]} pixels"
        return f"any batch of RGB images of {sides}"


class DeployedBody(nn.Module):
    """A body from raw pixels to its feature maps: (B, C_i, H / s, W / s) at strides s of 4, 8, 16, 32.

    Args:
        normalise: of the weights.
        body: a single arch's.
    """

    outputs = tuple(f"stride_{stride}" for stride in TAP_STRIDES)

    def __init__(self, normalise: Normalise, body: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.body = body

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps."""
        return tuple(self.body(self.normalise(images)))


class DeployedNetwork(nn.Module):
    """A network with one output tensor, from raw pixels.

    Args:
        normalise: of the weights.
        network: a single arch's.
        finish: what is done to its output.
    """

    def __init__(
        self, normalise: nn.Module, network: nn.Module, finish: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network
        self.finish = finish

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """The output."""
        output = self.network(self.normalise(images))
        return (output if self.finish is None else self.finish(output, images),)


class EngineNetwork(nn.Module):
    """Stands in for a network whose deployed form another engine runs.

    Args:
        run: the engine.
        body: the network's own, which a task looks at.
    """

    def __init__(self, run: Run, body: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        """Map raw images to the first output."""
        return self.run(images.to(torch.float32))[0].to(images.device)


class RawPixels(nn.Module):
    """Stands in for `Normalise` where the engine normalises."""

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 as floats with the same values."""
        return images.to(torch.float32)
