"""The figures of studies, trainings and routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from nas_transfer.report.arch_drawing import arch_text
from nas_transfer.report.collect import Run
from nas_transfer.report.plots import NUM_COLOURS, Figure, Series, chart, colour_of, marker_of
from nas_transfer.report.routes import Comparison
from nas_transfer.report.studies import SCORE, Growth, StudyRecord
from nas_transfer.report.texts import repeats_text, unit_of, value_text
from nas_transfer.runs import Outcome, Trial, files
from nas_transfer.search.resizing import curve_of


def only_figures(figures: Sequence[Figure | None]) -> list[Figure]:
    """Those that have a point."""
    return [figure for figure in figures if figure is not None]


def front_figures(study: StudyRecord) -> list[Figure]:
    """The score against each cost; of a single objective, its value against the trial."""
    names = study.front.names
    y = SCORE if SCORE in names else names[0]
    costs = [name for name in names if name != y]
    if costs:
        return only_figures([_front_figure(study, cost, y) for cost in costs])
    label = unit_of(y, study.score_key)
    trials = Series(
        "trials", [outcome.trial for outcome in study.scored], [_scaled(y, o.values[y]) for o in study.scored],
        titles=[outcome_title(outcome, study.score_key) for outcome in study.scored],
    )  # fmt: skip
    return only_figures([chart(f"{label} of each trial", "trial", label, [trials])])


def _front_figure(study: StudyRecord, cost: str, y: str) -> Figure | None:
    score_key = study.score_key
    front = sorted(study.front.trials, key=lambda trial: trial.values[cost])
    xs, ys = [trial.values[cost] for trial in front], [_scaled(y, trial.values[y]) for trial in front]
    titles = [trial_title(trial, study) for trial in front]
    series = [
        Series(
            "evaluated trials", [outcome.values[cost] for outcome in study.scored],
            [_scaled(y, outcome.values[y]) for outcome in study.scored], faint=True, colour=1,
            titles=[outcome_title(outcome, score_key) for outcome in study.scored],
        ),
        Series("", xs, ys, style="steps", colour=1) if len(study.front.names) == 2 else Series("", [], []),
        Series("front", xs, ys, colour=1, titles=titles),
    ]  # fmt: skip
    if y == SCORE:
        series.append(_repeats_series(front, cost))
        series += _whole_network_series(study, cost)
    picked = study.picked
    if picked is not None:
        series.append(
            Series(
                "picked", [picked.values[cost]], [_scaled(y, picked.values[y])], colour=2, marker="ring",
                titles=[trial_title(picked, study)], names=[f"trial {picked.number}"],
            )
        )  # fmt: skip
    sizes = {trial.costs.size for trial in front if trial.costs is not None}
    name = {"macs": "MACs", "params": "params"}.get(cost, cost)
    x_label = name if cost in ("macs", "params") else unit_of(cost)
    x_label += f" at {sizes.pop()}" if len(sizes) == 1 and cost == "macs" else ""
    y_label = unit_of(y, score_key)
    note = f"From {files.FRONT} and {files.TRIALS_FOLDER}/."
    return chart(f"{y_label} against {name}", x_label, y_label, series, note)


def _repeats_series(front: Sequence[Trial], cost: str) -> Series:
    """The scores of a front's trials from other seeds."""
    repeated = [(trial, trial.repeats) for trial in front if trial.repeats is not None]
    return Series(
        "from other seeds: mean ± deviation",
        [trial.values[cost] for trial, _ in repeated],
        [100 * repeats.mean for _, repeats in repeated],
        colour=3,
        marker="diamond",
        spreads=[100 * repeats.std for _, repeats in repeated],
        titles=[f"trial {trial.number} from other seeds: {repeats_text(repeats)} %" for trial, repeats in repeated],
    )


def _whole_network_series(study: StudyRecord, cost: str) -> list[Series]:
    """The whole network at each input size and with narrower heads, and the curve that the front is compared with."""

    def series(label: str, trials: Sequence[Trial], style: Literal["points", "line"]) -> Series:
        ys = [_scaled(SCORE, trial.values[SCORE]) for trial in trials]
        titles = [trial_title(trial, study) for trial in trials]
        return Series(label, [trial.values[cost] for trial in trials], ys, style, 0, marker="square", titles=titles)

    front, curve = study.front, curve_of(study.front, cost)
    ways = [way for way, there in (("resized", len(front.resized) > 1), ("narrower heads", front.narrowed)) if there]
    points = series(f"whole network{', ' if ways else ''}{' or '.join(ways)}", front.baselines, "points")
    return [series("", curve, "line"), points] if len(curve) > 1 else [points]


def _scaled(name: str, value: float) -> float:
    return 100 * value if name == SCORE else value


def trial_title(trial: Trial, study: StudyRecord) -> str:
    """The tooltip of a trial on the front: values, costs with their input size, arch."""
    lines = [f"trial {trial.number}{', picked' if trial.number == study.front.picked else ''}"]
    if study.front.is_resized(trial.number):
        lines.append("the whole network")
    elif study.front.is_narrowed(trial.number):
        lines.append("the whole network with a narrower head")
    lines += _value_lines(trial.values, study.score_key)
    if trial.costs is not None:
        for unit, parts in (("macs", trial.costs.macs), ("params", trial.costs.params)):
            values = ", ".join(f"{part} {value_text(unit, value)}" for part, value in parts.items())
            lines.append(f"{unit_of(unit)} at {trial.costs.size}: {values}")
    if trial.repeats is not None:
        lines.append(f"from other seeds: {repeats_text(trial.repeats)} %")
    if trial.indistinguishable_from:
        neighbours = ", ".join(f"trial {number}" for number in trial.indistinguishable_from)
        lines.append(f"indistinguishable from {neighbours}")
    return "\n".join([*lines, arch_text(trial.arch)])


def outcome_title(outcome: Outcome, score_key: str) -> str:
    """The tooltip of an evaluated trial."""
    values = _value_lines(outcome.values, score_key)
    return "\n".join([f"trial {outcome.trial}", *values, arch_text(outcome.arch)])


def _value_lines(values: Mapping[str, float], score_key: str) -> list[str]:
    return [f"{unit_of(name, score_key)} {value_text(name, value)}" for name, value in values.items()]


def growth_figures(study: StudyRecord, growth: Growth | None) -> list[Figure]:
    """The hypervolume over trials, seconds and, where trials were trained, images."""
    if growth is None:
        return []
    shares = [100 * share for share in growth.shares]
    axes: list[tuple[str, Sequence[float]]] = [
        ("trials", [outcome.trial + 1 for outcome in study.outcomes]), ("seconds of evaluation", growth.seconds),
    ]  # fmt: skip
    if any(growth.images):
        axes.append(("training images seen", growth.images))
    note = f"Share of the box: {growth.box}. From {files.TRIALS_FOLDER}/."
    return only_figures(
        [
            chart(f"Hypervolume over {name}", name, "hypervolume (%)", [Series("", xs, shares, style="steps")], note)
            for name, xs in axes
        ]
    )


def validation_figure(study: StudyRecord) -> Figure | None:
    """Scores of short trainings against those of longer ones."""
    validation = study.validation
    if validation is None:
        return None
    xs, ys = [100 * score for score in validation.short], [100 * score for score in validation.long]
    titles = [f"trial {number}: {x:.2f} %, then {y:.2f} %" for number, x, y in zip(validation.trials, xs, ys)]
    steps, long_steps = validation.steps, validation.long_steps
    return chart(
        f"Scores after {steps} and after {long_steps} steps", f"score after {steps} steps (%)",
        f"after {long_steps} steps (%)", [Series("", xs, ys, colour=4, titles=titles)], f"From {files.VALIDATION}.",
    )  # fmt: skip


def training_figures(run: Run) -> list[Figure]:
    """Losses and the validation score over the steps; all validation metrics of a run without a result."""
    note = f"From {files.LOGS_FOLDER}/."
    losses = [name for name in run.curves if name.startswith("train/") and "loss" in name.rpartition("/")[2]]
    losses.sort(key=lambda name: (name != "train/loss", name))
    series = [
        _curve_series(run, name, index + 1, faint=index > 0, label=name.removeprefix("train/"))
        for index, name in enumerate(losses[:NUM_COLOURS])
    ]
    figures = [chart("Training loss", "step", "loss", series, note)]
    metrics = _validation_metrics(run)
    if len(metrics) == 1:
        scores = [_curve_series(run, f"val/{metrics[0]}", 2, scale=100)]
        figures.append(chart("Validation score", "step", f"{metrics[0]} (%)", scores, note))
    else:
        scores = [
            _curve_series(run, f"val/{name}", colour_of(index), label=name, scale=100)
            for index, name in enumerate(metrics[:NUM_COLOURS])
        ]
        figures.append(chart("Validation metrics", "step", "%", scores, note))
    return only_figures(figures)


def _curve_series(
    run: Run, name: str, colour: int, *, label: str = "", faint: bool = False, scale: float = 1.0
) -> Series:
    curve = run.curves[name]
    values = [scale * value for value in curve.values]
    return Series(label, curve.steps, values, style="line", colour=colour, faint=faint)


def _validation_metrics(run: Run) -> list[str]:
    """The logged score; without a result, which says what it is, all logged metrics but those of single classes."""
    logged = [name.removeprefix("val/") for name in run.curves if name.startswith("val/")]
    if run.result is not None and run.result.score_key is not None:
        return [name for name in logged if name == run.result.score_key]
    return sorted(name for name in logged if "/" not in name)


def route_figures(comparison: Comparison, folder: Path) -> list[Figure]:
    """Every retrained net by route, and what each route's front cost."""
    nets, fronts = [], []
    for index, route in enumerate(comparison.routes.values()):
        label, colour, marker = f"route {route.name}", colour_of(index), marker_of(index)
        points = [(seed, score, macs) for seed, rows in route.points.items() for score, macs in rows.tolist()]
        titles = [f"{label}, seed {seed}: {100 * score:.2f} %, {macs / 1e6:.3f} M MACs" for seed, score, macs in points]
        xs, ys = [macs for _, _, macs in points], [100 * score for _, score, _ in points]
        nets.append(Series(label, xs, ys, titles=titles, colour=colour, marker=marker))
        seeds = sorted(route.volumes)
        titles = [
            f"{label}, seed {seed}: {100 * route.volumes[seed]:.2f} % after {route.images[seed]} images"
            for seed in seeds
        ]
        images, volumes = [route.images[seed] for seed in seeds], [100 * route.volumes[seed] for seed in seeds]
        fronts.append(Series(label, images, volumes, titles=titles, colour=colour, marker=marker))
    y_label, note = f"{comparison.score_key} (%)", str(folder)
    return only_figures(
        [
            chart("Retrained nets of each route", "MACs", y_label, nets, note),
            chart("What each route's front cost", "images seen before the choice", "hypervolume (%)", fronts, note),
        ]
    )
