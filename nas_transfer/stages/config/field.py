"""Options of a configuration key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

METADATA = "key"
NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Key:
    """How a key is read, and whether its value is part of the run's identity.

    Attributes:
        identity: whether another value makes another run.
        counts_with: keys of the same record; the value is part of the identity only if one of them is set.
        only_with: keys of the same record; the value is read only if one of them is set, and is None otherwise.
        uncounted: keys inside a factory that are not part of the identity.
        target: what a factory builds if its YAML has no `_target_`.
        builds: whether a factory is built to collect its faults; False for one that starts devices.
        fills: arguments of a factory that may be null since the stage sets them, by dotted name, with values for the
            check.
        null: the message for a null where a value is required.
        rest: whether the field takes all keys that have no field of their own.
        folder: whether a word is the name of a folder.
    """

    identity: bool = True
    counts_with: tuple[str, ...] = ()
    only_with: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    target: str | None = None
    builds: bool = True
    fills: Mapping[str, object] = field(default_factory=dict)
    null: str | None = None
    rest: bool = False
    folder: bool = False


def key(
    *,
    identity: bool = True,
    counts_with: tuple[str, ...] = (),
    only_with: tuple[str, ...] = (),
    uncounted: tuple[str, ...] = (),
    target: str | None = None,
    builds: bool = True,
    fills: Mapping[str, object] = NOTHING,
    null: str | None = None,
    rest: bool = False,
    folder: bool = False,
) -> Any:
    """A dataclass field that the reader fills from the key of the same name; see `Key` for the arguments."""
    options = Key(identity, counts_with, only_with, uncounted, target, builds, fills, null, rest, folder)
    return dataclasses.field(metadata={METADATA: options})


def keys_of(record: type) -> Mapping[str, tuple[object, Key]]:
    """The type and the options of each key of a record, in the order of its fields."""
    return {
        one.name: (one.type, one.metadata[METADATA]) for one in dataclasses.fields(record) if METADATA in one.metadata
    }
