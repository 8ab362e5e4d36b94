"""Types of values: check a plain value, and describe its type in words."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_protocol

from nas_transfer.ranges import ANY, Range

TARGET = "_target_"
MISSING = object()
"""Stands for a value that is missing or cannot be resolved, which is reported elsewhere."""
WORDS: dict[object, str] = {
    int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null",
    Path: "a path",
}  # fmt: skip


def alternatives(hint: object) -> tuple[object, ...]:
    """The members of a union, or the type itself."""
    hint = bare(hint)
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def bare(hint: object) -> object:
    """A type without its range."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def range_of(hint: object) -> Range:
    """The range in a type; that of all finite numbers if it states none."""
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, Range)), ANY)


def is_complete(value: object) -> bool:
    """Whether nothing in a plain value is missing."""
    if isinstance(value, Mapping):
        return all(is_complete(child) for child in value.values())
    return all(is_complete(child) for child in value) if isinstance(value, list) else value is not MISSING


def accepts(hint: object, value: object) -> bool:
    """Whether a single value has this type. A whole number is a number, and a number can be given for a word."""
    return any(_is(bare(one), value) for one in alternatives(hint))


def _is(hint: object, value: object) -> bool:
    if get_origin(hint) is Literal:
        return any(value == choice or str(value) == choice for choice in get_args(hint))
    if hint in (float, str) and type(value) in (int, float):
        return True
    return type(value) is hint


def faults_of(hint: object, value: object, path: str) -> Iterator[str]:
    """A sentence for each part of a plain value that does not have its type, or lies outside of its range.

    Types of which nothing is known here accept everything, and so does what a `_target_` builds.

    Args:
        path: dotted key of the value.
    """
    hints = alternatives(hint)
    if value is MISSING or (isinstance(value, Mapping) and TARGET in value):
        return
    if len(hints) > 1:
        yield from _faults_of_union(hint, hints, value, path)
        return
    kind, origin = hints[0], get_origin(hints[0])
    if kind in WORDS or origin is Literal:
        yield from _faults_of_single(hint, value, path)
    elif origin in (tuple, list, Sequence) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        yield from _faults_of_list(kind, value, path)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            yield _wrong(path, kind, value)
            return
        for name, child in value.items():
            yield from faults_of(get_args(kind)[1], child, f"{path}.{name}")
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            yield _wrong(path, kind, value)
            return
        fields = get_type_hints(kind, include_extras=True)
        for name, child in value.items():
            if name in fields:
                yield from faults_of(fields[str(name)], child, f"{path}.{name}")
    elif origin is Callable or (isinstance(kind, type) and is_protocol(kind)):
        yield f"{path} must be a mapping with a {TARGET}, got {shown(value)}"


def hints_of(target: object) -> dict[str, object]:
    """The types of the arguments of a class or function; those that cannot be evaluated are left out."""
    function = inspect.unwrap(getattr(target, "__init__") if isinstance(target, type) else target)  # type: ignore[arg-type]  # noqa: B009
    spaces = getattr(function, "__globals__", {})
    hints: dict[str, object] = {}
    for name, written in getattr(function, "__annotations__", {}).items():
        holder = types.SimpleNamespace(__annotations__={name: written})
        try:
            hints |= get_type_hints(holder, globalns=spaces, include_extras=True)
        except (NameError, TypeError, AttributeError):  # imported for type checkers alone
            continue
    return hints


def _faults_of_union(hint: object, hints: tuple[object, ...], value: object, path: str) -> Iterator[str]:
    if value is None and type(None) in hints:
        return
    given = [one for one in hints if one is not type(None)]
    faults = [list(faults_of(one, value, path)) for one in given]
    if not all(faults):
        return
    fitting = [found for one, found in zip(given, faults, strict=True) if type(value) is bare(one)]
    if len(given) == 1 or fitting:
        yield from (fitting or faults)[0]
    else:
        yield _wrong(path, hint, value)


def _faults_of_single(hint: object, value: object, path: str) -> Iterator[str]:
    if bare(hint) is Path:
        if not isinstance(value, str | Path) or not str(value):
            yield _wrong(path, hint, value)
    elif not accepts(hint, value):
        yield _wrong(path, hint, value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and bare(hint) in (int, float):
        fault = range_of(hint).fault(value)
        if fault is not None:
            yield f"{path} must be {fault}, got {value}"


def _faults_of_list(kind: object, value: object, path: str) -> Iterator[str]:
    hints = get_args(kind)
    if not isinstance(value, Sequence) or isinstance(value, str):
        yield _wrong(path, kind, value)
        return
    same = get_origin(kind) is not tuple or hints[1:] == (Ellipsis,)
    if not same and len(hints) != len(value):
        yield f"{path} must be a list of {len(hints)} values, got {shown(value)}"
        return
    for index, item in enumerate(value):
        yield from faults_of(hints[0] if same else hints[index], item, f"{path}[{index}]")


def _wrong(path: str, hint: object, value: object) -> str:
    return f"{path} must be {words(hint)}, got {shown(value)}"


def words(hint: object) -> str:
    """A type in words."""
    hint = bare(hint)
    if hint in WORDS:
        return WORDS[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if len(alternatives(hint)) > 1:
        return " or ".join(words(one) for one in alternatives(hint))
    if origin is Literal:
        return " or ".join(str(choice) for choice in inner)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"a list, each item {words(inner[0])}"
    return "a mapping"


def shown(value: object) -> str:
    """A value as a message quotes it."""
    return "null" if value is None else repr(value)
