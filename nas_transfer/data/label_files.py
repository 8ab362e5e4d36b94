"""Label images: what their ids mean, reading one, and listing the images of a part with the label image of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from typing_extensions import Self

from nas_transfer.data.images import first_missing, image_files, named_in, opened
from nas_transfer.data.segmentation_transforms import IGNORE_LABEL
from nas_transfer.errors import ConfigError, DataError

NUM_IDS = 256  # of an 8-bit label image


@dataclass(frozen=True)
class LabelTable:
    """The meaning of the ids in label files.

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
    if not 2 <= num_classes < NUM_IDS:
        raise ConfigError(f"data.class_names must name 2 to 255 classes, got {num_classes}")
    ids = list(range(num_classes)) if class_ids is None else list(class_ids)
    if len(ids) != num_classes:
        raise ConfigError(
            f"data.class_ids must hold an id for each of the {num_classes} classes of data.class_names, got {len(ids)}"
        )
    for key, values in (("class_ids", ids), ("ignore_ids", ignore_ids)):
        outside = [value for value in values if not 0 <= value < NUM_IDS]
        if outside:
            raise ConfigError(f"data.{key} must lie in 0..255, got {outside[0]}")
    double = [value for position, value in enumerate(ids) if value in ids[:position]]
    if double:
        raise ConfigError(f"data.class_ids must not repeat an id, got {double[0]} twice")
    both = sorted(set(ids) & set(ignore_ids))
    if both:
        raise ConfigError(
            f"an id must be a class or ignored, got {both[0]} in data.class_ids and in data.ignore_ids: remove one"
        )
    lookup = np.full(NUM_IDS, IGNORE_LABEL, dtype=np.uint8)
    lookup[ids] = np.arange(num_classes)
    known = np.zeros(NUM_IDS, dtype=bool)
    known[[*ids, *ignore_ids]] = True
    return LabelTable(lookup, known)


def read_labels(path: str | Path, table: LabelTable) -> torch.Tensor:
    """Read a label image: uint8 (H, W), 0..C-1 and IGNORE_LABEL.

    Raises:
        DataError: no readable image, colours instead of ids, an id that the table does not know.
    """
    ids = _read_ids(path)
    present = np.flatnonzero(np.bincount(ids.ravel(), minlength=NUM_IDS))
    unknown = present[~table.known[present]]
    if len(unknown):
        raise DataError(
            f"every id of {path} must be a class or ignored, got {unknown[0]}: "
            "add it to data.class_ids or data.ignore_ids, or correct the file"
        )
    return torch.from_numpy(table.lookup[ids])


def _read_ids(path: str | Path) -> np.ndarray:
    """The stored ids: uint8 (H, W)."""
    with opened(path, "label image") as image:
        mode = image.mode
        values = np.array(image)  # of a palette image: the indices, not the colours
    if mode not in ("L", "P", "1") and not mode.startswith("I"):
        raise DataError(
            f"the label image {path} must have one id per pixel (8-bit grey or palette), got colours ({mode}): "
            "convert it to ids (Cityscapes has them as *_labelIds.png)"
        )
    if values.max(initial=0) >= NUM_IDS or values.min(initial=0) < 0:
        wrong = values[(values >= NUM_IDS) | (values < 0)][0]
        raise DataError(f"the ids of the label image {path} must lie in 0..255, got {wrong}: convert it to 8 bits")
    return values.astype(np.uint8)


@dataclass(frozen=True)
class LabelledFiles:
    """The images of a part and, at the same positions, their label images; and the list that names both, if any."""

    images: list[Path]
    labels: list[Path]
    pair_list: Path | None = None
    form: str = "images and label images"
    undivided: bool = False
    digests: Sequence[str] = ()

    def only(self, positions: np.ndarray) -> Self:
        """The part with the images at these positions alone."""
        images, labels = ([paths[position] for position in positions] for paths in (self.images, self.labels))
        return replace(self, images=images, labels=labels, undivided=False)

    @property
    def num_images(self) -> int:
        """Images of the part."""
        return len(self.images)

    @property
    def image_paths(self) -> list[Path]:
        """Their files, without the label images."""
        return self.images

    @property
    def annotation_paths(self) -> list[Path]:
        """The list of pairs, if there is one; label images are listed as images are."""
        return [] if self.pair_list is None else [self.pair_list]


def read_pair_list(file: Path, root: Path) -> LabelledFiles:
    """Read lines of "image label", relative to `root` or absolute, but in it; empty lines are skipped.

    Raises:
        DataError: no text file, a line that is not two fields, a file outside of `root`, no pairs.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{file} cannot be read ({err}): write lines of an image and its label image") from err
    files = LabelledFiles([], [], file)
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2:
            raise DataError(
                f"line {number} of {file} must be an image and its label image, got {len(fields)} fields: "
                "write two paths without spaces"
            )
        for name, paths in zip(fields, (files.images, files.labels), strict=True):
            path = named_in(root, name)
            if path is None:
                raise DataError(
                    f"line {number} of {file} must name files in {root}, got {name!r}: move the file, or set data.root "
                    "to the folder that holds all of them"
                )
            paths.append(path)
    if not files.images:
        raise DataError(f"{file} must list pairs, got none: write lines of an image and its label image")
    return files


def list_twins(images: Path, labels: Path, image_suffix: str, label_suffix: str) -> LabelledFiles:
    """All `X/<stem><image_suffix>.<ext>` under `images`, sorted, each with `X/<stem><label_suffix>.png` under `labels`.

    Raises:
        DataError: no images.
    """
    paths = sorted(path for path in map(Path, image_files(images)) if path.stem.endswith(image_suffix))
    if not paths:
        raise DataError(
            f"no images named *{image_suffix}.<ext> in {images}: "
            "add images, or set the folders or data.sources.image_suffix"
        )
    stems = [path.stem.removesuffix(image_suffix) for path in paths]
    folders = [labels / path.parent.relative_to(images) for path in paths]
    return LabelledFiles(
        paths, [folder / f"{stem}{label_suffix}.png" for folder, stem in zip(folders, stems, strict=True)]
    )


def require_labels(files: LabelledFiles) -> None:
    """Raise DataError for the first image without its label image."""
    missing = first_missing(files.labels)
    if missing is not None:
        raise DataError(
            f"{files.images[missing]} has no label image {files.labels[missing]}: complete the dataset, set "
            "data.sources.image_suffix and data.sources.label_suffix, or leave such images out with "
            "data.skip_broken=true"
        )
