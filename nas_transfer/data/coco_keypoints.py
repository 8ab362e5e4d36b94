"""Top-down pose estimation from COCO keypoint files: each sample is one person, cut out of an image."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pycocotools.coco import COCO
from typing_extensions import Self

from nas_transfer.data.augmentation import PoseAugmentation
from nas_transfer.data.coco_annotations import read_listed
from nas_transfer.data.drawing import Picture, draw_keypoints
from nas_transfer.data.inspection import Contents, Inventory
from nas_transfer.data.keypoint_annotations import (
    Body,
    KeypointFile,
    Skeleton,
    check_keypoints,
    read_boxes,
    read_skeleton,
)
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.persons import PersonCrops, Persons, annotated_persons, detected_persons
from nas_transfer.data.pose_crops import CropAugmentation, box_crop, cut
from nas_transfer.data.samples import PoseBatch, PoseSample, ScoredBox
from nas_transfer.data.sources import PartName, PoseSources
from nas_transfer.errors import ConfigError, DataError
from nas_transfer.ranges import Positive, Range

logger = logging.getLogger(__name__)

KINDS = ("person_keypoints", "keypoints")


@dataclass(frozen=True)
class KeypointPart:
    """The checked annotations of a part, the persons to be cut out, the folder of the images, and the file of boxes."""

    keypoints: KeypointFile
    persons: Persons
    folder: Path
    boxes: Path | None = None
    form: str = "COCO"
    undivided: bool = False

    def only(self, positions: np.ndarray) -> Self:
        """The part with the images at these positions alone."""
        file = self.keypoints.file.only(positions.tolist())
        persons = self.persons.renumbered(positions)
        return replace(self, keypoints=replace(self.keypoints, file=file), persons=persons, undivided=False)

    @property
    def digests(self) -> Sequence[str]:
        """A line for each file of annotations that belongs to one image."""
        return self.keypoints.file.digests

    @property
    def num_images(self) -> int:
        """Images that the annotation file lists."""
        return len(self.keypoints.file.images)

    @property
    def image_paths(self) -> list[Path]:
        """Their files."""
        return [self.folder / entry.file_name for entry in self.keypoints.file.images]

    @property
    def annotation_paths(self) -> list[Path]:
        """The annotation file, and that of a detector's boxes."""
        paths = [self.keypoints.file.path, *filter(None, [self.boxes])]
        return [path for path in paths if path.is_file()]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the keypoints in the file."""
        return tuple(str(name) for name in self.keypoints.category["keypoints"])


@dataclass(kw_only=True, eq=False, repr=False)
class CocoKeypointsData(DownstreamData[KeypointPart, PoseSample, PoseBatch]):
    """COCO keypoints and every dataset converted to them, whatever the keypoints.

    Persons with a labelled keypoint are trained on and scored. The search split is cut by image, never by person.

    Attributes:
        sources: where images, annotation files and the boxes of a detector are.
        body: what the keypoints are, where the files do not say it.
        input_size: height and width of the crops in pixels.
        padding: by which factor a crop is larger than its box.
        augmentation: augmentation of the training crops.

    Raises:
        ConfigError: a value that cannot be used; (in setup) a list of `body` that does not fit the keypoints.
        DataError: (in setup) missing files and everything that `read_keypoints` and `read_boxes` refuse.
    """

    sources: PoseSources
    body: Body
    input_size: Sequence[Positive]
    padding: Annotated[float, Range(above=0, maximum=10)]
    augmentation: PoseAugmentation

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.input_size) != 2 or min(self.input_size) < 1:
            raise ConfigError(f"data.input_size must be [height, width] in pixels, got {list(self.input_size)}")
        if self.split.val_fraction is not None and self.sources.val_boxes is not None:
            raise ConfigError("data.sources.val_boxes need a val part on disk, got data.split.val_fraction: remove one")
        self._size = (int(self.input_size[0]), int(self.input_size[1]))
        self._skeleton: Skeleton | None = None

    @property
    def skeleton(self) -> Skeleton:
        """Names, flip pairs, sigmas, lower body and edges of the keypoints."""
        self.require_parts()
        return self._require_skeleton()

    def _require_skeleton(self) -> Skeleton:
        assert self._skeleton is not None  # `describe` sets it before anything else is made
        return self._skeleton

    def task_arguments(self) -> dict[str, object]:
        """The category, and what the head and the metric need to know of the keypoints."""
        skeleton = self.skeleton
        return {
            "category_id": self.vocabulary.ids[0],
            "flip_pairs": [list(pair) for pair in skeleton.flip_pairs],
            "sigmas": list(skeleton.sigmas),
        }

    def read_part(self, part: PartName, refused: list[str] | None = None) -> KeypointPart:
        """Read and check the annotation file, and in validation the boxes of a detector."""
        source = self.sources.find(self.root, part, KINDS)
        keypoints = check_keypoints(source.read(refused), refused)
        file = keypoints.file
        if refused is None and file.num_skipped:
            logger.info("left out %d persons without box and keypoints of %s", file.num_skipped, file.path)
        persons = annotated_persons(file, len(keypoints.category["keypoints"]))
        boxes: Path | None = None
        if part == "val" and self.sources.val_boxes is not None and refused is None:
            boxes = self.root / self.sources.val_boxes
            persons = self._detected(keypoints, boxes)
        return KeypointPart(keypoints, persons, source.folder, boxes, source.form, source.undivided)

    def _detected(self, keypoints: KeypointFile, val_boxes: Path) -> Persons:
        category_id, threshold = int(keypoints.category["id"]), self.sources.box_threshold
        boxes = read_boxes(val_boxes, keypoints.file, category_id, threshold, "data.sources.val_boxes")
        return detected_persons(boxes, keypoints.file, len(keypoints.category["keypoints"]))

    def describe(self, val: KeypointPart) -> Vocabulary:
        """The keypoints, and the limbs between them."""
        category = val.keypoints.category
        skeleton = self._skeleton = read_skeleton(category, self.body)
        return Vocabulary(skeleton.names, (int(category["id"]),), skeleton.edges, skeleton.flip_pairs)

    def require_same_kind(self, train: KeypointPart, val: KeypointPart) -> None:
        """Raise DataError unless both files have the same keypoints."""
        if train.names != val.names:
            raise DataError(
                f"{train.keypoints.file.path} and {val.keypoints.file.path} must have the same keypoints, "
                f"got {list(train.names)} and {list(val.names)}: set files of one kind"
            )

    def trainable(self, annotation: KeypointPart, usable: np.ndarray) -> np.ndarray:
        """All of them; DataError without a person in the whole file."""
        if not len(annotation.persons.sample_ids):
            raise DataError(
                f"{annotation.keypoints.file.path} must have persons with keypoints, got none: annotate some"
            )
        return usable

    def unscored(self, annotation: KeypointPart, chosen: np.ndarray) -> str:
        """Persons with keypoints are needed, crowds do not suffice."""
        records = (record for number in chosen for record in annotation.keypoints.file.annotations[number])
        labelled = any(record["num_keypoints"] > 0 and not record["iscrowd"] for record in records)
        return "" if labelled else "no persons with keypoints"

    def ground_truth(self, annotation: KeypointPart, chosen: np.ndarray) -> COCO:
        """All annotations of the images, crowds and persons without labelled keypoints included."""
        return annotation.keypoints.file.ground_truth(chosen)

    def dataset(self, annotation: KeypointPart, chosen: np.ndarray, *, training: bool) -> PersonCrops:
        """Crops of the persons in these images."""
        skeleton = self._require_skeleton()
        return PersonCrops(
            annotation.keypoints.file.images,
            annotation.persons.of_images(chosen),
            annotation.folder,
            skeleton,
            self._size,
            self.padding,
            CropAugmentation(self.augmentation, skeleton.lower_body) if training else None,
            self.seed,
            self.read_image,
        )

    def inventory(self, annotation: KeypointPart, refused: Sequence[str]) -> Inventory:
        """Every image that the annotation file lists; persons without a labelled keypoint and crowds do not count."""
        images, persons = annotation.keypoints.file.images, annotation.persons
        starts = np.searchsorted(persons.entries, np.arange(len(images) + 1))  # persons are sorted by image

        def look(position: int) -> tuple[torch.Tensor, Contents]:
            here = slice(starts[position], starts[position + 1])
            labelled = persons.keypoints[here, :, 2] > 0
            contents = Contents(np.nonzero(labelled)[1], persons.boxes[here], persons.areas[here], labelled.sum(1))
            return read_listed(annotation.folder, images[position]), contents

        return Inventory(annotation.names, [entry.file_name for entry in images], look, refused)

    @staticmethod
    def collate(samples: list[PoseSample]) -> PoseBatch:
        """Stacked crops."""
        return {
            "images": torch.stack([sample["image"] for sample in samples]),
            "keypoints": torch.stack([sample["keypoints"] for sample in samples]),
            "visible": torch.stack([sample["visible"] for sample in samples]),
            "to_image": torch.stack([sample["to_image"] for sample in samples]),
            "image_ids": torch.tensor([sample["image_id"] for sample in samples], dtype=torch.int64),
            "sample_ids": torch.tensor([sample["sample_id"] for sample in samples], dtype=torch.int64),
            "areas": torch.tensor([sample["area"] for sample in samples], dtype=torch.float32),
            "box_scores": torch.tensor([sample["box_score"] for sample in samples], dtype=torch.float32),
        }

    def draw_sample(self, sample: PoseSample) -> Picture:
        """The crop with its keypoints."""
        skeleton = self.skeleton
        visible = [flag > 0 for flag in sample["visible"].tolist()]
        return draw_keypoints(sample["image"], sample["keypoints"], visible, skeleton.edges, skeleton.flip_pairs)

    def in_own_frame(self, sample: PoseSample) -> PoseSample:
        """The crop as if it were the whole image."""
        return {**sample, "to_image": torch.eye(2, 3, dtype=torch.float64)}

    def prediction_batch(self, image: torch.Tensor, boxes: Sequence[ScoredBox]) -> PoseBatch:
        """The crops of these boxes."""
        samples: list[PoseSample] = []
        for number, record in enumerate(boxes):
            to_image = box_crop(record["bbox"], self._size, self.padding).to_image(self._size)
            samples.append(
                {
                    "image": cut(image, to_image, self._size),
                    "keypoints": torch.zeros(self.num_classes, 2),
                    "visible": torch.zeros(self.num_classes),
                    "to_image": torch.from_numpy(to_image),
                    "image_id": 0,
                    "area": float(record["bbox"][2] * record["bbox"][3]),
                    "box_score": float(record["score"]),
                    "sample_id": number,
                }
            )
        return self.collate(samples)
