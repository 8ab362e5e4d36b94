"""Workers of one study: each trial is told once, whoever dies and when, and no outcome is lost."""

import json
import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import Evaluation, Outcome, files
from nas_transfer.search.halving import Rungs
from nas_transfer.search.loop import Budget, Schedule
from nas_transfer.search.problem import Problem
from nas_transfer.search.samplers.base import arch_of
from nas_transfer.search.shared_study import Asked, Patience, SharedStudy
from nas_transfer.search.workers import Worker
from nas_transfer.space import SearchSpace
from tests.guard import HANG_SECONDS
from tests.search.test_samplers import build

SPACE = SearchSpace(
    "toy", (Gene("resolution", (32, 48, 64)), *(Gene(f"depth.{k}", (1, 2, 3, 5)) for k in range(6)), Gene("x", (0, 8)))
)
DIRECTIONS = {"score": "maximize", "size": "minimize"}
SILENT = 100
"""Seconds of grace that no test waits for: `die` lets a worker be silent at once."""


def open_study(folder: Path, sampler: str = "random", **patience: int) -> SharedStudy:
    problem = Problem(SPACE, input_gene="resolution")
    return SharedStudy(
        folder, None, SPACE, DIRECTIONS, build(sampler, problem), Patience(**{"grace_seconds": SILENT, **patience})
    )


def score(arch: Arch) -> dict[str, float]:
    return {"score": float(np.sqrt(arch.values[1:]).sum()), "size": float(sum(arch.values))}


def evaluate(evaluation: Evaluation) -> Outcome:
    arch = SPACE.from_dict(evaluation.arch)
    return Outcome(evaluation.trial, evaluation.arch, score(arch), seconds=1.0, images=evaluation.steps)


def schedule(trials: int, rungs: Rungs | None = None, **options: object) -> Schedule:
    return Schedule(trials, 1, 1, **{"max_failures": 3, "rungs": rungs or Rungs(), **options})


def always() -> bool:
    return True


def never() -> bool:
    return False


def die(study: SharedStudy, asked: Asked | None) -> Asked:
    """Let the heartbeats of a trial be older than any grace, as if its worker had died."""
    assert asked is not None
    with study.database.engine.begin() as connection:
        text = "UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00' WHERE trial_id = :trial"
        connection.execute(sqlalchemy.text(text), {"trial": asked.trial_id})
    return asked


def outcomes(folder: Path) -> dict[int, dict]:
    return {int(path.stem): json.loads(path.read_text()) for path in (folder / "trials").glob("*.json")}


def require_files_of_told(study: SharedStudy, count: int) -> None:
    """All trials are finished, and their files say what the study says."""
    written = outcomes(study.folder)
    assert sorted(written) == list(range(count)) == [number for number, _ in study._numbered()]
    told = {trial.number: trial for trial in study.told()}
    for number, outcome in written.items():
        if outcome["reason"] is None:
            assert outcome["values"] == dict(told[number].values)
            assert outcome["values"] == score(SPACE.from_dict(outcome["arch"]))
    assert {number for number, outcome in written.items() if outcome["reason"] is None} == set(told)


def test_trials_are_read_as_optuna_reads_them(tmp_path: Path) -> None:
    study, reader = open_study(tmp_path), open_study(tmp_path)
    optuna_itself = RDBStorage(study.database.url)

    def require_equal() -> None:
        read = reader.database.get_all_trials(reader._study_id)
        assert read == optuna_itself.get_all_trials(study._study_id)

    for position in range(8):
        asked = study.take(always)
        assert asked is not None
        require_equal()
        outcome = evaluate(Evaluation(asked.number, asked.arch.to_dict()))
        if position % 4 == 1:
            outcome = replace(outcome, values={}, reason="a reason")
        if position % 4 == 2:
            outcome = replace(outcome, values={}, reason="a reason", left_out=True)
        if position % 4 != 3:  # goes on running
            assert study.finish(asked, outcome)
        require_equal()
    study.database.create_new_trial(study._study_id)  # its genes are being written
    require_equal()
    states = {trial.state for trial in reader.database.get_all_trials(reader._study_id)}
    assert states == {TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "pareto_evolution", "nsga2", "predicted_front"])
def test_workers_of_one_study_tell_each_trial_once_and_repeat_no_arch(tmp_path: Path, sampler: str) -> None:
    evaluated: list[int] = []

    def count(evaluation: Evaluation) -> Outcome:
        evaluated.append(evaluation.trial)
        return evaluate(evaluation)

    open_study(tmp_path)
    told: list[int] = []

    def work() -> None:
        told.append(Worker(open_study(tmp_path, sampler), schedule(14), count).run())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = open_study(tmp_path)
    require_files_of_told(study, 14)
    assert sum(told) == 14
    assert sorted(evaluated) == list(range(14))
    archs = [str(outcome["arch"]) for outcome in outcomes(tmp_path).values()]
    assert len(set(archs)) == 14
    assert SPACE.from_dict(outcomes(tmp_path)[0]["arch"]) == SPACE.smallest()
    assert SPACE.from_dict(outcomes(tmp_path)[1]["arch"]) == SPACE.largest()


@pytest.mark.slow
def test_trials_that_run_are_not_asked_again_and_count_as_pending(tmp_path: Path) -> None:
    study = open_study(tmp_path, "predicted_front")
    for _ in range(14):
        asked = study.take(always)
        assert asked is not None
        study.finish(asked, evaluate(Evaluation(asked.number, asked.arch.to_dict())))
    first, second = open_study(tmp_path, "predicted_front"), open_study(tmp_path, "predicted_front")
    running = [each.take(always) for each in (first, second, first, second)]
    archs = {each.arch.values for each in running if each is not None}
    assert len(archs) == 4
    sampler = open_study(tmp_path, "predicted_front")
    sampler.take(always)
    assert archs <= set(sampler.sampler.history.pending)


def test_a_worker_that_died_while_it_asked_leaves_its_trial_to_the_next(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    study._study._storage.create_new_trial(study._study._study_id)
    asked = open_study(tmp_path).take(never)
    assert asked is not None
    assert (asked.number, asked.arch) == (0, SPACE.smallest())


def test_genes_of_a_worker_that_died_while_it_wrote_them_are_replaced(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        study = open_study(tmp_path / str(number))
        for _ in range(6):
            study.take(always)
        trial_id = study._study._storage.create_new_trial(study._study_id)
        name, distribution = next(iter(study.sampler.infer_relative_search_space(study._study, None).items()))  # type: ignore[arg-type]
        study._study._storage.set_trial_param(trial_id, name, number % len(SPACE.genes[0].choices), distribution)
        asked = open_study(tmp_path / str(number)).take(never)
        assert asked is not None
        assert asked.trial_id == trial_id
        assert arch_of(SPACE, study.database.get_trial(trial_id).params) == asked.arch


@pytest.mark.parametrize("left_out", [True, False])
def test_a_trial_whose_worker_died_while_it_told_a_reason_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: bool
) -> None:
    study, other = open_study(tmp_path), open_study(tmp_path)
    asked = study.take(always)
    outcome = Outcome(asked.number, asked.arch.to_dict(), {}, reason="a reason", left_out=left_out)

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study._study, "tell", end)
    with pytest.raises(KeyboardInterrupt):
        study.finish(asked, outcome)
    die(study, asked)
    again = other.take(never)
    assert again is not None
    assert again.number == asked.number
    assert other.finish(again, outcome)
    (trial,) = other._finished()
    assert trial.state == (TrialState.PRUNED if left_out else TrialState.FAIL)


def test_a_trial_whose_worker_died_is_asked_again_under_its_number(tmp_path: Path) -> None:
    study, other = open_study(tmp_path), open_study(tmp_path)
    asked = die(study, study.take(always))
    again = other.take(never)
    assert again is not None
    assert (again.number, again.arch) == (asked.number, asked.arch)
    assert again.attempt != asked.attempt
    assert other.take(never) is None
    assert len(other) == 1
    # The worker was only silent: what it tells now is refused.
    late = Outcome(asked.number, asked.arch.to_dict(), {"score": 9.0, "size": 9.0})
    assert not study.finish(asked, late)
    assert other.finish(again, evaluate(Evaluation(again.number, again.arch.to_dict())))
    assert not study.finish(asked, late)
    require_files_of_told(other, 1)


def test_a_trial_is_not_told_while_another_worker_lets_it_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, other = open_study(tmp_path), open_study(tmp_path)
    asked = die(study, study.take(always))
    told: list[bool] = []
    outcome = evaluate(Evaluation(asked.number, asked.arch.to_dict()))
    waits, lock = threading.Event(), study._lock

    def noted() -> AbstractContextManager[object]:
        waits.set()
        return lock()

    monkeypatch.setattr(study, "_lock", noted)
    thread = threading.Thread(target=lambda: told.append(study.finish(asked, outcome)))
    with other._lock():
        thread.start()
        assert waits.wait(HANG_SECONDS)
        assert other._put_back_dead(other._trials())
    thread.join()
    assert told == [False]
    again = other.take(never)
    assert again is not None
    assert other.finish(again, outcome)
    assert [trial.state for trial in other._trials()] == [TrialState.FAIL, TrialState.COMPLETE]


def test_running_trials_are_read_again_only_once_their_state_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = open_study(tmp_path), open_study(tmp_path)
    running = [study.take(always) for _ in range(3)]
    assert len(other._trials()) == 3
    read: list[int] = []
    read_trials = other.database._read

    def counted(connection: sqlalchemy.Connection, trial_ids: Collection[int]) -> list[FrozenTrial]:
        trials = read_trials(connection, trial_ids)
        read.extend(trial.number for trial in trials)
        return trials

    monkeypatch.setattr(other.database, "_read", counted)
    assert [trial.state for trial in other._trials()] == [TrialState.RUNNING] * 3
    assert not read
    asked = running[1]
    assert asked is not None
    study.finish(asked, evaluate(Evaluation(asked.number, asked.arch.to_dict())))
    study._study._storage.create_new_trial(study._study._study_id)  # its genes are being written
    for _ in range(2):
        states = [trial.state for trial in other._trials()]
        assert states == [TrialState.RUNNING, TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING]
    assert read == [1, 3, 3]
    open_study(tmp_path).take(always)
    assert all(set(trial.params) == set(SPACE.names) for trial in other._trials())


@pytest.mark.parametrize("table", ["trials", "trial_params", "trial_values", "trial_user_attributes"])
def test_a_trial_that_ends_while_another_worker_reads_it_keeps_its_values(tmp_path: Path, table: str) -> None:
    study, reader = open_study(tmp_path), open_study(tmp_path)
    asked = study.take(always)
    assert asked is not None
    told: list[bool] = []

    def tell(connection: object, cursor: object, statement: str, *_: object) -> None:
        if not told and re.search(rf"FROM {table}\b", statement):
            told.append(study.finish(asked, evaluate(Evaluation(asked.number, asked.arch.to_dict()))))

    sqlalchemy.event.listen(reader.database.engine, "after_cursor_execute", tell)
    assert reader.num_told in (0, 1)
    assert told == [True]
    assert [(trial.number, trial.values) for trial in reader.told()] == [(0, score(asked.arch))]
    assert reader._trials() == study._trials()


def test_a_worker_that_died_between_the_end_of_a_trial_and_its_retry_loses_none(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    asked = study.take(always)
    assert asked is not None
    study._study._storage.set_trial_state_values(asked.trial_id, TrialState.FAIL)
    assert study.num_open == 1
    study.publish()
    assert not outcomes(tmp_path)
    again = study.take(never)
    assert again is not None
    assert again.number == asked.number


def test_an_outcome_on_disk_is_not_evaluated_again(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    asked = die(study, study.take(always))
    evaluate(Evaluation(asked.number, asked.arch.to_dict())).write(tmp_path / files.rung_file(asked.number, 0))

    def fail(evaluation: Evaluation) -> Outcome:
        raise AssertionError(evaluation)

    assert Worker(open_study(tmp_path), schedule(1), fail).run() == 1
    require_files_of_told(study, 1)


def test_a_told_trial_whose_file_is_missing_is_written_from_the_study(tmp_path: Path) -> None:
    Worker(open_study(tmp_path), schedule(3), evaluate).run()
    before = outcomes(tmp_path)
    (tmp_path / files.trial_file(0)).unlink()
    (tmp_path / files.trial_file(2)).write_text("{")
    open_study(tmp_path).publish()
    assert outcomes(tmp_path) == before


def test_a_trial_fails_after_so_many_dead_workers_and_says_so(tmp_path: Path) -> None:
    study = open_study(tmp_path, retries=2)
    for _ in range(3):
        assert die(study, study.take(always)).number == 0
    assert study.take(never) is None
    assert study.failures() == [(0, "its worker died 3 times")]
    study.publish()
    assert outcomes(tmp_path)[0]["reason"] == "its worker died 3 times"
    assert Worker(open_study(tmp_path, retries=2), schedule(3), evaluate).run() == 2
    require_files_of_told(study, 3)
    archs = [SPACE.from_dict(outcome["arch"]) for _, outcome in sorted(outcomes(tmp_path).items())]
    assert archs == list(Problem(SPACE, input_gene="resolution").first[:3])  # attempts take no place of another trial


def test_a_worker_that_is_ended_gives_its_trial_back_without_a_retry(tmp_path: Path) -> None:
    def interrupted(evaluation: Evaluation) -> Outcome:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            Worker(open_study(tmp_path, retries=0), schedule(2), interrupted).run()
    study = open_study(tmp_path, retries=0)
    assert Worker(study, schedule(2), evaluate).run() == 2
    require_files_of_told(study, 2)


def test_a_larger_number_of_trials_continues_a_finished_study(tmp_path: Path) -> None:
    assert Worker(open_study(tmp_path), schedule(4), evaluate).run() == 4
    assert Worker(open_study(tmp_path), schedule(4), evaluate).run() == 0
    assert Worker(open_study(tmp_path), schedule(7), evaluate).run() == 3


def test_failures_in_a_row_end_every_worker(tmp_path: Path) -> None:
    def broken(evaluation: Evaluation) -> Outcome:
        return Outcome.failed(evaluation.trial, evaluation.arch, "it is broken")

    for _ in range(2):
        with pytest.raises(RunError, match=r"4 trials in a row failed.*max_failures=3.*trial 3: it is broken"):
            Worker(open_study(tmp_path), schedule(9), broken).run()
    assert len(outcomes(tmp_path)) == 4


def test_a_budget_counts_the_trials_that_run(tmp_path: Path) -> None:
    rungs = Rungs((10,))
    limited = schedule(99, rungs, budget=Budget(images=40, images_per_trial=10, images_per_baseline=10))
    study = open_study(tmp_path)
    worker = Worker(study, limited, evaluate)
    running = study.take(worker.may_ask)
    assert running is not None
    asked = [running]
    while (more := study.take(worker.may_ask)) is not None:
        asked.append(more)
    assert len(asked) == 4
    (tmp_path / "other").mkdir()
    exhausted = schedule(9, rungs, budget=Budget(images=5, images_per_trial=10, images_per_baseline=10))
    with pytest.raises(ConfigError, match=r"used up proxy.budget"):
        Worker(open_study(tmp_path / "other"), exhausted, evaluate).run()


@pytest.mark.slow
def test_rungs_have_no_barrier_and_a_dead_worker_leaves_its_rung_to_another(tmp_path: Path) -> None:
    rungs = Rungs((0, 2, 4), keep=0.5)
    done: list[tuple[int, int, int]] = []

    def train(evaluation: Evaluation) -> Outcome:
        done.append((evaluation.trial, evaluation.after, evaluation.steps))
        if evaluation.keep and evaluation.steps:
            state = files.state_file(tmp_path, evaluation.trial, evaluation.steps)
            state.parent.mkdir(exist_ok=True)
            state.touch()
        return evaluate(evaluation)

    def dies(evaluation: Evaluation) -> Outcome:
        if evaluation.steps == 4:
            raise SystemExit
        return train(evaluation)

    with pytest.raises(SystemExit):
        Worker(open_study(tmp_path), schedule(12, rungs), dies).run()
    assert done == [(0, 0, 0), (0, 0, 2)]  # the first of a rung always goes on
    study = open_study(tmp_path)
    Worker(study, schedule(12, rungs), train).run()
    assert done[2] == (0, 2, 4)
    assert len(set(done)) == len(done)
    reached = Counter(steps for _, _, steps in done)
    assert reached[0] == 12
    assert 0 < reached[4] <= reached[2] < 12
    written = outcomes(tmp_path)
    assert len(written) == 12
    assert {number for number, outcome in written.items() if outcome["reason"] is None} == {
        number for number, _, steps in done if steps == 4
    }
    for number, outcome in written.items():
        assert outcome["images"] == sum(steps for trial, _, steps in done if trial == number)
        assert outcome["reason"] is None or "not among the best" in outcome["reason"]
    assert not list((tmp_path / "states").iterdir())


def test_baselines_reach_the_last_rung(tmp_path: Path) -> None:
    baselines = Problem(SPACE, input_gene="resolution").resized
    study = open_study(tmp_path)
    Worker(study, schedule(12, Rungs((0, 2), 0.1)), evaluate, baselines=baselines).run()
    told = {SPACE.from_dict(trial.arch) for trial in study.told()}
    assert set(baselines) <= told


def test_a_study_in_batches_is_not_continued_by_workers(tmp_path: Path) -> None:
    (tmp_path / files.STUDY).touch()
    with pytest.raises(RunError, match=r"begun in batches: leave search\.workers out"):
        open_study(tmp_path)


def killed_at(seed: int, points: int) -> Callable[[], None]:
    """A function that kills this process at one of its next calls, chosen from the seed."""
    left = int(np.random.default_rng(seed).integers(1, points))

    def maybe() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(9)

    return maybe


def work_until_killed(folder: Path, seed: int, log: Path) -> None:
    """A worker that dies at random: while it asks, evaluates or tells, or before it writes a file."""
    maybe = killed_at(seed, 7)

    def count(evaluation: Evaluation) -> Outcome:
        maybe()
        outcome = evaluate(evaluation)
        maybe()
        return outcome

    study = open_study(folder, grace_seconds=1, retries=50)
    sampled, tell = study.sampler.sample_relative, study._tell_once

    def sample(*arguments: object) -> dict[str, int]:
        maybe()
        return sampled(*arguments)

    def tell_once(asked: Asked, final: Outcome) -> bool:
        maybe()
        told = tell(asked, final)
        with log.open("a") as stream:
            stream.write(f"{asked.number} {told}\n")
        maybe()
        return told

    study.sampler.sample_relative = sample
    study._tell_once = tell_once
    Worker(study, schedule(16), count).run()


@pytest.mark.nightly
def test_workers_that_are_killed_at_random_lose_nothing_and_tell_nothing_twice(tmp_path: Path) -> None:
    study = open_study(tmp_path, grace_seconds=1, retries=50)
    fork = multiprocessing.get_context("fork")
    log = tmp_path / "told.txt"
    log.touch()
    killed = 0
    for seed in range(0, 40, 2):  # two at a time, until both have come to the end of the study
        workers = [fork.Process(target=work_until_killed, args=(tmp_path, seed + one, log)) for one in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        died = [worker.exitcode == 9 for worker in workers]
        killed += sum(died)
        if not any(died):
            break
    Worker(open_study(tmp_path, grace_seconds=1, retries=50), schedule(16), evaluate).run()
    study.publish()
    require_files_of_told(study, 16)
    assert killed >= 5  # four points of death a trial, at most six of them before each death
    told = Counter(line.split()[0] for line in log.read_text().splitlines() if line.endswith("True"))
    assert max(told.values()) == 1
    complete = [trial for trial in study._trials() if trial.state == TrialState.COMPLETE]
    assert len(complete) == 16
