"""How often a network is scored while it trains, and which weights are kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nas_transfer.errors import RunError
from nas_transfer.stages.common.scoring import BestWeights, steps_between_scorings
from nas_transfer.tasks.training import ScoringModule


@pytest.mark.parametrize(
    ("every", "expected"),
    [(None, None), (1, 15), (0.5, 8), (0.001, 1), ("auto", 36)],
    ids=["never", "epoch", "half an epoch", "each step", "ten times"],
)
def test_an_interval_is_given_in_epochs(every: Any, expected: int | None) -> None:
    assert steps_between_scorings(every, 360, 15, 4, 13) == expected


def test_scoring_costs_a_tenth_of_the_training_at_most() -> None:
    # 100 steps of 4 images are worth 1200 scored ones: a tenth pays for two passes over 50
    assert steps_between_scorings("auto", 100, 25, 4, 50) == 50
    assert steps_between_scorings("auto", 100, 25, 4, 1000) is None


class Scored(ScoringModule):
    """A module with a score for each step."""

    def __init__(self, scores: dict[int, float]) -> None:
        torch.nn.Module.__init__(self)
        self.scores, self.step = scores, 0

    def finish_scoring(self) -> dict[str, float]:
        return {"map": self.scores[self.step]}


def save(path: Path, metrics: Any, step: int) -> None:
    torch.save({"step": step, "metrics": dict(metrics)}, path)


def score(best: BestWeights, scores: dict[int, float], steps: list[int]) -> None:
    module, trainer = Scored(scores), SimpleNamespace(global_step=0, is_global_zero=True)
    for step in steps:
        module.step = trainer.global_step = step
        best.on_validation_epoch_end(trainer, module)  # type: ignore[arg-type]


def test_the_first_of_the_best_scores_is_kept(tmp_path: Path) -> None:
    best = BestWeights(tmp_path / "best.pt", save, "map", 50)
    score(best, {10: 0.1, 20: float("nan"), 30: 0.3, 40: 0.3, 50: 0.2}, [10, 20, 30, 40, 50])
    assert (best.step, best.score) == (30, 0.3)
    assert torch.load(best.path)["step"] == 30


def test_a_resumed_run_keeps_what_the_file_says_and_a_new_one_nothing(tmp_path: Path) -> None:
    scores = {10: 0.1, 20: 0.2, 30: 0.5, 40: 0.4, 50: 0.5}
    killed = BestWeights(tmp_path / "best.pt", save, "map", 50)
    score(killed, scores, [10, 20, 30])  # and killed; its last state is that of step 10
    resumed = BestWeights(tmp_path / "best.pt", save, "map", 50)
    resumed.load_state_dict({"scored_step": 10})
    resumed.on_train_start(SimpleNamespace(global_step=10, is_global_zero=True))  # type: ignore[arg-type]
    score(resumed, scores, [20, 30, 40, 50])
    assert (resumed.step, resumed.score) == (30, 0.5)
    BestWeights(tmp_path / "best.pt", save, "map", 50).on_train_start(
        SimpleNamespace(global_step=0, is_global_zero=True)  # type: ignore[arg-type]
    )
    assert not (tmp_path / "best.pt").exists()


@pytest.mark.parametrize("content", [None, b"damaged"], ids=["missing", "damaged"])
def test_a_resumed_run_that_ends_with_its_best_weights_needs_them(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    first = BestWeights(tmp_path / "best.pt", save, "map", 50, required=True)
    undefined = first.state_dict()
    score(first, {10: 0.1}, [10])
    if content is None:
        first.path.unlink()
    else:
        first.path.write_bytes(content)
    trainer: Any = SimpleNamespace(global_step=10, is_global_zero=True)
    resumed = BestWeights(first.path, save, "map", 50, required=True)
    resumed.load_state_dict(first.state_dict())
    with pytest.raises(RunError, match=r"best\.pt is missing or damaged, .* train again with resume=never"):
        resumed.on_train_start(trainer)
    unneeded = BestWeights(first.path, save, "map", 50)
    unneeded.load_state_dict(first.state_dict())
    unneeded.on_train_start(trainer)
    assert "the best of the remaining steps is kept" in caplog.text
    unscored = BestWeights(first.path, save, "map", 50, required=True)
    unscored.load_state_dict(undefined)
    unscored.on_train_start(trainer)  # no score was defined before
    assert unscored.step is None
