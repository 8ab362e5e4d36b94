"""Compare a search by workers with one in batches: utilisation, lost and repeated trials, hypervolume, cost of a trial.

    python scripts/bench_workers.py real [--workers 8] [--trials 80] [--seconds 10] [--kills 0.1] [--storage URL]
    python scripts/bench_workers.py hypervolume [--workers 8 64 512] [--trials 1000] [--seeds 5]
    python scripts/bench_workers.py storage [--trials 1000] [--running 0] [--storage URL]
    python scripts/bench_workers.py computed [--workers 64 512] [--trials 2560] [--ask 0.03] [--read 0.001]

`real` runs real workers, as threads of this process with a study object each, on the surface of bench_samplers.py. An
evaluation sleeps for a time that is drawn log-uniformly with a spread of `--spread`, so that its mean is `--seconds`.
A worker dies in the middle of an evaluation with the probability `--kills`: its heartbeats end and nothing is told, and
another worker starts in its place. *Utilisation* is the time in evaluations divided by the time of all workers, until
the last trial is asked and until the end. Between two evaluations, a worker tells a
trial and asks for one. *Wasted* is the share of evaluation time in evaluations that were killed.
Batches are computed from the durations of the same trials: every batch of W waits for its slowest trial.

`hypervolume` needs no time: it asks and tells in the order in which the evaluations of W workers would end.

`storage` asks for trials and tells them without evaluating anything, in studies of 100, 1000 and 10,000 trials, up to
`--trials`, of which `--running` more run, and prints the milliseconds a trial, and those that another worker takes to
read it. It needs a database of its own.

`computed` runs nothing: it computes both utilisations for workers that have a core each, which `real` cannot show for
hundreds of workers on one machine. Only one worker at a time asks or tells, which takes `--ask` seconds together.
Before it asks, a worker reads the trials of others, each in `--read` seconds. Workers die as in `real`: another one
starts at once, and the trial is asked again after `--grace` seconds.
"""

from __future__ import annotations

import argparse
import heapq
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import ClassVar

import numpy as np
import sqlalchemy
import torch
from bench_samplers import Surface, alone, build, share
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from nas_transfer.paths import conf_dir
from nas_transfer.runs import Evaluation, Outcome
from nas_transfer.search import shared_study
from nas_transfer.search.database import TrialDatabase
from nas_transfer.search.loop import Schedule
from nas_transfer.search.samplers.base import History
from nas_transfer.search.shared_study import Asked, Patience, SharedStudy
from nas_transfer.search.workers import Worker, is_finished

DIRECTIONS = {"score": "maximize", "macs": "minimize"}

TIMED = 40
"""Trials that are timed in a study of one size."""


class Killed(BaseException):
    """The process of a worker dies."""


class OneCopy(TrialDatabase):
    """The database of a worker that is a thread: all workers together keep one copy of each trial in memory."""

    copies: ClassVar[dict[tuple[int, TrialState, int], FrozenTrial]] = {}  # one still lacks its arch at first

    def _read(self, connection: sqlalchemy.Connection, trial_ids: Collection[int]) -> list[FrozenTrial]:
        read = super()._read(connection, trial_ids)
        trials = [self.copies.setdefault((trial._trial_id, trial.state, len(trial.params)), trial) for trial in read]
        self._unfinished.update((trial._trial_id, trial) for trial in trials if trial._trial_id in self._unfinished)
        return trials


def durations(count: int, seconds: float, spread: float, seed: int) -> np.ndarray:
    """Times (N,), log-uniform with this mean and this ratio of the longest to the shortest."""
    mean = (spread - 1) / np.log(spread)  # of a log-uniform variable in 1-spread
    return seconds / mean * spread ** np.random.default_rng(seed).random(count)


class Simulation:
    """One search whose evaluations sleep."""

    def __init__(self, options: argparse.Namespace, folder: Path, surface: Surface) -> None:
        self.options, self.folder, self.surface = options, folder, surface
        self.schedule = Schedule(options.trials, 1, 1, options.trials)
        self.times = durations(options.trials, options.seconds, options.spread, options.seed)
        self.rng = np.random.default_rng(options.seed)
        self.lock = threading.Lock()
        self.opened = threading.Barrier(options.workers + 1)
        self.spans: list[tuple[float, float]] = []
        self.gaps: list[float] = []
        self.ended = threading.local()
        self.wasted = 0.0
        self.kills = 0
        self.told: list[int] = []

    def study(self) -> SharedStudy:
        """A study object of one worker."""
        sampler = build(self.options.sampler, self.surface, self.options.seed)
        patience = Patience(self.options.grace, 1000)
        return SharedStudy(self.folder, self.options.storage, self.surface.space, DIRECTIONS, sampler, patience)

    def evaluate(self, evaluation: Evaluation) -> Outcome:
        """Sleep as long as the trial takes, or die on the way."""
        seconds = float(self.times[evaluation.trial])
        with self.lock:
            dies = self.rng.random() < self.options.kills
            share_done = self.rng.random()
        start = time.monotonic()
        gap = start - getattr(self.ended, "at", start)
        time.sleep(seconds * share_done if dies else seconds)
        self.ended.at = time.monotonic()
        with self.lock:
            self.spans.append((start, self.ended.at))
            self.gaps.append(gap)
            if dies:
                self.kills += 1
                self.wasted += seconds * share_done
                raise Killed
        point = self.surface.points([self.surface.space.from_dict(evaluation.arch)])[0]
        return Outcome(
            evaluation.trial, evaluation.arch, {"score": -float(point[0]), "macs": float(point[1])}, seconds=seconds
        )

    def work(self) -> None:
        """A worker, and those that start after it has died. All begin together, once each has opened the study."""
        study = self.study()
        self.opened.wait()
        while True:
            finish = study.finish

            def counted(asked: Asked, outcome: Outcome, finish: Callable[[Asked, Outcome], bool] = finish) -> bool:
                is_told = finish(asked, outcome)
                if is_told:
                    with self.lock:
                        self.told.append(asked.number)
                return is_told

            study.finish = counted  # type: ignore[method-assign]
            study.give_back = lambda asked: None  # type: ignore[method-assign]  # the process is gone
            try:
                Worker(study, self.schedule, self.evaluate).run()
                return
            except Killed:
                study = self.study()


def real(options: argparse.Namespace, surface: Surface) -> None:
    """Run workers, and print how well they were used."""
    OneCopy.copies.clear()
    shared_study.TrialDatabase = OneCopy  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as name:
        simulation = Simulation(options, Path(name), surface)
        study = simulation.study()
        threads = [threading.Thread(target=simulation.work, daemon=True) for _ in range(options.workers)]
        for thread in threads:
            thread.start()
        simulation.opened.wait()
        start, processor = time.monotonic(), time.process_time()
        for thread in threads:
            thread.join()
        wall = time.monotonic() - start
        processor = time.process_time() - processor
        assert is_finished(study, lambda: False)
        told = study.told()
    last = max(begin for begin, _ in simulation.spans)
    busy = sum(end - begin for begin, end in simulation.spans)
    until_last = sum(min(end, last) - begin for begin, end in simulation.spans)
    repeated = sum(count - 1 for count in Counter(simulation.told).values())
    archs = len({str(trial.arch) for trial in told})
    points = surface.points([surface.space.from_dict(trial.arch) for trial in told])
    gaps = simulation.gaps
    print(
        f"{options.workers} workers, {options.trials} trials of {options.seconds:g} s x{options.spread:g}, "
        f"{simulation.kills} kills: {wall:.0f} s; utilisation "
        f"{until_last / options.workers / (last - start):.3f} until the last trial is asked, "
        f"{busy / options.workers / wall:.3f} to the end; wasted {simulation.wasted / busy:.3f}; "
        f"lost {options.trials - len(told)}, told twice {repeated}, repeated archs {len(told) - archs}; "
        f"hypervolume {share(points):.4f}; {1000 * processor / options.trials:.0f} ms of one core a trial; from one "
        f"evaluation to the next {np.mean(gaps):.2f} s, 99 % within {np.quantile(gaps, 0.99):.2f} s"
    )
    width = options.workers
    batches = [simulation.times[first : first + width] for first in range(0, options.trials, width)]
    in_batches = sum(batch.max() for batch in batches)
    print(
        f"batches of {width}, without start-up and kills: {in_batches:.0f} s; utilisation "
        f"{simulation.times.sum() / width / in_batches:.3f}"
    )


def in_order_of_arrival(surface: Surface, options: argparse.Namespace, workers: int, seed: int) -> np.ndarray:
    """The points of the trials of so many workers, asked and told in the order in which evaluations end."""
    sampler = build(options.sampler, surface, seed)
    sampler.keeps_plan = True
    times = durations(options.trials, 1.0, options.spread, seed)
    history = History()
    running: list[tuple[float, int]] = []
    archs = []
    points = np.empty((options.trials, 2))
    now = 0.0
    for number in range(options.trials):
        if len(running) == workers:
            now, ended = heapq.heappop(running)
            points[ended] = surface.points([archs[ended]])[0]
            history.add(archs[ended], points[ended].tolist())
        sampler.plan(history)
        archs.append(sampler.next_arch(history, number))
        history.ask(archs[-1])
        history.asked[number] = archs[-1]
        heapq.heappush(running, (now + float(times[number]), number))
    return surface.points(archs)


def hypervolume(options: argparse.Namespace, surface: Surface) -> None:
    """Compare the hypervolume after the same number of trials."""
    for workers in options.workers:
        by_workers = [share(in_order_of_arrival(surface, options, workers, seed)) for seed in range(options.seeds)]
        batches = [
            share(alone(surface, build(options.sampler, surface, seed), options.trials, workers))
            for seed in range(options.seeds)
        ]
        ratio = np.array(by_workers) / np.array(batches)
        print(
            f"{workers} workers, {options.trials} trials, {options.sampler}: {np.mean(by_workers):.4f}, batches of "
            f"{workers} {np.mean(batches):.4f}; ratio {ratio.mean():.4f} ({ratio.min():.4f}-{ratio.max():.4f})",
            flush=True,
        )


def fill(study: SharedStudy, count: int) -> None:
    """Let a study have `count` told trials: copies of its first one, written at once."""
    first, more = study.database.get_all_trials(1)[0], range(len(study), count)
    copied = "SELECT t.trial_id, {columns} FROM trials t, {table} c WHERE c.trial_id = :first AND t.number >= :number"
    tables = {
        "trial_params": ("param_name", "param_value", "distribution_json"),
        "trial_values": ("objective", "value", "value_type"),
        "trial_user_attributes": ("key", "value_json"),
    }
    key = study.database.get_trial_id_from_study_id_trial_number(1, first.number)
    names = {name: study.database.engine.dialect.identifier_preparer.quote(name) for name in ("key",)}
    with study.database.engine.begin() as connection:
        rows = [{"number": number} for number in more]
        connection.execute(
            sqlalchemy.text("INSERT INTO trials (number, study_id, state) VALUES (:number, 1, 'COMPLETE')"), rows
        )
        for table, columns in tables.items():
            quoted = [names.get(column, column) for column in columns]
            source = copied.format(columns=", ".join(f"c.{column}" for column in quoted), table=table)
            connection.execute(
                sqlalchemy.text(f"INSERT INTO {table} (trial_id, {', '.join(quoted)}) {source}"),
                {"first": key, "number": more.start},
            )


def storage(options: argparse.Namespace, surface: Surface) -> None:
    """Print how long it takes to ask for a trial and to tell it in studies of several sizes."""
    for size in [size for size in (100, 1000, 10_000) if size <= options.trials]:
        with tempfile.TemporaryDirectory() as name:

            def opened(folder: str = name) -> SharedStudy:
                sampler = build(options.sampler, surface, options.seed)
                return SharedStudy(Path(folder), options.storage, surface.space, DIRECTIONS, sampler, Patience(3600, 3))

            first = opened()
            told(first)
            fill(first, size)
            for _ in range(options.running):
                first.take(lambda: True)
            study = opened()
            told(study)  # reads all trials once
            other = opened()
            assert other.num_told == len(study) - options.running
            start, processor = time.perf_counter(), time.process_time()
            for _ in range(TIMED):
                told(study)
            seconds, used = time.perf_counter() - start, time.process_time() - processor
            processor = time.process_time()
            assert other.num_told == len(study) - options.running
            reading = time.process_time() - processor
            print(
                f"{size} trials, {options.running} more run: {1000 * seconds / TIMED:.0f} ms a trial, "
                f"{1000 * used / TIMED:.0f} ms of one core; another worker reads it in {1000 * reading / TIMED:.2f} ms",
                flush=True,
            )


def computed(options: argparse.Namespace, surface: Surface) -> None:
    """Print the utilisation of workers that have a core each."""
    for workers in options.workers:
        times = durations(options.trials, options.seconds, options.spread, options.seed)
        rng = np.random.default_rng(options.seed)
        ready = [(0.0, worker) for worker in range(workers)]
        dead: list[tuple[float, int]] = []  # trials by the time from which they may be asked again
        asked = told = kills = 0
        lock = last = end = 0.0
        spans: list[tuple[float, float]] = []
        read = [0] * workers
        while told < options.trials:
            now, worker = heapq.heappop(ready)
            now += options.read * (asked - read[worker])
            read[worker] = asked
            begin = max(now, lock)
            if dead and dead[0][0] <= begin:
                number = heapq.heappop(dead)[1]
            elif asked < options.trials:
                number, asked = asked, asked + 1
            else:
                if not dead:  # the others finish what is left
                    continue
                heapq.heappush(ready, (dead[0][0] + rng.random(), worker))
                continue
            lock = begin + options.ask
            last = max(last, lock) if number == options.trials - 1 and not last else last
            dies, share_done = rng.random() < options.kills, rng.random()
            stop = lock + float(times[number]) * (share_done if dies else 1.0)
            spans.append((lock, stop))
            if dies:
                kills += 1
                heapq.heappush(dead, (stop + options.grace, number))
            else:
                told += 1
                end = max(end, stop)
            heapq.heappush(ready, (stop, worker))
        busy = sum(stop - begin for begin, stop in spans)
        until_last = sum(min(stop, last) - begin for begin, stop in spans if begin < last)
        print(
            f"{workers} workers, {options.trials} trials of {options.seconds:g} s x{options.spread:g}, {kills} kills, "
            f"computed: {end:.0f} s; utilisation {until_last / workers / last:.3f} until the last trial is asked, "
            f"{busy / workers / end:.3f} to the end",
            flush=True,
        )


def told(study: SharedStudy) -> None:
    """Ask for a trial and tell it."""
    asked = study.take(lambda: len(study) >= 0)
    assert asked is not None
    study.finish(asked, Outcome(asked.number, asked.arch.to_dict(), {"score": 0.5, "macs": 1.0}))


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["real", "hypervolume", "storage", "computed"])
    parser.add_argument("--workers", type=int, nargs="+", default=[8])
    parser.add_argument("--trials", type=int, default=80)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--spread", type=float, default=10.0)
    parser.add_argument("--kills", type=float, default=0.1)
    parser.add_argument("--grace", type=int, default=20, help="seconds without a heartbeat until a worker is dead")
    parser.add_argument("--sampler", default="pareto_evolution")
    parser.add_argument("--storage", help="URL of a database; by default an SQLite file")
    parser.add_argument("--running", type=int, default=0, help="trials that run while others are asked and told")
    parser.add_argument("--ask", type=float, default=0.03, help="seconds to ask for a trial and to tell it")
    parser.add_argument("--read", type=float, default=0.001, help="seconds to read a trial of another worker")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    surface = Surface(instantiate(OmegaConf.load(conf_dir() / "supernet" / "bignas.yaml")))
    if options.what == "real":
        for workers in options.workers:
            real(argparse.Namespace(**{**vars(options), "workers": workers}), surface)
    else:
        {"hypervolume": hypervolume, "storage": storage, "computed": computed}[options.what](options, surface)


if __name__ == "__main__":
    main()
