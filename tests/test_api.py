"""The Python API: stages run as from the command line, networks predict, fronts are read."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

import nas_transfer as nt
from nas_transfer.api import running
from nas_transfer.errors import ConfigError, DataError, NasTransferError, RunError
from nas_transfer.runs import Front, Trial
from nas_transfer.runs.costs import Costs
from tests.test_cli import Fork, forked

TINY = ["num_threads=1", "trainer.enable_progress_bar=false", "calibration_images=16", "sample_predictions=0"]


class ForkedCommand:
    """What `subprocess.Popen` gives for a command of the program, but forked: that saves five seconds."""

    def __init__(self, command: list[str], *, stdout: int, stderr: IO[str], text: bool, env: dict[str, str]) -> None:
        assert command[:3] == [sys.executable, "-m", "nas_transfer"]
        done = Fork(Path.cwd(), *command[3:]).wait()
        stderr.write(done.stderr)
        self.stdout, self.code = io.StringIO(done.stdout), done.returncode

    def wait(self) -> int:
        return self.code


@pytest.fixture
def fast_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stages run in a process that is forked from one that has imported torch."""
    monkeypatch.setattr(running.subprocess, "Popen", ForkedCommand)


def embedded(folder: Path, layout: str, size: int) -> list[str]:
    """Overrides for an embedded dataset of a few images below a folder."""
    draw = ["data.draw.num_train=24", "data.draw.num_val=6", f"data.draw.image_size={size}"]
    return [f"data.root={folder}/data", "data.batch_size=4", *draw, f"runs={folder}/runs", *TINY]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, nas_transfer as nt; assert 'run' in dir(nt); nt.run; nt.front; nt.Run\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    code = "import sys, nas_transfer; sys.exit(bool({'numpy', 'hydra', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        nt.runn  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.slow
@pytest.mark.usefixtures("fast_commands")
def test_a_stage_runs_as_from_the_command_line_and_gives_its_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = nt.run("stage=profile", "task=imagenet", "supernet=bignas", "arch=attentivenas_a0", f"runs={tmp_path}")
    assert run.folder.parent == tmp_path / "profile/imagenet"
    assert round(run.result.costs.macs["total"] / 1e6, 2) == 203.39
    assert run.result.costs.input_size == (192, 192)
    assert json.loads((run.folder / "result.json").read_text())["stage"] == "profile"
    assert "203.39" in capfd.readouterr().out
    with pytest.raises(RunError, match=r"front\.json does not exist"):
        _ = run.front


@pytest.mark.slow
@pytest.mark.usefixtures("fast_commands")
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["--multirun", "stage=profile"], "flag --multirun"),
        (["stage=profil"], "did you mean 'profile'"),
        (["stage=profile", "task=imagenet", "arch=supernet"], "arch=supernet"),
        (["trainer.max_stps=3"], r"trainer\.max_steps"),
    ],
)
def test_what_the_command_line_refuses_is_raised_as_one_sentence(
    tmp_path: Path, overrides: list[str], reason: str
) -> None:
    with pytest.raises(NasTransferError, match=reason) as caught:
        nt.run(*overrides, f"runs={tmp_path}", quiet=True)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_stage_that_fails_quotes_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty_stage.py").write_text("def run(cfg, folder):\n    return 1 / 0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        nt.run("stage.run=faulty_stage.run", f"runs={tmp_path}", quiet=True)


def test_a_front_is_a_table_of_plain_dicts(tmp_path: Path) -> None:
    costs = Costs({"body": 5, "total": 7}, {"total": 3}, 3, (96, 120), 6)
    trials = (
        Trial(4, {"space": "tiny"}, {"score": 0.5, "macs": 7.0}, costs=costs, file="archs/trial_4.yaml"),
        Trial(2, {"space": "tiny"}, {"score": 0.25, "macs": 3.0}, file="archs/trial_2.yaml"),
    )
    Front({"score": "maximize", "macs": "minimize"}, trials, picked=2).write(tmp_path)
    front = nt.front(tmp_path)
    assert front.trials == trials
    assert front.rows() == [
        {
            "trial": 4, "picked": False, "score": 0.5, "macs": 7, "params": 3, "input_size": "96x120",
            "file": "archs/trial_4.yaml",
        },
        {"trial": 2, "picked": True, "score": 0.25, "macs": 3.0, "file": "archs/trial_2.yaml"},
    ]  # fmt: skip
    with pytest.raises(RunError, match=r"front\.json does not exist"):
        nt.front(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.usefixtures("fast_commands")
def test_a_detector_predicts_what_the_predict_stage_writes(tmp_path: Path) -> None:
    own = [*embedded(tmp_path, "coco", 96), "trainer.max_steps=3", "task.recipe.warmup_steps=1"]
    run = nt.run("stage=finetune", "task=shapes_det", "arch=max", *own, quiet=True)
    network = nt.load(run.folder)
    assert network.class_names == ("circle", "square", "triangle", "star", "cross", "ring")
    assert network.arch == run.result.arch
    assert network.costs == run.result.costs
    files = sorted((tmp_path / "data/val2017").glob("*.jpg"))
    predict = ["stage=predict", f"weights={run.folder}", f"images={tmp_path}/data/val2017", "num_threads=1"]
    forked(tmp_path, *predict, "name=mine")
    rows = json.loads((tmp_path / "runs/predict/shapes_det/mine/predictions.json").read_text())
    predictions = network.predict(list(files))
    mine = [row for prediction in predictions for row in prediction.rows]
    assert len(mine) == len(rows) > 0
    for row, theirs in zip(mine, rows, strict=True):
        assert row["image_id"] == theirs["image_id"]
        np.testing.assert_allclose(row["bbox"], theirs["bbox"], rtol=1e-4, atol=1e-3)
        assert row["score"] == pytest.approx(theirs["score"], abs=1e-5)
    pixels = np.asarray(Image.open(files[0]).convert("RGB"))
    for image in (str(files[0]), Image.open(files[0]), pixels):
        assert network.predict(image).rows == predictions[0].rows
    assert predictions[0].draw().size == (640, 640)
    with pytest.raises(DataError, match="uint8"):
        network.predict(pixels.astype(np.float32))


@pytest.mark.nightly
def test_a_classifier_resizes_what_it_is_given_and_exports_itself(tmp_path: Path) -> None:
    own = [*embedded(tmp_path, "image_folder", 96), "trainer.max_steps=2", "task.recipe.warmup_steps=1"]
    forked(tmp_path, "stage=pretrain", "task=shapes_cls", "arch=supernet", "name=mine", *own)
    run = tmp_path / "runs/pretrain/shapes_cls/mine"
    with pytest.raises(ConfigError, match="one arch"):
        nt.load(run, arch="supernet")
    network = nt.load(run, arch="min")
    file = next((tmp_path / "data/val/star").glob("*.jpg"))
    from_file, from_pixels = network.predict(file), network.predict(np.asarray(Image.open(file).convert("RGB")))
    assert from_file.rows == from_pixels.rows
    assert {from_file.rows[0][f"class_{number}"] for number in range(1, 6)} <= set(network.class_names)
    exported = network.export(tmp_path / "exported")
    assert exported.folder == tmp_path / "exported"
    assert exported.result.arch == network.arch
    assert exported.result.export is not None
    assert max(exported.result.export.difference.values()) < 1e-4
    assert (tmp_path / "exported/model.onnx").is_file()


def test_a_folder_of_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.yaml does not exist"):
        nt.load(tmp_path)
