"""The report's tables: the document's own for each kind of task, what everything cost, routes, fronts, problems."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_transfer.report.collect import TRAINING_STAGES, WEIGHTS_FILE, Run, is_number
from nas_transfer.report.inheritance import Ancestor
from nas_transfer.report.routes import Comparison
from nas_transfer.report.studies import SCORE, Member, StudyRecord
from nas_transfer.runs.result import SECONDS_PER_HOUR
from nas_transfer.space import short_id

SECONDS_PER_DAY = 86400
NONE = "—"
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
        """Which columns hold nothing but numbers."""
        return tuple(
            any(map(NUMBER.match, column)) and all(cell == NONE or NUMBER.match(cell) for cell in column)
            for column in zip(*self.rows)
        ) or (False,) * len(self.columns)

    @property
    def spans(self) -> tuple[int, ...]:
        """How many of a card's `CARD` parts each column takes where a page is too narrow for rows: a third to all."""
        longest = [max(map(len, column)) for column in zip(self.columns, *self.rows)]
        return tuple(
            next((CARD // parts for parts in (3, 2) if length * parts <= CARD_LETTERS), CARD) for length in longest
        )

    def markdown(self) -> str:
        """As a Markdown table with its note."""
        lines = [f"| {' | '.join(self.columns)} |", f"|{' --- |' * len(self.columns)}"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in self.rows]
        return "\n".join(lines) + (f"\n\n{self.note}" if self.note else "")


@dataclass(frozen=True)
class TaskKind:
    """How the document tabulates the nets of one kind of task.

    Attributes:
        title: of the table.
        model: what the net is called after its supernet.
        size: heading of the column of input sizes, None without one.
        schedule: whether there is a column of the training's length.
        part: the part whose multiply-accumulates the FLOPs are, ``total`` for the whole net.
        score: heading of the score.
        score_key: the metric that it is.
    """

    title: str
    model: str
    size: str | None
    schedule: bool
    part: str
    score: str
    score_key: str


KINDS = {
    "DetectionTask": TaskKind("Object detection", "faster_rcnn", None, True, "total", "mAP", "map"),
    "InstanceSegmentationTask": TaskKind(
        "Instance segmentation", "mask_rcnn", None, True, "total", "mask mAP", "map_segm"
    ),
    "PoseTask": TaskKind("Pose estimation", "topdown", "Input Size", False, "body", "AP", "ap"),
    "SegmentationTask": TaskKind("Semantic segmentation", "deeplabv3plus", "Crop Size", True, "total", "mIoU", "miou"),
    "ClassificationTask": TaskKind("Image classification", "classifier", "Input Size", True, "total", "top-1", "top1"),
}
"""By the class of the task that the configuration names."""


def kind_of(run: Run) -> TaskKind:
    """How a run's net is tabulated; a task of the user's own by the name of its class."""
    name = str(run.config.get("task.build._target_", "another task")).rpartition(".")[2]
    score = str((run.result or {}).get("score_key") or "score")
    return KINDS.get(name) or TaskKind(name, "net", "Input Size", True, "total", score, score)


def nets_by_kind(runs: Sequence[Run]) -> list[tuple[TaskKind, list[Run]]]:
    """The finished fine-tuned nets of each kind of task that has some, by cost."""
    nets = sorted((run for run in runs if run.is_net), key=total_macs)
    others = sorted({kind_of(net) for net in nets} - set(KINDS.values()), key=lambda kind: (kind.title, kind.score))
    groups = [(kind, [net for net in nets if kind_of(net) == kind]) for kind in [*KINDS.values(), *others]]
    return [(kind, own) for kind, own in groups if own]


def nets_by_data(nets: Sequence[Run]) -> list[list[Run]]:
    """Those whose scores compare: of one task on one data set."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for net in nets:
        groups.setdefault((net.task, data_root(net)), []).append(net)
    return list(groups.values())


def total_macs(net: Run) -> float:
    """A finished run's multiply-accumulates, of all parts."""
    return float((net.result or {})["costs"]["macs"]["total"])


def net_table(kind: TaskKind, nets: Sequence[Run]) -> Table:
    """The document's table of one kind of task, a row for each net."""
    columns = ["Dataset", "Model", "config"]
    columns += [kind.size] if kind.size else []
    columns += ["Lr schd"] if kind.schedule else []
    columns += ["Flops(M)", f"{kind.score} (%)", "Consuming time", "trained model", "log", "run"]
    sizes, parts = set(), set()
    rows = []
    for net in nets:
        result = net.result or {}
        macs = result["costs"]["macs"]
        counted = kind.part if kind.part in macs else "total"
        parts.add(" + ".join(part for part in macs if part != "total") if counted == "total" else counted)
        size = input_size(result)
        sizes.add(size)
        row = [dataset(net, nets), model(net, kind), file_in(net, ".hydra/config.yaml")]
        row += [size] if kind.size else []
        row += [schedule(net)] if kind.schedule else []
        row += [millions(macs[counted]), percent(result["score"]), consuming_time(result)]
        row += [file_in(net, WEIGHTS_FILE), file_in(net, "log.txt"), str(net.folder)]
        rows.append(tuple(row))
    note = (
        f"FLOPs are multiply-accumulates, as in the literature, of {' or '.join(sorted(parts))} at "
        f"{', '.join(sorted(sizes))} (height x width). Scores are those of the validation split. Files lie "
        "in the run's folder."
    )
    return Table(kind.title, tuple(columns), tuple(rows), note)


def data_root(run: Run) -> str:
    """The folder of its data as configured, normalised; empty if unknown."""
    root = run.config.get("data.root")
    return os.path.normpath(str(root)) if root else ""


def dataset(run: Run, beside: Sequence[Run] = ()) -> str:
    """The last folder of the data's root, with its parent where other data beside it end alike."""
    root = data_root(run)
    path = Path(root)
    alike = any(Path(other).name == path.name for other in map(data_root, beside) if other and other != root)
    return (str(Path(*path.parts[-2:])) if alike else path.name or root) if root else NONE


def model(run: Run, kind: TaskKind) -> str:
    """Supernet, kind of net, and which arch."""
    arch = (run.result or {})["arch"] or {}
    return f"{arch.get('space', 'net')}_{kind.model} {arch_name(run)} ({short_id(arch)})".replace("  ", " ")


def arch_name(run: Run) -> str:
    """The word, or the name of the arch file, that the command line gave; empty if unknown."""
    return Path(str(run.config.get("arch", ""))).stem


def input_size(result: Any) -> str:
    """Height x width that the costs are stated for."""
    return "x".join(str(side) for side in result["costs"]["input_size"])


def schedule(run: Run) -> str:
    """How long the training was, in optimiser steps."""
    result, config = run.result or {}, run.config
    batch = config.get("data.batch_size")
    accumulate = config.get("task.recipe.accumulate", 1)
    usable = all(is_number(number) and number >= 1 for number in (batch, accumulate, result["devices"]))
    if not usable or not result["images_seen"]:
        return NONE
    steps = round(result["images_seen"] / (batch * accumulate * result["devices"]))
    return f"{steps} steps of {batch * accumulate * result['devices']}"


def consuming_time(result: Any) -> str:
    """'8 GPUs x 1.5 days', with CPU processes called such, and the hours and minutes."""
    count = result["devices"]
    on_gpu = result["gpu_hours"] > 0
    unit = "GPU" if on_gpu else "CPU process"
    plural = "" if count == 1 else ("s" if on_gpu else "es")
    days = result["seconds"] / SECONDS_PER_DAY
    return f"{count} {unit}{plural} x {days:.3g} days ({duration(result['seconds'])})"


def duration(seconds: float) -> str:
    """For people: 90 s, 12 min, 3.5 h."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * SECONDS_PER_HOUR else f"{seconds / SECONDS_PER_HOUR:.1f} h"


def file_in(run: Run, name: str) -> str:
    """A file of a run's folder, or that it is missing."""
    return name if (run.folder / name).is_file() else f"{name} is missing"


def millions(value: float) -> str:
    """In millions: with three decimals below a thousand, for small nets differ there, else whole ones."""
    return f"{value / 1e6:.3f}" if value < 1e9 else f"{value / 1e6:.0f}"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with two decimals."""
    return NONE if fraction is None else f"{100 * fraction:.2f}"


def value_text(name: str, value: float) -> str:
    """An objective's value in the unit that its column names."""
    if name == SCORE:
        return percent(value)
    return millions(value) if name in ("macs", "params") else f"{value:.4g}"


def unit_of(name: str, score_key: str = "score") -> str:
    """An objective's name with its unit."""
    if name == SCORE:
        return f"{score_key} (%)"
    return {"macs": "MACs (M)", "params": "params (M)", "latency_ms": "latency (ms)", "memory_mib": "memory (MiB)"}.get(
        name, name
    )


def ledger(runs: Sequence[Run]) -> Table:
    """What every stage of every task cost, of finished runs."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.result is not None:
            what = run.stage
            if run.stage in ("finetune", "pretrain"):
                what += ", nets" if run.result["arch"] else ", supernets"
            groups.setdefault((run.task, what), []).append(run)
    rows = []
    for (task, what), own in [*sorted(groups.items()), (("all", "all"), [run for run in runs if run.result])]:
        results = [run.result for run in own if run.result is not None]
        rows.append(
            (
                task, what, str(len(own)), str(sum(one["images_seen"] for one in results)),
                str(sum(one["images_seen"] * one["passes_per_image"] for one in results)),
                f"{sum(one['seconds'] for one in results):.0f}", f"{sum(one['gpu_hours'] for one in results):.3g}",
            )
        )  # fmt: skip
    columns = ("task", "stage", "runs", "images seen", "passes", "seconds", "GPU-hours")
    note = (
        "Images seen: loaded for training, each once however many archs it ran through; passes: times these archs. "
        "Finished runs alone, each listed with its folder under Runs; what they inherited is below. On CPUs there are "
        "no GPU-hours."
    )
    return Table("Cost by stage", columns, tuple(rows), note)


def inherited_table(found: Sequence[Ancestor]) -> Table:
    """The files that the runs' weights descend from, those from elsewhere first."""
    rows = []
    for one in sorted(found, key=lambda own: (own.counted_in is not None, own.file)):
        cost = "not counted above" if one.counted_in is None else f"counted above: {one.counted_in}"
        first = str(one.heirs[0]) + (f" and {len(one.heirs) - 1} more" if len(one.heirs) > 1 else "")
        licence = one.licence or "this program's own"
        made_by = one.stage or "public weights"
        rows.append((Path(one.file).name, made_by, licence, cost, one.format, one.sha256[:12], first, one.file))
    columns = ("file", "made by", "licence", "cost", "format", "sha256", "inherited by", "path")
    return Table(
        "Inherited", columns, tuple(rows), "What training these files cost is no part of the runs that start from them."
    )


def front_table(study: StudyRecord, score_key: str) -> Table:
    """The members of a study's front."""
    names = list(study.directions)
    again = any(member.again for member in study.members)
    columns = ["trial", "picked", *(unit_of(name, score_key) for name in names), "at", "arch"]
    columns += ["from other seeds (%)", "cannot be told from"] if again else []
    rows = []
    for member in study.members:
        row = [str(member.number), "picked" if member.number == study.picked else ""]
        row += [value_text(name, member.values[name]) for name in names]
        row += [_member_size(member), short_id(member.arch)]
        if again:
            row += [again_text(member), ", ".join(f"trial {number}" for number in member.alike) or NONE]
        rows.append(tuple(row))
    note = "Scores on the search split. From front.json; arch files, ready for arch=: archs/trial_*.yaml"
    return Table("Front", tuple(columns), tuple(rows), note)


def _member_size(member: Member) -> str:
    size = member.costs.get("input_size")
    return "x".join(map(str, size)) if isinstance(size, list) else NONE


def again_text(member: Member) -> str:
    """Mean and deviation of the scores from other seeds."""
    if member.again is None:
        return NONE
    mean, deviation, count = member.again
    return f"{100 * mean:.2f} ± {100 * deviation:.2f} ({count} seeds)"


def route_table(found: Comparison, folder: Path) -> Table:
    """Routes side by side, each by its means over seeds, and the difference from route A."""
    rows = []
    for route in found.routes.values():
        seeds = sorted(route.points)
        images, passes, seconds, volumes = (
            sum(own.values()) / len(own) for own in (route.images, route.passes, route.seconds, route.volumes)
        )
        best = " ".join(f"{100 * route.points[seed][:, 0].max():.1f}" for seed in seeds)
        shares = " ".join(f"{100 * route.volumes[seed]:.2f}" for seed in seeds)
        difference = found.difference(route.name, "A") if route.name != "A" and "A" in found.routes else None
        told = NONE if difference is None else f"{difference}{'' if difference.certain else ': cannot be told apart'}"
        rows.append(
            (route.name, f"{images:.0f}", f"{passes:.0f}", f"{seconds:.0f}", best, shares, f"{100 * volumes:.2f}", told)
        )
    columns = (
        "route", "images seen", "passes", "seconds", f"best {found.score_key} (%)", "hypervolume (%)", "mean",
        "minus route A",
    )  # fmt: skip
    seeds_text = " ".join(str(seed) for seed in sorted({seed for r in found.routes.values() for seed in r.volumes}))
    note = (
        f"Seeds {seeds_text}, in this order; images, passes and seconds: mean over seeds, before the nets were chosen. "
        f"Hypervolume: share of the box from a perfect score at no cost to score 0, "
        f"{found.reference_macs / 1e6:.1f} M MACs; all nets trained alike. {folder}"
    )
    return Table(f"Routes on {found.task}", columns, tuple(rows), note)


def problem_table(problems: Sequence[tuple[str, str]]) -> Table:
    """From (path, what is missing or broken), one row for each path."""
    by_path: dict[str, list[str]] = {}
    for path, what in problems:
        by_path.setdefault(path, []).append(what)
    rows = tuple((path, "; ".join(dict.fromkeys(own))) for path, own in by_path.items())
    return Table("Unfinished, missing or broken", ("run", "what"), rows)


CSV_COLUMNS = (
    "run", "stage", "task", "kind", "dataset", "supernet", "arch", "arch_id", "score_key", "score", "macs", "macs_body",
    "params", "input_size", "steps", "images_seen", "passes", "seconds", "devices", "gpu_hours", "hypervolume", "seed",
    "git", "weights", "log",
)  # fmt: skip


def csv_text(runs: Sequence[Run]) -> str:
    """One row for each finished run, with numbers as result.json has them (scores are fractions)."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in runs:
        result = run.result
        if result is None:
            continue
        arch, macs = result["arch"], result["costs"]["macs"]
        trained_as = run.config.get("arch", "") if run.stage in TRAINING_STAGES else ""  # elsewhere it is not looked at
        weights = run.folder / WEIGHTS_FILE
        log = run.folder / "log.txt"
        writer.writerow(
            (
                run.folder, run.stage, run.task, kind_of(run).title, dataset(run),
                run.config.get("supernet.name", ""), trained_as, short_id(arch) if arch else "",
                result.get("score_key") or "", _raw(result["score"]), macs["total"], _raw(macs.get("body")),
                result["costs"]["params"]["total"], input_size(result), schedule(run).split()[0].replace(NONE, ""),
                result["images_seen"], result["images_seen"] * result["passes_per_image"], result["seconds"],
                result["devices"], result["gpu_hours"], _raw((result.get("search") or {}).get("hypervolume")),
                result["seed"], result.get("git") or "", weights if weights.is_file() else "",
                log if log.is_file() else "",
            )
        )  # fmt: skip
    return stream.getvalue()


def _raw(value: Any) -> Any:
    return "" if value is None else value
