"""Datasets on disk and the batches made of them: one file per layout.

`module` has what all layouts share. `image_folder`, `coco_instances`, `coco_keypoints` and `label_maps` each read one
layout. `sources`, `augmentation` and `split` hold the records of their configuration, and `samples` the types of their
samples and batches. `inspection` validates a dataset for `stage=check`, `drawing` draws samples for people, and
`synthetic` draws the datasets for demonstrations and tests.
"""

from nas_transfer.data.augmentation import (
    ClassificationAugmentation,
    DetectionAugmentation,
    PoseAugmentation,
    SegmentationAugmentation,
)
from nas_transfer.data.coco_instances import CocoInstancesData
from nas_transfer.data.coco_keypoints import CocoKeypointsData
from nas_transfer.data.image_folder import ImageFolderData
from nas_transfer.data.label_maps import LabelMapsData
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.sources import CocoSources, FolderSources, LabelMapSources, PoseSources
from nas_transfer.data.split import Split

__all__ = [
    "ClassificationAugmentation",
    "CocoInstancesData",
    "CocoKeypointsData",
    "CocoSources",
    "DetectionAugmentation",
    "DownstreamData",
    "FolderSources",
    "ImageFolderData",
    "LabelMapSources",
    "LabelMapsData",
    "PoseAugmentation",
    "PoseSources",
    "SegmentationAugmentation",
    "Split",
]
