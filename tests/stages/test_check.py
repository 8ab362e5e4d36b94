"""stage=check: planted defects are found by name, and the counts are those of the annotation files."""

import json
import shutil
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.data.split import search_split
from nas_transfer.errors import ConfigError, WeightsError
from nas_transfer.paths import conf_dir
from nas_transfer.runs import read_check
from nas_transfer.stages.check import ENOUGH_SECONDS, MOST_STEPS, WARMUP_STEPS, StepTimes, run
from nas_transfer.stages.common.build import make_data
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import CheckConfig


def config(folder: Path, task: str, *overrides: str) -> DictConfig:
    """A check of a tiny dataset, which is drawn."""
    sizes = ["data.draw.num_train=10", "data.draw.num_val=5", "data.batch_size=4", "num_threads=1"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["stage=check", f"task={task}", f"data.root={folder}/data", *sizes, *overrides])
    config = read_config(cfg, CheckConfig)
    make_data(config.data, config.supernet.build().space.largest(), config.supernet.build().preprocessing)
    return cfg


def checked(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    run(cfg, folder)
    content = json.loads((folder / "check.json").read_text())
    assert json.loads(json.dumps(asdict(read_check(folder)))).items() <= content.items()
    return content


def found(content: dict[str, Any], kind: str) -> list[dict[str, str]]:
    return [finding for finding in content["findings"] if finding["kind"] == kind]


def annotations(folder: Path, part: str) -> Path:
    return next((folder / "data/annotations").glob(f"instances_{part}*.json"))


@pytest.mark.slow
def test_counts_are_those_of_the_annotation_files(tmp_path: Path) -> None:
    content = checked(config(tmp_path, "shapes_det"), tmp_path)
    for part in ("train", "val"):
        truth = json.loads(annotations(tmp_path, part).read_text())
        summary, records = content["parts"][part], truth["annotations"]
        assert summary["images"] == len(truth["images"])
        assert summary["width"] == [f([image["width"] for image in truth["images"]]) for f in (min, np.median, max)]
        names = {category["id"]: category["name"] for category in truth["categories"]}
        count = Counter(names[record["category_id"]] for record in records)
        images = Counter(name for _, name in {(r["image_id"], names[r["category_id"]]) for r in records})
        assert summary["classes"] == {n: {"images": images[n], "count": count[n]} for n in names.values()}
        assert summary["objects"]["count"] == len(records)
        assert summary["objects"]["small"] == sum(record["area"] < 32**2 for record in records)
    training = content["training"]
    assert training["steps"] == 4  # 2 epochs of 10 images in batches of 4
    assert training["step_seconds"] > 0
    assert 2 <= training["steps_timed"] <= MOST_STEPS
    assert 0.1 < training["peak_memory_gb"] < 20


def test_planted_defects_of_a_detection_set_are_found_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = config(tmp_path, "shapes_det")
    files = {part: sorted(tmp_path.glob(f"data/{part}*/*")) for part in ("train", "val")}
    truncated, missing, copied = files["train"][0], files["train"][1], files["train"][2]
    truncated.write_bytes(truncated.read_bytes()[:100])
    missing.unlink()
    path = annotations(tmp_path, "train")
    content = json.loads(path.read_text())
    content["categories"].append({"id": 99, "name": "unicorn"})
    images = {image["file_name"]: image["id"] for image in content["images"]}
    box = {"image_id": images[copied.name], "category_id": content["categories"][0]["id"], "iscrowd": 0, "area": 9.0}
    content["annotations"] += [
        box | {"id": 7001, "bbox": [5, 5, 2, 30]},
        box | {"id": 7002, "bbox": [60, 60, 500, 20]},
        box | {"id": 7003, "bbox": [10, 10, 0, 5]},
        box | {"id": 7004, "bbox": [10, 10, 5, 5], "category_id": 1234},
    ]
    path.write_text(json.dumps(content))
    val = json.loads(annotations(tmp_path, "val").read_text())
    val["categories"].append({"id": 99, "name": "unicorn"})
    twin = next(image for image in val["images"] if image["file_name"] == files["val"][0].name)
    twin["width"], twin["height"] = Image.open(copied).size
    val["annotations"] = [record for record in val["annotations"] if record["image_id"] != twin["id"]]
    annotations(tmp_path, "val").write_text(json.dumps(val))
    shutil.copy(copied, files["val"][0])

    result = checked(cfg, tmp_path)
    assert {finding["name"] for finding in found(result, "broken")} == {truncated.name, missing.name}
    assert [finding["text"].split(" of /")[0] for finding in found(result, "refused")] == [
        "the box of annotation 7003",
        "the category_id of annotation 7004",
    ]
    assert {(f["part"], f["name"]) for f in found(result, "empty class")} >= {("train", "unicorn"), ("val", "unicorn")}
    assert [f["text"] for f in found(result, "leak")] == [f"{files['val'][0].name} of val is {copied.name} of train"]
    assert [f["text"] for f in found(result, "tiny")] == [
        f"{copied.name}: box [5, 5, 2, 30] is {2 * scale(copied):.1f}x{30 * scale(copied):.1f} pixels at the input size"
    ]
    assert [f["name"] for f in found(result, "outside")] == [copied.name]
    assert result["parts"]["val"]["objects"]["images_without"] == 1
    assert "got 2 broken" in result["not_timed"]
    printed = capsys.readouterr().out
    for name in (truncated.name, missing.name, files["val"][0].name, "unicorn", "annotation 7003"):
        assert name in printed
    assert f"{result['num_problems']} problems" in printed


@pytest.mark.slow
def test_images_of_the_search_split_that_are_trained_on_are_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_transfer.data.duplicates.MOST_HEADERS", 1)  # as of a large dataset
    cfg = config(tmp_path, "shapes_cls")
    files = sorted(tmp_path.glob("data/train/*/*.jpg"))
    search = sorted(search_split(len(files), cfg.data.split.search_fraction, cfg.seed)[1].tolist())
    first, other = files[search[0]], next(file for k, file in enumerate(files) if k not in search)
    with Image.open(other) as image:
        image.save(first.with_suffix(".png"))  # the same pixels in another file
    first.unlink()
    result = checked(cfg, tmp_path)
    (leak,) = found(result, "leak")
    assert (leak["part"], leak["name"]) == ("search", str(first.with_suffix(".png")))
    assert leak["text"].endswith(f"of search is {other} of train")
    assert result["num_problems"] >= 1
    assert f"in all 1 of the {len(search)} images of search ({1 / len(search):.1%})" in capsys.readouterr().out

    monkeypatch.undo()
    assert found(checked(cfg, tmp_path), "leak") == []  # the pixels: on one side of the split

    first.with_suffix(".png").unlink()
    shutil.copy(other, first)  # the same file: on one side of the split
    assert found(checked(cfg, tmp_path), "leak") == []


def scale(path: Path) -> float:
    """Of shapes_det's detector: the short side to 96 pixels, the long one to 120 at most."""
    size = Image.open(path).size
    return min(96 / min(size), 120 / max(size))


@pytest.mark.slow
def test_mended_data_is_looked_at_anew(tmp_path: Path) -> None:
    cfg = config(tmp_path, "shapes_cls")
    image = next(tmp_path.glob("data/train/*/*"))
    sound = image.read_bytes()
    image.write_bytes(sound[:50])
    assert [finding["name"] for finding in found(checked(cfg, tmp_path), "broken")] == [str(image)]
    image.write_bytes(sound)
    content = checked(cfg, tmp_path)
    assert found(content, "broken") == []
    folders = {folder.name: len(list(folder.iterdir())) for folder in tmp_path.glob("data/train/*")}
    assert {name: entry["count"] for name, entry in content["parts"]["train"]["classes"].items()} == folders


def test_a_recipe_that_training_refuses_does_not_cost_the_reading(tmp_path: Path) -> None:
    content = checked(config(tmp_path, "shapes_seg", "data.batch_size=1"), tmp_path)
    assert content["parts"]["train"]["images"] == 10
    assert "batch" in content["not_timed"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of\nmemory"), RuntimeError("out of memory"),
                                   WeightsError("out of memory")])  # fmt: skip
def test_a_training_that_fails_does_not_cost_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pl.Trainer, "fit", fail)
    content = checked(config(tmp_path, "shapes_cls"), tmp_path)
    assert content["parts"]["train"]["images"] == 10
    assert (content["training"], content["not_timed"]) == (None, "out of memory")
    assert "training was not timed: out of memory" in capsys.readouterr().out


def test_a_run_without_a_length_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path, "shapes_cls")
    cfg.trainer.max_epochs = cfg.trainer.max_steps = None
    monkeypatch.setattr("nas_transfer.stages.check.see_all", lambda *_: pytest.fail("images were read"))
    with pytest.raises(ConfigError, match=r"trainer\.max_steps or trainer\.max_epochs"):
        run(cfg, tmp_path)


@pytest.mark.slow
def test_pixel_shares_are_a_count_over_the_label_images(tmp_path: Path) -> None:
    cfg = config(tmp_path, "shapes_seg")
    content = checked(cfg, tmp_path)
    paths = sorted((tmp_path / "data/gtFine/train").rglob("*_labelIds.png"))
    ids = np.stack([np.asarray(Image.open(path)) for path in paths])
    for name, class_id in zip(cfg.data.class_names, cfg.data.class_ids, strict=True):
        entry = content["parts"]["train"]["classes"][name]
        assert entry["pixel_share"] == pytest.approx((ids == class_id).mean())
        assert entry["images"] == (ids == class_id).any((1, 2)).sum()
    assert content["parts"]["train"]["ignored_share"] == pytest.approx(1 - np.isin(ids, cfg.data.class_ids).mean())


def test_keypoints_are_counted_by_person_and_by_name(tmp_path: Path) -> None:
    content = checked(config(tmp_path, "shapes_pose"), tmp_path)
    truth = json.loads(next((tmp_path / "data/annotations").glob("person_keypoints_train*.json")).read_text())
    labelled = np.asarray([record["keypoints"][2::3] for record in truth["annotations"] if not record["iscrowd"]]) > 0
    labelled = labelled[labelled.any(1)]
    summary = content["parts"]["train"]
    names = truth["categories"][0]["keypoints"]
    counts = [entry["count"] for entry in summary["classes"].values()]
    assert list(summary["classes"]) == names
    assert counts == labelled.sum(0).tolist()
    assert summary["objects"]["count"] == len(labelled)
    assert summary["objects"]["keypoints_per_person"][1] == np.median(labelled.sum(1))


def test_steps_are_timed_after_the_first_ones_until_that_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times = [0.0], StepTimes()
    trainer: Any = SimpleNamespace(global_step=0, should_stop=False)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    lengths = iter([30.0] * WARMUP_STEPS + [4.0, 9.0, 4.0, 4.0])
    while not trainer.should_stop:
        clock[0] += next(lengths)
        times.on_train_batch_end(trainer)  # a batch that ends no step
        trainer.global_step += 1
        times.on_train_batch_end(trainer)
    assert times.seconds == [4.0, 9.0, 4.0]
    assert sum(times.seconds) >= ENOUGH_SECONDS > 4 + 9
