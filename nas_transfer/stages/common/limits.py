"""Limits on objectives, as ``search.constraints`` states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from nas_transfer.ranges import Range
from nas_transfer.search.problem import Limit
from nas_transfer.stages.config.factory import Factory

Bound: TypeAlias = Annotated[float, Range(infinite=True)]


def limit_between(min: Bound | None = None, max: Bound | None = None) -> Limit:
    """The limit of ``{min: ..., max: ...}``; ConfigError for an empty range."""
    return Limit(None if min is None else float(min), None if max is None else float(max))


def limits_of(constraints: Mapping[str, Factory[Limit]] | None) -> dict[str, Limit]:
    """The limits by the name of their objective."""
    return {name: limit.build() for name, limit in (constraints or {}).items()}
