"""A data layout: a CSV file for each part, train.csv and val.csv, with lines of an image file and its class."""

import csv

import numpy as np

from nas_transfer.data.image_folder import FolderPart, ImageFolderData
from nas_transfer.data.sources import MissingPartError, PartName
from nas_transfer.errors import DataError


class ListedImages(ImageFolderData):
    """Class labels from CSV files; samples, batches and pictures are those of class folders."""

    def read_part(self, part: PartName, refused: list[str] | None = None) -> FolderPart:
        """Read the list of a part; paths are relative to the folder of the dataset."""
        path = self.root / f"{part}.csv"
        if not path.is_file():
            raise MissingPartError(f"no such file: {path}, which should list images and classes: set data.root.")
        with path.open(newline="") as stream:
            rows = [(str(self.root / name), label) for name, label in csv.reader(stream)]
        names = tuple(sorted({label for _, label in rows}))
        return FolderPart(names, [file for file, _ in rows], np.asarray([names.index(label) for _, label in rows]))

    def require_same_kind(self, train: FolderPart, val: FolderPart) -> None:
        """Refuse parts with different classes."""
        if train.class_names != val.class_names:
            raise DataError(
                f"train.csv and val.csv must have the same classes, got {train.class_names} and {val.class_names}."
            )
