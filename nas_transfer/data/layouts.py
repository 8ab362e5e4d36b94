"""The forms of annotations that are recognised from the folder of a dataset alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from nas_transfer.data.annotation_sources import AnnotationSource, PartName, find_exported
from nas_transfer.data.voc import find_voc
from nas_transfer.data.yolo import find_yolo
from nas_transfer.errors import DataError

Finder = Callable[[Path, PartName, Sequence[str]], AnnotationSource | None]

FINDERS: tuple[Finder, ...] = (find_exported, find_voc, find_yolo)
"""Each takes the folder, the part and the kinds of COCO's annotation files, such as ("instances",)."""

MOST_FOLDERS = 100
"""Folders below a folder that is no dataset in which one is looked for."""


def recognise(root: Path, part: PartName, kinds: Sequence[str]) -> AnnotationSource | None:
    """The annotations of a part in the first form that a dataset has, besides COCO's own layout; None for no form.

    Raises:
        MissingPartError: the dataset has the other part alone.
        DataError: files that cannot be used.
    """
    found = (find(root, part, kinds) for find in FINDERS)
    return next((source for source in found if source is not None), None)


def dataset_below(root: Path, part: PartName, kinds: Sequence[str]) -> Path | None:
    """The first folder one or two levels below `root` that holds a dataset in one of the forms; None for none."""
    folders = (path for pattern in ("*", "*/*") for path in sorted(root.glob(pattern)) if path.is_dir())
    return next((folder for folder in islice(folders, MOST_FOLDERS) if _is_dataset(folder, part, kinds)), None)


def _is_dataset(folder: Path, part: PartName, kinds: Sequence[str]) -> bool:
    try:
        return recognise(folder, part, kinds) is not None
    except DataError:
        return False
