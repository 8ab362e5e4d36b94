"""Records from JSON: the content of a file is checked against the types of a dataclass before anything uses it."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from nas_transfer.errors import RunError
from nas_transfer.runs.atomic import write_json

Record = TypeVar("Record")

FORMAT = "format"
"""Key of the format version in each file."""


class _Mismatch(Exception):
    """A value that does not have the type of its field: where it stands, and what is wrong."""


def write_record(path: Path, record: object, version: int) -> None:
    """Write a dataclass instance as JSON with the version of its format."""
    write_json(path, {FORMAT: version, **asdict(record)})  # type: ignore[call-overload]


def read_record(path: Path, kind: type[Record], version: int) -> Record:
    """Read what `write_record` wrote.

    Raises:
        RunError: the file is missing, is no JSON, has another format, or a field is missing or has another type.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise RunError(f"{path} holds a {type(content).__name__} instead of a mapping")
    found = content.pop(FORMAT, None)
    if found != version:
        raise RunError(f"{path} has format {found}, and this version reads format {version}: run the stage again")
    try:
        return parse(kind, content)
    except _Mismatch as error:
        raise RunError(f"{path}: {error}") from error


def read_json(path: Path) -> object:
    """The content of a JSON file whose numbers are all finite.

    Raises:
        RunError: the file is missing or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number is {value}")
    return value


def parse(kind: type[Record], content: Mapping[str, object], where: str = "") -> Record:
    """A dataclass instance with the values of a mapping; unknown keys are left out."""
    hints = _hints(kind)  # type: ignore[arg-type]
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]
        name = f"{where}{field.name}"
        if field.name in content:
            values[field.name] = _value(hints[field.name], content[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _Mismatch(f"{name} is missing")
    return kind(**values)


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)  # type: ignore[arg-type]


def _value(hint: Any, value: object, where: str) -> object:
    """`value` as a value of the type `hint`; lists become tuples."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (Any, object):
        return value
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise _Mismatch(f"{where} is {value!r}, not one of {', '.join(map(repr, arguments))}")
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return parse(hint, value, f"{where}.")
        raise _Mismatch(f"{where} is no mapping")
    if origin is tuple:
        return _tuple(arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _Mismatch(f"{where} is no mapping")
        return {str(key): _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _plain(hint, value, where)


def _one_of(hints: Sequence[Any], value: object, where: str) -> object:
    if value is None and type(None) in hints:
        return None
    others = [hint for hint in hints if hint is not type(None)]
    reasons = []
    for hint in others:
        try:
            return _value(hint, value, where)
        except _Mismatch as error:
            reasons.append(str(error))
    raise _Mismatch(reasons[0])


def _tuple(hints: Sequence[Any], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _Mismatch(f"{where} is no list")
    kinds = [hints[0]] * len(value) if len(hints) == 2 and hints[1] is Ellipsis else list(hints)
    if len(kinds) != len(value):
        raise _Mismatch(f"{where} has {len(value)} values instead of {len(kinds)}")
    return tuple(_value(kind, item, f"{where}[{number}]") for number, (kind, item) in enumerate(zip(kinds, value)))


def _plain(hint: Any, value: object, where: str) -> object:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is type(None) and value is None:
        return None
    raise _Mismatch(f"{where} is {value!r}, which is no {getattr(hint, '__name__', hint)}")
