import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nas_transfer.data.coco_annotations import decode_mask
from nas_transfer.errors import DataError

Builder = Callable[..., Any]


def samples_of(loader: Any) -> dict[int, tuple[torch.Tensor, dict[str, Any]]]:
    return {
        target["image_id"]: (image, target)
        for batch in loader
        for image, target in zip(batch["images"], batch["targets"], strict=True)
    }


def test_labels_categories_and_boxes_are_those_of_the_file(coco_root: Path, coco_data: Builder) -> None:
    data = coco_data(coco_root, with_masks=True)
    data.setup()
    assert data.num_classes == 2
    assert data.class_names == ("three", "seven")
    assert data.category_ids == [3, 7]
    samples = samples_of(data.val_dataloader())
    assert sorted(samples) == list(range(10, 18))
    image, target = samples[11]
    assert image.shape == (3, 32, 24)
    assert image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[3, 3, 11, 12], [4, 5, 6, 11]]
    assert target["labels"].tolist() == [2, 1]
    dtypes = {name: tensor.dtype for name, tensor in target.items() if name != "image_id"}
    assert dtypes == {
        "boxes": torch.float32, "labels": torch.int64, "iscrowd": torch.uint8, "area": torch.float32,
        "masks": torch.uint8,
    }  # fmt: skip
    assert samples[17][1]["boxes"].shape == (0, 4)
    assert samples[17][1]["masks"].shape == (0, 32, 24)


def test_polygon_and_rle_masks_are_those_of_pycocotools(coco_root: Path, coco_data: Builder) -> None:
    reference = COCO(str(coco_root / "annotations" / "instances_val2017.json"))
    samples = samples_of(coco_data(coco_root, with_masks=True).val_dataloader())
    for image_id, (_, target) in samples.items():
        annotations = reference.loadAnns(reference.getAnnIds(image_id))
        assert len(annotations) == len(target["masks"])
        for mask, annotation in zip(target["masks"], annotations, strict=True):
            assert np.array_equal(mask.numpy(), reference.annToMask(annotation))
            assert mask.sum() == annotation["area"]


def test_two_point_polygons_are_not_taken_for_boxes() -> None:
    square = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]
    assert np.array_equal(decode_mask([[0, 0, 8, 8], square], 10, 10), decode_mask([square], 10, 10))


def test_crowds_are_ground_truth_but_no_training_target(coco_root: Path, coco_data: Builder) -> None:
    data = coco_data(coco_root, flip=0.0)
    assert samples_of(data.train_dataloader())[10][1]["iscrowd"].tolist() == [0]
    assert samples_of(data.val_dataloader())[10][1]["iscrowd"].tolist() == [0, 1]
    assert [annotation["iscrowd"] for annotation in data.val_ground_truth.imgToAnns[10]] == [0, 1]


def test_images_without_annotations_are_evaluated_but_not_trained_on(coco_root: Path, coco_data: Builder) -> None:
    data = coco_data(coco_root, batch_size=1)
    assert sorted(samples_of(data.train_dataloader())) == list(range(10, 17))
    assert data.num_train_images == 7
    assert 17 in samples_of(data.val_dataloader())
    assert 17 in data.val_ground_truth.imgs


def test_the_search_ground_truth_is_that_of_the_search_images(
    coco_root: Path, coco_data: Builder, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coco_data(coco_root, hold_out_search=True, batch_size=1)
    search = set(samples_of(data.search_dataloader()))
    assert len(search) == 2
    assert search == set(data.search_ground_truth.imgs)
    assert {annotation["image_id"] for annotation in data.search_ground_truth.anns.values()} <= search
    trained = set(range(10, 17)) - search
    assert set(samples_of(data.train_dataloader())) == set(samples_of(data.calibration_dataloader(9, 2))) == trained
    assert capsys.readouterr().out == ""


def test_batches_hold_images_of_one_orientation(coco_root: Path, coco_data: Builder) -> None:
    batches = list(coco_data(coco_root, batch_size=3).train_dataloader())
    assert all(len({image.shape for image in batch["images"]}) == 1 for batch in batches)


def test_augmentation_does_not_depend_on_workers_or_resuming(coco_root: Path, coco_data: Builder) -> None:
    def images(start_batch: int = 0, **changes: Any) -> list[torch.Tensor]:
        data = coco_data(coco_root, scale_jitter=[0.5, 2.0], photometric=0.3, with_masks=True, **changes)
        loader = data.train_dataloader()
        data.train_sampler.set_position(1, start_batch)
        return [
            tensor
            for batch in loader
            for image, target in zip(batch["images"], batch["targets"], strict=True)
            for tensor in (image, target["boxes"], target["masks"])
        ]

    whole = images()
    for other, expected in ((images(num_workers=2), whole), (images(start_batch=1), whole[6:])):
        assert len(other) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(other, expected, strict=True))


def test_ids_that_pycocotools_would_misread_are_numbered_anew(
    coco_root: Path, coco_data: Builder, content: dict[str, Any], rewrite_coco: Any
) -> None:
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number  # 0 means "unmatched" in COCOeval
        del annotation["area"]
    rewrite_coco(coco_root, "val", content)
    truth = coco_data(coco_root).val_ground_truth
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in truth.dataset["annotations"]
        if not a["iscrowd"]
    ]
    evaluation = COCOeval(truth, truth.loadRes(perfect), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def set_annotation(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][0].update({key: value})


def set_image(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["images"][0].update({key: value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_annotation("category_id", 99), r"category_id of annotation 1 of .*train2017\.json .*\[3, 7\], got 99"),
        (set_annotation("image_id", 99), r"image_id of annotation 1 of .*train2017\.json .*got 99"),
        (
            set_annotation("bbox", [1, 1, 0, 5]),
            r"the box of annotation 1 of .*train2017\.json must have an area .*got width 0 and height 5",
        ),
        (set_annotation("bbox", [1, 1, 5, -2]), "got width 5 and height -2"),
        (set_annotation("bbox", [90, 1, 5, 5]), "in an image of 32x24"),
        (set_annotation("bbox", [1, 1, float("nan"), 5]), "instead of four numbers"),
        (set_annotation("bbox", None), "None instead of four numbers"),
        (set_annotation("segmentation", []), "segmentation of annotation 1 of .*got none"),
        (set_annotation("segmentation", [[1, 1, 2, 2]]), "no polygon of three points"),
        (set_annotation("segmentation", {"size": [3, 3], "counts": [9]}), r"size \[3, 3\] for an image of height 24"),
        (
            lambda content: content.pop("categories"),
            r"2017\.json must hold the lists images, annotations, categories, got \['annotations'",
        ),
        (lambda content: content["images"][2].pop("width"), r"integer id, height and width .*'id': 12"),
        (lambda content: content["images"].append(content["images"][0]), "image ids must be unique .* got 10 twice"),
        (lambda content: content["categories"][0].update(id=3), "category ids must be unique .* got 3 twice"),
        (lambda content: content["categories"][0].update(name="eight"), r"same categories, got 'eight' and 'seven'"),
        (lambda content: content["images"][0].update(file_name="no.png"), r"no such image: .*train2017.no\.png"),
        *(
            (
                set_image("file_name", name),
                r"file_name of image 10 of .*train2017\.json must lie in the folder of the im",
            )
            for name in ("../val2017/20.png", "/etc/passwd", "a/../../b.png", "..", "a\0.png")
        ),
    ],
)
def test_broken_annotations_are_named(
    coco_root: Path,
    coco_data: Builder,
    content: dict[str, Any],
    rewrite_coco: Any,
    damage: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    damage(content)
    rewrite_coco(coco_root, "train", content)
    with pytest.raises(DataError, match=message) as caught:
        coco_data(coco_root, with_masks=True).setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\x00"])
def test_a_file_that_is_no_coco_json_is_named(
    coco_root: Path, coco_data: Builder, rewrite_coco: Any, text: str
) -> None:
    rewrite_coco(coco_root, "train", text)
    with pytest.raises(DataError, match=r"instances_train2017\.json"):
        coco_data(coco_root).setup()


def test_boxes_without_area_are_left_out_when_asked(
    coco_root: Path, coco_data: Builder, content: dict[str, Any], rewrite_coco: Any, caplog: pytest.LogCaptureFixture
) -> None:
    content["annotations"][2]["bbox"] = [1.0, 1.0, 1.03, 0.0]  # as in COCO's train2017
    rewrite_coco(coco_root, "val", content)
    with caplog.at_level(logging.WARNING):
        data = coco_data(coco_root, skip_empty_boxes=True)
        assert len(samples_of(data.val_dataloader())[11][1]["boxes"]) == 1
    assert "left out 1 annotations without area" in caplog.text
    assert len(data.val_ground_truth.imgToAnns[11]) == 1


def test_boxes_are_clipped_to_the_image(
    coco_root: Path, coco_data: Builder, content: dict[str, Any], rewrite_coco: Any
) -> None:
    content["annotations"][0]["bbox"] = [-3.0, 20.0, 50.0, 10.0]
    rewrite_coco(coco_root, "val", content)
    assert samples_of(coco_data(coco_root).val_dataloader())[10][1]["boxes"][0].tolist() == [0, 20, 32, 24]


def test_plain_names_and_own_paths_are_found_and_others_are_listed(coco_root: Path, coco_data: Builder) -> None:
    (coco_root / "annotations" / "instances_train2017.json").rename(coco_root / "annotations" / "instances_train.json")
    (coco_root / "images").mkdir()
    (coco_root / "train2017").rename(coco_root / "images" / "train")
    assert coco_data(coco_root).num_train_images == 7
    own = {"val_images": str(coco_root / "images" / "train"), "val_annotations": "annotations/instances_train.json"}
    assert len(samples_of(coco_data(coco_root, **own).val_dataloader())) == 8
    with pytest.raises(DataError, match=r"tried nowhere: set data\.root or data\.sources\.train_images"):
        coco_data(coco_root, train_images="nowhere").setup()
    shutil.rmtree(coco_root / "val2017")
    with pytest.raises(DataError, match="tried val2017, val, images/val2017, images/val:"):
        coco_data(coco_root).setup()


def test_evaluation_works_without_train(coco_root: Path, coco_data: Builder) -> None:
    shutil.rmtree(coco_root / "train2017")
    data = coco_data(coco_root)
    assert data.num_classes == 2
    assert len(samples_of(data.val_dataloader())) == 8
    for use in (data.train_dataloader, data.search_dataloader, lambda: data.search_ground_truth):
        with pytest.raises(DataError, match="train images"):
            use()


def test_the_inventory_of_a_set_without_train_is_that_of_val_unless_train_was_named(
    coco_root: Path, coco_data: Builder
) -> None:
    assert list(coco_data(coco_root).inventories()) == ["train", "val"]
    shutil.rmtree(coco_root / "train2017")
    assert list(coco_data(coco_root).inventories()) == ["val"]
    with pytest.raises(DataError, match="tried train2017:"):
        coco_data(coco_root, train_images="train2017").inventories()


def test_broken_images_are_left_out_of_the_ground_truth_too(coco_root: Path, coco_data: Builder) -> None:
    path = coco_root / "val2017" / "1.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"val2017.1\.png"):
        list(coco_data(coco_root).val_dataloader())
    data = coco_data(coco_root, skip_broken=True)
    assert 11 not in samples_of(data.val_dataloader())
    assert 11 not in data.val_ground_truth.imgs
    assert all(annotation["image_id"] != 11 for annotation in data.val_ground_truth.anns.values())


def test_an_image_of_another_size_than_annotated_is_named(coco_root: Path, coco_data: Builder) -> None:
    Image.new("RGB", (24, 32)).save(coco_root / "val2017" / "0.png")
    with pytest.raises(DataError, match=r"0\.png is 32x24, but the image is 24x32"):
        list(coco_data(coco_root).val_dataloader())


def test_real_coco_masks_boxes_and_crowds_are_those_of_pycocotools(shared_data: Path, coco_data: Builder) -> None:
    data = coco_data(shared_data / "coco_tiny", with_masks=True, batch_size=1)
    reference = COCO(str(shared_data / "coco_tiny" / "annotations" / "instances_val2017.json"))
    assert data.num_classes == 80
    assert data.category_ids == sorted(reference.getCatIds())
    assert data.num_train_images == 109
    assert set(data.val_ground_truth.anns) == set(reference.anns)
    assert sum(annotation["iscrowd"] for annotation in data.val_ground_truth.anns.values()) == 6
    checked = 0
    for batch in data.val_dataloader():
        target = batch["targets"][0]
        annotations = reference.imgToAnns[target["image_id"]]
        for k, annotation in enumerate(annotations):
            x, y, width, height = annotation["bbox"]
            assert np.allclose(target["boxes"][k], [x, y, x + width, y + height], atol=1e-3)
            assert data.category_ids[target["labels"][k] - 1] == annotation["category_id"]
            assert np.array_equal(target["masks"][k], reference.annToMask(annotation))
        checked += len(annotations)
        if checked > 200:
            return


@pytest.mark.parametrize(("name", "classes", "images"), [("balloon", 1, 61), ("bccd", 3, 120)])
def test_real_custom_sets_load(shared_data: Path, coco_data: Builder, name: str, classes: int, images: int) -> None:
    data = coco_data(shared_data / name)
    data.setup()
    assert data.num_classes == classes
    assert data.num_train_images == images
    assert next(iter(data.train_dataloader()))["targets"][0]["boxes"].shape[1] == 4


def test_real_boxes_without_masks_are_refused_for_segmentation(shared_data: Path, coco_data: Builder) -> None:
    with pytest.raises(DataError, match=r"segmentation of annotation \d+ of .*bccd"):
        coco_data(shared_data / "bccd", with_masks=True).setup()
