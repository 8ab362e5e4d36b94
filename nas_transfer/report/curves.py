"""The training curves of a run, from the CSV logs that its trainer wrote."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.runs import files


@dataclass(frozen=True)
class Curve:
    """One logged quantity over the optimiser steps, as long as each other."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


def read_curves(folder: Path, problems: list[str]) -> dict[str, Curve]:
    """The curves of a run folder by column name. Where a resumed run repeats a step, its last value counts.

    A log that cannot be read adds a sentence to `problems`.
    """
    columns: dict[str, dict[float, float]] = {}
    for path in files.metrics_files(folder):
        try:
            with path.open(newline="") as stream:
                rows = list(csv.DictReader(stream))
        except (OSError, ValueError, csv.Error) as error:
            problems.append(f"{path.relative_to(folder)} cannot be read: {error}")
            continue
        for row in rows:
            step = _number(row.get("step"))
            for name, text in row.items():
                if step is not None and isinstance(name, str) and name not in ("step", "epoch"):
                    value = _number(text)
                    if value is not None:
                        columns.setdefault(name, {})[step] = value
    return {name: _curve(values) for name, values in columns.items()}


def _curve(values: dict[float, float]) -> Curve:
    steps = tuple(sorted(values))
    return Curve(steps, tuple(values[step] for step in steps))


def _number(text: str | Sequence[str] | None) -> float | None:
    """A finite number, None for anything else; a row that is too long or too short has no text in a column."""
    if not isinstance(text, str):
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
