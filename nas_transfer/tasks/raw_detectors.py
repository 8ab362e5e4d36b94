"""One-stage detectors without non-maximum suppression: all boxes and scores, for runtimes that select boxes themselves.

A network takes a batch of images of one size, which it does not resize, so that its anchors are constants. Its outputs
are floats alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD

from nas_transfer.supernet.cost import Size

OUTPUTS = ("boxes", "scores")


@runtime_checkable
class OneStage(Protocol):
    """The sizes of a detector whose outputs can be decoded without a selection of boxes in between."""

    def raw(self, normalise: nn.Module, network: nn.Module, size: Size) -> nn.Module:
        """The network of an arch from raw images (B, 3, H, W) of one size to boxes and scores.

        Args:
            normalise: maps raw images to what the body expects.
            network: that `DetectionHead.build` made.
            size: (H, W) of all images, multiples of 32.
        """


class RawDetector(nn.Module):
    """A detector from raw images (B, 3, H, W) to boxes (B, N, 4) xyxy in pixels and scores (B, N, C) of N anchors.

    Args:
        normalise: maps raw images to what the body expects.
        network: torchvision's detector of one arch.
        size: (H, W) of all images, multiples of 32.
    """

    anchors: Tensor
    limits: Tensor

    def __init__(self, normalise: nn.Module, network: FCOS | SSD, size: Size) -> None:
        super().__init__()
        self.normalise, self.backbone, self.head = normalise, network.backbone, network.head
        example = next(network.parameters()).new_zeros(1, 3, *size)
        with torch.no_grad():
            levels = list(network.eval().backbone(example).values())
            anchors = network.anchor_generator(ImageList(example, [size]), levels)[0]
        self.register_buffer("anchors", anchors, persistent=False)
        self.register_buffer("limits", anchors.new_tensor([size[1], size[0], size[1], size[0]]), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map raw images to all boxes, cut to the image, and the scores of all classes."""
        levels = list(self.backbone(self.normalise(images)).values())
        boxes, scores = self.decoded(self.head(levels))
        return torch.minimum(boxes.clamp(min=0), self.limits), scores

    @abstractmethod
    def decoded(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (B, N, 4) xyxy and scores (B, N, C) of the outputs of the heads."""


class RawFcos(RawDetector):
    """FCOS: the score of a class is the geometric mean of its probability and the centreness, as in torchvision."""

    def decoded(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Distances of the sides from each point, in units of its level."""
        sides = outputs["bbox_regression"]
        points, scale = (self.anchors[:, :2] + self.anchors[:, 2:]) / 2, (self.anchors[:, 2:] - self.anchors[:, :2])
        boxes = torch.cat([points - sides[..., :2] * scale, points + sides[..., 2:] * scale], -1)
        return boxes, torch.sqrt(outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid())


class RawSsd(RawDetector):
    """SSDLite: boxes are offsets from anchors, and the class of the background is left out.

    Args:
        normalise, network, size: as for `RawDetector`.
    """

    def __init__(self, normalise: nn.Module, network: SSD, size: Size) -> None:
        super().__init__(normalise, network, size)
        self.weights: tuple[float, float, float, float] = network.box_coder.weights
        self.largest_log: float = network.box_coder.bbox_xform_clip

    def decoded(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Offsets of the centre in units of the anchor, and logarithms of its scale."""
        sides = self.anchors[:, 2:] - self.anchors[:, :2]
        offsets = outputs["bbox_regression"]
        centres = self.anchors[:, :2] + sides / 2 + offsets[..., :2] / offsets.new_tensor(self.weights[:2]) * sides
        logs = (offsets[..., 2:] / offsets.new_tensor(self.weights[2:])).clamp(max=self.largest_log)
        halves = sides * logs.exp() / 2
        return torch.cat([centres - halves, centres + halves], -1), outputs["cls_logits"].softmax(-1)[..., 1:]
