"""Races: who races against whom, how often a trial is dropped by mistake, and what loops and studies make of it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from optuna.trial import TrialState

from nas_transfer.runs import Direction, Evaluation, Job, Outcome, files, read_job, read_outcome
from nas_transfer.search.halving import Rungs
from nas_transfer.search.loop import Schedule, SearchLoop
from nas_transfer.search.problem import Problem
from nas_transfer.search.racing import LEAST_IMAGES, Dropped, Race, forget_others, looks_at, rival_of
from nas_transfer.search.study import Study
from nas_transfer.search.workers import Worker
from nas_transfer.tasks.tally import HitTally
from nas_transfer.tasks.task import Task
from tests.search.test_samplers import SPACE, build
from tests.search.test_workers import SPACE as SHARED_SPACE
from tests.search.test_workers import evaluate, open_study, outcomes

DIRECTIONS: dict[str, Direction] = {"score": "maximize", "macs": "minimize"}
IMAGES = 400
BATCH = 8


def test_trials_are_looked_at_after_growing_shares_and_never_after_few_images() -> None:
    assert looks_at(1000) == (125, 250, 500, 750)
    assert looks_at(100) == (LEAST_IMAGES, 50, 75)
    assert looks_at(LEAST_IMAGES) == ()
    assert all(count < number for number in range(1, 300) for count in looks_at(number))


def test_the_rival_is_the_best_of_those_that_are_no_worse_in_any_other_objective() -> None:
    directions: dict[str, Direction] = {"score": "maximize", "macs": "minimize", "speed": "maximize"}
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = [dict(zip(directions, rng.integers(0, 4, 3).astype(float).tolist(), strict=True)) for _ in range(6)]
        costs = dict(zip(("macs", "speed"), rng.integers(0, 4, 2).astype(float).tolist(), strict=True))
        best = None
        for number, row in enumerate(rows):
            fits = row["macs"] <= costs["macs"] and row["speed"] >= costs["speed"]
            if fits and (best is None or row["score"] > rows[best]["score"]):
                best = number
        found = rival_of(costs, [Outcome(number, {}, row) for number, row in enumerate(rows)], directions, "score")
        assert (None if found is None else found.trial) == best


@dataclass
class Predicting:
    """Stands for a classifier that has predicted the first `seen` images."""

    hits: np.ndarray
    seen: int = 0

    def tally(self, start: int = 0) -> HitTally:
        return HitTally(np.arange(len(self.hits)), self.hits).part(start, self.seen)


def race_in(folder: Path, rate: float = 0.05, images: int = IMAGES) -> Race:
    return Race(rate, folder, DIRECTIONS, "score", "top1", images, 0)


def raced(race: Race, hits: np.ndarray, costs: float = 9.0, rivals: tuple[int, ...] = (3,)) -> Dropped | None:
    """Let a classifier race in batches against the trials of `rivals`."""
    contest = race.contest(Evaluation(7, {}, rivals=rivals), {"macs": costs})
    task = Predicting(hits)
    try:
        for before in range(0, len(hits), BATCH):
            task.seen = min(len(hits), before + BATCH)
            contest.look(cast(Task, task), task.seen, before)
        contest.finish(cast(Task, task))
    except Dropped as end:
        return end
    return None


def with_rival(race: Race, hits: np.ndarray, number: int = 3, macs: float = 5.0) -> None:
    values = {"score": float(hits.mean()), "macs": macs}
    Outcome(number, {}, values).write(race.folder / files.trial_file(number))
    race.keep(number, HitTally(np.arange(len(hits)), hits))


def drawn(rng: np.random.Generator, share: float) -> np.ndarray:
    return rng.random(IMAGES) < share


def test_a_much_worse_trial_is_dropped_at_the_first_look_and_leaves_no_tally(tmp_path: Path) -> None:
    rng, race = np.random.default_rng(0), race_in(tmp_path)
    with_rival(race, drawn(rng, 0.9))
    end = raced(race, drawn(rng, 0.3))
    assert end is not None
    assert end.share == 56 / IMAGES  # the first batch that reaches 50 images
    assert str(end).startswith("dropped after 56 of 400 images: score 0.")
    assert "trial 3, which is no worse in other objectives" in str(end)
    assert not (tmp_path / files.tally_file(7)).exists()


def test_a_trial_without_a_rival_that_costs_no_more_is_scored_on_all_images(tmp_path: Path) -> None:
    rng, race = np.random.default_rng(0), race_in(tmp_path)
    with_rival(race, drawn(rng, 0.9))
    worse = drawn(rng, 0.3)
    assert raced(race, worse, costs=4.0) is None
    assert raced(race, worse, rivals=()) is None
    with np.load(tmp_path / files.tally_file(7)) as content:
        np.testing.assert_array_equal(content["hits"], worse)


def test_a_trial_that_its_rival_dominates_in_the_end_leaves_no_tally(tmp_path: Path) -> None:
    race, hits = race_in(tmp_path), drawn(np.random.default_rng(0), 0.5)
    with_rival(race, hits)
    worse = hits.copy()
    worse[np.flatnonzero(worse)[-1]] = False
    assert raced(race, worse) is None
    assert not (tmp_path / files.tally_file(7)).exists()
    assert raced(race, ~worse | hits) is None
    assert (tmp_path / files.tally_file(7)).exists()


@pytest.mark.parametrize("damage", ["missing", "damaged", "other images", "other kind"])
def test_no_trial_races_against_one_whose_tally_cannot_be_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rng, race = np.random.default_rng(0), race_in(tmp_path)
    best = drawn(rng, 0.9)
    with_rival(race, best)
    path = tmp_path / files.tally_file(3)
    if damage == "missing":
        path.unlink()
    elif damage == "damaged":
        path.write_bytes(path.read_bytes()[:40])
    elif damage == "other images":
        race.keep(3, HitTally(np.arange(IMAGES)[::-1].copy(), best))
    else:
        with path.open("wb") as stream:
            np.savez(stream, images=np.arange(IMAGES), hits=best.astype(np.float64))
    assert raced(race, drawn(rng, 0.1)) is None
    assert "no trial races against trial 3" in caplog.text


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_trials_as_good_as_their_rival_are_dropped_no_more_often_than_the_rate(tmp_path: Path, rate: float) -> None:
    """Both answer right equally often on the whole split, differ in every second image, and the order is random."""
    race, dropped, repeats = race_in(tmp_path, rate), 0, 400
    mine = np.tile([True, False, True, True], IMAGES // 4)
    other = np.tile([False, True, True, True], IMAGES // 4)
    with_rival(race, other)
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(IMAGES)
        race._arrays[3] = HitTally(np.arange(IMAGES), other[order]).arrays()
        dropped += raced(race, mine[order]) is not None
    assert dropped / repeats <= rate + 2 * np.sqrt(rate * (1 - rate) / repeats)
    assert rate < 0.1 or dropped


def test_a_higher_rate_drops_no_later(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    best, worse = drawn(rng, 0.8), drawn(rng, 0.65)
    ends = []
    for rate in (0.001, 0.01, 0.1, 0.5):
        race = race_in(tmp_path, rate)
        with_rival(race, best)
        end = raced(race, worse)
        ends.append(1.0 if end is None else end.share)
    assert ends == sorted(ends, reverse=True)
    assert ends[-1] < 1


def test_tallies_of_trials_that_left_the_front_are_deleted(tmp_path: Path) -> None:
    race = race_in(tmp_path)
    for number in (1, 2, 12):
        with_rival(race, drawn(np.random.default_rng(number), 0.5), number)
    forget_others(tmp_path, [2, 5])
    assert [path.name for path in (tmp_path / files.RACES_FOLDER).iterdir()] == ["2.npz"]


def made_up(evaluation: Evaluation, *, drops: bool) -> Outcome:
    """A made-up outcome; with `drops`, every third trial loses its race after a quarter of the images."""
    arch = SPACE.from_dict(evaluation.arch)
    values = {"score": float(np.sqrt(arch.values[1:]).sum()) / 100, "macs": float(sum(arch.values))}
    whole = Outcome(evaluation.trial, evaluation.arch, values)
    if not drops or evaluation.trial % 3 or not evaluation.rivals:
        return whole
    return replace(whole, values={}, reason="dropped after 1 of 4 images", left_out=True, scored=0.25)


def loop_in(folder: Path, rungs: Rungs, seen: dict[int, Evaluation], *, drops: bool = False) -> SearchLoop:
    def launch(jobs: Sequence[Job]) -> list[str | None]:
        for evaluation in itertools.chain.from_iterable(read_job(job.path) for job in jobs):
            seen[evaluation.trial] = evaluation
            made_up(evaluation, drops=drops).write(folder / evaluation.file)
        return [None] * len(jobs)

    problem = Problem(SPACE, input_gene="resolution")
    study = Study(folder, None, SPACE, DIRECTIONS, build("random", problem))
    return SearchLoop(study, folder, Schedule(30, 10, 5, 3, rungs, races=True), launch, lambda: None, problem.resized)


def dominated(values: dict[int, dict[str, float]], number: int) -> bool:
    mine = values[number]
    return any(
        other["score"] >= mine["score"] and other["macs"] <= mine["macs"] and other != mine for other in values.values()
    )


@pytest.mark.parametrize("rungs", [Rungs(), Rungs((0, 5), 1.0)])
def test_trials_race_against_the_front_before_their_batch_at_the_last_rung(tmp_path: Path, rungs: Rungs) -> None:
    seen: dict[int, Evaluation] = {}
    loop = loop_in(tmp_path, rungs, seen)
    loop.run()
    values = {trial.number: dict(trial.values) for trial in loop.study.told()}
    for number, evaluation in seen.items():
        before = {other: values[other] for other in range(number // 10 * 10)}
        front = tuple(other for other in before if not dominated(before, other))
        baseline = SPACE.from_dict(evaluation.arch) in loop.baselines
        assert set(evaluation.rivals or ()) <= set(front)
        expected = {tuple(sorted(before[other].items())) for other in front} if not baseline else set()
        assert {tuple(sorted(before[other].items())) for other in evaluation.rivals or ()} == expected
        assert evaluation.rivals is not None
    assert all(
        outcome is not None and outcome.scored == 1 for outcome in map(read_outcome, files.trial_files(tmp_path))
    )


def test_dropped_trials_are_left_out_and_the_study_says_what_they_saved(tmp_path: Path) -> None:
    seen: dict[int, Evaluation] = {}
    loop = loop_in(tmp_path, Rungs(), seen, drops=True)
    loop.run()
    dropped = [number for number, evaluation in seen.items() if evaluation.rivals and not number % 3]
    assert len(dropped) == 6
    assert loop.study.num_left_out() == 6
    assert not loop.study.failures()
    states = {trial.number: trial.state for trial in loop.study._trials()}
    assert all((states[number] == TrialState.PRUNED) == (number in dropped) for number in range(30))
    assert loop.study.raced().dropped == 6
    assert loop.study.raced().saved == pytest.approx(6 * 0.75 / 30)
    assert str(loop.study.raced()) == "6 trials lost their race, which saved 15.0 % of the images to score"


def test_workers_race_against_the_front_when_they_begin_a_trial(tmp_path: Path) -> None:
    study, seen = open_study(tmp_path), {}

    def note(evaluation: Evaluation) -> Outcome:
        seen[evaluation.trial] = (evaluation.rivals, tuple(study.front()))
        outcome = evaluate(evaluation)
        if evaluation.trial == 9:
            return replace(outcome, values={}, reason="dropped", left_out=True, scored=0.5)
        return outcome

    baselines = [SHARED_SPACE.largest()]
    Worker(study, Schedule(12, 1, 1, 3, races=True), note, baselines=baselines).run()
    assert seen[1][0] == ()  # the whole network
    for number in (0, *range(2, 12)):
        rivals, front = seen[number]
        assert rivals == front
    assert len(seen[11][0]) > 1
    assert study.raced().dropped == 1
    (tmp_path / files.trial_file(9)).unlink()
    study.publish()
    assert outcomes(tmp_path)[9]["scored"] == 0.5
