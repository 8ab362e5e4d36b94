"""Classification from the ImageFolder layout: `root/train/<class>/*.jpg`, `root/val/<class>/*.jpg`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from nas_transfer.data.drawing import Picture, draw_class
from nas_transfer.data.images import image_files, read_image, usable_images
from nas_transfer.data.inspection import Contents, Inventory
from nas_transfer.data.module import Batch, DownstreamData, Draw, Parts, Record, Sample, Vocabulary
from nas_transfer.data.randomness import seeded_call
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.split import search_split
from nas_transfer.data.transforms import classification_eval, classification_train
from nas_transfer.errors import DataError

ImageTransform = Callable[[torch.Tensor], torch.Tensor]


class LabelledImages(Dataset[Sample]):
    """Image files with class labels; a sample is {"image": uint8 (3, H, W), "label": int, "sample_id": int}.

    Args:
        paths: all files of a part (train or val).
        labels: int64 (len(paths),).
        chosen: positions in `paths` that this data set holds; `sample_id` is such a position, so that an image keeps
            its augmentation whether or not the search split is held out.
        transform: uint8 (3, H, W) -> uint8 (3, image_size, image_size).
        seed: of the augmentation.
    """

    def __init__(
        self, paths: Sequence[str], labels: np.ndarray, chosen: np.ndarray, transform: ImageTransform, seed: int
    ) -> None:
        self.paths = np.asarray([paths[position] for position in chosen], dtype=np.str_)  # no Python objects to fork
        self.labels = labels[chosen]
        self.sample_ids = chosen
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, key: SampleKey) -> Sample:
        sample_id = int(self.sample_ids[key.index])
        image = read_image(str(self.paths[key.index]), follow_exif=True)
        image = seeded_call(self.transform, self.seed, key.epoch, sample_id, image)
        return {"image": image, "label": int(self.labels[key.index]), "sample_id": sample_id}


def stack_images(samples: list[Sample]) -> Batch:
    """Batch of images uint8 (B, 3, H, W), labels int64 (B,) and sample_ids int64 (B,)."""
    return {
        "images": torch.stack([sample["image"] for sample in samples]),
        "labels": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
        "sample_ids": torch.tensor([sample["sample_id"] for sample in samples], dtype=torch.int64),
    }


class ImageFolderData(DownstreamData):
    """ImageNet and every other classification set that has one folder per class.

    The classes are the sorted folder names of train, or of val where there is no train folder (evaluation only), or the
    lines of `class_list`, for a data set that holds only some of the classes a network knows.

    Raises (in setup): DataError for missing folders, a class without images, or a val class that train does not have.
    """

    def __init__(
        self,
        root: str,
        train_folder: str,
        val_folder: str,
        class_list: str | None,
        image_size: int,
        batch_size: int,
        num_workers: int,
        seed: int,
        skip_broken: bool,
        min_crop_scale: float,
        color_jitter: float,
        crop_ratio: float,
        interpolation: str,
        search_fraction: float,
        hold_out_search: bool,
        draw: Draw | None,
    ) -> None:
        super().__init__(root, batch_size, num_workers, seed, stack_images, draw)
        self.train_folder = self.root / train_folder
        self.val_folder = self.root / val_folder
        self.class_list = None if class_list is None else self.root / class_list
        self.image_size = image_size
        self.skip_broken = skip_broken
        self.search_fraction = search_fraction
        self.hold_out_search = hold_out_search
        self.train_transform = classification_train(image_size, min_crop_scale, color_jitter, interpolation)
        self.eval_transform = classification_eval(image_size, crop_ratio, interpolation)
        self._class_names: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Folder names; label k is the k-th, from 0."""
        self.require_parts()
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def draw_sample(self, sample: Sample) -> Picture:
        """The image with its class."""
        return draw_class(sample["image"], self.class_names[sample["label"]])

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes."""
        return Vocabulary(self.class_names, tuple(range(self.num_classes)))

    def read(self, path: Path) -> torch.Tensor:
        """The image as the network sees it: upright, resized and cropped."""
        return self.eval_transform(read_image(path, follow_exif=True))

    def prediction_batch(self, image: torch.Tensor, boxes: Sequence[Record]) -> Batch:
        """The image alone, stacked."""
        return {"images": image[None]}

    def inventories(self) -> dict[str, Inventory]:
        """Every image of every class folder."""
        folders = self._folders()
        names = self._find_classes(next(iter(folders.values())))
        return {part: self._inventory(folder, names) for part, folder in folders.items()}

    def _inventory(self, folder: Path, names: tuple[str, ...]) -> Inventory:
        paths, labels = _list_part(folder, names, every_class=False)

        def look(position: int) -> tuple[torch.Tensor, Contents]:
            return read_image(paths[position], follow_exif=True), Contents(labels[position : position + 1])

        return Inventory(names, paths, look)

    def _folders(self) -> dict[str, Path]:
        """The folders of train, if there is one, and val; DataError without val."""
        if not self.val_folder.is_dir():
            raise DataError(
                f"expected one folder per class in {self.val_folder}, got no such folder: "
                "set data.root and data.val_folder."
            )
        train = {"train": self.train_folder} if self.train_folder.is_dir() else {}
        return train | {"val": self.val_folder}

    def setup(self, stage: str = "fit") -> None:
        """List the files and cut the search split; nothing is read unless `skip_broken`."""
        if self.parts is not None:
            return
        has_train = "train" in self._folders()
        self._class_names = self._find_classes(self.train_folder if has_train else self.val_folder)
        val_paths, val_labels = _list_part(self.val_folder, self._class_names, every_class=False)
        val = self._images(val_paths, val_labels, self._usable(val_paths), self.eval_transform)
        if not has_train:
            missing = f"expected one folder per class in {self.train_folder}, got none: set data.train_folder."
            self.parts = Parts(val, train_missing=missing)
            return
        paths, labels = _list_part(self.train_folder, self._class_names, every_class=self.class_list is None)
        train_part, search_part = search_split(len(paths), self.search_fraction, self.seed)  # before any is left out
        usable = self._usable(paths)
        outside_search = np.intersect1d(train_part, usable)
        self.parts = Parts(
            val,
            train=self._images(paths, labels, outside_search if self.hold_out_search else usable, self.train_transform),
            calibration=self._images(paths, labels, outside_search, self.eval_transform),
            search=self._images(paths, labels, np.intersect1d(search_part, usable), self.eval_transform),
        )

    def _find_classes(self, folder: Path) -> tuple[str, ...]:
        if self.class_list is None:
            names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
            if not names:
                raise DataError(f"expected one folder per class in {folder}, got none: see the ImageFolder layout.")
            return names
        try:
            lines = self.class_list.read_text().split("\n")
        except (OSError, UnicodeDecodeError) as err:
            raise DataError(f"expected one class name per line in {self.class_list}, got {err}.") from err
        return tuple(line.strip() for line in lines if line.strip())

    def _usable(self, paths: list[str]) -> np.ndarray:
        if not self.skip_broken:  # they were listed a moment ago: they exist
            return np.arange(len(paths), dtype=np.int64)
        return np.asarray(usable_images([Path(path) for path in paths], skip_broken=True), dtype=np.int64)

    def _images(
        self, paths: list[str], labels: np.ndarray, chosen: np.ndarray, transform: ImageTransform
    ) -> LabelledImages:
        return LabelledImages(paths, labels, chosen, transform, self.seed)


def _list_part(folder: Path, class_names: Sequence[str], *, every_class: bool) -> tuple[list[str], np.ndarray]:
    """Sorted image paths of a part, and their labels int64."""
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise DataError(
            f"expected the folders of {folder} to be among the {len(class_names)} classes of train, "
            f"got {unknown[0]!r}: rename or remove it."
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        files = image_files(folder / name)
        if every_class and not files:
            raise DataError(f"expected images in {folder / name}, got none: add images or remove the folder.")
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"expected images in the class folders of {folder}, got none.")
    return paths, np.asarray(labels, dtype=np.int64)
