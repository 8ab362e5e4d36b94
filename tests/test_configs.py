"""Every choice of every config group composes, and every `_target_` takes exactly the arguments that its YAML gives."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.arch import SUPERNET
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.build import build_task
from nas_transfer.stages.config.entry import config_sha256, read_config, record_of
from nas_transfer.stages.config.trusted import Trust, require_trusted

CONF = conf_dir()
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name != "archs"  # arch files are data, named by arch=
}
CHOICES = [(group, choice) for group, choices in GROUPS.items() for choice in choices]


def tasks_with(group: str) -> list[str]:
    """The tasks that choose from a group."""
    return [task for task in GROUPS["task"] if f"  - /{group}: " in (CONF / f"task/{task}.yaml").read_text()]


NEW_HEADS = {
    "lraspp": ("head", "_seg"), "simcc": ("head", "_pose"),
    "fcos": ("detector", "_det"), "fcos_separable": ("detector", "_det"), "ssdlite": ("detector", "_det"),
}  # fmt: skip
HEADS = [(task, choice) for choice, (group, kind) in NEW_HEADS.items() for task in tasks_with(group) if kind in task]
"""Every task with every head that it does not choose itself."""


def targets(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a `_target_`, however deep."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for child in node.values():
            yield from targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from targets(child)


def bind(node: dict[str, Any]) -> None:
    """Bind a node's keys to its target's signature: TypeError for a missing or an unknown one."""
    arguments = {key: value for key, value in node.items() if not key.startswith("_")}
    signature = inspect.signature(get_object(node["_target_"]))
    if node.get("_partial_"):
        signature.bind_partial(**arguments)
    else:
        signature.bind(**arguments)


def binds(content: dict[str, Any]) -> bool:
    """Whether all targets of a configuration take their arguments."""
    try:
        for node in targets(content):
            bind(node)
    except TypeError:
        return False
    return True


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*overrides])
    content = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=["=".join(choice) for choice in CHOICES])
def test_every_choice_composes_and_its_targets_take_its_arguments(group: str, choice: str) -> None:
    stage = ["stage=search"] if group in ("objective", "sampler", "search") else []
    if group == "head":  # of some kinds of task, one of which takes it
        assert any(binds(composed(f"task={task}", f"{group}={choice}")) for task in tasks_with(group))
        return
    found = list(targets(composed(*stage, f"{group}={choice}")))
    assert found
    for node in found:
        bind(node)


# Records share their fields: three stages between them have all the records that read a task.
STAGES_OF_TASKS = sorted(
    {(stage, "shapes_det") for stage in GROUPS["stage"]}
    | {(stage, task) for stage in ("finetune", "proxy", "predict") for task in GROUPS["task"]}
)


@pytest.mark.parametrize(("stage", "task"), STAGES_OF_TASKS)
def test_every_stage_and_every_task_is_read_into_its_record(stage: str, task: str) -> None:
    given = ["data.root=somewhere", "weights=a_run", *(["images=pictures"] if stage == "predict" else [])]
    classes = ["data.class_names=[a,b]"] if task == "small_seg" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"stage={stage}", f"task={task}", *given, *classes])
    config = read_config(cfg, record_of(cfg))
    assert config.stage.name == stage
    assert cfg.task.name == task
    assert callable(get_object(cfg.stage.run))
    assert config.config_sha256 == config_sha256(cfg)


@pytest.mark.parametrize(("task", "choice"), HEADS)
def test_every_task_takes_every_head_of_its_kind_with_its_genes(task: str, choice: str) -> None:
    classes = ["data.class_names=[a,b]"] if task == "small_seg" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"task={task}", f"{NEW_HEADS[choice][0]}={choice}", "data.root=somewhere", *classes])
    config = read_config(cfg, record_of(cfg))
    with torch.device("meta"):
        built = build_task(config, config.supernet.build(), SUPERNET, None)
    assert built.kind.name.endswith(choice)
    assert set(built.space.names) - set(built.table.space.names) == set(cfg.task.build.genes)
    smallest, largest = built.cost_totals([built.space.smallest(), built.space.largest()]).macs
    assert largest > 4 * smallest


def test_the_command_line_wins_over_what_a_task_chooses() -> None:
    content = composed("task=shapes_det", "supernet=bignas", "trainer.max_epochs=7")
    assert (content["supernet"]["name"], content["trainer"]["max_epochs"]) == ("bignas", 7)


@pytest.mark.parametrize(
    ("task", "head", "given", "lr"),
    [
        ("small_det", "detector=ssdlite", [], 0.002), ("small_det", "detector=small", [], 0.0005),
        ("small_det", "detector=ssdlite", ["task.recipe.lr=0.7"], 0.7), ("coco_det", "detector=fcos", [], 0.01),
        ("coco_det", "detector=several", [], 0.02),
    ],
)  # fmt: skip
def test_a_head_brings_its_own_recipe_and_the_command_line_wins(
    task: str, head: str, given: list[str], lr: float
) -> None:
    assert composed(f"task={task}", head, *given)["task"]["recipe"]["lr"] == lr


def test_a_wrong_and_a_missing_argument_are_found() -> None:
    node = next(node for node in targets(composed()) if node["_target_"].endswith("DetectorSize"))
    bind(node)
    with pytest.raises(TypeError, match="fpn_chanels"):
        bind(node | {"fpn_chanels": 3})
    with pytest.raises(TypeError, match="fpn_channels"):
        bind({key: value for key, value in node.items() if key != "fpn_channels"})


def test_every_config_opens_with_what_it_is() -> None:
    for path in sorted(CONF.rglob("*.yaml")):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# "), f"{path.relative_to(CONF)} has no header"


def test_run_folders_may_name_the_class_of_every_head() -> None:
    named = {
        target
        for group in ("head", "detector")
        for file in (conf_dir() / group).glob("*.yaml")
        for target in re.findall(r"_target_: *([\w.]+)", file.read_text())
    }
    assert len(named) >= 7
    for target in sorted(named):
        require_trusted({"task": {"build": {"_target_": target}}}, Path("config.yaml"), Trust((), frozenset()))
