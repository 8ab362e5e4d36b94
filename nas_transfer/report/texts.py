"""Numbers as text: percentages, millions, objectives with their units, consumed time."""

from __future__ import annotations

from nas_transfer.report.studies import SCORE
from nas_transfer.runs import Repeats, Result
from nas_transfer.runs.texts import duration

NONE = "—"
SECONDS_PER_DAY = 86400
UNITS = {
    "macs": "MACs (M)", "params": "params (M)", "latency_ms": "latency (ms)", "memory_mib": "memory (MiB)",
}  # fmt: skip
"""Objectives with their units."""


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with two decimals."""
    return NONE if fraction is None else f"{100 * fraction:.2f}"


def millions(value: float) -> str:
    """In millions, with three decimals below a thousand millions, where small nets differ."""
    return f"{value / 1e6:.3f}" if value < 1e9 else f"{value / 1e6:.0f}"


def value_text(name: str, value: float) -> str:
    """The value of an objective in the unit of `unit_of`."""
    if name == SCORE:
        return percent(value)
    return millions(value) if name in ("macs", "params") else f"{value:.4g}"


def unit_of(name: str, score_key: str = SCORE) -> str:
    """The name of an objective with its unit."""
    return f"{score_key} (%)" if name == SCORE else UNITS.get(name, name)


def repeats_text(repeats: Repeats | None) -> str:
    """Mean and standard deviation of scores from other seeds, in per cent."""
    if repeats is None:
        return NONE
    return f"{100 * repeats.mean:.2f} ± {100 * repeats.std:.2f} ({len(repeats.scores)} seeds)"


def consuming_time(result: Result) -> str:
    """Devices times days, such as '8 GPUs x 1.5 days', then hours or minutes."""
    unit, plural = ("GPU", "s") if result.gpu_hours > 0 else ("CPU process", "es")
    devices = f"{result.devices} {unit}{plural if result.devices != 1 else ''}"
    return f"{devices} x {result.seconds / SECONDS_PER_DAY:.3g} days ({duration(result.seconds)})"


def cost_text(result: Result) -> str:
    """MACs and parameters by part, and the input size they are stated for."""
    costs = result.costs
    texts = [
        f"{name} {', '.join(f'{part} {millions(value)}' for part, value in parts.items())} M"
        for name, parts in (("MACs", costs.macs), ("params", costs.params))
    ]
    scope = "" if result.arch else " (of the supernet's largest arch)"
    return f"{'; '.join(texts)}, at {costs.size}{scope}"


def spent_text(result: Result) -> str:
    """Seconds, GPU-hours and images."""
    text = f"{duration(result.seconds)} ({result.seconds:.1f} s), {result.gpu_hours:.3g} GPU-hours"
    if result.images_seen:
        text += f", {result.images_seen} images seen"
        if result.passes_per_image > 1:
            text += f" x {result.passes_per_image} archs"
    return text
