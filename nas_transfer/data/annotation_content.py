"""Annotations as they are written, before anything is checked: those of every form, in the terms of COCO."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_transfer.errors import DataError

Record = dict[str, Any]  # one JSON object of a file, unchecked

MOST_LETTERS = 200
"""Length of a value of a file in an error message."""


@dataclass(frozen=True)
class AnnotationContent:
    """The images, annotations and categories of a part.

    Attributes:
        path: the annotation file; where each image has one of its own, the file or folder that stands for all of them.
        images, annotations, categories: the JSON objects of a COCO file.
        origins: where each annotation is written, for messages; None for COCO, whose annotations have ids.
        digests: a line "sha256:<hash> <name>" for each file of annotations other than `path`.
    """

    path: Path
    images: list[Record]
    annotations: list[Record]
    categories: list[Record]
    origins: Sequence[str] | None = None
    digests: Sequence[str] = ()

    def located(self) -> Iterator[tuple[Record, str]]:
        """Each annotation, and its name in an error message."""
        for position, annotation in enumerate(self.annotations):
            if self.origins is not None:
                yield annotation, self.origins[position]
            else:
                number = shown(annotation["id"]) if "id" in annotation else "(without id)"
                yield annotation, f"annotation {number} of {self.path}"


def load_coco(path: Path) -> AnnotationContent:
    """The content of a COCO file; DataError if it is no JSON or lacks images, annotations or categories."""
    content = read_json(path, "give a COCO annotation file")
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        given = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} must hold the lists {', '.join(keys)}, got {given}: convert it to COCO's format")
    for key in keys:
        for record in content[key]:
            if not isinstance(record, dict):
                raise DataError(f"{key!r} of {path} must hold JSON objects, got {shown(record)}: see COCO's format")
    return AnnotationContent(path, content["images"], content["annotations"], content["categories"])


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file; DataError with the remedy if it is none, or nested too deeply."""
    if not path.is_file():
        raise DataError(f"{path} must be a file, got none: {remedy}")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as err:
        raise DataError(f"{path} cannot be read as JSON ({err}): {remedy}") from err
    except (RecursionError, MemoryError) as err:
        raise DataError(f"{path} cannot be read as JSON (it is nested too deeply or too large): {remedy}") from err


def shown(value: object) -> str:
    """A value of a file in an error message."""
    try:
        text = ascii(value)
    except RecursionError:
        text = "a deeply nested value"
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}..."
