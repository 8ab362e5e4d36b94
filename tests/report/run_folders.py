"""Small run folders, written by hand as the stages write them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nas_transfer.runs.result import Result, write_json_atomically
from nas_transfer.search.front import front_of, share_of_hypervolume, write_front
from nas_transfer.search.study import Outcome, Trial
from nas_transfer.search.work import Work, write_job, write_outcome
from nas_transfer.space import Arch, Gene, SearchSpace

SPACE = SearchSpace(
    "tiny",
    (
        Gene("resolution", (96,)),
        *(Gene(f"width.{name}", (8, 16)) for name in ("first_conv", "mb1", "mb2", "last_conv")),
        *(Gene(f"depth.{name}", (1, 2, 3)) for name in ("mb1", "mb2")),
        *(Gene(f"kernel_size.{name}", (3, 5)) for name in ("mb1", "mb2")),
        *(Gene(f"expand_ratio.{name}", (1, 6)) for name in ("mb1", "mb2")),
    ),
)
TARGETS = {
    "det": "detection.DetectionTask", "pose": "pose.PoseTask", "seg": "segmentation.SegmentationTask",
    "grades": "grades.GradesTask", "counts": "counts.CountsTask",
}  # fmt: skip
"""By the end of a task's name; the last two are not built in."""
LARGEST_MACS = 200e6


def arch(seed: int = 0) -> Arch:
    return SPACE.sample(np.random.default_rng(seed))


def costs(macs: float) -> dict[str, Any]:
    parts = {"body": 0.75 * macs, "head": 0.25 * macs, "total": macs}
    return {"macs": parts, "params": {"body": 1e6, "head": 2e5, "total": 1.2e6}, "input_size": [96, 128]}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_run(
    folder: Path, stage: str, task: str, settings: Mapping[str, Any] | None = None, **changes: Any
) -> Path:  # fmt: skip
    """A finished run; `settings` replace keys of its configuration, `changes` fields of its result.

    ``result=None`` leaves it unfinished.
    """
    kind = TARGETS.get(task.rpartition("_")[2], "classification.ClassificationTask")
    config = {
        "stage.name": stage, "task.name": task, "task.build._target_": f"nas_transfer.tasks.{kind}", "arch": "max",
        "data.root": "data/shapes_coco", "data.batch_size": 8, "task.recipe.accumulate": 1, "seed": 3,
        "supernet.name": "tiny", "supernet.stages": [{"name": "mb1"}, {"name": "mb2"}],
        "trainer.max_steps": 50, **(settings or {}),
    }  # fmt: skip
    command = [f"stage={stage}", f"task={task}", "name=<b>&"]
    write(folder / "run.json", {"config_sha256": folder.name, "command": command, "started": "now", "config": config})
    write(folder / "log.txt", "")
    write(folder / ".hydra/config.yaml", "")
    if stage in ("finetune", "pretrain"):
        log = "epoch,step,train/loss,val/map\n0,9,2.5,\n0,19,1.5,\n0,20,,0.3\n"
        write(folder / "logs/version_0/metrics.csv", log)
    if "result" in changes:
        return folder
    fields: dict[str, Any] = {
        "arch": arch().to_dict(), "score_key": "map", "score": 0.41237, "metrics": {"map": 0.41237},
        "costs": costs(123.456e6), "seconds": 43200.0, "devices": 8, "gpu_hours": 96.0, "images_seen": 400,
        "passes_per_image": 1, "samples_digest": "", "seed": 3, "config_sha256": folder.name, "git": "abc123",
    }  # fmt: skip
    write(folder / "result.json", Result(stage=stage, task=task, **fields | changes).to_dict())
    return folder


def write_study(folder: Path, stage: str = "search", *, count: int = 12, ends: bool = True, seed: int = 0) -> Path:
    """A finished study through the search's own functions; its hypervolume is that of its whole front."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        macs = float(rng.uniform(50e6, 180e6))
        trials.append(Trial(number, arch(number), (float(rng.uniform(0.1, 0.9)), macs), {}))
        values = dict(zip(("score", "macs"), trials[-1].values, strict=True))
        outcome = Outcome(values, seconds=2.0, images=80 if stage == "proxy" else 0)
        write_outcome(folder / f"trials/{number}.json", outcome, write_json_atomically)
    write_outcome(folder / f"trials/{count}.json", Outcome.failed("out of memory", 1.0), write_json_atomically)
    works = [Work(trial.number, trial.arch, "") for trial in trials]
    write_job(folder / "jobs/0.json", works, write_json_atomically)
    front = front_of(trials, {"score": "maximize", "macs": "minimize"})
    write_front(folder, front, front.trials[0], lambda trial: costs(trial.values[1]), write_json_atomically)
    share = share_of_hypervolume(front.points, np.asarray([-1.0, 0.0]), np.asarray([0.0, LARGEST_MACS]))
    search = {"trials": count + 1, "hypervolume": share} | (
        {"ends": {"score": 1.0, "macs": LARGEST_MACS}} if ends else {}
    )
    best = front.trials[0]
    return write_run(
        folder, stage, "shapes_det", score=best.values[0], search=search, arch=best.arch.to_dict(),
        costs=costs(best.values[1]), seconds=2.0 * count + 1.0, gpu_hours=0.0, devices=1,
    )  # fmt: skip
