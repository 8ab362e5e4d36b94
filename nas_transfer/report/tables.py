"""The tables of a report: nets of each kind of task, costs, inherited files, fronts, routes and problems."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.arch import short_id
from nas_transfer.report.collect import TRAINING_STAGES, Run
from nas_transfer.report.inheritance import Inherited
from nas_transfer.report.nets import Net, dataset, head_name, schedule
from nas_transfer.report.routes import Comparison
from nas_transfer.report.studies import StudyRecord
from nas_transfer.report.texts import (
    NONE,
    consuming_time,
    millions,
    percent,
    repeats_text,
    unit_of,
    value_text,
)
from nas_transfer.runs import Result, TaskKind, files
from nas_transfer.runs.texts import markdown_text

CARD, CARD_LETTERS = 6, 42
NUMBER = re.compile(r"[+-]?\d[\d.]*(e[+-]?\d+)?$")


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: above it.
        columns: their names.
        rows: cells, as many as there are columns.
        note: below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold only numbers."""
        return tuple(
            any(map(NUMBER.match, column)) and all(cell == NONE or NUMBER.match(cell) for cell in column)
            for column in zip(*self.rows)
        ) or (False,) * len(self.columns)

    @property
    def spans(self) -> tuple[int, ...]:
        """How many of the `CARD` parts of a card each column takes, where a page is too narrow for rows."""
        longest = [max(map(len, column)) for column in zip(self.columns, *self.rows)]
        return tuple(
            next((CARD // parts for parts in (3, 2) if length * parts <= CARD_LETTERS), CARD) for length in longest
        )

    def markdown(self) -> str:
        """As a Markdown table with its note."""
        heading, *rows = (f"| {' | '.join(map(markdown_text, row))} |" for row in (self.columns, *self.rows))
        lines = [heading, f"|{' --- |' * len(self.columns)}", *rows]
        return "\n".join(lines) + (f"\n\n{markdown_text(self.note)}" if self.note else "")


def net_table(kind: TaskKind, nets: Sequence[Net]) -> Table:
    """The table of one kind of task, with a row for each net."""
    columns = ["Dataset", "Model", "config"]
    columns += [kind.size_label] if kind.size_label else []
    columns += ["Lr schd"] if kind.shows_schedule else []
    columns += ["Flops(M)", f"{kind.score_label} (%)", "Consuming time", "trained model", "log", "run"]
    sizes, parts = set(), set()
    rows = []
    for net in nets:
        macs = net.result.costs.macs
        part = kind.macs_part if kind.macs_part in macs else "total"
        parts.add(" + ".join(name for name in macs if name != "total") if part == "total" else part)
        size = net.result.costs.size
        sizes.add(size)
        row = [dataset(net.run, [other.run for other in nets]), net.model, _file_in(net, files.CONFIG)]
        row += [size] if kind.size_label else []
        row += [_schedule_text(net.run)] if kind.shows_schedule else []
        row += [millions(macs[part]), percent(net.score), consuming_time(net.result)]
        row += [_file_in(net, files.WEIGHTS), _file_in(net, files.LOG), str(net.folder)]
        rows.append(tuple(row))
    note = (
        f"FLOPs are multiply-accumulates, as in the literature, of {' or '.join(sorted(parts))} at "
        f"{', '.join(sorted(sizes))} (height x width). Scores are on the validation split. Files are in the run's "
        "folder."
    )
    return Table(kind.title, tuple(columns), tuple(rows), note)


def _file_in(net: Net, name: str) -> str:
    return name if (net.folder / name).is_file() else f"{name} is missing"


def _schedule_text(run: Run) -> str:
    steps = schedule(run)
    return NONE if steps is None else f"{steps[0]} steps of {steps[1]}"


def cost_table(runs: Sequence[Run]) -> Table:
    """The images, passes and time of finished runs, by task and stage."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for run in runs:
        if run.result is not None:
            stage = run.stage
            if stage in TRAINING_STAGES:
                stage += ", nets" if run.result.arch else ", supernets"
            groups.setdefault((run.task, stage), []).append(run.result)
    everything = [run.result for run in runs if run.result is not None]
    rows = []
    for (task, stage), results in [*sorted(groups.items()), (("all", "all"), everything)]:
        rows.append(
            (
                task, stage, str(len(results)), str(sum(result.images_seen for result in results)),
                str(sum(result.images_seen * result.passes_per_image for result in results)),
                f"{sum(result.seconds for result in results):.0f}",
                f"{sum(result.gpu_hours for result in results):.3g}",
            )
        )  # fmt: skip
    columns = ("task", "stage", "runs", "images seen", "passes", "seconds", "GPU-hours")
    note = (
        "Images seen: loaded for training; passes: the same times the archs that each image was run through. Only "
        "finished runs count; Runs lists each with its folder, and the table below what they inherited. There are no "
        "GPU-hours on CPUs."
    )
    return Table("Cost by stage", columns, tuple(rows), note)


def inherited_table(inherited: Sequence[Inherited]) -> Table:
    """The files that the weights of runs descend from, those from outside the report first."""
    rows = []
    for one in sorted(inherited, key=lambda one: (one.source is not None, one.ancestor.file)):
        ancestor = one.ancestor
        cost = "not counted above" if one.source is None else f"counted above: {one.source}"
        others = f" and {len(one.descendants) - 1} more" if len(one.descendants) > 1 else ""
        rows.append(
            (
                Path(ancestor.file).name, ancestor.stage or f"public weights {ancestor.model}".rstrip(),
                ancestor.licence or "this program's own", cost, ancestor.format, ancestor.sha256[:12],
                f"{one.descendants[0]}{others}", ancestor.file, ancestor.published,
            )
        )  # fmt: skip
    columns = ("file", "made by", "licence", "cost", "format", "sha256", "inherited by", "path", "published")
    note = "The cost of training these files is not part of the runs that start from them."
    return Table("Inherited", columns, tuple(rows), note)


def front_table(study: StudyRecord) -> Table:
    """The trials on the front of a study."""
    front = study.front
    has_repeats = any(trial.repeats is not None for trial in front.trials)
    columns = ["trial", "picked", *(unit_of(name, study.score_key) for name in front.names), "at", "arch"]
    heads = [head_name(study.run, trial.arch) for trial in front.trials]
    columns += ["head"] if any(heads) else []
    columns += ["from other seeds (%)", "indistinguishable from"] if has_repeats else []
    rows = []
    for trial, head in zip(front.trials, heads, strict=True):
        row = [str(trial.number), "picked" if trial.number == front.picked else ""]
        row += [value_text(name, trial.values[name]) for name in front.names]
        row += [trial.costs.size if trial.costs is not None else NONE, short_id(trial.arch)]
        row += [head or NONE] if any(heads) else []
        if has_repeats:
            neighbours = ", ".join(f"trial {number}" for number in trial.indistinguishable_from)
            row += [repeats_text(trial.repeats), neighbours or NONE]
        rows.append(tuple(row))
    note = f"Scores on the search split. From {files.FRONT}; arch files for arch=: {files.ARCHS_FOLDER}/trial_*.yaml"
    return Table("Front", tuple(columns), tuple(rows), note)


def route_table(comparison: Comparison, folder: Path) -> Table:
    """Routes side by side, each by its means over seeds, and the difference from route A."""
    rows = []
    for route in comparison.routes.values():
        seeds = sorted(route.points)
        images, passes, macs, seconds, volume = (
            sum(by_seed.values()) / len(by_seed)
            for by_seed in (route.images, route.passes, route.macs, route.seconds, route.volumes)
        )
        best = " ".join(f"{100 * route.points[seed][:, 0].max():.1f}" for seed in seeds)
        volumes = " ".join(f"{100 * route.volumes[seed]:.2f}" for seed in seeds)
        comparable = route.name != "A" and "A" in comparison.routes
        difference = comparison.difference(route.name, "A") if comparable else None
        text = NONE if difference is None else f"{difference}{'' if difference.certain else ': indistinguishable'}"
        rows.append(
            (
                route.name, f"{images:.0f}", f"{passes:.0f}", f"{macs / 1e12:.4g}" if macs else NONE,
                f"{seconds:.0f}", best, volumes, f"{100 * volume:.2f}", text,
            )
        )  # fmt: skip
    columns = (
        "route", "images seen", "passes", "training TMACs", "seconds", f"best {comparison.score_key} (%)",
        "hypervolume (%)", "mean", "minus route A",
    )  # fmt: skip
    all_seeds = sorted({seed for route in comparison.routes.values() for seed in route.volumes})
    note = (
        f"Seeds {' '.join(map(str, all_seeds))}, in this order; images, passes, MACs and seconds: mean over seeds, "
        "before the nets were chosen. Training TMACs: 10^12 multiply-accumulates of body, neck and head of the archs "
        "that ran, forward and backward. Hypervolume: share of the box from a perfect score at no cost to score 0 at "
        f"{comparison.reference_macs / 1e6:.1f} M MACs; all nets are trained alike. {folder}"
    )
    return Table(f"Routes on {comparison.task}", columns, tuple(rows), note)


def nothing_table(runs: Sequence[Run]) -> Table:
    """A row for each command that ended before any work."""
    rows = tuple(
        (str(run.folder), shlex.join(run.manifest.command) if run.manifest is not None else NONE) for run in runs
    )
    note = f"Refused or stopped at the start: they count neither as finished nor as unfinished. Each has a {files.LOG}."
    return Table("Commands that ended before any work", ("run", "command"), rows, note)


def problem_table(problems: Sequence[tuple[str, str]]) -> Table:
    """A row for each pair of a path and what is missing or broken there."""
    by_path: dict[str, list[str]] = {}
    for path, problem in problems:
        by_path.setdefault(path, []).append(problem)
    rows = tuple((path, "; ".join(dict.fromkeys(sentences))) for path, sentences in by_path.items())
    return Table("Unfinished, missing or broken", ("run", "problem"), rows)
