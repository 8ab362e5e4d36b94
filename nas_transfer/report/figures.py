"""The report's figures: fronts, growth of the hypervolume, training curves, routes, trust in short trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nas_transfer.report.arch_drawing import arch_words
from nas_transfer.report.collect import Run
from nas_transfer.report.plots import MARKERS, NUM_COLOURS, Figure, Series, chart
from nas_transfer.report.routes import Comparison
from nas_transfer.report.studies import SCORE, Growth, Member, StudyRecord, Told
from nas_transfer.report.tables import again_text, kind_of, unit_of, value_text


def shown(figures: Sequence[Figure | None]) -> list[Figure]:
    """Those that have a point."""
    return [figure for figure in figures if figure is not None]


def front_figures(study: StudyRecord, score_key: str) -> list[Figure]:
    """The score against each cost; of a single objective, its value against the trial."""
    names = list(study.directions)
    y = SCORE if SCORE in names else names[0]
    costs = [name for name in names if name != y]
    if costs:
        return shown([_front_figure(study, cost, y, score_key) for cost in costs])
    scored = [trial for trial in study.told if trial.values]
    label = unit_of(y, score_key)
    every = Series(
        "trials", [trial.number for trial in scored], [_scaled(y, trial.values[y]) for trial in scored],
        titles=[told_title(trial, score_key) for trial in scored],
    )  # fmt: skip
    return shown([chart(f"{label} of each trial", "trial", label, [every])])


def _front_figure(study: StudyRecord, cost: str, y: str, score_key: str) -> Figure | None:
    scored = [trial for trial in study.told if trial.values]
    members = sorted(study.members, key=lambda member: member.values[cost])
    xs, ys = [member.values[cost] for member in members], [_scaled(y, member.values[y]) for member in members]
    titles = [member_title(member, study.picked, score_key) for member in members]
    picked = study.member(study.picked)
    again = [member for member in members if member.again is not None and y == SCORE]
    series = [
        Series(
            "evaluated trials", [trial.values[cost] for trial in scored],
            [_scaled(y, trial.values[y]) for trial in scored], faint=True, colour=1,
            titles=[told_title(trial, score_key) for trial in scored],
        ),
        Series("", xs, ys, style="steps", colour=1) if len(study.directions) == 2 else Series("", [], []),
        Series("front", xs, ys, colour=1, titles=titles),
        Series(
            "from other seeds: mean ± deviation", [member.values[cost] for member in again],
            [100 * member.again[0] for member in again if member.again], colour=3, marker="diamond",
            spreads=[100 * member.again[1] for member in again if member.again],
            titles=[f"trial {member.number} from other seeds: {again_text(member)} %" for member in again],
        ),
    ]  # fmt: skip
    if picked is not None:
        series.append(
            Series(
                "picked", [picked.values[cost]], [_scaled(y, picked.values[y])], colour=2, marker="ring",
                titles=[member_title(picked, study.picked, score_key)], names=[f"trial {picked.number}"],
            )
        )  # fmt: skip
    sizes = {"x".join(map(str, member.costs.get("input_size", ()))) for member in members}
    at = f" at {sizes.pop()}" if len(sizes) == 1 and cost in ("macs", "params") else ""
    names = {"macs": "MACs", "params": "params"}
    x_label = names.get(cost, unit_of(cost)) + (at if cost == "macs" else "")
    y_label = unit_of(y, score_key)
    return chart(f"{y_label} against {names.get(cost, cost)}", x_label, y_label, series, "From front.json and trials/.")


def _scaled(name: str, value: float) -> float:
    return 100 * value if name == SCORE else value


def member_title(member: Member, picked: int | None, score_key: str) -> str:
    """What hovering a member of the front shows: values, costs with their input size, arch."""
    lines = [f"trial {member.number}" + (", picked" if member.number == picked else "")]
    lines += [f"{unit_of(name, score_key)} {value_text(name, value)}" for name, value in member.values.items()]
    size = "x".join(map(str, member.costs.get("input_size", ())))
    for unit in ("macs", "params"):
        parts = member.costs.get(unit)
        if isinstance(parts, dict):
            lines.append(f"{unit_of(unit)} at {size}: {_parts(unit, parts)}")
    if member.again is not None:
        lines.append(f"from other seeds: {again_text(member)} %")
    if member.alike:
        lines.append(f"cannot be told from {', '.join(f'trial {number}' for number in member.alike)}")
    return "\n".join([*lines, arch_words(member.arch)])


def _parts(unit: str, parts: Mapping[str, Any]) -> str:
    return ", ".join(f"{part} {value_text(unit, value)}" for part, value in parts.items())


def told_title(trial: Told, score_key: str) -> str:
    """What hovering an evaluated trial shows."""
    values = [f"{unit_of(name, score_key)} {value_text(name, value)}" for name, value in trial.values.items()]
    return "\n".join([f"trial {trial.number}", *values, *([] if trial.arch is None else [arch_words(trial.arch)])])


def growth_figures(study: StudyRecord, grown: Growth | None) -> list[Figure]:
    """The hypervolume over trials, seconds and, where trials were trained, images."""
    if grown is None:
        return []
    shares = [100 * share for share in grown.shares]
    axes: list[tuple[str, Sequence[float]]] = [
        ("trials", [trial.number + 1 for trial in study.told]), ("seconds of evaluation", grown.seconds),
    ]  # fmt: skip
    if any(grown.images):
        axes.append(("training images seen", grown.images))
    note = f"Share of the box: {grown.box}. From trials/."
    return shown(
        [
            chart(f"Hypervolume over {name}", name, "hypervolume (%)", [Series("", xs, shares, style="steps")], note)
            for name, xs in axes
        ]
    )


def trust_figure(study: StudyRecord) -> Figure | None:
    """Scores of short trainings against those of longer ones."""
    trust = study.trust
    if trust is None:
        return None
    pairs = [(100 * float(short), 100 * float(long)) for short, long in zip(trust["short"], trust["long"])]
    titles = [f"trial {number}: {x:.2f} %, then {y:.2f} %" for number, (x, y) in zip(trust["trials"], pairs)]
    series = Series("", [x for x, _ in pairs], [y for _, y in pairs], colour=4, titles=titles)
    steps, long_steps = trust.get("steps", "short"), trust.get("long_steps", "long")
    return chart(
        f"Scores after {steps} and after {long_steps} steps", f"score after {steps} steps (%)",
        f"after {long_steps} steps (%)", [series], "From trust.json.",
    )  # fmt: skip


def training_figures(run: Run) -> list[Figure]:
    """Losses and the validation score over the steps."""
    note = "From logs/."
    losses = [name for name in run.curves if name.startswith("train/") and "loss" in name.rpartition("/")[2]]
    losses.sort(key=lambda name: (name != "train/loss", name))
    series = [
        Series(name.removeprefix("train/"), *run.curves[name], style="line", colour=place + 1, faint=place > 0)
        for place, name in enumerate(losses[:NUM_COLOURS])
    ]
    found = [chart("Training loss", "step", "loss", series, note)]
    key = (run.result or {}).get("score_key") or run.config.get("search.score_key") or kind_of(run).score_key
    scores = [f"val/{key}"]
    for name in scores:
        if name in run.curves:
            steps, values = run.curves[name]
            score = Series("", steps, [100 * value for value in values], style="line", colour=2)
            found.append(chart("Validation score", "step", f"{name.removeprefix('val/')} (%)", [score], note))
    return shown(found)


def route_figures(found: Comparison, folder: Any) -> list[Figure]:
    """Every retrained net by route, and what each route's front cost."""
    nets, fronts = [], []
    for place, route in enumerate(found.routes.values()):
        look: dict[str, Any] = {"colour": place % NUM_COLOURS + 1, "marker": MARKERS[place % len(MARKERS)]}
        points = [(seed, score, macs) for seed, own in route.points.items() for score, macs in own.tolist()]
        titles = [
            f"route {route.name}, seed {seed}: {100 * score:.2f} %, {macs / 1e6:.3f} M MACs"
            for seed, score, macs in points
        ]
        nets.append(
            Series(f"route {route.name}", [p[2] for p in points], [100 * p[1] for p in points], titles=titles, **look)
        )
        seeds = sorted(route.volumes)
        titles = [
            f"route {route.name}, seed {seed}: {100 * route.volumes[seed]:.2f} % after {route.images[seed]} images"
            for seed in seeds
        ]
        volumes = [100 * route.volumes[seed] for seed in seeds]
        images = [route.images[seed] for seed in seeds]
        fronts.append(Series(f"route {route.name}", images, volumes, titles=titles, **look))
    note = str(folder)
    return shown(
        [
            chart("Retrained nets of each route", "MACs", f"{found.score_key} (%)", nets, note),
            chart("What each route's front cost", "images seen before the choice", "hypervolume (%)", fronts, note),
        ]
    )
