"""What a report says of a set of runs, before it is written as a page or as Markdown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas_transfer.errors import NasTransferError
from nas_transfer.report.arch_drawing import draw_arch
from nas_transfer.report.collect import STAGES_WITHOUT_RESULT, Run, read_runs
from nas_transfer.report.figures import (
    front_figures,
    growth_figures,
    route_figures,
    shown,
    training_figures,
    trust_figure,
)
from nas_transfer.report.inheritance import ancestors
from nas_transfer.report.net_figures import net_figures
from nas_transfer.report.origins import origin_table
from nas_transfer.report.pictures import LARGE, prediction_figures
from nas_transfer.report.plots import Figure
from nas_transfer.report.routes import comparison
from nas_transfer.report.studies import StudyRecord, growth, read_study
from nas_transfer.report.tables import (
    Table,
    TaskKind,
    data_root,
    duration,
    front_table,
    inherited_table,
    input_size,
    kind_of,
    ledger,
    millions,
    net_table,
    nets_by_data,
    nets_by_kind,
    percent,
    problem_table,
    route_table,
    unit_of,
    value_text,
)
from nas_transfer.space import short_id

RETRAINED = re.compile(r"[A-Za-z]+\d*-\d+-\d+$")
"""A net of `compare_routes.sh`: ROUTE-SEED-PLACE."""


@dataclass(frozen=True)
class Section:
    """One route comparison, study or run.

    Attributes:
        title: what it is.
        folder: where its numbers come from; None if from several.
        facts: (name, text).
        tables, figures: of it.
    """

    title: str
    folder: Path | None
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Report:
    """All sections.

    Attributes:
        summary: one sentence.
        problems: unfinished, missing and broken things, None without any.
        nets, routes, studies, runs: a section for each kind of task, comparison, study, run.
        ledger: costs by stage.
        inherited: files from elsewhere, None if no weights say so.
    """

    summary: str
    problems: Table | None
    nets: tuple[Section, ...]
    routes: tuple[Section, ...]
    studies: tuple[Section, ...]
    ledger: Table
    inherited: Table | None
    runs: tuple[Section, ...]


def make_report(folders: Sequence[Path], without: Sequence[str] = ()) -> tuple[Report, list[Run]]:
    """Read run folders and say what they hold.

    Args:
        folders: of the runs.
        without: places that were named and have no runs.
    """
    runs = read_runs(folders)
    problems = [(place, "no run folder there") for place in without]
    problems += [(str(run.folder), problem) for run in runs for problem in run.problems]
    studies = [study for run in runs if (study := read_study(run)) is not None]
    problems += [(str(study.run.folder), problem) for study in studies for problem in study.problems]
    routes, unfinished = _route_sections(runs)
    problems += unfinished
    found, unread = ancestors(runs)
    problems += [(str(path), reason) for path, reason in unread]
    finished = sum(run.result is not None or run.stage in STAGES_WITHOUT_RESULT for run in runs)
    summary = (
        f"Runs: {len(runs)}, finished: {finished}, fine-tuned nets: {sum(run.is_net for run in runs)}, "
        f"studies: {len(studies)}."
    )
    report = Report(
        summary, problem_table(problems) if problems else None,
        tuple(_net_section(kind, nets, studies, runs) for kind, nets in nets_by_kind(runs)), tuple(routes),
        tuple(_study_section(study, runs) for study in studies if study.directions), ledger(runs),
        inherited_table(found) if found else None, tuple(_run_section(run) for run in runs),
    )  # fmt: skip
    return report, runs


def _net_section(kind: TaskKind, nets: Sequence[Run], studies: Sequence[StudyRecord], runs: Sequence[Run]) -> Section:
    """One kind of task: the document's table, where its nets come from, their charts, and what the best predicts."""
    best = [max(own, key=lambda net: (net.result or {})["score"]) for own in nets_by_data(nets)]
    pictures = [figure for net in best for figure in prediction_figures(net.folder, LARGE)]
    return Section(
        kind.title,
        None,
        (),
        (net_table(kind, nets), origin_table(kind, nets, studies, runs)),
        (*net_figures(kind, nets), *pictures),
    )


def _route_sections(runs: Sequence[Run]) -> tuple[list[Section], list[tuple[str, str]]]:
    """Each folder that `compare_routes.sh` left, and those whose routes cannot be compared yet."""
    roots = {
        (run.folder.parents[2], run.task): None
        for run in runs
        if run.stage == "finetune" and RETRAINED.match(run.folder.name) and len(run.folder.parents) > 2
        and run.folder.parents[2].name.startswith("compare-")
    }  # fmt: skip
    sections, problems = [], []
    for root, task in roots:
        for finished_only in (False, True):
            try:
                found = comparison(root, task, finished_only=finished_only)
                table, figures = route_table(found, root), route_figures(found, root)
            except (NasTransferError, KeyError, TypeError, ValueError) as error:
                whether = "not compared" if finished_only else "compared so far as they are finished"
                problems.append((str(root), f"routes on {task} are {whether}: {' '.join(str(error).split())}"))
                continue
            sections.append(Section(table.title, root, (), (table,), tuple(figures)))
            break
    return sections, problems


def _study_section(study: StudyRecord, runs: Sequence[Run]) -> Section:
    run, result = study.run, study.run.result or {}
    score_key = str(result.get("score_key") or "score")
    told = study.told
    failed = sum(trial.reason is not None and not trial.left_out for trial in told)
    facts = [
        ("trials", f"{len(told)} evaluated, {failed} failed, {sum(trial.left_out for trial in told)} left out"),
        ("objectives", ", ".join(f"{name} ({direction})" for name, direction in study.directions.items())),
        ("front", f"{len(study.members)} nets"),
    ]
    search = result.get("search") or {}
    if search.get("hypervolume") is not None:
        facts.append(("hypervolume", f"{percent(search['hypervolume'])} %"))
    picked = study.member(study.picked)
    if picked is not None:
        values = ", ".join(
            f"{unit_of(name, score_key)} {value_text(name, picked.values[name])}" for name in picked.values
        )
        facts.append(("picked", f"trial {picked.number}, arch {short_id(picked.arch)}: {values}"))
    facts += _trained_alone(study, runs)
    if not run.result:
        facts.append(("state", "unfinished: the front so far"))
    if study.predictor is not None:
        facts.append(
            (
                "predictor",
                f"{study.predictor[0]} of the first objective that is predicted, cross-validated in its last batch: "
                f"{study.predictor[1]} (log.txt)",
            )
        )
    if study.trust is not None:
        facts.append(("proxy", _trust_text(study.trust)))
    figures = [*front_figures(study, score_key), *growth_figures(study, growth(study)), *shown([trust_figure(study)])]
    if picked is not None:
        title = f"The picked net: trial {picked.number}"
        figures.append(draw_arch(picked.arch, _stage_table(run), title))
    title = f"{run.stage} on {run.task}: {run.folder.name}"
    return Section(title, run.folder, tuple(facts), (front_table(study, score_key),), tuple(figures))


def _trained_alone(study: StudyRecord, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What the members of a study's front scored that were also fine-tuned, each as a net of its own."""
    run, facts = study.run, []
    nets = [net for net in runs if net.is_net and (net.task, data_root(net)) == (run.task, data_root(run))]
    for member in sorted(study.members, key=lambda member: member.number != study.picked):
        texts = [
            f"{percent((net.result or {})['score'])} % {kind_of(net).score} on the validation split ({net.folder})"
            for net in nets
            if (net.result or {})["arch"] == member.arch
        ]
        if texts:
            who = "picked" if member.number == study.picked else f"trial {member.number}"
            facts.append((f"{who}, trained alone", "; ".join(texts)))
    return facts


def _trust_text(trust: Any) -> str:
    quality = trust["quality"]
    chance = "" if quality["low"] > 0 else "; no better than chance: do not rely on the order of the front"
    return (
        f"scores of short trainings against longer ones: Kendall's tau {quality['tau']:.2f} (95 % interval "
        f"{quality['low']:.2f} to {quality['high']:.2f}), Spearman's rho {quality['rho']:.2f}, "
        f"{len(trust['trials'])} archs{chance} (trust.json)"
    )


def _stage_table(run: Run) -> Any:
    """The supernet's stages, None if the configuration does not give them."""
    stages = run.config.get("supernet.stages")
    return stages if isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages) else None


def _run_section(run: Run) -> Section:
    result = run.result
    facts: list[tuple[str, str]] = [("state", "; ".join(run.problems) or "finished")]
    if result is not None:
        if result["score"] is not None:
            facts.append((str(result.get("score_key") or "score"), f"{percent(result['score'])} %"))
        facts.append(("costs", _cost_text(result)))
        facts.append(("spent", _spent_text(result)))
    command = run.manifest.get("command")
    if isinstance(command, list):
        facts.append(("command", "python -m nas_transfer " + shlex.join(map(str, command))))
    if run.manifest.get("started"):
        facts.append(("started", str(run.manifest["started"])))
    facts.append(("seed", str((result or {}).get("seed", run.config.get("seed", "unknown")))))
    digest = run.manifest.get("config_sha256") or (result or {}).get("config_sha256")
    facts.append(("config", f"sha256 {str(digest or 'unknown')[:12]}"))
    if result is not None:
        facts.append(("git", str(result.get("git") or "no checkout")))
        versions = result.get("versions")
        if isinstance(versions, dict):
            facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    figures = training_figures(run)
    arch = (result or {}).get("arch")
    if arch:
        figures.append(draw_arch(arch, _stage_table(run), "The net"))
    title = f"{run.stage} on {run.task}: {run.folder.name}"
    return Section(title, run.folder, tuple(facts), (), (*figures, *prediction_figures(run.folder)))


def _cost_text(result: Any) -> str:
    costs = result["costs"]
    texts = []
    for unit, name in (("macs", "MACs"), ("params", "params")):
        texts.append(f"{name} " + ", ".join(f"{part} {millions(value)}" for part, value in costs[unit].items()) + " M")
    whose = "" if result["arch"] else " (the supernet's largest arch)"
    return f"{'; '.join(texts)}, at {input_size(result)}{whose}"


def _spent_text(result: Any) -> str:
    text = f"{duration(result['seconds'])} ({result['seconds']:.1f} s), {result['gpu_hours']:.3g} GPU-hours"
    if result["images_seen"]:
        text += f", {result['images_seen']} images seen x {result['passes_per_image']} archs"
    return text
