"""The forms of annotations that are recognised from the folder of a dataset alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nas_transfer.data.annotation_sources import AnnotationSource, PartName, find_exported
from nas_transfer.data.voc import find_voc
from nas_transfer.data.yolo import find_yolo

Finder = Callable[[Path, PartName, Sequence[str]], AnnotationSource | None]

FINDERS: tuple[Finder, ...] = (find_exported, find_voc, find_yolo)
"""Each takes the folder, the part and the kinds of COCO's annotation files, such as ("instances",)."""


def recognise(root: Path, part: PartName, kinds: Sequence[str]) -> AnnotationSource | None:
    """The annotations of a part in the first form that a dataset has, besides COCO's own layout; None for no form.

    Raises:
        MissingPartError: the dataset has the other part alone.
        DataError: files that cannot be used.
    """
    found = (find(root, part, kinds) for find in FINDERS)
    return next((source for source in found if source is not None), None)
