"""The task genes of top-down pose estimation: the height of the crop, and those of the head.

Crops are loaded once, at the largest size. `nas_transfer.tasks.pose_crops.resized_crops` resizes them on the device for
an arch with smaller ones, and moves their keypoints into the frame of the smaller crop.
"""

from __future__ import annotations

from nas_transfer.arch import Arch
from nas_transfer.errors import ConfigError
from nas_transfer.space import SearchSpace
from nas_transfer.tasks.deployed import TOP_STRIDE
from nas_transfer.tasks.genes import Choices, task_genes, values_of
from nas_transfer.tasks.keypoint_head import KeypointHead

INPUT_HEIGHT = "input_height"


class PoseSizes:
    """The input size and the head of each arch.

    The width of the crop follows the aspect of the largest one, rounded to a multiple of 32 pixels.

    Args:
        head: the largest sizes of the head.
        input_size: (H, W) of the largest crops, multiples of 32.
        choices: of the genes ``input_height`` in pixels and of the genes of the head; None if all sizes are fixed.
        body: the space of the body, whose genes come first in an arch.

    Attributes:
        genes: the genes of the task.
        largest_head: the head of the largest arch.

    Raises:
        ConfigError: a side of a crop that is no multiple of 32, choices that the head cannot have, or other choices
            that `task_genes` refuses.
    """

    def __init__(
        self, head: KeypointHead, input_size: tuple[int, int], choices: Choices | None, body: SearchSpace
    ) -> None:
        if any(side % TOP_STRIDE for side in input_size):
            raise ConfigError(f"data.input_size must be multiples of {TOP_STRIDE} pixels, got {list(input_size)}")
        self.largest_head = head
        self.largest_input = input_size
        self._values = {INPUT_HEIGHT: input_size[0], **head.genes}
        self.genes = task_genes(self._values, choices)
        self._body_genes = len(body.genes)
        self._known: dict[tuple[int, ...], tuple[tuple[int, int], KeypointHead]] = {}
        self._check(choices or {})

    def _check(self, choices: Choices) -> None:
        heights = [height for height in self.choices[INPUT_HEIGHT] if height % TOP_STRIDE]
        if heights:
            raise ConfigError(
                f"task.build.genes.{INPUT_HEIGHT} must be multiples of {TOP_STRIDE} pixels, got {heights[0]}: "
                f"use {max(1, round(heights[0] / TOP_STRIDE)) * TOP_STRIDE}"
            )
        listed = [name for name, values in choices.items() if values is not None]
        smallest = self._input_size(self.choices[INPUT_HEIGHT][0])
        self.largest_head.check(self.choices, listed, (smallest, self.largest_input))

    @property
    def choices(self) -> dict[str, tuple[int, ...]]:
        """All choices of the crop's height and of the sizes of the head."""
        of_genes = {gene.name: gene.choices for gene in self.genes}
        return {name: of_genes.get(name, (value,)) for name, value in self._values.items()}

    def _input_size(self, height: int) -> tuple[int, int]:
        tallest, widest = self.largest_input
        strides = (2 * height * widest + TOP_STRIDE * tallest) // (2 * TOP_STRIDE * tallest)  # halves are rounded up
        return height, max(1, strides) * TOP_STRIDE

    @property
    def resizes(self) -> bool:
        """Whether archs have crops of several sizes."""
        return any(gene.name == INPUT_HEIGHT for gene in self.genes)

    def input_size(self, arch: Arch) -> tuple[int, int]:
        """(H, W) of the crops of an arch, in pixels."""
        return self._of(arch)[0]

    def head(self, arch: Arch) -> KeypointHead:
        """The head of an arch."""
        return self._of(arch)[1]

    def of(self, arch: Arch) -> PoseSizes:
        """These sizes: there is one head."""
        return self

    def loss_factor(self, size: tuple[int, ...], head: KeypointHead) -> float:
        """What the losses of a head are multiplied by whose outputs have this shape behind (B, K)."""
        return self.largest_head.loss_factor(self.largest_input, size, head)

    def _of(self, arch: Arch) -> tuple[tuple[int, int], KeypointHead]:
        key = arch.values[self._body_genes :]
        if key not in self._known:
            values = values_of(self._values, arch)
            height = values[INPUT_HEIGHT]
            head = self.largest_head.with_genes(values, height / self.largest_input[0])
            self._known[key] = self._input_size(height), head
        return self._known[key]
