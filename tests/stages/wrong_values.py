"""Wrong values for every key of a stage, drawn from the types that its configuration states."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from nas_transfer.ranges import Range
from nas_transfer.stages.config.factory import Factory
from nas_transfer.stages.config.field import Key, keys_of
from nas_transfer.stages.config.values import alternatives, bare, hints_of, range_of

Case = tuple[str, object]
"""The dotted key, and a value that it cannot have."""
TARGET = "_target_"
OURS = "nas_transfer."
HUGE = 10**30


def wrong_values(cfg: DictConfig, record: type, unread: Sequence[str] = ()) -> Iterator[Case]:
    """Wrong values for each key that a record reads from a configuration.

    Args:
        unread: keys that the stage takes from elsewhere, or does not read with this configuration.
    """
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    for path, value in _of_record(record, plain, ""):
        if not any(path == key or path.startswith((f"{key}.", f"{key}[")) for key in unread):
            yield path, value


def _of_record(record: type, content: Mapping[Any, Any], path: str) -> Iterator[Case]:
    known = keys_of(record)
    for name, (hint, options) in known.items():
        if options.rest:
            others = {key: value for key, value in content.items() if key not in known}
            yield from _of_factory(others, path.rstrip("."), options)
        elif name in content and not (options.only_with and not any(content.get(key) for key in options.only_with)):
            yield from _of_key(hint, content[name], f"{path}{name}", options)


def _of_key(hint: object, value: object, path: str, options: Key) -> Iterator[Case]:
    kinds = [one for one in alternatives(hint) if one is not type(None)]
    kind = kinds[0]
    origin = get_origin(kind)
    if kind is object or path == "run_dir":
        return
    if kind is Factory or origin is Factory:
        yield from ((path, wrong) for wrong in ("word", 3, [1]))
        if isinstance(value, Mapping):
            yield from _of_factory(value, path, options)
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield from ((path, wrong) for wrong in ("word", 3, [1], None))
        if isinstance(value, Mapping):
            yield from _of_record(kind, value, f"{path}.")
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield from ((path, wrong) for wrong in ("word", 3, [1]))
        for name, child in value.items() if isinstance(value, Mapping) else ():
            yield from _of_key(get_args(kind)[1], child, f"{path}.{name}", options)
    else:
        yield from ((path, wrong) for wrong in _wrong(hint, empty=False))


def _of_factory(content: Mapping[Any, Any], path: str, options: Key) -> Iterator[Case]:
    target = content.get(TARGET, options.target)
    if target is None:
        return
    yield f"{path}.{TARGET}", "nas_transfer.nowhere.Nothing"
    yield from _of_target(str(target), content, path, options, path)


def _of_target(target: str, content: Mapping[Any, Any], path: str, options: Key, root: str) -> Iterator[Case]:
    ours = target.startswith(OURS)
    hints = _hints(resolve_name(target))
    for name, value in content.items():
        where = f"{path}.{name}"
        if name.startswith("_"):
            continue
        filled = where.removeprefix(f"{root}.") in options.fills
        if isinstance(value, Mapping) and TARGET in value:
            yield from ((where, wrong) for wrong in ("word", 3, [1]))
            yield from _of_target(str(value[TARGET]), value, where, options, root)
        elif name in hints:
            yield from _of_argument(hints[name], value, where, ours=ours, filled=filled)


def _of_argument(hint: object, value: object, path: str, *, ours: bool, filled: bool) -> Iterator[Case]:
    kinds = [one for one in alternatives(hint) if one is not type(None)]
    kind = bare(kinds[0])
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        yield from ((path, wrong) for wrong in ("word", 3))
        for name, child in value.items():
            inner = _hints(kind).get(str(name))
            if inner is not None:
                yield from _of_argument(inner, child, f"{path}.{name}", ours=ours, filled=False)
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        yield from ((path, wrong) for wrong in ("word", 3))
        for name, child in value.items():
            yield from _of_argument(get_args(kind)[1], child, f"{path}.{name}", ours=ours, filled=False)
    elif origin is Callable or not _is_known(kinds):
        return
    else:
        for wrong in _wrong(hint, empty=True):
            if not (filled and wrong is None) and (ours or not isinstance(wrong, int | float) or math.isnan(wrong)):
                yield path, wrong


def _is_known(kinds: Sequence[object]) -> bool:
    simple = (int, float, str, bool, Path)
    return all(bare(kind) in simple or get_origin(bare(kind)) in (Literal, list, tuple, Sequence) for kind in kinds)


def _hints(target: Any) -> dict[str, object]:
    if dataclasses.is_dataclass(target):
        return get_type_hints(target, include_extras=True)
    return hints_of(target)


def _wrong(hint: object, *, empty: bool) -> Iterator[object]:
    """Values that a type does not have."""
    kinds = alternatives(hint)
    if type(None) not in kinds:
        yield None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    plain = {bare(kind) for kind in kinds}
    lists = [kind for kind in kinds if get_origin(bare(kind)) in (list, tuple, Sequence)]
    yield {"key": 1}
    if not lists:
        yield [1]
    if not plain & {str, Path} and not any(get_origin(kind) is Literal and "word" in get_args(kind) for kind in plain):
        yield "word"
    if plain & {str, Path} and not empty:
        yield ""
    if any(get_origin(kind) is Literal for kind in plain):
        yield "no choice"
        yield 7
    if bool not in plain and plain & {int, float}:
        yield True
    if plain <= {bool}:
        yield 2
    if plain & {int, float} and str not in plain:
        yield math.nan
        if not any(range_of(kind).infinite for kind in kinds):
            yield from (math.inf, -math.inf)
    if int in plain and not plain & {float, str}:
        yield 1.5
    if int in plain and str not in plain:
        yield from (HUGE, -HUGE)
    numbers = [range_of(kind) for kind in kinds if bare(kind) in (int, float) and get_origin(kind) is Annotated]
    if numbers and len(numbers) == len(kinds):
        yield from _outside(numbers)
    for kind in lists:
        yield from _wrong_lists(bare(kind), words=str in plain)


def _outside(ranges: Sequence[Range]) -> Iterator[float]:
    """Numbers that lie in none of the ranges."""
    for one in ranges:
        bounds = [one.minimum, one.above, one.maximum, one.below]
        candidates = [bound + change for bound in bounds if bound is not None for change in (-1, 0, 1)]
        for number in [*candidates, *(int(value) for value in candidates), -1e30, 1e30]:
            if all(other.fault(number) is not None for other in ranges):
                yield number


def _wrong_lists(kind: object, words: bool) -> Iterator[object]:
    inner = get_args(kind)
    fixed = get_origin(kind) is tuple and inner[1:] != (Ellipsis,)
    if fixed:
        yield [1] * (len(inner) + 1)
    elif not words:
        yield "word"
    for wrong in _wrong(inner[0], empty=True):
        yield [wrong] * (len(inner) if fixed else 2)
