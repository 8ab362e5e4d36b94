"""What evaluations left in files adds up, wherever they ran and whatever became of them."""

from pathlib import Path

import pytest

from nas_transfer.errors import RunError
from nas_transfer.runs import Evaluation, Outcome, Spent, Usage, read_job, read_outcome, read_spent, usage_in, write_job

ARCH = {"space": "tiny", "depth": [1, 2]}


def test_usage_is_summed_over_all_outcomes_of_a_folder(tmp_path: Path) -> None:
    assert usage_in(tmp_path / "repeats") == Usage()
    outcomes = [
        Outcome(0, ARCH, {"score": 0.5}, seconds=2.0, device="cpu", images=10),
        Outcome(1, ARCH, {"score": 0.5}, seconds=3.0, device="cuda", images=20),
        Outcome(2, ARCH, reason="out of memory", seconds=4.0),
    ]
    for number, outcome in enumerate(outcomes):
        outcome.write(tmp_path / "repeats" / f"{number}.1.json")
    assert usage_in(tmp_path / "repeats") == Usage(images=30, seconds=9.0, gpu_seconds=3.0)


def test_an_outcome_holds_its_trial_and_arch(tmp_path: Path) -> None:
    outcome = Outcome(7, ARCH, {"score": 0.5, "macs": 3e6}, metrics={"top1": 0.5}, seconds=1.5, images=4)
    outcome.write(tmp_path / "trials/7.json")
    assert read_outcome(tmp_path / "trials/7.json") == outcome
    assert read_outcome(tmp_path / "trials/8.json") is None


def test_a_job_lists_its_evaluations(tmp_path: Path) -> None:
    evaluations = (
        Evaluation(3, ARCH, "trials/3.json", 40, 20, True),
        Evaluation(4, ARCH, "repeats/4.2.json", repeat=2),
    )
    job = write_job(tmp_path / "jobs/3.json", evaluations)
    assert (job.trials, read_job(job.path)) == ((3, 4), evaluations)
    assert [str(evaluation) for evaluation in evaluations] == ["trial 3 after 40 steps", "trial 4, repeat 2"]


def test_what_was_spent_before_the_first_trial_is_kept_beside_the_prepared_file(tmp_path: Path) -> None:
    assert read_spent(tmp_path) == Spent()
    spent = Spent(12.5, "cuda", 80, (0.1, 0.3), (1.0, 2.0))
    spent.write(tmp_path)
    assert read_spent(tmp_path) == spent
    assert spent.usage == Usage(80, 12.5, 12.5)
    assert Spent(12.5, "cpu", 80).usage == Usage(80, 12.5, 0.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[]", "must hold a mapping, got a list"),
        ('{"format": 9}', "format 1, got 9"),
        ('{"format": 1, "trial": 1}', "arch is missing"),
        ('{"format": 1, "trial": "1", "arch": {}}', "trial must be a whole number, got '1'"),
        ('{"format": 1, "trial": 1, "arch": {}, "values": {"score": Infinity}}', "numbers must be finite, got inf"),
        (
            '{"format": 1, "trial": 1, "arch": {}, "values": {"score": "high"}}',
            r"values\.score must be a number, got 'high'",
        ),
        ('{"format": 1, "trial": true, "arch": {}}', "trial must be a whole number, got True"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "1.json").write_text(text)
    with pytest.raises(RunError, match=reason):
        read_outcome(tmp_path / "1.json")
