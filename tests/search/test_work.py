"""What evaluations left in files adds up, wherever they ran and whatever became of them."""

from pathlib import Path

from nas_transfer.runs.result import write_json_atomically
from nas_transfer.search.study import Outcome
from nas_transfer.search.work import Usage, usage_in, write_outcome


def test_usage_is_summed_over_all_outcomes_of_a_folder(tmp_path: Path) -> None:
    assert usage_in(tmp_path / "repeats") == Usage()
    outcomes = [
        Outcome({"score": 0.5}, seconds=2.0, device="cpu", images=10),
        Outcome({"score": 0.5}, seconds=3.0, device="cuda", images=20),
        Outcome.failed("out of memory", seconds=4.0),
    ]
    for number, outcome in enumerate(outcomes):
        write_outcome(tmp_path / "repeats" / f"{number}.1.json", outcome, write_json_atomically)
    assert usage_in(tmp_path / "repeats") == Usage(images=30, seconds=9.0, gpu_seconds=3.0)
