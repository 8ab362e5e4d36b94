"""A dataset gives the same check, the same training and the same predictions, whatever the form of its annotations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from nas_transfer.runs import read_check
from nas_transfer.stages.check import run as check
from nas_transfer.stages.finetune import run as train
from nas_transfer.stages.predict import run as predict
from tests.conftest import sample_data
from tests.data.forms import FORMS, Dataset, coco_dataset, small_dataset, write_form, write_voc

SETTINGS = [
    "task=small_det", "weights=null", "arch=min", "trainer.max_steps=3", "data.batch_size=2", "num_threads=1",
    "task.build.detector.min_size=64", "task.build.detector.max_size=96", "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
]  # fmt: skip


def composed(root: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", [*SETTINGS, f"data.root={root}", *overrides])


def trained(root: Path, folder: Path) -> tuple[dict[str, torch.Tensor], str, list[Any]]:
    """The weights after a few steps, the logged values without times, and the predictions of val."""
    cfg = composed(root)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, folder / ".hydra/config.yaml")
    train(cfg, folder)
    content = torch.load(folder / "weights.pt", weights_only=True)
    weights = {f"{part}.{name}": value for part in ("body", "rest") for name, value in content[part].items()}
    lines = [line.split(",") for line in next(folder.rglob("metrics.csv")).read_text().splitlines()]
    kept = [number for number, name in enumerate(lines[0]) if "loss" in name or name == "step"]
    assert len(kept) > 1
    losses = "\n".join(",".join(line[number] for number in kept) for line in lines)
    return weights, losses, json.loads((folder / "predictions.json").read_text())


def checked(root: Path, folder: Path) -> dict[str, Any]:
    """What a check says of a dataset, without names of files and without times."""
    folder.mkdir()
    check(composed(root, "stage=check"), folder)
    result = read_check(folder)
    return {"parts": result.parts, "counts": result.counts, "problems": result.num_problems}


def predicted(run: Path, images: Path, folder: Path) -> list[Any]:
    folder.mkdir()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["stage=predict", f"weights={run}", f"images={images}", "num_threads=1"])
    predict(cfg, folder)
    content: list[Any] = json.loads((folder / "predictions.json").read_text())
    return content


@pytest.fixture(autouse=True)
def few_timed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_transfer.stages.check.MOST_STEPS", 2)


@pytest.fixture(params=["drawn", "balloon"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    return small_dataset(tmp_path / "pictures") if request.param == "drawn" else coco_dataset(sample_data("balloon"))


@pytest.mark.nightly
def test_forms_give_the_same_check_training_and_predictions(tmp_path: Path, dataset: Dataset) -> None:
    roots = {form: write_form(form, tmp_path / form, dataset) for form in FORMS}
    images = dataset["val"][0].path.parent
    checks = {form: checked(root, tmp_path / f"check_{form}") for form, root in roots.items()}
    runs = {form: trained(root, tmp_path / f"run_{form}") for form, root in roots.items()}
    weights, losses, results = runs["coco"]
    assert results
    for form in FORMS[1:]:
        assert checks[form] == checks["coco"]
        assert runs[form][1:] == (losses, results)
        assert runs[form][0].keys() == weights.keys()
        assert all(torch.equal(value, weights[name]) for name, value in runs[form][0].items())
    predictions = [predicted(tmp_path / f"run_{form}", images, tmp_path / f"predicted_{form}") for form in FORMS]
    assert predictions[0]
    assert predictions[1:] == predictions[:1] * 2


@pytest.mark.slow
def test_pascal_voc_without_a_split_is_trained_on_by_its_root_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", small_dataset(tmp_path / "pictures"), split=False)
    checked(root, tmp_path / "check")
    assert "form: Pascal VOC without a split: 0.2 of the images are val" in capsys.readouterr().out
    trained(root, tmp_path / "run")
