"""A class chosen by `_target_` with its arguments, checked before it is built."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Generic, TypeVar

from hydra.utils import instantiate

from nas_transfer.errors import ConfigError
from nas_transfer.stages.config.values import TARGET, faults_of, hints_of, is_complete

Built = TypeVar("Built", covariant=True)

PARTIAL = "_partial_"
SHORT = 6
"""Most names that a message lists."""


AUTO = "auto"


@dataclass(frozen=True)
class ForAuto:
    """A value for the check of an argument that may be ``auto``, since the stage then chooses it."""

    value: object


@dataclass(frozen=True)
class Factory(Generic[Built]):
    """A mapping with a `_target_` and its arguments, resolved and plain.

    Attributes:
        content: the mapping.
        path: its dotted key, for messages.
        uncounted: keys that are not part of the run's identity.
    """

    content: Mapping[str, object]
    path: str = field(compare=False)
    uncounted: tuple[str, ...] = field(default=(), compare=False)

    def __getitem__(self, name: str) -> object:
        return self.content[name]

    def __contains__(self, name: str) -> bool:
        return name in self.content

    @property
    def target(self) -> object:
        """The class or function that `_target_` names."""
        return resolve_name(str(self.content[TARGET]))

    def build(self, **extra: object) -> Built:
        """Build the object; `extra` adds or replaces arguments."""
        return instantiate(dict(self.content), **extra)

    def with_values(self, **values: object) -> Factory[Built]:
        """A copy with other arguments."""
        return Factory({**self.content, **values}, self.path, self.uncounted)

    def faults(self, builds: bool, fills: Mapping[str, object]) -> list[str]:
        """A sentence for each missing or unknown argument, and for each value that the target refuses.

        Imports the target. What was found sound is not checked again in the same process: a search reads the same
        configuration for each of its jobs.

        Args:
            builds: whether to build the object, which then checks its values.
            fills: values for the check by dotted name, for arguments that are null, or `ForAuto`.
        """
        content = _filled(self.content, fills)
        checked = (json.dumps(content, default=repr), builds)
        if checked in _SOUND:
            return []
        faults = [fault for path, node in _targets(content, self.path) for fault in _binding_faults(path, node)]
        if not faults and builds and is_complete(content):
            try:
                instantiate(content)
            except Exception as error:
                faults = _reported_faults(error, self.path)
        if not faults:
            _SOUND.add(checked)
        return faults


_SOUND: set[tuple[str, bool]] = set()
"""Contents of factories that this process has checked, and whether they were built."""


def _filled(content: Mapping[str, object], fills: Mapping[str, object]) -> dict[str, object]:
    """The content with values in the place of those that are null, or ``auto`` where that is allowed."""
    filled = dict(content)
    for name, value in fills.items():
        first, _, inner = name.partition(".")
        child = filled.get(first)
        if inner and isinstance(child, Mapping):
            filled[first] = _filled(child, {inner: value})
        elif not inner and isinstance(value, ForAuto):
            filled[first] = value.value if child == AUTO else child
        elif not inner and first in filled and child is None:
            filled[first] = value
    return filled


def _targets(node: object, path: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    if isinstance(node, Mapping):
        if TARGET in node:
            yield path, node
        for name, child in node.items():
            yield from _targets(child, f"{path}.{name}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _targets(child, f"{path}[{index}]")


def _binding_faults(path: str, node: Mapping[str, object]) -> list[str]:
    name = str(node[TARGET])
    try:
        target = resolve_name(name)
        parameters = inspect.signature(target).parameters.values()
    except Exception as error:
        cause = " ".join(str(error.__cause__ or error).split())
        return [f"{path}.{TARGET} must name a class or function that can be imported, got {name}: {cause}"]
    kinds = {parameter.kind for parameter in parameters}
    named = {parameter.name: parameter for parameter in parameters if parameter.kind not in _VARIADIC}
    given = {argument for argument in node if not argument.startswith("_")}
    faults = []
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        faults = [
            f"{path}.{argument} is not an argument of {name.rpartition('.')[2]}{_near(argument, list(named))}"
            for argument in sorted(given - named.keys())
        ]
    for argument, hint in hints_of(target).items():
        if argument in given:
            faults += faults_of(hint, node[argument], f"{path}.{argument}")
    if not node.get(PARTIAL, False):
        faults += [
            f"{path}.{parameter.name} is missing: add {path}.{parameter.name}=... to the command"
            for parameter in named.values()
            if parameter.default is inspect.Parameter.empty and parameter.name not in given
        ]
    return faults


def _near(argument: str, known: list[str]) -> str:
    """The known arguments, or the one with the most similar name."""
    if len(known) <= SHORT:
        return f", which takes {', '.join(known) or 'none'}"
    near = difflib.get_close_matches(argument, known, n=1, cutoff=0.0)[0]
    return f": did you mean {near}?"


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _reported_faults(error: Exception, path: str) -> list[str]:
    """The faults in the ConfigError of a target, which Hydra wraps."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigError):
            return list(cause.faults)
        error, cause = (cause if isinstance(cause, Exception) else error), cause.__cause__
    return [f"{path} cannot be built: {' '.join(str(error).split()) or type(error).__name__}"]
