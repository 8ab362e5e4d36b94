"""Detection and instance segmentation from the COCO layout: image folders and `annotations/instances_*.json`."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from pycocotools.coco import COCO
from torch.utils.data import Dataset
from typing_extensions import Self

from nas_transfer.data.augmentation import DetectionAugmentation
from nas_transfer.data.coco_annotations import (
    CocoAnnotation,
    CocoFile,
    ImageEntry,
    check_coco,
    clip_box,
    decode_mask,
    read_listed,
    require_same_categories,
)
from nas_transfer.data.drawing import Picture, class_colour, draw_instances
from nas_transfer.data.image_cache import ReadImage
from nas_transfer.data.images import read_image
from nas_transfer.data.inspection import Contents, Inventory
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.randomness import seeded_call
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.samples import DetectionBatch, DetectionSample, DetectionTarget, ScoredBox
from nas_transfer.data.sources import CocoSources, PartName
from nas_transfer.data.transforms import DetectionTrain, DetectionTransform, Target
from nas_transfer.errors import DataError

logger = logging.getLogger(__name__)

KINDS = ("instances",)
NO_OBJECTS = "no annotations other than crowds"


class InstanceImages(Dataset[DetectionSample]):
    """Images with boxes; a sample is {"image": uint8 (3, H, W), "target": dict, "sample_id": COCO image id}.

    The target: boxes float32 (N, 4) xyxy pixels clipped to the image, labels int64 (N,) in 1..C, iscrowd uint8 (N,),
    area float32 (N,), image_id int and, where asked for, masks uint8 (N, H, W).

    Args:
        file: the checked annotations.
        chosen: positions in `file.images` that this dataset holds.
        folder: where `file_name`s are found.
        with_masks: decode the segmentations.
        with_crowds: keep crowd annotations (ground truth yes, training no).
        transform: transform of image and target together, or None.
        seed: seed of the augmentation.
        read: reads an image file.
    """

    def __init__(
        self,
        file: CocoFile,
        chosen: np.ndarray,
        folder: Path,
        *,
        with_masks: bool,
        with_crowds: bool,
        transform: DetectionTransform | None,
        seed: int,
        read: ReadImage = read_image,
    ) -> None:
        self.entries = [file.images[position] for position in chosen]
        self.folder = folder
        self.with_masks = with_masks
        self.transform = transform
        self.seed = seed
        self.read = read
        kept = [
            [record for record in file.annotations[position] if with_crowds or not record["iscrowd"]]
            for position in chosen
        ]
        self._pack(kept, file)

    def _pack(self, kept: Sequence[Sequence[CocoAnnotation]], file: CocoFile) -> None:
        """Keep annotations in arrays: workers would copy millions of small objects when they touch them."""
        label_of = {category.coco_id: label for label, category in enumerate(file.categories, start=1)}
        pairs = [(record, entry) for records, entry in zip(kept, self.entries, strict=True) for record in records]
        self.starts = np.cumsum([0, *(len(records) for records in kept)])
        boxes = [clip_box(record["bbox"], entry) for record, entry in pairs]
        self.boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        self.labels = np.asarray([label_of[record["category_id"]] for record, _ in pairs], dtype=np.int64)
        self.iscrowd = np.asarray([record["iscrowd"] for record, _ in pairs], dtype=np.uint8)
        self.area = np.asarray([record["area"] for record, _ in pairs], dtype=np.float32)
        texts = [json.dumps(record["segmentation"]).encode() for record, _ in pairs] if self.with_masks else []
        self.segmentations = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self.segmentation_starts = np.cumsum([0, *(len(text) for text in texts)])

    def __len__(self) -> int:
        return len(self.entries)

    def file_of(self, index: int) -> str:
        """The file of the image at a position."""
        return self.entries[index].file_name

    def __getitem__(self, key: SampleKey) -> DetectionSample:
        entry = self.entries[key.index]
        image = read_listed(self.folder, entry, self.read)
        target = self._target(key.index)
        if self.transform is not None:
            image, target = seeded_call(self.transform, self.seed, key.epoch, entry.image_id, image, target)
        complete = cast(DetectionTarget, {**target, "image_id": entry.image_id})
        return {"image": image, "target": complete, "sample_id": entry.image_id}

    def _target(self, index: int) -> Target:
        start, stop = int(self.starts[index]), int(self.starts[index + 1])
        target = {
            name: torch.from_numpy(array[start:stop].copy())
            for name, array in (
                ("boxes", self.boxes),
                ("labels", self.labels),
                ("iscrowd", self.iscrowd),
                ("area", self.area),
            )
        }
        if self.with_masks:
            entry = self.entries[index]
            masks = np.zeros((stop - start, entry.height, entry.width), dtype=np.uint8)
            for number in range(start, stop):
                masks[number - start] = self._mask(number, entry)
            target["masks"] = torch.from_numpy(masks)
        return target

    def _mask(self, number: int, entry: ImageEntry) -> np.ndarray:
        text = self.segmentations[self.segmentation_starts[number] : self.segmentation_starts[number + 1]].tobytes()
        return decode_mask(json.loads(text), entry.height, entry.width)


def _has_objects(file: CocoFile, number: int) -> bool:
    return any(not record["iscrowd"] for record in file.annotations[number])


@dataclass(frozen=True)
class CocoPart:
    """The checked annotations of a part, the folder of its images, and their form; see `AnnotatedPart`."""

    file: CocoFile
    folder: Path
    form: str = "COCO"
    undivided: bool = False

    def only(self, positions: np.ndarray) -> Self:
        """The part with the images at these positions alone."""
        return replace(self, file=self.file.only(positions.tolist()), undivided=False)

    @property
    def digests(self) -> Sequence[str]:
        """A line for each file of annotations that belongs to one image."""
        return self.file.digests

    @property
    def num_images(self) -> int:
        """Images that the annotation file lists."""
        return len(self.file.images)

    @property
    def image_paths(self) -> list[Path]:
        """Their files."""
        return [self.folder / entry.file_name for entry in self.file.images]

    @property
    def annotation_paths(self) -> list[Path]:
        """The annotation file; files of single images count by their digests."""
        return [self.file.path] if self.file.path.is_file() else []


@dataclass(kw_only=True, eq=False, repr=False)
class CocoInstancesData(DownstreamData[CocoPart, DetectionSample, DetectionBatch]):
    """COCO and every dataset converted to it.

    Images without annotations are evaluated but not trained on; crowds are ground truth but no training target.

    Attributes:
        sources: where images and annotation files are.
        skip_empty_boxes: leave annotations without area out instead of refusing them.
        with_masks: read the segmentations, for instance segmentation.
        aspect_grouping: put wide and tall images into separate batches.
        augmentation: augmentation of the training images.

    Raises:
        DataError: (in setup) missing files and everything that `read_coco` refuses.
    """

    sources: CocoSources
    skip_empty_boxes: bool
    with_masks: bool
    aspect_grouping: bool
    augmentation: DetectionAugmentation

    def __post_init__(self) -> None:
        super().__post_init__()
        self.train_transform = DetectionTrain(self.augmentation)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; label k is the k-th, from 1."""
        return self.vocabulary.names

    @property
    def category_ids(self) -> list[int]:
        """COCO ids of the classes: label k has id `category_ids[k - 1]`."""
        return list(self.vocabulary.ids)

    def task_arguments(self) -> dict[str, object]:
        """The category ids, for predictions in COCO's format."""
        return {"category_ids": self.category_ids}

    def read_part(self, part: PartName, refused: list[str] | None = None) -> CocoPart:
        """Read and check the annotations, whatever their form."""
        source = self.sources.find(self.root, part, kinds=KINDS)
        file = check_coco(
            source.read(refused),
            need_masks=self.with_masks,
            skip_empty_boxes=self.skip_empty_boxes and refused is None,
            refused=refused,
        )
        if file.num_skipped:
            logger.warning("left out %d annotations without area of %s", file.num_skipped, file.path)
        return CocoPart(file, source.folder, source.form, source.undivided)

    def describe(self, val: CocoPart) -> Vocabulary:
        """The categories."""
        categories = val.file.categories
        return Vocabulary(
            tuple(category.name for category in categories), tuple(category.coco_id for category in categories)
        )

    def trainable(self, annotation: CocoPart, usable: np.ndarray) -> np.ndarray:
        """The images with an annotation that is no crowd."""
        annotated = [number for number in usable if _has_objects(annotation.file, number)]
        if not annotated:
            raise DataError(
                f"{annotation.file.path} must have annotations other than crowds, got none: annotate objects"
            )
        return np.asarray(annotated, dtype=np.int64)

    def unscored(self, annotation: CocoPart, chosen: np.ndarray) -> str:
        """Objects are needed, crowds do not suffice."""
        return "" if any(_has_objects(annotation.file, number) for number in chosen) else NO_OBJECTS

    def require_same_kind(self, train: CocoPart, val: CocoPart) -> None:
        """Raise DataError unless both files have the same categories."""
        require_same_categories(train.file, val.file)

    def ground_truth(self, annotation: CocoPart, chosen: np.ndarray) -> COCO:
        """All annotations of the images, crowds included."""
        return annotation.file.ground_truth(chosen)

    def batch_groups(self, annotation: CocoPart, chosen: np.ndarray) -> Sequence[int] | None:
        """Whether an image is wide, with `aspect_grouping`."""
        if not self.aspect_grouping:
            return None
        entries = [annotation.file.images[position] for position in chosen]
        return [int(entry.width >= entry.height) for entry in entries]

    def dataset(self, annotation: CocoPart, chosen: np.ndarray, *, training: bool) -> InstanceImages:
        """Images with their objects; crowds in evaluation only."""
        return InstanceImages(
            annotation.file,
            chosen,
            annotation.folder,
            with_masks=self.with_masks,
            with_crowds=not training,
            transform=self.train_transform if training else None,
            seed=self.seed,
            read=self.read_image,
        )

    def inventory(self, annotation: CocoPart, refused: Sequence[str]) -> Inventory:
        """Every image that the annotation file lists; crowds do not count as objects."""
        file = annotation.file
        images = self.dataset(annotation, np.arange(annotation.num_images), training=False)
        images.read = read_image  # each image is looked at once

        def look(position: int) -> tuple[torch.Tensor, Contents]:
            sample = images[SampleKey(position, 0)]
            target = sample["target"]
            single = target["iscrowd"].numpy() == 0
            areas = target["masks"].sum((1, 2)) if self.with_masks else target["area"]
            boxes = np.asarray([record["bbox"] for record in file.annotations[position]]).reshape(-1, 4)
            labels = target["labels"].numpy()[single] - 1
            return sample["image"], Contents(labels, boxes[single], areas.numpy()[single])

        names = tuple(category.name for category in file.categories)
        return Inventory(names, [entry.file_name for entry in file.images], look, refused)

    @staticmethod
    def collate(samples: list[DetectionSample]) -> DetectionBatch:
        """Lists of images and of targets."""
        return {
            "images": [sample["image"] for sample in samples],
            "targets": [sample["target"] for sample in samples],
            "sample_ids": torch.tensor([sample["sample_id"] for sample in samples], dtype=torch.int64),
        }

    def draw_sample(self, sample: DetectionSample) -> Picture:
        """The image with boxes and, where they are read, masks."""
        target = sample["target"]
        labels = [label - 1 for label in target["labels"].tolist()]
        picture = draw_instances(sample["image"], target["boxes"], labels, self.class_names, target.get("masks"))
        return replace(picture, legend={self.class_names[label]: class_colour(label) for label in sorted(set(labels))})

    def prediction_batch(self, image: torch.Tensor, boxes: Sequence[ScoredBox]) -> DetectionBatch:
        """The image alone."""
        return {"images": [image]}
