"""YOLO text labels: a line "class x y width height" for each object, relative to the image, as ultralytics reads them.

A line with more numbers is a polygon, or a box with keypoints where ``data.yaml`` has `kpt_shape`. Image ids count the
sorted names from 1, and class k has category id k + 1.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nas_transfer.data.annotation_content import AnnotationContent, Record, shown
from nas_transfer.data.annotation_sources import PART_FOLDERS, PartName, missing_part
from nas_transfer.data.images import StoredSize, image_files, is_image_name, named_in, sizes_of
from nas_transfer.data.yolo_yaml import Names, read_names
from nas_transfer.errors import DataError

logger = logging.getLogger(__name__)

DIGITS = 6
"""Decimals of a coordinate in pixels: rounding takes the noise away that multiplying by the size adds."""
FARTHEST = 2.0
"""Largest relative coordinate that may be an error of rounding or clipping; larger ones are pixels."""
UNDIVIDED_FOLDERS = ("images", "obj_train_data", "data", ".")
KEYPOINT_AREA = 0.53
"""Share of its box that a person covers, by which OKS is computed without a mask, as in xtcocotools and ultralytics."""
LIST_SUFFIX = ".txt"


@dataclass(frozen=True)
class YoloSource:
    """The images of a part and its labels; see `AnnotationSource`.

    Attributes:
        folder: folder of the dataset.
        names: what the classes and keypoints are called.
        images: paths of the images relative to the folder, sorted.
        pose: read keypoints.
        undivided: whether the dataset has no split.
    """

    folder: Path
    names: Names
    images: Sequence[str]
    pose: bool
    undivided: bool = False

    @property
    def form(self) -> str:
        """Name of the form, for people."""
        return f"YOLO labels{' without a split' if self.undivided else ''}, {self.names.path.name}"

    def read(self, refused: list[str] | None = None) -> AnnotationContent:
        """Read the label file of each image; an image without one has no objects."""
        if self.pose and self.names.keypoints is None:
            raise DataError(f"{self.names.path} must have kpt_shape for a pose task: add it, or choose another task")
        images: list[Record] = []
        annotations: list[Record] = []
        origins: list[str] = []
        digests: list[str] = []
        sizes = sizes_of([self.folder / name for name in self.images])
        self._warn_of_turned(sizes)
        for image_id, (name, (width, height, _)) in enumerate(zip(self.images, sizes, strict=True), start=1):
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            label = label_name(name)
            if not (self.folder / label).is_file():
                continue
            text = _read_text(self.folder / label)
            digests.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()} {label}")
            for number, record in self._objects(self.folder / label, text, (width, height), refused):
                annotations.append({"image_id": image_id, **record})
                origins.append(f"line {number} of {self.folder / label}")
        if not digests:
            raise DataError(
                f"no label file for any of the {len(images)} images of {self.folder}, the first would be "
                f"{label_name(self.images[0])}: add the label files"
            )
        return AnnotationContent(self.names.path, images, annotations, self._categories(), origins, digests)

    def _warn_of_turned(self, sizes: Sequence[StoredSize]) -> None:
        turned = [name for name, size in zip(self.images, sizes, strict=True) if size.turned]
        if turned:
            logger.warning(
                "%d images are turned by their EXIF orientation, first %s: labels are taken to refer to the stored "
                "pixels; look at them with stage=profile preview=16, and store them upright if the boxes are displaced",
                len(turned), turned[0],
            )  # fmt: skip

    def _categories(self) -> list[Record]:
        keypoints = self.names.keypoints
        extra: Record = {}
        if self.pose and keypoints is not None:
            extra = {"keypoints": list(keypoints.names), "flip_pairs": [list(pair) for pair in keypoints.flip_pairs]}
        return [{"id": label, "name": name, **extra} for label, name in enumerate(self.names.classes, start=1)]

    def _objects(
        self, path: Path, text: str, size: tuple[int, int], refused: list[str] | None
    ) -> Iterator[tuple[int, Record]]:
        """The objects of a label file and the numbers of their lines."""
        for number, line in enumerate(text.splitlines(), start=1):
            if not (fields := line.split()):
                continue
            try:
                yield number, self._object(fields, size, f"line {number} of {path}")
            except DataError as error:
                if refused is None:
                    raise
                refused.append(str(error))

    def _object(self, fields: list[str], size: tuple[int, int], where: str) -> Record:
        label = _number(fields[0])
        if not (label.is_integer() and 0 <= label < len(self.names.classes)):
            raise DataError(
                f"{where} must begin with a class 0 to {len(self.names.classes) - 1} of {self.names.path}, got "
                f"{shown(fields[0])}: correct it, or name the class"
            )
        record: Record = {"category_id": int(label) + 1}
        keypoints = self.names.keypoints
        if keypoints is None and len(fields) >= 7 and len(fields) % 2 == 1:
            return record | _outlined(_relative(fields[1:], where), size)
        posed = keypoints is not None and len(fields) == 5 + len(keypoints.names) * keypoints.numbers
        if not posed and len(fields) != 5:
            what = "x y width height, or a polygon of three points or more"
            if keypoints is not None:
                what = f"x y width height, and {len(keypoints.names)} keypoints of {keypoints.numbers} numbers or none"
            raise DataError(f"{where} must be a class and {what}, got {len(fields)} fields: correct it")
        record["bbox"] = _box(_relative(fields[1:5], where), size)
        if keypoints is not None and posed and self.pose:
            record["keypoints"] = _keypoints(fields[5:], keypoints.numbers, size, where)
            record["area"] = KEYPOINT_AREA * record["bbox"][2] * record["bbox"][3]
        return record


def _relative(fields: Sequence[str], where: str) -> list[float]:
    values = [_number(field) for field in fields]
    for value, field in zip(values, fields, strict=True):
        if not abs(value) <= FARTHEST:  # NaN is wrong, too
            raise DataError(
                f"{where} must have coordinates relative to the image, 0 to 1, got {shown(field)}: "
                "divide pixels by the width and the height of the image"
            )
    return values


def _number(field: str) -> float:
    try:
        return float(field)
    except ValueError:
        return math.nan


def _box(values: Sequence[float], size: tuple[int, int]) -> list[float]:
    x, y, width, height = values
    sides = (width * size[0], height * size[1])
    left, top = x * size[0] - sides[0] / 2, y * size[1] - sides[1] / 2
    return [round(value, DIGITS) for value in (left, top, *sides)]


def _outlined(values: Sequence[float], size: tuple[int, int]) -> Record:
    """The polygon, its extent and its area."""
    xs = [round(value * size[0], DIGITS) for value in values[::2]]
    ys = [round(value * size[1], DIGITS) for value in values[1::2]]
    left, top = min(xs), min(ys)
    before = range(-1, len(xs) - 1)
    area = abs(sum(xs[k] * ys[k + 1] - xs[k + 1] * ys[k] for k in before)) / 2
    return {
        "bbox": [left, top, round(max(xs) - left, DIGITS), round(max(ys) - top, DIGITS)],
        "area": round(area, DIGITS),
        "segmentation": [[value for pair in zip(xs, ys, strict=True) for value in pair]],
    }


def _keypoints(fields: Sequence[str], numbers: int, size: tuple[int, int], where: str) -> list[float]:
    """x, y and v of each keypoint; without a flag, one at 0, 0 is not labelled."""
    points: list[float] = []
    for start in range(0, len(fields), numbers):
        x, y = _relative(fields[start : start + 2], where)
        visible = _number(fields[start + 2]) if numbers == 3 else 2.0 * bool(x or y)
        points += [round(x * size[0], DIGITS), round(y * size[1], DIGITS), visible]
    return points


def label_name(image: str) -> str:
    """The label file of an image, relative to the dataset: the last folder "images" becomes "labels", if there is one.

    As in ultralytics, ``images/train/a.jpg`` has ``labels/train/a.txt`` and ``train/images/a.jpg`` has
    ``train/labels/a.txt``.
    """
    parts = list(PurePosixPath(image).parts)
    positions = [position for position, part in enumerate(parts[:-1]) if part == "images"]
    if positions:
        parts[positions[-1]] = "labels"
    return PurePosixPath(*parts).with_suffix(".txt").as_posix()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path} cannot be read as text ({err}): write a line for each object") from err


def find_yolo(root: Path, part: PartName, kinds: Sequence[str]) -> YoloSource | None:
    """The YOLO labels of a part; None for a dataset without them.

    The folders and lists that ``data.yaml`` names are looked for first, then ``images/<part>`` and ``<part>/images``.
    A dataset that has neither, or the same one for both parts, has no split.

    Raises:
        MissingPartError: a dataset of the other part alone.
        DataError: a ``data.yaml`` or a list of images that cannot be used, or labels without names of classes.
    """
    names = read_names(root)
    if names is None:
        return None
    pose = not any(kind == "instances" for kind in kinds)
    listed: dict[PartName, list[str]] = {}
    other: PartName = "val" if part == "train" else "train"
    for name in (part, other):
        found = _images_of(root, names, name)
        if found is not None:
            listed[name] = found
    if part in listed and listed.get(part) != listed.get(other):
        return YoloSource(root, names, listed[part], pose)
    if listed and part not in listed:
        raise missing_part(root, part, [*names.parts.get(part, ()), *_usual_folders(part)])
    images = listed.get(part) or next(filter(None, (_images_at(root, name) for name in UNDIVIDED_FOLDERS)), None)
    if images is None:
        raise DataError(f"no images in {root}, whose classes {names.path} names: add images and labels")
    return YoloSource(root, names, images, pose, undivided=True)


def _usual_folders(part: PartName) -> list[str]:
    return [pattern for name in PART_FOLDERS[part] for pattern in (f"images/{name}", f"{name}/images")]


def _images_of(root: Path, names: Names, part: PartName) -> list[str] | None:
    """The images of a part, sorted; None for none."""
    named = [image for name in names.parts.get(part, ()) for image in _images_at(root, name)]
    usual = (_images_at(root, name) for name in _usual_folders(part))
    return sorted(set(named)) or next(filter(None, usual), None)


def _images_at(root: Path, name: str) -> list[str]:
    """The images in a folder and those below it, or of a list; of the dataset itself, those beside its other files."""
    if name.endswith(LIST_SUFFIX) and (root / name).is_file():
        return _listed_images(root, root / name)
    if name == ".":
        return sorted(path.name for path in root.iterdir() if is_image_name(path.name))
    return [Path(path).relative_to(root).as_posix() for path in image_files(root / name)]


def _listed_images(root: Path, path: Path) -> list[str]:
    """The images of a list, sorted; CVAT writes ``data/`` before paths that are relative to the list."""
    images = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        name = line.strip().removeprefix("./")
        if not name:
            continue
        candidates = [name, name.removeprefix("data/")]
        found = next((name for name in candidates if _is_image_in(root, name)), None)
        if found is None:
            raise DataError(
                f"line {number} of {path} must name an image in {root}, got {shown(name)}: correct the list"
            )
        images.append(found)
    if not images:
        raise DataError(f"{path} must list images, got none: write one path a line")
    return sorted(set(images))


def _is_image_in(root: Path, name: str) -> bool:
    path = named_in(root, name)
    return path is not None and not Path(name).is_absolute() and is_image_name(path.name) and path.is_file()
