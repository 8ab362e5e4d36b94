"""The task genes of top-down pose estimation: the height of the crop, and the number and width of the deconvolutions.

Crops are loaded once, at the largest size. `resized_crops` resizes them on the device for an arch with smaller ones,
and moves their keypoints into the frame of the smaller crop.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nas_transfer.data.samples import PoseBatch
from nas_transfer.errors import ConfigError
from nas_transfer.space import Arch, SearchSpace
from nas_transfer.tasks.deployed import TOP_STRIDE
from nas_transfer.tasks.genes import Choices, task_genes, values_of
from nas_transfer.tasks.pose_head import PoseHeadSize

INPUT_HEIGHT = "input_height"
DECONVOLUTIONS = "deconvolutions"
WIDTH = "deconvolution_channels"

LEAST_SIGMA = 1.0  # cells: a narrower Gaussian may fall between the cells
LEAST_SIDE = 3  # cells: a maximum is refined from its neighbours


class PoseSizes:
    """The input size and the head of each arch.

    The width of the crop follows the aspect of the largest one, rounded to a multiple of 32 pixels. Sigma follows the
    height of the map, as in the code of Xiao et al., who take 2 cells for maps of 64x48 and 3 for 96x72. It stays at 1
    cell or more, unless the stated one is smaller.

    Args:
        head: the largest sizes of the head, with sigma in cells of the largest map.
        input_size: (H, W) of the largest crops, multiples of 32.
        choices: of the genes ``input_height`` in pixels, ``deconvolutions``, their number, and
            ``deconvolution_channels``, the one width of all; None if all sizes are fixed.
        body: the space of the body, whose genes come first in an arch.

    Attributes:
        genes: the genes of the task.
        largest_head: the head of the largest arch.

    Raises:
        ConfigError: a side of a crop that is no multiple of 32, maps of less than 3x3 cells, choices of a width for
            deconvolutions of several widths, or other choices that `task_genes` refuses.
    """

    def __init__(
        self, head: PoseHeadSize, input_size: tuple[int, int], choices: Choices | None, body: SearchSpace
    ) -> None:
        if any(side % TOP_STRIDE for side in input_size):
            raise ConfigError(f"data.input_size must be multiples of {TOP_STRIDE} pixels, got {list(input_size)}")
        self.largest_head = head
        self.largest_input = input_size
        self._values = {INPUT_HEIGHT: input_size[0], DECONVOLUTIONS: len(head.channels), WIDTH: max(head.channels)}
        self.genes = task_genes(self._values, choices)
        self._body_genes = len(body.genes)
        self._known: dict[tuple[int, ...], tuple[tuple[int, int], PoseHeadSize]] = {}
        self._check(choices or {})

    def _check(self, choices: Choices) -> None:
        heights = [height for height in self._choices(INPUT_HEIGHT) if height % TOP_STRIDE]
        if heights:
            raise ConfigError(
                f"task.build.genes.{INPUT_HEIGHT} must be multiples of {TOP_STRIDE} pixels, got {heights[0]}: "
                f"use {max(1, round(heights[0] / TOP_STRIDE)) * TOP_STRIDE}"
            )
        channels = self.largest_head.channels
        if choices.get(WIDTH) is not None and len(set(channels)) > 1:
            raise ConfigError(
                f"task.build.genes.{WIDTH} must be null where the deconvolutions differ in width, got "
                f"task.build.head.channels={list(channels)}: make these equal, or set the gene to null"
            )
        height, fewest = self._choices(INPUT_HEIGHT)[0], self._choices(DECONVOLUTIONS)[0]
        size = self._input_size(height)
        if (min(size) << fewest) // TOP_STRIDE < LEAST_SIDE:
            raise ConfigError(
                f"the smallest heatmaps must have {LEAST_SIDE}x{LEAST_SIDE} cells or more, got crops of "
                f"{size[0]}x{size[1]} pixels with {fewest} deconvolutions: leave the smallest of them out of "
                f"task.build.genes"
            )

    def _choices(self, name: str) -> tuple[int, ...]:
        return next((gene.choices for gene in self.genes if gene.name == name), (self._values[name],))

    def _input_size(self, height: int) -> tuple[int, int]:
        tallest, widest = self.largest_input
        strides = (2 * height * widest + TOP_STRIDE * tallest) // (2 * TOP_STRIDE * tallest)  # halves are rounded up
        return height, max(1, strides) * TOP_STRIDE

    @property
    def resizes(self) -> bool:
        """Whether archs have crops of several sizes."""
        return any(gene.name == INPUT_HEIGHT for gene in self.genes)

    @property
    def map_channels(self) -> int:
        """The most channels that the last convolution is given."""
        return max(self.largest_head.channels[number - 1] for number in self._choices(DECONVOLUTIONS))

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """(H, W) of the crops of an arch, in pixels."""
        return self._of(arch)[0]

    def head(self, arch: Arch) -> PoseHeadSize:
        """The head of an arch, with sigma in cells of its own maps."""
        return self._of(arch)[1]

    def loss_factor(self, size: tuple[int, int], head: PoseHeadSize) -> float:
        """The share of the largest map that a Gaussian covers, relative to that of a map of this size: 1 or less."""
        tallest, widest = (side // self.largest_head.stride for side in self.largest_input)
        return (size[0] * size[1] / head.sigma**2) / (tallest * widest / self.largest_head.sigma**2)

    def _of(self, arch: Arch) -> tuple[tuple[int, int], PoseHeadSize]:
        key = arch.values[self._body_genes :]
        if key not in self._known:
            self._known[key] = self._sizes(values_of(self._values, arch))
        return self._known[key]

    def _sizes(self, values: dict[str, int]) -> tuple[tuple[int, int], PoseHeadSize]:
        largest, number = self.largest_head, values[DECONVOLUTIONS]
        channels = tuple(min(width, values[WIDTH]) for width in largest.channels[:number])
        share = values[INPUT_HEIGHT] / self.largest_input[0] / 2 ** (len(largest.channels) - number)
        sigma = max(min(largest.sigma, LEAST_SIGMA), largest.sigma * share)
        return self._input_size(values[INPUT_HEIGHT]), replace(largest, channels=channels, sigma=sigma)


def resized_crops(batch: PoseBatch, inputs: Tensor, size: tuple[int, int]) -> PoseBatch:
    """A batch with smaller crops, and its keypoints and maps to the image in the frame of these.

    Pixel x of a crop of width W is pixel (x + 0.5) w / W - 0.5 of the crop of width w, for heights alike.

    Args:
        batch: its crops have any size (H, W).
        inputs: float (B, 3, H, W), what stands for the crops.
        size: (h, w) of the result.

    Returns:
        The batch with images float (B, 3, h, w), and keypoints and to_image of the same number formats as before.
    """
    factors = [size[1] / inputs.shape[3], size[0] / inputs.shape[2]]
    keypoints, to_image = batch["keypoints"], batch["to_image"]
    scale = torch.tensor(factors, device=keypoints.device, dtype=keypoints.dtype)
    back = 1 / torch.tensor(factors, device=to_image.device, dtype=to_image.dtype)
    linear = to_image[:, :, :2]
    offset = to_image[:, :, 2:] + linear @ (0.5 * back - 0.5)[:, None]
    return {
        **batch,
        "images": resized(inputs, size),
        "keypoints": (keypoints + 0.5) * scale - 0.5,
        "to_image": torch.cat([linear * back, offset], 2),
    }


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images or maps (B, C, H, W), bilinearly resized to (h, w) with antialiasing; the same if they have that size."""
    if images.shape[-2:] == size:
        return images
    exact = images.to(torch.promote_types(images.dtype, torch.float32))  # torch has no half precision here on a CPU
    return F.interpolate(exact, size, mode="bilinear", align_corners=False, antialias=True).to(images.dtype)
