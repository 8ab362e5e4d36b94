"""What is timed before a search with a budget in minutes."""

import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from nas_transfer.arch import Gene
from nas_transfer.runs import Evaluation
from nas_transfer.space import SearchSpace
from nas_transfer.stages.common.timing import timing_of

SPACE = SearchSpace("net", (Gene("depth", (1, 2)),))


def evaluator_of(seconds: dict[int, list[float]], *, repairs: bool) -> MagicMock:
    """Evaluations of each depth that take these seconds, one after the other."""

    def evaluate(evaluation: Evaluation) -> SimpleNamespace:
        took = seconds[evaluation.arch["depth"]].pop(0)
        return SimpleNamespace(
            seconds=took, training_seconds=0.5 * evaluation.steps, reason=None, images=evaluation.steps, training_macs=0
        )

    evaluator = MagicMock(objectives={}, repair=MagicMock() if repairs else None, evaluate=evaluate)
    evaluator.supernet.space = SPACE
    evaluator.supernet.device.type = "cpu"
    return evaluator


@pytest.mark.parametrize("steps", [0, 4])
def test_what_the_first_repairs_prepare_is_no_part_of_a_trial(steps: int) -> None:
    trained = 0.5 * steps
    evaluator = evaluator_of({1: [50.0, 10.0 + trained], 2: [60.0, 20.0 + trained]}, repairs=True)
    timing = timing_of(MagicMock(), evaluator, steps=steps, started=time.monotonic())
    assert timing.scoring_seconds == (10.0, 20.0)
    assert timing.preparation_seconds == 50 - 10 + 60 - 20
    assert timing.step_seconds == ((0.5, 0.5) if steps else ())
    assert timing.images == 2 * steps  # the first scores train nothing


def test_archs_of_a_supernet_are_timed_once() -> None:
    evaluator = evaluator_of({1: [10.0], 2: [20.0]}, repairs=False)
    timing = timing_of(MagicMock(), evaluator, steps=0, started=time.monotonic())
    assert (timing.scoring_seconds, timing.preparation_seconds) == ((10.0, 20.0), 0.0)
