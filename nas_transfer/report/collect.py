"""Find run folders, read their records, and say what each one lacks. No broken file stops a report."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nas_transfer.errors import ConfigError, RunError
from nas_transfer.report.curves import Curve, read_curves
from nas_transfer.runs import Analysis, Manifest, Result, files, read_analysis, read_manifest, read_result
from nas_transfer.runs.lock import is_running

TRAINING_STAGES = ("pretrain", "finetune")
STUDY_STAGES = ("search", "proxy")
REPORT_STAGE = "report"
STAGES_WITHOUT_RESULT = ("check", "predict")
"""They run again with every command and leave no result file."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: its path.
        stage, task: what ran, according to the result, the manifest or the folder's path, in this order.
        result: result of a finished run; None if the run is unfinished or its result cannot be used.
        manifest: None where it cannot be used.
        curves: curves of a training, by column of its logs.
        problems: what is missing or broken, one sentence each.
        analysis: what its net is good at, None if unknown.
    """

    folder: Path
    stage: str
    task: str
    result: Result | None
    manifest: Manifest | None
    curves: Mapping[str, Curve]
    problems: tuple[str, ...]
    analysis: Analysis | None = None

    @property
    def config(self) -> Mapping[str, object]:
        """The keys that change the run's result, flat; empty if unknown."""
        return self.manifest.config if self.manifest is not None else {}

    @property
    def did_nothing(self) -> bool:
        """Whether its command ended before any work, such as one with a mistyped path."""
        idle = self.result is None and not self.curves
        return idle and not has_work(self.folder) and not is_running(self.folder)

    @property
    def is_net(self) -> bool:
        """Whether it is a finished fine-tuned net: one arch, scored."""
        result = self.result
        return result is not None and self.stage == "finetune" and bool(result.arch) and result.score is not None

    @property
    def title(self) -> str:
        """Its stage, task and name."""
        return f"{self.stage} on {self.task}: {self.folder.name}"


@dataclass
class Reader:
    """Reads records of one run folder and keeps a sentence for each file that cannot be used."""

    folder: Path
    problems: list[str] = field(default_factory=list)

    def read(self, read: Callable[[Path], Value], name: str = "") -> Value | None:
        """Read a folder, or a file in it, with a function; None and a problem if it cannot be used."""
        try:
            return read(self.folder / name)
        except RunError as error:
            self.problems.append(str(error).replace(f"{self.folder}{os.sep}", ""))
            return None


def find_runs(patterns: Sequence[str], exclude: Path | None = None) -> tuple[list[Path], list[str]]:
    """Find the run folders at or below paths.

    Args:
        patterns: folders or glob patterns such as ``runs/finetune/*/*``.
        exclude: a folder that is left out, for instance that of the report.

    Returns:
        The run folders, each once, and the patterns that match none.

    Raises:
        ConfigError: there is no run folder at all.
    """
    runs: dict[Path, Path] = {}
    without_runs: list[str] = []
    for pattern in patterns:
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        folders = [folder for match in matches if match.is_dir() for folder in _runs_below(match)]
        folders = [folder for folder in folders if exclude is None or folder.resolve() != exclude.resolve()]
        if not folders:
            without_runs.append(pattern)
        for folder in folders:
            runs.setdefault(folder.resolve(), folder)
    if not runs:
        raise ConfigError(
            f"no run folder in {', '.join(patterns)}: runs_in='[runs/search/*/*, runs/finetune/*/*]' takes folders and "
            "patterns, relative to the current folder"
        )
    return list(runs.values()), without_runs


def _runs_below(folder: Path) -> Iterator[Path]:
    for path, subfolders, names in os.walk(folder):
        subfolders.sort()
        if any(mark in names for mark in files.RUN_MARKS):
            subfolders.clear()
            yield Path(path)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, in the order given; those of reports are left out."""
    return [run for run in map(read_run, folders) if run.stage != REPORT_STAGE]


def read_run(folder: Path) -> Run:
    """Read a run folder. What is missing or broken becomes a problem, never an error."""
    reader = Reader(folder)
    manifest = reader.read(read_manifest)
    if not (folder / files.RUN).exists():
        reader.problems.append(f"{files.RUN} is missing")
    result = reader.read(read_result)
    stage, task = _stage_and_task(folder, result, manifest)
    curves = read_curves(folder, reader.problems)
    if result is not None and stage in TRAINING_STAGES and not curves:
        reader.problems.append(f"{files.LOGS_FOLDER} holds no metrics")
    if not (folder / files.RESULT).exists() and stage not in STAGES_WITHOUT_RESULT:
        reader.problems.append(_progress(folder, stage, manifest, curves))
    elif stage in TRAINING_STAGES and not (folder / files.WEIGHTS).is_file():
        reader.problems.append(f"{files.WEIGHTS} is missing")
    if result is not None and stage in STUDY_STAGES and not (folder / files.FRONT).is_file():
        reader.problems.append(f"{files.FRONT} is missing")
    analysis = reader.read(read_analysis)
    return Run(folder, stage, task, result, manifest, curves, tuple(reader.problems), analysis)


def has_work(folder: Path) -> bool:
    """Whether a run folder holds anything but a configuration, a log and notes of what the command read."""
    return any(path.name not in files.BEFORE_WORK and not path.name.startswith(".") for path in folder.iterdir())


def _stage_and_task(folder: Path, result: Result | None, manifest: Manifest | None) -> tuple[str, str]:
    if result is not None:
        return result.stage, result.task
    parts = ("unknown", "unknown", "unknown", *folder.resolve().parts)
    config = manifest.config if manifest is not None else {}
    return str(config.get("stage.name") or parts[-3]), str(config.get("task.name") or parts[-2])


def _progress(folder: Path, stage: str, manifest: Manifest | None, curves: Mapping[str, Curve]) -> str:
    """That a run is unfinished, and how far it is."""
    unfinished = "running now" if is_running(folder) else f"unfinished: {files.RESULT} is missing"
    if stage in STUDY_STAGES:
        return f"{unfinished}; {len(files.trial_files(folder))} trials have been evaluated"
    steps = [curve.steps[-1] for curve in curves.values()]
    if not steps:
        return unfinished
    total = manifest.config.get("trainer.max_steps") if manifest is not None else None
    return f"{unfinished}; the log ends at step {max(steps):.0f}{f' of {total}' if total else ''}"
