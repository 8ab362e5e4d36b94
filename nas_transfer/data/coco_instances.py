"""Detection and instance segmentation from the COCO layout: image folders and `annotations/instances_*.json`."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from torch.utils.data import Dataset

from nas_transfer.data.coco_annotations import (
    Category,
    CocoFile,
    ImageEntry,
    PartPaths,
    Record,
    clip_box,
    decode_mask,
    find_part,
    read_coco,
    read_listed,
    require_same_categories,
)
from nas_transfer.data.drawing import Picture, draw_instances
from nas_transfer.data.images import usable_images
from nas_transfer.data.inspection import Contents, Inventory, found_parts
from nas_transfer.data.module import Batch, DownstreamData, Draw, Parts, Sample, Vocabulary
from nas_transfer.data.randomness import seeded_call
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.split import search_split
from nas_transfer.data.transforms import DetectionTrain, DetectionTransform, Target
from nas_transfer.errors import DataError

logger = logging.getLogger(__name__)


class InstanceImages(Dataset[Sample]):
    """Images with boxes; a sample is {"image": uint8 (3, H, W), "target": dict, "sample_id": COCO image id}.

    The target: boxes float32 (N, 4) xyxy pixels clipped to the image, labels int64 (N,) in 1..C, iscrowd uint8 (N,),
    area float32 (N,), image_id int and, where asked for, masks uint8 (N, H, W).

    Args:
        file: the checked annotations.
        chosen: positions in `file.images` that this data set holds.
        folder: where `file_name`s are found.
        with_masks: decode the segmentations.
        with_crowds: keep crowd annotations (ground truth yes, training no).
        transform: of image and target together, or None.
        seed: of the augmentation.
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
    ) -> None:
        self.entries = [file.images[position] for position in chosen]
        self.folder = folder
        self.with_masks = with_masks
        self.transform = transform
        self.seed = seed
        kept = [
            [record for record in file.annotations[position] if with_crowds or not record["iscrowd"]]
            for position in chosen
        ]
        self._pack(kept, file)

    def _pack(self, kept: Sequence[Sequence[Record]], file: CocoFile) -> None:
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

    def __getitem__(self, key: SampleKey) -> Sample:
        entry = self.entries[key.index]
        image = read_listed(self.folder, entry)
        target = self._target(key.index)
        if self.transform is not None:
            image, target = seeded_call(self.transform, self.seed, key.epoch, entry.image_id, image, target)
        return {"image": image, "target": {**target, "image_id": entry.image_id}, "sample_id": entry.image_id}

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


def list_images(samples: list[Sample]) -> Batch:
    """Batch of images list[uint8 (3, H, W)], targets list[dict] and sample_ids int64 (B,)."""
    return {
        "images": [sample["image"] for sample in samples],
        "targets": [sample["target"] for sample in samples],
        "sample_ids": torch.tensor([sample["sample_id"] for sample in samples], dtype=torch.int64),
    }


class CocoInstancesData(DownstreamData):
    """COCO and every data set converted to it.

    Images without annotations are evaluated but not trained on; crowds are ground truth but no training target. Where
    the annotation and image paths are None, COCO's own names are tried, then the same without the year.

    Raises (in setup): DataError for missing files and everything that `read_coco` refuses.
    """

    def __init__(
        self,
        root: str,
        train_images: str | None,
        val_images: str | None,
        train_annotations: str | None,
        val_annotations: str | None,
        batch_size: int,
        num_workers: int,
        seed: int,
        skip_broken: bool,
        skip_empty_boxes: bool,
        with_masks: bool,
        flip: float,
        photometric: float,
        scale_jitter: Sequence[float] | None,
        aspect_grouping: bool,
        search_fraction: float,
        hold_out_search: bool,
        draw: Draw | None,
    ) -> None:
        super().__init__(root, batch_size, num_workers, seed, list_images, draw)
        self.given = {"train": (train_images, train_annotations), "val": (val_images, val_annotations)}
        self.skip_broken = skip_broken
        self.skip_empty_boxes = skip_empty_boxes
        self.with_masks = with_masks
        self.aspect_grouping = aspect_grouping
        self.search_fraction = search_fraction
        self.hold_out_search = hold_out_search
        zoom = None if scale_jitter is None else (float(scale_jitter[0]), float(scale_jitter[1]))
        self.train_transform = DetectionTrain(flip, photometric, zoom)
        self._categories: tuple[Category, ...] = ()
        self._val_coco: COCO | None = None
        self._search_coco: COCO | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes C, without background."""
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; label k is the k-th, from 1."""
        self.require_parts()
        return tuple(category.name for category in self._categories)

    @property
    def category_ids(self) -> list[int]:
        """COCO ids of the classes: label k has id `category_ids[k - 1]`."""
        self.require_parts()
        return [category.coco_id for category in self._categories]

    @property
    def vocabulary(self) -> Vocabulary:
        """The categories."""
        return Vocabulary(self.class_names, tuple(self.category_ids))

    @property
    def val_ground_truth(self) -> COCO:
        """pycocotools ground truth of exactly the images that `val_dataloader` gives."""
        self.require_parts()
        return self._val_coco

    def task_arguments(self) -> dict[str, Any]:
        """The category ids, for predictions in COCO's format."""
        return {"category_ids": self.category_ids}

    def draw_sample(self, sample: Sample) -> Picture:
        """The image with boxes and, where they are read, masks."""
        target = sample["target"]
        labels = [label - 1 for label in target["labels"].tolist()]
        return draw_instances(sample["image"], target["boxes"], labels, self.class_names, target.get("masks"))

    def inventories(self) -> dict[str, Inventory]:
        """Every image that the annotation files list; crowds are no objects."""
        return {part: self._inventory(paths) for part, paths in found_parts(self._find, self.given).items()}

    def _inventory(self, paths: PartPaths) -> Inventory:
        refused: list[str] = []
        file = read_coco(paths.annotations, need_masks=self.with_masks, skip_empty_boxes=False, refused=refused)
        images = self._images(file, np.arange(len(file.images)), paths, training=False)

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

    @property
    def search_ground_truth(self) -> COCO:
        """pycocotools ground truth of exactly the images that `search_dataloader` gives."""
        parts = self.require_parts()
        if self._search_coco is None:
            raise DataError(parts.train_missing)
        return self._search_coco

    def setup(self, stage: str = "fit") -> None:
        """Read and check the annotation files, cut the search split and build the ground truths."""
        if self.parts is not None:
            return
        val_paths = self._find("val")
        if isinstance(val_paths, DataError):
            raise val_paths
        train_paths = self._find("train")
        if isinstance(train_paths, DataError) and any(self.given["train"]):
            raise train_paths
        val_file, val_usable = self._read(val_paths)
        val = self._images(val_file, val_usable, val_paths, training=False)
        if isinstance(train_paths, DataError):
            parts = Parts(val, train_missing=str(train_paths))
        else:
            parts = self._with_train(val, val_file, train_paths)
        self._categories = val_file.categories
        self._val_coco = val_file.ground_truth(val_usable)
        self.parts = parts

    def _with_train(self, val: InstanceImages, val_file: CocoFile, paths: PartPaths) -> Parts:
        file, usable = self._read(paths)
        require_same_categories(file, val_file)
        # Cut before broken images are left out: one of them does not move the split.
        train_part, search_part = search_split(len(file.images), self.search_fraction, self.seed)
        search_chosen = np.intersect1d(search_part, usable)
        annotated = [number for number in usable if any(not record["iscrowd"] for record in file.annotations[number])]
        if not annotated:
            raise DataError(
                f"expected annotations other than crowds in {paths.annotations}, got none: annotate objects."
            )
        outside_search = np.intersect1d(train_part, annotated)
        trained = outside_search if self.hold_out_search else np.asarray(annotated, dtype=np.int64)
        train = self._images(file, trained, paths, training=True)
        groups = [int(entry.width >= entry.height) for entry in train.entries]
        self._search_coco = file.ground_truth(search_chosen)
        return Parts(
            val,
            train=train,
            calibration=self._images(file, outside_search, paths, training=False),
            search=self._images(file, search_chosen, paths, training=False),
            train_groups=groups if self.aspect_grouping else None,
        )

    def _read(self, paths: PartPaths) -> tuple[CocoFile, np.ndarray]:
        """A part's annotations, and the positions of its images that can be used: int64."""
        file = read_coco(paths.annotations, need_masks=self.with_masks, skip_empty_boxes=self.skip_empty_boxes)
        if file.num_skipped:
            logger.warning("left out %d annotations without area of %s", file.num_skipped, paths.annotations)
        image_paths = [paths.images / entry.file_name for entry in file.images]
        return file, np.asarray(usable_images(image_paths, skip_broken=self.skip_broken), dtype=np.int64)

    def _images(self, file: CocoFile, chosen: np.ndarray, paths: PartPaths, *, training: bool) -> InstanceImages:
        return InstanceImages(
            file,
            chosen,
            paths.images,
            with_masks=self.with_masks,
            with_crowds=not training,
            transform=self.train_transform if training else None,
            seed=self.seed,
        )

    def _find(self, part: str) -> PartPaths | DataError:
        return find_part(self.root, part, *self.given[part], kinds=("instances",))
