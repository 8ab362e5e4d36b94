"""Classification from the ImageFolder layout: `root/train/<class>/*.jpg`, `root/val/<class>/*.jpg`."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from typing_extensions import Self

from nas_transfer.data.annotation_values import is_text
from nas_transfer.data.augmentation import ClassificationAugmentation
from nas_transfer.data.drawing import Picture, draw_class
from nas_transfer.data.image_cache import ReadImage
from nas_transfer.data.images import image_files, named_in, read_image
from nas_transfer.data.inspection import Contents, Inventory
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.randomness import seeded_call
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.samples import ClassificationBatch, ClassificationSample, ScoredBox
from nas_transfer.data.sources import FolderSources, MissingPartError, PartName
from nas_transfer.data.transforms import classification_eval, classification_train
from nas_transfer.errors import DataError
from nas_transfer.ranges import Positive, PositiveShare

LEAST_CLASSES = 2
ImageTransform = Callable[[torch.Tensor], torch.Tensor]


class LabelledImages(Dataset[ClassificationSample]):
    """Image files with class labels; a sample is {"image": uint8 (3, H, W), "label": int, "sample_id": int}.

    Args:
        paths: all files of a part (train or val).
        labels: int64 (len(paths),).
        chosen: positions in `paths` that this dataset holds; `sample_id` is such a position, so that an image keeps
            its augmentation whether or not the search split is held out.
        transform: uint8 (3, H, W) -> uint8 (3, image_size, image_size).
        seed: seed of the augmentation.
        read: reads an image file.
    """

    def __init__(
        self, paths: Sequence[str], labels: np.ndarray, chosen: np.ndarray, transform: ImageTransform, seed: int,
        read: ReadImage = read_image,
    ) -> None:  # fmt: skip
        self.paths = np.asarray([paths[position] for position in chosen], dtype=np.str_)  # no Python objects to fork
        self.labels = labels[chosen]
        self.sample_ids = chosen
        self.transform = transform
        self.seed = seed
        self.read = read

    def __len__(self) -> int:
        return len(self.sample_ids)

    def file_of(self, index: int) -> str:
        """The file of the image at a position."""
        return str(self.paths[index])

    def __getitem__(self, key: SampleKey) -> ClassificationSample:
        sample_id = int(self.sample_ids[key.index])
        image = self.read(str(self.paths[key.index]), follow_exif=True)
        image = seeded_call(self.transform, self.seed, key.epoch, sample_id, image)
        return {"image": image, "label": int(self.labels[key.index]), "sample_id": sample_id}


@dataclass(frozen=True)
class FolderPart:
    """The images of a part, class by class.

    Attributes:
        class_names: in label order.
        image_paths: paths of all images.
        labels: labels of all images, int64 (N,).
        class_list: the file that lists the classes; None for none.
    """

    class_names: tuple[str, ...]
    image_paths: Sequence[str]
    labels: np.ndarray
    class_list: Path | None = None
    form: str = "class folders"
    undivided: bool = False
    digests: Sequence[str] = ()

    def only(self, positions: np.ndarray) -> Self:
        """The part with the images at these positions alone."""
        paths = [self.image_paths[position] for position in positions]
        return replace(self, image_paths=paths, labels=self.labels[positions], undivided=False)

    @property
    def num_images(self) -> int:
        """Images of the part."""
        return len(self.image_paths)

    @property
    def annotation_paths(self) -> list[Path]:
        """The list of the classes, if there is one."""
        return [] if self.class_list is None else [self.class_list]


@dataclass(kw_only=True, eq=False, repr=False)
class ImageFolderData(DownstreamData[FolderPart, ClassificationSample, ClassificationBatch]):
    """ImageNet and every other classification set that has one folder per class.

    The classes are the sorted folder names of train, or of val where there is no train folder (evaluation only), or the
    lines of `sources.class_list`.

    Attributes:
        sources: where the folders are.
        image_size: side in pixels of what the network sees.
        crop_ratio: in evaluation, the short side before the centre crop is `image_size / crop_ratio`.
        interpolation: ``bilinear`` or ``bicubic``.
        augmentation: augmentation of the training images.

    Raises:
        ConfigError: a value that cannot be used.
        DataError: (in setup) missing folders, a class without images, or a class of val that train does not have.
    """

    follow_exif = True

    sources: FolderSources
    image_size: Positive
    crop_ratio: PositiveShare
    interpolation: str
    augmentation: ClassificationAugmentation

    def __post_init__(self) -> None:
        super().__post_init__()
        self.train_transform = classification_train(self.image_size, self.augmentation, self.interpolation)
        self.eval_transform = classification_eval(self.image_size, self.crop_ratio, self.interpolation)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; label k is the k-th, from 0."""
        return self.vocabulary.names

    def read_part(self, part: PartName, refused: list[str] | None = None) -> FolderPart:
        """List the images of every class folder; nothing is read."""
        folder = self.sources.find(self.root, part)
        names = self._find_classes()
        if len(names) < LEAST_CLASSES:
            raise DataError(
                f"there must be at least {LEAST_CLASSES} classes in {folder}, got {names[0]!a} alone: add one"
            )
        every_class = part == "train" and self.sources.class_list is None and refused is None
        class_list = None if self.sources.class_list is None else self.root / self.sources.class_list
        listed = FolderPart(names, *_list_part(folder, names, every_class=every_class), class_list)
        whole = folder == self.root
        return replace(listed, form="class folders without a split", undivided=True) if whole else listed

    def _find_classes(self) -> tuple[str, ...]:
        if self.sources.class_list is not None:
            return _read_class_list(self.root / self.sources.class_list)
        try:
            folder = self.sources.find(self.root, "train")
        except MissingPartError:
            folder = self.sources.find(self.root, "val")
        names = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
        if not names:
            raise DataError(f"no class folders in {folder}: put the images of each class into a folder of its own")
        for name in names:
            if not is_text(name):
                raise DataError(f"the class folder {name!a} of {folder} must have a name in UTF-8: rename it")
        return names

    def describe(self, val: FolderPart) -> Vocabulary:
        """The classes."""
        return Vocabulary(val.class_names, tuple(range(len(val.class_names))))

    def usable(self, annotation: FolderPart) -> np.ndarray:
        """Positions of the images that can be used."""
        if self.skip_broken:
            return super().usable(annotation)
        return np.arange(annotation.num_images, dtype=np.int64)  # just listed: they exist

    def dataset(self, annotation: FolderPart, chosen: np.ndarray, *, training: bool) -> Dataset[ClassificationSample]:
        """Images with their labels."""
        transform = self.train_transform if training else self.eval_transform
        return LabelledImages(annotation.image_paths, annotation.labels, chosen, transform, self.seed, self.read_image)

    def inventory(self, annotation: FolderPart, refused: Sequence[str]) -> Inventory:
        """Every image of every class folder."""
        paths, labels = annotation.image_paths, annotation.labels

        def look(position: int) -> tuple[torch.Tensor, Contents]:
            return read_image(paths[position], follow_exif=True), Contents(labels[position : position + 1])

        return Inventory(annotation.class_names, paths, look, refused)

    @staticmethod
    def collate(samples: list[ClassificationSample]) -> ClassificationBatch:
        """Stacked images and labels."""
        return {
            "images": torch.stack([sample["image"] for sample in samples]),
            "labels": torch.tensor([sample["label"] for sample in samples], dtype=torch.int64),
            "sample_ids": torch.tensor([sample["sample_id"] for sample in samples], dtype=torch.int64),
        }

    def draw_sample(self, sample: ClassificationSample) -> Picture:
        """The image with its class."""
        return draw_class(sample["image"], self.class_names[sample["label"]])

    def fitted(self, image: torch.Tensor) -> torch.Tensor:
        """The image resized and cropped."""
        return self.eval_transform(image)

    def prediction_batch(self, image: torch.Tensor, boxes: Sequence[ScoredBox]) -> ClassificationBatch:
        """The image alone, stacked."""
        return {"images": image[None]}


def _read_class_list(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"{path} must be a file, got none: write one class name per line")
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path} cannot be read ({err}): write one class name per line") from err
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) < LEAST_CLASSES or len(set(names)) < len(names):
        raise DataError(f"{path} must name at least {LEAST_CLASSES} different classes, got {len(set(names))}: add some")
    for name in names:
        if name == "." or named_in(Path("class"), name) is None:
            raise DataError(f"each line of {path} must name a class folder, got {name!r}: write names without paths")
    return names


def _list_part(folder: Path, class_names: Sequence[str], *, every_class: bool) -> tuple[list[str], np.ndarray]:
    """Sorted image paths of a part, and their labels int64."""
    folders = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    unknown = sorted(folders - set(class_names))
    if unknown:
        raise DataError(
            f"the folder {unknown[0]!r} of {folder} must be one of the {len(class_names)} classes of train: "
            "rename or remove it"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        files = image_files(folder / name)
        if every_class and not files:
            raise DataError(f"no images in {folder / name}: add images or remove the folder")
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"no images in the class folders of {folder}: add images")
    return paths, np.asarray(labels, dtype=np.int64)
