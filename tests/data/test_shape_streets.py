import hashlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from nas_transfer.data.synthetic.streets import CLASS_IDS, CLASS_NAMES, VOID_ID, draw_street, write_cityscapes_part

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"


def fingerprint(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_files_have_the_names_sizes_and_modes_of_cityscapes(tmp_path: Path) -> None:
    write_cityscapes_part(tmp_path, "train", 4, 32, seed=0)
    images = sorted(path.relative_to(tmp_path / "leftImg8bit") for path in tmp_path.rglob("*_leftImg8bit.png"))
    labels = sorted(path.relative_to(tmp_path / "gtFine") for path in tmp_path.rglob("*_gtFine_labelIds.png"))
    assert len(images) == len(labels) == 4
    assert len({path.parent for path in images}) == 2
    for image, label in zip(images, labels, strict=True):
        assert image.parts[0] == "train"
        assert image.name.startswith(f"{image.parent.name}_000000_")
        assert len(image.name.split("_")[2]) == 6
        assert str(label) == str(image).replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        with Image.open(tmp_path / "leftImg8bit" / image) as pixels, Image.open(tmp_path / "gtFine" / label) as ids:
            assert (pixels.mode, ids.mode) == ("RGB", "L")
            assert pixels.size == ids.size == (64, 32)


def test_a_scene_depends_on_seed_part_and_index_alone(tmp_path: Path) -> None:
    for name, seed, count in (("a", 0, 3), ("b", 0, 5), ("c", 1, 3)):
        write_cityscapes_part(tmp_path / name, "val", count, 32, seed=seed)
    first, longer, other = (fingerprint(tmp_path / name) for name in "abc")
    assert len(first) == 6
    assert first.items() <= longer.items()
    assert all(first[name] != other[name] for name in first)
    assert not np.array_equal(draw_street("train", 0, 32, 64, 0).pixels, draw_street("val", 0, 32, 64, 0).pixels)


def test_every_class_is_frequent_enough_to_be_learnt() -> None:
    scenes = [draw_street("train", index, 64, 128, 0) for index in range(40)]
    present = np.stack([np.bincount(scene.ids.ravel(), minlength=256) for scene in scenes])  # (40, 256) pixels
    assert set(np.flatnonzero(present.sum(0))) == {VOID_ID, *CLASS_IDS}
    share = present.sum(0) / present.sum()
    assert share[list(CLASS_IDS)].min() > 0.015
    assert share.max() < 0.4
    assert 0.005 < share[VOID_ID] < 0.1
    assert ((present[:, list(CLASS_IDS)] > 0).mean(0) > 0.7).all()  # in most of the images


def test_colour_alone_does_not_tell_the_class() -> None:
    """The nearest mean colour of a class, taken on other scenes, is right for less than 60 % of the pixels."""

    def pixels_of(part: str) -> tuple[np.ndarray, np.ndarray]:
        scenes = [draw_street(part, index, 64, 128, 0) for index in range(20)]
        pixels = np.concatenate([scene.pixels.reshape(-1, 3) for scene in scenes]).astype(np.float64)
        return pixels, np.concatenate([scene.ids.ravel() for scene in scenes])

    pixels, ids = pixels_of("train")
    means = np.stack([pixels[ids == class_id].mean(0) for class_id in CLASS_IDS])
    pixels, ids = pixels_of("val")
    guessed = np.asarray(CLASS_IDS)[np.linalg.norm(pixels[:, None] - means, axis=2).argmin(1)]
    assert 1 / 7 < (guessed == ids).mean() < 0.6


def test_sky_is_above_the_road() -> None:
    rows = {class_id: [] for class_id in CLASS_IDS}  # type: dict[int, list[float]]
    for index in range(20):
        ids = draw_street("train", index, 32, 64, 0).ids
        for class_id in CLASS_IDS:
            rows[class_id] += np.nonzero(ids == class_id)[0].tolist()
    height = {name: np.mean(rows[class_id]) for name, class_id in zip(CLASS_NAMES, CLASS_IDS, strict=True)}
    assert height["sky"] < height["building"] < height["sidewalk"] < height["road"]


@pytest.mark.parametrize("key", ["class_names", "class_ids"])
def test_the_configuration_has_the_classes_that_are_drawn(key: str) -> None:
    given = yaml.safe_load((CONF / "shapes_streets.yaml").read_text())[key]
    assert given == list({"class_names": CLASS_NAMES, "class_ids": CLASS_IDS}[key])
