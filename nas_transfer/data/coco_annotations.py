"""COCO instance annotation files: reading, checking, masks, and the ground truth that pycocotools evaluates against."""

import contextlib
import io
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeGuard

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO

from nas_transfer.data.annotation_content import AnnotationContent, Record, load_coco, shown
from nas_transfer.data.annotation_values import MARGIN, is_id, is_near, is_number, is_text, mask_problem
from nas_transfer.data.image_cache import ReadImage
from nas_transfer.data.images import MOST_PIXELS, named_in, read_image
from nas_transfer.errors import DataError


class RunLengths(TypedDict):
    """A mask in COCO's run-length encoding: its height and width, and the runs or their compressed text."""

    size: list[int]
    counts: list[int] | str


Segmentation = list[list[float]] | RunLengths


class BoxAnnotation(TypedDict):
    """A checked annotation: what the evaluation of pycocotools reads; bbox is [x, y, width, height] in pixels."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int


class CocoAnnotation(BoxAnnotation, total=False):
    """Also what only some files have."""

    segmentation: Segmentation
    keypoints: list[float]
    num_keypoints: int


class Category(NamedTuple):
    """A class of the file; label k (from 1) is the k-th by COCO id."""

    coco_id: int
    name: str


class ImageEntry(NamedTuple):
    """An image as listed in the file, in pixels."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class CocoFile:
    """A checked annotation file.

    Attributes:
        path: where it came from.
        categories: sorted by COCO id.
        images: sorted by image id.
        annotations: per image, in the order of the file; ids are unique and never 0, which pycocotools takes for
            "unmatched".
        num_skipped: annotations without area that were left out.
        digests: a line for each other file that annotations were read from; see `AnnotationContent`.
    """

    path: Path
    categories: tuple[Category, ...]
    images: tuple[ImageEntry, ...]
    annotations: tuple[tuple[CocoAnnotation, ...], ...]
    num_skipped: int
    digests: tuple[str, ...] = ()

    def only(self, positions: Iterable[int]) -> "CocoFile":
        """The file with the images at these positions alone."""
        chosen = list(positions)
        images = tuple(self.images[position] for position in chosen)
        return replace(self, images=images, annotations=tuple(self.annotations[position] for position in chosen))

    def ground_truth(self, positions: Iterable[int]) -> COCO:
        """The images at these positions as a pycocotools object, crowds included; prints nothing."""
        chosen = list(positions)
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [
                {"id": image.image_id, "file_name": image.file_name, "height": image.height, "width": image.width}
                for image in (self.images[position] for position in chosen)
            ],
            "annotations": [dict(annotation) for position in chosen for annotation in self.annotations[position]],
            "categories": [{"id": category.coco_id, "name": category.name} for category in self.categories],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco


def read_coco(path: Path, *, need_masks: bool, skip_empty_boxes: bool, refused: list[str] | None = None) -> CocoFile:
    """Read and check a COCO instances file.

    Args:
        path: the JSON file.
        need_masks: every annotation must have a segmentation.
        skip_empty_boxes: leave annotations without area out (COCO's own train2017 has two, ids 918 and 2206849).
        refused: collects a sentence for each annotation that cannot be used, instead of raising it.

    Raises:
        DataError: no JSON, not COCO, an unknown category or image, a box without area, a missing or unusable
            segmentation; one sentence that names the file and the annotation id.
    """
    return check_coco(load_coco(path), need_masks=need_masks, skip_empty_boxes=skip_empty_boxes, refused=refused)


def check_coco(
    content: AnnotationContent, *, need_masks: bool, skip_empty_boxes: bool, refused: list[str] | None = None
) -> CocoFile:
    """Check what was read; see `read_coco`. Keypoints are kept as they are."""
    categories = _read_categories(content.path, content.categories)
    images = _read_images(content.path, content.images)
    position_of_image: dict[int | None, int] = {image.image_id: position for position, image in enumerate(images)}
    category_ids = {category.coco_id for category in categories}
    per_image: list[list[CocoAnnotation]] = [[] for _ in images]
    num_skipped = 0
    for annotation, where in content.located():
        position = position_of_image.get(_integer(annotation.get("image_id")))
        try:
            if position is None:
                raise DataError(
                    f"the image_id of {where} must be one of the {len(images)} images of the file, "
                    f"got {shown(annotation.get('image_id'))}: remove the annotation or list its image"
                )
            complete = _checked(annotation, images[position], where, category_ids, need_masks, skip_empty_boxes)
        except DataError as error:
            if refused is None:
                raise
            refused.append(str(error))
            continue
        if complete is None:
            num_skipped += 1
        else:
            per_image[position].append(complete)
    _number(per_image)
    annotations = tuple(tuple(records) for records in per_image)
    return CocoFile(content.path, categories, images, annotations, num_skipped, tuple(content.digests))


def _checked(
    annotation: Record, image: ImageEntry, where: str, category_ids: set[int], need_masks: bool, skip_empty_boxes: bool
) -> CocoAnnotation | None:
    """An annotation with all keys, None for one without area to be left out; DataError for an unusable one."""
    if _integer(annotation.get("category_id")) not in category_ids:
        raise DataError(
            f"the category_id of {where} must be a category of the file, {sorted(category_ids)[:10]}, "
            f"got {shown(annotation.get('category_id'))}: correct it or list the category"
        )
    problem = _box_problem(annotation.get("bbox"), image)
    if not problem:
        return _complete(annotation, image, where, need_masks)
    if skip_empty_boxes and is_box(annotation.get("bbox")):
        return None
    raise DataError(
        f"the box of {where} must have an area inside its image, got {problem}: "
        "correct it, or leave annotations without area out with data.skip_empty_boxes=true"
    )


def read_listed(folder: Path, entry: ImageEntry, read: ReadImage = read_image) -> torch.Tensor:
    """An image of the file: uint8 (3, H, W); DataError for a broken one, or one of another size than listed."""
    path = folder / entry.file_name
    image = read(path, follow_exif=False)
    if tuple(image.shape[-2:]) != (entry.height, entry.width):
        raise DataError(
            f"the annotation file says that {path} is {entry.width}x{entry.height}, but the image is "
            f"{image.shape[-1]}x{image.shape[-2]}: correct the file (annotations refer to the stored pixels, "
            "not to the EXIF orientation)"
        )
    return image


def require_same_categories(train: CocoFile, val: CocoFile) -> None:
    """Raise DataError for the first category that differs in its id or name between both files."""
    if train.categories == val.categories:
        return
    first, second = dict(train.categories), dict(val.categories)
    differing = min(key for key in {**first, **second} if first.get(key) != second.get(key))
    raise DataError(
        f"{train.path} and {val.path} must have the same categories, "
        f"got {first.get(differing)!r} and {second.get(differing)!r} for id {differing}: make them equal"
    )


def clip_box(box: list[float], image: ImageEntry) -> np.ndarray:
    """COCO's [x, y, width, height] as float32 (4,) xyxy, clipped to the image."""
    x, y, width, height = box
    corners = np.asarray([x, y, x + width, y + height], dtype=np.float32)
    limits = np.asarray([image.width, image.height] * 2, dtype=np.float32)
    return np.clip(corners, 0, limits)


def decode_mask(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """Rasterise polygons or an RLE (compressed or not), as pycocotools does: uint8 (height, width) of 0 and 1.

    Polygons of fewer than three points are ignored: pycocotools would take two points for a box.
    """
    if isinstance(segmentation, list):
        encoded = rle.merge(rle.frPyObjects([polygon for polygon in segmentation if len(polygon) >= 6], height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = rle.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    return rle.decode(encoded)


def _read_categories(path: Path, records: list[Record]) -> tuple[Category, ...]:
    for record in records:
        if not is_id(record.get("id")) or not is_text(record.get("name")):
            raise DataError(
                f"every category of {path} needs an integer id of at most 64 bits and a name, got {shown(record)}: "
                "correct it"
            )
    categories = tuple(sorted(Category(record["id"], record["name"]) for record in records))
    if not categories:
        raise DataError(f"{path} must list categories, got none: add the classes")
    ids = [category.coco_id for category in categories]
    if len(set(ids)) < len(ids):
        twice = next(first for first, second in itertools.pairwise(ids) if first == second)
        raise DataError(f"category ids must be unique in {path}, got {twice} twice: renumber the categories")
    return categories


def _read_images(path: Path, records: list[Record]) -> tuple[ImageEntry, ...]:
    entries = []
    for record in records:
        image_id, file_name = record.get("id"), record.get("file_name")
        if not (is_id(image_id) and _is_size(record.get("height"), record.get("width")) and is_text(file_name)):
            raise DataError(
                f"every image of {path} needs an integer id, height and width and a file_name, got {shown(record)}: "
                f"ids have at most 64 bits, and images 1 to {MOST_PIXELS} pixels"
            )
        if named_in(Path("images"), file_name) is None:
            raise DataError(
                f"the file_name of image {image_id} of {path} must lie in the folder of the images, got {file_name!a}: "
                "write it relative to that folder"
            )
        entries.append(ImageEntry(record["id"], file_name, record["height"], record["width"]))
    entries.sort()
    if not entries:
        raise DataError(f"{path} must list images, got none: add them")
    for first, second in itertools.pairwise(entries):
        if first.image_id == second.image_id:
            raise DataError(f"image ids must be unique in {path}, got {first.image_id} twice: renumber the images")
    return tuple(entries)


def _is_size(height: object, width: object) -> bool:
    return type(height) is int and type(width) is int and min(height, width) > 0 and height * width <= MOST_PIXELS


def _integer(value: object) -> int | None:
    return value if type(value) is int else None


def is_box(box: object) -> TypeGuard[list[float]]:
    """Whether this is four finite numbers."""
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box))


def _box_problem(box: object, image: ImageEntry) -> str:
    """The fault of a box, or an empty string."""
    if not is_box(box):
        return f"{shown(box)} instead of four numbers x, y, width, height"
    if box[2] <= 0 or box[3] <= 0:
        return f"width {box[2]} and height {box[3]}"
    if not is_near([box[0], box[0] + box[2]], [box[1], box[1] + box[3]], image.height, image.width):
        return f"{box} more than {MARGIN} times the sides of its image of {image.width}x{image.height} away"
    left, top, right, bottom = clip_box(box, image)
    if right <= left or bottom <= top:
        return f"{box} in an image of {image.width}x{image.height}"
    return ""


def _complete(annotation: Record, image: ImageEntry, where: str, need_masks: bool) -> CocoAnnotation:
    """The keys that training and pycocotools need, those that custom files often leave out included."""
    box = [float(number) for number in annotation["bbox"]]
    area, iscrowd = annotation.get("area"), annotation.get("iscrowd")
    if area is not None and not (is_number(area) and area >= 0):
        raise DataError(f"the area of {where} must be a number of at least 0, got {shown(area)}: correct or remove it")
    if iscrowd not in (None, 0, 1):
        raise DataError(f"iscrowd of {where} must be 0 or 1, got {shown(iscrowd)}: correct or remove it")
    complete: CocoAnnotation = {
        "id": annotation["id"] if is_id(annotation.get("id")) else 0,  # numbered by `_number`
        "image_id": image.image_id,
        "category_id": annotation["category_id"],
        "bbox": box,
        "area": box[2] * box[3] if area is None else float(area),
        "iscrowd": int(iscrowd or 0),
    }
    if "keypoints" in annotation:
        complete["keypoints"] = annotation["keypoints"]
    if "num_keypoints" in annotation:
        complete["num_keypoints"] = annotation["num_keypoints"]
    segmentation: Any = annotation.get("segmentation")
    problem = mask_problem(segmentation, image.height, image.width)
    if not problem:
        complete["segmentation"] = segmentation
    elif need_masks:
        raise DataError(
            f"the segmentation of {where} must be polygons or an RLE of the size of the image, got {problem}: "
            "add masks, or choose a task that needs boxes only"
        )
    return complete


def _number(per_image: list[list[CocoAnnotation]]) -> None:
    """Renumber annotations where ids are missing, doubled or 0: pycocotools would lose or mismatch them."""
    records = [record for records in per_image for record in records]
    ids = {record["id"] for record in records}
    if len(ids) == len(records) and 0 not in ids:
        return
    for number, record in enumerate(records, start=1):
        record["id"] = number
