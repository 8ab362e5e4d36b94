"""Annotations whose values pycocotools cannot be given are refused by their values, before anything decodes them."""

import json
import math
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from nas_transfer.data.annotation_values import LONGEST_OUTLINE, mask_problem
from nas_transfer.data.coco_annotations import CocoFile, ImageEntry, decode_mask
from nas_transfer.data.duplicates import identical_files
from nas_transfer.data.images import image_files, read_image
from nas_transfer.data.keypoint_annotations import read_boxes, read_keypoints
from nas_transfer.errors import DataError

Builder = Callable[..., Any]
SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]
HUGE = 10**400
DEEP = "[" * 100_000 + "]" * 100_000


def annotation(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update(values)


def image(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["images"][0].update(values)


def category(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["categories"][0].update(values)


def crowds_alone(content: dict[str, Any]) -> None:
    for record in content["annotations"]:
        record["iscrowd"] = 1


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "NaN in a polygon": (annotation(segmentation=[[math.nan, *SQUARE[1:]]]), "not finite numbers"),
    "infinity in a polygon": (annotation(segmentation=[[math.inf, *SQUARE[1:]]]), "not finite numbers"),
    "both infinities": (annotation(segmentation=[[math.inf, -math.inf, *SQUARE[2:]]]), "not finite numbers"),
    "a huge coordinate": (annotation(segmentation=[[1e9, *SQUARE[1:]]]), "more than 10 times the sides"),
    "a coordinate beyond floats": (annotation(segmentation=[[HUGE, *SQUARE[1:]]]), "not finite numbers"),
    "text in a polygon": (annotation(segmentation=[["1", *SQUARE[1:]]]), "not finite numbers"),
    "a list in a polygon": (annotation(segmentation=[[[1], *SQUARE[1:]]]), "not finite numbers"),
    "a second polygon": (annotation(segmentation=[SQUARE, [math.nan] * 6]), "not finite numbers"),
    "an endless outline": (annotation(segmentation=[[-200.0, 1.0, 300.0, 1.0] * 5000]), "an outline of more than"),
    "negative runs": (annotation(segmentation={"size": [24, 32], "counts": [800, -32]}), "negative counts"),
    "text as runs": (annotation(segmentation={"size": [24, 32], "counts": ["768"]}), "no whole numbers"),
    "NaN runs": (annotation(segmentation={"size": [24, 32], "counts": [math.nan]}), "no whole numbers"),
    "too few runs": (annotation(segmentation={"size": [24, 32], "counts": [5, 5]}), "an RLE of 10 pixels"),
    "a broken text": (annotation(segmentation={"size": [24, 32], "counts": "\x7f\x01"}), "cannot be decompressed"),
    "an unfinished text": (annotation(segmentation={"size": [24, 32], "counts": "o"}), "cannot be decompressed"),
    "a text of another image": (annotation(segmentation={"size": [24, 32], "counts": "1"}), "an RLE of 1 pixels"),
    "letters beyond ASCII": (annotation(segmentation={"size": [24, 32], "counts": "\u4e2d"}), "decompressed"),
    "a size of floats": (annotation(segmentation={"size": [24.0, 32.0], "counts": [768]}), "an RLE of size"),
    "a box beyond floats": (annotation(bbox=[HUGE, 1, 5, 5]), "instead of four numbers"),
    "a huge box": (annotation(bbox=[0, 0, 1e30, 5]), "more than 10 times the sides"),
    "text in a box": (annotation(bbox=["1", 1, 5, 5]), "instead of four numbers"),
    "a deep box": (annotation(bbox=json.loads("[" * 500 + "]" * 500)), "instead of four numbers"),
    "text as area": (annotation(area="72"), "area of annotation 1 .* got '72'"),
    "NaN as area": (annotation(area=math.nan), "area of annotation 1 .* got nan"),
    "a negative area": (annotation(area=-1), "area of annotation 1 .* got -1"),
    "text as iscrowd": (annotation(iscrowd="0"), "iscrowd of annotation 1 .* got '0'"),
    "a list as image_id": (annotation(image_id=[10]), r"image_id of annotation 1 .* got \[10\]"),
    "a list as category_id": (annotation(category_id=[7]), r"category_id of annotation 1 .* got \[7\]"),
    "an image id beyond 64 bits": (image(id=2**63), "at most 64 bits"),
    "a category id beyond 64 bits": (category(id=-(2**64)), "at most 64 bits"),
    "an image without pixels": (image(width=0), "1 to .* pixels"),
    "an image of negative size": (image(height=-24), "1 to .* pixels"),
    "a huge image": (image(height=10**9), "1 to .* pixels"),
    "text as height": (image(height="24"), "integer id, height and width"),
    "half a character in a name": (category(name="\ud800"), "and a name"),
    "half a character in a file name": (image(file_name="\ud800.png"), "and a file_name"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_values_are_refused_with_one_sentence(
    coco_root: Path, coco_data: Builder, content: dict[str, Any], rewrite_coco: Any, what: str
) -> None:
    damage, message = HOSTILE[what]
    damage(content)
    rewrite_coco(coco_root, "train", content)
    with pytest.raises(DataError, match=message) as caught:
        coco_data(coco_root, with_masks=True).setup()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_deeply_nested_json_is_refused(coco_root: Path, coco_data: Builder, rewrite_coco: Any) -> None:
    rewrite_coco(coco_root, "train", '{"images": [], "categories": [], "annotations": ' + DEEP + "}")
    with pytest.raises(DataError, match=r"instances_train2017\.json cannot be read as JSON \(it is nested too deeply"):
        coco_data(coco_root).setup()


def test_annotation_ids_beyond_64_bits_are_numbered_anew(
    coco_root: Path, coco_data: Builder, content: dict[str, Any], rewrite_coco: Any
) -> None:
    annotation(id=2**70)(content)
    rewrite_coco(coco_root, "val", content)
    assert set(coco_data(coco_root).val_ground_truth.anns) == set(range(1, 15))


def test_a_validation_split_without_objects_is_known_before_training(
    coco_root: Path, coco_data: Builder, content: dict[str, Any], rewrite_coco: Any
) -> None:
    crowds_alone(content)
    rewrite_coco(coco_root, "val", content)
    with pytest.raises(
        DataError, match=r"no score is defined on val of .*, which has no annotations other than crowds"
    ):
        coco_data(coco_root).setup()


def test_a_search_split_without_objects_is_known_before_the_search(
    coco_root: Path, coco_data: Builder, content: dict[str, Any], rewrite_coco: Any
) -> None:
    data = coco_data(coco_root)
    held_out = {image["image_id"] for _, image in _targets(data.search_dataloader())}
    for record in content["annotations"]:
        record["iscrowd"] = int(record["image_id"] in held_out)
    rewrite_coco(coco_root, "train", content)
    data = coco_data(coco_root)
    data.setup()
    with pytest.raises(DataError, match="no score is defined on the search split"):
        data.search_dataloader()


def _targets(loader: Any) -> list[Any]:
    return [pair for batch in loader for pair in zip(batch["images"], batch["targets"], strict=True)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": "nose"}, "must be names"),
        ({"keypoints": ["nose", 7]}, "must be names"),
        ({"flip_pairs": [[0, "1"]]}, "flip_pairs"),
        ({"flip_pairs": [0, 1]}, "flip_pairs"),
        ({"sigmas": ["0.1", 0.1]}, "sigmas"),
        ({"sigmas": [math.nan, 0.1]}, "sigmas"),
    ],
)
def test_a_hostile_category_of_keypoints_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    person: dict[str, Any] = {"id": 1, "name": "person", "keypoints": ["nose", "eye"]} | change
    content = {"images": [{"id": 1, "file_name": "a", "height": 9, "width": 9}], "annotations": []}
    (tmp_path / "file.json").write_text(json.dumps(content | {"categories": [person]}))
    with pytest.raises(DataError, match=message):
        read_keypoints(tmp_path / "file.json")


def hostile_masks(generator: random.Random) -> Any:
    """A segmentation of an image of 24x32 in which anything may be wrong."""
    draw, pick = generator.randrange, generator.choice
    numbers = [
        0, -1, 1.5, 31, 33, -300, 1e4, 1e7, 2**31, 2**32 + 5, -(2**40), 1e300, math.nan, math.inf, True, None, "1",
    ]  # fmt: skip
    if generator.random() < 0.4:
        pool = numbers[:6] if generator.random() < 0.6 else numbers
        return [[pick(pool) for _ in range(2 * draw(5))] for _ in range(draw(1, 3))]
    size = pick([[24, 32], [24, 32], [24, 32], [32, 24], [24, 32.0]])
    kind = generator.random()
    if kind < 0.3:
        mask = np.asfortranarray(np.random.default_rng(draw(99)).random((24, 32)) < 0.5, dtype=np.uint8)
        letters = list(rle.encode(mask)["counts"].decode())
        for _ in range(draw(3)):
            letters[draw(len(letters))] = chr(draw(1, 256))
        return {"size": size, "counts": "".join(letters[: pick([len(letters), 5])])}
    if kind < 0.6:
        return {"size": size, "counts": "".join(chr(draw(40, 120)) for _ in range(draw(9)))}
    runs: list[Any] = [pick([0, 1, 100, 700, -5, 2**33, 1.0, "3"]) for _ in range(draw(5))]
    if generator.random() < 0.5:
        runs = [run for run in runs if type(run) is int and 0 <= run < 300]
        runs.append(24 * 32 - sum(runs))
    return {"size": size, "counts": runs}


def test_whatever_is_accepted_can_be_decoded_in_little_memory() -> None:
    generator = random.Random(0)
    accepted = [mask for mask in (hostile_masks(generator) for _ in range(3000)) if not mask_problem(mask, 24, 32)]
    assert len(accepted) > 300
    child = os.fork()
    if child == 0:  # a process that may die, or allocate too much
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**29
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        code = 1
        try:
            code = int(any(decode_mask(mask, 24, 32).shape != (24, 32) for mask in accepted))
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_masks_of_pycocotools_are_accepted_and_others_are_not() -> None:
    generator = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.5, 1.0):
        for height, width in ((1, 1), (24, 32), (700, 3)):
            mask = np.asfortranarray(generator.random((height, width)) < density, dtype=np.uint8)
            text = rle.encode(mask)["counts"].decode()
            assert mask_problem({"size": [height, width], "counts": text}, height, width) == ""
            assert mask_problem({"size": [height, width], "counts": text + "1"}, height, width) != ""
    assert mask_problem([[0.0, 0.0, LONGEST_OUTLINE, 0.0, 0.0, 5.0]], 10**6, 10**6) != ""
    assert mask_problem([[0.0, 0.0, 10**6, 0.0, 0.0, 5.0]], 10**6, 10**6) == ""


def loops(folder: Path) -> None:
    """Links to the folder itself, one of them below."""
    (folder / "again").symlink_to(folder)
    (folder / "below").mkdir()
    (folder / "below" / "up").symlink_to("..")
    (folder / "itself").symlink_to("itself")


def test_links_that_lead_in_circles_are_followed_once(tmp_path: Path) -> None:
    for name in ("a.png", "below.jpg", "text.txt", ".hidden.png"):
        (tmp_path / name).touch()
    loops(tmp_path)
    (tmp_path / "below" / "b.png").touch()
    elsewhere = tmp_path / "zz"
    elsewhere.mkdir()
    (elsewhere / "c.png").touch()
    (tmp_path / "also").symlink_to(elsewhere)
    assert image_files(tmp_path) == [str(tmp_path / name) for name in ("a.png", "below.jpg", "below/b.png", "zz/c.png")]
    assert image_files(tmp_path / "also") == [str(tmp_path / "also/c.png")]


def test_pipes_and_devices_are_no_images(folder_root: Path, folder_data: Builder) -> None:
    for name in ("pipe.png", "pipe2.png"):
        os.mkfifo(folder_root / "train/ant" / name)
    (folder_root / "train/ant/zero.png").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(DataError, match=r"ant/.*\.png .*no regular file"):
            read_image(folder_root / "train/ant" / f"{name}.png", follow_exif=True)
    data = folder_data(folder_root, skip_broken=True)
    assert data.num_train_images == 16
    paths = [folder_root / "train/ant" / name for name in ("pipe.png", "pipe2.png", "zero.png")]
    assert identical_files(paths).tolist() == [0, 1, 2]


def test_a_page_description_is_not_run(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="EPS is not read"):
        read_image(tmp_path / "a.jpg", follow_exif=False)


def test_a_single_class_is_refused(folder_root: Path, folder_data: Builder) -> None:
    for part in ("train", "val"):
        for path in (folder_root / part / "bee").iterdir():
            path.unlink()
        (folder_root / part / "bee").rmdir()
    with pytest.raises(DataError, match=r"at least 2 classes in .*got 'ant' alone"):
        folder_data(folder_root).setup()


def test_a_class_folder_whose_name_is_no_text_is_refused(folder_root: Path, folder_data: Builder) -> None:
    os.mkdir(os.fsencode(folder_root) + b"/train/\xff")
    with pytest.raises(DataError, match="a name in UTF-8"):
        folder_data(folder_root).setup()


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [0, 0, 1e7, 5]}, {"bbox": [0, 0, HUGE, 5]}, {"bbox": [0, 0, "1", 5]}, {"score": math.nan},
        {"score": "1"}, {"image_id": [1]}, {"image_id": 2**70}, {"image_id": True},
    ],
)  # fmt: skip
def test_hostile_boxes_of_a_detector_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    box: dict[str, Any] = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}
    listed = CocoFile(tmp_path, (), (ImageEntry(1, "a.png", 9, 9),), (), 0)
    (tmp_path / "boxes.json").write_text(json.dumps([box]))
    assert len(read_boxes(tmp_path / "boxes.json", listed, 1, 0.1, "boxes")) == 1
    (tmp_path / "boxes.json").write_text(json.dumps([box, box | change]))
    with pytest.raises(DataError, match=r"boxes\.json"):
        read_boxes(tmp_path / "boxes.json", listed, 1, 0.1, "boxes")
