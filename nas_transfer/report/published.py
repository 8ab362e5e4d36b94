"""Published results of searched nets, shown beside the nets of a report that compare with them."""

from __future__ import annotations

from dataclasses import dataclass

from nas_transfer.runs import Costs

LABEL = "published, not run here"
SOURCE = "the model-zoo tables of BigNAS backbones titled 'Transfer learning supernet to other tasks'"


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
    """Nets of one task, trained by their publisher from ImageNet weights that are not public.

    Attributes:
        task: the name of the task in this program that does the same.
        dataset: they were scored on its validation split.
        input_size: (H, W) that the multiply-accumulates are stated for.
        num_classes: classes or keypoints.
        part: part of the net whose multiply-accumulates are counted, ``total`` for the whole net.
        nets: the rows.
    """

    task: str
    dataset: str
    input_size: tuple[int, int]
    num_classes: int
    part: str
    nets: tuple[PublishedNet, ...]

    def is_comparable(self, task: str, costs: Costs) -> bool:
        """Whether a run's task and costs are those of this table: same task, input size and number of classes."""
        return (task, costs.input_size, costs.num_classes) == (self.task, self.input_size, self.num_classes)


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
