"""Small run folders, written through the records that the stages write."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nas_transfer.arch import Arch, Gene
from nas_transfer.runs import (
    ArchContent,
    Costs,
    Manifest,
    Outcome,
    Result,
    SearchSummary,
    TaskKind,
    Trial,
    files,
)
from nas_transfer.search.front import front_of, points_of, share_of_hypervolume, write_front
from nas_transfer.space import SearchSpace

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
KINDS = {
    "det": TaskKind("detection", "Object detection", "map", score_label="mAP", size_label=None),
    "pose": TaskKind("pose", "Pose estimation", "ap", score_label="AP", macs_part="body", shows_schedule=False),
    "seg": TaskKind("segmentation", "Semantic segmentation", "miou", score_label="mIoU", size_label="Crop Size"),
}  # fmt: skip
"""By the end of a task's name; the results of other tasks say no kind."""
LARGEST_MACS = 200e6


def arch(seed: int = 0) -> Arch:
    return SPACE.sample(np.random.default_rng(seed))


def costs(macs: float) -> Costs:
    parts = {"body": round(0.75 * macs), "head": round(0.25 * macs), "total": round(macs)}
    params = {"body": 1_000_000, "head": 200_000, "total": 1_200_000}
    return Costs(parts, params, params_checkpoint=1_200_000, input_size=(96, 128), num_classes=6)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def make_result(stage: str, task: str, **changes: Any) -> Result:
    """A result; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "arch": arch().to_dict(), "score_key": "map", "score": 0.41237, "metrics": {"map": 0.41237},
        "costs": costs(123.456e6), "seconds": 43200.0, "devices": 8, "gpu_hours": 96.0, "images_seen": 400,
        "passes_per_image": 1, "samples_digest": "", "seed": 3, "config_sha256": "0" * 64, "git": "abc123",
        "kind": KINDS.get(task.rpartition("_")[2]),
    }  # fmt: skip
    return Result(stage=stage, task=task, **fields | changes)


def write_run(
    folder: Path, stage: str, task: str, settings: Mapping[str, object] | None = None, *, finished: bool = True,
    **changes: Any,
) -> Path:  # fmt: skip
    """A run; `settings` replace keys of its configuration, `changes` fields of its result."""
    config = {
        "stage.name": stage, "task.name": task, "arch": "max", "data.root": "data/shapes_coco", "data.batch_size": 8,
        "task.recipe.accumulate": 1, "seed": 3, "supernet.name": "tiny",
        "supernet.stages": [{"name": "mb1"}, {"name": "mb2"}], "trainer.max_steps": 50, **(settings or {}),
    }  # fmt: skip
    command = (f"stage={stage}", f"task={task}", "name=<b>&")
    Manifest(config_sha256=folder.name, started="now", command=command, config=config).write(folder)
    write(folder / files.LOG, "")
    write(folder / files.CONFIG, "")
    if stage in ("finetune", "pretrain"):
        log = "epoch,step,train/loss,val/map\n0,9,2.5,\n0,19,1.5,\n0,20,,0.3\n"
        write(folder / "logs/version_0/metrics.csv", log)
    if finished:
        make_result(stage, task, **{"config_sha256": folder.name} | changes).write(folder)
    return folder


def write_study(
    folder: Path, stage: str = "search", *, task: str = "shapes_det", count: int = 12, seed: int = 0
) -> Path:
    """A finished study whose hypervolume is that of its whole front."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    trials = []
    for number in range(count):
        macs = float(rng.uniform(50e6, 180e6))
        values = {"score": float(rng.uniform(0.1, 0.9)), "macs": macs}
        trials.append(Trial(number, arch(number).to_dict(), values))
        images = 80 if stage == "proxy" else 0
        outcome = Outcome(number, arch(number).to_dict(), values, seconds=2.0, images=images)
        outcome.write(folder / files.trial_file(number))
    failure = Outcome.failed(count, arch(count).to_dict(), "out of memory")
    replace(failure, seconds=1.0).write(folder / files.trial_file(count))
    front = front_of(trials, {"score": "maximize", "macs": "minimize"})
    best = front.trials[0]
    write_front(folder, replace(front, picked=best.number), lambda trial: costs(trial.values["macs"]))
    volume = share_of_hypervolume(points_of(front), np.asarray([-1.0, 0.0]), np.asarray([0.0, LARGEST_MACS]))
    search = SearchSummary(
        trials=count + 1, failed=1, left_out=0, front=len(front.trials), hypervolume=volume,
        ends={"score": 1.0, "macs": LARGEST_MACS}, picked=best.number, objectives=front.objectives, spent={},
    )  # fmt: skip
    return write_run(
        folder, stage, task, score=best.values["score"], search=search, arch=best.arch,
        costs=costs(best.values["macs"]), seconds=2.0 * count + 1.0, gpu_hours=0.0, devices=1,
    )  # fmt: skip


def space_arch(space: str) -> ArchContent:
    """An arch of another space."""
    return {**arch().to_dict(), "space": space}
