"""Tiny datasets made in a temporary folder, and builders with every constructor argument given."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas_transfer.data.augmentation import ClassificationAugmentation, DetectionAugmentation
from nas_transfer.data.coco_instances import CocoInstancesData
from nas_transfer.data.image_folder import ImageFolderData
from nas_transfer.data.sources import CocoSources, FolderSources
from nas_transfer.data.split import Split

Builder = Callable[..., Any]


def assemble(layout: Callable[..., Any], root: Path, arguments: dict[str, Any], **records: Any) -> Any:
    """A data module from flat arguments, which go into the records that have fields of these names."""
    rest = dict(arguments)
    built = {
        name: record(**{field.name: rest.pop(field.name) for field in fields(record)})
        for name, record in {"split": Split, **records}.items()
    }
    return layout(root=root, **built, **rest)


def save_noise(path: Path, height: int, width: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real datasets beside the checkout; tests that want it are skipped without it."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real datasets are not here")
    return folder


@pytest.fixture
def folder_data() -> Builder:
    def build(root: Path, **changes: Any) -> ImageFolderData:
        arguments: dict[str, Any] = {
            "train_folder": "train", "val_folder": "val", "class_list": None, "image_size": 16, "batch_size": 4,
            "num_workers": 0,
            "cache_mib": 0, "seed": 0, "skip_broken": False, "min_crop_scale": 0.25, "color_jitter": 0.2,
            "crop_ratio": 0.875, "interpolation": "bicubic", "search_fraction": 0.25,
            "hold_out_search": False, "val_fraction": None, "draw": None,
        }  # fmt: skip
        records = {"sources": FolderSources, "augmentation": ClassificationAugmentation}
        return assemble(ImageFolderData, root, arguments | changes, **records)

    return build


@pytest.fixture
def coco_data() -> Builder:
    def build(root: Path, **changes: Any) -> CocoInstancesData:
        arguments: dict[str, Any] = {
            "train_images": None, "val_images": None, "train_annotations": None, "val_annotations": None,
            "batch_size": 2, "num_workers": 0,
            "cache_mib": 0, "seed": 0, "skip_broken": False, "skip_empty_boxes": False,
            "with_masks": False, "flip": 0.5, "photometric": 0.0, "scale_jitter": None, "aspect_grouping": True,
            "search_fraction": 0.25, "hold_out_search": False, "val_fraction": None, "draw": None,
        }  # fmt: skip
        records = {"sources": CocoSources, "augmentation": DetectionAugmentation}
        return assemble(CocoInstancesData, root, arguments | changes, **records)

    return build


@pytest.fixture
def folder_root(tmp_path: Path) -> Path:
    """Two classes with 8 training and 3 validation images each, 20 to 27 pixels wide."""
    for part, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("ant", "bee")):
            for k in range(count):
                save_noise(tmp_path / part / name / f"{k}.png", 24, 20 + k, seed=100 * label + k)
    return tmp_path


def coco_content() -> dict[str, Any]:
    """Eight images (ids 10..17, odd ones tall): a polygon and an RLE each, a crowd in image 10, nothing in image 17."""
    images, annotations = [], []
    for k in range(8):
        height, width = (24, 32) if k % 2 == 0 else (32, 24)
        images.append({"id": 10 + k, "file_name": f"{k}.png", "height": height, "width": width})
        if k == 7:
            continue
        square = [2.0 + k, 3.0, 10.0 + k, 3.0, 10.0 + k, 12.0, 2.0 + k, 12.0]
        runs = [height * 4 + 5, 6, height - 6, 6, height * (width - 6) - 5 + height - 6 - 6 + 6]
        runs[-1] = height * width - sum(runs[:-1])
        annotations += [
            {"id": 3 * k + 1, "image_id": 10 + k, "category_id": 7, "iscrowd": 0, "bbox": [2.0 + k, 3.0, 8.0, 9.0],
             "area": 72.0, "segmentation": [square]},
            {"id": 3 * k + 2, "image_id": 10 + k, "category_id": 3, "iscrowd": int(k == 0), "bbox": [4, 5, 2, 6],
             "area": 12.0, "segmentation": {"size": [height, width], "counts": runs}},
        ]  # fmt: skip
    categories = [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, part: str, content: Any) -> None:
    for k in range(8):
        height, width = (24, 32) if k % 2 == 0 else (32, 24)
        save_noise(root / f"{part}2017" / f"{k}.png", height, width, seed=k)
    file = root / "annotations" / f"instances_{part}2017.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        write_coco(tmp_path, part, coco_content())
    return tmp_path


@pytest.fixture
def content() -> dict[str, Any]:
    return coco_content()


@pytest.fixture
def rewrite_coco() -> Callable[[Path, str, Any], None]:
    return write_coco
