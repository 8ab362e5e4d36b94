"""Semantic segmentation from images with a label image each: pairs in a list, twin folders, or Cityscapes' layout."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from nas_transfer.data.drawing import Picture, draw_label_map
from nas_transfer.data.images import IMAGE_SUFFIXES, UNREADABLE, first_missing, read_image, usable_images
from nas_transfer.data.inspection import Contents, Inventory, found_parts
from nas_transfer.data.module import Batch, DownstreamData, Draw, Parts, Sample, Vocabulary
from nas_transfer.data.randomness import seeded_call
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.segmentation_transforms import IGNORE_LABEL, SegmentationTrain
from nas_transfer.data.split import search_split
from nas_transfer.errors import ConfigError, DataError

_NUM_IDS = 256  # of an 8-bit label image


@dataclass(frozen=True)
class LabelTable:
    """What the ids of label files mean.

    Attributes:
        lookup: label of each id, uint8 (256,): 0..C-1 or IGNORE_LABEL.
        known: whether an id is a class's or ignored, bool (256,).
    """

    lookup: np.ndarray
    known: np.ndarray


def label_table(num_classes: int, class_ids: Sequence[int] | None, ignore_ids: Sequence[int]) -> LabelTable:
    """Build the table from the id of each class (None: 0..C-1) and the ids that are ignored.

    Raises:
        ConfigError: no class or too many, ids outside 0..255, an id that is given twice, not one id per class.
    """
    if not 1 <= num_classes < _NUM_IDS:
        raise ConfigError(f"expected 1..255 class names, got {num_classes}: set data.class_names.")
    ids = list(range(num_classes)) if class_ids is None else list(class_ids)
    if len(ids) != num_classes:
        raise ConfigError(
            f"expected one id for each of the {num_classes} classes, got {len(ids)}: "
            "set data.class_names and data.class_ids alike."
        )
    for key, values in (("class_ids", ids), ("ignore_ids", ignore_ids)):
        outside = [value for value in values if not 0 <= value < _NUM_IDS]
        if outside:
            raise ConfigError(f"expected ids in 0..255, got {outside[0]}: set data.{key}.")
    double = [value for position, value in enumerate(ids) if value in ids[:position]]
    if double:
        raise ConfigError(f"expected each class id once, got {double[0]} twice: set data.class_ids.")
    both = sorted(set(ids) & set(ignore_ids))
    if both:
        raise ConfigError(
            f"expected ids that are either a class or ignored, got {both[0]} as both: "
            "set data.class_ids and data.ignore_ids."
        )
    lookup = np.full(_NUM_IDS, IGNORE_LABEL, dtype=np.uint8)
    lookup[ids] = np.arange(num_classes)
    known = np.zeros(_NUM_IDS, dtype=bool)
    known[[*ids, *ignore_ids]] = True
    return LabelTable(lookup, known)


def read_labels(path: str | Path, table: LabelTable) -> torch.Tensor:
    """Read a label image: uint8 (H, W), 0..C-1 and IGNORE_LABEL.

    Raises:
        DataError: no readable image, colours instead of ids, an id that the table does not know.
    """
    ids = _read_ids(path)
    present = np.flatnonzero(np.bincount(ids.ravel(), minlength=_NUM_IDS))
    unknown = present[~table.known[present]]
    if len(unknown):
        raise DataError(
            f"expected the ids in {path} to be a class's or ignored ones, got {unknown[0]}: "
            "add it to data.class_ids or data.ignore_ids, or correct the file."
        )
    return torch.from_numpy(table.lookup[ids])


def _read_ids(path: str | Path) -> np.ndarray:
    """The stored ids: uint8 (H, W)."""
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.array(image)  # of a palette image: the indices, not the colours
    except FileNotFoundError as err:
        raise DataError(f"expected a label image at {path}, got no such file: complete the data set.") from err
    except UNREADABLE as err:
        raise DataError(
            f"expected a readable label image at {path}, got a broken or truncated file ({err}): "
            "replace it, or leave broken images out with data.skip_broken=true."
        ) from err
    if mode not in ("L", "P", "1") and not mode.startswith("I"):
        raise DataError(
            f"expected one id per pixel in the label image {path} (8-bit grey or palette), got colours ({mode}): "
            "convert it to ids (Cityscapes has them as *_labelIds.png)."
        )
    if values.max(initial=0) >= _NUM_IDS or values.min(initial=0) < 0:
        wrong = values[(values >= _NUM_IDS) | (values < 0)][0]
        raise DataError(f"expected ids in 0..255 in the label image {path}, got {wrong}: convert it to 8 bits.")
    return values.astype(np.uint8)


@dataclass(frozen=True)
class PartFiles:
    """The images of a part and the label image of each, as long."""

    images: list[Path]
    labels: list[Path]


def read_pair_list(file: Path, root: Path) -> PartFiles:
    """Read lines of "image label", relative to `root` or absolute; empty lines are skipped.

    Raises:
        DataError: no text file, a line that is not two fields, no pairs.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"expected lines of an image and its label image in {file}, got {err}.") from err
    files = PartFiles([], [])
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2:
            raise DataError(
                f"expected an image and its label image in line {number} of {file}, got {len(fields)} fields: "
                "write two paths without spaces."
            )
        files.images.append(root / fields[0])
        files.labels.append(root / fields[1])
    if not files.images:
        raise DataError(f"expected lines of an image and its label image in {file}, got none: list images.")
    return files


def list_twins(images: Path, labels: Path, image_suffix: str, label_suffix: str) -> PartFiles:
    """All `X/<stem><image_suffix>.<ext>` under `images`, sorted, each with `X/<stem><label_suffix>.png` under `labels`.

    Raises:
        DataError: no images.
    """
    found = sorted(
        Path(parent, name)
        for parent, _, names in os.walk(images, followlinks=True)
        for name in names
        if not name.startswith(".")
        and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        and os.path.splitext(name)[0].endswith(image_suffix)
    )
    if not found:
        raise DataError(
            f"expected images named *{image_suffix}.<ext> in {images}, got none: "
            "add images, or set the folders or data.image_suffix."
        )
    stems = [path.stem.removesuffix(image_suffix) for path in found]
    folders = [labels / path.parent.relative_to(images) for path in found]
    return PartFiles(found, [folder / f"{stem}{label_suffix}.png" for folder, stem in zip(folders, stems, strict=True)])


class LabelledMaps(Dataset[Sample]):
    """Images with label maps; a sample is {"image": uint8 (3, H, W), "labels": uint8 (H, W), "sample_id": int}.

    Args:
        files: all files of a part (train or val).
        chosen: positions in `files` that this data set holds; `sample_id` is such a position, so that an image keeps
            its augmentation whether or not the search split is held out.
        table: what the ids of the label files mean.
        transform: of image and labels together, or None.
        seed: of the augmentation.
    """

    def __init__(
        self, files: PartFiles, chosen: np.ndarray, table: LabelTable, transform: SegmentationTrain | None, seed: int
    ) -> None:
        self.images = np.asarray([str(files.images[position]) for position in chosen], dtype=np.str_)
        self.labels = np.asarray([str(files.labels[position]) for position in chosen], dtype=np.str_)
        self.sample_ids = chosen
        self.table = table
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, key: SampleKey) -> Sample:
        sample_id = int(self.sample_ids[key.index])
        path = str(self.images[key.index])
        image = read_image(path, follow_exif=False)
        labels = read_labels(str(self.labels[key.index]), self.table)
        if image.shape[-2:] != labels.shape:
            raise DataError(
                f"expected the label image {self.labels[key.index]} to be {image.shape[-1]}x{image.shape[-2]} like "
                f"{path}, got {labels.shape[1]}x{labels.shape[0]}: correct the pair (labels refer to the stored "
                "pixels, not to the EXIF orientation)."
            )
        if self.transform is not None:
            image, labels = seeded_call(self.transform, self.seed, key.epoch, sample_id, image, labels)
        return {"image": image, "labels": labels, "sample_id": sample_id}


def list_label_maps(samples: list[Sample]) -> Batch:
    """Batch of images list[uint8 (3, H, W)], labels list[uint8 (H, W)] and sample_ids int64 (B,)."""
    return {
        "images": [sample["image"] for sample in samples],
        "labels": [sample["labels"] for sample in samples],
        "sample_ids": torch.tensor([sample["sample_id"] for sample in samples], dtype=torch.int64),
    }


class LabelMapsData(DownstreamData):
    """Images with one label image each: Cityscapes, ADE20K, CamVid, and your own.

    Where neither a list nor folders are given, `<part>.txt` is tried, then the folders of Cityscapes and of other sets.

    Raises: ConfigError for classes or augmentation that cannot be used; (in setup) DataError for missing files.
    """

    def __init__(
        self,
        root: str,
        train_list: str | None,
        val_list: str | None,
        train_images: str | None,
        train_labels: str | None,
        val_images: str | None,
        val_labels: str | None,
        image_suffix: str,
        label_suffix: str,
        class_names: Sequence[str],
        class_ids: Sequence[int] | None,
        ignore_ids: Sequence[int],
        batch_size: int,
        num_workers: int,
        seed: int,
        skip_broken: bool,
        crop_size: Sequence[int],
        scale_range: Sequence[float],
        max_class_share: float,
        flip: float,
        photometric: bool,
        search_fraction: float,
        hold_out_search: bool,
        draw: Draw | None,
    ) -> None:
        super().__init__(root, batch_size, num_workers, seed, list_label_maps, draw)
        self.given = {
            "train": (train_list, train_images, train_labels),
            "val": (val_list, val_images, val_labels),
        }
        for part, (_, images, labels) in self.given.items():
            if (images is None) != (labels is None):
                raise ConfigError(
                    f"expected both folders or none, got {images} and {labels}: "
                    f"set data.{part}_images and data.{part}_labels."
                )
        self.image_suffix = image_suffix
        self.label_suffix = label_suffix
        self._class_names = tuple(str(name) for name in class_names)
        self.table = label_table(len(self._class_names), class_ids, ignore_ids)
        self.skip_broken = skip_broken
        self.train_transform = SegmentationTrain(crop_size, scale_range, max_class_share, flip, photometric)
        self.search_fraction = search_fraction
        self.hold_out_search = hold_out_search

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; label k is the k-th, from 0."""
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self._class_names)

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes, with their ids in the label files."""
        ids = [int(np.flatnonzero(self.table.lookup == label)[0]) for label in range(self.num_classes)]
        return Vocabulary(self._class_names, tuple(ids))

    def inventories(self) -> dict[str, Inventory]:
        """Every image with its label image."""
        return {part: self._inventory(files) for part, files in found_parts(self._find, self.given).items()}

    def _inventory(self, files: PartFiles) -> Inventory:
        maps = self._maps(files, np.arange(len(files.images)), None)

        def look(position: int) -> tuple[torch.Tensor, Contents]:
            sample = maps[SampleKey(position, 0)]
            counts = np.bincount(sample["labels"].flatten().numpy(), minlength=_NUM_IDS)
            pixels = np.append(counts[: self.num_classes], counts[self.num_classes :].sum())
            return sample["image"], Contents(np.flatnonzero(pixels[:-1]), pixels=pixels)

        return Inventory(self._class_names, [str(path) for path in files.images], look)

    def task_arguments(self) -> dict[str, Any]:
        """The class names, for scores per class."""
        return {"class_names": list(self._class_names)}

    def draw_sample(self, sample: Sample) -> Picture:
        """The image under its label map."""
        return draw_label_map(sample["image"], sample["labels"], self._class_names)

    def setup(self, stage: str = "fit") -> None:
        """List the files and cut the search split; nothing is read unless `skip_broken`."""
        if self.parts is not None:
            return
        val_files = self._find("val")
        if isinstance(val_files, DataError):
            raise val_files
        train_files = self._find("train")
        if isinstance(train_files, DataError) and any(self.given["train"]):
            raise train_files
        val = self._maps(val_files, self._usable(val_files), None)
        if isinstance(train_files, DataError):
            self.parts = Parts(val, train_missing=str(train_files))
            return
        # Cut before broken images are left out: one of them does not move the split.
        train_part, search_part = search_split(len(train_files.images), self.search_fraction, self.seed)
        usable = self._usable(train_files)
        outside_search = np.intersect1d(train_part, usable)
        trained = outside_search if self.hold_out_search else usable
        self.parts = Parts(
            val,
            train=self._maps(train_files, trained, self.train_transform),
            calibration=self._maps(train_files, outside_search, None),
            search=self._maps(train_files, np.intersect1d(search_part, usable), None),
        )

    def _maps(self, files: PartFiles, chosen: np.ndarray, transform: SegmentationTrain | None) -> LabelledMaps:
        return LabelledMaps(files, chosen, self.table, transform, self.seed)

    def _usable(self, files: PartFiles) -> np.ndarray:
        """Positions of the pairs that can be used: int64."""
        if not self.skip_broken:
            usable_images(files.images, skip_broken=False)
            _require_labels(files)
            return np.arange(len(files.images), dtype=np.int64)
        usable = np.intersect1d(
            usable_images(files.images, skip_broken=True), usable_images(files.labels, skip_broken=True)
        )
        if not len(usable):
            raise DataError(
                f"expected readable images with readable labels, got none, the first is {files.images[0]}: "
                "repair the data set."
            )
        return usable.astype(np.int64)

    def _find(self, part: str) -> PartFiles | DataError:
        """A part's files, or the error that lists where they were looked for."""
        pair_list, images, labels = self.given[part]
        lists = [pair_list] if pair_list else [] if images else [f"{part}.txt"]
        if pair_list:
            folders = []
        elif images and labels:
            folders = [(images, labels)]
        else:
            folders = [(f"leftImg8bit/{part}", f"gtFine/{part}")]
            folders += [(f"images/{part}", f"{name}/{part}") for name in ("labels", "annotations", "masks")]
            folders += [(part, f"{part}annot")]
        for name in lists:
            if (self.root / name).is_file():
                return read_pair_list(self.root / name, self.root)
        for image_folder, label_folder in folders:
            twins = self.root / image_folder, self.root / label_folder
            if all(folder.is_dir() for folder in twins):
                return list_twins(*twins, self.image_suffix, self.label_suffix)
        tried = [*lists, *(f"{image_folder} with {label_folder}" for image_folder, label_folder in folders)]
        return DataError(
            f"expected the {part} images and labels in {self.root}, got none of {', '.join(tried)}: "
            f"set data.root, data.{part}_list, or data.{part}_images and data.{part}_labels."
        )


def _require_labels(files: PartFiles) -> None:
    """Raise for the first image without its label image."""
    missing = first_missing(files.labels)
    if missing is not None:
        raise DataError(
            f"expected the label image of {files.images[missing]} at {files.labels[missing]}, got no such file: "
            "complete the data set, set data.image_suffix and data.label_suffix, or leave such images out with "
            "data.skip_broken=true."
        )
