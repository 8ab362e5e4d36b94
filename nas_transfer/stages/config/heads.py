"""Which heads a task takes: the choices of ``conf/`` whose class has what the argument of the task's class asks for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from typing_extensions import get_protocol_members, is_protocol

from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.stages.config.values import TARGET, alternatives, hints_of

GROUPS = ("detector", "head")
"""The groups of ``conf/`` whose choices are heads; an argument of a task's class has the name of its group."""


def require_fitting_heads(cfg: DictConfig, choices: Mapping[str, str]) -> None:
    """Refuse the head of another kind of task, before anything else about it is said. Imports the classes.

    Args:
        choices: the choice of each group that the command composed.

    Raises:
        ConfigError: it names the head, the task, and the heads that the task takes.
    """
    known = heads_of(cfg)
    for group, fitting in known.items():
        choice = choices.get(group)
        target = _target_of(group, choice) or OmegaConf.select(cfg, f"task.build.{group}.{TARGET}")
        hint = _arguments(cfg).get(group)
        head = _resolved(target)
        if head is not None and not fits(head, hint):
            raise ConfigError(_sentence(cfg, f"{group}={choice or target}", {group: fitting}))


def wrong_group(cfg: DictConfig, group: str, choice: str) -> str:
    """The sentence about a group that the task of a configuration does not choose from."""
    return _sentence(cfg, f"{group}={choice}", heads_of(cfg))


def one_choice(group: str, given: str) -> str:
    """The sentence about a list of heads."""
    return (
        f"{group} must be one choice, got {given}: use {group}=several 'task.build.{group}.heads=[...]' to search "
        "several heads"
    )


def heads_of(cfg: DictConfig) -> dict[str, list[str]]:
    """The choices that the task of a configuration takes, by group; none for a task without a head."""
    hints = _arguments(cfg)
    return {group: [choice for choice, head in _choices(group) if fits(head, hints[group])] for group in hints}


def fits(kind: type, hint: object) -> bool:
    """Whether the sizes of a class can be given where a type is asked for.

    That is: the class has the members of a protocol, or is derived from a class; a class that is derived from it takes
    the same sizes and more.
    """
    for wanted in (get_origin(one) or one for one in alternatives(hint)):
        if not isinstance(wanted, type):
            continue
        if is_protocol(wanted):
            if all(_has(kind, member, wanted) for member in get_protocol_members(wanted)):
                return True
        elif issubclass(wanted, kind) or issubclass(kind, wanted):
            return True
    return False


def _has(kind: type, member: str, protocol: type) -> bool:
    """Whether a class has a member of a protocol; only a dataclass says which values its objects hold."""
    if hasattr(kind, member) or any(member in getattr(base, "__annotations__", {}) for base in kind.__mro__):
        return True
    return not dataclasses.is_dataclass(kind) and not callable(getattr(protocol, member, None))


def _sentence(cfg: DictConfig, given: str, known: Mapping[str, list[str]]) -> str:
    task = f"task={cfg.task.name}"
    taken = " or ".join(f"{group}={_listed(choices)}" for group, choices in known.items() if choices)
    if not taken:
        return f"{task} has no head to choose, got {given}: remove it from the command, or choose another task"
    return f"{task} takes {taken}, got {given}, the head of another kind of task: choose another head or another task"


def _listed(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _arguments(cfg: DictConfig) -> dict[str, object]:
    """The types of those arguments of the task's class that are heads, by group."""
    kind = _resolved(OmegaConf.select(cfg, f"task.build.{TARGET}"))
    hints = {} if kind is None else hints_of(kind)
    return {group: hints[group] for group in GROUPS if group in hints}


def _choices(group: str) -> Iterator[tuple[str, type]]:
    """Each choice of a group with the class that its file names."""
    for file in sorted((conf_dir() / group).glob("*.yaml")):
        head = _resolved(_target_of(group, file.stem))
        if head is not None:
            yield file.stem, head


def _target_of(group: str, choice: str | None) -> str | None:
    """The class that the file of a choice names, itself or in a file that it begins with; None for an unknown one."""
    file = conf_dir() / group / f"{choice}.yaml"
    if choice is None or not re.fullmatch(r"[\w-]+", choice) or not file.is_file():
        return None
    return _target_in(file, group)


def _target_in(file: Path, group: str) -> str | None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    named = content.get(group, {}).get(TARGET)
    if named is not None:
        return str(named)
    before = [entry.partition("@")[0] for entry in content.get("defaults", []) if isinstance(entry, str)]
    return next(filter(None, (_target_of(group, entry) for entry in before)), None)


def _resolved(name: object) -> type | None:
    """The class of a name; None for anything that is reported elsewhere."""
    try:
        found = resolve_name(str(name))
    except Exception:  # a module of the user can fail in any way
        return None
    return found if isinstance(found, type) else None
