"""Sentences for what people type before they have read anything: ``train``, ``--task small_det``, ``data=mine``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir

TAKE_A_VALUE = frozenset(
    [
        "--cfg",
        "-c",
        "--package",
        "-p",
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
        "--config-dir",
        "-cd",
        "--info",
        "-i",
        "--experimental-rerun",
    ]
)
"""Flags of Hydra with a value."""
FLAGS = TAKE_A_VALUE | frozenset(
    [
        "--help",
        "-h",
        "--hydra-help",
        "--version",
        "--resolve",
        "--run",
        "-r",
        "--multirun",
        "-m",
        "--shell-completion",
        "-sc",
    ]
)
TRAINING = "training a network on a task is stage=finetune, the default"
SCORING = "scoring a finished run is stage=evaluate with weights=RUN"
STAGE_WORDS = {
    **dict.fromkeys(("train", "fit", "training", "finetuning"), TRAINING),
    **dict.fromkeys(("test", "val", "eval", "validate", "validation", "score", "benchmark"), SCORING),
    **dict.fromkeys(("infer", "inference", "detect"), "running a network on images is stage=predict with weights=RUN"),
    **dict.fromkeys(("nas", "sweep", "optimize"), "searching is stage=search, or stage=proxy without a supernet"),
    **dict.fromkeys(("data", "dataset"), "validating a dataset is stage=check"),
}
"""What other programs call the stages, and what they are here."""
TASK_WORDS = {
    "instance": "coco_insseg", "mask": "coco_insseg", "insseg": "coco_insseg", "keypoint": "small_pose",
    "pose": "small_pose", "cls": "small_cls", "class": "small_cls", "seg": "small_seg", "det": "small_det",
    "yolo": "small_det", "rcnn": "small_det", "box": "small_det",
}  # fmt: skip
"""Parts of names for a task, and the task for a small dataset; the first part that matches counts."""


def refuse_first_guesses(arguments: Sequence[str]) -> None:
    """Refuse arguments that are not written key=value.

    Args:
        arguments: those of the command line.

    Raises:
        ConfigError: it says what to write instead.
    """
    for argument, following in _with_next(arguments):
        name = argument.partition("=")[0]
        if argument.startswith("-"):
            if name.startswith("--") and name not in FLAGS:
                value = argument.partition("=")[2] or ("VALUE" if following is None else following)
                raise ConfigError(
                    f"unrecognized arguments: {argument}: settings have no dashes, write {name.lstrip('-')}={value} "
                    "(--help lists stages and tasks)"
                )
        elif "=" not in argument and not argument.startswith("~"):
            raise ConfigError(_word_sentence(argument))


def _with_next(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Each argument that is no value of a flag, and the next one if that may be its value."""
    is_value = False
    for position, argument in enumerate(arguments):
        if is_value:
            is_value = False
            continue
        is_value = argument in TAKE_A_VALUE
        following = arguments[position + 1] if position + 1 < len(arguments) else None
        yield argument, None if following is None or following.startswith("-") or "=" in following else following


def _word_sentence(word: str) -> str:
    if word.lower() in STAGE_WORDS:
        return f"'{word}' is not key=value: {STAGE_WORDS[word.lower()]}"
    if word.lower() in ("help", "?"):
        return f"'{word}' is not key=value: --help lists stages and tasks"
    if word.lower().replace("_", "-") == "nas-transfer":
        return f"'{word}' is not key=value: name the program once, and then settings such as task=small_det"
    for group in ("stage", "task"):
        if (conf_dir() / group / f"{word}.yaml").is_file():
            return f"'{word}' is not key=value: write {group}={word}"
    if Path(word).exists():
        return f"'{word}' is not key=value: write data.root={word} for a dataset, images={word} for stage=predict"
    return f"'{word}' is not key=value: write settings such as task=small_det (--help lists stages and tasks)"


def choice_hint(group: str, choice: str) -> str | None:
    """What to write instead of a choice that a group does not have; None for no idea."""
    word = choice.lower()
    if group == "stage":
        return STAGE_WORDS.get(word)
    if group == "task":
        task = next((task for part, task in TASK_WORDS.items() if part in word), None)
        return None if task is None else f"for a small dataset, write task={task}"
    if group == "data" and Path(choice).exists():
        return f"the folder of a dataset is data.root={choice}"
    return None
