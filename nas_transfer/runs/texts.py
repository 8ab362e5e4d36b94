"""Text for people: durations, numbers of things, values of objectives, and any text as Markdown."""

from __future__ import annotations

import re
from html import escape

from nas_transfer.runs.costs import SECONDS_PER_HOUR


def duration(seconds: float) -> str:
    """For people: 90 s, 12 min, 3.5 h."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * SECONDS_PER_HOUR else f"{seconds / SECONDS_PER_HOUR:.1f} h"


def counted(number: object, noun: str) -> str:
    """A number of things: 1 trial, 2 trials."""
    return f"{number} {noun}" if number in (1, "1") else f"{number} {noun}s"


def value_text(name: str, value: float) -> str:
    """The value of an objective in the unit of tables: scores in percent, MACs and parameters in millions."""
    if name in ("macs", "params"):
        return f"{value / 1e6:.3f} M"
    return f"{100 * value:.2f} %" if name == "score" else f"{value:.4g}"


_MARKS = re.compile(r"[\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def markdown_text(text: str) -> str:
    """Any text as one line of Markdown that shows it as it is: neither HTML nor Markdown in it has an effect."""
    marked = _MARKS.sub(r"\\\g<0>", " ".join(text.split()))
    return escape(marked, quote=False).replace("://", "&#58;//").replace("www.", "www&#46;")


def markdown_code(text: str) -> str:
    """Any text as code within a line of Markdown."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"
