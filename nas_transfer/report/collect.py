"""Run folders as they lie on disk: found, read, and what each one lacks; nothing in them stops a report."""

from __future__ import annotations

import csv
import glob
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from nas_transfer.errors import ConfigError
from nas_transfer.runs.result import RESULT_FILE, RUN_FILE
from nas_transfer.search.front import FRONT_FILE

WEIGHTS_FILE, WARM_START_FILE = "weights.pt", "warm_start.pt"
SAMPLES_FOLDER = "sample_predictions"
MARKS = (RUN_FILE, RESULT_FILE, FRONT_FILE, WEIGHTS_FILE)
"""Any of these makes a folder a run's."""
TRAINING_STAGES = ("pretrain", "finetune")
STUDY_STAGES = ("search", "proxy")
OWN_STAGE = "report"
STAGES_WITHOUT_RESULT = ("check", "predict")
"""They run anew with every command and leave no ``result.json``."""

Content = Mapping[str, Any]
"""A JSON mapping."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it lies.
        stage, task: what ran, from ``result.json``, ``run.json`` or the folder's place, in this order.
        result: ``result.json`` of a finished run, None before that or where it cannot be used.
        manifest: ``run.json``, empty where it cannot be used.
        curves: (steps, values) by column of ``logs/version_*/metrics.csv``.
        problems: what is missing or broken, a sentence each.
    """

    folder: Path
    stage: str
    task: str
    result: Content | None
    manifest: Content
    curves: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
    problems: tuple[str, ...]

    @property
    def config(self) -> Content:
        """The keys that change the run's result, flat; empty if unknown."""
        found = self.manifest.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def is_net(self) -> bool:
        """Whether it is a finished fine-tuned net: one arch, scored."""
        result = self.result
        return result is not None and self.stage == "finetune" and bool(result["arch"]) and result["score"] is not None

    @property
    def log_files(self) -> list[Path]:
        """The log of the program and those of the training."""
        return [path for path in (self.folder / "log.txt", *metrics_files(self.folder)) if path.is_file()]


def find_runs(places: Sequence[str], own: Path | None = None) -> tuple[list[Path], list[str]]:
    """The run folders at or below each place, each once, and the places where there is none.

    Args:
        places: folders or glob patterns (``runs/finetune/*/*``).
        own: the report's own folder, left out.

    Raises:
        ConfigError: no place has a run.
    """
    found: dict[Path, Path] = {}
    without: list[str] = []
    for place in places:
        matches = [Path(match) for match in sorted(glob.glob(place, recursive=True))]
        folders = [run for match in matches if match.is_dir() for run in _runs_below(match)]
        folders = [run for run in folders if own is None or run.resolve() != own.resolve()]
        if not folders:
            without.append(place)
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    if not found:
        raise ConfigError(
            f"expected run folders in {', '.join(places)}, got none: runs_in='[runs/search/*/*, runs/finetune/*/*]' "
            "takes folders and patterns, relative to the current folder"
        )
    return list(found.values()), without


def _runs_below(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        folders.sort()
        if any(mark in files for mark in MARKS):
            folders.clear()
            yield Path(path)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run but reports, in the order given."""
    return [run for run in map(read_run, folders) if run.stage != OWN_STAGE]


def read_run(folder: Path) -> Run:
    """What a folder holds; what is missing or broken becomes a problem, never an error."""
    problems: list[str] = []
    manifest = read_json(folder / RUN_FILE, problems)
    if manifest is not None and not isinstance(manifest.get("config"), dict):
        problems.append(f"{RUN_FILE} holds no configuration")
    result = read_json(folder / RESULT_FILE, problems) if (folder / RESULT_FILE).exists() else None
    if result is not None and (wrong := _fault(result)):
        problems.append(f"{RESULT_FILE} {wrong}")
        result = None
    known = [result or {}, _stated(manifest or {})]
    place = {"stage": _part(folder, 3), "task": _part(folder, 2)}
    stage, task = (
        str(next((source[key] for source in known if source.get(key)), place[key])) for key in ("stage", "task")
    )
    curves = read_curves(folder, problems)
    if result is not None and stage in TRAINING_STAGES and not curves:
        problems.append("logs/version_*/metrics.csv is missing or empty")
    if not (folder / RESULT_FILE).exists() and stage not in STAGES_WITHOUT_RESULT:
        problems.append(_how_far(folder, stage, manifest or {}, curves))
    elif stage in TRAINING_STAGES and not (folder / WEIGHTS_FILE).is_file():
        problems.append(f"{WEIGHTS_FILE} is missing")
    if result is not None and stage in STUDY_STAGES and not (folder / FRONT_FILE).is_file():
        problems.append(f"{FRONT_FILE} is missing")
    return Run(folder, stage, task, result, manifest or {}, curves, tuple(problems))


def _stated(manifest: Content) -> dict[str, Any]:
    config = manifest.get("config")
    if not isinstance(config, dict):
        return {}
    return {"stage": config.get("stage.name"), "task": config.get("task.name")}


def _part(folder: Path, place: int) -> str:
    parts = folder.resolve().parts
    return parts[-place] if len(parts) >= place else "unknown"


def _how_far(folder: Path, stage: str, manifest: Content, curves: Mapping[str, Any]) -> str:
    """That a run is unfinished, and where it is."""
    if stage in STUDY_STAGES:
        return f"unfinished: {RESULT_FILE} is missing; {len(trial_files(folder))} trials have been evaluated"
    steps = [steps[-1] for steps, _ in curves.values()]
    if not steps:
        return f"unfinished: {RESULT_FILE} is missing"
    config = manifest.get("config")
    end = config.get("trainer.max_steps") if isinstance(config, dict) else None
    return f"unfinished: {RESULT_FILE} is missing; the log ends at step {max(steps):.0f}" + (
        f" of {end}" if end else ""
    )


def read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """A JSON mapping, or None and a problem."""
    try:
        content = parse_json(path.read_text())
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {' '.join(str(error).split())}")
        return None
    if not isinstance(content, dict):
        problems.append(f"{path.name} is not a mapping but a {type(content).__name__}")
        return None
    return content


def parse_json(text: str) -> Any:
    """JSON whose numbers are all finite; raises ValueError."""
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number is {text}")
    return value


def are_costs(costs: Any) -> bool:
    """Whether a mapping holds totals of macs and params, and the input size that they are stated for."""
    if not isinstance(costs, dict) or not isinstance(costs.get("input_size"), list):
        return False
    parts = [costs.get("macs"), costs.get("params")]
    return all(isinstance(own, dict) and "total" in own and all(map(is_number, own.values())) for own in parts)


def _fault(result: Content) -> str | None:
    """What makes a result unusable, None if nothing does."""
    for key in ("stage", "task"):
        if not isinstance(result.get(key), str):
            return f"has no {key}"
    for key in ("score", "arch"):
        if key not in result:
            return f"has no {key}"
    for key in ("seconds", "devices", "gpu_hours", "images_seen", "passes_per_image", "seed"):
        if not is_number(result.get(key)):
            return f"has no number as {key}"
    if not _number_or_none(result["score"]):
        return "has a score that is no number"
    if not (result["arch"] is None or isinstance(result["arch"], dict)):
        return "has an arch that is no mapping"
    if not are_costs(result.get("costs")):
        return "has no costs with totals of macs and params and their input size"
    search = result.get("search")
    if not (search is None or (isinstance(search, dict) and _number_or_none(search.get("hypervolume")))):
        return "has no usable search"
    return None


def _number_or_none(value: Any) -> bool:
    return value is None or is_number(value)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def trial_files(folder: Path) -> list[Path]:
    """A study's outcomes in trial order."""
    return sorted((path for path in folder.glob("trials/*.json") if path.stem.isdigit()), key=lambda p: int(p.stem))


def metrics_files(folder: Path) -> list[Path]:
    """The CSV logs of a training, one for each time it was started, in this order."""
    found = [path for path in folder.glob("logs/version_*/metrics.csv") if path.parent.name[8:].isdigit()]
    return sorted(found, key=lambda path: int(path.parent.name[8:]))


def read_curves(folder: Path, problems: list[str]) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """(steps, values) by column; where a resumed run repeats a step, what it logged last."""
    columns: dict[str, dict[float, float]] = {}
    for path in metrics_files(folder):
        try:
            with path.open(newline="") as stream:
                rows = list(csv.DictReader(stream))
        except (OSError, ValueError, csv.Error) as error:
            problems.append(f"{path.relative_to(folder)} cannot be read: {error}")
            continue
        for row in rows:
            step = _float(row.get("step"))
            for name, text in row.items():
                if step is not None and isinstance(name, str) and name not in ("step", "epoch"):
                    value = _float(text)
                    if value is not None:
                        columns.setdefault(name, {})[step] = value
    return {name: (tuple(sorted(own)), tuple(own[step] for step in sorted(own))) for name, own in columns.items()}


def _float(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
