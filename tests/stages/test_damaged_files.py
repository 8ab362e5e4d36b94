"""Whatever happened to a file of a run: one sentence names it and the way out, or the run goes on without it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from nas_transfer.errors import NasTransferError, RunError
from nas_transfer.runs import Job, Spent, read_manifest
from nas_transfer.runs.files import metrics_files
from nas_transfer.search.latency_table import _read_times
from nas_transfer.search.loop import is_prepared
from nas_transfer.stages import pretrain
from nas_transfer.stages import search as search_stage
from nas_transfer.stages.config.entry import begin_run
from nas_transfer.sweeper import run_search
from tests.stages.test_inputs import CLASSIFY, SEARCH, KilledError, draw, kill, write_weights
from tests.stages.test_run_directory import HYDRA, composed

TRAIN = [
    "stage=pretrain", *CLASSIFY, "arch=min", "trainer.max_steps=3", "checkpoint_every_n_steps=1",
    "calibration_images=4",
]  # fmt: skip
DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
WAYS_OUT = ("resume=never", "delete", "name=...")


def chosen(cfg: DictConfig) -> DictConfig:
    OmegaConf.set_struct(cfg, False)
    cfg.hydra = HYDRA
    return cfg


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished training and a finished search."""
    folder = tmp_path_factory.mktemp("before")
    here = Path.cwd()
    os.chdir(folder)
    try:
        draw("image_folder")
        write_weights(seed=0)
        cfg = composed(*TRAIN)
        with begin_run(cfg, HYDRA, imports=False) as (_, run):
            result = pretrain.run(cfg, run.folder)
            assert result is not None
            result.write(run.folder)
        searched()
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def inside(before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and there."""
    shutil.copytree(before, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def trained() -> None:
    """Repeat the command of the training, up to its first step."""
    cfg = composed(*TRAIN)
    with begin_run(cfg, HYDRA, imports=False) as (_, run):
        if run.result() is None:
            pretrain.run(cfg, run.folder)


def searched() -> str:
    """Run or repeat the search; returns its front."""
    cfg = chosen(composed(*CLASSIFY, *SEARCH, "calibration_images=4"))

    def launch(jobs: list[Job]) -> list[str | None]:
        for job in jobs:
            own = cfg.copy()
            own.search.job = str(job.path)
            search_stage.run(own, Path(cfg.run_dir))
        return [None] * len(jobs)

    run_search(cfg, launch)  # type: ignore[arg-type]
    return (Path(cfg.run_dir) / "front.json").read_text()


FINISHED = {
    "run.json": dict.fromkeys(DAMAGES, "refused"),
    "result.json": dict.fromkeys(DAMAGES, "refused") | {"missing": "goes on"},
    "weights.pt": dict.fromkeys(DAMAGES, "refused"),
    "inputs.json": dict.fromkeys(DAMAGES, "refused") | {"missing": "is finished"},
    ".hydra/config.yaml": {"truncated": "is finished", "empty": "is finished", "garbage": "is finished",
                           "missing": "is finished", "a folder": "refused"},
}  # fmt: skip
BEGUN = {
    "inputs.json": dict.fromkeys(DAMAGES, "refused"),
    "checkpoints/last.ckpt": dict.fromkeys(DAMAGES, "goes on") | {"a folder": "refused"},
    "images/train.txt.gz": dict.fromkeys(DAMAGES, "goes on"),
}
CASES = [
    (state, file, damage, ending)
    for state, files in (("finished", FINISHED), ("begun", BEGUN))
    for file, endings in files.items()
    for damage, ending in endings.items()
]


@pytest.mark.parametrize(("state", "file", "damage", "ending"), CASES)
def test_a_damaged_file_of_a_training_is_named_or_done_without(
    inside: Path, monkeypatch: pytest.MonkeyPatch, state: str, file: str, damage: str, ending: str
) -> None:
    monkeypatch.setattr(pl.Trainer, "fit", kill)
    folder = Path(composed(*TRAIN).run_dir)
    if state == "begun":
        (folder / "result.json").unlink()
    DAMAGES[damage](folder / file)
    if ending == "refused":
        refused(trained, folder, file)
    elif ending == "goes on":
        with pytest.raises(KilledError):
            trained()
    else:
        trained()
        assert (folder / ".hydra/config.yaml").stat().st_size > 100


def refused(command: Callable[[], object], folder: Path, file: str) -> None:
    with pytest.raises(NasTransferError) as caught:
        command()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(folder) in sentence
    assert Path(file).name in sentence
    assert any(way_out in sentence for way_out in WAYS_OUT)


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_training_goes_on_from_the_state_before_a_damaged_one(
    inside: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    taken: list[str] = []
    monkeypatch.setattr(pl.Trainer, "fit", lambda *_, ckpt_path, **__: (taken.append(ckpt_path), kill()))
    folder = Path(composed(*TRAIN).run_dir)
    (folder / "result.json").unlink()
    with pytest.raises(KilledError):
        trained()
    DAMAGES[damage](folder / "checkpoints/last.ckpt")
    with pytest.raises(KilledError):
        trained()
    assert taken == [str(folder / "checkpoints" / name) for name in ("last.ckpt", "last.previous.ckpt")]
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"")
    refused(trained, folder, "last.previous.ckpt")


def test_a_run_without_its_run_json_is_set_aside_on_request(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Trainer, "fit", kill)
    folder = Path(composed(*TRAIN).run_dir)
    (folder / "run.json").unlink()
    cfg = composed(*TRAIN, "resume=never")
    with pytest.raises(KilledError), begin_run(cfg, HYDRA, imports=False) as (_, run):
        pretrain.run(cfg, run.folder)
    assert (folder.with_name("mine.1") / "result.json").is_file()
    assert read_manifest(folder) is not None


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["study.journal", "trials/1.json", "front.json", "inputs.json"])
def test_a_damaged_file_of_a_search_is_named_or_made_again(inside: Path, file: str, damage: str) -> None:
    folder = Path(composed(*CLASSIFY, *SEARCH, "calibration_images=4").run_dir)
    front = (folder / "front.json").read_text()
    (folder / "result.json").unlink()
    if file.startswith("trials"):
        (folder / "study.journal").unlink()  # so that its outcomes are told again
    DAMAGES[damage](folder / file)
    unreadable = damage not in ("missing", "a folder")
    if file == "front.json" and unreadable:
        refused(searched, folder, file)
    elif damage == "a folder" or file == "inputs.json":
        with pytest.raises((NasTransferError, IsADirectoryError)) as caught:
            searched()
        assert file.rpartition("/")[2] in str(caught.value)
    else:
        assert searched() == front


def test_a_journal_of_other_content_is_named_with_the_way_out(inside: Path) -> None:
    folder = Path(composed(*CLASSIFY, *SEARCH, "calibration_images=4").run_dir)
    (folder / "study.journal").write_text('{"op_code": 99}\n{"op_code": 4, "study_id": 7}\n')
    refused(searched, folder, "study.journal")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["warm_start.pt", "warm_start.spent.json"])
def test_a_damaged_warm_start_is_made_again(before: Path, tmp_path: Path, file: str, damage: str) -> None:
    shutil.copy(before / "weights.pt", tmp_path / "warm_start.pt")
    Spent(images=3).write(tmp_path)
    assert is_prepared(tmp_path / "warm_start.pt")
    DAMAGES[damage](tmp_path / file)
    if damage == "a folder":
        with pytest.raises(RunError, match=file):
            is_prepared(tmp_path / "warm_start.pt")
    elif file.endswith(".json") and damage != "missing":
        assert is_prepared(tmp_path / "warm_start.pt")  # reading it gives the sentence
    else:
        assert not is_prepared(tmp_path / "warm_start.pt")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_of_latencies_is_measured_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table.json"
    path.write_text('{"a": 1.5}')
    assert _read_times(path) == {"a": 1.5}
    DAMAGES[damage](path)
    if damage == "a folder":
        with pytest.raises(RunError, match="must be a file"):
            _read_times(path)
    else:
        assert _read_times(path) == {}


@pytest.mark.parametrize(
    "file", ["log.txt", "run.json", "run.lock", "checkpoints/last.ckpt", "logs/version_0/metrics.csv"]
)
def test_a_pipe_in_the_place_of_a_file_is_named_before_it_is_opened(inside: Path, file: str) -> None:
    folder = Path(composed(*TRAIN).run_dir)
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    with pytest.raises(RunError, match=f"{file} is neither a file nor a folder: remove it"):
        trained()
    assert metrics_files(folder) == [] or "csv" not in file
