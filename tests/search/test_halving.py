"""Successive halving: which trials continue, and the mean cost of a trial."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from nas_transfer.arch import Gene
from nas_transfer.errors import ConfigError
from nas_transfer.runs import Direction, Job, Outcome, read_job, read_outcome
from nas_transfer.search.halving import Rungs
from nas_transfer.search.loop import Budget, Schedule, SearchLoop
from nas_transfer.search.problem import Problem
from nas_transfer.search.study import Study
from nas_transfer.space import SearchSpace
from tests.search.test_samplers import SPACE, build

DIRECTIONS = {"score": "maximize", "macs": "minimize"}
ARCH = SPACE.smallest().to_dict()


def outcomes(*values: tuple[float, float]) -> dict[int, Outcome]:
    return {
        number: Outcome(number, ARCH, {"score": score, "macs": macs}) for number, (score, macs) in enumerate(values)
    }


def test_the_ends_and_the_other_non_dominated_trials_continue_first() -> None:
    scored = outcomes((0.9, 100), (0.1, 10), (0.5, 50), (0.4, 60), (0.3, 90), (0.2, 95))
    assert Rungs((0, 1), 0.5).survivors(scored, DIRECTIONS) == {0, 1, 2}
    assert Rungs((0, 1), 0.34).survivors(scored, DIRECTIONS) == {0, 1, 2}  # rounded up
    assert Rungs((0, 1), 0.01).survivors(scored, DIRECTIONS) <= {0, 1}
    assert Rungs((0, 1), 1.0).survivors(scored, DIRECTIONS) == set(range(6))


def test_trials_that_failed_or_were_left_out_do_not_continue() -> None:
    scored = outcomes((0.9, 100), (0.5, 50)) | {
        7: Outcome.failed(7, ARCH, "broken"),
        8: Outcome(8, ARCH, reason="too slow", left_out=True),
    }
    assert Rungs((0, 1), 1.0).survivors(scored, DIRECTIONS) == {0, 1}
    assert Rungs((0, 1), 1.0).survivors({7: scored[7]}, DIRECTIONS) == set()


def test_baselines_continue_beside_the_best_whatever_their_rank() -> None:
    scored = outcomes((0.9, 100), (0.1, 10), (0.5, 50), (0.4, 60), (0.3, 90), (0.2, 95))
    best = Rungs((0, 1), 0.34).survivors(scored, DIRECTIONS)
    assert Rungs((0, 1), 0.34).survivors(scored, DIRECTIONS, {0, 4, 5}) == best | {4, 5}
    scored[4] = Outcome.failed(4, ARCH, "broken")
    assert Rungs((0, 1), 0.34).survivors(scored, DIRECTIONS, {4}) == {0, 1}  # two of the five that are left


def test_a_budget_counts_what_baselines_cost_more() -> None:
    budget = Budget(images=1000, images_per_trial=100, images_per_baseline=200)
    assert budget.trials_left(0, 0.0, None) == 10
    assert budget.trials_left(0, 0.0, None, 2) == 2 + 6
    assert budget.trials_left(700, 0.0, None, 2) == 1.5
    assert budget.trials_left(1000, 0.0, None, 2) <= 0
    assert budget.trials_left(1200, 0.0, None, 2) == 0


def test_the_whole_network_is_trained_to_the_last_rung_at_every_size(tmp_path: Path) -> None:
    space = SearchSpace("inputs", (Gene("resolution", (32, 48, 64)), Gene("depth", (1, 2, 3)), Gene("x", (1, 2, 3))))
    problem = Problem(space, input_gene="resolution")

    def launch(jobs: Sequence[Job]) -> list[str | None]:
        for evaluation in (evaluation for job in jobs for evaluation in read_job(job.path)):
            size = cast(int, evaluation.arch["resolution"]) * cast(int, evaluation.arch["depth"])
            values = {"score": 1 / size, "macs": float(size)}  # the larger, the worse: halving keeps none of them
            images = evaluation.steps - evaluation.after
            Outcome(evaluation.trial, evaluation.arch, values, images=images).write(tmp_path / evaluation.file)
        return [None] * len(jobs)

    directions: dict[str, Direction] = {"score": "maximize", "macs": "minimize"}
    study = Study(tmp_path, None, space, directions, build("random", problem))
    budget = Budget(images=8 * 2 + 3 * 3 + 2, images_per_trial=2 + 0.25 * 3, images_per_baseline=5)
    schedule = Schedule(20, 8, 8, 9, Rungs((2, 5), 0.25), budget)
    loop = SearchLoop(study, tmp_path, schedule, launch, lambda: None, problem.resized)
    assert loop.baselines_left() == 3
    loop.run()
    assert loop.baselines_left() == 0
    finished = [trial.arch for trial in study.told()]
    assert all(arch.to_dict() in finished for arch in problem.resized)
    best = {outcome.trial for outcome in map(read_outcome, (tmp_path / "rungs").glob("*.5.json")) if outcome}
    assert study.images() == 5 * len(best) + 2 * (len(study) - len(best))
    assert len(study) == 3 + int((27 - 3 * 5) / 2.75)  # without the baselines, nine trials would fit


def test_mean_costs_are_those_of_a_large_batch() -> None:
    rungs = Rungs((0, 100, 400), 0.5)
    assert rungs.steps_per_trial == 0.5 * 100 + 0.25 * 300
    assert rungs.scorings_per_trial == 1.75
    assert Rungs((100,)).steps_per_trial == 100


@pytest.mark.parametrize("steps", [(), (100, 50), (5, 5), (-1,), (2.5,)])
def test_rungs_are_ascending_steps(steps: tuple) -> None:
    with pytest.raises(ConfigError, match=r"proxy\.rungs must be numbers"):
        Rungs(steps)


def test_a_share_to_keep_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"proxy\.keep must be above 0"):
        Rungs((0, 1), 0.0)


def test_a_budget_limits_the_number_of_further_trials() -> None:
    assert Budget(images=1000, images_per_trial=100).trials_left(250, 0.0, None) == 7.5
    assert Budget(device_minutes=10).trials_left(0, 300.0, 20.0) == 15
    assert Budget(device_minutes=10).trials_left(0, 300.0, None) == float("inf")
    assert Budget(images=100, images_per_trial=10).trials_left(500, 0.0, None) == 0


def test_a_batch_that_is_interrupted_while_it_is_told_is_not_halved_again(tmp_path: Path) -> None:
    done: list[str] = []

    def launch(jobs: Sequence[Job]) -> list[str | None]:
        for job in jobs:
            for evaluation in read_job(job.path):
                done.append(evaluation.file)
                score = (9 - evaluation.trial) / 10 + evaluation.steps / 100
                images = evaluation.steps - evaluation.after
                outcome = Outcome(evaluation.trial, evaluation.arch, {"score": score}, images=images)
                outcome.write(tmp_path / evaluation.file)
        return [None] * len(jobs)

    def loop() -> SearchLoop:
        study = Study(tmp_path, None, SPACE, {"score": "maximize"}, build("random", Problem(SPACE)))
        schedule = Schedule(8, 8, 3, 9, Rungs((0, 2, 5), 0.5))
        return SearchLoop(study, tmp_path, schedule, launch, after_batch=lambda: None)

    first = loop()
    tell = first.study.tell

    def interrupt(outcome: Outcome) -> None:
        if outcome.trial == 3:
            raise KeyboardInterrupt
        tell(outcome)

    first.study.tell = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert len(done) == 8 + 4 + 2
    second = loop()
    second.run()
    assert len(done) == 8 + 4 + 2
    assert [trial.number for trial in second.study.told()] == [0, 1]  # the lower the number, the better
    assert second.study.images() == 4 * 2 + 2 * 3
