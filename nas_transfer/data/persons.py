"""Persons of an annotation or box file, and a dataset of their crops."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from nas_transfer.data.coco_annotations import CocoFile, ImageEntry, read_listed
from nas_transfer.data.image_cache import ReadImage
from nas_transfer.data.images import read_image
from nas_transfer.data.keypoint_annotations import Skeleton
from nas_transfer.data.pose_crops import Crop, CropAugmentation, box_crop, cut, inverse, move
from nas_transfer.data.randomness import seeded_call
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.samples import DetectedBox, PoseSample


@dataclass(frozen=True)
class Persons:
    """The persons of a part in arrays: loading processes would copy small objects when they touch them.

    Attributes:
        sample_ids: annotation ids, or positions in the box file: int64 (N,).
        entries: positions of their images in the annotation file: int64 (N,).
        boxes: [x, y, width, height] in pixels: float64 (N, 4).
        keypoints: x, y, v in the image: float64 (N, K, 3), all 0 for a detector's boxes.
        areas, scores: float64 (N,).
    """

    sample_ids: np.ndarray
    entries: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    areas: np.ndarray
    scores: np.ndarray

    def of_images(self, entries: np.ndarray) -> "Persons":
        """Those in these images."""
        chosen = np.isin(self.entries, entries)
        return Persons(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def renumbered(self, entries: np.ndarray) -> "Persons":
        """Those in these images of the file, for a file that holds these images alone, in this order."""
        chosen = self.of_images(entries)
        return replace(chosen, entries=np.searchsorted(entries, chosen.entries))


def annotated_persons(file: CocoFile, num_keypoints: int) -> Persons:
    """All persons with a labelled keypoint, without crowds."""
    persons = [
        (entry, record)
        for entry, records in enumerate(file.annotations)
        for record in records
        if not record["iscrowd"] and record["num_keypoints"] > 0
    ]
    points = np.asarray([record["keypoints"] for _, record in persons], dtype=np.float64)
    return Persons(
        np.asarray([record["id"] for _, record in persons], dtype=np.int64),
        np.asarray([entry for entry, _ in persons], dtype=np.int64),
        np.asarray([record["bbox"] for _, record in persons], dtype=np.float64).reshape(-1, 4),
        points.reshape(-1, num_keypoints, 3),
        np.asarray([record["area"] for _, record in persons], dtype=np.float64),
        np.ones(len(persons)),
    )


def detected_persons(boxes: Sequence[DetectedBox], file: CocoFile, num_keypoints: int) -> Persons:
    """The boxes of a detector as persons without keypoints."""
    positions = {image.image_id: position for position, image in enumerate(file.images)}
    corners = np.asarray([record["bbox"] for record in boxes], dtype=np.float64).reshape(-1, 4)
    return Persons(
        np.arange(len(boxes)),
        np.asarray([positions[record["image_id"]] for record in boxes], dtype=np.int64),
        corners,
        np.zeros((len(boxes), num_keypoints, 3)),
        corners[:, 2] * corners[:, 3],
        np.asarray([record["score"] for record in boxes], dtype=np.float64),
    )


class PersonCrops(Dataset[PoseSample]):
    """Crops of persons.

    Args:
        images: images of the annotation file.
        persons: what is cut out.
        folder: folder of the images.
        skeleton: skeleton of the keypoints.
        input_size: (H, W) of the crops.
        padding: by which factor a crop is larger than its box.
        augmentation: None for evaluation.
        seed: seed of the augmentation.
        read: reads an image file.
    """

    def __init__(
        self,
        images: Sequence[ImageEntry],
        persons: Persons,
        folder: Path,
        skeleton: Skeleton,
        input_size: tuple[int, int],
        padding: float,
        augmentation: CropAugmentation | None,
        seed: int,
        read: ReadImage = read_image,
    ) -> None:
        self.images = images
        self.persons = persons
        self.folder = folder
        self.mirrored = np.arange(len(skeleton.names))
        for left, right in skeleton.flip_pairs:
            self.mirrored[[left, right]] = right, left
        self.input_size = input_size
        self.padding = padding
        self.augmentation = augmentation
        self.seed = seed
        self.read = read

    def __len__(self) -> int:
        return len(self.persons.sample_ids)

    def file_of(self, index: int) -> str:
        """The file of the image at a position."""
        return self.images[self.persons.entries[index]].file_name

    def __getitem__(self, key: SampleKey) -> PoseSample:
        persons, index = self.persons, key.index
        entry = self.images[persons.entries[index]]
        image = read_listed(self.folder, entry, self.read)
        sample_id = int(persons.sample_ids[index])
        keypoints = persons.keypoints[index]
        crop = box_crop(persons.boxes[index].tolist(), self.input_size, self.padding)
        if self.augmentation is None:
            pixels = cut(image, crop.to_image(self.input_size), self.input_size)
        else:
            arguments = (self.augmentation, image, crop, keypoints)
            crop, pixels = seeded_call(self._augmented, self.seed, key.epoch, sample_id, *arguments)
        to_image = crop.to_image(self.input_size)
        if crop.flipped:
            keypoints = keypoints[self.mirrored]
        visible = keypoints[:, 2] > 0
        points = np.where(visible[:, None], move(inverse(to_image), keypoints[:, :2]), 0.0)
        return {
            "image": pixels,
            "keypoints": torch.from_numpy(points.astype(np.float32)),
            "visible": torch.from_numpy(visible.astype(np.float32)),
            "to_image": torch.from_numpy(to_image),
            "image_id": entry.image_id,
            "area": float(persons.areas[index]),
            "box_score": float(persons.scores[index]),
            "sample_id": sample_id,
        }

    def _augmented(
        self, augmentation: CropAugmentation, image: torch.Tensor, crop: Crop, keypoints: np.ndarray
    ) -> tuple[Crop, torch.Tensor]:
        crop = augmentation(crop, keypoints, self.input_size, self.padding)
        return crop, augmentation.pixels(cut(image, crop.to_image(self.input_size), self.input_size))
