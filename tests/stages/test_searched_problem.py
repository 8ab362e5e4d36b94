"""The archs with which a search begins, and how many of them are drawn by chance."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from nas_transfer.api.running import composed
from nas_transfer.errors import ConfigError
from nas_transfer.runs import Costs, Front, Job, Trial, read_front
from nas_transfer.runs.plan import Plan, read_plan
from nas_transfer.search.front import write_front
from nas_transfer.search.problem import Problem
from nas_transfer.stages.common.build import build_blank
from nas_transfer.stages.common.planning import divided, plan_of_run, planned, shares_of
from nas_transfer.stages.common.problem import searched_problem
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import ProxyConfig, SearchConfig
from nas_transfer.tasks.task import Task


def config_of(*overrides: str, stage: str = "search", kind: type[SearchConfig] = SearchConfig) -> SearchConfig:
    return read_config(composed([f"stage={stage}", "weights=none", *overrides]), kind)


def problem_of(task: str, *overrides: str, repairs: bool) -> tuple[Task, Problem]:
    config = config_of(*f"task={task}".split(), *overrides)
    built = build_blank(config, config.supernet.build())
    objectives = {name: objective.build() for name, objective in config.search.objectives.items()}
    return built, searched_problem(config, built, objectives, repairs=repairs)


HEADS = {
    "shapes_cls": [],
    "shapes_det": [
        {"fpn_channels": 32, "box_head_channels": 128},
        {"fpn_channels": 16, "box_head_channels": 64},
    ],
    "shapes_det detector=several_shapes": [
        {"faster_rcnn_fpn_channels": 32, "faster_rcnn_box_head_channels": 128},
        {"faster_rcnn_fpn_channels": 16, "faster_rcnn_box_head_channels": 64},
    ],
    "shapes_seg": [],
    "shapes_pose": [],
}
"""The narrower heads of conf/detector whose weights can be repaired."""


@pytest.mark.parametrize("task", HEADS)
def test_a_search_of_a_whole_network_begins_with_its_narrower_heads(task: str) -> None:
    built, problem = problem_of(task, repairs=True)
    largest = built.space.largest()
    changes = [
        {name: arch[name] for name in built.space.names if arch[name] != largest[name]} for arch in problem.narrowed
    ]
    assert changes == HEADS[task]
    assert set(problem.narrowed) <= set(problem.first)


def test_a_search_of_a_supernet_does_not() -> None:
    assert problem_of("shapes_det", repairs=False)[1].narrowed == ()


@pytest.mark.parametrize(
    ("overrides", "num_more", "plan"),
    [
        ("search.trials=32", 0, (5, 10)),
        ("search.trials=32", 7, (5, 4)),
        ("search.trials=1000", 7, (50, 20)),
        ("search.trials=32 sampler=predicted_front", 0, (5, 10)),
        ("search.trials=32 sampler=random", 0, (5, None)),
        ("search.trials=32 search.ask_batch=8 search.sampler.num_random=3", 7, (8, 3)),
        ("search.trials=1", 0, (2, 4)),
    ],
)
def test_batches_and_start_follow_from_the_trials_unless_they_are_given(
    overrides: str, num_more: int, plan: tuple[int, int | None]
) -> None:
    config = config_of("task=shapes_det", *overrides.split())
    assert config.search.trials is not None
    made = divided(config, config.search.trials, num_more)
    assert (made.ask_batch, made.num_random) == plan
    trained = divided(config_of("search.trials=1000", stage="proxy", kind=ProxyConfig), 1000, num_more)
    assert (trained.ask_batch, trained.num_random) == (10, 20)
    done = planned(config, made)
    assert done.search.ask_batch == plan[0]
    assert done.search.schedule(done.rungs(), done.budget(1)).ask_batch == plan[0]
    assert "num_random" not in done.search.sampler or done.search.sampler["num_random"] == plan[1]


def test_a_search_that_goes_on_keeps_its_start(tmp_path: Path) -> None:
    def plan(trials: int) -> Plan:
        config = config_of("task=shapes_cls", f"search.trials={trials}", f"run_dir={tmp_path}")
        return plan_of_run(config, launch_nothing, problem, task, repairs=False)

    task, problem = problem_of("shapes_cls", repairs=False)
    assert plan(24) == Plan(24, 4, 8 - problem.num_more)
    assert plan(90) == Plan(90, 15, 8 - problem.num_more) == read_plan(tmp_path)
    assert plan(12) == Plan(12, 2, 8 - problem.num_more)


def launch_nothing(jobs: Sequence[Job]) -> list[str | None]:
    raise AssertionError(f"no archs are timed with search.trials, got {jobs}")


@pytest.mark.parametrize("frozen", ["null", "{min_size: 64}", "{min_size: 96}"])
def test_archs_are_placed_between_those_that_are_timed(frozen: str) -> None:
    task, problem = problem_of("shapes_det", f"search.frozen={frozen}", repairs=True)
    rng = np.random.default_rng(1)
    archs = [task.space.sample(rng, problem.frozen) for _ in range(400)]
    smallest, largest = task.cost_totals([task.space.smallest(), task.space.largest()]).macs  # whatever is frozen
    shares = shares_of(problem, task, repairs=True)
    for share, placed in ((shares.typical, archs), (shares.baselines, problem.baselines)):
        expected = (task.cost_totals(placed).macs.mean() - smallest) / (largest - smallest)
        assert share == pytest.approx(expected, abs=0.05)
    assert shares.baselines > shares.typical


def test_limits_on_costs_are_known_before_damages_are_measured() -> None:
    limited = ["objective=[damage,macs]", "search.constraints={macs: {max: 80e6}}"]
    task, problem = problem_of("shapes_det", *limited, repairs=True)
    assert len(problem.baselines) > 1
    assert all(task.cost_totals([arch]).macs[0] <= 80e6 for arch in problem.baselines)
    limited = ["objective=[damage,macs]", "search.constraints={damage: {max: 1}}"]
    with pytest.raises(ConfigError, match=r"search\.constraints of damage needs search\.trials=N instead of"):
        problem_of("shapes_det", *limited, repairs=True)
    problem_of("shapes_det", *limited, "search.trials=9", repairs=True)


def test_a_written_front_keeps_the_baselines_with_their_costs(tmp_path: Path) -> None:
    cost = Costs(
        {"total": 10}, {"total": 1}, params_checkpoint=1, input_size=(32, 32), num_classes=2, classes_are="classes"
    )
    best, small, narrow = (Trial(number, {"n": number}, {"score": 0.5, "macs": 10.0}) for number in range(3))
    front = Front({"score": "maximize", "macs": "minimize"}, (best,), resized=(small,), narrowed=(narrow,))
    write_front(tmp_path, front, lambda trial: cost)
    written = read_front(tmp_path)
    assert [trial.number for trial in written.baselines] == [1, 2]
    assert [trial.number for trial in written.narrowed] == [2]
    assert all(trial.costs == cost and trial.file == "" for trial in written.baselines)
