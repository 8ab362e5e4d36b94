"""The drawn datasets: coloured shapes on cluttered backgrounds, and what writes all sets to disk.

Six classes at many sizes, colours and rotations, textured backgrounds, distractors, occlusion and some low contrast.
Sizes, tilt and clutter are chosen so that small networks learn the sets from scratch in minutes on a CPU and stay well
below a perfect score. Every image is a pure function of (seed, part, index).
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from nas_transfer.data.images import write_image
from nas_transfer.data.randomness import stable_seed
from nas_transfer.data.synthetic.drawing import (
    CLASS_NAMES,
    add_clutter,
    draw_background,
    finish,
    paint_shape,
    random_shape,
)
from nas_transfer.data.synthetic.figures import write_keypoints_part
from nas_transfer.data.synthetic.streets import write_cityscapes_part
from nas_transfer.errors import DataError
from nas_transfer.ranges import Count, Positive
from nas_transfer.runs.atomic import sweep, temporary_beside

MARKER = "README.txt"
VERSION = 1  # raise it when the drawing changes, so that sets of two versions are told apart
MIN_VISIBLE = 0.3  # objects of which a smaller share is visible are drawn but not annotated


@dataclass(frozen=True)
class Scene:
    """A drawn image, uint8 (H, W, 3), with the visible pixels, bool (N, H, W), and labels of its N objects."""

    pixels: np.ndarray
    masks: np.ndarray
    labels: tuple[int, ...]


def draw_shapes(
    root: str,
    *,
    layout: Literal["image_folder", "coco", "keypoints", "cityscapes"],
    num_train: Positive,
    num_val: Positive,
    image_size: Positive,
    seed: Count,
) -> None:
    """Write a dataset to `root`, unless it holds one with the same parameters.

    Args:
        root: a folder that is missing, empty, or holds such a set. It is written completely or not at all.
        layout: "image_folder" (train/<class>/*.jpg, val/...: one main object), "coco" (train2017/, val2017/,
            annotations/instances_*2017.json: one to six objects with boxes and masks), "keypoints" (the same with
            person_keypoints_*2017.json: figures with 13 joints) or "cityscapes" (leftImg8bit/<part>/<city>/,
            gtFine/...: street scenes with label maps).
        num_train, num_val: images of each part.
        image_size: side in pixels; in the COCO layout a third of the images is square, a third wide (5:3.5) and a third
            tall; street scenes have this height and twice the width.
        seed: another one gives other images. It is not the seed of the run.

    Raises:
        DataError: `root` holds something else.
    """
    target = Path(root).expanduser()
    parameters = json.dumps(
        {"version": VERSION, "layout": layout, "num_train": num_train, "num_val": num_val}
        | {"image_size": image_size, "seed": seed}
    )
    if _is_drawn(target, parameters):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    sweep(target.parent.glob(f".{target.name}.*"))
    try:
        for part, count in (("train", num_train), ("val", num_val)):
            WRITERS[layout](temporary, part, count, image_size, seed)
        marker = f"Drawn by nas_transfer. You can delete this folder: it is drawn again when needed.\n{parameters}\n"
        (temporary / MARKER).write_text(marker)
        try:
            temporary.rename(target)
        except OSError:
            if not _is_drawn(target, parameters):  # if it is, another process has just drawn the same set
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def draw_scene(part: str, index: int, height: int, width: int, seed: int) -> Scene:
    """One image of the COCO layout: one to five objects, 20-50 % of the short side, partly hidden by each other."""
    rng = np.random.default_rng(stable_seed(seed, "scene", part, index))
    canvas = draw_background(rng, height, width)
    add_clutter(rng, canvas, int(rng.integers(1, 4)))
    side = min(height, width)
    alphas: list[np.ndarray] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, 6))):
        label = int(rng.integers(len(CLASS_NAMES)))
        size = side * float(np.exp(rng.uniform(np.log(0.2), np.log(0.5))))
        margin = 0.3 * size
        centre = (float(rng.uniform(margin, height - margin)), float(rng.uniform(margin, width - margin)))
        alpha = random_shape(rng, CLASS_NAMES[label], size, centre, height, width)
        paint_shape(rng, canvas, alpha)
        alphas.append(alpha)
        labels.append(label)
    full = np.stack(alphas) >= 0.5
    hidden = np.zeros((height, width), dtype=bool)
    visible = np.zeros_like(full)
    for number in reversed(range(len(full))):  # the last one painted lies on top
        visible[number] = full[number] & ~hidden
        hidden |= full[number]
    kept = [k for k in range(len(full)) if visible[k].sum() >= max(8, MIN_VISIBLE * full[k].sum())]
    add_clutter(rng, canvas, int(rng.integers(0, 2)), thin=True)
    return Scene(finish(rng, canvas), visible[kept], tuple(labels[k] for k in kept))


def draw_single(part: str, index: int, image_size: int, seed: int) -> Scene:
    """One image of the ImageFolder layout: an object of class `index % 6` near the middle, with clutter around it."""
    rng = np.random.default_rng(stable_seed(seed, "single", part, index))
    label = index % len(CLASS_NAMES)
    canvas = draw_background(rng, image_size, image_size)
    add_clutter(rng, canvas, int(rng.integers(1, 4)))
    size = image_size * float(rng.uniform(0.45, 0.85))
    reach = max(0.03 * image_size, 0.45 * image_size - size / 2)  # only the tips of an object can leave the centre crop
    centre = (image_size / 2 + float(rng.uniform(-reach, reach)), image_size / 2 + float(rng.uniform(-reach, reach)))
    alpha = random_shape(rng, CLASS_NAMES[label], size, centre, image_size, image_size)
    paint_shape(rng, canvas, alpha)
    add_clutter(rng, canvas, int(rng.integers(0, 2)), thin=True)
    return Scene(finish(rng, canvas), alpha[None] >= 0.5, (label,))


def _is_drawn(target: Path, parameters: str) -> bool:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    marker = target / MARKER
    lines = marker.read_text().splitlines()[-1:] if marker.is_file() else []
    if lines == [parameters]:
        return True
    content = lines[0] if lines else "other files"
    raise DataError(
        f"{target} cannot take the dataset {parameters}, because it has {content}: "
        "choose another folder with data.root, or delete this one"
    )


def _write_folder_part(root: Path, part: str, count: int, image_size: int, seed: int) -> None:
    for name in CLASS_NAMES:
        (root / part / name).mkdir(parents=True)
    for index in range(count):
        scene = draw_single(part, index, image_size, seed)
        _save(scene.pixels, root / part / CLASS_NAMES[scene.labels[0]] / f"{index:06d}.jpg")


def _write_coco_part(root: Path, part: str, count: int, image_size: int, seed: int) -> None:
    folder = root / f"{part}2017"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    long, short = round(image_size * 1.25), round(image_size * 0.875)
    sizes = ((image_size, image_size), (short, long), (long, short))  # (H, W)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(count):
        height, width = sizes[index % 3]
        scene = draw_scene(part, index, height, width, seed)
        image_id = index + 1
        file_name = f"{image_id:012d}.jpg"
        _save(scene.pixels, folder / file_name)
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        annotations += _annotate(scene.masks, scene.labels, image_id, first_id=len(annotations) + 1)
    categories = [{"id": k, "name": name, "supercategory": "shape"} for k, name in enumerate(CLASS_NAMES, start=1)]
    content = {"info": {"description": "shapes"}, "licenses": [], "images": images}
    content |= {"annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))


def _annotate(masks: np.ndarray, labels: Sequence[int], image_id: int, first_id: int) -> list[dict[str, object]]:
    records = []
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
        records.append(
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode()},
            }
        )
    return records


def _save(pixels: np.ndarray, path: Path) -> None:
    write_image(Image.fromarray(pixels), path, quality=92)


WRITERS: dict[str, Callable[[Path, str, int, int, int], None]] = {
    "image_folder": _write_folder_part,
    "coco": _write_coco_part,
    "keypoints": write_keypoints_part,
    "cityscapes": write_cityscapes_part,
}
"""The function that writes one part of each layout: (root, part, number of images, image size, seed)."""
