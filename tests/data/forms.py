"""One dataset written as COCO, as YOLO and as Pascal VOC, with links to its images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tests.data.conftest import save_noise

FORMS = ("coco", "yolo", "voc")


@dataclass(frozen=True)
class Thing:
    """An object: its class, and its box x, y, width, height in pixels."""

    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """An image file and its objects."""

    path: Path
    width: int
    height: int
    things: tuple[Thing, ...]


Dataset = Mapping[str, Sequence[Picture]]


def small_dataset(folder: Path) -> Dataset:
    """Six images in train and four in val, of two classes; the last one of each has no object."""
    parts = {}
    for part, count in (("train", 6), ("val", 4)):
        pictures = []
        for k in range(count):
            width, height = (48, 36) if k % 2 else (36, 48)
            path = folder / part / f"{part}{k}.png"
            save_noise(path, height, width, seed=len(parts) * 100 + k)
            things = (
                Thing("ant", (3.0 + k, 4.0, 10.5, 13.0)),
                Thing("bee", (11.0, 7.25 + k, 9.0, 12.0)),
            )[: 0 if k == count - 1 else 2]
            pictures.append(Picture(path, width, height, things))
        parts[part] = pictures
    return parts


def coco_dataset(root: Path) -> Dataset:
    """The boxes of a dataset in COCO's form."""
    parts = {}
    for part in ("train", "val"):
        content = json.loads((root / f"annotations/instances_{part}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        of_image: dict[int, list[Thing]] = {image["id"]: [] for image in content["images"]}
        for record in content["annotations"]:
            of_image[record["image_id"]].append(Thing(names[record["category_id"]], tuple(record["bbox"])))
        images = sorted(content["images"], key=lambda image: image["file_name"])
        parts[part] = [
            Picture(root / part / image["file_name"], image["width"], image["height"], tuple(of_image[image["id"]]))
            for image in images
        ]
    return parts


def class_names(dataset: Dataset) -> list[str]:
    return sorted({thing.name for pictures in dataset.values() for picture in pictures for thing in picture.things})


def _link(picture: Picture, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / picture.path.name).symlink_to(picture.path)


def write_coco(root: Path, dataset: Dataset, layout: str = "coco") -> Path:
    """COCO's own layout, or that of ``roboflow`` or ``cvat``."""
    labels = {name: number for number, name in enumerate(class_names(dataset), start=1)}
    for part, pictures in dataset.items():
        folder, file = {
            "coco": (root / part, root / f"annotations/instances_{part}.json"),
            "roboflow": (root / part.replace("val", "valid"),) * 2,
            "cvat": (root / "images", root / "annotations/instances_default.json"),
        }[layout]
        if layout == "roboflow":
            file = folder / "_annotations.coco.json"
        content = coco_content(pictures, labels)
        if layout == "roboflow":
            content["categories"] = [
                {"id": 0, "name": "insects", "supercategory": "none"},
                *({**category, "supercategory": "insects"} for category in content["categories"]),
            ]
        for picture in pictures:
            _link(picture, folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return root


def coco_content(pictures: Sequence[Picture], labels: Mapping[str, int]) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": picture.path.name, "width": picture.width, "height": picture.height}
        for number, picture in enumerate(pictures, start=1)
    ]
    annotations = [
        {"image_id": image_id, "category_id": labels[thing.name], "bbox": list(thing.box), "iscrowd": 0}
        for image_id, picture in enumerate(pictures, start=1)
        for thing in picture.things
    ]
    numbered = [{"id": number, **record} for number, record in enumerate(annotations, start=1)]
    return {
        "images": images,
        "annotations": numbered,
        "categories": [{"id": label, "name": name} for name, label in labels.items()],
    }


def write_yolo(root: Path, dataset: Dataset, layout: str = "ultralytics", digits: int = 12) -> Path:
    """The layout of ``ultralytics``, or that of ``roboflow`` or ``flat``, without a split."""
    labels = {name: number for number, name in enumerate(class_names(dataset))}
    for part, pictures in dataset.items():
        images, texts = {
            "ultralytics": (f"images/{part}", f"labels/{part}"),
            "roboflow": (f"{part.replace('val', 'valid')}/images", f"{part.replace('val', 'valid')}/labels"),
            "flat": ("images", "labels"),
        }[layout]
        (root / texts).mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            _link(picture, root / images)
            lines = [yolo_line(labels[thing.name], thing.box, picture, digits) for thing in picture.things]
            if lines:
                (root / texts / f"{picture.path.stem}.txt").write_text("\n".join(lines))
    if layout == "flat":
        (root / "classes.txt").write_text("\n".join(labels))
    else:
        parts = {
            "ultralytics": "path: ../datasets/mine\ntrain: images/train\nval: images/val\n",
            "roboflow": "train: ../train/images\nval: ../valid/images\nnc: 2\n",
        }[layout]
        (root / "data.yaml").write_text(f"{parts}names: {json.dumps(list(labels))}\n")
    return root


def yolo_line(label: int, box: Sequence[float], picture: Picture, digits: int) -> str:
    x, y, width, height = box
    values = (
        (x + width / 2) / picture.width, (y + height / 2) / picture.height,
        width / picture.width, height / picture.height,
    )  # fmt: skip
    return " ".join([str(label), *(f"{value:.{digits}f}" for value in values)])


def write_voc(root: Path, dataset: Dataset, *, split: bool = True) -> Path:
    """Pascal VOC's own layout, with or without lists of the parts."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    for part, pictures in dataset.items():
        for picture in pictures:
            _link(picture, root / "JPEGImages")
            (root / f"Annotations/{picture.path.stem}.xml").write_text(voc_text(picture))
        if split:
            names = "\n".join(picture.path.stem for picture in pictures)
            (root / f"ImageSets/Main/{part}.txt").write_text(names)
    return root


def voc_text(picture: Picture, database: str = "Unknown", difficult: int = 0) -> str:
    objects = ""
    for thing in picture.things:
        x, y, width, height = thing.box
        corners = {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height}
        box = "".join(f"<{name}>{value!r}</{name}>" for name, value in corners.items())
        flags = f"<name>{escape(thing.name)}</name><difficult>{difficult}</difficult>"
        objects += f"<object>{flags}<bndbox>{box}</bndbox></object>"
    size = f"<size><width>{picture.width}</width><height>{picture.height}</height><depth>3</depth></size>"
    source = f"<source><database>{database}</database></source>"
    return f"<annotation><filename>{escape(picture.path.name)}</filename>{source}{size}{objects}</annotation>"


def write_form(form: str, root: Path, dataset: Dataset) -> Path:
    """The dataset with its split in one of `FORMS`."""
    return {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}[form](root, dataset)
