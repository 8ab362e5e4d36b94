"""The study of a search, read from its files."""

from pathlib import Path

import pytest

from nas_transfer.report.collect import read_run
from nas_transfer.report.studies import growth, read_study
from nas_transfer.runs import Outcome, Spent, files
from tests.report.run_folders import arch, write, write_study


@pytest.mark.parametrize("seed", range(3))
def test_the_hypervolume_grows_to_that_of_the_result(tmp_path: Path, seed: int) -> None:
    run = read_run(write_study(tmp_path / "a", seed=seed))
    study = read_study(run)
    assert study is not None
    grown = growth(study)
    assert grown is not None
    assert run.result is not None
    assert run.result.search is not None
    assert grown.shares[-1] == pytest.approx(run.result.search.hypervolume, rel=1e-9)
    assert list(grown.shares) == sorted(grown.shares)
    assert grown.seconds[-1] == run.result.seconds
    assert "0 to 200.000 M (as in result.json)" in grown.box


def test_the_box_of_an_unfinished_search_ends_at_the_largest_cost_so_far(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "a")
    (folder / files.RESULT).unlink()
    study = read_study(read_run(folder))
    assert study is not None
    grown = growth(study)
    assert grown is not None
    largest = max(outcome.values["macs"] for outcome in study.scored)
    assert f"macs from 0 to {largest / 1e6:.3f} M (the largest so far)" in grown.box


def test_what_came_before_the_first_trial_is_spent(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "a", "proxy")
    Spent(seconds=30.0, images=160).write(folder)
    study = read_study(read_run(folder))
    assert study is not None
    grown = growth(study)
    assert grown is not None
    assert (grown.seconds[0], grown.images[0], grown.images[-1]) == (32.0, 240, 160 + 12 * 80)


def test_outcomes_keep_their_archs_and_reasons_and_broken_ones_are_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "a")
    write(folder / files.trial_file(4), "{")
    (folder / files.trial_file(5)).unlink()
    study = read_study(read_run(folder))
    assert study is not None
    assert [outcome.trial for outcome in study.outcomes] == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12]
    assert study.outcomes[-1].reason == "out of memory"
    assert study.outcomes[1].arch == arch(1).to_dict()
    assert any(problem.startswith("trials/4.json cannot be read") for problem in study.problems)
    assert any("2 of 13 trials" in problem for problem in study.problems)


def test_an_outcome_without_a_value_of_an_objective_is_a_problem(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "a")
    Outcome(3, arch(3).to_dict(), {"score": 0.5}).write(folder / files.trial_file(3))
    study = read_study(read_run(folder))
    assert study is not None
    assert 3 not in [outcome.trial for outcome in study.outcomes]
    assert "trials/3.json has no value of macs" in study.problems


@pytest.mark.parametrize(
    "content",
    [
        {"objectives": [], "front": {}},
        {"format": 1, "objectives": [], "trials": []},
        {"format": 1, "objectives": {"score": "up"}, "trials": []},
        {"format": 1, "objectives": {"score": "maximize"}, "trials": [{"number": 1, "arch": {}, "values": {}}]},
    ],
)
def test_a_front_that_is_no_front_is_a_problem(tmp_path: Path, content: object) -> None:
    folder = write_study(tmp_path / "a")
    write(folder / files.FRONT, content)
    study = read_study(read_run(folder))
    assert study is not None
    assert study.problems
    assert growth(study) is None
