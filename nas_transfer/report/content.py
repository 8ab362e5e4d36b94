"""The content of a report on a set of runs, before it is written as a page or as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.arch import short_id
from nas_transfer.errors import NasTransferError
from nas_transfer.report.advice import Advice, advice_of
from nas_transfer.report.analysis import analysis_figures, analysis_tables
from nas_transfer.report.arch_drawing import draw_arch, stage_rows
from nas_transfer.report.choice import Choice, choices
from nas_transfer.report.choice_view import ChoiceView, choice_view
from nas_transfer.report.collect import STAGES_WITHOUT_RESULT, Run, read_runs
from nas_transfer.report.figures import (
    front_figures,
    growth_figures,
    only_figures,
    route_figures,
    training_figures,
    validation_figure,
)
from nas_transfer.report.inheritance import inherited_files
from nas_transfer.report.net_figures import net_figures
from nas_transfer.report.nets import Net, data_root, nets_by_data, nets_by_kind, nets_of
from nas_transfer.report.origins import origin_table
from nas_transfer.report.pictures import LARGE, SMALL, prediction_figures, worst_figures
from nas_transfer.report.plots import Figure
from nas_transfer.report.routes import compare, compared_folders
from nas_transfer.report.studies import StudyRecord, growth, read_study
from nas_transfer.report.tables import (
    Table,
    cost_table,
    front_table,
    inherited_table,
    net_table,
    nothing_table,
    problem_table,
    route_table,
)
from nas_transfer.report.texts import cost_text, percent, spent_text, unit_of, value_text
from nas_transfer.runs import Result, TaskKind, files
from nas_transfer.search.resizing import gains_of


@dataclass(frozen=True)
class Section:
    """A kind of task, comparison of routes, study or run.

    Attributes:
        title: title of the section.
        folder: folder of the run or comparison; None for several.
        facts: (name, text).
        tables, figures: below the facts.
    """

    title: str
    folder: Path | None
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Report:
    """A report on a set of runs.

    Attributes:
        summary: in one line.
        choices: an opening for each task and dataset with a trained net.
        advice: what to do with searches whose nets are not trained.
        strengths: what the recommended nets are good at.
        problems: unfinished, missing and broken things, None without any.
        nets, routes, studies, runs: a section for each kind of task, comparison, study, run.
        costs: by stage.
        inherited: files that weights descend from, None without any.
        nothing: commands that ended before any work, None without any.
    """

    summary: str
    choices: tuple[ChoiceView, ...]
    advice: tuple[Advice, ...]
    strengths: tuple[Section, ...]
    problems: Table | None
    nets: tuple[Section, ...]
    routes: tuple[Section, ...]
    studies: tuple[Section, ...]
    costs: Table
    inherited: Table | None
    runs: tuple[Section, ...]
    nothing: Table | None = None


def make_report(folders: Sequence[Path], without_runs: Sequence[str] = ()) -> tuple[Report, list[Run]]:
    """Read run folders and report what they hold.

    Args:
        folders: folders of the runs.
        without_runs: patterns that match no run folder.
    """
    runs = read_runs(folders)
    nets = nets_of(runs)
    problems = [(pattern, "no run folder there") for pattern in without_runs]
    worked = [run for run in runs if not run.did_nothing]
    problems += [(str(run.folder), problem) for run in worked for problem in run.problems]
    studies = [study for run in runs if (study := read_study(run)) is not None]
    problems += [(str(study.run.folder), problem) for study in studies for problem in study.problems]
    chosen = choices(nets, studies, runs)
    routes, unfinished_routes = _route_sections(runs)
    problems += unfinished_routes
    inherited = inherited_files(runs)
    num_finished = sum(run.result is not None or run.stage in STAGES_WITHOUT_RESULT for run in worked)
    nothing = len(runs) - len(worked)
    report = Report(
        summary=(
            f"Runs: {len(worked)}, finished: {num_finished}, fine-tuned nets: {len(nets)}, studies: {len(studies)}"
            f"{f'; commands that ended before any work: {nothing}' if nothing else ''}."
        ),
        choices=tuple(map(choice_view, chosen)),
        advice=tuple(advice_of(studies, nets)),
        strengths=tuple(section for choice in chosen if (section := _strengths(choice, runs)) is not None),
        problems=problem_table(problems) if problems else None,
        nets=tuple(_net_section(kind, of_kind, studies, runs) for kind, of_kind in nets_by_kind(nets)),
        routes=tuple(routes),
        studies=tuple(_study_section(study, nets) for study in studies if study.front.objectives),
        costs=cost_table(runs),
        inherited=inherited_table(inherited) if inherited else None,
        runs=tuple(_run_section(run) for run in worked),
        nothing=nothing_table([run for run in runs if run.did_nothing]) if nothing else None,
    )
    return report, runs


def _strengths(choice: Choice, runs: Sequence[Run]) -> Section | None:
    """What the recommended net is good at, from its training or from an evaluation of it.

    If that is unknown, what the best of the others is good at; None if it is unknown of all of them.
    """
    others = sorted(choice.candidates, key=lambda one: -one.net.score)
    for candidate in (choice.pick, *others):
        evaluations = [run for run in runs if run.stage == "evaluate" and _is_evaluation(run, candidate.net)]
        for run in (candidate.net.run, *evaluations):
            if run.analysis is not None:
                figures = [*analysis_figures(run.analysis), *worst_figures(run.folder, run.analysis)]
                title = f"What {candidate.name} is good at ({run.task})"
                return Section(title, run.folder, (), tuple(analysis_tables(run.analysis)), tuple(figures))
    return None


def _is_evaluation(run: Run, net: Net) -> bool:
    """Whether a run scored a net again."""
    result = run.result
    if result is None or not result.provenance or result.arch != net.arch:
        return False
    parent = result.provenance[-1]
    weights = (net.folder / files.WEIGHTS).resolve()
    return net.result.config_sha256 == parent.config_sha256 or weights == Path(parent.file).resolve()


def _net_section(kind: TaskKind, nets: Sequence[Net], studies: Sequence[StudyRecord], runs: Sequence[Run]) -> Section:
    """The nets of one kind of task: their table, their origins, their charts, and predictions of the best ones."""
    best = [max(comparable, key=lambda net: net.score) for comparable in nets_by_data(nets)]
    pictures = [figure for net in best for figure in prediction_figures(net.folder, LARGE)]
    tables = (net_table(kind, nets), origin_table(kind, nets, studies, runs))
    return Section(kind.title, None, (), tables, (*net_figures(kind, nets), *pictures))


def _route_sections(runs: Sequence[Run]) -> tuple[list[Section], list[tuple[str, str]]]:
    """The comparisons of routes, of finished nets alone where others are not, and what keeps them from being whole."""
    sections, problems = [], []
    for folder, task in compared_folders(runs):
        for finished_only in (False, True):
            try:
                comparison = compare(folder, task, finished_only=finished_only)
                table, figures = route_table(comparison, folder), route_figures(comparison, folder)
            except (NasTransferError, ValueError) as error:
                state = "not compared" if finished_only else "compared by their finished nets only"
                problems.append((str(folder), f"routes on {task} are {state}: {' '.join(str(error).split())}"))
                continue
            sections.append(Section(table.title, folder, (), (table,), tuple(figures)))
            break
    return sections, problems


def _study_section(study: StudyRecord, nets: Sequence[Net]) -> Section:
    run = study.run
    figures = [*front_figures(study), *growth_figures(study, growth(study)), *only_figures([validation_figure(study)])]
    if study.picked is not None:
        title = f"The picked net: trial {study.picked.number}"
        figures.append(draw_arch(study.picked.arch, stage_rows(run.config), title))
    facts = _study_facts(study, nets)
    return Section(run.title, run.folder, tuple(facts), (front_table(study),), tuple(figures))


def _study_facts(study: StudyRecord, nets: Sequence[Net]) -> list[tuple[str, str]]:
    front, outcomes = study.front, study.outcomes
    num_failed = sum(outcome.reason is not None and not outcome.left_out for outcome in outcomes)
    num_left_out = sum(outcome.left_out for outcome in outcomes)
    facts = [
        ("trials", f"{len(outcomes)} evaluated, {num_failed} failed, {num_left_out} left out"),
        ("objectives", ", ".join(f"{name} ({direction})" for name, direction in front.objectives.items())),
        ("front", f"{len(front.trials)} nets"),
    ]
    if study.summary is not None and study.summary.hypervolume is not None:
        facts.append(("hypervolume", f"{percent(study.summary.hypervolume)} %"))
    picked = study.picked
    if picked is not None:
        values = ", ".join(
            f"{unit_of(name, study.score_key)} {value_text(name, value)}" for name, value in picked.values.items()
        )
        facts.append(("picked", f"trial {picked.number}, arch {short_id(picked.arch)}: {values}"))
    facts += [("whole network", f"{gain} ({files.FRONT})") for gain in gains_of(front)]
    facts += _trained_alone(study, nets)
    if study.run.result is None:
        facts.append(("state", "unfinished: the front so far"))
    if front.predictor is not None:
        text = f"{front.predictor.predictor} of the first predicted objective, cross-validated in its last batch"
        facts.append(("predictor", f"{text}: {front.predictor.quality} ({files.FRONT})"))
    if study.validation is not None:
        facts.append(("proxy", f"{study.validation} ({files.VALIDATION})"))
    return facts


def _trained_alone(study: StudyRecord, nets: Sequence[Net]) -> list[tuple[str, str]]:
    """The scores of those archs on a study's front that were also fine-tuned, each as a net of its own."""
    run, front = study.run, study.front
    comparable = [net for net in nets if (net.run.task, data_root(net.run)) == (run.task, data_root(run))]
    facts = []
    for trial in sorted(front.trials, key=lambda trial: trial.number != front.picked):
        texts = [
            f"{percent(net.score)} % {net.kind.score_label} on the validation split ({net.folder})"
            for net in comparable
            if net.arch == trial.arch
        ]
        if texts:
            name = "picked" if trial.number == front.picked else f"trial {trial.number}"
            facts.append((f"{name}, trained alone", "; ".join(texts)))
    return facts


def _run_section(run: Run) -> Section:
    figures = training_figures(run)
    if run.result is not None and run.result.arch:
        figures.append(draw_arch(run.result.arch, stage_rows(run.config), "The net"))
    figures += prediction_figures(run.folder)
    tables: Sequence[Table] = ()
    if run.analysis is not None:
        tables = analysis_tables(run.analysis)
        figures += [*analysis_figures(run.analysis), *worst_figures(run.folder, run.analysis, SMALL)]
    return Section(run.title, run.folder, tuple(_run_facts(run)), tuple(tables), tuple(figures))


def _run_facts(run: Run) -> list[tuple[str, str]]:
    result, manifest = run.result, run.manifest
    facts = [("state", "; ".join(run.problems) or "finished")]
    if result is not None:
        facts += _result_facts(result)
    if manifest is not None:
        facts.append(("command", "python -m nas_transfer " + shlex.join(manifest.command)))
        facts.append(("started", manifest.started))
    facts.append(("seed", str(run.config.get("seed", "unknown") if result is None else result.seed)))
    record = manifest or result
    facts.append(("config", f"sha256 {record.config_sha256[:12] if record is not None else 'unknown'}"))
    if result is not None:
        facts.append(("git", result.git or "no checkout"))
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())))
    return facts


def _result_facts(result: Result) -> list[tuple[str, str]]:
    facts = [("costs", cost_text(result)), ("spent", spent_text(result))]
    if result.score is not None:
        facts.insert(0, (result.score_key or "score", f"{percent(result.score)} %"))
    return facts
