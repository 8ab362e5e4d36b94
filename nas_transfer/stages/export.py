"""Export a finished network as files for other programs, and compare each file with the network."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from omegaconf import DictConfig
from torch import Tensor

from nas_transfer.data.module import DownstreamData
from nas_transfer.deploy.engines import (
    Run,
    largest_difference,
    onnxruntime,
    run_onnx,
    run_program,
    run_torch,
    unmatched_share,
    write_engines,
)
from nas_transfer.deploy.model_card import model_card
from nas_transfer.deploy.modules import DeployedBody, run_by
from nas_transfer.errors import ConfigError, RunError
from nas_transfer.runs import ExportSummary, FileLatency, Result, files
from nas_transfer.runs.atomic import write_text
from nas_transfer.search.latency_table import pass_times
from nas_transfer.stages.common.build import hold_run_inputs, set_threads
from nas_transfer.stages.common.evaluation import load_trained
from nas_transfer.stages.common.results import make_result
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import ExportConfig
from nas_transfer.stages.config.trained import with_trained_groups
from nas_transfer.supernet.fields import fields_of_weights
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.tasks.checkpoint import Checkpoint
from nas_transfer.tasks.deployed import Deployed
from nas_transfer.tasks.normalise import Normalise
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

WARMUP, REPEATS = 5, 30


def run(cfg: DictConfig, folder: Path) -> Result:
    """Export the network of a run, with the task, data and supernet of that run.

    Raises:
        ConfigError: no weights, no arch of a supernet, or a missing package.
        RunError: the outputs or the score of an engine differ from those of torch by more than `stage` allows; nothing
            is written then.
    """
    onnxruntime()
    config = read_config(with_trained_groups(cfg), ExportConfig)
    set_threads(config.num_threads)
    task, data, checkpoint = load_trained(config)
    hold_run_inputs(config, data)
    if task.is_supernet:
        raise ConfigError("stage=export needs one arch, got arch=supernet: use max, min, a name or a file")
    task.to("cpu")
    unchecked = folder / files.UNCHECKED_FOLDER
    shutil.rmtree(unchecked, ignore_errors=True)
    unchecked.mkdir(parents=True)
    try:
        result = _export(config, task, data, checkpoint, unchecked)
        for path in unchecked.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(unchecked)
    return result


def _export(config: ExportConfig, task: Task, data: DownstreamData, checkpoint: Checkpoint, folder: Path) -> Result:
    """Write all files and compare them with the network."""
    _write_weights(task, checkpoint, folder)
    fold_batch_norms(task.eval().network)
    body = DeployedBody(Normalise(task.table.preprocessing), copy.deepcopy(task.body).requires_grad_(True)).eval()
    parts = {files.BODY: Deployed(body, body.outputs), files.MODEL: task.deployed()}
    raw = task.deployed_raw()
    if raw is not None:
        parts[files.MODEL_RAW] = raw
    images = _real_images(data, config.stage.compared_images, parts[files.MODEL].stride)
    metadata = {"task": task.kind.name, "names": json.dumps(list(data.vocabulary.names))}
    differences = {
        name: _checked(deployed, images, folder / name, config, metadata) for name, deployed in parts.items()
    }
    engines = {
        "torch": run_torch(parts[files.MODEL].module.eval()),
        "onnxruntime": run_onnx(folder / files.MODEL, config.num_threads),
    }
    metrics = {name: _score(task, data, engine) for name, engine in engines.items()}
    scores = {name: values[task.score_key] for name, values in metrics.items()}
    timed = _timed_files(task, parts, folder, config.num_threads)
    size = timed[files.MODEL].size
    times = {"torch": _latency(engines["torch"], size), "onnxruntime": timed[files.MODEL].latency_ms}
    for name in engines:
        at = "x".join(map(str, size))
        print(f"{name:<12} {task.score_key} {100 * scores[name]:.2f} %, {times[name]:.2f} ms at {at}")
    if not abs(scores["torch"] - scores["onnxruntime"]) <= config.stage.max_score_difference:
        raise RunError(
            f"{files.MODEL} must score within stage.max_score_difference={config.stage.max_score_difference:g} of the "
            f"{scores['torch']:.4f} of torch, got {scores['onnxruntime']:.4f}: nothing was exported"
        )
    export = ExportSummary(differences, scores["torch"], times, size, config.num_threads, timed)
    result = make_result(config, task, metrics["onnxruntime"], provenance=checkpoint.lineage())
    result = replace(result, export=export)
    channels = dict(zip(body.outputs, task.table.feature_channels(task.body_arch(task.require_subnet())), strict=True))
    write_text(
        folder / files.MODEL_CARD, model_card(result, str(config.data["root"]), channels, parts[files.MODEL], raw)
    )
    return result


def _write_weights(task: Task, checkpoint: Checkpoint, folder: Path) -> None:
    """Write ``arch.yaml``, and the tensors of the network with metadata that describes them."""
    from safetensors.torch import save_file

    arch = task.require_subnet().to_dict()
    write_text(folder / files.ARCH, yaml.safe_dump(arch, sort_keys=False, default_flow_style=None))
    metadata = {
        "space": task.table.space.name, "arch": json.dumps(arch), "task": task.kind.name,
        "num_classes": str(task.settings.num_classes), "preprocessing": json.dumps(asdict(task.table.preprocessing)),
        "table_fields": json.dumps(fields_of_weights(task.table)),
        "provenance": json.dumps([asdict(ancestor) for ancestor in checkpoint.lineage()]),
    }  # fmt: skip
    tensors = {name: tensor.contiguous() for name, tensor in task.network.state_dict().items()}
    save_file(tensors, folder / files.TENSORS, metadata)


def _real_images(data: DownstreamData, count: int, stride: int) -> list[Tensor]:
    """The first images of the validation split, float (1, 3, H, W) in 0-255, cut to multiples of `stride`."""
    images: list[Tensor] = []
    for batch in data.val_dataloader():
        for image in batch["images"]:
            height, width = (max(side // stride, 1) * stride for side in image.shape[-2:])
            missing = (0, max(0, width - image.shape[-1]), 0, max(0, height - image.shape[-2]))
            images.append(F.pad(image[None].float(), missing)[:, :, :height, :width])
            if len(images) == count:
                return images
    return images


def _checked(
    deployed: Deployed, images: list[Tensor], path: Path, config: ExportConfig, metadata: Mapping[str, str]
) -> float:
    """Write a network's files and return how far ONNX is from torch; RunError beyond the bound.

    Outputs are compared value by value, except those of a detector, where detections of equal score may swap places.
    """
    write_engines(deployed, path, metadata)
    if deployed.size is not None:
        images = [F.interpolate(image, deployed.size, mode="bilinear") for image in images]
    compare, key, bound, what = (
        (unmatched_share, "max_unmatched", config.stage.max_unmatched, "of the detections")
        if deployed.one_image
        else (largest_difference, "max_difference", config.stage.max_difference, "of the largest output")
    )
    engines = run_torch(deployed.module.eval()), run_onnx(path, config.num_threads)
    difference = compare(*engines, images, ("torch", path.name))
    print(f"{path.name:<12} differs from torch by {difference:.1e} {what}, {len(images)} images")
    if not difference <= bound:
        raise RunError(
            f"{path.name} must differ from torch by at most stage.{key}={bound:g} {what}, got {difference:.2g}: "
            "nothing was exported"
        )
    return difference


def _score(task: Task, data: DownstreamData, engine: Run) -> dict[str, float]:
    """All metrics on the validation split with the network run by an engine."""
    scored = run_by(task, engine)
    scored.ground_truth = data.val_ground_truth
    with torch.inference_mode():
        for batch in data.val_dataloader():
            scored.update_metrics(batch)
    return scored.compute_metrics()


def _timed_size(task: Task, deployed: Deployed) -> tuple[int, int]:
    """The input size (H, W), cut to multiples of the stride where the network takes no other."""
    height, width = deployed.size or deployed.usual_size or task.input_size(task.require_subnet())
    if deployed.size or deployed.one_image:
        return height, width
    return max(height // deployed.stride, 1) * deployed.stride, max(width // deployed.stride, 1) * deployed.stride


def _timed_files(task: Task, parts: Mapping[str, Deployed], folder: Path, threads: int) -> dict[str, FileLatency]:
    """Time each written file on one image, and print it.

    Args:
        task: that is exported.
        parts: the networks by ONNX file, beside which there may be a torch.export file.
        folder: of the files.
        threads: CPU threads of onnxruntime.
    """
    timed = {}
    for name, deployed in parts.items():
        size, path = _timed_size(task, deployed), folder / name
        timed[name] = FileLatency(_latency(run_onnx(path, threads), size), size)
        program = path.with_suffix(".pt2")
        if program.is_file():  # a whole detector has none
            if deployed.size is None:  # a program may refuse maps of one pixel
                size = max(size[0], 2 * deployed.stride), max(size[1], 2 * deployed.stride)
            timed[program.name] = FileLatency(_latency(run_program(program), size), size)
    for name, one in timed.items():
        print(f"{name:<14} {one.latency_ms:.2f} ms at {'x'.join(map(str, one.size))}")
    return timed


def _latency(engine: Run, size: tuple[int, int]) -> float:
    """Median milliseconds of one image of this size."""
    times = pass_times(lambda images: engine(255 * images), (1, 3, *size), torch.device("cpu"), WARMUP, REPEATS)
    return float(sorted(times)[len(times) // 2])
