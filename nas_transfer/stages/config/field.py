"""Options of a configuration key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METADATA = "key"


@dataclass(frozen=True)
class Key:
    """How a key is read, and whether its value is part of the run's identity.

    Attributes:
        identity: whether another value makes another run.
        counts_with: keys of the same record; the value is part of the identity only if one of them is set.
        only_with: keys of the same record; the value is read only if one of them is set, and is None otherwise.
        minimum, maximum: the closed range of a number, or of each number of a list.
        uncounted: keys inside a factory that are not part of the identity.
        target: what a factory builds if its YAML has no `_target_`.
        builds: whether a factory is built to collect its faults; False for one that reads files or starts devices.
        null: the message for a null where a value is required.
        rest: whether the field takes all keys that have no field of their own.
    """

    identity: bool = True
    counts_with: tuple[str, ...] = ()
    only_with: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    uncounted: tuple[str, ...] = ()
    target: str | None = None
    builds: bool = True
    null: str | None = None
    rest: bool = False


def key(
    *,
    identity: bool = True,
    counts_with: tuple[str, ...] = (),
    only_with: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    uncounted: tuple[str, ...] = (),
    target: str | None = None,
    builds: bool = True,
    null: str | None = None,
    rest: bool = False,
) -> Any:
    """A dataclass field that the reader fills from the key of the same name; see `Key` for the arguments."""
    options = Key(identity, counts_with, only_with, minimum, maximum, uncounted, target, builds, null, rest)
    return dataclasses.field(metadata={METADATA: options})


def keys_of(record: type) -> Mapping[str, tuple[object, Key]]:
    """The type and the options of each key of a record, in the order of its fields."""
    return {
        field.name: (field.type, field.metadata[METADATA])
        for field in dataclasses.fields(record)
        if METADATA in field.metadata
    }
