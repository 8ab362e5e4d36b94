"""Names of classes and keypoints, and the folders of the parts, of a dataset with YOLO labels."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nas_transfer.data.annotation_content import shown
from nas_transfer.data.annotation_sources import PART_FOLDERS, PartName
from nas_transfer.data.annotation_values import is_text
from nas_transfer.data.images import named_in
from nas_transfer.errors import DataError

MOST_BYTES = 1 << 20
MOST_KEYPOINTS = 1000
YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
LISTS = ("classes.txt", "labels/classes.txt", "obj.names")
"""Class names, one a line: of Label Studio and LabelImg, and of darknet, which CVAT writes."""
COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""What 17 keypoints without names are, as in ultralytics."""


@dataclass(frozen=True)
class Keypoints:
    """The keypoints of an object.

    Attributes:
        names: their names.
        numbers: numbers of each in a label file: 2 for x and y, 3 with whether it is visible.
        flip_pairs: indices of left and right twins.
    """

    names: tuple[str, ...]
    numbers: int
    flip_pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Names:
    """What label files refer to.

    Attributes:
        path: the file that names the classes.
        classes: names in the order of their numbers.
        parts: folders or lists of images by part, relative to the dataset.
        keypoints: those of `kpt_shape`; None without it.
    """

    path: Path
    classes: tuple[str, ...]
    parts: Mapping[PartName, Sequence[str]] = field(default_factory=dict)
    keypoints: Keypoints | None = None


def read_names(root: Path) -> Names | None:
    """Read ``data.yaml`` or a list of class names; None for a dataset that has neither.

    Raises:
        DataError: a file that cannot be used, or label files without names of classes.
    """
    for path in (root / name for name in YAML_FILES):
        if path.is_file():
            content = _load_yaml(path)
            if not isinstance(content, dict) or "names" not in content:
                raise DataError(f"{path} must hold the key names with the names of the classes, got none: add it")
            return _names_of(path, content)
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        with contextlib.suppress(DataError):  # it may be about anything
            content = _load_yaml(path)
            if isinstance(content, dict) and "names" in content:
                return _names_of(path, content)
    for path in (root / name for name in LISTS):
        if path.is_file():
            return Names(path, _class_list(path))
    if next((root / "labels").rglob("*.txt"), None) is not None:
        raise DataError(
            f"the label files in {root / 'labels'} need names of classes, got no data.yaml and no classes.txt in "
            f"{root}: write data.yaml with names: [first, second]"
        )
    return None


def _load_yaml(path: Path) -> object:
    """The content of a YAML file without aliases, which could make a small file huge."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        text = data.decode("utf-8-sig")
        if len(data) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES} bytes")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("it has aliases")
        return yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as err:
        cause = " ".join(str(err).split())
        raise DataError(f"{path} cannot be read as YAML ({cause}): write names: [first, second]") from err


def _names_of(path: Path, content: dict[object, object]) -> Names:
    parts: dict[PartName, Sequence[str]] = {}
    for part, keys in PART_FOLDERS.items():
        values = next((content[key] for key in keys if content.get(key) is not None), [])
        parts[part] = _inside(path.parent, content.get("path"), values)
    return Names(path, _ordered(path, "names", content["names"]), parts, _keypoints(path, content))


def _inside(root: Path, base: object, values: object) -> list[str]:
    """The folders and lists as paths in the dataset; Roboflow writes ``../`` before them, others their own folders.

    What lies outside of the dataset is left out: `find_yolo` then tries the usual folders.
    """
    found = []
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, str):
            continue
        name = value
        while name.startswith(("./", "../")):
            name = name.partition("/")[2]
        bases = [base] if isinstance(base, str) and base not in ("", ".") else []
        for candidate in [*(f"{base}/{name}" for base in bases), name]:
            path = named_in(root, candidate)
            if path is not None and not Path(candidate).is_absolute() and path.exists():
                found.append(Path(candidate).as_posix())
                break
    return found


def _ordered(path: Path, key: str, value: object) -> tuple[str, ...]:
    """Names as a list, or by their numbers from 0."""
    if isinstance(value, dict):
        if set(value) != set(range(len(value))):
            raise DataError(f"{key} of {path} must be numbered from 0, got {shown(list(value))}: renumber them")
        value = [value[number] for number in range(len(value))]
    names = [str(name) if type(name) in (int, float, bool) else name for name in value] if type(value) is list else []
    if not names or not all(map(is_text, names)):
        raise DataError(f"{key} of {path} must be a list of names, got {shown(value)}: write {key}: [first, second]")
    return tuple(names)


def _keypoints(path: Path, content: dict[object, object]) -> Keypoints | None:
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if (
        not isinstance(shape, list)
        or [type(number) for number in shape] != [int, int]
        or not (0 < shape[0] <= MOST_KEYPOINTS and shape[1] in (2, 3))
    ):
        raise DataError(f"kpt_shape of {path} must be [keypoints, 2 or 3], got {shown(shape)}: correct it")
    count, numbers = shape
    given = content.get("kpt_names")
    if isinstance(given, dict) and isinstance(given.get(0), list):
        given = given[0]  # ultralytics lists them by class
    names = tuple(f"keypoint_{number}" for number in range(1, count + 1))
    if given is not None:
        names = _ordered(path, "kpt_names", given)
    elif count == len(COCO_KEYPOINTS):
        names = COCO_KEYPOINTS
    if len(names) != count:
        raise DataError(f"kpt_names of {path} must be the names of {count} keypoints, got {len(names)}: correct them")
    return Keypoints(names, numbers, _flip_pairs(path, content.get("flip_idx"), count))


def _flip_pairs(path: Path, flipped: object, count: int) -> tuple[tuple[int, int], ...]:
    """Pairs of twins from the index of the twin of each keypoint."""
    if flipped is None:
        return ()
    valid = isinstance(flipped, list) and all(type(index) is int for index in flipped)
    if not isinstance(flipped, list) or not valid or sorted(flipped) != list(range(count)):
        raise DataError(
            f"flip_idx of {path} must hold the index of the twin of each of the {count} keypoints, got "
            f"{shown(flipped)}: correct it"
        )
    return tuple((index, twin) for index, twin in enumerate(flipped) if index < twin)


def _class_list(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path} cannot be read ({err}): write one class name a line") from err
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise DataError(f"{path} must name classes, got none: write one class name a line")
    return names
