import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from nas_transfer.data.synthetic.shapes import MARKER, draw_scene, draw_shapes
from nas_transfer.errors import DataError

COCO_SET: dict[str, Any] = {"layout": "coco", "num_train": 30, "num_val": 6, "image_size": 96, "seed": 0}
FOLDER_SET: dict[str, Any] = {"layout": "image_folder", "num_train": 24, "num_val": 12, "image_size": 48, "seed": 0}


def fingerprint(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("parameters", [COCO_SET, FOLDER_SET])
def test_two_drawings_have_the_same_bytes_and_another_seed_has_not(tmp_path: Path, parameters: dict[str, Any]) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_shapes(str(tmp_path / "deep" / name), **(parameters | {"seed": seed}))
    first, second, other = (fingerprint(tmp_path / "deep" / name) for name in "abc")
    assert first == second
    assert len(first) >= 36
    images = [name for name in first if name.endswith(".jpg")]
    assert all(first[name] != other[name] for name in images)
    assert len({first[name] for name in images}) == len(images)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a", "b", "c"]


def test_boxes_and_areas_are_those_of_the_masks(tmp_path: Path) -> None:
    draw_shapes(str(tmp_path / "set"), **COCO_SET)
    coco = COCO(str(tmp_path / "set" / "annotations" / "instances_train2017.json"))
    assert sorted(category["name"] for category in coco.cats.values()) == [
        "circle", "cross", "ring", "square", "star", "triangle",
    ]  # fmt: skip
    assert len(coco.imgs) == 30
    assert len(coco.anns) > 60
    for image_id in coco.imgs:
        masks = [coco.annToMask(annotation) for annotation in coco.imgToAnns[image_id]]
        for mask, annotation in zip(masks, coco.imgToAnns[image_id], strict=True):
            rows, columns = np.nonzero(mask)
            extent = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert annotation["bbox"] == extent
            assert annotation["area"] == mask.sum()
            assert annotation["iscrowd"] == 0
        assert not masks or np.sum(masks, axis=0).max() == 1  # what is hidden belongs to the object on top


def test_objects_are_where_their_masks_say() -> None:
    """The pixels of a mask differ from the surroundings' by more than the noise, on average over many objects."""
    differences = []
    for index in range(30):
        scene = draw_scene("train", index, 96, 96, seed=0)
        outside = scene.pixels[~scene.masks.any(0)].mean(0)
        differences += [np.abs(scene.pixels[mask].mean(0) - outside).mean() for mask in scene.masks]
    assert np.mean(differences) > 30


def test_a_set_is_drawn_once_and_never_over_other_files(tmp_path: Path) -> None:
    root = tmp_path / "set"
    draw_shapes(str(root), **FOLDER_SET)
    stamp = (root / MARKER).stat().st_mtime_ns
    draw_shapes(str(root), **FOLDER_SET)
    assert (root / MARKER).stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="choose another folder"):
        draw_shapes(str(root), **(FOLDER_SET | {"seed": 1}))
    other = tmp_path / "other"
    other.mkdir()
    draw_shapes(str(other), **FOLDER_SET)  # an empty folder is taken
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(DataError, match="because it has other files: choose another folder"):
        draw_shapes(str(tmp_path / "mine"), **FOLDER_SET)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nas_transfer.data.synthetic.shapes._save", stop)
    with pytest.raises(KeyboardInterrupt):
        draw_shapes(str(tmp_path / "set"), **FOLDER_SET)
    assert list(tmp_path.iterdir()) == []


def test_the_data_modules_read_what_is_drawn(
    tmp_path: Path, folder_data: Callable[..., Any], coco_data: Callable[..., Any]
) -> None:
    for builder, parameters, name in ((folder_data, FOLDER_SET, "cls"), (coco_data, COCO_SET, "coco")):
        data = builder(tmp_path / name, draw=lambda root, given=parameters: draw_shapes(root, **given))
        data.prepare_data()
        data.setup()
        assert data.num_classes == 6
        assert len(next(iter(data.train_dataloader()))["images"]) > 0
    masks = coco_data(tmp_path / "coco", with_masks=True)
    batch = next(iter(masks.train_dataloader()))
    assert all(target["masks"].shape[0] == len(target["boxes"]) for target in batch["targets"])


def test_the_marker_holds_the_parameters(tmp_path: Path) -> None:
    draw_shapes(str(tmp_path / "set"), **FOLDER_SET)
    written = json.loads((tmp_path / "set" / MARKER).read_text().splitlines()[-1])
    assert FOLDER_SET.items() <= written.items()
