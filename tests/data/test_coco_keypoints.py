"""Keypoint files as samples: crops, splits, what names say of a body, and one sentence for each broken file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.cocoeval import Params

from nas_transfer.data.augmentation import PoseAugmentation
from nas_transfer.data.coco_keypoints import CocoKeypointsData
from nas_transfer.data.keypoint_annotations import Body, part_sigmas, read_keypoints, side_pairs
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.sources import PoseSources
from nas_transfer.errors import ConfigError, DataError
from tests.data.conftest import assemble, save_noise

NAMES = ["nose", "left_hip", "right_hip", "left_ankle"]
COCO_NAMES = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
]  # fmt: skip


def data(root: Path, **changes: Any) -> CocoKeypointsData:
    arguments: dict[str, Any] = {
        "train_images": None, "val_images": None, "train_annotations": None, "val_annotations": None,
        "val_boxes": None, "box_threshold": 0.0, "names": None, "flip_pairs": None, "sigmas": None,
        "lower_body": None, "input_size": [32, 32], "padding": 1.25, "batch_size": 4, "num_workers": 0, "seed": 0,
        "skip_broken": False, "flip": 0.5, "half_body": 0.3, "shift": 0.16, "scale_range": [0.5, 1.5], "rotation": 80,
        "photometric": 0, "erasing": 0, "cache_mib": 0,
        "search_fraction": 0.25, "hold_out_search": False, "val_fraction": None, "draw": None,
    }  # fmt: skip
    records = {"sources": PoseSources, "body": Body, "augmentation": PoseAugmentation}
    return assemble(CocoKeypointsData, root, arguments | changes, **records)


def content() -> dict[str, Any]:
    """Eight images with two persons each; besides, image 10 has a crowd and image 11 a person without keypoints."""
    images = [{"id": 10 + k, "file_name": f"{k}.png", "height": 40, "width": 50} for k in range(8)]
    annotations: list[dict[str, Any]] = []
    for k in range(8):
        for person in range(2):
            x, y = 5.0 + 20 * person, 6.0 + k
            keypoints = [x + 4, y, 2, x, y + 10, 2, x + 8, y + 10, 1, 0, 0, 0]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 10 + k, "category_id": 5, "iscrowd": 0, "area": 90.0,
                 "bbox": [x - 1, y - 1, 10.0, 14.0], "keypoints": keypoints, "num_keypoints": 3}
            )  # fmt: skip
    annotations.append({"id": 90, "image_id": 10, "category_id": 5, "iscrowd": 1, "area": 100.0,
                        "bbox": [0, 0, 10, 10], "keypoints": [0] * 12, "num_keypoints": 0})  # fmt: skip
    annotations.append({"id": 91, "image_id": 11, "category_id": 5, "iscrowd": 0, "area": 100.0,
                        "bbox": [0, 0, 10, 10], "keypoints": [0] * 12, "num_keypoints": 0})  # fmt: skip
    categories = [{"id": 5, "name": "person", "keypoints": NAMES}, {"id": 6, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(root: Path, part: str, what: Any) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/person_keypoints_{part}.json").write_text(json.dumps(what))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for k in range(8):
            save_noise(tmp_path / part / f"{k}.png", 40, 50, seed=k)
        write(tmp_path, part, content())
    return tmp_path


def test_persons_with_keypoints_are_samples_and_the_ground_truth_holds_the_others_too(root: Path) -> None:
    found = data(root)
    batch = next(iter(found.val_dataloader()))
    assert batch["images"].shape == (4, 3, 32, 32)
    assert batch["images"].dtype == torch.uint8
    assert batch["sample_ids"].tolist() == [1, 2, 3, 4]
    assert batch["image_ids"].tolist() == [10, 10, 11, 11]
    assert batch["visible"].tolist() == [[1, 1, 1, 0]] * 4
    assert batch["areas"].tolist() == [90.0] * 4
    back = torch.einsum("bij,bkj->bki", batch["to_image"][:, :, :2], batch["keypoints"].double())
    back = back + batch["to_image"][:, None, :, 2]
    assert torch.allclose(back[0, :3], torch.tensor([[9.0, 6], [5, 16], [13, 16]]).double(), atol=1e-4)
    assert len(found.val_ground_truth.getAnnIds()) == 18
    assert found.num_classes == 4
    assert found.task_arguments() == {
        "category_id": 5, "flip_pairs": [[1, 2]], "sigmas": [0.026, 0.107, 0.107, 0.089],
    }  # fmt: skip
    assert found.skeleton.lower_body == (1, 2, 3)


def test_training_crops_depend_on_seed_epoch_and_person_alone(root: Path) -> None:
    found, again = data(root), data(root)
    train = found.require_parts().train
    first = train[SampleKey(3, 2)]
    torch.rand(7)
    for name in ("image", "keypoints", "to_image"):
        assert torch.equal(again.require_parts().train[SampleKey(3, 2)][name], first[name])
    assert not torch.equal(train[SampleKey(3, 3)]["to_image"], first["to_image"])
    mirrored = [sample for sample in (train[SampleKey(3, k)] for k in range(20)) if is_mirrored(sample)]
    assert 3 < len(mirrored) < 17
    for sample in mirrored:  # what was the left hip in the image is the right one of the mirrored crop
        x, y = (sample["to_image"][:, :2] @ sample["keypoints"][1].double() + sample["to_image"][:, 2]).tolist()
        assert (x, y) == pytest.approx((33.0, 17.0), abs=1e-3)


def is_mirrored(sample: dict[str, Any]) -> bool:
    return bool(torch.linalg.det(sample["to_image"][:, :2]) < 0)


def test_the_search_split_is_cut_by_image(root: Path) -> None:
    found = data(root, hold_out_search=True)
    parts = found.require_parts()
    images = {
        name: {getattr(parts, name)[SampleKey(k, 0)]["image_id"] for k in range(len(getattr(parts, name)))}
        for name in ("train", "search", "calibration")
    }
    assert images["train"] == images["calibration"]
    assert images["train"] | images["search"] == set(range(10, 18))
    assert not images["train"] & images["search"]
    assert set(found.search_ground_truth.getImgIds()) == images["search"]
    assert found.num_train_images == 12


def test_a_detectors_boxes_replace_the_annotated_ones_in_validation_alone(root: Path) -> None:
    boxes = [
        {"image_id": 12, "category_id": 5, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.75},
        {"image_id": 13, "category_id": 5, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.25},
        {"image_id": 13, "category_id": 6, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.9},
    ]
    (root / "boxes.json").write_text(json.dumps(boxes))
    found = data(root, val_boxes="boxes.json", box_threshold=0.3)
    batch = next(iter(found.val_dataloader()))
    assert (batch["image_ids"].tolist(), batch["box_scores"].tolist()) == ([12], [0.75])
    assert batch["visible"].sum() == 0
    assert found.num_train_images == 16


def test_a_missing_box_becomes_the_extent_of_the_keypoints(root: Path) -> None:
    changed = content()
    del changed["annotations"][0]["bbox"], changed["annotations"][0]["num_keypoints"]
    write(root, "val", changed)
    found = read_keypoints(root / "annotations/person_keypoints_val.json")
    assert found.file.annotations[0][0]["bbox"] == [5.0, 6.0, 9.0, 11.0]
    assert found.file.annotations[0][0]["num_keypoints"] == 3


def test_names_tell_sides_and_cocos_tolerances() -> None:
    assert part_sigmas(COCO_NAMES) == pytest.approx(Params("keypoints").kpt_oks_sigmas.tolist())
    assert side_pairs(COCO_NAMES) == [(k, k + 1) for k in range(1, 17, 2)]
    assert side_pairs(["paw_left", "tail", "paw_right", "l_ear", "r_ear"]) == [(0, 2), (3, 4)]
    assert part_sigmas(["tail", "head_top"]) == [0.05, 0.079]


def shorter_keypoints(what: dict[str, Any]) -> None:
    what["annotations"][3]["keypoints"] = what["annotations"][3]["keypoints"][:9]


def no_keypoint_category(what: dict[str, Any]) -> None:
    del what["categories"][0]["keypoints"]


def two_keypoint_categories(what: dict[str, Any]) -> None:
    what["categories"][1]["keypoints"] = ["tail"]


def other_names(what: dict[str, Any]) -> None:
    what["categories"][0]["keypoints"] = ["nose", "left_hip", "right_hip", "tail"]


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (shorter_keypoints, ["12 numbers", "annotation 4", "person_keypoints_train.json", "got 9"]),
        (no_keypoint_category, ["person_keypoints_train.json", "none"]),
        (two_keypoint_categories, ["person, dog"]),
        (other_names, ["person_keypoints_train.json", "person_keypoints_val.json", "tail"]),
    ],
)
def test_a_broken_file_is_one_sentence_that_names_it(
    root: Path, harm: Callable[[dict[str, Any]], None], expected: list[str]
) -> None:
    changed = content()
    harm(changed)
    write(root, "train", changed)
    with pytest.raises(DataError) as caught:
        data(root).setup()
    assert [part for part in expected if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        (
            [{"image_id": 99, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}],
            "an image of .*got 99: set data.sources.val_boxes",
        ),
        ({"boxes": []}, "must hold a list"),
        ([{"image_id": 10, "category_id": 5, "bbox": [1, 2, 3], "score": 0.5}], "needs image_id"),
        ([{"image_id": 10, "category_id": 6, "bbox": [1, 2, 3, 4], "score": 0.5}], "category 5"),
    ],
)
def test_a_box_file_that_does_not_fit_is_refused(root: Path, boxes: Any, expected: str) -> None:
    (root / "boxes.json").write_text(json.dumps(boxes))
    with pytest.raises(DataError, match=f"(?s)boxes.json.*{expected}|{expected}.*boxes.json"):
        data(root, val_boxes="boxes.json").setup()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sigmas": [0.1]}, "data.body.sigmas must be 4 numbers"),
        ({"sigmas": [0.1, 0, 0.1, 0.1]}, "data.body.sigmas must be above 0, got 0"),
        ({"flip_pairs": [[0, 1, 2]]}, "data.body.flip_pairs must be pairs of two"),
        ({"flip_pairs": [[0, 7]]}, "data.body.flip_pairs"),
        ({"flip_pairs": [[0, 1], [1, 2]]}, "data.body.flip_pairs"), ({"names": ["a"]}, "data.body.names"),
        ({"lower_body": ["tail"]}, "data.body.lower_body"),
        ({"scale_range": [2.0, 1.0]}, "data.augmentation.scale_range"), ({"flip": 1.5}, "data.augmentation.flip"),
        ({"input_size": [32]}, "data.input_size"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named(root: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        data(root, **changes).setup()


@pytest.mark.parametrize(
    ("name", "annotations", "keypoints", "persons"),
    [("coco_tiny", None, 17, 108), ("lspet", None, 14, 100), ("lspet", "_coco17", 17, 100)],
)
def test_real_keypoint_files_are_read(
    shared_data: Path, name: str, annotations: str | None, keypoints: int, persons: int
) -> None:
    changes: dict[str, Any] = {}
    if annotations:
        changes = {f"{p}_annotations": f"annotations/person_keypoints_{p}{annotations}.json" for p in ("train", "val")}
    found = data(shared_data / name, **changes)
    assert found.num_classes == keypoints
    assert len(found.require_parts().val) == persons  # type: ignore[arg-type]
    assert len(found.skeleton.flip_pairs) == {17: 8, 14: 6}[keypoints]
    sample = found.require_parts().train[SampleKey(0, 0)]
    assert sample["image"].float().std() > 5
    assert np.isfinite(sample["keypoints"].numpy()).all()
