"""Every choice of every config group composes, and every `_target_` takes exactly the arguments that its YAML gives."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from nas_transfer.stages.config.entry import config_sha256, read_config, record_of

CONF = conf_dir()
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name != "archs"  # arch files are data, named by arch=
}
CHOICES = [(group, choice) for group, choices in GROUPS.items() for choice in choices]


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


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*overrides])
    content = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=["=".join(choice) for choice in CHOICES])
def test_every_choice_composes_and_its_targets_take_its_arguments(group: str, choice: str) -> None:
    stage = ["stage=search"] if group in ("objective", "sampler", "search") else []
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
    classes = ["data.class_names=[a]"] if task == "small_seg" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"stage={stage}", f"task={task}", *given, *classes])
    config = read_config(cfg, record_of(cfg))
    assert config.stage.name == stage
    assert cfg.task.name == task
    assert callable(get_object(cfg.stage.run))
    assert config.config_sha256 == config_sha256(cfg)


def test_the_command_line_wins_over_what_a_task_chooses() -> None:
    content = composed("task=shapes_det", "supernet=bignas", "trainer.max_epochs=7")
    assert (content["supernet"]["name"], content["trainer"]["max_epochs"]) == ("bignas", 7)


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
