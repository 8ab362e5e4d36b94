"""stage=predict says of images what the task says of the same images in an evaluation."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pycocotools import mask as rle

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.data.drawing import GAP, TILE
from nas_transfer.data.sampler import SampleKey
from nas_transfer.errors import ConfigError, DataError
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.evaluation import load_trained
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import EvaluateConfig
from nas_transfer.stages.evaluate import run as evaluate
from nas_transfer.stages.finetune import run as train
from nas_transfer.stages.predict import run as predict
from nas_transfer.tasks.task import Task
from tests.test_cli import forked, sentence

TINY = {
    "shapes_cls": ["trainer.max_steps=2"],
    "shapes_det": ["trainer.max_steps=3"],  # hardly trained: many boxes
    "shapes_insseg": [
        "task.build.detector.min_size=64", "task.build.detector.max_size=80", "data.draw.image_size=64",
        "trainer.max_steps=3",
    ],
    "shapes_pose": ["data.draw.image_size=96", "trainer.max_steps=4"],
    "shapes_seg": ["task.build.evaluation.keep_predictions=true", "trainer.max_epochs=3"],
}  # fmt: skip


def trained(folder: Path, task: str, *overrides: str) -> Path:
    """A finished run's folder, with its configuration as the command line leaves it."""
    sizes = ["data.draw.num_train=16", "data.draw.num_val=6", "data.batch_size=4", "calibration_images=8", "seed=1"]
    quiet = ["trainer.enable_progress_bar=false", "num_threads=1", f"data.root={folder}/data"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [f"task={task}", *sizes, *quiet, *TINY[task], *overrides])
    run = folder / "run"
    (run / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, run / ".hydra" / "config.yaml")
    train(cfg, run)
    return run


def evaluated(folder: Path) -> Path:
    """The folder of an evaluation image by image: in a batch, a detector's images are padded to a common size."""
    cfg = OmegaConf.load(folder / "run/.hydra/config.yaml")
    assert isinstance(cfg, DictConfig)
    cfg.weights, cfg.data.batch_size = f"{folder}/run", 1
    target = folder / "evaluated"
    target.mkdir()
    evaluate(cfg, target)
    return target


def val_samples(folder: Path, task: str) -> tuple[Task, Any, list[Any]]:
    """The trained task, its data and the first and last sample of its validation split."""
    cfg = OmegaConf.load(folder / "run/.hydra/config.yaml")
    assert isinstance(cfg, DictConfig)
    cfg.weights = f"{folder}/run"
    network, data, _ = load_trained(read_config(cfg, EvaluateConfig))
    val = data.require_parts().val
    return network.eval(), data, [val[SampleKey(place, 0)] for place in (0, len(val) - 1)]


@pytest.mark.slow
@pytest.mark.parametrize("task", TINY)
def test_a_finished_run_shows_what_it_says_of_validation_images(tmp_path: Path, task: str) -> None:
    run = trained(tmp_path, task, "sample_predictions=2")
    network, data, samples = val_samples(tmp_path, task)
    sheets = [np.asarray(Image.open(path)).astype(float) for path in sorted((run / "sample_predictions").iterdir())]
    for sample, sheet in zip(samples, sheets, strict=True):
        annotated = data.draw_sample(sample).image
        with torch.inference_mode():
            prediction = network.predict_image(data.collate([data.in_own_frame(sample)]), 0, data.vocabulary)
        predicted = prediction.draw(sample["image"], 0.5, TILE).image
        assert sheet.shape[1] == 3 * GAP + 2 * TILE
        for left, picture in ((GAP, annotated), (2 * GAP + TILE, predicted)):
            found = sheet[GAP : GAP + picture.height, left : left + picture.width]
            assert np.abs(found - np.asarray(picture).astype(float)).mean() < 6  # JPEG's loss


def test_a_supernets_run_draws_nothing(tmp_path: Path) -> None:
    run = trained(tmp_path, "shapes_cls", "arch=supernet")
    assert not (run / "sample_predictions").exists()


def test_a_persons_keypoints_in_its_crop_are_those_in_the_image_moved_there(tmp_path: Path) -> None:
    trained(tmp_path, "shapes_pose")
    network, data, samples = val_samples(tmp_path, "shapes_pose")
    for sample in samples:
        with torch.inference_mode():
            predictions = [
                network.predict_image(data.collate([own]), 0, data.vocabulary).rows["predictions.json"]
                for own in (sample, data.in_own_frame(sample))
            ]
        whole, crop = (rows[0]["keypoints"] for rows in predictions)
        points = [np.asarray(own).reshape(-1, 3)[:, :2] for own in (whole, crop)]
        moved = points[1] @ sample["to_image"][:, :2].numpy().T + sample["to_image"][:, 2].numpy()
        np.testing.assert_allclose(points[0], moved, atol=1e-6)


def predicted(folder: Path, images: Path, *overrides: str) -> Path:
    """The folder of what the run says of the images; neither task nor data is named."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        arguments = [f"weights={folder}/run", f"images={images}", "num_threads=1", "calibration_images=8", *overrides]
        cfg = compose("config", ["stage=predict", *arguments])
    target = folder / "predicted"
    target.mkdir(exist_ok=True)
    (target / "run.json").touch()  # as the command line leaves it
    predict(cfg, target)
    return target


def val_images(folder: Path) -> Path:
    return next(path for path in (folder / "data").glob("val*") if path.is_dir())


def image_names(folder: Path, kind: str) -> dict[int, str]:
    truth = json.loads(next((folder / "data/annotations").glob(f"{kind}_val*.json")).read_text())
    return {image["id"]: image["file_name"] for image in truth["images"]}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["shapes_det", "shapes_insseg"])
def test_detections_are_those_of_the_evaluation(tmp_path: Path, task: str) -> None:
    trained(tmp_path, task)
    run = evaluated(tmp_path)
    target = predicted(tmp_path, val_images(tmp_path))
    names = image_names(tmp_path, "instances")
    expected = json.loads((run / "predictions.json").read_text())
    rows = json.loads((target / "predictions.json").read_text())
    assert len(rows) == len(expected) > 0
    for file_name in names.values():
        ours = sorted((r["score"], *r["bbox"], r["category_id"]) for r in rows if r["file_name"] == file_name)
        theirs = sorted(
            (r["score"], *r["bbox"], r["category_id"]) for r in expected if names[r["image_id"]] == file_name
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert {path.stem for path in (target / "overlays").iterdir()} == {Path(name).stem for name in names.values()}
    if task == "shapes_insseg":
        masks = [json.loads((place / "predictions_segm.json").read_text()) for place in (target, run)]
        areas = [sorted(int(rle.area(r["segmentation"])) for r in records) for records in masks]
        np.testing.assert_allclose(*areas, atol=1)


@pytest.mark.slow
def test_the_threshold_decides_what_is_drawn_but_not_what_is_written(tmp_path: Path) -> None:
    trained(tmp_path, "shapes_det")
    images = val_images(tmp_path)
    texts, pictures = [], []
    for threshold in (0.0, 1.0):
        target = predicted(tmp_path, images, f"score_threshold={threshold}")
        texts.append((target / "predictions.json").read_text())
        pictures.append([np.asarray(Image.open(path)) for path in sorted((target / "overlays").iterdir())])
    assert texts[0] == texts[1]
    assert any((first != second).any() for first, second in zip(*pictures, strict=True))


@pytest.mark.slow
def test_label_images_are_the_argmax_in_the_ids_of_the_data(tmp_path: Path) -> None:
    run = trained(tmp_path, "shapes_seg")
    images = tmp_path / "data/leftImg8bit/val"
    target = predicted(tmp_path, images)
    ids = np.asarray(OmegaConf.load(run / ".hydra/config.yaml").data.class_ids)
    records = json.loads((run / "predictions.json").read_text())
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        own = [record for record in records if record["image_id"] == number]
        labels = sum(rle.decode(r["segmentation"]).astype(int) * r["category_id"] for r in own) - 1
        found = np.asarray(Image.open(target / "labels" / path.relative_to(images)))
        assert (found == ids[labels]).all()
        with Image.open(target / "overlays" / path.relative_to(images).with_suffix(".jpg")) as overlay:
            width, height = Image.open(path).size
            assert overlay.height > round(overlay.width * height / width) + 8  # the legend


def test_a_class_table_has_the_likeliest_five(tmp_path: Path) -> None:
    trained(tmp_path, "shapes_cls")
    target = predicted(tmp_path, tmp_path / "data/val")
    rows = list(csv.DictReader((target / "predictions.csv").open()))
    assert len(rows) == len([path for path in (tmp_path / "data/val").rglob("*") if path.is_file()])
    names = {folder.name for folder in (tmp_path / "data/val").iterdir()}
    for row in rows:
        scores = [float(row[f"score_{place}"]) for place in range(1, 6)]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) <= 1 + 1e-6
        assert len({row[f"class_{place}"] for place in range(1, 6)} & names) == 5


@pytest.mark.slow
def test_poses_in_given_boxes_are_those_of_the_evaluation(tmp_path: Path) -> None:
    run = trained(tmp_path, "shapes_pose")
    names = image_names(tmp_path, "person_keypoints")
    numbers = {name: number for number, name in enumerate(sorted(names.values()), start=1)}
    truth = json.loads(next((tmp_path / "data/annotations").glob("person_keypoints_val*.json")).read_text())
    boxes = [
        {
            "image_id": numbers[names[record["image_id"]]], "category_id": record["category_id"],
            "bbox": record["bbox"], "score": 1,
        }
        for record in truth["annotations"] if record["num_keypoints"] and not record["iscrowd"]
    ]  # fmt: skip
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    target = predicted(tmp_path, val_images(tmp_path), f"boxes={tmp_path}/boxes.json")
    rows = json.loads((target / "predictions.json").read_text())
    expected = json.loads((run / "predictions.json").read_text())
    assert len(rows) > 0
    ours, theirs = (np.asarray([[r["score"], *r["keypoints"]] for r in found]) for found in (rows, expected))
    # One may be left out as a duplicate: its area is the box's here, the mask's there. All others are equal.
    distances = np.abs(ours[:, None] - theirs[None]).max(2)
    common = min(len(ours), len(theirs))
    assert abs(len(ours) - len(theirs)) <= 1 < common
    assert (distances.min(0) < 1e-3).sum() >= common - 1
    assert (distances.min(1) < 1e-3).sum() >= common - 1
    whole = json.loads((predicted(tmp_path, val_images(tmp_path)) / "predictions.json").read_text())
    assert sorted(row["file_name"] for row in whole) == sorted(names.values())


@pytest.mark.slow
def test_a_supernets_run_predicts_with_a_chosen_arch_and_leaves_broken_images_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, "shapes_det", "arch=supernet", "trainer.max_steps=1")
    images = tmp_path / "images"
    images.mkdir()
    sound = sorted(val_images(tmp_path).iterdir())[0]
    (images / "sound.jpg").write_bytes(sound.read_bytes())
    (images / "torn.jpg").write_bytes(sound.read_bytes()[:90])
    target = predicted(tmp_path, images, "arch=min")
    assert [path.name for path in (target / "overlays").iterdir()] == ["sound.jpg"]
    assert "torn.jpg" in capsys.readouterr().out
    assert (target / "predictions.json").is_file()
    (images / "sound.jpg").unlink()
    with pytest.raises(DataError, match=r"none of the 1 images of .* can be read: .*torn\.jpg"):
        predicted(tmp_path, images, "arch=min")
    assert not (target / "predictions.json").exists()
    with pytest.raises(ConfigError, match="arch=supernet"):
        predicted(tmp_path, images, "arch=supernet")


@pytest.mark.slow
def test_predictions_are_never_predicted_again(tmp_path: Path) -> None:
    trained(tmp_path, "shapes_cls")
    (tmp_path / "run/run.json").touch()
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    count = len(list((tmp_path / "data/train").glob("*/*.jpg")) + list((tmp_path / "data/val").glob("*/*.jpg")))
    for _ in range(2):
        target = predicted(tmp_path, tmp_path)
        assert len((target / "predictions.csv").read_text().splitlines()) == 1 + count
    with pytest.raises(ConfigError, match="images must lie outside of the folder"):
        predicted(tmp_path, target / "overlays")


@pytest.mark.slow
@pytest.mark.parametrize("given", ["", "nowhere"])
def test_no_images_are_refused(tmp_path: Path, given: str) -> None:
    done = forked(tmp_path, "stage=predict", "weights=x", f"images={given}", code=2)
    assert sentence(done).startswith("error: ")


def test_weights_without_a_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    with pytest.raises(ConfigError, match=r"\.hydra/config\.yaml"):
        predicted(tmp_path, tmp_path / "image.png")
