"""Records from JSON: the content of a file is checked against the types of a dataclass before anything uses it."""

from __future__ import annotations

import json
import math
import types
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from nas_transfer.errors import RunError, storage_error
from nas_transfer.runs.atomic import write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")

FORMAT = "format"
"""Key of the format version in each file."""
WAY_OUT = "delete this file and repeat the command, or use another name=..."
START_ANEW = "start anew with resume=never, which keeps what is in the folder, or use another name=..."
REQUIRED_KEYS = "__required_keys__"
"""Attribute of a TypedDict (see the documentation of typing) with the keys that it must have."""
WORDS: Mapping[object, str] = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
"""Types as messages name them."""


def write_record(path: Path, record: DataclassInstance, version: int) -> None:
    """Write a dataclass instance as JSON with the version of its format."""
    write_json(path, {FORMAT: version, **asdict(record)})


def is_present(path: Path, way_out: str = WAY_OUT) -> bool:
    """Whether a file is there; RunError for a folder or anything else in its place."""
    if path.is_file():
        return True
    if path.exists() or path.is_symlink():
        raise RunError(f"{path} must be a file, got something else: {way_out}")
    return False


def holds_tensors(path: Path) -> bool:
    """Whether a file ends as those that torch.save wrote; a damaged or an incomplete one does not."""
    return path.is_file() and zipfile.is_zipfile(path)


def read_record(path: Path, kind: type[Record], version: int, way_out: str = WAY_OUT) -> Record:
    """Read what `write_record` wrote.

    Args:
        way_out: what to do about a file that cannot be used, for the message.

    Raises:
        RunError: the file is missing, is no JSON, has another format, or does not hold such a record.
    """
    content = read_json(path, way_out)
    if not isinstance(content, dict):
        raise RunError(f"{path} must hold a mapping, got a {type(content).__name__}: {way_out}")
    given = content.pop(FORMAT, None)
    if given != version:
        raise RunError(f"{path} must have format {version}, got {given}: run the stage again")
    try:
        return parse(kind, content)
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): {way_out}") from error


def read_json(path: Path, way_out: str = WAY_OUT) -> object:
    """The content of a JSON file whose numbers are all finite.

    Raises:
        RunError: the file is missing or cannot be read.
    """
    is_present(path, way_out)  # refuses a folder or a pipe in its place
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: is {path.parent} the folder of a finished run?") from error
    except (OSError, ValueError, RecursionError) as error:
        if (failure := storage_error(error)) is not None:
            raise failure from error
        raise RunError(f"{path} cannot be read ({' '.join(str(error).split())}): {way_out}") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"numbers must be finite, got {value}")
    return value


def parse(kind: type[Record], content: Mapping[str, object], prefix: str = "") -> Record:
    """A dataclass instance with the values of a mapping; unknown keys are ignored.

    Args:
        kind: the dataclass.
        content: values by field name. Lists become tuples.
        prefix: stands before the names of fields in messages.

    Raises:
        ValueError: a field is missing or has another type, or the dataclass refuses its values.
    """
    hints = _hints(kind)
    values = {}
    for field in fields(kind):
        name = f"{prefix}{field.name}"
        if field.name in content:
            values[field.name] = _value(hints[field.name], content[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} is missing")
    return kind(**values)


@cache
def _hints(kind: type) -> Mapping[str, object]:
    return get_type_hints(kind)


def _value(hint: object, value: object, name: str) -> object:
    """`value` as a value of the type `hint`; ValueError if it has another type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is object:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, name)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{name} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
    if is_dataclass(hint) and isinstance(hint, type):
        return parse(hint, _mapping(value, name), f"{name}.")
    if is_typeddict(hint) and isinstance(hint, type):
        return _typed_dict(hint, _mapping(value, name), name)
    if origin is list:
        return list(_tuple((arguments[0], Ellipsis), value, name))
    if origin is tuple:
        return _tuple(arguments, value, name)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        items = _mapping(value, name).items()
        return {str(key): _value(arguments[1], item, f"{name}.{key}") for key, item in items}
    return _scalar(hint, value, name)


def _mapping(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping, got a {type(value).__name__}")
    return value


def _typed_dict(hint: type, content: Mapping[str, object], name: str) -> dict[str, object]:
    for key in getattr(hint, REQUIRED_KEYS):
        if key not in content:
            raise ValueError(f"{name}.{key} is missing")
    return {key: _value(kind, content[key], f"{name}.{key}") for key, kind in _hints(hint).items() if key in content}


def _one_of(hints: Sequence[object], value: object, name: str) -> object:
    if value is None and type(None) in hints:
        return None
    reasons = []
    for hint in hints:
        if hint is type(None):
            continue
        try:
            return _value(hint, value, name)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(reasons[0])


def _tuple(hints: Sequence[object], value: object, name: str) -> tuple[object, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name} must be a list, got a {type(value).__name__}")
    kinds = [hints[0]] * len(value) if len(hints) == 2 and hints[1] is Ellipsis else list(hints)
    if len(kinds) != len(value):
        raise ValueError(f"{name} must have {len(kinds)} values, got {len(value)}")
    return tuple(_value(kind, item, f"{name}[{number}]") for number, (kind, item) in enumerate(zip(kinds, value)))


def _scalar(hint: object, value: object, name: str) -> object:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if (hint is str and isinstance(value, str)) or (hint is bool and isinstance(value, bool)):
        return value
    raise ValueError(f"{name} must be {WORDS.get(hint, hint)}, got {value!r}")
