"""Top-down pose estimation from COCO keypoint files: one sample a person, cut out of its image."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from torch.utils.data import Dataset

from nas_transfer.data.coco_annotations import CocoFile, PartPaths, Record, find_part, read_listed
from nas_transfer.data.drawing import Picture, draw_keypoints
from nas_transfer.data.images import usable_images
from nas_transfer.data.inspection import Contents, Inventory, found_parts
from nas_transfer.data.keypoint_annotations import KeypointFile, Skeleton, read_boxes, read_keypoints, read_skeleton
from nas_transfer.data.module import Batch, DownstreamData, Draw, Parts, Sample, Vocabulary
from nas_transfer.data.pose_crops import PoseAugmentation, box_crop, cut, inverse, move
from nas_transfer.data.randomness import seeded_call
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.split import search_split
from nas_transfer.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

KINDS = ("person_keypoints", "keypoints")


@dataclass(frozen=True)
class Persons:
    """The persons of a part in arrays, since workers would copy small objects when they touch them.

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


def annotated_persons(file: CocoFile, num_keypoints: int) -> Persons:
    """All persons with a labelled keypoint that are no crowd."""
    found = [
        (entry, record)
        for entry, records in enumerate(file.annotations)
        for record in records
        if not record["iscrowd"] and record["num_keypoints"] > 0
    ]
    points = np.asarray([record["keypoints"] for _, record in found], dtype=np.float64)
    return Persons(
        np.asarray([record["id"] for _, record in found], dtype=np.int64),
        np.asarray([entry for entry, _ in found], dtype=np.int64),
        np.asarray([record["bbox"] for _, record in found], dtype=np.float64).reshape(-1, 4),
        points.reshape(-1, num_keypoints, 3),
        np.asarray([record["area"] for _, record in found], dtype=np.float64),
        np.ones(len(found)),
    )


def detected_persons(boxes: Sequence[Record], file: CocoFile, num_keypoints: int) -> Persons:
    """A detector's boxes as persons without keypoints."""
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


class PersonCrops(Dataset[Sample]):
    """Crops of persons; see `stack_persons` for what a sample holds.

    Args:
        file: the annotations, for the images.
        persons: what is cut out.
        folder: where `file_name`s are found.
        skeleton: of the keypoints.
        input_size: (H, W) of the crops.
        padding: factor of the box.
        augmentation: None for evaluation.
        seed: of the augmentation.
    """

    def __init__(
        self,
        file: CocoFile,
        persons: Persons,
        folder: Path,
        skeleton: Skeleton,
        input_size: tuple[int, int],
        padding: float,
        augmentation: PoseAugmentation | None,
        seed: int,
    ) -> None:
        self.images = file.images
        self.persons = persons
        self.folder = folder
        self.mirrored = np.arange(len(skeleton.names))
        for left, right in skeleton.flip_pairs:
            self.mirrored[[left, right]] = right, left
        self.input_size = input_size
        self.padding = padding
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.persons.sample_ids)

    def __getitem__(self, key: SampleKey) -> Sample:
        persons, index = self.persons, key.index
        entry = self.images[persons.entries[index]]
        image = read_listed(self.folder, entry)
        sample_id = int(persons.sample_ids[index])
        keypoints = persons.keypoints[index]
        crop = box_crop(persons.boxes[index].tolist(), self.input_size, self.padding)
        if self.augmentation is not None:
            arguments = (crop, keypoints, self.input_size, self.padding)
            crop = seeded_call(self.augmentation, self.seed, key.epoch, sample_id, *arguments)
        to_image = crop.to_image(self.input_size)
        if crop.flipped:
            keypoints = keypoints[self.mirrored]
        visible = keypoints[:, 2] > 0
        points = np.where(visible[:, None], move(inverse(to_image), keypoints[:, :2]), 0.0)
        return {
            "image": cut(image, to_image, self.input_size),
            "keypoints": torch.from_numpy(points.astype(np.float32)),
            "visible": torch.from_numpy(visible.astype(np.float32)),
            "to_image": torch.from_numpy(to_image),
            "image_id": entry.image_id,
            "area": float(persons.areas[index]),
            "box_score": float(persons.scores[index]),
            "sample_id": sample_id,
        }


def stack_persons(samples: list[Sample]) -> Batch:
    """One batch of persons.

    Returns: images uint8 (B, 3, H, W); keypoints float32 (B, K, 2) in the crop's pixel-index frame; visible float32
        (B, K), 1 where labelled; to_image float64 (B, 2, 3) from the crop's frame to the image's; image_ids and
        sample_ids int64 (B,); areas in the image and box_scores float32 (B,).
    """
    batch: Batch = {
        plural: torch.stack([sample[single] for sample in samples])
        for plural, single in (
            ("images", "image"), ("keypoints", "keypoints"), ("visible", "visible"), ("to_image", "to_image"),
        )
    }  # fmt: skip
    for name in ("image_id", "sample_id"):
        batch[f"{name}s"] = torch.tensor([sample[name] for sample in samples], dtype=torch.int64)
    for name in ("area", "box_score"):
        batch[f"{name}s"] = torch.tensor([sample[name] for sample in samples], dtype=torch.float32)
    return batch


class CocoKeypointsData(DownstreamData):
    """COCO keypoints and every data set converted to them, whatever the keypoints.

    Trained on and scored are persons with a labelled keypoint; the search split is cut by image, never by person.

    Raises (in setup): DataError for missing files and everything that `read_keypoints` and `read_boxes` refuse,
        ConfigError for lists whose length differs from the number of keypoints.
    """

    def __init__(
        self,
        root: str,
        train_images: str | None,
        val_images: str | None,
        train_annotations: str | None,
        val_annotations: str | None,
        val_boxes: str | None,
        box_threshold: float,
        keypoint_names: Sequence[str] | None,
        flip_pairs: Sequence[Sequence[int]] | None,
        sigmas: Sequence[float] | None,
        lower_body: Sequence[str] | None,
        input_size: Sequence[int],
        padding: float,
        batch_size: int,
        num_workers: int,
        seed: int,
        skip_broken: bool,
        flip: float,
        half_body: float,
        shift: float,
        scale_range: Sequence[float],
        rotation: float,
        search_fraction: float,
        hold_out_search: bool,
        draw: Draw | None,
    ) -> None:
        super().__init__(root, batch_size, num_workers, seed, stack_persons, draw)
        if len(input_size) != 2 or min(input_size) < 1:
            raise ConfigError(f"expected [height, width] in pixels, got {list(input_size)}: set data.input_size.")
        self.given = {"train": (train_images, train_annotations), "val": (val_images, val_annotations)}
        self.val_boxes = val_boxes
        self.box_threshold = box_threshold
        self.body = {
            "names": keypoint_names, "flip_pairs": flip_pairs, "sigmas": sigmas, "lower_body": lower_body,
        }  # fmt: skip
        self.input_size = (int(input_size[0]), int(input_size[1]))
        self.padding = padding
        self.skip_broken = skip_broken
        self.augmentation = (flip, half_body, shift, scale_range, rotation)
        PoseAugmentation(*self.augmentation, lower_body=())  # checks them before files are read
        self.search_fraction = search_fraction
        self.hold_out_search = hold_out_search
        self._skeleton: Skeleton | None = None
        self._category_id = 0
        self._val_coco: COCO | None = None
        self._search_coco: COCO | None = None

    @property
    def skeleton(self) -> Skeleton:
        """Names, flip pairs, sigmas, lower body and edges of the keypoints."""
        self.require_parts()
        assert self._skeleton is not None  # setup makes it
        return self._skeleton

    @property
    def num_classes(self) -> int:
        """Number of keypoints K."""
        return len(self.skeleton.names)

    @property
    def val_ground_truth(self) -> COCO | None:
        """pycocotools ground truth of the images of the validation split, crowds and unlabelled persons included."""
        self.require_parts()
        return self._val_coco

    @property
    def search_ground_truth(self) -> COCO | None:
        """The same of the search split."""
        self.require_parts()
        return self._search_coco

    def task_arguments(self) -> dict[str, Any]:
        """The category, and what the head and the metric need to know of the keypoints."""
        skeleton = self.skeleton
        return {
            "category_id": self._category_id,
            "flip_pairs": [list(pair) for pair in skeleton.flip_pairs],
            "sigmas": list(skeleton.sigmas),
        }

    def draw_sample(self, sample: Sample) -> Picture:
        """The crop with its keypoints."""
        body = self.skeleton
        visible = [flag > 0 for flag in sample["visible"].tolist()]
        return draw_keypoints(sample["image"], sample["keypoints"], visible, body.edges, body.flip_pairs)

    def in_own_frame(self, sample: Sample) -> Sample:
        """The crop as if it were the whole image."""
        return sample | {"to_image": torch.eye(2, 3, dtype=torch.float64)}

    @property
    def vocabulary(self) -> Vocabulary:
        """The keypoints, and the limbs between them."""
        skeleton = self.skeleton
        return Vocabulary(skeleton.names, (self._category_id,), skeleton.edges, skeleton.flip_pairs)

    def prediction_batch(self, image: torch.Tensor, boxes: Sequence[Record]) -> Batch:
        """The crops of these boxes."""
        samples = []
        for number, record in enumerate(boxes):
            to_image = box_crop(record["bbox"], self.input_size, self.padding).to_image(self.input_size)
            samples.append(
                {
                    "image": cut(image, to_image, self.input_size),
                    "keypoints": torch.zeros(self.num_classes, 2),
                    "visible": torch.zeros(self.num_classes),
                    "to_image": torch.from_numpy(to_image),
                    "image_id": 0,
                    "area": float(record["bbox"][2] * record["bbox"][3]),
                    "box_score": float(record["score"]),
                    "sample_id": number,
                }
            )
        return stack_persons(samples)

    def inventories(self) -> dict[str, Inventory]:
        """Every image that the annotation files list; persons without a labelled keypoint and crowds do not count."""
        return {part: self._inventory(paths) for part, paths in found_parts(self._find, self.given).items()}

    def _inventory(self, paths: PartPaths) -> Inventory:
        refused: list[str] = []
        keypoint_file = read_keypoints(paths.annotations, refused)
        file, names = keypoint_file.file, tuple(str(name) for name in keypoint_file.category["keypoints"])
        persons = annotated_persons(file, len(names))
        starts = np.searchsorted(persons.entries, np.arange(len(file.images) + 1))  # they come image by image

        def look(position: int) -> tuple[torch.Tensor, Contents]:
            own = slice(starts[position], starts[position + 1])
            labelled = persons.keypoints[own, :, 2] > 0
            contents = Contents(np.nonzero(labelled)[1], persons.boxes[own], persons.areas[own], labelled.sum(1))
            return read_listed(paths.images, file.images[position]), contents

        return Inventory(names, [entry.file_name for entry in file.images], look, refused)

    def setup(self, stage: str = "fit") -> None:
        """Read and check the annotation files, cut the search split and build the ground truths."""
        if self.parts is not None:
            return
        val_paths, train_paths = self._find("val"), self._find("train")
        if isinstance(val_paths, DataError):
            raise val_paths
        if isinstance(train_paths, DataError) and any(self.given["train"]):
            raise train_paths
        val_file = read_keypoints(val_paths.annotations)
        skeleton = read_skeleton(val_file.category, **self.body)  # type: ignore[arg-type]
        self._skeleton, self._category_id = skeleton, int(val_file.category["id"])
        usable = self._usable(val_file.file, val_paths)
        val = self._crops(val_file, self._val_persons(val_file).of_images(usable), val_paths, training=False)
        self._val_coco = val_file.file.ground_truth(usable)
        if isinstance(train_paths, DataError):
            self.parts = Parts(val, train_missing=str(train_paths))
        else:
            self.parts = self._with_train(val, val_file, train_paths)

    def _val_persons(self, val_file: KeypointFile) -> Persons:
        count = len(val_file.category["keypoints"])
        if self.val_boxes is None:
            return annotated_persons(val_file.file, count)
        boxes = read_boxes(
            self.root / self.val_boxes, val_file.file, self._category_id, self.box_threshold, "data.val_boxes"
        )
        return detected_persons(boxes, val_file.file, count)

    def _with_train(self, val: PersonCrops, val_file: KeypointFile, paths: PartPaths) -> Parts:
        train_file = read_keypoints(paths.annotations)
        names = [list(file.category["keypoints"]) for file in (train_file, val_file)]
        if names[0] != names[1]:
            raise DataError(
                f"expected the same keypoints in {train_file.file.path} and {val_file.file.path}, "
                f"got {names[0]} and {names[1]}: give files of one kind."
            )
        file = train_file.file
        persons = annotated_persons(file, len(names[0]))
        if not len(persons.sample_ids):
            raise DataError(f"expected persons with keypoints in {paths.annotations}, got none: annotate some.")
        usable = self._usable(file, paths)
        train_part, search_part = search_split(len(file.images), self.search_fraction, self.seed)
        outside_search = np.intersect1d(train_part, usable)
        trained = outside_search if self.hold_out_search else usable
        search = np.intersect1d(search_part, usable)
        self._search_coco = file.ground_truth(search)
        return Parts(
            val,
            train=self._crops(train_file, persons.of_images(trained), paths, training=True),
            calibration=self._crops(train_file, persons.of_images(outside_search), paths, training=False),
            search=self._crops(train_file, persons.of_images(search), paths, training=False),
        )

    def _crops(self, file: KeypointFile, persons: Persons, paths: PartPaths, *, training: bool) -> PersonCrops:
        assert self._skeleton is not None  # setup makes it first
        augmentation = PoseAugmentation(*self.augmentation, self._skeleton.lower_body) if training else None
        return PersonCrops(
            file.file, persons, paths.images, self._skeleton, self.input_size, self.padding, augmentation, self.seed
        )

    def _usable(self, file: CocoFile, paths: PartPaths) -> np.ndarray:
        if file.num_skipped:
            logger.info("left out %d persons without box and keypoints of %s", file.num_skipped, file.path)
        image_paths = [paths.images / entry.file_name for entry in file.images]
        return np.asarray(usable_images(image_paths, skip_broken=self.skip_broken), dtype=np.int64)

    def _find(self, part: str) -> PartPaths | DataError:
        return find_part(self.root, part, *self.given[part], kinds=KINDS)
