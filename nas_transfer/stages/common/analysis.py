"""What a network is good at: written after the final evaluation of a training, and by ``stage=evaluate``."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from nas_transfer.data.drawing import TILE, contact_sheet
from nas_transfer.data.images import write_image
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.sampler import SampleKey
from nas_transfer.report.analysis_pictures import draw_analysis
from nas_transfer.runs import Analysis, files
from nas_transfer.stages.common.results import LEAST_SCORE_DRAWN
from nas_transfer.tasks.coco_analysis import with_files
from nas_transfer.tasks.training import ScoringModule

logger = logging.getLogger(__name__)

MOST_DRAWN = 6
"""Number of the worst images that are drawn."""


def write_analysis(num_samples: int, folder: Path, module: ScoringModule, data: DownstreamData) -> Analysis | None:
    """Write ``analysis.json`` and its pictures, from the last evaluation of a subnet.

    The worst images are drawn where samples of predictions are, that is, unless `num_samples` is 0.

    Returns:
        What was written; None for a supernet, and for a task without an analysis.
    """
    pictures = folder / files.ANALYSIS_FOLDER
    shutil.rmtree(pictures, ignore_errors=True)
    analysis = None if module.task.is_supernet else module.task.analyse(data.vocabulary)
    if analysis is None:
        return None
    analysis = with_files(analysis, image_files(data, (one.image_id for one in analysis.worst)))
    analysis.write(folder)
    draw_analysis(analysis, pictures)
    if num_samples:
        _draw_worst(analysis, pictures, module, data)
    threshold = analysis.threshold
    logger.info(
        "what the network is good at: %s and %s%s", folder / files.ANALYSIS, pictures,
        "" if threshold is None else f"; recommended threshold of the score: {threshold.recommended:.2f}",
    )  # fmt: skip
    return analysis


def image_files(data: DownstreamData, image_ids: Iterable[int]) -> dict[int, str]:
    """The files of validation images by id, relative to the dataset where they lie in it.

    The id is COCO's, or for a dataset without ids the position of the image in its part.
    """
    truth = data.val_ground_truth
    if truth is not None:
        return {image_id: str(truth.imgs[image_id].get("file_name", "")) for image_id in image_ids}
    paths = data.read_part("val").image_paths
    return {number: _below(Path(paths[number]), Path(data.root)) for number in image_ids if number < len(paths)}


def _below(path: Path, root: Path) -> str:
    return os.fspath(path.relative_to(root) if path.is_relative_to(root) else path)


def _draw_worst(analysis: Analysis, folder: Path, module: ScoringModule, data: DownstreamData) -> None:
    """Draw the worst images with their annotations and, at the recommended threshold, their predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    task, val = module.task.eval(), data.require_parts().val
    threshold = LEAST_SCORE_DRAWN if analysis.threshold is None else analysis.threshold.recommended
    for number, image in enumerate(analysis.worst[:MOST_DRAWN], start=1):
        if image.image_id not in module.image_ids:  # another rank has seen it
            continue
        sample = val[SampleKey(module.image_ids.index(image.image_id), 0)]
        batch = task.on_device(data.collate([data.in_own_frame(sample)]))
        with torch.inference_mode():
            prediction = task.predict_image(batch, image.image_id, data.vocabulary)
        annotated, predicted = data.draw_sample(sample), prediction.draw(sample["image"], threshold, TILE)
        sheet = contact_sheet(
            [replace(annotated, caption=Path(image.file).name[-50:]), replace(predicted, caption=image.text)]
        )
        write_image(sheet, folder / f"{files.WORST_PREFIX}{number}.jpg", quality=85)
