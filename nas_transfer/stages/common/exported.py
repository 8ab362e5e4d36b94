"""Write the files of an export, compare them with the network in torch, and score them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nas_transfer.data.module import DownstreamData
from nas_transfer.deploy.engines import (
    Run,
    count_convolutions,
    largest_difference,
    run_onnx,
    run_torch,
    unmatched_detections,
    write_engines,
)
from nas_transfer.deploy.modules import run_by
from nas_transfer.deploy.openvino import openvino, run_openvino, write_openvino
from nas_transfer.deploy.quantise import byte_instructions, quantise
from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import Int8Summary, files
from nas_transfer.stages.common.evaluation import score_alone
from nas_transfer.stages.config.network import ExportConfig
from nas_transfer.tasks.deployed import Deployed
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

NOTHING = "nothing was exported"
ONE_PAIR, PAIR_SHARE = 2, 0.1
"""One pair of detections that two engines place on both sides of a limit is allowed, if it is at most this share."""


def checked_file(
    deployed: Deployed, images: list[Tensor], path: Path, config: ExportConfig, metadata: Mapping[str, str]
) -> float:
    """Write a network's files and return how far ONNX is from torch; RunError beyond the bound."""
    write_engines(deployed, path, metadata)
    return _checked(deployed, run_onnx(path, config.num_threads), images, path.name, config)


def checked_openvino(
    config: ExportConfig, deployed: Deployed, images: list[Tensor], source: Path, metadata: Mapping[str, str]
) -> tuple[Run, float]:
    """Convert an ONNX file to OpenVINO's format; how to run it and how far it is from torch, or RunError."""
    path = source.with_name(files.openvino_file(source.name))
    write_openvino(source, path, metadata)
    run = run_openvino(path, config.num_threads, len(deployed.outputs))
    return run, _checked(deployed, run, images, path.name, config)


def require_openvino(model: Deployed, raw: Deployed | None) -> None:
    """Raise ConfigError if OpenVINO cannot run the network, or is not installed."""
    openvino()
    if model.one_image and raw is None:
        raise ConfigError(
            "stage.openvino=true needs a network without a selection of boxes inside, got a detector of two stages, "
            "whose images OpenVINO resizes to other sizes than torch: use detector=fcos or detector=ssdlite, or leave "
            "stage.openvino out"
        )


def _checked(deployed: Deployed, run: Run, images: list[Tensor], name: str, config: ExportConfig) -> float:
    """How far an engine is from torch; RunError beyond the bound.

    Outputs are compared value by value, except those of a detector, where detections of equal score may swap places.
    """
    if deployed.size is not None:
        images = [F.interpolate(image, deployed.size, mode="bilinear") for image in images]
    reference, names = run_torch(deployed.module.eval()), ("torch", name)
    if deployed.one_image:
        unmatched, total = unmatched_detections(reference, run, images, names)
        difference, key, what = unmatched / max(1, total), "max_unmatched", "of the detections"
        bound = config.stage.max_unmatched
        allowed = unmatched <= max(bound * total, min(ONE_PAIR, PAIR_SHARE * total))
        if not total:
            logger.warning("%s: no engine detects anything in %d images: nothing is compared", name, len(images))
    else:
        difference = largest_difference(reference, run, images, names)
        key, bound, what = "max_difference", config.stage.max_difference, "of the largest output"
        allowed = difference <= bound
    print(f"{name} differs from torch by {difference:.1e} {what}, {len(images)} images")
    if not allowed:
        raise RunError(
            f"{name} must differ from torch by at most stage.{key}={bound:g} {what}, got {difference:.2g}: {NOTHING}"
        )
    return difference


def score_by(task: Task, data: DownstreamData, engine: Run) -> dict[str, float]:
    """All metrics on the validation split with the network run by an engine."""
    return score_alone(run_by(task, engine), data)


def allowance(limit: float, images: int) -> float:
    """By how much two scores may differ: the limit, or one image of the split if that is more."""
    return max(limit, 1 / max(1, images))


def check_score(
    config: ExportConfig, task: Task, data: DownstreamData, name: str, torch: Mapping[str, float],
    other: Mapping[str, float],
) -> None:  # fmt: skip
    """Raise RunError if the score of a file is too far from that of torch."""
    limit, images = config.stage.max_score_difference, data.num_val_images
    bound = allowance(limit, images)
    expected, found = torch[task.score_key], other[task.score_key]
    if not abs(expected - found) <= bound:
        raise RunError(
            f"{name} must score within {bound:.4f} of the {expected:.4f} of torch (the larger of "
            f"stage.max_score_difference={limit:g} and one of {images} images), got {found:.4f}: {NOTHING}; compare "
            f"outputs on more images with stage.compared_images={images}, and if they agree, raise "
            "stage.max_score_difference"
        )


def quantised_file(
    config: ExportConfig, task: Task, data: DownstreamData, folder: Path, before: Mapping[str, float]
) -> tuple[Run, dict[str, float], Int8Summary]:
    """Write the network in 8-bit integers, or else its body alone; how to run it, its metrics and a summary.

    Args:
        before: the metrics of the ONNX file in floats.

    Raises:
        RunError: the score is lower than `stage` allows.
    """
    images = calibration_inputs(task, data, config.stage.int8_images)
    instructions = byte_instructions()
    logger.info(
        "8-bit integers, calibrated on %d images of train; instructions for bytes of this CPU: %s",
        sum(map(len, images)), ", ".join(instructions) or "none: expect little or no speed-up",
    )  # fmt: skip
    source, target = folder / files.MODEL, folder / files.MODEL_INT8
    bound = config.stage.max_int8_loss
    convolutions = count_convolutions(folder / files.BODY)
    loss = 0.0
    for head in (True, False):
        kept = quantise(source, target, images, body_convolutions=convolutions, head=head)
        run = run_onnx(target, config.num_threads)
        metrics = score_by(task, data, run)
        score = metrics[task.score_key]
        loss = before[task.score_key] - score
        part = "all layers but those that predict" if head else "the body alone"
        about = f"{task.score_key} {100 * score:.2f} % ({-100 * loss + 0:+.2f})"
        print(f"{target.name}: {part} in 8-bit integers, {about}")
        if loss <= bound:
            summary = Int8Summary(score, loss, 0.0, kept.layers, kept.float_layers, sum(map(len, images)), instructions)
            return run, metrics, summary
    raise RunError(
        f"{target.name} must score at most stage.max_int8_loss={bound:g} lower than {before[task.score_key]:.4f}, "
        f"got a loss of {loss:.4f}: {NOTHING}; "
        "calibrate on more images with stage.int8_images, raise stage.max_int8_loss, or leave stage.int8 out"
    )


def calibration_inputs(task: Task, data: DownstreamData, count: int) -> list[Tensor]:
    """What the deployed network is given for images of train, float32 (B, 3, H, W): resized, padded, mirrored."""
    seen: list[Tensor] = []
    inner = run_torch(task.deployed().module.eval())

    def noted(images: Tensor) -> tuple[Tensor, ...]:
        seen.append(images.contiguous())
        return inner(images)

    scored = run_by(task, noted)
    with torch.inference_mode():
        for batch in data.calibration_dataloader(count, data.batch_size):
            scored.update_metrics(batch)
    return seen
