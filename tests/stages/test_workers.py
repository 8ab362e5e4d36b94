"""A search by workers, from its command to its front: killed, joined, ended, and without the process that began it."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import nas_transfer.cli  # noqa: F401  registers the resolvers and the sweeper
from nas_transfer import sweeper
from nas_transfer.errors import ConfigError, NasTransferError, RunError
from nas_transfer.paths import conf_dir
from nas_transfer.runs import Job, files, read_front
from nas_transfer.search.objectives.base import TrialSubnet
from nas_transfer.search.pareto import non_dominated
from nas_transfer.stages import proxy
from nas_transfer.stages import search as stage
from nas_transfer.stages.common import workers
from nas_transfer.stages.common.launching import WorkerLauncher, while_watched
from nas_transfer.stages.common.local_processes import LocalProcesses, _context, gpu_of_worker
from nas_transfer.stages.common.slurm_jobs import QueuedJob, QueueWatch
from nas_transfer.sweeper import run_search
from tests.guard import HANG_SECONDS
from tests.stages import test_proxy
from tests.stages.test_proxy import parent
from tests.stages.test_search import FAULTY, arguments, supernet, trials

__all__ = ["parent", "supernet"]  # fixtures

FORK = multiprocessing.get_context("fork")
SMALL = ["search.trials=8", "search.sampler.num_random=4", "search.workers=2", "search.grace_seconds=1"]


def composed(folder: Path, supernet: Path, *overrides: str) -> DictConfig:
    own = arguments(supernet, f"run_dir={folder}", "name=mine", *SMALL, *overrides)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", own, return_hydra_config=True)


def work(cfg: DictConfig, job: Job) -> None:
    """Run a job in this process."""
    own = cfg.copy()
    own.search.job = str(job.path)
    (proxy if cfg.stage.name == "proxy" else stage).run(own, Path(cfg.run_dir))


def in_turn(cfg: DictConfig, jobs: Sequence[Job]) -> list[str | None]:
    """Run jobs in this process, one after the other."""
    for job in jobs:
        work(cfg, job)
    return [None] * len(jobs)


def forked(cfg: DictConfig, jobs: Sequence[Job]) -> list[str | None]:
    """Run jobs in processes that are forked from this one."""
    started = [FORK.Process(target=work, args=(cfg, job)) for job in jobs]
    for process in started:
        process.start()
    for process in started:
        process.join(HANG_SECONDS)
    return [f"exit code {process.exitcode}" if process.exitcode else None for process in started]


def searched(
    cfg: DictConfig, monkeypatch: pytest.MonkeyPatch, launch: Callable[[DictConfig, Sequence[Job]], list[str | None]]
) -> None:
    """Run the search with workers that `launch` runs."""
    launcher = WorkerLauncher(lambda jobs: launch(cfg, jobs))
    monkeypatch.setattr(sweeper, "_worker_launcher", lambda *_: launcher)
    run_search(cfg, lambda jobs: in_turn(cfg, jobs))


def require_front_of_files(folder: Path, count: int) -> None:
    """All trials have a file, no arch is repeated, and the front is that of the files."""
    outcomes = trials(folder)
    assert sorted(outcomes) == list(range(count))
    assert len({json.dumps(outcome["arch"]) for outcome in outcomes.values()}) == count
    scored = [number for number in sorted(outcomes) if outcomes[number]["reason"] is None]
    values = [outcomes[number]["values"] for number in scored]
    points = np.array([[-value["score"], value["macs"]] for value in values])
    best = {tuple(point) for point in points[non_dominated(points)]}
    front = read_front(folder)
    assert {(-trial.values["score"], trial.values["macs"]) for trial in front.trials} == best
    for trial in front.trials:
        assert dict(trial.values) == outcomes[trial.number]["values"]
        assert dict(trial.arch) == outcomes[trial.number]["arch"]
    summary = json.loads((folder / "result.json").read_text())["search"]
    assert (summary["trials"], summary["failed"], summary["picked"]) == (count, count - len(scored), front.picked)


@pytest.mark.slow
def test_two_workers_write_what_a_search_in_batches_writes(
    tmp_path: Path, supernet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(composed(tmp_path, supernet), monkeypatch, forked)
    require_front_of_files(tmp_path, 8)
    assert len(list((tmp_path / "jobs").glob("worker_*.json"))) == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").iterdir()}

    def none(cfg: DictConfig, jobs: Sequence[Job]) -> list[str | None]:
        raise AssertionError("nothing is left to evaluate")

    searched(composed(tmp_path, supernet, "pick=best"), monkeypatch, none)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "trials").iterdir()} == before
    searched(composed(tmp_path, supernet, "search.trials=10", "search.workers=1"), monkeypatch, in_turn)
    require_front_of_files(tmp_path, 10)
    with pytest.raises(RunError, match=r"begun by workers: add search\.workers=N"):
        run_search(composed(tmp_path, supernet, "search.workers=null"), lambda jobs: [None] * len(jobs))


class Deadly:
    """An objective whose process dies when it is first measured at the largest arch."""

    direction = "minimize"
    measured_first = True

    def __init__(self, direction: str, mark: str) -> None:
        self.mark = Path(mark)

    def measure(self, subnet: TrialSubnet) -> float:
        if subnet.arch == subnet.task.space.largest() and not self.mark.exists():
            self.mark.touch()
            os._exit(9)
        return 1.0


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_is_evaluated_by_another_one(
    tmp_path: Path, supernet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "died"
    deadly = "+search.objectives.deadly={_target_: tests.stages.test_workers.Deadly, direction: minimize, mark: MARK}"
    cfg = composed(tmp_path / "run", supernet, deadly.replace("MARK", str(mark)), "search.frozen=null")
    searched(cfg, monkeypatch, forked)
    assert mark.exists()
    outcomes = trials(tmp_path / "run")
    assert sorted(outcomes) == list(range(8))
    assert all(outcome["reason"] is None for outcome in outcomes.values())


@pytest.mark.slow
def test_a_worker_out_of_memory_records_its_trial_as_failed_and_goes_on(
    tmp_path: Path, supernet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(composed(tmp_path, supernet, FAULTY + "}", "search.workers=1"), monkeypatch, in_turn)
    require_front_of_files(tmp_path, 8)
    reasons = {number: outcome["reason"] for number, outcome in trials(tmp_path).items()}
    assert (reasons[6], reasons[7]) == ("OutOfMemoryError: no memory left", None)


@pytest.mark.slow
def test_the_same_command_adds_workers_to_a_search_that_runs(
    tmp_path: Path, supernet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed(tmp_path, supernet)

    def again() -> None:
        joined: list[Path] = []

        def launch(cfg: DictConfig, jobs: Sequence[Job]) -> list[str | None]:
            joined.extend(job.path for job in jobs)
            return in_turn(cfg, jobs)

        searched(cfg, monkeypatch, launch)
        (tmp_path / "joined.txt").write_text(f"{len(joined)}")

    def launch(_: DictConfig, jobs: Sequence[Job]) -> list[str | None]:
        process = FORK.Process(target=again)  # the same command, while this process holds the lock of the run
        process.start()
        process.join(HANG_SECONDS)
        return [None] * len(jobs)  # the workers of this start tell nothing

    searched(cfg, monkeypatch, launch)
    assert (tmp_path / "joined.txt").read_text() == "2"
    require_front_of_files(tmp_path, 8)


@pytest.mark.slow
def test_the_last_worker_writes_the_front_if_the_process_that_began_is_gone(
    tmp_path: Path, supernet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed(tmp_path, supernet)
    launched: list[Job] = []

    def gone(_: DictConfig, jobs: Sequence[Job]) -> list[str | None]:
        launched.extend(jobs)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(cfg, monkeypatch, gone)
    assert not (tmp_path / "result.json").exists()
    work(cfg, launched[0])
    require_front_of_files(tmp_path, 8)


@pytest.mark.slow
def test_workers_of_another_program_or_of_no_search_are_refused(
    tmp_path: Path, supernet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = composed(tmp_path, supernet)

    def launch(cfg: DictConfig, jobs: Sequence[Job]) -> list[str | None]:
        monkeypatch.setattr(workers, "program_sha256", lambda _: "f" * 64)
        return in_turn(cfg, jobs)

    with pytest.raises(RunError, match=r"runs with another version .*this worker ffffffffffff"):
        searched(cfg, monkeypatch, launch)
    assert not trials(tmp_path)
    alone = composed(tmp_path / "alone", supernet)
    (tmp_path / "alone").mkdir()
    with pytest.raises(RunError, match="has not begun"):
        work(alone, workers.worker_jobs(stage.read_config(alone, stage.SearchConfig), 1)[0])


@pytest.mark.nightly
def test_workers_train_the_trials_of_a_proxy_search_by_rungs(
    tmp_path: Path, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*test_proxy.HALVING, "search.trials=6", "search.workers=2", "search.grace_seconds=100"]
    cfg = test_proxy.composed(tmp_path, parent, "shapes_cls", *options)
    searched(cfg, monkeypatch, in_turn)
    folder = tmp_path / "run"
    require_front_of_files_of_rungs(folder)
    images = sum(outcome["images"] for outcome in trials(folder).values())
    assert json.loads((folder / "result.json").read_text())["search"]["spent"]["trials"]["images"] == images


def require_front_of_files_of_rungs(folder: Path) -> None:
    outcomes = trials(folder)
    assert sorted(outcomes) == list(range(6))
    finished = {number for number, outcome in outcomes.items() if outcome["reason"] is None}
    assert finished == set(files.rung_files(folder, 5))
    assert len(files.rung_files(folder, 0)) == 6
    assert {trial.number for trial in read_front(folder).trials} <= finished
    assert not list((folder / "states").iterdir())
    for outcome in outcomes.values():
        assert outcome["reason"] is None or "not among the best" in outcome["reason"]


def local(tmp_path: Path) -> LocalProcesses:
    content = {"stage": {"run": "tests.stages.local_jobs.run"}, "search": {"job": None}, "run_dir": str(tmp_path)}
    return LocalProcesses(content, {"version": 1, "root": {"level": "INFO"}})


@pytest.mark.slow
def test_a_process_that_is_killed_takes_no_other_one_with_it(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / f"{name}.json", ()) for name in ("first", "refused", "broken", "killed", "last")]
    processes = local(tmp_path)
    reasons = processes.launch(jobs)
    assert reasons == [
        None, "the weights do not fit", "ValueError: a defect of two lines", "its process was ended by signal 9", None
    ]  # fmt: skip
    assert (tmp_path / "first.done").exists()
    assert (tmp_path / "last.done").exists()
    assert processes.launch(jobs[:1]) == [None]  # a new start, once all have ended


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="processes are spawned")
def test_processes_are_forks_of_one_that_has_imported_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = local(tmp_path)
    monkeypatch.setenv("CHANGED", "after the import")
    jobs = [Job(tmp_path / f"parent_{number}.json", ()) for number in range(2)]
    assert processes.launch(jobs) == [None, None]
    first, second = ((tmp_path / f"parent_{number}.done").read_text() for number in range(2))
    assert first == second
    server, _, changed = first.partition(" ")
    assert int(server) != os.getpid()
    assert changed == "after the import"
    assert _context("nas_transfer.arch", 1).get_start_method() == "spawn"  # a fork may be unable to use a GPU


@pytest.mark.slow
def test_all_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    processes = local(tmp_path)
    reasons: list[str | None] = []
    thread = threading.Thread(target=lambda: reasons.extend(processes.launch([Job(tmp_path / "waits.json", ())])))
    thread.start()
    end = time.monotonic() + HANG_SECONDS
    while not (tmp_path / "waits.done").exists() and time.monotonic() < end:
        time.sleep(0.1)
    processes.stop()
    thread.join(HANG_SECONDS)
    assert reasons == ["its process ended with exit code 143"]


def test_an_interrupt_stops_the_jobs_that_run_in_the_background() -> None:
    stopped = threading.Event()

    def watch() -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            while_watched(stopped.wait, watch, stopped.set)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.is_set()
    assert while_watched(lambda: 3, lambda: None, stopped.set) == 3
    with pytest.raises(ZeroDivisionError):
        while_watched(lambda: 1 // 0, lambda: None, stopped.set)


def test_each_worker_of_a_machine_with_several_gpus_has_one() -> None:
    assert gpu_of_worker(1, 1, None) == {}
    assert gpu_of_worker(3, 2, None) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert gpu_of_worker(0, 2, "5,7") == {"CUDA_VISIBLE_DEVICES": "5"}
    assert gpu_of_worker(3, 2, "5,7") == {"CUDA_VISIBLE_DEVICES": "7"}


class Queue:
    """A queue of SLURM and a clock, both set by the test."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.reason = "Resources"
        self.looks = 0
        (folder / ".submitit" / "7_0").mkdir(parents=True)  # of an earlier start
        self.watch = QueueWatch(folder / ".submitit", self.ask, lambda: self.now)

    def ask(self, jobs: Sequence[str]) -> list[QueuedJob]:
        self.looks += 1
        return [QueuedJob(job, "PENDING", self.reason) for job in jobs]


def test_the_reason_for_which_jobs_wait_is_logged_ever_more_rarely(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nas_transfer")
    queue = Queue(tmp_path)
    times = []
    for job in ("12_0", "12_10", "12_9", "%j"):
        (tmp_path / ".submitit" / job).mkdir()
    for queue.now in np.arange(0, 4000, 1.0):
        caplog.clear()
        queue.watch.look()
        times += [queue.now for record in caplog.records if "wait since" in record.message]
        if queue.now == 0:
            assert caplog.messages == ["submitted to SLURM: 12_0, 12_9, 12_10"]
    assert times == [60, 180, 420, 900, 1860, 3780]
    assert queue.looks < 100
    caplog.clear()
    queue.now = 8000.0
    queue.watch.look()
    assert caplog.messages == ["3 of 3 SLURM jobs wait since 8000 s: Resources (3)"]


def test_a_job_that_will_never_start_ends_the_search_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(tmp_path)
    (tmp_path / ".submitit" / "12_0").mkdir()
    (tmp_path / ".submitit" / "12").mkdir()
    cancelled: list[str] = []
    monkeypatch.setattr(
        "nas_transfer.stages.common.slurm_jobs._answer", lambda *command: cancelled.extend(command) or ""
    )
    queue.reason = "PartitionTimeLimit"
    with pytest.raises(ConfigError, match=r"job 12_0 will never start \(PartitionTimeLimit\): .*timeout_min"):
        while_watched(lambda: time.sleep(0.1), queue.watch.look, queue.watch.cancel)
    assert cancelled == ["scancel", "12_0"]


def test_workers_on_several_machines_need_a_database(tmp_path: Path) -> None:
    overrides = ["task=shapes_cls", "stage=search", "weights=x", "search.workers=2", "hydra/launcher=slurm"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", [*overrides, f"run_dir={tmp_path}", "name=mine"], return_hydra_config=True)
    with pytest.raises(NasTransferError, match=r"search\.storage=null with SlurmLauncher: set search\.storage="):
        sweeper._worker_launcher(cfg, lambda jobs: [], None)


def test_jobs_that_run_on_are_waited_for_when_one_has_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_transfer.stages.common.slurm_jobs.QUEUE_SECONDS", 0.0)
    running = QueuedJob("12_1", "RUNNING", "None")
    answers: list[list[QueuedJob] | None] = [[running], None, [running], []]
    looked: list[Sequence[str]] = []

    def ask(jobs: Sequence[str]) -> list[QueuedJob] | None:
        looked.append(jobs)
        return answers[len(looked) - 1] if len(looked) <= len(answers) else None

    watch = QueueWatch(tmp_path, ask)
    watch.wait()  # nothing was submitted
    assert not looked
    for job in ("12_0", "12_1"):
        (tmp_path / job).mkdir()
    watch.wait()
    assert looked == [["12_0", "12_1"]] * 4
    watch.wait()  # SLURM answers no more
    assert len(looked) == 10


def test_a_start_on_slurm_ends_only_after_all_of_its_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Launcher:
        def launch(self, overrides: Sequence[Sequence[str]], initial_job_idx: int) -> None:
            raise RuntimeError("job 0 has died")

    monkeypatch.setattr(QueueWatch, "wait", lambda watch: done.append("waited"))
    search = sweeper.ArchSweeper()
    search.submitted, search.job_launcher = tmp_path, Launcher()
    with pytest.raises(RuntimeError, match="job 0 has died"):
        search.launch_on_slurm([["a=1"], ["a=2"]], 0)
    assert done == ["waited"]
