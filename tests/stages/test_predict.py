"""stage=predict says of images what the task says of the same images in an evaluation."""

import csv
import json
import sys
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
from nas_transfer.data.drawing import GAP, TILE, draw_persons, fit
from nas_transfer.data.frames import read_frames
from nas_transfer.data.sampler import SampleKey
from nas_transfer.errors import ConfigError, DataError
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.evaluation import load_trained
from nas_transfer.stages.common.image_inputs import Frames, ImageFiles, find_inputs
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import EvaluateConfig
from nas_transfer.stages.evaluate import run as evaluate
from nas_transfer.stages.finetune import run as train
from nas_transfer.stages.predict import run as predict
from nas_transfer.tasks.prediction import Prediction
from nas_transfer.tasks.task import Task
from tests.conftest import nightly_but
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
@pytest.mark.parametrize("task", nightly_but(TINY, "shapes_cls", "shapes_det"))
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
def test_rows_name_their_class_and_pictures_of_a_weak_network_show_its_best_guesses_paler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, "shapes_det")
    images = val_images(tmp_path)
    target = predicted(tmp_path, images, "score_threshold=1.0")
    truth = json.loads(next((tmp_path / "data/annotations").glob("instances_val*.json")).read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    rows = json.loads((target / "predictions.json").read_text())
    assert all(row["category_name"] == names[row["category_id"]] for row in rows)
    printed = capsys.readouterr().out
    assert f"{target / 'predictions.json'}: {len(rows)} rows" in printed
    count = len({row["file_name"] for row in rows})
    assert f"{target / 'overlays'}: {len(image_names(tmp_path, 'instances'))} pictures" in printed
    assert f"{count} of them paler: best guesses below it" in printed
    network, data, (sample, _) = val_samples(tmp_path, "shapes_det")
    with torch.inference_mode():
        prediction = network.predict_image(data.collate([sample]), 0, data.vocabulary)
    plain = fit(sample["image"])[0]
    guess = prediction.draw(sample["image"], 1.0, TILE)
    assert guess.guessed
    best = prediction.draw(sample["image"], sorted(row["score"] for row in rows_of(prediction))[-5], TILE)
    assert not best.guessed
    assert np.array_equal(np.asarray(guess.image), np.asarray(Image.blend(plain, best.image, 0.5)))


def rows_of(prediction: Prediction) -> list[Any]:
    return list(prediction.rows["predictions.json"])


def test_keypoints_of_a_weak_network_are_drawn_paler() -> None:
    image = torch.full((3, 40, 40), 255, dtype=torch.uint8)
    points = torch.tensor([[10.0, 10.0], [30.0, 30.0]])
    sure, guess, nothing = (
        np.asarray(draw_persons(image, persons, [seen] * len(persons), [(0, 1)], []).image).astype(int)
        for persons, seen in (([points], [True, True]), ([points], [False, False]), ([], [True, True]))
    )
    np.testing.assert_allclose(guess, (sure + nothing) / 2, atol=1)
    half = draw_persons(image, [points], [[True, False]], [(0, 1)], [])
    assert not half.guessed


def test_a_pattern_names_images_relative_to_its_folder(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.txt", "deep/d.png", "run/predictions/e.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    own = tmp_path / "in/run"
    found = find_inputs(f"{tmp_path}/in/**/*", own, 1, None)
    assert found == ImageFiles(tmp_path / "in", ("a.png", "b.jpg", "deep/d.png"))
    assert find_inputs(f"{tmp_path}/in/?.png", own, 1, None) == ImageFiles(tmp_path / "in", ("a.png",))
    for images, message in (
        (f"{tmp_path}/in/*.gif", "which matches no image"),
        (f"{tmp_path}/nowhere", "nowhere, which does not exist"),
        ("", "got nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_inputs(images, own, 1, None)


def test_a_number_is_a_camera_unless_there_is_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_inputs(0, tmp_path / "run", 2, None) == Frames(0, 2, 100)
    (tmp_path / "0").mkdir()
    (tmp_path / "0/a.png").touch()
    assert find_inputs(0, tmp_path / "run", 1, None) == ImageFiles(Path("0"), ("a.png",))


def test_a_video_needs_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").touch()
    found = find_inputs(str(tmp_path / "a.mp4"), tmp_path / "run", 1, None)
    assert found == Frames(tmp_path / "a.mp4", 1, None)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"the video .*a\.mp4 needs OpenCV, .* pip install 'nas-transfer\[video\]'"):
        next(read_frames(tmp_path / "a.mp4"))


def test_frames_are_those_of_the_video_in_its_order(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 24))
    for k in range(6):
        writer.write(np.full((24, 32, 3), (0, 0, 40 * k), dtype=np.uint8))  # blue, green, red
    writer.release()
    frames = list(read_frames(path, step=2, most=2))
    assert [number for number, _ in frames] == [0, 2]
    for number, frame in frames:
        assert frame.shape == (3, 24, 32)
        assert abs(float(frame[0].float().mean()) - 40 * number) < 8
        assert float(frame[2].float().mean()) < 8
    path.write_bytes(b"no video")
    with pytest.raises(DataError, match=r"a\.avi cannot be opened|a\.avi has no frame"):
        list(read_frames(path))


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
        assert (target / "labels.csv").read_text().splitlines()[:2] == ["id,name", "7,road"]
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
    keypoints = truth["categories"][0]["keypoints"]
    assert all(row["keypoint_names"] == keypoints and len(row["keypoints"]) == 3 * len(keypoints) for row in rows)
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


def test_a_run_from_before_val_could_be_cut_from_train_predicts(tmp_path: Path) -> None:
    run = trained(tmp_path, "shapes_cls")
    cfg = OmegaConf.load(run / ".hydra/config.yaml")
    del cfg.data.split["val_fraction"]
    OmegaConf.save(cfg, run / ".hydra/config.yaml")
    assert (predicted(tmp_path, val_images(tmp_path)) / "predictions.csv").is_file()


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
