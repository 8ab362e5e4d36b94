"""Samplers propose new and feasible archs that depend on the seed alone, and never loop endlessly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from optuna.trial import TrialState

from nas_transfer.arch import Arch, Gene
from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.search.problem import Costs, Limit, Problem
from nas_transfer.search.samplers.base import ArchSampler, History, arch_of, ask
from nas_transfer.search.samplers.screen import QuadraticScreen
from nas_transfer.space import SearchSpace

SPACE = SearchSpace(
    "toy", (Gene("resolution", (32, 64)), *(Gene(f"depth.{k}", (1, 2, 3, 5)) for k in range(6)), Gene("x", (0, 8)))
)
NAMES = sorted(path.stem for path in (conf_dir() / "sampler").glob("*.yaml"))
FAST = [name for name in NAMES if name != "gp"]


def size(archs: Sequence[Arch]) -> np.ndarray:
    return np.array([sum(arch.values[1:]) for arch in archs], dtype=float)


def costs(archs: Sequence[Arch]) -> Costs:
    return {"size": size(archs)}


def build(name: str, problem: Problem, seed: int = 0, **options: Any) -> ArchSampler:
    cfg = OmegaConf.load(conf_dir() / "sampler" / f"{name}.yaml")
    if name == "pareto_evolution":
        options = {"num_random": 6} | options
    elif name == "predicted_front":
        options = {"num_random": 6, "predictor": "ridge", "population": 12, "generations": 4} | options
    elif name == "evolution":
        options = {"population": 6, "parents": 3, "mutations": 2, "crossovers": 2} | options
    return instantiate(OmegaConf.merge(cfg, options))(problem=problem, seed=seed)


def score(arch: Arch) -> list[float]:
    """Minus a made-up score, and the size."""
    return [-float(np.sqrt(arch.values[1:]).sum()) - 0.01 * arch.values[-1], float(size([arch])[0])]


def asked(name: str, problem: Problem, trials: int, seed: int = 0, restart_at: int | None = None) -> list[Arch]:
    """The archs of a study in batches of six; optionally a new sampler takes over at a trial, as in a new process."""
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=build(name, problem, seed))
    archs: list[Arch] = []
    for start in range(0, trials, 6):
        batch = []
        for number in range(start, min(trials, start + 6)):
            if number == restart_at:
                study.sampler = build(name, problem, seed)
            batch.append(ask(study, problem.space))
        for trial in batch:
            archs.append(arch_of(problem.space, trial.params))
            study.tell(trial, score(archs[-1]))
    return archs


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_archs_are_new_feasible_and_begin_with_the_ends(name: str) -> None:
    problem = Problem(SPACE, {"resolution": 64}, {"size": Limit(high=20)}, costs)
    archs = asked(name, problem, 40)
    assert len({arch.values for arch in archs}) == 40
    assert size(archs).max() <= 20
    assert {arch["resolution"] for arch in archs} == {64}
    assert archs[0].values == (64, 1, 1, 1, 1, 1, 1, 0)
    free = asked(name, Problem(SPACE), 2)
    assert free == [SPACE.smallest(), SPACE.largest()]


INPUTS = SearchSpace("inputs", (Gene("resolution", (32, 48, 64)), *(Gene(f"depth.{k}", (1, 2, 3)) for k in range(3))))


@pytest.mark.parametrize("name", NAMES)
def test_a_search_begins_with_the_ends_and_the_whole_network_at_each_smaller_input(name: str) -> None:
    if name == "gp":
        pytest.importorskip("scipy")
    archs = asked(name, Problem(INPUTS, input_gene="resolution"), 6)
    assert [arch.values for arch in archs[:4]] == [(32, 1, 1, 1), (64, 3, 3, 3), (48, 3, 3, 3), (32, 3, 3, 3)]
    assert len(set(archs)) == 6


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("choices", [(32, 48, 64), (48,)])
def test_a_frozen_or_fixed_input_changes_no_arch(name: str, choices: tuple[int, ...]) -> None:
    space = SearchSpace("inputs", (Gene("resolution", choices), *INPUTS.genes[1:]))
    frozen = {"resolution": 48}
    assert asked(name, Problem(space, frozen, input_gene="resolution"), 14) == asked(name, Problem(space, frozen), 14)
    assert Problem(space, frozen, input_gene="resolution").num_more == 0
    assert asked(name, Problem(space, input_gene="absent"), 8) == asked(name, Problem(space), 8)


def test_inputs_outside_the_limits_are_left_out_and_keep_no_place() -> None:
    problem = Problem(INPUTS, {}, {"side": Limit(low=32, high=48)}, side, input_gene="resolution")
    archs = asked("random", problem, 6)
    assert [arch.values for arch in archs[:1]] == [(32, 1, 1, 1)]
    assert archs[1]["resolution"] < 64  # the largest arch is outside, so that this trial is proposed as any other
    assert [arch.values for arch in archs[2:4]] == [(48, 3, 3, 3), (32, 3, 3, 3)]
    assert [arch.values for arch in problem.resized] == [(48, 3, 3, 3), (32, 3, 3, 3)]


def test_a_space_of_inputs_alone_is_asked_without_repetition() -> None:
    space = SearchSpace("sizes", (Gene("resolution", (32, 48, 64)),))
    problem = Problem(space, input_gene="resolution")
    assert [arch.values for arch in asked("random", problem, 3)] == [(32,), (64,), (48,)]
    assert [arch.values for arch in problem.resized] == [(64,), (48,), (32,)]


def side(archs: Sequence[Arch]) -> Costs:
    return {"side": np.array([arch["resolution"] for arch in archs], dtype=float)}


@pytest.mark.parametrize("name", FAST)
def test_each_network_is_followed_by_others_with_the_same_weights(name: str) -> None:
    problem = Problem(INPUTS, input_gene="resolution", weightless_genes=("resolution",), num_variants=2)
    archs = asked(name, problem, 24)
    first = len(problem.first)
    assert len(set(archs)) == len(archs)
    assert archs[:first] == list(problem.first)
    for start in range(first, 24 - 2, 3):
        network = archs[start]
        for position in (start + 1, start + 2):
            if archs[position].values[1:] != network.values[1:]:  # all of its sizes have been asked for
                assert set(problem.variants(network)) <= set(archs[:position])
    followed = [archs[start].values[1:] == archs[start + 1].values[1:] for start in range(first, 24 - 2, 3)]
    assert sum(followed) > len(followed) // 2
    assert asked(name, problem, 24, restart_at=first + 2) == archs


def test_variants_are_all_other_choices_within_the_limits() -> None:
    problem = Problem(
        INPUTS,
        {"depth.2": 3},
        {"side": Limit(high=48)},
        side,
        weightless_genes=("resolution", "depth.2"),
        num_variants=1,
    )
    largest = problem.frozen_arch(INPUTS.largest())
    found = problem.variants(largest)
    assert [arch.values[1:] for arch in found] == [largest.values[1:]] * len(found)
    assert [arch["resolution"] for arch in found] == [side for side in INPUTS.genes[0].choices if side <= 48]


@pytest.mark.parametrize("name", ["pareto_evolution", "predicted_front"])
def test_the_random_start_is_as_long_beside_smaller_inputs(name: str) -> None:
    problem = Problem(INPUTS, input_gene="resolution")
    sampler, history = build(name, problem, num_random=6), History()
    for number in range(12):
        arch = INPUTS.sample(np.random.default_rng(number))
        history.add(arch, [float(number), -float(number)])
    drawn: list[int] = []
    problem.draw = lambda rng: drawn.append(1) or INPUTS.smallest()  # type: ignore[func-returns-value, method-assign]
    sampler.propose(history, 7, np.random.default_rng(0))
    assert drawn
    drawn.clear()
    sampler.propose(history, 8, np.random.default_rng(0))
    assert not drawn


@pytest.mark.parametrize("name", FAST)
def test_no_arch_is_asked_twice_for_genes_that_mean_nothing(name: str) -> None:
    dropped = [Gene(f"kernel.{block}", (3, 5, 7), ("depth", block + 1)) for block in range(1, 4)]
    space = SearchSpace("dropping", (Gene("resolution", (32, 64)), Gene("depth", (1, 2, 3, 4)), *dropped))
    archs = asked(name, Problem(space), 40)
    assert len(set(archs)) == 40
    for arch in archs:
        space.validate(arch)


@pytest.mark.parametrize("name", FAST)
def test_a_sampler_that_starts_anew_in_the_middle_asks_the_same(name: str) -> None:
    problem = Problem(SPACE)
    whole = asked(name, problem, 30)
    assert asked(name, problem, 30, restart_at=15) == whole
    assert asked(name, problem, 30, seed=1)[2:] != whole[2:]


@pytest.mark.slow
def test_the_gaussian_process_takes_two_objectives_and_limits() -> None:
    pytest.importorskip("scipy")
    problem = Problem(SPACE, {}, {"size": Limit(high=20)}, costs)
    sampler = build("gp", problem, build={"n_startup_trials": 4})
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for _ in range(8):
        trial = ask(study, SPACE)
        study.tell(trial, score(arch_of(SPACE, trial.params)))
    assert all(size([arch_of(SPACE, trial.params)])[0] <= 20 for trial in study.trials)


def test_evolution_breeds_from_the_best_by_the_first_objective() -> None:
    sampler = build("evolution", Problem(SPACE), parents=1, mutation=0.01)
    history = History()
    best = SPACE.from_dict({"resolution": 32, "depth": [5, 1, 5, 1, 5, 1], "x": 8})
    history.add(best, [-9.0, 99.0])
    for _ in range(5):
        history.add(SPACE.sample(np.random.default_rng(3)), [-1.0, 0.0])
    rng = np.random.default_rng(0)
    mutated = [sampler.propose(history, 6, rng) for _ in range(20)]
    differing = [sum(a != b for a, b in zip(arch.values, best.values, strict=True)) for arch in mutated]
    assert max(differing) <= 2
    assert [sampler.propose(history, 8, rng) for _ in range(3)] == [best] * 3  # both parents are the best
    assert len({sampler.propose(history, 11, rng).values for _ in range(9)}) > 5  # the rest of a generation is random


def test_pending_are_the_archs_of_open_trials_alone() -> None:
    sampler = build("random", Problem(SPACE))
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    trials = [ask(study, SPACE) for _ in range(6)]
    archs = [arch_of(SPACE, trial.params) for trial in trials]

    def pending() -> list[Arch]:
        sampler.history.update(study.get_trials(deepcopy=False), study.directions, SPACE, len(trials))
        return list(sampler.history.pending.values())

    assert pending() == archs
    study.tell(trials[0], score(archs[0]))
    study.tell(trials[1], state=TrialState.FAIL)
    study.tell(trials[2], state=TrialState.PRUNED)
    assert pending() == archs[3:]
    assert sampler.history.archs == archs[:1]
    assert sampler.history.seen == {arch.values for arch in archs}


def test_a_space_that_is_used_up_repeats_instead_of_looping() -> None:
    tiny = SearchSpace("tiny", (Gene("a", (1, 2)), Gene("b", (1, 2))))
    sampler = build("random", Problem(tiny))
    history = History()
    for number in range(6):
        history.add(sampler.next_arch(history, number), [0.0, 0.0])
    assert len(history.seen) == 4


def test_rare_feasible_archs_are_found_and_none_is_an_error_with_the_nearest_value() -> None:
    rare = Problem(SPACE, {}, {"size": Limit(high=6)}, costs)  # two archs of 16384
    assert rare.draw(np.random.default_rng(0)).values[1:] == (1, 1, 1, 1, 1, 1, 0)
    narrow = Problem(SPACE, {}, {"size": Limit(low=29.5, high=30.5)}, costs)
    assert size([narrow.draw(np.random.default_rng(0))])[0] == 30
    with pytest.raises(ConfigError, match=r"size with max 5 \(nearest found: 6\)"):
        Problem(SPACE, {}, {"size": Limit(high=5)}, costs).draw(np.random.default_rng(0))
    with pytest.raises(ConfigError, match="min must be below its max, got min 3 and max 2"):
        Limit(3, 2)


def test_the_screen_prefers_what_a_bilinear_surface_rewards() -> None:
    rng = np.random.default_rng(0)
    history = History()

    def surface(arch: Arch) -> list[float]:
        x = SPACE.encode(arch) / 3
        return [-float(x[1] + x[2] * x[3] - 0.5 * x[4]), float(x.sum())]

    for _ in range(120):
        arch = SPACE.sample(rng)
        history.add(arch, surface(arch))
    values = history.values
    from nas_transfer.search.pareto import non_dominated

    front = values[non_dominated(values)]
    picks, ranks = QuadraticScreen(Problem(SPACE)), []
    for _ in range(20):
        archs = [SPACE.sample(rng) for _ in range(16)]
        ahead = [(front - surface(arch)).max(1).min() for arch in archs]
        ranks.append(sorted(ahead, reverse=True).index(ahead[archs.index(picks.best(archs, history, front))]))
    assert np.mean(ranks) < 2


def test_the_journal_keeps_a_study_whose_last_line_was_cut_off(tmp_path: Path) -> None:
    from nas_transfer.runs import Outcome, files
    from nas_transfer.search.study import Study

    def opened() -> Study:
        sampler = build("random", Problem(SPACE))
        return Study(tmp_path, None, SPACE, {"score": "maximize", "size": "minimize"}, sampler)

    study = opened()
    first = study.ask()
    study.tell(Outcome(first[0], first[1].to_dict(), {"score": 0.5, "size": 3.0}))
    second = study.ask()
    journal = tmp_path / files.STUDY
    content = journal.read_bytes()
    for cut in (1, 30, 200, 700):
        journal.write_bytes(content[:-cut])
        again = opened()
        assert again.told()[0].arch == first[1].to_dict()
        assert again.open_trials() in ([second], [])
        if not again.open_trials():
            assert again.ask() == second


HEADS = SearchSpace(
    "heads",
    (
        *(Gene(f"depth.{k}", (1, 2, 3)) for k in range(3)),
        Gene("head", (1, 2, 3)),
        *(Gene(f"{name}_width", (4, 8, 16, 32), only_with=("head", head)) for head, name in enumerate("abc", 1)),
    ),
)


@pytest.mark.parametrize("name", FAST)
def test_every_head_is_tried_and_no_network_twice(name: str) -> None:
    archs = asked(name, Problem(HEADS), 40)
    assert len(set(archs)) == 40
    assert [arch.values for arch in archs[:6]] == [
        (1, 1, 1, 1, 4, 32, 32), (3, 3, 3, 3, 32, 32, 32), (3, 3, 3, 1, 32, 32, 32), (1, 1, 1, 2, 32, 4, 32),
        (3, 3, 3, 2, 32, 32, 32), (1, 1, 1, 3, 32, 32, 4),
    ]  # fmt: skip
    assert {arch["head"] for arch in archs[6:]} == {1, 2, 3}
    for arch in archs:
        HEADS.validate(arch)


def test_a_frozen_head_has_its_own_ends_and_no_other_is_proposed() -> None:
    problem = Problem(HEADS, {"head": 2})
    assert problem.size == 27 * 4
    archs = asked("predicted_front", problem, 20)
    assert [arch.values for arch in archs[:2]] == [(1, 1, 1, 2, 32, 4, 32), (3, 3, 3, 2, 32, 32, 32)]
    assert {arch["head"] for arch in archs} == {2}


WHOLE = SearchSpace(
    "whole",
    (
        Gene("depth", (1, 2, 3)),
        Gene("min_size", (32, 64)),
        Gene("fpn_channels", (4, 8, 16, 32)),
        Gene("box_channels", (8, 16)),
    ),
)
WIDTHS = ("fpn_channels", "box_channels")


@pytest.mark.parametrize("name", FAST)
def test_a_search_of_a_whole_network_begins_with_narrower_heads_too(name: str) -> None:
    problem = Problem(WHOLE, input_gene="min_size", width_genes=WIDTHS)
    narrower = [(3, 64, 16, 8), (3, 64, 8, 8), (3, 64, 4, 8)]
    assert [arch.values for arch in problem.narrowed] == narrower
    archs = asked(name, problem, 10)
    assert [arch.values for arch in archs[:6]] == [(1, 32, 4, 8), (3, 64, 32, 16), (3, 32, 32, 16), *narrower]
    assert len(set(archs)) == 10


def test_narrower_heads_keep_frozen_genes_and_the_limits() -> None:
    def width(archs: Sequence[Arch]) -> Costs:
        return {"width": np.array([arch["fpn_channels"] for arch in archs], dtype=float)}

    problem = Problem(WHOLE, {"box_channels": 16}, {"width": Limit(low=8, high=16)}, width, width_genes=WIDTHS)
    assert [arch.values for arch in problem.narrowed] == [(3, 64, 16, 16), (3, 64, 8, 16)]
    assert Problem(WHOLE, {"box_channels": 16, "fpn_channels": 8}, width_genes=WIDTHS).narrowed == ()
    assert Problem(WHOLE).narrowed == ()


def test_any_other_head_is_one_step_away() -> None:
    problem = Problem(HEADS)
    around = problem.neighbours(HEADS.smallest())
    assert {arch["head"] for arch in around} == {1, 2, 3}
