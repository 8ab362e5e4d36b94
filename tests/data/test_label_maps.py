"""Label maps in their layouts: pairs, ids and labels, and one sentence for each way in which they can be broken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nas_transfer.data.augmentation import SegmentationAugmentation
from nas_transfer.data.label_maps import LabelMapsData
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.segmentation_transforms import IGNORE_LABEL
from nas_transfer.data.sources import LabelMapSources
from nas_transfer.errors import ConfigError, DataError
from tests.data.conftest import assemble, save_noise

IDS = [4, 0, 9]  # of the classes a, b, c
Data = Callable[..., LabelMapsData]


def data(root: Path, **changes: Any) -> LabelMapsData:
    arguments: dict[str, Any] = {
        "train_list": None, "val_list": None, "train_images": None, "train_labels": None, "val_images": None,
        "val_labels": None, "image_suffix": "", "label_suffix": "", "class_names": ["a", "b", "c"], "class_ids": IDS,
        "ignore_ids": [7], "batch_size": 2, "num_workers": 0,
        "cache_mib": 0, "seed": 0, "skip_broken": False, "crop_size": [8, 8],
        "scale_range": [0.5, 2.0], "max_class_share": 1.0, "flip": 0.5, "photometric": False, "search_fraction": 0.25,
        "hold_out_search": False, "val_fraction": None, "draw": None,
    }  # fmt: skip
    records = {"sources": LabelMapSources, "augmentation": SegmentationAugmentation}
    return assemble(LabelMapsData, root, arguments | changes, **records)


def save_ids(path: Path, height: int, width: int, seed: int) -> np.ndarray:
    ids = np.random.default_rng(seed).choice([*IDS, 7], (height, width)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids).save(path)
    return ids


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    for part, count in (("train", 8), ("val", 3)):
        for k in range(count):
            save_noise(tmp_path / "images" / part / f"{k}.jpg", 10, 12 + k, seed=k)
            save_ids(tmp_path / "labels" / part / f"{k}.png", 10, 12 + k, seed=k)
    return tmp_path


def sample(found: LabelMapsData, part: str = "val", index: int = 0) -> dict[str, Any]:
    return getattr(found.require_parts(), part)[SampleKey(index, 0)]


def test_ids_become_labels_as_a_loop_over_the_pixels_says(twins: Path) -> None:
    ids = save_ids(twins / "labels/val/0.png", 10, 12, seed=50)
    expected = [[IDS.index(value) if value in IDS else IGNORE_LABEL for value in row] for row in ids.tolist()]
    assert sample(data(twins))["labels"].tolist() == expected


def test_a_palette_image_gives_its_indices(twins: Path) -> None:
    ids = save_ids(twins / "labels/val/0.png", 10, 12, seed=50)
    plain = sample(data(twins))["labels"]
    coloured = Image.fromarray(ids, mode="P")
    coloured.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    coloured.save(twins / "labels/val/0.png")
    assert torch.equal(sample(data(twins))["labels"], plain)


def test_lists_twins_and_cityscapes_give_the_same_samples(twins: Path, tmp_path: Path) -> None:
    by_folder = [sample(data(twins), "val", k) for k in range(3)]
    for part, count in (("train", 8), ("val", 3)):
        lines = [f"images/{part}/{k}.jpg labels/{part}/{k}.png" for k in range(count)]
        (twins / f"{part}.txt").write_text("\n".join(lines) + "\n\n")
        for k in range(count):
            for source, folder, suffix in (
                (f"images/{part}/{k}.jpg", "leftImg8bit", "_leftImg8bit.jpg"),
                (f"labels/{part}/{k}.png", "gtFine", "_gtFine_labelIds.png"),
            ):
                target = tmp_path / "city" / folder / part / f"town{k % 2}" / f"t{k}{suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((twins / source).read_bytes())
    by_list = [sample(data(twins), "val", k) for k in range(3)]
    cityscapes = data(tmp_path / "city", image_suffix="_leftImg8bit", label_suffix="_gtFine_labelIds")
    order = [0, 2, 1]  # town0 holds 0 and 2
    for k in range(3):
        in_city = sample(cityscapes, "val", order.index(k))
        for found in (by_list[k], in_city):
            assert torch.equal(found["labels"], by_folder[k]["labels"])
            assert torch.equal(found["image"], by_folder[k]["image"])
    batch = next(iter(cityscapes.val_dataloader()))
    assert [tuple(image.shape) for image in batch["images"]] == [(3, 10, 12), (3, 10, 14)]
    assert batch["sample_ids"].tolist() == [0, 1]


def test_training_crops_and_the_search_split_is_left_out_only_where_asked(twins: Path) -> None:
    whole, held = data(twins), data(twins, hold_out_search=True)
    assert (whole.num_train_images, held.num_train_images) == (8, 6)
    assert sample(whole, "train")["labels"].shape == (8, 8)
    search = {sample(whole, "search", k)["sample_id"] for k in range(2)}
    trained = {sample(held, "train", k)["sample_id"] for k in range(6)}
    assert search | trained == set(range(8))
    assert sample(whole, "search")["labels"].shape[0] == 10  # whole images


def broken_twin(root: Path) -> None:
    (root / "labels/val/1.png").unlink()


def unknown_id(root: Path) -> None:
    Image.fromarray(np.full((10, 12), 33, dtype=np.uint8)).save(root / "labels/val/0.png")


def other_size(root: Path) -> None:
    save_ids(root / "labels/val/0.png", 10, 11, seed=0)


def colours(root: Path) -> None:
    save_noise(root / "labels/val/0.png", 10, 12, seed=0)


def text(root: Path) -> None:
    (root / "labels/val/0.png").write_text("no image")


def bad_line(root: Path) -> None:
    (root / "val.txt").write_text("images/val/0.jpg labels/val/0.png\nimages/val/1.jpg\n")


def line_outside(root: Path) -> None:
    (root / "val.txt").write_text("images/val/0.jpg labels/val/0.png\nimages/val/1.jpg ../labels/val/1.png\n")


def absolute_line(root: Path) -> None:
    (root / "val.txt").write_text("/etc/passwd labels/val/0.png\n")


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (broken_twin, ["labels/val/1.png", "images/val/1.jpg"]),
        (unknown_id, ["labels/val/0.png", "33", "data.ignore_ids"]),
        (other_size, ["labels/val/0.png", "12x10", "11x10"]),
        (colours, ["labels/val/0.png", "RGB"]),
        (text, ["labels/val/0.png", "skip_broken"]),
        (bad_line, ["line 2", "val.txt"]),
        (line_outside, ["line 2", "val.txt", "'../labels/val/1.png'"]),
        (absolute_line, ["line 1", "val.txt", "'/etc/passwd'"]),
    ],
)
def test_a_broken_set_is_one_sentence_that_names_the_file(
    twins: Path, harm: Callable[[Path], None], expected: list[str]
) -> None:
    harm(twins)
    with pytest.raises(DataError) as caught:
        sample(data(twins))
    assert [part for part in expected if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_names_that_lead_back_into_the_folder_are_read(twins: Path) -> None:
    plain = sample(data(twins))["labels"]
    (twins / "val.txt").write_text(f"labels/../images/val/0.jpg {twins.resolve()}/labels/val/0.png\n")
    assert torch.equal(sample(data(twins))["labels"], plain)


def test_a_suffix_names_no_folder(twins: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources\.label_suffix must be the end of file names .*got '/\.\./x'"):
        data(twins, label_suffix="/../x")


def test_broken_pairs_are_left_out_on_request(twins: Path) -> None:
    broken_twin(twins)
    text(twins)
    found = data(twins, skip_broken=True)
    assert [sample["sample_id"] for sample in [sample(found, "val", 0)]] == [2]
    assert len(found.require_parts().val) == 1  # type: ignore[arg-type]


def test_a_missing_part_says_where_it_was_looked_for(twins: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"leftImg8bit/val with gtFine/val.*data\.sources\.val_list"):
        data(tmp_path / "nowhere").setup()
    for file in (twins / "images/train").iterdir():
        file.unlink()
    (twins / "images/train").rmdir()
    only_val = data(twins)
    assert sample(only_val)["sample_id"] == 0
    with pytest.raises(DataError, match="train images and labels"):
        only_val.train_dataloader()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"class_ids": [1, 2]}, "data.class_ids"), ({"class_ids": [1, 1, 2]}, "data.class_ids"),
        ({"class_ids": [1, 2, 300]}, "data.class_ids"), ({"ignore_ids": [9]}, "data.ignore_ids"),
        ({"class_names": []}, "data.class_names"), ({"val_images": "images/val"}, "data.sources.val_labels"),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_used_are_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        data(tmp_path, **changes)


def test_camvid_is_read_as_it_is(shared_data: Path) -> None:
    names = [str(k) for k in range(11)]
    found = data(shared_data / "camvid", class_names=names, class_ids=None, ignore_ids=[11])
    assert found.num_train_images == 184
    first = sample(found)
    assert first["labels"].shape == first["image"].shape[1:]
    assert set(first["labels"].unique().tolist()) <= {*range(11), IGNORE_LABEL}
    assert len(first["labels"].unique()) > 4


def test_a_folder_without_a_split_is_divided(tmp_path: Path) -> None:
    for k in range(10):
        save_noise(tmp_path / f"images/{k}.jpg", 10, 12 + k, seed=k)
        save_ids(tmp_path / f"masks/{k}.png", 10, 12 + k, seed=k)
    found = data(tmp_path)
    inventories = found.inventories()
    files = {part: {Path(file).name for file in inventory.files} for part, inventory in inventories.items()}
    assert {part: len(names) for part, names in files.items()} == {"train": 8, "val": 2}
    assert not files["train"] & files["val"]
    assert inventories["val"].form == "images and label images without a split: 0.2 of the images are val"
    for k in range(2):
        taken = sample(found, "val", k)
        assert taken["image"].shape[1:] == taken["labels"].shape
    (tmp_path / "images/train").mkdir()
    (tmp_path / "masks/train").mkdir()
    with pytest.raises(DataError, match="no val images and labels"):
        data(tmp_path).setup()
