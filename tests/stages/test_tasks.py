"""Every downstream task from files to scores: one arch and the supernet, embedded data and real data."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from nas_transfer.runs import Result, read_analysis
from nas_transfer.stages.finetune import run as train
from nas_transfer.stages.profile import run as profile
from nas_transfer.tasks.pose import PoseTask
from tests.conftest import sample_data

TINY = {
    "shapes_insseg": ["task.build.detector.min_size=64", "task.build.detector.max_size=80", "data.draw.image_size=64"],
    "shapes_pose": ["data.draw.image_size=96"],
    "shapes_seg": ["task.build.evaluation.keep_predictions=true"],
}
CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
CITYSCAPES_IDS = [23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 25, 0]  # of CamVid's classes, the last one void


def run(folder: Path, *overrides: str) -> Result:
    """Train in this process, as the command line does in its own."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(
            "config",
            [f"data.root={folder}/data", "trainer.enable_progress_bar=false", "num_threads=1", "seed=1", *overrides],
        )
    found = train(cfg, folder)
    assert found is not None
    return found


def tiny(folder: Path, task: str, *overrides: str) -> Result:
    sizes = ["data.draw.num_train=24", "data.draw.num_val=6", "data.batch_size=4", "calibration_images=8"]
    return run(folder, f"task={task}", *sizes, *TINY[task], *overrides)


def score(
    truth: COCO, predictions: Path, kind: str, sigmas: list[float] | None = None, category: int | None = None
) -> np.ndarray:
    """pycocotools called directly on a written file."""
    evaluation = COCOeval(truth, truth.loadRes(str(predictions)), kind)
    if sigmas is not None:
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
    if category is not None:
        evaluation.params.catIds = [category]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.mark.nightly
def test_box_and_mask_scores_are_pycocotools_on_the_written_predictions(tmp_path: Path) -> None:
    metrics = tiny(tmp_path, "shapes_insseg", "arch=max", "trainer.max_epochs=40", "task.recipe.lr=0.003").metrics
    truth = COCO(str(next((tmp_path / "data/annotations").glob("instances_val*.json"))))
    for file, kind, suffix in (("predictions", "bbox", ""), ("predictions_segm", "segm", "_segm")):
        statistics = score(truth, tmp_path / f"{file}.json", kind)
        for name, place in (("map", 0), ("map_50", 1), ("map_75", 2), ("mar_100", 8)):
            assert metrics[f"{name}{suffix}"] == pytest.approx(statistics[place], abs=1e-6)
    assert metrics["mar_100"] > 0
    assert metrics["mar_100_segm"] > 0
    analysis = read_analysis(tmp_path)
    assert analysis is not None
    for file, kind, suffix in (("predictions", "bbox", ""), ("predictions_segm", "segm", "_segm")):
        for one, category in zip(analysis.classes, sorted(truth.cats), strict=True):
            assert one.name == truth.cats[category]["name"]
            alone = score(truth, tmp_path / f"{file}.json", kind, category=category)
            assert one.scores.get(f"map{suffix}", -1) == pytest.approx(alone[0], abs=1e-6)
    assert {path.name for path in (tmp_path / "analysis").iterdir()} >= {f"worst_{k}.jpg" for k in range(1, 4)}
    assert {one.file for one in analysis.worst} <= {image["file_name"] for image in truth.dataset["images"]}


@pytest.mark.slow
def test_keypoint_scores_are_pycocotools_on_the_written_predictions(tmp_path: Path) -> None:
    result = tiny(tmp_path, "shapes_pose", "arch=max", "data.batch_size=8")
    truth = COCO(str(next((tmp_path / "data/annotations").glob("person_keypoints_val*.json"))))
    # head, shoulders, elbows, wrists, hips, knees, ankles
    sigmas = [0.079, *np.repeat([0.079, 0.072, 0.062, 0.107, 0.087, 0.089], 2)]
    statistics = score(truth, tmp_path / "predictions.json", "keypoints", sigmas)
    for name, place in (("ap", 0), ("ap_50", 1), ("ap_75", 2), ("ar", 5)):
        assert result.metrics[name] == pytest.approx(statistics[place], abs=1e-6)
    assert result.metrics["ap"] > 0
    assert result.costs.classes_are == "keypoints"
    assert result.kind == PoseTask.kind
    analysis = read_analysis(tmp_path)
    assert analysis is not None
    assert len(analysis.classes) == 13
    labelled = sum(np.asarray(person["keypoints"]).reshape(-1, 3)[:, 2] > 0 for person in truth.anns.values())
    assert [one.count for one in analysis.classes] == labelled.tolist()
    assert analysis.precision_recall is not None
    assert np.mean(analysis.precision_recall.mean) == pytest.approx(statistics[1], abs=1e-4)


@pytest.mark.slow
def test_region_scores_are_a_count_over_the_written_predictions(tmp_path: Path) -> None:
    metrics = tiny(tmp_path, "shapes_seg", "arch=max", "trainer.max_epochs=5").metrics
    records = json.loads((tmp_path / "predictions.json").read_text())
    labels = sorted((tmp_path / "data/gtFine/val").rglob("*_labelIds.png"))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        data = compose("config", ["task=shapes_seg"]).data
    intersections, unions = np.zeros(7), np.zeros(7)
    for image_id, path in enumerate(labels):
        ids = np.asarray(Image.open(path))
        own = [record for record in records if record["image_id"] == image_id]
        found = sum(rle.decode(record["segmentation"]).astype(int) * record["category_id"] for record in own) - 1
        scored = np.isin(ids, list(data.class_ids))
        for label, class_id in enumerate(data.class_ids):
            intersections[label] += ((ids == class_id) & (found == label)).sum()
            unions[label] += (((ids == class_id) | (found == label)) & scored).sum()
    assert metrics["miou"] == pytest.approx((intersections / unions).mean(), abs=1e-6)
    for label, name in enumerate(data.class_names):
        assert metrics[f"iou/{name}"] == pytest.approx(intersections[label] / unions[label], abs=1e-6)
    analysis = read_analysis(tmp_path)
    assert analysis is not None
    assert analysis.confusion is not None
    assert {one.name: one.scores["iou"] for one in analysis.classes if one.scores} == {
        name.removeprefix("iou/"): value for name, value in metrics.items() if "/" in name
    }
    assert np.trace(analysis.confusion.counts) == intersections.sum()
    assert {tmp_path / "data" / one.file for one in analysis.worst} == set(
        (tmp_path / "data").glob("leftImg8bit/val/*/*")
    )


@pytest.mark.slow
@pytest.mark.parametrize("task", TINY)
def test_a_supernet_of_every_task_is_trained_scored_and_hands_its_weights_on(tmp_path: Path, task: str) -> None:
    share = 0.5  # of imitation: a teacher's pyramid, maps or labels
    steps = ["trainer.max_steps=2", f"task.sampling.distillation={share}"]
    supernet = tiny(tmp_path / "supernet", task, "arch=supernet", *steps, f"data.root={tmp_path}/data")
    assert supernet.arch is None
    assert supernet.passes_per_image == 4
    key = supernet.score_key
    assert {f"max/{key}", f"min/{key}"} <= set(supernet.metrics)
    weights = [f"weights={tmp_path}/supernet", "arch=min", "trainer.max_steps=1", f"data.root={tmp_path}/data"]
    tuned = tiny(tmp_path / "tuned", task, *weights)
    assert tuned.score_key == key
    assert 0 <= tuned.metrics[key] <= 1


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("shapes_seg", "head=lraspp"), ("shapes_pose", "head=simcc"), ("shapes_det", "detector=fcos"),
        ("shapes_det", "detector=ssdlite"),
    ],
)  # fmt: skip
def test_a_light_head_learns_from_drawn_images_and_is_scored(tmp_path: Path, task: str, head: str) -> None:
    sizes = ["data.draw.num_train=24", "data.draw.num_val=4", "data.batch_size=8", "calibration_images=8"]
    result = run(
        tmp_path, f"task={task}", head, *sizes, "arch=max", "trainer.max_epochs=10", "trainer.log_every_n_steps=1",
        "task.recipe.lr=0.003", "sample_predictions=0",
    )  # fmt: skip
    assert 0 <= result.metrics[result.score_key] <= 1
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


@pytest.mark.parametrize("task", ["shapes_cls", "shapes_det", *TINY])
def test_a_preview_shows_training_samples_with_their_annotations(tmp_path: Path, task: str) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        draw = ["data.draw.num_train=12", "data.draw.num_val=3", f"data.root={tmp_path}/data", "data.batch_size=4"]
        cfg = compose("config", ["stage=profile", f"task={task}", "preview=4", *draw])
    profile(cfg, tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "preview.png"))
    assert sheet.shape[1] == 2 * 328 + 8
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000


def cityscapes_of_camvid(root: Path) -> None:
    """A few of CamVid's images in Cityscapes' folders, with its label ids."""
    camvid = sample_data("camvid")
    lookup = np.asarray(CITYSCAPES_IDS, dtype=np.uint8)
    for part, count in (("train", 6), ("val", 3)):
        lines = (camvid / f"{part}.txt").read_text().splitlines()[:count]
        for folder in ("leftImg8bit", "gtFine"):
            (root / folder / part / "cambridge").mkdir(parents=True)
        for number, line in enumerate(lines):
            image, labels = line.split()
            stem = f"cambridge_{number:06d}_000019"
            Image.open(camvid / image).save(root / f"leftImg8bit/{part}/cambridge/{stem}_leftImg8bit.png")
            ids = Image.fromarray(lookup[np.asarray(Image.open(camvid / labels))])
            ids.save(root / f"gtFine/{part}/cambridge/{stem}_gtFine_labelIds.png")


def real_arguments(name: str, folder: Path) -> list[str]:
    small = ["min_size=128", "max_size=160", "proposals_test=100", "detections=10"]
    small = [f"task.build.detector.{size}" for size in small]
    crop = ["data.crop_size=[128,128]", "data.batch_size=2"]
    if name == "cityscapes":
        cityscapes_of_camvid(folder / "data")
        return ["task=cityscapes_seg", *crop]
    root = f"data.root={sample_data(name.partition(' ')[0])}"
    joints = [f"data.sources.{p}_annotations=annotations/person_keypoints_{p}_coco17.json" for p in ("train", "val")]
    names = f"data.class_names=[{','.join(CAMVID)}]"
    pose = ["task=coco_pose", "data.input_size=[64,64]", "data.batch_size=8", root]
    return {
        "coco_tiny": ["task=coco_insseg", *small, root],
        "balloon": ["task=coco_insseg", *small, root],
        "coco_tiny persons": pose,
        "lspet": pose,
        "lspet coco17": [*pose, *joints],
        "camvid": ["task=cityscapes_seg", "data=image_labels", names, "data.ignore_ids=[11]", *crop, root],
    }[name]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "classes", "metrics"),
    [
        ("coco_tiny", 80, {"map", "map_segm"}),
        ("balloon", 1, {"map_50", "map_50_segm"}),
        ("coco_tiny persons", 17, {"ap", "ar"}),
        ("lspet", 14, {"ap", "ap_50"}),
        ("lspet coco17", 17, {"ap", "ap_50"}),
        ("camvid", 11, {"miou", "iou/car"}),
        ("cityscapes", 19, {"miou", "iou/car", "pixel_accuracy"}),
    ],
)
def test_real_data_of_every_layout_is_trained_on_and_scored(
    tmp_path: Path, name: str, classes: int, metrics: set[str]
) -> None:
    found = run(tmp_path, *real_arguments(name, tmp_path), "arch=min", "trainer.max_steps=2")
    assert found.costs.num_classes == classes
    assert metrics <= set(found.metrics)
    assert found.score == found.metrics[found.score_key]
    shutil.rmtree(tmp_path)  # weights of the larger space: pytest would keep them
