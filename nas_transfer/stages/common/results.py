"""Results of a stage: metrics, costs by part, and predictions in COCO's format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nas_transfer.arch import SUPERNET, Arch
from nas_transfer.data.drawing import TILE, contact_sheet
from nas_transfer.data.images import write_image
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.sampler import SampleKey
from nas_transfer.runs import SECONDS_PER_HOUR, Ancestor, Costs, Result, files
from nas_transfer.runs.atomic import write_json
from nas_transfer.stages.config.base import TaskRunConfig
from nas_transfer.tasks.task import Task

LEAST_SCORE_DRAWN = 0.5  # as by stage=predict


def make_result(
    config: TaskRunConfig,
    task: Task,
    metrics: dict[str, float],
    *,
    seconds: float = 0.0,
    devices: int = 1,
    on_accelerator: bool = False,
    images_seen: int = 0,
    training_macs: int = 0,
    samples_digest: str = "",
    provenance: tuple[Ancestor, ...] = (),
) -> Result:
    """The result of a stage. The costs of a supernet are those of its largest arch.

    `on_accelerator` says where the work was done: when it is over, Lightning has moved the task to the CPU.
    """
    return Result(
        stage=config.stage.name,
        task=config.task.name,
        arch=None if task.arch is SUPERNET else task.arch.to_dict(),
        score_key=task.score_key,
        score=metrics.get(task.score_key),
        metrics=metrics,
        costs=cost_report(task, task.space.arch_or_largest(task.arch)),
        seconds=seconds,
        devices=devices,
        gpu_hours=devices * seconds / SECONDS_PER_HOUR if on_accelerator else 0.0,
        images_seen=images_seen,
        training_macs=training_macs,
        passes_per_image=config.task.sampling.build().archs_per_step(task.space) if task.is_supernet else 1,
        samples_digest=samples_digest,
        seed=config.seed,
        config_sha256=config.config_sha256,
        provenance=provenance,
        kind=task.kind,
    )


def cost_report(task: Task, arch: Arch) -> Costs:
    """MACs and parameters by part and in total, with the input size and the number of classes."""
    costs = task.costs(arch)
    macs = {part: cost.macs for part, cost in costs.items()}
    params = {part: cost.params for part, cost in costs.items()}
    checkpoint = sum(cost.params_checkpoint for cost in costs.values())
    return Costs(
        macs=macs | {"total": sum(macs.values())},
        params=params | {"total": sum(params.values())},
        params_checkpoint=checkpoint,
        input_size=task.input_size(arch),
        num_classes=task.settings.num_classes,
        classes_are=task.kind.classes_are,
    )


def write_predictions(num_samples: int, folder: Path, task: Task, data: DownstreamData) -> None:
    """Write the predictions of the last evaluation in COCO's result format, if the task has any, and draw samples.

    `files.SAMPLES_FOLDER` shows `num_samples` images, spread over the validation split, with their annotations and
    with the predictions of a subnet.
    """
    for name, records in task.predictions.items():
        write_json(folder / f"{name}.json", records)
    if not task.is_supernet:
        _draw_samples(num_samples, folder / files.SAMPLES_FOLDER, task, data)


def _draw_samples(count: int, folder: Path, task: Task, data: DownstreamData) -> None:
    val = data.require_parts().val
    task.eval()
    for index in np.linspace(0, len(val) - 1, min(count, len(val))).round().astype(int).tolist():
        sample = val[SampleKey(index, 0)]
        batch = task.on_device(data.collate([data.in_own_frame(sample)]))
        with torch.inference_mode():
            prediction = task.predict_image(batch, sample["sample_id"], data.vocabulary)
        shown = data.draw_sample(sample), prediction.draw(sample["image"], LEAST_SCORE_DRAWN, TILE)
        pictures = [
            replace(picture, caption=f"{origin}: {picture.caption}".rstrip(": "))
            for picture, origin in zip(shown, ("annotated", "predicted"), strict=True)
        ]
        folder.mkdir(exist_ok=True)
        write_image(contact_sheet(pictures), folder / f"{index:06d}.jpg", quality=85)
