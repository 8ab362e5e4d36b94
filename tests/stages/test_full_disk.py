"""A full disk, or a file system that is gone, ends a run with one sentence; the same command then continues."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from nas_transfer import cli
from nas_transfer.data.images import read_image, usable_images
from nas_transfer.errors import StorageError, file_fault, storage_error
from nas_transfer.runs import Job
from nas_transfer.runs.atomic import write_text
from nas_transfer.search.objectives.base import TrialSubnet
from nas_transfer.stages import search as search_stage
from nas_transfer.sweeper import run_search
from tests.conftest import nightly_but
from tests.stages.test_inputs import CLASSIFY, SEARCH, draw, write_weights
from tests.stages.test_run_directory import HYDRA, composed
from tests.test_cli import forked, sentence

NUMBERS = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EROFS]
COMMAND = [
    "stage=pretrain", "task=shapes_cls", "arch=min", "data.draw.num_train=12", "data.draw.num_val=4", "name=mine",
    "data.batch_size=4", "trainer.max_steps=2", "calibration_images=4", "num_threads=1", "data.root=data",
]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
def test_failures_of_a_file_system_are_one_sentence_however_deep_they_are(number: int) -> None:
    try:
        try:
            raise OSError(number, os.strerror(number), "there/file")
        except OSError as error:
            raise RuntimeError("wrapped") from error
    except RuntimeError as error:
        failure = storage_error(error)
    assert isinstance(failure, StorageError)
    assert str(failure).startswith(f"there/file cannot be read or written ({os.strerror(number)}): make space")
    assert storage_error(OSError(errno.ENOENT, "no such file", "x")) is None
    copied = storage_error(OSError(errno.ENOSPC, "No space left on device", "temporary", None, "target"))
    assert str(copied).startswith("target cannot be read or written")
    assert file_fault(ValueError("x")) is None
    assert "move it away" in str(file_fault(IsADirectoryError(errno.EISDIR, "Is a directory", "x")))


@pytest.mark.parametrize("number", NUMBERS)
def test_an_image_on_a_vanished_file_system_is_no_broken_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(StorageError, match=r"a\.png cannot be read"):
        read_image(path, follow_exif=False)
    with pytest.raises(StorageError, match=r"a\.png cannot be read"):
        usable_images([path], skip_broken=True)


class Filling:
    """An objective during which the disk fills up."""

    direction = "minimize"
    measured_first = True
    number: int | None = None
    first = 2

    def __init__(self, direction: str) -> None:
        self.calls = 0

    def measure(self, subnet: TrialSubnet) -> float:
        self.calls += 1
        if self.number is not None and self.calls >= self.first:
            raise OSError(self.number, os.strerror(self.number), "trials/x")
        return float(self.calls)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_makes_no_failed_trial_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    draw("image_folder")
    write_weights(seed=0)
    objective = "+search.objectives.filling={_target_: tests.stages.test_full_disk.Filling, direction: minimize}"
    cfg = composed(*CLASSIFY, *SEARCH, objective, "calibration_images=4", f"seed={number}")
    OmegaConf.set_struct(cfg, False)
    cfg.hydra = HYDRA
    hidden = [False]

    def launch(jobs: list[Job]) -> list[str | None]:
        for job in jobs:
            own = cfg.copy()
            own.search.job = str(job.path)
            try:
                search_stage.run(own, Path(cfg.run_dir))
            except StorageError:
                if not hidden[0]:
                    raise
                return ["its process died"] * len(jobs)  # as of a job on another machine
        return [None] * len(jobs)

    go_on: Callable[[], float | None] = lambda: run_search(cfg, launch)  # type: ignore[arg-type]  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(Filling, "number", number)
        with pytest.raises(StorageError):
            go_on()
        hidden[0] = True
        patch.setattr("nas_transfer.search.loop.replacing", full(number))
        patch.setattr(Filling, "first", 1)
        search_stage_evaluators().clear()
        with pytest.raises(StorageError):
            go_on()
    folder = Path(cfg.run_dir)
    assert [path.name for path in (folder / "trials").iterdir()] == ["0.json"]
    search_stage_evaluators().clear()
    assert go_on() is not None
    assert len(list((folder / "trials").iterdir())) == 2
    assert '"failed": 0' in (folder / "result.json").read_text()


def search_stage_evaluators() -> dict[str, Any]:
    from nas_transfer.stages.common import candidates

    return candidates._evaluators  # type: ignore[return-value]


def full(number: int) -> Callable[..., Any]:
    def fail(path: Path) -> Iterator[Path]:
        raise OSError(number, os.strerror(number), str(path))

    return fail


def test_weights_and_records_on_a_full_disk_leave_the_earlier_file(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(tmp_path)
            write_text(Path("record.json"), "earlier")
            write_weights(seed=0)
            earlier = Path("weights.pt").read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            caught = 0
            for write in (lambda: write_text(Path("record.json"), "x" * 2000), lambda: write_weights(seed=1)):
                try:
                    write()
                except Exception as error:  # torch raises its own after that of the stream
                    caught += storage_error(error) is not None
            whole = Path("weights.pt").read_bytes() == earlier and Path("record.json").read_text() == "earlier"
            code = 0 if caught == 2 and whole and sorted(os.listdir()) == ["record.json", "weights.pt"] else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("limit", nightly_but([1000, 20_000, 200_000], 20_000))
def test_a_command_on_a_full_disk_ends_with_one_sentence_and_goes_on_with_space(tmp_path: Path, limit: int) -> None:
    (tmp_path / "small_disk.py").write_text(
        "import os, resource\nfrom nas_transfer.stages import pretrain\n\n\ndef run(cfg, folder):\n"
        "    if os.path.exists('full'):\n"
        f"        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n"
        "    return pretrain.run(cfg, folder)\n"
    )
    (tmp_path / "full").touch()
    command = [*COMMAND, "stage.run=small_disk.run"]
    text = sentence(forked(tmp_path, *command, code=cli.EXIT_BAD_INPUT))
    assert "(File too large): make space or bring the file system back; the same command then continues" in text
    (tmp_path / "full").unlink()
    assert "pretrain shapes_cls" in forked(tmp_path, *command).stdout
