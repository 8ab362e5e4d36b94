"""The gain of a front over the whole network at each input size, against a computation by hand."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from nas_transfer.arch import Gene
from nas_transfer.runs import Front, Trial
from nas_transfer.search.front import front_of
from nas_transfer.search.resizing import Gain, curve_of, gains_of, trials_of
from nas_transfer.space import SearchSpace

OBJECTIVES = {"score": "maximize", "macs": "minimize"}


def trials(points: Sequence[tuple[float, float]], start: int) -> list[Trial]:
    return [
        Trial(start + index, {"n": start + index}, {"macs": macs, "score": score})
        for index, (macs, score) in enumerate(points)
    ]


def front(whole: Sequence[tuple[float, float]], searched: Sequence[tuple[float, float]]) -> Front:
    """The front of a study; the whole network's trials come first, as in a search."""
    resized = trials(whole, 0)
    found = front_of([*resized, *trials(searched, 100)], OBJECTIVES)
    return Front(OBJECTIVES, found.trials, resized=tuple(resized))


def gain(whole: Sequence[tuple[float, float]], searched: Sequence[tuple[float, float]]) -> Gain:
    (found,) = gains_of(front(whole, searched))
    return found


def score_by_hand(whole: Sequence[tuple[float, float]], macs: float) -> float:
    """The best score of the whole network at this cost, by trying all pairs of sizes that neither wastes."""
    kept = [
        one for one in whole
        if not any((o[0] <= one[0] and o[1] >= one[1]) and o != one for o in whole)
    ]  # fmt: skip
    kept = sorted(set(kept))
    if macs <= kept[0][0]:
        return kept[0][1]
    for (low, worse), (high, better) in pairwise(kept):
        if low <= macs <= high:
            return worse + (macs - low) / (high - low) * (better - worse)
    return kept[-1][1]


def cost_by_hand(whole: Sequence[tuple[float, float]], score: float) -> float:
    """The cost of the whole network at this score: bisection on `score_by_hand`, clipped to its curve."""
    kept = [one for one in whole if not any((o[0] <= one[0] and o[1] >= one[1]) and o != one for o in whole)]
    low, high = min(kept)[0], max(kept)[0]
    if score_by_hand(whole, low) >= score:
        return low
    if score_by_hand(whole, high) <= score:
        return high
    for _ in range(200):
        middle = (low + high) / 2
        if score_by_hand(whole, middle) < score:
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize("seed", range(40))
def test_gains_are_those_computed_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Small integers, so that ties are frequent.
    whole = [(float(a), float(b) / 10) for a, b in rng.integers(1, 10, (int(rng.integers(1, 6)), 2))]
    searched = [(float(a), float(b) / 10) for a, b in rng.integers(1, 12, (int(rng.integers(1, 12)), 2))]
    study = front(whole, searched)
    (found,) = gains_of(study)
    best = [trial for trial in study.trials if trial.number >= 100]
    kept = [one for one in whole if not any((o[0] <= one[0] and o[1] >= one[1]) and o != one for o in whole)]
    cheapest, costliest = min(kept), max(kept)
    expected = {}
    for trial in best:
        macs, score = trial.values["macs"], trial.values["score"]
        if macs < cheapest[0] and score < cheapest[1]:
            continue
        beyond = macs > costliest[0] and score > costliest[1]
        saving = None if beyond else 1 - macs / cost_by_hand(whole, score)
        expected[trial.number] = (score - score_by_hand(whole, macs), saving)
    assert {one.trial for one in found.advantages} == set(expected)
    assert found.num_cheaper == len(best) - len(expected)
    for one in found.advantages:
        more, saving = expected[one.trial]
        assert one.score == pytest.approx(more, abs=1e-9)
        assert (one.saving is None) == (saving is None)
        assert one.saving == (saving if saving is None else pytest.approx(saving, abs=1e-9))
        # A trial above the curve is one to its left, where both are defined.
        assert one.saving is None or abs(one.score) < 1e-9 or (one.saving > -1e-9) == (one.score > 0)


def test_sizes_in_between_lie_on_straight_lines() -> None:
    found = gain([(10, 0.5), (20, 0.7), (40, 0.8)], [(15, 0.65), (30, 0.78)])
    assert [(one.trial, pytest.approx(one.score), pytest.approx(one.saving)) for one in found.advantages] == [
        (101, 0.78 - 0.75, 1 - 30 / 36), (100, 0.65 - 0.6, 1 - 15 / 17.5),
    ]  # fmt: skip
    assert str(found) == (
        "compared with resizing the whole network, the front has up to 5.00 points more score at equal macs "
        "(trial 100; 4.00 on average over 2 networks) and up to 16.7 % less macs at equal score "
        "(trial 101; 15.5 % on average over 2 networks)"
    )


def test_a_size_that_is_worse_and_costlier_is_no_part_of_the_curve() -> None:
    study = front([(10, 0.5), (20, 0.7), (40, 0.6), (30, 0.7)], [(35, 0.72)])
    assert [trial.number for trial in curve_of(study, "macs")] == [0, 1]
    (found,) = gains_of(study)
    (only,) = found.advantages
    assert only.score == pytest.approx(0.72 - 0.7)  # more cost than 20 buys nothing
    assert only.saving is None  # costlier and better than the whole network ever is


@pytest.mark.parametrize("searched", [[], [(20, 0.7)], [(15, 0.6)], [(14, 0.55)], [(50, 0.7)]])
def test_a_front_that_is_no_better_says_so(searched: list[tuple[float, float]]) -> None:
    found = gain([(10, 0.5), (20, 0.7)], searched)
    assert found.best_score is None
    assert found.best_saving is None
    assert str(found) == "the search found nothing better than resizing the whole network in score and macs"


def test_a_single_size_is_compared_as_it_is() -> None:
    both = gain([(20, 0.7)], [(15, 0.75)])
    assert (both.advantages[0].score, both.advantages[0].saving) == (pytest.approx(0.05), pytest.approx(0.25))
    assert str(both).startswith("compared with the whole network, the front has up to 5.00 points more")
    assert gain([(20, 0.7)], [(15, 0.7)]).best_saving == (100, pytest.approx(0.25))
    assert gain([(20, 0.7)], [(20, 0.8)]).best_score is not None
    assert gain([(20, 0.7)], [(25, 0.8)]).best_saving is None
    assert "nothing better than the whole network in" in str(gain([(20, 0.7)], [(21, 0.6)]))


def test_a_front_without_overlap_is_not_compared() -> None:
    found = gain([(10, 0.5), (20, 0.7)], [(5, 0.4), (2, 0.1)])
    assert (found.advantages, found.num_cheaper) == ((), 2)
    assert str(found) == (
        "the search found nothing that can be compared with resizing the whole network: "
        "2 networks of the front cost less and score less than every size of it"
    )
    mixed = gain([(10, 0.5), (20, 0.7)], [(5, 0.4), (9, 0.6)])
    assert str(mixed).endswith("(trial 101; 40.0 % on average over 1 network); 1 network of the front cost less and "
                               "score less than every size of it")  # fmt: skip


def test_narrower_heads_are_part_of_the_curve() -> None:
    sizes, heads = trials([(40, 0.8), (10, 0.5)], 0), trials([(20, 0.75), (15, 0.5)], 10)
    searched = trials([(30, 0.79), (8, 0.3)], 100)
    found = front_of([*sizes, *heads, *searched], OBJECTIVES)
    study = Front(OBJECTIVES, found.trials, resized=tuple(sizes), narrowed=tuple(heads))
    assert [trial.number for trial in curve_of(study, "macs")] == [1, 10, 0]
    (only,) = gains_of(study)
    assert [one.trial for one in only.advantages] == [100]  # network 10 is on the front, but is no find of the search
    assert only.advantages[0].score == pytest.approx(0.79 - 0.775)
    assert str(only) == (
        "compared with the whole network, resized or with narrower heads, the front has up to 1.50 points more score "
        "at equal macs (trial 100; 1.50 on average over 1 network) and up to 16.7 % less macs at equal score "
        "(trial 100; 16.7 % on average over 1 network); 1 network of the front cost less and score less than "
        "all of these"
    )
    (alone,) = gains_of(Front(OBJECTIVES, found.trials, resized=(sizes[0],), narrowed=tuple(heads)))
    assert alone.baseline == "the whole network, with narrower heads"


def test_each_cost_is_compared_alone_and_a_study_without_a_score_or_whole_network_is_not() -> None:
    values = [{"score": 0.5, "macs": 10.0, "ms": 1.0}, {"score": 0.4, "macs": 10.0, "ms": 0.5}]
    whole, other = (Trial(number, {}, one) for number, one in enumerate(values))
    objectives = {**OBJECTIVES, "ms": "minimize"}
    found = gains_of(Front(objectives, (whole, other), resized=(whole,)))
    assert [(one.cost, len(one.advantages), one.num_cheaper) for one in found] == [("macs", 0, 0), ("ms", 0, 1)]
    assert gains_of(Front(objectives, (whole, other))) == []
    costs_alone = {"macs": "minimize", "ms": "minimize"}
    assert gains_of(Front(costs_alone, (whole, other), resized=(whole,))) == []


def test_an_error_that_is_minimised_gains_where_it_is_lower() -> None:
    whole, found = (Trial(n, {}, {"score": error, "macs": 10.0}) for n, error in enumerate((0.3, 0.2)))
    (one,) = gains_of(Front({"score": "minimize", "macs": "minimize"}, (found,), resized=(whole,)))
    assert one.advantages[0].score == pytest.approx(0.1)


def test_the_whole_network_is_found_once_at_each_size() -> None:
    space = SearchSpace("sizes", (Gene("resolution", (32, 64)), Gene("depth", (1, 2))))
    archs = [space.arch(values) for values in ((32, 1), (64, 2), (32, 2), (64, 2))]
    told = [Trial(number, arch.to_dict(), {"score": 0.5}) for number, arch in enumerate(archs)]
    assert [trial.number for trial in trials_of(told, [archs[1], archs[2]])] == [1, 2]
