"""The deployed form of a task: a plain module from raw pixels to named outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from nas_transfer.supernet.protocol import TAP_STRIDES

TOP_STRIDE = TAP_STRIDES[-1]


@dataclass(frozen=True)
class Deployed:
    """A network as others use it.

    Attributes:
        module: maps RGB images float32 (B, 3, H, W) with values 0-255 to a tuple of tensors. It normalises by itself.
        outputs: the names of these tensors.
        size: the input size (H, W); None for any multiples of `stride`.
        one_image: whether the input is one image of any size instead of a batch, as for a detector. The outputs are
            then those of torchvision's detectors, by name.
        stride: the sides of the input are multiples of this, where any are taken.
        usual_size: the size (H, W) of images at which costs are stated; None for the input size of the arch.
        padding: the grey, 0-255, with which images of other sides are padded on the right and at the bottom; None where
            they are not padded.
        meanings: what each output is, by name: shape, format and unit.
        first_label: the label of the first class, where an output holds labels or has a channel for each class.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    size: tuple[int, int] | None = None
    one_image: bool = False
    stride: int = TOP_STRIDE
    usual_size: tuple[int, int] | None = None
    padding: int | None = None
    meanings: Mapping[str, str] = field(default_factory=dict)
    first_label: int | None = None

    @property
    def takes(self) -> str:
        """The input in words."""
        if self.one_image:
            return "one RGB image of any size"
        sides = f"sides in multiples of {self.stride}" if self.size is None else f"{self.size[0]}x{self.size[1]} pixels"
        return f"any batch of RGB images of {sides}"


def padded(images: Tensor, stride: int, grey: int) -> Tensor:
    """Raw images (B, 3, H, W), padded on the right and at the bottom to sides in multiples of a stride."""
    missing = (0, -images.shape[3] % stride, 0, -images.shape[2] % stride)
    return F.pad(images, missing, value=grey) if any(missing) else images


class DeployedNetwork(nn.Module):
    """A network with one output tensor, from raw pixels.

    Args:
        normalise: maps raw images to what the network expects.
        network: the network of a single arch.
        finish: maps the output and the raw images to the final output.
    """

    def __init__(
        self, normalise: nn.Module, network: nn.Module, finish: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network
        self.finish = finish

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map raw images (B, 3, H, W) to the output."""
        output = self.network(self.normalise(images))
        return (output if self.finish is None else self.finish(output, images),)
