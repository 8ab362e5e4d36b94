"""SIGTERM and SIGINT: a training saves its state and ends, a search ends, and the same command goes on."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nas_transfer.runs import Job
from nas_transfer.search.objectives.base import TrialSubnet
from nas_transfer.stages import pretrain
from nas_transfer.stages import search as search_stage
from nas_transfer.stages.common.signals import RECEIVER, SIGNALS, EndedBySignal
from nas_transfer.sweeper import run_search
from nas_transfer.tasks.training import TaskModule
from tests.stages.test_inputs import CLASSIFY, SEARCH, draw, write_weights
from tests.stages.test_run_directory import HYDRA, composed
from tests.stages.test_training import assert_equal_runs
from tests.test_cli import forked, run

TRAIN = [
    "stage=pretrain", *CLASSIFY[:-1], "arch=min", "trainer.max_steps=6", "checkpoint_every_n_steps=100",
    "calibration_images=4",
]  # fmt: skip
ENDINGS = {signal.SIGTERM: (EndedBySignal, 143, "terminated"), signal.SIGINT: (EndedBySignal, 130, "interrupted")}


@pytest.fixture(autouse=True)
def _received(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # a test in the background may be made to ignore SIGINT
    RECEIVER.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send_in_step(monkeypatch: pytest.MonkeyPatch, numbers: list[signal.Signals], step: int) -> None:
    """Send signals to this process in the middle of one optimiser step."""
    update = TaskModule._update

    def sending(module: TaskModule) -> None:
        if module.global_step == step - 1:
            for number in numbers:
                os.kill(os.getpid(), number)
        update(module)

    monkeypatch.setattr(TaskModule, "_update", sending)


def train(name: str, *overrides: str) -> Path:
    cfg = composed(*TRAIN, f"name={name}", *overrides)
    folder = Path(cfg.run_dir)
    result = pretrain.run(cfg, folder)
    assert result is not None
    result.write(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", list(SIGNALS))
@pytest.mark.parametrize(
    ("overrides", "saved"), [([], 3), (["task.recipe.accumulate=2"], 3)], ids=["a batch", "two batches"]
)
def test_a_training_saves_the_step_in_which_the_signal_came_and_goes_on_to_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, overrides: list[str], saved: int
) -> None:
    draw("image_folder")
    whole = train("whole", *overrides)
    with monkeypatch.context() as patch:
        send_in_step(patch, [number], 3)
        with pytest.raises(EndedBySignal) as ended:
            train("ended", *overrides)
    assert ended.value.number == number
    folder = whole.with_name("ended")
    checkpoint: dict[str, Any] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == saved
    assert not (folder / "result.json").exists()
    RECEIVER.install()
    assert_equal_runs(train("ended", *overrides), whole)


def test_a_second_signal_ends_a_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draw("image_folder")
    send_in_step(monkeypatch, [signal.SIGTERM, signal.SIGTERM], 3)
    with pytest.raises(EndedBySignal):
        train("ended")
    assert not list(Path("runs").rglob("last.ckpt"))


def test_a_signal_ends_the_scoring_after_a_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draw("image_folder")

    def terminate(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the validation goes on")

    monkeypatch.setattr(TaskModule, "validation_step", terminate)
    with pytest.raises(EndedBySignal):
        train("ended")


class Ending:
    """An objective in whose measurement a signal comes."""

    direction = "minimize"
    measured_first = True
    number: signal.Signals | None = None

    def __init__(self, direction: str) -> None:
        self.calls = 0

    def measure(self, subnet: TrialSubnet) -> float:
        self.calls += 1
        if self.number is not None and self.calls == 2:
            os.kill(os.getpid(), self.number)
        return float(self.calls)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, EndedBySignal), (signal.SIGINT, KeyboardInterrupt)])
def test_a_search_ends_without_a_failed_trial_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, error: type[BaseException]
) -> None:
    draw("image_folder")
    write_weights(seed=0)
    objective = "+search.objectives.ending={_target_: tests.stages.test_signals.Ending, direction: minimize}"
    cfg = composed(*CLASSIFY, *SEARCH, objective, "calibration_images=4", f"seed={int(number)}")
    OmegaConf.set_struct(cfg, False)
    cfg.hydra = HYDRA

    def launch(jobs: list[Job]) -> list[str | None]:
        for job in jobs:
            own = cfg.copy()
            own.search.job = str(job.path)
            search_stage.run(own, Path(cfg.run_dir))
        return [None] * len(jobs)

    go_on: Callable[[], float | None] = lambda: run_search(cfg, launch)  # type: ignore[arg-type]  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(Ending, "number", number)
        with pytest.raises(error):
            go_on()
    folder = Path(cfg.run_dir)
    assert [path.name for path in (folder / "trials").iterdir()] == ["0.json"]
    RECEIVER.install()
    assert go_on() is not None
    assert len(list((folder / "trials").iterdir())) == 2
    assert '"failed": 0' in (folder / "result.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", list(SIGNALS))
def test_the_command_ends_with_the_exit_code_of_the_signal_and_one_sentence(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "ending_stage.py").write_text(
        "import os, signal, time\n\n\ndef run(cfg, folder):\n"
        f"    os.kill(os.getpid(), {int(number)})\n    time.sleep(60)\n"
    )
    done = forked(tmp_path, "stage.run=ending_stage.run", code=ENDINGS[number][1])
    assert done.stderr.strip().startswith(f"{ENDINGS[number][2]}: nothing is kept in runs/")
    assert done.stderr.strip().endswith(" yet: the same command begins again")


@pytest.mark.nightly
def test_a_terminated_training_ends_with_143_and_the_same_command_goes_on(tmp_path: Path) -> None:
    draw("image_folder")
    (tmp_path / "ending_stage.py").write_text(
        "import os, signal\nfrom nas_transfer.stages import pretrain\n"
        "from nas_transfer.tasks.training import TaskModule\n"
        "update = TaskModule._update\n\n\ndef sending(module):\n    if module.global_step == 2:\n"
        f"        os.kill(os.getpid(), {int(signal.SIGTERM)})\n    update(module)\n\n\n"
        "def run(cfg, folder):\n    TaskModule._update = sending\n    return pretrain.run(cfg, folder)\n"
    )
    arguments = [*TRAIN, "stage.run=ending_stage.run"]
    done = run(tmp_path, *arguments, code=143)
    kept = re.fullmatch(
        r"terminated: the state after step 3 of the training is kept in (runs/.*): the same command continues from it",
        done.stderr.strip(),
    )
    assert kept is not None
    assert (tmp_path / kept.group(1) / "checkpoints/last.ckpt").is_file()
    assert "resuming from" in forked(tmp_path, *arguments).stdout


def test_a_process_that_was_forked_ends_by_the_signal_itself() -> None:
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(3)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM


def test_errors_of_the_program_are_still_errors() -> None:
    assert not issubclass(EndedBySignal, Exception)
