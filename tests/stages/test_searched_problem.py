"""The archs with which a search begins, and how many of them are drawn by chance."""

from pathlib import Path

import pytest

from nas_transfer.api.running import composed
from nas_transfer.runs import Costs, Front, Trial, read_front
from nas_transfer.search.front import write_front
from nas_transfer.search.problem import Problem
from nas_transfer.stages.common.build import build_blank
from nas_transfer.stages.common.planning import warn_of_chance
from nas_transfer.stages.common.problem import searched_problem
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import SearchConfig
from nas_transfer.tasks.task import Task


def config_of(*overrides: str) -> SearchConfig:
    return read_config(composed(["stage=search", "weights=none", *overrides]), SearchConfig)


def problem_of(task: str, *, repairs: bool) -> tuple[Task, Problem]:
    config = config_of(*f"task={task}".split())
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
    ("overrides", "num_more", "warning"),
    [
        ("search.trials=32", 0, "32 of 32 trials are proposed before the sampler learns from a score: add "
         "search.ask_batch=5 search.sampler.num_random=10"),
        ("search.trials=60 search.ask_batch=10", 0, "50 of 60 trials"),
        ("search.trials=60 search.ask_batch=50 search.sampler.num_random=20", 0, "50 of 60 trials"),
        ("search.trials=60 search.sampler.num_random=20 search.workers=4", 0, None),
        ("search.trials=32 search.ask_batch=5 search.sampler.num_random=10", 7, "20 of 32 trials are proposed before "
         "the sampler learns from a score: add search.ask_batch=5 search.sampler.num_random=4"),
        ("search.trials=32 search.ask_batch=5 search.sampler.num_random=4", 7, None),
        ("search.trials=32 search.ask_batch=5 search.sampler.num_random=10", 0, None),
        ("search.trials=200", 0, None),
        ("search.minutes=5", 0, None),
        ("search.trials=8", 0, None),
        ("search.trials=32 sampler=random", 0, None),
    ],
)  # fmt: skip
def test_a_search_that_leaves_most_to_chance_says_so(
    overrides: str, num_more: int, warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_chance(config_of("task=shapes_det", *overrides.split()), num_more)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == (warning is not None)
    assert warning is None or warning in messages[0]


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
