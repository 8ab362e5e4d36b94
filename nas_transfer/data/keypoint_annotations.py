"""COCO keypoint files, box files, and what the names of keypoints say: sides, tolerances, upper and lower body."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nas_transfer.data.annotation_content import AnnotationContent, Record, load_coco, read_json, shown
from nas_transfer.data.annotation_values import LARGEST_COORDINATE, is_number, is_text
from nas_transfer.data.coco_annotations import CocoFile, check_coco, is_box
from nas_transfer.data.samples import DetectedBox
from nas_transfer.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SIGMAS = {
    "nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062, "hip": 0.107,
    "knee": 0.087, "ankle": 0.089, "neck": 0.079, "head": 0.079,
}  # fmt: skip
"""A third of the tolerance of each body part: COCO's, and CrowdPose's for neck and head."""
OTHER_SIGMA = 0.05
LOWER_BODY = ("hip", "knee", "ankle", "foot", "toe", "heel")
SIDES = (("left_", "right_"), ("l_", "r_"), ("_left", "_right"), ("_l", "_r"))


@dataclass(frozen=True)
class Body:
    """Keypoints as the values under `data.body` define them, where the file does not, or in place of the file.

    Attributes:
        names: names of the keypoints, in the order of the file; None for those of the category in the file.
        flip_pairs: indices of left and right twins; None for those of the category, else left_x with right_x.
        sigmas: a third of the tolerance of each keypoint in OKS; None for those of the category, else COCO's by name.
        lower_body: names of the keypoints from the hips down; None for hips, knees, ankles and feet by name.

    Raises:
        ConfigError: a flip pair that is not two indices, or a sigma of 0 or less.
    """

    names: Sequence[str] | None
    flip_pairs: Sequence[Sequence[int]] | None
    sigmas: Sequence[float] | None
    lower_body: Sequence[str] | None

    def __post_init__(self) -> None:
        for pair in self.flip_pairs or ():
            if len(pair) != 2:
                raise ConfigError(f"data.body.flip_pairs must be pairs of two indices, got {list(pair)}")
        for sigma in self.sigmas or ():
            if not sigma > 0:
                raise ConfigError(f"data.body.sigmas must be above 0, got {sigma}")


@dataclass(frozen=True)
class Skeleton:
    """The keypoints of a person.

    Attributes:
        names: names of the K keypoints.
        flip_pairs: indices of left and right twins, which a mirrored image exchanges.
        sigmas: sigmas of the object keypoint similarity, one for each keypoint.
        lower_body: indices of the keypoints from the hips down.
        edges: indices of the two ends of each limb, for drawings.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    lower_body: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class KeypointFile:
    """A checked keypoint file: its images and annotations of the one category that has keypoints, and that category."""

    file: CocoFile
    category: Record


def read_keypoints(path: Path, refused: list[str] | None = None) -> KeypointFile:
    """Read and check a COCO keypoint file; annotations of other categories are left out.

    A missing or empty box becomes the extent of the labelled keypoints; a person without either is left out.

    Args:
        refused: collects a sentence for each person that cannot be used, instead of raising it.

    Raises:
        DataError: what `read_coco` refuses, not one category with keypoints, or a keypoint list of another length.
    """
    return check_keypoints(load_coco(path), refused)


def check_keypoints(content: AnnotationContent, refused: list[str] | None = None) -> KeypointFile:
    """Check what was read; see `read_keypoints`."""
    path = content.path
    having = [category for category in content.categories if category.get("keypoints")]
    if len(having) != 1:
        names = ", ".join(shown(category.get("name")).strip("'") for category in having) or "none"
        raise DataError(
            f"{path} must have one category with a list of keypoint names, got {names}: "
            "set data.sources.train_annotations and data.sources.val_annotations to person_keypoints files"
        )
    category = having[0]
    _require_sound_category(category, path)
    length = 3 * len(category["keypoints"])
    annotations, origins = [], []
    for annotation, where in content.located():
        if annotation.get("category_id") == category.get("id"):
            try:
                annotations.append(_complete(annotation, length, where))
            except DataError as error:
                if refused is None:
                    raise
                refused.append(str(error))
            else:
                origins.append(where)
    chosen = replace(content, annotations=annotations, categories=[category], origins=origins)
    file = check_coco(chosen, need_masks=False, skip_empty_boxes=True, refused=refused)
    return KeypointFile(file, category)


def _require_sound_category(category: Record, path: Path) -> None:
    """Raise DataError for keypoints, flip pairs or sigmas of another type than COCO's."""
    names, pairs, sigmas = category["keypoints"], category.get("flip_pairs"), category.get("sigmas")
    if not isinstance(names, list) or not all(map(is_text, names)):
        raise DataError(f"the keypoints of the category in {path} must be names, got {shown(names)}: name them")
    if pairs is not None and not (isinstance(pairs, list) and all(map(_is_pair, pairs))):
        raise DataError(f"flip_pairs in {path} must be pairs of indices of keypoints, got {shown(pairs)}: remove them")
    if sigmas is not None and not (isinstance(sigmas, list) and all(map(is_number, sigmas))):
        raise DataError(f"sigmas in {path} must be a number for each keypoint, got {shown(sigmas)}: remove them")


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(index) is int for index in value)


def _complete(annotation: Record, length: int, where: str) -> Record:
    keypoints = annotation.get("keypoints", [0] * length)
    if not isinstance(keypoints, list) or len(keypoints) != length:
        count = len(keypoints) if isinstance(keypoints, list) else shown(keypoints)
        raise DataError(
            f"the keypoints of {where} must be {length} numbers, x, y and v of {length // 3} "
            f"keypoints, got {count}: correct it, or the keypoint names of the category"
        )
    if not all(map(is_number, keypoints)):
        raise DataError(f"the keypoints of {where} must be numbers: correct the annotation")
    points = np.asarray(keypoints, dtype=np.float64).reshape(-1, 3)
    labelled = points[points[:, 2] > 0, :2]
    box = annotation.get("bbox")
    empty = not is_box(box) or box[2] <= 0 or box[3] <= 0  # type: ignore[index]
    if empty and len(labelled):
        (left, top), (right, bottom) = labelled.min(0), labelled.max(0)
        box = [float(left), float(top), float(right - left) + 1, float(bottom - top) + 1]
    elif empty:
        box = [0.0, 0.0, 0.0, 0.0]  # left out by check_coco
    return annotation | {"keypoints": keypoints, "num_keypoints": len(labelled), "bbox": box}


def read_skeleton(category: Record, body: Body) -> Skeleton:
    """A skeleton from the configuration, where given, else from the category of the file, else from the names.

    Raises:
        ConfigError: a list of another length, or an index or a name that is none of the keypoints'.
    """
    names = tuple(str(name) for name in (body.names or category["keypoints"]))
    count = len(category["keypoints"])
    if len(names) != count:
        raise ConfigError(f"data.body.names must name the {count} keypoints of the file, got {len(names)} names")
    pairs = body.flip_pairs if body.flip_pairs is not None else category.get("flip_pairs") or side_pairs(names)
    flip_pairs = tuple((int(pair[0]), int(pair[1])) for pair in pairs)
    indices = [index for pair in flip_pairs for index in pair]
    if len(set(indices)) < len(indices) or any(not 0 <= index < count for index in indices):
        raise ConfigError(
            f"data.body.flip_pairs must be pairs of different indices in 0..{count - 1}, got {list(flip_pairs)}"
        )
    sigmas = tuple(body.sigmas if body.sigmas is not None else category.get("sigmas") or part_sigmas(names))
    if len(sigmas) != count or any(not value > 0 for value in sigmas):
        raise ConfigError(f"data.body.sigmas must be {count} numbers above 0, got {list(sigmas)}")
    lower_body = _lower_body(names, body.lower_body)
    return Skeleton(names, flip_pairs, tuple(float(value) for value in sigmas), lower_body, _edges(category, count))


def _lower_body(names: tuple[str, ...], given: Sequence[str] | None) -> tuple[int, ...]:
    """Indices of the keypoints that are given, else of those whose name says that they lie below the waist."""
    if given is None:
        return tuple(k for k, name in enumerate(names) if any(part in name.lower() for part in LOWER_BODY))
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ConfigError(f"data.body.lower_body must name keypoints of the file, got {unknown[0]}")
    return tuple(names.index(name) for name in given)


def _edges(category: Record, count: int) -> tuple[tuple[int, int], ...]:
    """The usable limbs of the category's skeleton, whose indices begin at 1; only drawings depend on them."""
    skeleton = category.get("skeleton")
    limbs = [limb for limb in skeleton if isinstance(limb, list)] if isinstance(skeleton, list) else []
    pairs = [(limb[0] - 1, limb[1] - 1) for limb in limbs if len(limb) == 2 and all(type(end) is int for end in limb)]
    return tuple(pair for pair in pairs if all(0 <= end < count for end in pair))


def side_pairs(names: Sequence[str]) -> list[tuple[int, int]]:
    """Indices of names that differ only in left and right: left_x, l_x, x_left, x_l and their twins."""
    positions = {name.lower(): k for k, name in enumerate(names)}
    pairs = []
    for name, k in positions.items():
        for left, right in SIDES:
            at_start = left.endswith("_")
            if not (name.startswith(left) if at_start else name.endswith(left)):
                continue
            twin = right + name[len(left) :] if at_start else name[: -len(left)] + right
            if twin in positions:
                pairs.append((k, positions[twin]))
    return pairs


def part_sigmas(names: Sequence[str]) -> list[float]:
    """A sigma for each name by the body part in it; others get 0.05, and a warning says so."""
    sigmas = []
    unknown = []
    for name in names:
        words = set(re.split(r"[^a-z]+", name.lower()))
        part = next((part for part in SIGMAS if part in words), None)
        sigmas.append(SIGMAS[part] if part else OTHER_SIGMA)
        if part is None:
            unknown.append(name)
    if unknown:
        logger.warning(
            "no published tolerance for %s: using sigma %s, on which AP depends; set data.body.sigmas",
            ", ".join(unknown), OTHER_SIGMA,
        )  # fmt: skip
    return sigmas


def read_boxes(path: Path, file: CocoFile, category_id: int, threshold: float, key: str) -> list[DetectedBox]:
    """The boxes of a detector in COCO's result format, of one category and at least `threshold` in score.

    Args:
        file: the annotations, for their images.
        key: the configuration key that named `path`, for error messages.

    Raises:
        DataError: no list of such records, an image that the annotations do not list, or no box of the category.
    """
    content: object = read_json(path, f"set {key} to the boxes of a detector")
    images = {image.image_id for image in file.images}
    if not isinstance(content, list):
        raise DataError(f"{path} must hold a list of boxes, got {type(content).__name__}: see COCO's result format")
    boxes: list[DetectedBox] = []
    for record in content:
        scored = isinstance(record, dict) and is_number(record.get("score"))
        if not scored or not is_box(record.get("bbox")) or max(map(abs, record["bbox"])) > LARGEST_COORDINATE:
            raise DataError(f"each box of {path} needs image_id, category_id, bbox and score, got {shown(record)}")
        if type(record.get("image_id")) is not int or record["image_id"] not in images:
            raise DataError(
                f"the image_id of each box of {path} must be an image of {file.path}, got "
                f"{shown(record.get('image_id'))}: "
                f"set {key} to boxes of these images"
            )
        usable = record["bbox"][2] > 0 and record["bbox"][3] > 0
        if record.get("category_id") == category_id and record["score"] >= threshold and usable:
            boxes.append(record)
    if not boxes:
        raise DataError(
            f"no boxes of category {category_id} with a score of at least {threshold} in {path}: "
            f"set {key} to another file, or train with a lower data.sources.box_threshold"
        )
    return boxes
