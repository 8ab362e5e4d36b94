"""Checks of the values that a supernet's table reads from YAML. Messages name a key below ``supernet``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import TypeGuard, TypeVar

from nas_transfer.errors import ConfigError

Record = TypeVar("Record")
Item = TypeVar("Item")

INNER_ACTIVATIONS = ("relu", "relu6", "silu", "hardswish")
"""Names of activations behind the first layer of squeeze-and-excitation."""
GATES = ("hardsigmoid", "sigmoid")
"""Names of activations behind its second layer."""

OF_WEIGHTS = {"of_weights": True}
"""Metadata of a table's dataclass field that changes what given weights compute, but no tensor's shape.

Such a field is kept with the weights, and a table takes it from them. Its default is the value of files without it.
"""


def as_record(value: object, kind: type[Record], where: str) -> Record:
    """`value` as a record of the dataclass `kind`; a mapping must have its fields, except those with a default.

    Raises:
        ConfigError: `value` is not a mapping, or a field is missing or unknown.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"supernet.{where} must be a mapping with the fields of {kind.__name__}, got {value!r}")
    known = fields(kind)  # type: ignore[arg-type]
    missing = sorted({field.name for field in known if field.default is MISSING} - set(value))
    unknown = sorted(str(name) for name in set(value) - {field.name for field in known})
    if missing or unknown:
        faults = [f"unknown field {name!r}" for name in unknown] + ([f"missing: {missing}"] if missing else [])
        names = sorted(field.name for field in known)
        raise ConfigError(f"supernet.{where}: {', '.join(faults)} in {dict(value)}; the fields are {names}")
    return kind(**value)


def fields_of_weights(table: object) -> dict[str, object]:
    """The fields with the metadata `OF_WEIGHTS` of a table, by name."""
    return {name: getattr(table, name) for name in default_fields_of_weights(table)}


def default_fields_of_weights(table: object) -> dict[str, object]:
    """The defaults of the fields with the metadata `OF_WEIGHTS` of a table, by name."""
    known = fields(table) if is_dataclass(table) else ()
    return {field.name: field.default for field in known if field.metadata.get("of_weights")}


def as_tuple(value: Sequence[Item], where: str) -> tuple[Item, ...]:
    """A list from YAML as a tuple; raises ConfigError for a text or a single value."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"supernet.{where} must be a list, got {value!r}")
    return tuple(value)


def as_squeeze_activations(value: Sequence[str]) -> tuple[str, str]:
    """The field ``squeeze_activations`` of a table; raises ConfigError for unknown names."""
    names = as_tuple(value, "squeeze_activations")
    if len(names) != 2 or names[0] not in INNER_ACTIVATIONS or names[1] not in GATES:
        raise ConfigError(
            f"supernet.squeeze_activations must be one of {list(INNER_ACTIVATIONS)} and one of {list(GATES)}, got "
            f"{list(names)}"
        )
    return names[0], names[1]


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is an int or float and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_positive(where: str, values: Sequence[object]) -> None:
    """Raise ConfigError unless `values` are one or more integers above 0."""
    if not values or not all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values):
        raise ConfigError(f"supernet.{where} must be made of integers above 0, got {list(values)}")
