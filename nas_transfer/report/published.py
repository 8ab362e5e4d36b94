"""What others published for searched nets: points to see one's own nets beside, where both mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LABEL = "published, not run here"
SOURCE = "the BigNAS tables of 'Transfer learning supernet to other tasks'"


@dataclass(frozen=True)
class PublishedNet:
    """A row of a published table.

    Attributes:
        name, config: as published.
        mega_macs: its Flops(M), in millions of multiply-accumulates.
        score: a percentage.
    """

    name: str
    config: str
    mega_macs: float
    score: float


@dataclass(frozen=True)
class PublishedTable:
    """Nets of one task, trained by the publisher from ImageNet weights that are not public.

    Attributes:
        task: the name of the task here that does the same.
        dataset: on whose validation split they were scored.
        input_size: (H, W) that the multiply-accumulates are stated for.
        num_classes: classes or keypoints.
        part: whose multiply-accumulates are counted, ``total`` for the whole net's.
        nets: the rows.
    """

    task: str
    dataset: str
    input_size: tuple[int, int]
    num_classes: int
    part: str
    nets: tuple[PublishedNet, ...]

    def is_comparable(self, task: str, costs: Mapping[str, Any]) -> bool:
        """Whether a run's task and its ``costs`` mean what this table means: same input size, same classes."""
        return (
            task == self.task
            and costs.get("input_size") == list(self.input_size)
            and costs.get("num_classes") == self.num_classes
        )


PUBLISHED = (
    PublishedTable(
        "coco_det", "COCO", (800, 1333), 80, "total",
        (
            PublishedNet("bignas_faster_rcnn_250M", "bignas_faster_rcnn_fpn_coco_detection_250M.py", 127937, 36.9),
            PublishedNet("bignas_faster_rcnn_350M", "bignas_faster_rcnn_fpn_coco_detection_350M.py", 128063, 37.0),
            PublishedNet("bignas_faster_rcnn_600M", "bignas_faster_rcnn_fpn_coco_detection_600M.py", 130328, 38.2),
            PublishedNet("bignas_faster_rcnn_1000M", "bignas_faster_rcnn_fpn_coco_detection_1000M.py", 133376, 39.1),
        ),
    ),
    PublishedTable(
        "coco_pose", "COCO", (256, 192), 17, "body",
        (
            PublishedNet("Topdown_bignas_250M", "bignas_topdown_coco_256x192_250M.py", 339, 66.08),
            PublishedNet("Topdown_bignas_350M", "bignas_topdown_coco_256x192_350M.py", 345, 66.23),
            PublishedNet("Topdown_bignas_600M", "bignas_topdown_coco_256x192_600M.py", 449, 67.38),
            PublishedNet("Topdown_bignas_1000M", "bignas_topdown_coco_256x192_1000M.py", 591, 68.42),
        ),
    ),
    PublishedTable(
        "cityscapes_seg", "Cityscapes", (512, 1024), 19, "total",
        (
            PublishedNet(
                "DeepLabV3plus_bignas_250M", "bignas_deeplabv3plus_512x1024_40k_cityscapes_250M.py", 28373, 69.45
            ),
            PublishedNet(
                "DeepLabV3plus_bignas_350M", "bignas_deeplabv3plus_512x1024_40k_cityscapes_350M.py", 28427, 68.54
            ),
            PublishedNet(
                "DeepLabV3plus_bignas_600M", "bignas_deeplabv3plus_512x1024_40k_cityscapes_6000M.py", 29527, 71.45
            ),
            PublishedNet(
                "DeepLabV3plus_bignas_1000M", "bignas_deeplabv3plus_512x1024_40k_cityscapes_1000M.py", 31015, 73.2
            ),
        ),
    ),
)  # fmt: skip
