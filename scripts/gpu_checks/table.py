"""The rows that checks return, and the table that is printed and written of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TextIO, get_args

Verdict = Literal["ok", "WRONG", "unfinished", "skipped"]
WIDTHS = (16, 54, 10, 9, 10, 16)
MOST_LETTERS = 300
"""Of a reason."""


@dataclass(frozen=True)
class Row:
    """One result of a check.

    Attributes:
        measured: what was measured.
        value: the result; None if there is none.
        unit: of the value and the reference, empty for ratios.
        reference: what the value is compared with, None if it is only bounded or stated.
        allowed: which values are right, in words.
        verdict: ``WRONG`` and ``unfinished`` make the script fail; ``skipped`` does not.
        reason: why the row has this verdict.
    """

    measured: str
    value: float | None = None
    unit: str = ""
    reference: float | None = None
    allowed: str = ""
    verdict: Verdict = "ok"
    reason: str = ""


def near(measured: str, value: float, reference: float, allowed: float, unit: str = "") -> Row:
    """A value that may differ from its reference by at most `allowed`; NaN is wrong."""
    verdict: Verdict = "ok" if abs(value - reference) <= allowed else "WRONG"
    return Row(measured, value, unit, reference, f"+- {allowed:.3g}", verdict)


def at_least(measured: str, value: float, bound: float, unit: str = "") -> Row:
    """A value with a lower bound; NaN is wrong."""
    return Row(measured, value, unit, None, f"at least {bound:.3g}", "ok" if value >= bound else "WRONG")


def at_most(measured: str, value: float, bound: float, unit: str = "") -> Row:
    """A value with an upper bound; NaN is wrong."""
    return Row(measured, value, unit, None, f"at most {bound:.3g}", "ok" if value <= bound else "WRONG")


def stated(measured: str, value: float, unit: str) -> Row:
    """A figure that has no right value, but is finite and positive."""
    return Row(measured, value, unit, None, "", "ok" if math.isfinite(value) and value > 0 else "WRONG")


def skipped(measured: str, reason: str) -> Row:
    """Something that cannot be checked here."""
    return Row(measured, verdict="skipped", reason=reason)


def wrong(measured: str, reason: str) -> Row:
    """Something that failed before there was a value."""
    return Row(measured, verdict="WRONG", reason=" ".join(reason.split())[:MOST_LETTERS])


def unfinished(measured: str, reason: str) -> Row:
    """Something that was ended before its result was known: it is neither right nor wrong."""
    return Row(measured, verdict="unfinished", reason=reason)


class Table:
    """Prints rows as they come and keeps them.

    Attributes:
        rows: with the name of their check.
        machine: what the checks ran on.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.rows: list[tuple[str, Row]] = []
        self.machine: Mapping[str, str] = {}

    @property
    def failed(self) -> bool:
        """Whether a row is wrong, or has no result because it took too long."""
        return self._count("WRONG") + self._count("unfinished") > 0

    def print_head(self, machine: Mapping[str, str]) -> None:
        """Print the machine and the heads of the columns, once."""
        if self.machine:
            return
        self.machine = machine
        for name, value in machine.items():
            self._print(f"{name + ':':10}{value}")
        self._print("")
        self._print_cells(("check", "measured", "value", "unit", "reference", "allowed", "verdict"))

    def add(self, check: str, row: Row) -> None:
        """Keep and print a row."""
        self.rows.append((check, row))
        verdict = f"{row.verdict}: {row.reason}" if row.reason else row.verdict
        self._print_cells(
            (check, row.measured, _number(row.value), row.unit, _number(row.reference), row.allowed, verdict)
        )

    def print_end(self) -> None:
        """Print how many rows have which verdict."""
        self._print("\n" + ", ".join(f"{self._count(verdict)} {verdict}" for verdict in get_args(Verdict)))

    def write_json(self, path: Path) -> None:
        """Write machine and rows; numbers that JSON does not know are written as text."""
        rows = [
            {"check": check} | {key: _plain(value) for key, value in asdict(row).items()} for check, row in self.rows
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": dict(self.machine), "rows": rows}, indent=1, allow_nan=False) + "\n")
        self._print(f"written to {path}")

    def _count(self, verdict: Verdict) -> int:
        return sum(row.verdict == verdict for _, row in self.rows)

    def _print_cells(self, cells: Iterable[str]) -> None:
        *padded, last = cells
        self._print(" ".join([*(f"{cell:{width}}" for cell, width in zip(padded, WIDTHS, strict=True)), last]))

    def _print(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _plain(value: object) -> object:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
