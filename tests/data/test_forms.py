"""YOLO labels, Pascal VOC and exports of COCO give the samples that COCO's own layout gives of the same dataset."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from nas_transfer.data.check_text import check_text
from nas_transfer.data.coco_instances import CocoInstancesData
from nas_transfer.data.inspection import search_findings
from nas_transfer.errors import DataError
from nas_transfer.runs import Check
from tests.data.conftest import save_noise
from tests.data.forms import (
    Dataset,
    Picture,
    Thing,
    small_dataset,
    voc_text,
    write_coco,
    write_form,
    write_voc,
    write_yolo,
    yolo_line,
)
from tests.data.test_coco_keypoints import data as keypoints_in

Builder = Callable[..., CocoInstancesData]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return small_dataset(tmp_path / "pictures")


def flat(value: Any) -> list[Any]:
    """The tensors and plain values in a batch."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in flat(value[key])]
    if isinstance(value, list):
        return [leaf for child in value for leaf in flat(child)]
    return [value]


def require_same_batches(first: CocoInstancesData, second: CocoInstancesData) -> None:
    """All batches are equal to the last bit, in their order, augmentation included."""
    for name in ("train_dataloader", "val_dataloader", "search_dataloader"):
        batches, others = (list(getattr(data, name)()) for data in (first, second))
        assert len(batches) == len(others) > 0
        for value, other in zip(flat(batches), flat(others), strict=True):
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_a_form_gives_the_batches_of_coco_and_its_ground_truth(
    tmp_path: Path, dataset: Dataset, coco_data: Builder, form: str
) -> None:
    coco = coco_data(write_form("coco", tmp_path / "coco", dataset))
    other = coco_data(write_form(form, tmp_path / form, dataset))
    require_same_batches(coco, other)
    assert other.vocabulary == coco.vocabulary
    assert other.num_train_images == 5  # one of six has no object
    for truth, expected in (
        (other.val_ground_truth, coco.val_ground_truth),
        (other.search_ground_truth, coco.search_ground_truth),
    ):
        assert truth is not None
        assert expected is not None
        ours, theirs = (
            [
                (record["image_id"], record["category_id"], record["bbox"], record["area"])
                for record in coco.anns.values()
            ]
            for coco in (truth, expected)
        )
        assert ours == theirs


@pytest.mark.parametrize(
    ("write", "layout", "form"),
    [
        (write_coco, "roboflow", "COCO as Roboflow writes it"),
        (write_yolo, "roboflow", "YOLO labels, data.yaml"),
    ],
)
def test_layouts_of_roboflow_give_the_batches_of_coco(
    tmp_path: Path, dataset: Dataset, coco_data: Builder, write: Any, layout: str, form: str
) -> None:
    coco, other = (
        coco_data(write_coco(tmp_path / "coco", dataset)),
        coco_data(write(tmp_path / "other", dataset, layout)),
    )
    require_same_batches(coco, other)
    assert other.class_names == ("ant", "bee")
    assert {inventory.form for inventory in other.inventories().values()} == {form}


def test_a_project_of_roboflow_with_objects_is_a_class(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    root = write_coco(tmp_path / "coco", dataset, "roboflow")
    for part in ("train", "valid"):
        file = root / part / "_annotations.coco.json"
        content = json.loads(file.read_text())
        content["annotations"][0]["category_id"] = 0
        file.write_text(json.dumps(content))
    assert coco_data(root).class_names == ("insects", "ant", "bee")


def test_six_digits_move_a_box_by_less_than_a_thousandth_of_a_pixel(
    tmp_path: Path, dataset: Dataset, coco_data: Builder
) -> None:
    exact, rounded = (
        coco_data(write_yolo(tmp_path / str(digits), dataset, digits=digits)).require_parts().val for digits in (12, 6)
    )
    moved = np.abs(exact.boxes - rounded.boxes).max()  # type: ignore[attr-defined]
    assert 0 < moved < 1e-3


UNDIVIDED = {
    "voc": (lambda root, dataset: write_voc(root, dataset, split=False), "Pascal VOC without a split"),
    "cvat": (lambda root, dataset: write_coco(root, joined(dataset), "cvat"), "COCO without a split"),
    "yolo": (lambda root, dataset: write_yolo(root, dataset, "flat"), "YOLO labels without a split, classes.txt"),
}


def joined(dataset: Dataset) -> Dataset:
    return {"train": [picture for pictures in dataset.values() for picture in pictures]}


@pytest.mark.parametrize("form", UNDIVIDED)
def test_a_folder_without_a_split_is_divided_with_identical_images_on_one_side(
    tmp_path: Path, dataset: Dataset, coco_data: Builder, form: str
) -> None:
    first, *others = dataset["train"][:-1]
    for picture in others[:2]:
        picture.path.with_suffix(".copy").write_bytes(first.path.read_bytes())
        picture.path.with_suffix(".copy").replace(picture.path)
    dataset = {**dataset, "train": [first, *(replaced(picture, first) for picture in others[:2]), *others[2:]]}
    write, name = UNDIVIDED[form]
    root = write(tmp_path / form, dataset)
    parts = []
    for seed in (0, 1):
        data = coco_data(root, seed=seed)
        inventories = data.inventories()
        assert {inventory.form for inventory in inventories.values()} == {f"{name}: 0.2 of the images are val"}
        parts.append({part: {Path(file).name for file in inventories[part].files} for part in inventories})
        data.setup()
        assert data.val_ground_truth is not None
        assert len(data.val_ground_truth.imgs) == len(parts[-1]["val"])
    assert parts[0] == parts[1]  # a run with another seed is scored on the same images
    train, val = parts[0]["train"], parts[0]["val"]
    assert not train & val
    assert len(train | val) == 9
    alike = {first.path.name, *(picture.path.name for picture in others[:2])}
    assert alike <= train or alike <= val


def replaced(picture: Picture, first: Picture) -> Picture:
    return Picture(picture.path, first.width, first.height, first.things)


def test_val_is_cut_from_train_on_request(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    root = write_yolo(tmp_path / "yolo", dataset)
    shutil.rmtree(root / "images/val")
    with pytest.raises(DataError, match=r"no val images in .* tried images/val, .*data\.split\.val_fraction=0\.2"):
        coco_data(root).setup()
    data = coco_data(root, val_fraction=0.34)
    assert {part: len(inventory.files) for part, inventory in data.inventories().items()} == {"train": 4, "val": 2}


def test_difficult_objects_are_ignored_as_crowds_are(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    root = write_voc(tmp_path / "voc", dataset)
    picture = dataset["val"][0]
    (root / f"Annotations/{picture.path.stem}.xml").write_text(voc_text(picture, difficult=1))
    truth = coco_data(root).val_ground_truth
    assert truth is not None
    crowds = {record["image_id"] for record in truth.anns.values() if record["iscrowd"]}
    assert crowds == {1}


def test_coordinates_of_the_original_sets_begin_at_one(tmp_path: Path, coco_data: Builder) -> None:
    whole = Picture(tmp_path / "a.png", 20, 10, (Thing("ant", (1.0, 1.0, 19.0, 9.0)),))  # corners 1, 1, 20, 10
    save_noise(whole.path, 10, 20, seed=0)
    root = write_voc(tmp_path / "voc", {"train": [whole], "val": [whole]} | {"train": []})
    (root / "Annotations/a.xml").write_text(voc_text(whole, database="The VOC2007 Database"))
    (root / "ImageSets/Main/train.txt").unlink()
    truth = coco_data(root).val_ground_truth
    assert truth is not None
    assert truth.anns[1]["bbox"] == [0, 0, 20, 10]


def test_polygons_have_the_masks_of_pycocotools(tmp_path: Path, coco_data: Builder) -> None:
    width, height = 40, 30
    polygon = [4.0, 5.0, 30.5, 7.0, 22.0, 25.0]
    for part in ("train", "val"):
        save_noise(tmp_path / f"images/{part}/a.png", height, width, seed=len(part))
        line = " ".join(f"{value / (height if k % 2 else width):.12f}" for k, value in enumerate(polygon))
        (tmp_path / f"labels/{part}").mkdir(parents=True)
        (tmp_path / f"labels/{part}/a.txt").write_text(f"0 {line}\n")
    (tmp_path / "data.yaml").write_text("names: {0: kite}\n")
    (batch,) = coco_data(tmp_path, with_masks=True, search_fraction=0).val_dataloader()
    (target,) = batch["targets"]
    expected = rle.decode(rle.merge(rle.frPyObjects([polygon], height, width)))
    assert torch.equal(target["masks"][0], torch.from_numpy(expected))
    assert target["boxes"].tolist() == [[4, 5, 30.5, 25]]
    triangle = 0.5 * abs((30.5 - 4) * (25 - 5) - (22 - 4) * (7 - 5))
    assert target["area"].tolist() == [pytest.approx(triangle)]


def test_boxes_have_no_masks(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    data = coco_data(write_yolo(tmp_path / "yolo", dataset), with_masks=True)
    with pytest.raises(DataError, match=r"the segmentation of line 1 of .*labels/val/val0\.txt must be polygons"):
        data.setup()


def test_another_label_of_the_same_length_is_another_content(
    tmp_path: Path, dataset: Dataset, coco_data: Builder
) -> None:
    root = write_yolo(tmp_path / "yolo", dataset)
    lists = []
    for label in (0, 1):
        file = root / "labels/train/train0.txt"
        file.write_text(f"{label}{file.read_text()[1:]}")
        data = coco_data(root)
        data.setup()
        lists.append(data.image_lists)
    assert lists[0]["val"] == lists[1]["val"]
    assert lists[0]["train"] != lists[1]["train"]


def yolo_with(folder: Path, dataset: Dataset, **files: str) -> Path:
    """The dataset with other text in these files; underscores stand for slashes."""
    root = write_yolo(folder / "yolo", dataset)
    for name, text in files.items():
        (root / name.replace("__", "/")).write_text(text)
    return root


LINES = {
    "not a number": ("0 a 0.5 0.1 0.1", r"line 1 of .*train0\.txt must have coordinates relative .* got 'a'"),
    "NaN": ("0 nan 0.5 0.1 0.1", r"line 1 of .*train0\.txt must have coordinates relative .* got 'nan'"),
    "infinity": ("0 0.5 inf 0.1 0.1", r"got 'inf'"),
    "pixels": ("0 0.5 0.5 0.1 0.1\n\n1 300 200 40 50", r"line 3 of .* got '300': divide pixels by"),
    "an unknown class": ("2 0.5 0.5 0.1 0.1", r"line 1 of .* must begin with a class 0 to 1 of .*data\.yaml, got '2'"),
    "a negative class": ("-1 0.5 0.5 0.1 0.1", r"got '-1'"),
    "an endless class": ("inf 0.5 0.5 0.1 0.1", r"got 'inf'"),
    "half a class": ("0.5 0.5 0.5 0.1 0.1", r"got '0\.5'"),
    "a score": ("0 0.5 0.5 0.1 0.1 0.9", r"a polygon of three points or more, got 6 fields"),
    "an empty box": ("0 0.5 0.5 0 0.1", r"the box of line 1 of .*train0\.txt must have an area inside its image"),
    "a box outside": ("0 1.5 0.5 0.1 0.1", r"the box of line 1 of .*train0\.txt must have an area inside its image"),
}


@pytest.mark.parametrize("what", LINES)
def test_hostile_lines_are_refused_and_named(tmp_path: Path, dataset: Dataset, coco_data: Builder, what: str) -> None:
    text, message = LINES[what]
    root = yolo_with(tmp_path, dataset, labels__train__train0_txt="")
    (root / "labels/train/train0.txt").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        coco_data(root).setup()
    assert "\n" not in str(caught.value)
    inventory = coco_data(root).inventories()["train"]
    assert len(inventory.refused) == 1


def test_bytes_that_are_no_text_are_refused(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    root = write_yolo(tmp_path / "yolo", dataset)
    (root / "labels/train/train0.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"train0\.txt cannot be read as text"):
        coco_data(root).setup()


YAMLS = {
    "no YAML": ("names: [", "cannot be read as YAML"),
    "aliases": ("a: &a [ant]\nnames: *a", "it has aliases"),
    "objects": ("names: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    "no names": ("train: images/train", "must hold the key names"),
    "names that are none": ("names: 3", "names of .* must be a list of names, got 3"),
    "names with gaps": ("names: {0: ant, 2: bee}", r"must be numbered from 0, got \[0, 2\]"),
    "a list of lists": ("names: [[ant], [bee]]", "must be a list of names"),
}


@pytest.mark.parametrize("what", YAMLS)
def test_hostile_yaml_is_refused(tmp_path: Path, dataset: Dataset, coco_data: Builder, what: str) -> None:
    text, message = YAMLS[what]
    root = write_yolo(tmp_path / "yolo", dataset)
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        coco_data(root).setup()
    assert "\n" not in str(caught.value)


def test_yaml_cannot_lead_out_of_the_dataset(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    root = write_yolo(tmp_path / "yolo", dataset)
    outside = tmp_path / "pictures/train"
    names = "names: [ant, bee]\n"
    (root / "data.yaml").write_text(f"path: {outside.parent}\ntrain: {outside}\nval: ../pictures/val\n{names}")
    files = coco_data(root).inventories()["train"].files
    assert list(files) == [f"images/train/{picture.path.name}" for picture in dataset["train"]]
    (root / "train.txt").write_text("../pictures/train/train0.png\n")
    (root / "data.yaml").write_text(f"train: train.txt\n{names}")
    with pytest.raises(DataError, match=r"line 1 of .*train\.txt must name an image in .*yolo"):
        coco_data(root).setup()


def test_lists_of_images_are_read(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    root = write_yolo(tmp_path / "yolo", dataset)
    (root / "some.txt").write_text("./images/train/train0.png\ndata/images/train/train1.png\n")
    (root / "data.yaml").write_text("train: some.txt\nval: [images/val, images/train]\nnames: [ant, bee]\n")
    inventories = coco_data(root).inventories()
    assert {part: len(inventory.files) for part, inventory in inventories.items()} == {"train": 2, "val": 10}


def test_labels_without_names_are_refused(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    root = write_yolo(tmp_path / "yolo", dataset)
    (root / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"need names of classes, got no data\.yaml and no classes\.txt"):
        coco_data(root).setup()


ANNOTATION = "<annotation><filename>train0.png</filename>{}</annotation>"
OBJECT = "<object><name>ant</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
XMLS = {
    "no XML": ("<annotation>", r"train0\.xml cannot be read as XML"),
    "a document type": ('<!DOCTYPE a [<!ENTITY b "c">]>' + ANNOTATION, "it has a document type"),
    "another encoding": ("\udcff", "cannot be read as XML"),
    "no numbers": (ANNOTATION.format(OBJECT.format("a")), r"object 1 of .*train0\.xml must have a <bndbox> of four"),
    "no box": (ANNOTATION.format("<object><name>ant</name></object>"), r"object 1 of .*<bndbox> of four numbers"),
    "no name": (ANNOTATION.format("<object/>"), r"object 1 of .*train0\.xml must have a <name>"),
    "NaN": (ANNOTATION.format(OBJECT.format("nan")), r"the box of object 1 of .*train0\.xml"),
    "infinity": (ANNOTATION.format(OBJECT.format("-inf")), r"the box of object 1 of .*train0\.xml"),
    "far away": (ANNOTATION.format(OBJECT.format("-1e9")), r"more than 10 times the sides"),
    "turned corners": (ANNOTATION.format(OBJECT.format("10")), r"the box of object 1 of .* width -1\.0"),
    "a half pixel": (ANNOTATION.format("<size><width>1.5</width><height>2</height></size>"), "must be whole numbers"),
    "a huge size": (ANNOTATION.format("<size><width>1e300</width><height>2</height></size>"), "1 to .* pixels"),
    "an endless size": (ANNOTATION.format("<size><width>inf</width><height>2</height></size>"), "whole numbers"),
    "a doubt": (
        ANNOTATION.format(OBJECT.format("1").replace("<bndbox>", "<difficult>perhaps</difficult><bndbox>")),
        "must be 0 or 1, got 'perhaps'",
    ),
}


@pytest.mark.parametrize("what", XMLS)
def test_hostile_xml_is_refused_and_named(tmp_path: Path, dataset: Dataset, coco_data: Builder, what: str) -> None:
    text, message = XMLS[what]
    root = write_voc(tmp_path / "voc", dataset)
    (root / "Annotations/train0.xml").write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=message) as caught:
        coco_data(root).setup()
    assert "\n" not in str(caught.value)


def test_the_image_of_an_annotation_file_is_the_one_of_its_name_inside_the_dataset(
    tmp_path: Path, dataset: Dataset, coco_data: Builder
) -> None:
    root = write_voc(tmp_path / "voc", dataset)
    file = root / "Annotations/train0.xml"
    file.write_text(file.read_text().replace("train0.png", "renamed.jpg"))
    coco_data(root).setup()
    for name in ("../../pictures/train/train0.png", str(dataset["train"][0].path), "missing.png"):
        lost = root / "Annotations/lost.xml"
        lost.write_text(file.read_text().replace("renamed.jpg", name))
        (root / "ImageSets/Main/train.txt").write_text("lost\ntrain1\ntrain2")
        with pytest.raises(DataError, match=r"lost\.xml must have one image of its name in .*, got 0"):
            coco_data(root).setup()


def test_a_list_of_pascal_voc_names_annotation_files(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    root = write_voc(tmp_path / "voc", dataset)
    for name in ("missing", "../../pictures/train0"):
        (root / "ImageSets/Main/train.txt").write_text(f"train1\n{name}")
        with pytest.raises(DataError, match=r"line 2 of .*train\.txt must name a file"):
            coco_data(root).setup()


def test_annotation_files_beside_the_images_are_found(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    whole = coco_data(write_voc(tmp_path / "voc", dataset))
    root = tmp_path / "beside"
    for part, pictures in dataset.items():
        for picture in pictures:
            folder = root / part.replace("val", "valid")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture.path, folder)
            (folder / f"{picture.path.stem}.xml").write_text(voc_text(picture))
    require_same_batches(whole, coco_data(root))


def test_a_broken_image_is_found_as_in_cocos_layout(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    root = write_yolo(tmp_path / "yolo", dataset)
    broken = root / "images/val/val0.png"
    broken.unlink()
    broken.write_bytes(b"no image")
    assert len(coco_data(root, skip_broken=True).val_ground_truth.imgs) == 3  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"val0\.png is a broken or truncated image"):
        list(coco_data(root).val_dataloader())


def test_a_folder_of_no_form_names_what_was_tried(tmp_path: Path, coco_data: Builder) -> None:
    with pytest.raises(DataError, match=r"tried val2017, val, .*nor are there YOLO labels, Pascal VOC"):
        coco_data(tmp_path).setup()


def test_a_small_search_split_is_a_problem_with_its_size(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    data = coco_data(write_form("yolo", tmp_path / "yolo", dataset), search_fraction=0.1)
    inventories = data.inventories()
    (finding,) = search_findings(inventories["train"])
    assert finding.text == (
        "1 of 6 images, of which one is 100.0 points of the score: data.split.search_fraction=0.3 makes it 2 images, "
        "of which one is 50.0 points of the score; stage=search of a whole network scores on all 6 with "
        "data.split.search_fraction=1; stage=proxy scores on all 6 with search.folds=5, in 5 times the time"
    )
    assert search_findings(inventories["val"]) == []
    check = Check("small_det", "mine", {}, {"few": 1}, 1, (finding,), 1.0, form=inventories["train"].form)
    text = check_text(check)
    assert "form: YOLO labels, data.yaml" in text
    assert finding.text in text


def test_keypoints_are_those_of_the_lines(tmp_path: Path) -> None:
    width, height = 40, 60
    points = [(10.0, 12.0, 2), (30.0, 12.0, 1), (0.0, 0.0, 0)]
    picture = Picture(tmp_path / "a.png", width, height, ())
    for part in ("train", "val"):
        for k in range(2):
            save_noise(tmp_path / f"images/{part}/{k}.png", height, width, seed=k + len(part))
            line = yolo_line(0, (5.0, 6.0, 30.0, 45.0), picture, 9)
            line += "".join(f" {x / width:.9f} {y / height:.9f} {v}" for x, y, v in points)
            (tmp_path / f"labels/{part}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"labels/{part}/{k}.txt").write_text(line)
    names = "names: [person]\nkpt_names: {0: [left_eye, right_eye, nose]}\n"
    (tmp_path / "data.yaml").write_text(f"{names}kpt_shape: [3, 3]\nflip_idx: [1, 0, 2]\n")
    data = keypoints_in(tmp_path)
    assert data.vocabulary.names == ("left_eye", "right_eye", "nose")
    assert data.vocabulary.flip_pairs == ((0, 1),)
    truth = data.val_ground_truth
    assert truth is not None
    record = truth.anns[1]
    assert record["keypoints"] == [10.0, 12.0, 2.0, 30.0, 12.0, 1.0, 0.0, 0.0, 0.0]
    assert (record["num_keypoints"], record["bbox"]) == (2, [5.0, 6.0, 30.0, 45.0])
    assert record["area"] == pytest.approx(0.53 * 30 * 45)
    (tmp_path / "data.yaml").write_text("names: [person]\n")
    with pytest.raises(DataError, match=r"must have kpt_shape for a pose task"):
        keypoints_in(tmp_path).setup()


def test_class_folders_without_a_split_are_divided(tmp_path: Path, folder_data: Builder) -> None:
    for name in ("ant", "bee"):
        for k in range(5):
            save_noise(tmp_path / name / f"{k}.png", 24, 20, seed=k + 10 * len(name) + ord(name[0]))
    data = folder_data(tmp_path)
    assert {part: len(inventory.files) for part, inventory in data.inventories().items()} == {"train": 8, "val": 2}
    assert data.class_names == ("ant", "bee")
    assert data.inventories()["val"].form == "class folders without a split: 0.2 of the images are val"
    (tmp_path / "runs/finetune").mkdir(parents=True)  # a folder that is no class
    with pytest.raises(DataError, match="no such folder"):
        folder_data(tmp_path).setup()


def test_images_that_are_stored_turned_are_refused_by_size_in_pascal_voc(
    tmp_path: Path, dataset: Dataset, coco_data: Builder
) -> None:
    root = write_voc(tmp_path / "voc", dataset)
    picture = dataset["val"][0]
    path = root / "JPEGImages" / picture.path.name
    path.unlink()
    with Image.open(picture.path) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(path)
    with pytest.raises(DataError, match="not to the EXIF orientation"):
        list(coco_data(root).val_dataloader())


def test_the_only_coco_file_in_the_root_lists_all_images(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    root = write_coco(tmp_path / "coco", joined(dataset), "cvat")
    (root / "annotations/instances_default.json").rename(root / "export.json")
    (root / "notes.json").write_text('{"categories": []}')
    sizes = {part: len(inventory.files) for part, inventory in coco_data(root).inventories().items()}
    assert sizes == {"train": 8, "val": 2}
    shutil.copy(root / "export.json", root / "again.json")
    with pytest.raises(DataError, match=r"one COCO file for all images, got again\.json and export\.json"):
        coco_data(root).setup()


def test_images_that_are_turned_by_exif_are_counted(
    tmp_path: Path, dataset: Dataset, coco_data: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_yolo(tmp_path / "yolo", dataset)
    coco_data(root).setup()
    assert "EXIF" not in caplog.text
    path = root / "images/train" / dataset["train"][0].path.name
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.load()
    path.unlink()
    image.save(path, exif=exif)
    coco_data(root).setup()
    assert f"1 images are turned by their EXIF orientation, first images/train/{path.name}" in caplog.text


def test_a_dataset_below_the_root_is_named(tmp_path: Path, dataset: Dataset, coco_data: Builder) -> None:
    folder = write_voc(tmp_path / "VOCdevkit/VOC2007", dataset)
    with pytest.raises(DataError, match=f"there is a dataset below it: data.root={folder}"):
        coco_data(tmp_path).setup()


def test_a_file_of_names_may_have_any_name_beside_other_files(
    tmp_path: Path, dataset: Dataset, coco_data: Builder
) -> None:
    root = write_yolo(tmp_path / "yolo", dataset)
    (root / "data.yaml").rename(root / "insects.yaml")
    (root / "compose.yaml").write_text("a: &a [1]\nb: *a\n")
    assert coco_data(root).class_names == ("ant", "bee")
