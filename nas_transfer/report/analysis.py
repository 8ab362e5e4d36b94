"""What a net is good at, on the page: a table of classes, curves, a confusion matrix, and the worst images."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nas_transfer.report.plots import WIDTH, Figure, Series, chart, colour_of
from nas_transfer.report.tables import Table
from nas_transfer.report.texts import NONE
from nas_transfer.runs import Analysis, ConfusionMatrix, files

MOST_NAMED_CURVES = 6
MOST_NUMBERS = 12
"""Largest number of names in a confusion matrix whose cells hold numbers."""
LABEL_LETTERS = 12
SHOWN_AS_NUMBERS = ("best_threshold",)
"""Scores of classes that are no percentages."""
SCORE_LABELS = {
    "map": "mAP", "map_50": "mAP50", "map_75": "mAP75", "map_segm": "mask mAP", "map_50_segm": "mask mAP50",
    "map_75_segm": "mask mAP75", "iou": "IoU", "pck": "PCK", "f1": "F1", "best_threshold": "best threshold",
}  # fmt: skip


def class_table(analysis: Analysis) -> Table:
    """A row for each class, in the order of the labels."""
    names = list(dict.fromkeys(name for one in analysis.classes for name in one.scores))
    columns = [analysis.classes_are, analysis.counted]
    columns += [f"{SCORE_LABELS.get(name, name)}{'' if name in SHOWN_AS_NUMBERS else ' (%)'}" for name in names]
    rows = [
        (one.name, str(one.count), *(_value_text(name, one.scores.get(name)) for name in names))
        for one in analysis.classes
    ]
    notes = [f"On {analysis.images} validation images; from {files.ANALYSIS}."]
    if analysis.threshold is not None:
        notes.append(
            f"Recommended threshold of the score: {analysis.threshold.recommended:.2f}, which has the highest F1 over "
            f"all predictions ({analysis.matched})."
        )
    if "f1" in names and analysis.threshold is not None:
        notes.append("Precision, recall and F1 are stated there.")
    return Table(f"By {analysis.classes_are}", tuple(columns), tuple(rows), " ".join(notes))


def _value_text(name: str, value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.2f}" if name in SHOWN_AS_NUMBERS else f"{100 * value:.2f}"


def worst_table(analysis: Analysis) -> Table | None:
    """The worst images by name; None without any."""
    if not analysis.worst:
        return None
    rows = tuple((one.file or str(one.image_id), f"{one.value:.3f}", one.text) for one in analysis.worst)
    note = f"By {analysis.worst_by}. The first are drawn in {files.ANALYSIS_FOLDER}/."
    return Table("Worst images", ("image", "value", "what is wrong"), rows, note)


def analysis_figures(analysis: Analysis) -> list[Figure]:
    """The curves and the confusion matrix."""
    figures = [_precision_recall(analysis), _threshold(analysis)]
    if analysis.confusion is not None:
        figures.append(confusion_figure(analysis.confusion, analysis.counted))
    return [figure for figure in figures if figure is not None]


def curve_names(analysis: Analysis) -> Sequence[str]:
    """The names of the curves of precision over recall: those of the classes, or none for the only one of persons."""
    curves = analysis.precision_recall
    if curves is None or len(curves.precision) != len(analysis.classes):
        return [""] * (0 if curves is None else len(curves.precision))
    return [one.name for one in analysis.classes]


def _precision_recall(analysis: Analysis) -> Figure | None:
    curves = analysis.precision_recall
    if curves is None:
        return None
    named = len(curves.precision) <= MOST_NAMED_CURVES
    series = [
        Series(
            name if named else "", curves.recalls, precision, style="line",
            colour=colour_of(index) if named else 0, faint=not named,
        )
        for index, (name, precision) in enumerate(zip(curve_names(analysis), curves.precision, strict=True))
        if precision
    ]  # fmt: skip
    if len(series) > 1:
        series.append(Series("mean of all", curves.recalls, curves.mean, style="line", colour=0))
    title = f"Precision over recall, {analysis.matched}"
    return chart(title, "recall", "precision", series, f"From {files.ANALYSIS}.", from_zero=True)


def _threshold(analysis: Analysis) -> Figure | None:
    curve = analysis.threshold
    if curve is None:
        return None
    series = [
        Series(label, curve.thresholds, values, style="line", colour=colour)
        for label, values, colour in (
            ("F1", curve.f1, 1),
            ("precision", curve.precision, 2),
            ("recall", curve.recall, 3),
        )
    ]
    best = curve.recommended
    series.append(
        Series("recommended", [best], [max(curve.f1)], colour=6, marker="ring", names=[f"{best:.2f}"])
    )  # fmt: skip
    title = f"F1 over the threshold, {analysis.matched}"
    return chart(title, "threshold of the score", "", series, f"From {files.ANALYSIS}.", from_zero=True)


def confusion_figure(confusion: ConfusionMatrix, counted: str) -> Figure:
    """The shares of each row as shades; each cell tells its count on hovering."""
    count = len(confusion.names)
    left, top = 86.0, 8.0
    side = (WIDTH - left - 6) / count
    height = top + side * count + 86
    parts = []
    for row, (counts, shares) in enumerate(zip(confusion.counts, confusion.shares, strict=True)):
        for column, (number, share) in enumerate(zip(counts, shares, strict=True)):
            x, y = left + column * side, top + row * side
            title = (
                f"{confusion.names[row]} taken for {confusion.names[column]}: {number} {counted} ({100 * share:.1f} %)"
            )
            parts.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" '
                f'fill-opacity="{share:.3f}"><title>{escape(title)}</title></rect>'
            )
            if number and count <= MOST_NUMBERS:
                shade = "cell-text dark" if share > 0.65 else "cell-text"
                parts.append(
                    f'<text class="{shade}" x="{x + side / 2:.1f}" y="{y + side / 2 + 3.5:.1f}" text-anchor="middle">'
                    f"{_short(number)}</text>"
                )
    every = max(1, -(-count // 24))
    for index in range(0, count, every):
        name = escape(_shortened(confusion.names[index]))
        middle = (index + 0.5) * side
        bottom = top + side * count + 10
        parts.append(f'<text class="tick" x="{left - 6}" y="{top + middle + 3.5:.1f}" text-anchor="end">{name}</text>')
        parts.append(
            f'<text class="tick" x="{left + middle + 3:.1f}" y="{bottom:.1f}" text-anchor="end" '
            f'transform="rotate(-60 {left + middle + 3:.1f} {bottom:.1f})">{name}</text>'
        )
    parts.append(f'<rect class="frame" x="{left}" y="{top}" width="{side * count:.1f}" height="{side * count:.1f}"/>')
    title = f"Confusion matrix of {counted}"
    note = "Rows: annotated, columns: predicted. Shade: share of the row; in a row of the background, of the column."
    svg = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return Figure(title, svg, note=f"{note} From {files.ANALYSIS}.")


def _short(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e4 else str(count)


def _shortened(name: str) -> str:
    return name if len(name) <= LABEL_LETTERS else name[: LABEL_LETTERS - 1] + "…"


def analysis_tables(analysis: Analysis) -> Sequence[Table]:
    """The classes, and the worst images if there are any."""
    worst = worst_table(analysis)
    return (class_table(analysis), *(() if worst is None else (worst,)))
