"""A study as its files tell it."""

import json
from pathlib import Path

import pytest

from nas_transfer.report.collect import read_run
from nas_transfer.report.studies import growth, read_study
from nas_transfer.runs.result import write_json_atomically
from nas_transfer.search.work import Spent, write_spent
from tests.report.run_folders import write, write_study


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_hypervolume_ends_at_that_of_the_result_also_where_that_does_not_state_its_box(
    tmp_path: Path, ends: bool, seed: int
) -> None:
    run = read_run(write_study(tmp_path / "a", ends=ends, seed=seed))
    study = read_study(run)
    assert study is not None
    found = growth(study)
    assert found is not None
    assert run.result is not None
    assert found.shares[-1] == pytest.approx(run.result["search"]["hypervolume"], rel=1e-9)
    assert list(found.shares) == sorted(found.shares)
    assert found.seconds[-1] == run.result["seconds"]
    assert "0 to 200.000 M (as in result.json)" in found.box


def test_what_came_before_the_first_trial_is_spent(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "a", "proxy")
    write_spent(folder / "warm_start.pt", Spent(seconds=30.0, images=160), write_json_atomically)
    study = read_study(read_run(folder))
    assert study is not None
    found = growth(study)
    assert found is not None
    assert (found.seconds[0], found.images[0], found.images[-1]) == (32.0, 240, 160 + 12 * 80)


def test_trials_keep_their_archs_and_reasons_and_broken_ones_are_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "a")
    write(folder / "trials/4.json", "{")
    (folder / "trials/5.json").unlink()
    study = read_study(read_run(folder))
    assert study is not None
    assert [trial.number for trial in study.told] == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12]
    assert study.told[-1].reason == "out of memory"
    works = json.loads((folder / "jobs/0.json").read_text())["works"]
    assert study.told[1].arch == works[1]["arch"]
    assert any("4.json cannot be read" in problem for problem in study.problems)
    assert any("2 of 13 trials" in problem for problem in study.problems)


def test_a_front_that_is_no_front_is_a_problem(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "a")
    write(folder / "front.json", {"objectives": [], "front": {}})
    study = read_study(read_run(folder))
    assert study is not None
    assert study.problems
    assert growth(study) is None
