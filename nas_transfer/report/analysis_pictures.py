"""The pictures of an analysis in a run folder: PNG by matplotlib, for slides, mails and other documents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nas_transfer.report.analysis import curve_names
from nas_transfer.runs import Analysis, ClassScores, ConfusionMatrix, PrecisionRecall, ThresholdCurve
from nas_transfer.runs.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED_CURVES = 10
"""Number of classes whose curves have a colour and a name; with more, all of them are grey."""
MOST_BARS = 60
MOST_NUMBERS = 15
"""Largest number of classes whose confusions are printed as numbers."""
PIXELS_PER_INCH = 120


def draw_analysis(analysis: Analysis, folder: Path) -> list[Path]:
    """Draw the scores of classes and, where there are any, the curves and the confusion matrix.

    Returns:
        The files: ``classes.png``, ``precision_recall.png``, ``threshold.png``, ``confusion_matrix.png``.
    """
    drawn = []
    if scored := [one for one in analysis.classes if one.scores]:
        with _figure(folder / "classes.png", 6.4, 1.2 + 0.28 * min(len(scored), MOST_BARS)) as axes:
            _draw_classes(axes, scored, analysis)
        drawn.append(folder / "classes.png")
    if analysis.precision_recall is not None:
        with _figure(folder / "precision_recall.png") as axes:
            _draw_precision_recall(axes, analysis.precision_recall, analysis)
        drawn.append(folder / "precision_recall.png")
    if analysis.threshold is not None:
        with _figure(folder / "threshold.png") as axes:
            _draw_threshold(axes, analysis.threshold, analysis)
        drawn.append(folder / "threshold.png")
    if analysis.confusion is not None:
        side = 3.5 + 0.32 * min(len(analysis.confusion.names), 40)
        with _figure(folder / "confusion_matrix.png", side, side) as axes:
            _draw_confusion(axes, analysis.confusion, analysis)
        drawn.append(folder / "confusion_matrix.png")
    return drawn


@contextmanager
def _figure(path: Path, width: float = 6.4, height: float = 4.8) -> Iterator[Axes]:
    """Axes that are written to a PNG file at the end; no window and no global state of pyplot is used."""
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    yield figure.add_subplot()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=PIXELS_PER_INCH)


def _draw_classes(axes: Axes, scored: list[ClassScores], analysis: Analysis) -> None:
    """Bars of the first score of each class, the best on top."""
    key = next(iter(scored[0].scores))
    ordered = sorted(scored, key=lambda one: one.scores.get(key, 0.0))[-MOST_BARS:]
    values = [one.scores.get(key, 0.0) for one in ordered]
    bars = axes.barh(range(len(ordered)), values, color="#1f5fbf")
    axes.bar_label(bars, [f"{100 * value:.1f} %" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(ordered)), [_text(f"{one.name} ({one.count})") for one in ordered], fontsize=8)
    axes.set_xlim(0, 1.12)
    axes.set_title(f"{key} by {analysis.classes_are} (number of {analysis.counted})", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_precision_recall(axes: Axes, curves: PrecisionRecall, analysis: Analysis) -> None:
    named = len(curves.precision) <= MOST_NAMED_CURVES
    for name, precision in zip(curve_names(analysis), curves.precision, strict=True):
        if len(precision):
            colour, width, label = (None, 1.4, _text(name) or None) if named else ("0.75", 0.8, None)
            axes.plot(curves.recalls, precision, color=colour, linewidth=width, label=label)
    if len(curves.precision) > 1:
        axes.plot(curves.recalls, curves.mean, color="black", linewidth=2.4, label="mean of all")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title(f"Precision over recall, {analysis.matched}", fontsize=10)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)


def _draw_threshold(axes: Axes, curve: ThresholdCurve, analysis: Analysis) -> None:
    for values, label, width in (
        (curve.f1, "F1", 2.4),
        (curve.precision, "precision", 1.2),
        (curve.recall, "recall", 1.2),
    ):
        axes.plot(curve.thresholds, values, label=label, linewidth=width)
    axes.axvline(curve.recommended, color="0.4", linestyle="--", label=f"recommended: {curve.recommended:.2f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="threshold of the score")
    axes.set_title(f"F1 over the threshold, {analysis.matched}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _draw_confusion(axes: Axes, confusion: ConfusionMatrix, analysis: Analysis) -> None:
    """Shares of each row, with the counts in small matrices."""
    shares = confusion.shares
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(confusion.names))
    names = [_text(name) for name in confusion.names]
    axes.set_xticks(places, names, rotation=90, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="annotated")
    axes.set_title(f"Confusion matrix of {analysis.counted}", fontsize=10)
    if len(confusion.names) <= MOST_NUMBERS:
        for row, (counts, row_shares) in enumerate(zip(confusion.counts, shares, strict=True)):
            for column, (count, share) in enumerate(zip(counts, row_shares, strict=True)):
                if count:
                    colour = "white" if share > 0.6 else "black"
                    text = f"{100 * share:.0f} %\n{_short(count)}"
                    axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


def _short(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k" if count >= 1e4 else str(count)


def _text(name: str) -> str:
    """A name that matplotlib does not take for mathematics."""
    return name.replace("$", r"\$")
