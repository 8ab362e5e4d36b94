"""Types of single values: check a value, and describe its type in words."""

from __future__ import annotations

import types
from typing import Literal, Union, get_args, get_origin

WORDS: dict[object, str] = {
    int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null",
}  # fmt: skip


def alternatives(hint: object) -> tuple[object, ...]:
    """The members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def is_single(hint: object) -> bool:
    """Whether a type is a number, a word, a switch, a choice, null, or a union of these."""
    return all(one in WORDS or get_origin(one) is Literal for one in alternatives(hint))


def accepts(hint: object, value: object) -> bool:
    """Whether a single value has this type. A whole number is a number, and a number can be given for a word."""
    return any(_is(one, value) for one in alternatives(hint))


def _is(hint: object, value: object) -> bool:
    if get_origin(hint) is Literal:
        return any(value == choice or str(value) == choice for choice in get_args(hint))
    if hint in (float, str) and type(value) in (int, float):
        return True
    return type(value) is hint


def words(hint: object) -> str:
    """A type in words."""
    if hint in WORDS:
        return WORDS[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if len(alternatives(hint)) > 1:
        return " or ".join(words(one) for one in alternatives(hint))
    if origin is Literal:
        return " or ".join(str(choice) for choice in inner)
    if origin is tuple:
        return f"a list, each item {words(inner[0])}"
    return "a mapping"


def shown(value: object) -> str:
    """A value as a message quotes it."""
    return "null" if value is None else repr(value)
