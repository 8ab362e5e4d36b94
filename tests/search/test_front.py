"""Picking a trial of a front, and distinguishing neighbours by scores from other seeds."""

import numpy as np
import pytest
from scipy import stats

from nas_transfer.errors import ConfigError
from nas_transfer.runs import Front, Trial
from nas_transfer.search.front import TradeOff, pick
from nas_transfer.search.statistics import Rescored, paired_difference
from tests.search.test_samplers import SPACE

ARCH = SPACE.smallest().to_dict()
NAMES = ("score", "macs")


def front(*values: tuple[float, float]) -> Front:
    trials = tuple(Trial(number, ARCH, dict(zip(NAMES, pair, strict=True))) for number, pair in enumerate(values))
    return Front({"score": "maximize", "macs": "minimize"}, trials)


MEMBERS = front((0.80, 100e6), (0.78, 60e6), (0.60, 30e6), (0.30, 10e6))


@pytest.mark.parametrize(("ratio", "expected"), [(0.001, 0), (0.1, 1), (0.5, 1), (0.8, 2), (5.0, 3)])
def test_a_higher_price_of_cost_picks_a_smaller_network(ratio: float, expected: int) -> None:
    trade_off = TradeOff("macs", ratio=ratio)
    penalties = [
        (1.0 - score) + ratio * macs / 100e6 for score, macs in (trial.values.values() for trial in MEMBERS.trials)
    ]
    np.testing.assert_allclose(trade_off.penalties(MEMBERS), penalties)
    assert int(np.argmin(penalties)) == expected
    assert pick(MEMBERS, None, {}, trade_off).number == expected
    assert pick(MEMBERS, "trade_off", {"macs": 20e6}, trade_off).number == 3  # the only one within the cap


def test_max_score_key_scales_the_loss_of_score() -> None:
    halved = TradeOff("macs", max_score_key=0.8, ratio=0.1)
    np.testing.assert_allclose(halved.penalties(MEMBERS)[:2], [0.1, 0.02 / 0.8 + 0.06])


def test_without_a_trade_off_the_knee_is_picked() -> None:
    assert pick(MEMBERS, None, {}).number == pick(MEMBERS, "knee", {}).number == 1
    assert pick(MEMBERS, "best", {}).number == 0


def test_a_percentage_is_not_a_fraction() -> None:
    with pytest.raises(ConfigError, match=r"max_score_key must be above 0 and up to 1, got 100.*not percentages"):
        TradeOff("macs", max_score_key=100.0)
    with pytest.raises(ConfigError, match=r"score of 80 is above search\.trade_off\.max_score_key=1"):
        TradeOff("macs").penalties(front((80.0, 1.0), (60.0, 0.5)))
    with pytest.raises(ConfigError, match="ratio must be above 0, got 0"):
        TradeOff("macs", ratio=0.0)
    with pytest.raises(ConfigError, match=r"pick=trade_off needs search\.trade_off, .*got none"):
        pick(MEMBERS, "trade_off", {})


def test_neighbours_are_distinguished_as_by_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.01, 0.2):
        first, second = rng.normal(0.5, 0.01, 5), rng.normal(0.5 + shift, 0.01, 5)
        difference = paired_difference(first, second)
        reference = stats.ttest_rel(first, second)
        low, high = reference.confidence_interval(0.95)
        assert (difference.low, difference.high) == pytest.approx((low, high))
        assert difference.certain == (reference.pvalue < 0.05)
    scores = Rescored({7: (0.50, 0.52, 0.51), 3: (0.40, 0.43, 0.41), 9: (0.42, 0.40, 0.41)})
    assert scores.indistinguishable_from(7) == ()
    assert scores.indistinguishable_from(3) == (9,)
    assert scores.indistinguishable_from(9) == (3,)
    assert scores.repeats_of(3).std == pytest.approx(np.std([0.40, 0.43, 0.41], ddof=1))
    assert str(scores) == (
        "pairs of neighbours on the front that the scores of 3 other seeds do not distinguish: 3 and 9 (2 pairs in all)"
    )
    with pytest.raises(ValueError, match="at least two pairs, got 1"):
        paired_difference([1.0], [2.0])
