"""Where the files of a dataset are: one record per layout, with the values under `data.sources`.

Paths are relative to `data.root` or absolute. Where none is given, the usual names of the layout are tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nas_transfer.data.annotation_sources import (
    PART_FOLDERS,
    AnnotationSource,
    CocoSource,
    MissingPartError,
    PartName,
)
from nas_transfer.data.images import is_image_name
from nas_transfer.data.label_files import LabelledFiles, list_twins, read_pair_list
from nas_transfer.data.layouts import dataset_below, recognise
from nas_transfer.errors import ConfigError, DataError
from nas_transfer.ranges import Share

LABEL_FOLDERS = ("labels", "annotations", "masks")

__all__ = ["CocoSources", "FolderSources", "LabelMapSources", "MissingPartError", "PartName", "PoseSources"]


@dataclass(frozen=True)
class FolderSources:
    """Folders of a classification set, each with one folder per class.

    Attributes:
        train_folder, val_folder: folders of the two parts.
        class_list: file with one class name per line, for a dataset that holds only some of the classes of a network.
    """

    train_folder: str
    val_folder: str
    class_list: str | None

    def find(self, root: Path, part: PartName) -> Path:
        """The folder of a part, or the root of a dataset without a split; MissingPartError if there is none.

        Besides the given name, those that tools write are tried.
        """
        folder = self._folder(root, part)
        if not folder.is_dir():
            other = self._folder(root, "val" if part == "train" else "train")
            if not other.is_dir() and _holds_classes(root):
                return root
            raise MissingPartError(
                f"no such folder: {folder}, which must hold one folder per class: "
                f"set data.root or data.sources.{part}_folder"
            )
        return folder

    def _folder(self, root: Path, part: PartName) -> Path:
        given = self.train_folder if part == "train" else self.val_folder
        names = [given, *(PART_FOLDERS[part] if given in PART_FOLDERS[part] else ())]
        return next((root / name for name in names if (root / name).is_dir()), root / given)


def _holds_classes(root: Path) -> bool:
    """Whether a folder holds two folders at least, and each of them images."""
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return len(folders) > 1 and all(any(is_image_name(path.name) for path in folder.iterdir()) for folder in folders)


@dataclass(frozen=True)
class CocoSources:
    """Image folders and annotation files in COCO's layout.

    None for COCO's own names, with or without the year, else for the forms that `layouts` recognises.
    """

    train_images: str | None
    val_images: str | None
    train_annotations: str | None
    val_annotations: str | None

    def find(self, root: Path, part: PartName, kinds: Sequence[str]) -> AnnotationSource:
        """The images and the annotations of a part.

        Args:
            kinds: what annotation files are called before the name of the part, e.g. ("instances",).

        Raises:
            MissingPartError: a part that is not there.
            DataError: a part that was named and is not there, or files that cannot be used.
        """
        try:
            return self._find_coco(root, part, kinds)
        except MissingPartError as missing:
            if self._names_any() or self._has_coco(root, "val" if part == "train" else "train", kinds):
                raise
            if not root.is_dir():
                raise DataError(
                    f"data.root must be the folder of a dataset, got {root}, which is not a folder: correct the path"
                ) from None
            source = recognise(root, part, kinds)
            if source is not None:
                return source
            below = dataset_below(root, part, kinds)
            hint = "nor are there YOLO labels, Pascal VOC or other exports"
            if below is not None:
                hint = f"there is a dataset below it: data.root={below}"
            raise MissingPartError(f"{missing}; {hint}") from None

    def _names_any(self) -> bool:
        return any((self.train_images, self.val_images, self.train_annotations, self.val_annotations))

    def _has_coco(self, root: Path, part: PartName, kinds: Sequence[str]) -> bool:
        try:
            self._find_coco(root, part, kinds)
        except DataError:
            return False
        return True

    def _find_coco(self, root: Path, part: PartName, kinds: Sequence[str]) -> CocoSource:
        """Files with the given names, or with COCO's."""
        images = self.train_images if part == "train" else self.val_images
        annotations = self.train_annotations if part == "train" else self.val_annotations
        folders = [images] if images else [f"{part}2017", part, f"images/{part}2017", f"images/{part}"]
        names = [f"{kind}_{part}{year}.json" for kind in kinds for year in ("2017", "")]
        files = [annotations] if annotations else [f"annotations/{name}" for name in names]
        folder = next((root / name for name in folders if (root / name).is_dir()), None)
        file = next((root / name for name in files if (root / name).is_file()), None)
        if folder is not None and file is not None:
            return CocoSource(file, folder)
        tried, key = (folders, "images") if folder is None else (files, "annotations")
        message = f"no {part} {key} in {root}: tried {', '.join(tried)}: set data.root or data.sources.{part}_{key}"
        raise DataError(message) if images or annotations else MissingPartError(message)


@dataclass(frozen=True)
class PoseSources(CocoSources):
    """The same for keypoints, and the boxes in which persons are looked for in validation.

    Attributes:
        val_boxes: file with the boxes of a detector in COCO's result format; None for the annotated boxes.
        box_threshold: boxes of that file with a lower score are left out.
    """

    val_boxes: str | None
    box_threshold: Share


@dataclass(frozen=True)
class LabelMapSources:
    """Lists of pairs, or folders of images and of label images whose files have the same names.

    Attributes:
        train_list, val_list: files with lines of "image label".
        train_images, train_labels, val_images, val_labels: folders.
        image_suffix, label_suffix: ``X/<name><image_suffix>.jpg`` belongs to ``X/<name><label_suffix>.png``.

    Raises:
        ConfigError: one of two folders without the other, or a suffix that names a folder.
    """

    train_list: str | None
    val_list: str | None
    train_images: str | None
    train_labels: str | None
    val_images: str | None
    val_labels: str | None
    image_suffix: str
    label_suffix: str

    def __post_init__(self) -> None:
        for key in ("image_suffix", "label_suffix"):
            suffix = getattr(self, key)
            if "/" in suffix:
                raise ConfigError(f"data.sources.{key} must be the end of file names without folders, got {suffix!r}")
        for part in ("train", "val"):
            _, images, labels = self._given(part)
            if (images is None) != (labels is None):
                raise ConfigError(
                    f"set both data.sources.{part}_images and data.sources.{part}_labels, or neither, "
                    f"got {images} and {labels}"
                )

    def _given(self, part: str) -> tuple[str | None, str | None, str | None]:
        """The list, the image folder and the label folder of a part."""
        if part == "train":
            return self.train_list, self.train_images, self.train_labels
        return self.val_list, self.val_images, self.val_labels

    def find(self, root: Path, part: PartName) -> LabelledFiles:
        """All images of a part with their label images: of ``<part>.txt``, else of the folders of known layouts.

        Raises:
            MissingPartError: a part that is not there.
            DataError: a part that was named and is not there, or a list that cannot be read.
        """
        pair_list, images, labels = self._given(part)
        lists = [pair_list] if pair_list else [] if images else [f"{part}.txt"]
        for name in lists:
            if (root / name).is_file():
                return read_pair_list(root / name, root)
        folders = [] if pair_list else [(images, labels)] if images and labels else _known_folders(part)
        for image_folder, label_folder in folders:
            twins = root / image_folder, root / label_folder
            if all(folder.is_dir() for folder in twins):
                return list_twins(*twins, self.image_suffix, self.label_suffix)
        if not (pair_list or images) and (whole := self._undivided(root, part)) is not None:
            return whole
        tried = [*lists, *(f"{image_folder} with {label_folder}" for image_folder, label_folder in folders)]
        message = (
            f"no {part} images and labels in {root}: tried {', '.join(tried)}: "
            f"set data.root, data.sources.{part}_list, or data.sources.{part}_images and data.sources.{part}_labels"
        )
        raise DataError(message) if pair_list or images else MissingPartError(message)

    def _undivided(self, root: Path, part: PartName) -> LabelledFiles | None:
        """The images and label images of a dataset without a split; None if it has one, or other folders."""
        other = "val" if part == "train" else "train"
        if any(self._given(other)) or (root / f"{other}.txt").is_file():
            return None
        if any((root / images).is_dir() and (root / labels).is_dir() for images, labels in _known_folders(other)):
            return None
        for name in LABEL_FOLDERS:
            if (root / "images").is_dir() and (root / name).is_dir():
                files = list_twins(root / "images", root / name, self.image_suffix, self.label_suffix)
                return replace(files, form=f"{files.form} without a split", undivided=True)
        return None


def _known_folders(part: str) -> list[tuple[str, str]]:
    """Image and label folders of Cityscapes, of ADE20K and sets like it, and of CamVid."""
    return [
        (f"leftImg8bit/{part}", f"gtFine/{part}"),
        *((f"images/{part}", f"{name}/{part}") for name in LABEL_FOLDERS),
        (part, f"{part}annot"),
    ]
