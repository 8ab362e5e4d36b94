"""Options of a configuration key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METADATA = "key"


@dataclass(frozen=True)
class Key:
    """How a key is read, and whether its value belongs to the run's identity.

    Attributes:
        identity: whether another value is another run.
        counts_with: keys of the same record, of which one must be set for the value to belong to the identity.
        only_with: keys of the same record, of which one must be set for the value to be read at all; else it is None.
        minimum, maximum: the closed range of a number, or of each number of a list.
        uncounted: keys inside a factory that do not belong to the identity.
        target: of a factory whose YAML names no `_target_`: what it builds.
        builds: whether a factory is built to collect its faults; not for what reads files or starts devices.
        null: what to say where a value must be given and is null.
        rest: whether the field takes all keys that the record's other fields leave.
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
