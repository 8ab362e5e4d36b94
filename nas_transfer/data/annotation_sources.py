"""What each form of annotations gives, and COCO files under the names that annotation tools write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from nas_transfer.data.annotation_content import AnnotationContent, Record, load_coco
from nas_transfer.data.images import named_in
from nas_transfer.errors import DataError

PartName = Literal["train", "val"]

PART_FOLDERS: dict[PartName, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation")}
"""What tools call the folders of a part."""
ROBOFLOW_FILE = "_annotations.coco.json"
UNDIVIDED_IMAGES = ("images/default", "images", "data", ".")


class MissingPartError(DataError):
    """A part that is not on disk and whose files nobody named: evaluation needs no train part."""


class AnnotationSource(Protocol):
    """The annotations of a part in one form, found but not read."""

    @property
    def form(self) -> str:
        """Name of the form, for people."""

    @property
    def folder(self) -> Path:
        """The folder that the names of images are relative to."""

    @property
    def undivided(self) -> bool:
        """Whether it holds the images of train and val together, since the dataset has no split."""

    def read(self, refused: list[str] | None = None) -> AnnotationContent:
        """Read the annotations.

        Args:
            refused: collects a sentence for each annotation that cannot be read, instead of raising it.

        Raises:
            DataError: a file that cannot be read; one sentence that names it.
        """


@dataclass(frozen=True)
class CocoSource:
    """An annotation file in COCO's format; see `AnnotationSource`."""

    annotations: Path
    folder: Path
    form: str = "COCO"
    undivided: bool = False

    def read(self, refused: list[str] | None = None) -> AnnotationContent:
        """Read the file."""
        content = load_coco(self.annotations)
        return _without_project(content) if self.annotations.name == ROBOFLOW_FILE else content


def _without_project(content: AnnotationContent) -> AnnotationContent:
    """Without Roboflow's category 0, which is the name of the project: the supercategory of all others, with no object.

    A file in which another category has no such supercategory, or which uses the category, is kept as it is.
    """
    first = [category for category in content.categories if category.get("id") == 0]
    others = [category for category in content.categories if category.get("id") != 0]
    if len(first) != 1 or not others or any(record.get("category_id") == 0 for record in content.annotations):
        return content
    of_project = all(category.get("supercategory") == first[0].get("name") for category in others)
    return replace(content, categories=others) if of_project else content


def find_exported(root: Path, part: PartName, kinds: Sequence[str]) -> CocoSource | None:
    """COCO files as Roboflow, CVAT or Label Studio write them; None for none.

    Args:
        root: folder of the dataset.
        part: the part.
        kinds: what annotation files are called before the name of the part, e.g. ("instances",).

    Raises:
        MissingPartError: Roboflow's files of another part alone.
    """
    folder = _roboflow_folder(root, part)
    if folder is not None:
        return CocoSource(folder / ROBOFLOW_FILE, folder, "COCO as Roboflow writes it")
    if any(_roboflow_folder(root, other) for other in PART_FOLDERS):
        raise missing_part(root, part, [f"{name}/{ROBOFLOW_FILE}" for name in PART_FOLDERS[part]])
    file = _undivided_file(root, kinds)
    if file is None:
        return None
    images = load_coco(file).images
    folder = next((root / name for name in UNDIVIDED_IMAGES if _holds(root / name, images)), None)
    if folder is None:
        raise DataError(
            f"the images of {file} must lie in {root}, got none of {', '.join(UNDIVIDED_IMAGES)} with the first one: "
            "move them, or set data.sources"
        )
    return CocoSource(file, folder, "COCO without a split", undivided=True)


def _undivided_file(root: Path, kinds: Sequence[str]) -> Path | None:
    """The file with all images: CVAT's by its name; those of others lie in the root under any name."""
    names = [f"annotations/{kind}{suffix}.json" for kind in kinds for suffix in ("_default", "")]
    named = next((root / name for name in names if (root / name).is_file()), None)
    if named is not None:
        return named
    found = [path for path in sorted(root.glob("*.json")) if _is_coco(path)]
    if len(found) > 1:
        raise DataError(
            f"{root} must hold one COCO file for all images, got {found[0].name} and {found[1].name}: "
            "set data.sources, or move one away"
        )
    return found[0] if found else None


def _is_coco(path: Path) -> bool:
    try:
        load_coco(path)
    except DataError:
        return False
    return True


def _roboflow_folder(root: Path, part: PartName) -> Path | None:
    return next((root / name for name in PART_FOLDERS[part] if (root / name / ROBOFLOW_FILE).is_file()), None)


def _holds(folder: Path, images: Sequence[Record]) -> bool:
    """Whether a folder has the first of these images; any folder of images will do for a file without images."""
    name = images[0].get("file_name") if images else None
    path = named_in(folder, name) if isinstance(name, str) else folder
    return path is not None and path.exists()


def missing_part(root: Path, part: PartName, tried: Sequence[str]) -> MissingPartError:
    """The error for a part without files, in a dataset whose form is known."""
    remedy = "cut val from train with data.split.val_fraction=0.2" if part == "val" else "set data.root"
    return MissingPartError(f"no {part} images in {root}: tried {', '.join(tried)}: add them, or {remedy}")
