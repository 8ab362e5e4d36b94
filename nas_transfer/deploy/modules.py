"""Modules that are exported, and modules by which a task is run by another engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas_transfer.deploy.engines import Run
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import TAP_STRIDES
from nas_transfer.tasks.deployed import padded
from nas_transfer.tasks.normalise import Normalise, in_order
from nas_transfer.tasks.task import Task


class DeployedBody(nn.Module):
    """A body from raw pixels to its feature maps: (B, C_i, H / s, W / s) at strides s of 4, 8, 16, 32.

    Args:
        normalise: maps raw images to what the weights expect.
        body: the body of a single arch.
    """

    outputs = tuple(f"stride_{stride}" for stride in TAP_STRIDES)

    def __init__(self, normalise: Normalise, body: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.body = body

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map raw images (B, 3, H, W) to the feature maps."""
        return tuple(self.body(self.normalise(images)))


class EngineNetwork(nn.Module):
    """Replaces a network whose deployed form another engine runs.

    Args:
        run: the engine.
        stride: the engine needs sides in multiples of this. Other images are padded on the right and at the bottom, and
            the output, which is expected at the size of the images, is cut to them.
        padding: the grey of the padding.
    """

    def __init__(self, run: Run, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.run = run
        self.stride, self.padding = stride, padding

    def forward(self, images: Tensor) -> Tensor:
        """Map raw images (B, 3, H, W) to the first output."""
        pixels = padded(images.to(torch.float32), self.stride, self.padding)
        output = self.run(pixels)[0].to(images.device)
        return output if pixels.shape == images.shape else output[:, :, : images.shape[2], : images.shape[3]]


class EngineDetector(nn.Module):
    """Replaces a detector of torchvision that another engine runs, image by image.

    Args:
        run: the engine.
        outputs: the names of its outputs.
        preprocessing: preprocessing of the weights.
    """

    def __init__(self, run: Run, outputs: Sequence[str], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.run, self.outputs, self.preprocessing = run, tuple(outputs), preprocessing

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Map images (3, H, W) in the channel order of the weights to the detections of each image, by name."""
        raw = [in_order(image, self.preprocessing)[None] for image in images]  # a second exchange restores the order
        return [dict(zip(self.outputs, self.run(image), strict=True)) for image in raw]


class RawPixels(nn.Module):
    """Replaces `Normalise` where the engine normalises."""

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 as floats with the same values."""
        return images.to(torch.float32)


def run_by(task: Task, run: Run) -> Task:
    """A copy of a task whose network an engine runs, so that an evaluation scores this engine.

    Args:
        task: a subnet. A network for batches is expected to have one output and to take what `Task.normalise` gives.
        run: runs what `Task.deployed` gives.
    """
    deployed = task.deployed()
    scored = copy.deepcopy(task)
    if deployed.one_image:
        scored.network = EngineDetector(run, deployed.outputs, task.table.preprocessing)
    else:
        scored.normalise = RawPixels()
        stride = deployed.stride if deployed.size is None else 1
        scored.network = EngineNetwork(run, stride, deployed.padding or 0)
    return scored
