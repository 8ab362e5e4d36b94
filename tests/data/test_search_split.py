from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas_transfer.data.duplicates import identical_files, identical_images
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.split import Split, search_folds, search_split
from nas_transfer.errors import ConfigError


def test_the_split_is_a_partition_of_the_asked_size_and_the_same_each_time() -> None:
    train, search = search_split(200, 0.1, seed=3)
    assert len(search) == 20
    assert sorted([*train, *search]) == list(range(200))
    again = search_split(200, 0.1, seed=3)
    assert np.array_equal(train, again[0])
    assert np.array_equal(search, again[1])
    assert not np.array_equal(search, search_split(200, 0.1, seed=4)[1])


def test_a_group_is_never_divided() -> None:
    groups = [k // 7 for k in range(100)]
    train, search = search_split(100, 0.2, seed=0, groups=groups)
    assert not {groups[k] for k in train} & {groups[k] for k in search}
    assert len({groups[k] for k in search}) == 3
    assert len(train) + len(search) == 100


@pytest.mark.parametrize(("num_images", "fraction", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (1, 0.5, 0), (9, 0.0, 0)])
def test_neither_part_is_empty_where_that_can_be(num_images: int, fraction: float, expected: int) -> None:
    assert len(search_split(num_images, fraction, seed=0)[1]) == expected


def test_a_fraction_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"got 1\.0"):
        search_split(10, 1.0, seed=0)
    with pytest.raises(ConfigError, match=r"data\.split\.search_fraction .* got -0\.1"):
        Split(-0.1, hold_out_search=False, val_fraction=None)


def test_files_of_the_same_bytes_are_a_group(tmp_path: Path) -> None:
    long = bytes(range(256)) * 100
    contents = [long, b"a", long, b"b" + long[1:], b"", b"a", b"b", long[:-1] + b"x", b"", long]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    paths = [tmp_path / str(number) for number in range(len(contents))] + [tmp_path / "none", tmp_path / "none"]
    assert identical_files(paths).tolist() == [0, 1, 0, 3, 4, 1, 6, 7, 4, 0, 10, 11]
    many = [str(path) for path in paths for _ in range(100)]  # read by threads
    assert identical_files(many).tolist()[:-200] == [
        100 * k for k in [0, 1, 0, 3, 4, 1, 6, 7, 4, 0] for _ in range(100)
    ]


@pytest.mark.parametrize("fraction", [0.1, 0.37])
def test_groups_of_one_image_each_change_nothing(fraction: float) -> None:
    for count in (1, 2, 7, 200):
        for seed in range(5):
            plain, grouped = search_split(count, fraction, seed), search_split(count, fraction, seed, range(count))
            assert all(np.array_equal(one, other) for one, other in zip(plain, grouped, strict=True))


def test_all_of_train_is_both_trained_on_and_searched_on(
    coco_root: Path, coco_data: Callable[..., Any], content: dict[str, Any]
) -> None:
    data, plain = coco_data(coco_root, search_fraction=1), coco_data(coco_root, search_fraction=0)
    data.setup()
    plain.setup()

    def ids(part: Any) -> list[int]:
        return [part[SampleKey(number, 0)]["sample_id"] for number in range(len(part))]

    assert ids(data.parts.train) == ids(data.parts.calibration) == ids(plain.parts.train)
    assert ids(data.parts.search) == sorted(image["id"] for image in content["images"])
    with pytest.raises(ConfigError, match=r"search_fraction=1 leaves no image to train on .*hold_out_search=true"):
        Split(1, hold_out_search=True, val_fraction=None)


def test_copies_of_an_image_are_all_trained_on_or_all_searched_on(
    coco_root: Path, coco_data: Callable[..., Any], content: dict[str, Any], rewrite_coco: Any
) -> None:
    folder = coco_root / "train2017"
    unique = {image["file_name"]: (folder / image["file_name"]).read_bytes() for image in content["images"]}
    ids = [image["id"] for image in content["images"]]

    def parts(seed: int) -> list[set[int]]:
        data = coco_data(coco_root, seed=seed, search_fraction=0.4)
        data.setup()
        datasets = data.parts.calibration, data.parts.search
        return [{part[SampleKey(k, 0)]["sample_id"] for k in range(len(part))} for part in datasets]

    for seed in range(4):
        search = search_split(len(ids), 0.4, seed)[1]
        assert parts(seed)[1] == {sorted(ids)[position] for position in search}  # as ever without copies
    extra = []
    for number, image in enumerate(content["images"]):
        name = f"copy_{image['file_name']}"
        (folder / name).write_bytes(unique[image["file_name"]])
        extra.append({**image, "id": 1000 + number, "file_name": name})
    twin = dict(zip(ids, (image["id"] for image in extra), strict=True))
    copied = [{**a, "id": 5000 + k, "image_id": twin[a["image_id"]]} for k, a in enumerate(content["annotations"])]
    rewrite_coco(
        coco_root, "train",
        {**content, "images": content["images"] + extra, "annotations": content["annotations"] + copied},
    )  # fmt: skip
    for seed in range(8):
        train, search = parts(seed)
        assert search
        assert {twin[number] for number in search if number in twin} == {number for number in search if number >= 1000}
        assert not {twin.get(number) for number in train} & search


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_images_with_the_same_pixels_are_one_group_however_they_are_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 40, 56, 3), dtype=np.uint8)
    images = [Image.fromarray(array) for array in pixels]
    first = saved(images[0], tmp_path / "0.jpg")
    decoded = Image.open(first).convert("RGB")
    turned = Image.Exif()
    turned[274] = 6
    paths = [
        first,
        saved(images[1], tmp_path / "1.jpg"),
        saved(images[0], tmp_path / "2.jpg", comment=b"another file"),
        saved(images[0], tmp_path / "3.jpg", progressive=True),
        saved(decoded, tmp_path / "4.png"),
        saved(images[2], tmp_path / "5.png", compress_level=1),
        saved(images[2], tmp_path / "6.png", compress_level=9),
        saved(decoded.transpose(Image.Transpose.ROTATE_90), tmp_path / "7.png", exif=turned),
        saved(images[3].resize((20, 20)), tmp_path / "8.png"),
        tmp_path / "none.jpg",
    ]
    (tmp_path / "broken.jpg").write_bytes(first.read_bytes()[:400])
    paths.append(tmp_path / "broken.jpg")
    assert identical_images(paths, follow_exif=True).tolist() == [0, 1, 0, 0, 0, 5, 5, 0, 8, 9, 10]
    assert identical_images(paths, follow_exif=False).tolist() == [0, 1, 0, 0, 0, 5, 5, 7, 8, 9, 10]
    only_jpeg = paths[:4]
    assert identical_images(only_jpeg, follow_exif=False).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("bound", ["MOST_HEADERS", "MOST_COMPARED"])
def test_large_sets_are_compared_by_their_bytes_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bound: str
) -> None:
    image = Image.new("RGB", (9, 7), "red")
    paths = [saved(image, tmp_path / name) for name in ("a.png", "b.bmp", "c.png")]
    assert identical_images(paths, follow_exif=True).tolist() == [0, 0, 0]
    monkeypatch.setattr(f"nas_transfer.data.duplicates.{bound}", 1)
    with caplog.at_level("INFO"):
        assert identical_images(paths, follow_exif=True).tolist() == [0, 1, 0]
    assert "stage=check compares their pixels" in caplog.text


@pytest.mark.parametrize(("num_images", "folds"), [(5, 5), (11, 3), (40, 5), (61, 4)])
def test_folds_are_a_partition_into_parts_of_equal_size(num_images: int, folds: int) -> None:
    for seed in range(3):
        parts = search_folds(num_images, folds, seed, range(num_images))
        assert len(parts) == folds
        assert sorted(position for part in parts for position in part) == list(range(num_images))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        again = search_folds(num_images, folds, seed, range(num_images))
        assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


def test_a_group_is_in_one_fold() -> None:
    groups = [k // 3 for k in range(30)]
    parts = search_folds(30, 4, seed=0, groups=groups)
    for group in set(groups):
        assert sum(group in {groups[position] for position in part} for part in parts) == 1


def test_more_folds_than_different_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"search\.folds must be at most .* different images of train, got 5 for 4"):
        search_folds(8, 5, seed=0, groups=[0, 0, 1, 1, 2, 2, 3, 3])


def test_each_fold_trains_on_the_others_and_copies_of_an_image_are_in_one(
    coco_root: Path, coco_data: Callable[..., Any], content: dict[str, Any]
) -> None:
    folder = coco_root / "train2017"
    first = content["images"][0]
    second = next(image for image in content["images"][1:] if image["width"] == first["width"])
    (folder / second["file_name"]).write_bytes((folder / first["file_name"]).read_bytes())
    data = coco_data(coco_root, search_fraction=0.4)
    data.setup()
    before = data.parts

    def ids(part: Any) -> set[int]:
        return {part[SampleKey(k, 0)]["sample_id"] for k in range(len(part))}

    folds = data.folds(3)
    scored = [ids(fold.parts.search) for fold in folds]
    everything = set.union(*scored)
    annotated = {record["image_id"] for record in content["annotations"]}
    assert everything == {image["id"] for image in content["images"]}
    assert sum(map(len, scored)) == len(everything)
    twins = {first["id"], second["id"]}
    assert sum(bool(twins & fold) for fold in scored) == 1
    for fold, images in zip(folds, scored, strict=True):
        assert not ids(fold.parts.train) & images
        assert ids(fold.parts.train) == ids(fold.parts.calibration) == annotated - images
        assert set(fold.search_ground_truth.getImgIds()) == everything
        assert ids(fold.search_dataloader().dataset) == images
    assert data.parts is before
