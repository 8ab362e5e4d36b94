"""Export a finished network as files for other programs, and compare each file with the network."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from omegaconf import DictConfig
from torch import Tensor

from nas_transfer.data.module import DownstreamData
from nas_transfer.deploy.engines import INPUT, Run, onnxruntime, run_onnx, run_program, run_torch
from nas_transfer.deploy.metadata import metadata_of
from nas_transfer.deploy.model_card import model_card
from nas_transfer.deploy.modules import DeployedBody
from nas_transfer.deploy.timing import BUSY_SHARE, measure
from nas_transfer.errors import ConfigError
from nas_transfer.runs import ExportSummary, FileLatency, Int8Summary, Result, files
from nas_transfer.runs.atomic import write_text
from nas_transfer.stages.common.build import evaluation_device, hold_run_inputs, set_threads
from nas_transfer.stages.common.evaluation import load_trained, score_alone
from nas_transfer.stages.common.exported import (
    check_score,
    checked_file,
    checked_openvino,
    quantised_file,
    require_openvino,
    score_by,
)
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

TORCH, ONNX, INT8, OPENVINO = "torch", "onnxruntime", "onnxruntime int8", "openvino"


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
    if config.stage.openvino:
        require_openvino(task.deployed(), task.deployed_raw())
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


@dataclass
class _Measured:
    """Engines, their metrics, and how far files are from torch."""

    engines: dict[str, Run] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)


def _export(config: ExportConfig, task: Task, data: DownstreamData, checkpoint: Checkpoint, folder: Path) -> Result:
    """Write all files and compare them with the network."""
    found = _Measured()
    found.metrics[TORCH] = score_alone(task.to(evaluation_device(config.trainer.accelerator)), data)
    task.to("cpu")
    _write_weights(task, checkpoint, folder)
    fold_batch_norms(task.eval().network)
    body = DeployedBody(Normalise(task.table.preprocessing), copy.deepcopy(task.body).requires_grad_(True)).eval()
    model, raw = task.deployed(), task.deployed_raw()
    parts = {files.BODY: Deployed(body, body.outputs), files.MODEL: model}
    if raw is not None:
        parts[files.MODEL_RAW] = raw
    images = _real_images(data, config.stage.compared_images, model.stride)
    for name, deployed in parts.items():
        metadata = _metadata(task, data, deployed)
        found.differences[name] = checked_file(deployed, images, folder / name, config, metadata)
    found.engines = {TORCH: run_torch(model.module.eval()), ONNX: run_onnx(folder / files.MODEL, config.num_threads)}
    found.metrics[ONNX] = score_by(task, data, found.engines[ONNX])
    check_score(config, task, data, files.MODEL, found.metrics[TORCH], found.metrics[ONNX])
    if config.stage.openvino:
        _add_openvino(config, task, data, parts, images, folder, found)
    int8: Int8Summary | None = None
    if config.stage.int8:
        found.engines[INT8], found.metrics[INT8], int8 = quantised_file(config, task, data, folder, found.metrics[ONNX])
    scores = {name: values[task.score_key] for name, values in found.metrics.items()}
    export = _timed(config, task, model, images, found.engines, scores)
    if int8 is not None:
        int8 = replace(int8, speedup=export.latency_ms[ONNX] / export.latency_ms[INT8])
        print(
            f"8-bit integers change the score by {-100 * int8.loss + 0:+.2f} points, {int8.speedup:.2f} times as fast"
        )
    timed = _timed_files(config, task, parts, images, folder, export)
    result = make_result(config, task, found.metrics[ONNX], provenance=checkpoint.lineage())
    result = replace(result, export=replace(export, difference=found.differences, int8=int8, files=timed))
    channels = dict(zip(body.outputs, task.table.feature_channels(task.body_arch(task.require_subnet())), strict=True))
    card = model_card(
        result, str(config.data["root"]), channels, model, raw, names=data.vocabulary.names,
        preprocessing=task.table.preprocessing,
    )  # fmt: skip
    write_text(folder / files.MODEL_CARD, card)
    return result


def _add_openvino(
    config: ExportConfig, task: Task, data: DownstreamData, parts: Mapping[str, Deployed], images: list[Tensor],
    folder: Path, found: _Measured,
) -> None:  # fmt: skip
    """Write and compare OpenVINO's file; score it, unless it makes no selection of boxes."""
    name = files.MODEL_RAW if files.MODEL_RAW in parts else files.MODEL
    file, metadata = files.openvino_file(name), _metadata(task, data, parts[name])
    engine, found.differences[file] = checked_openvino(config, parts[name], images, folder / name, metadata)
    if name == files.MODEL:
        found.engines[OPENVINO], found.metrics[OPENVINO] = engine, score_by(task, data, engine)
        check_score(config, task, data, file, found.metrics[TORCH], found.metrics[OPENVINO])


def _metadata(task: Task, data: DownstreamData, deployed: Deployed) -> dict[str, str]:
    return metadata_of(deployed, task.kind.name, data.vocabulary.names, task.table.preprocessing, INPUT)


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


def _timed(
    config: ExportConfig,
    task: Task,
    model: Deployed,
    images: list[Tensor],
    engines: Mapping[str, Run],
    scores: Mapping[str, float],
) -> ExportSummary:
    """Time the engines in turn on the first image, and print their scores and latencies."""
    size = _timed_size(task, model)
    image = F.interpolate(images[0], size, mode="bilinear")
    with torch.inference_mode():
        latencies, others = measure(engines, image, config.stage.latency_rounds)
    for name, latency in latencies.items():
        print(
            f"{name:<16} {task.score_key} {100 * scores[name]:.2f} %, {latency} at {size[0]}x{size[1]}, "
            f"{config.num_threads} threads"
        )
    if others is not None and others > BUSY_SHARE:
        logger.warning(
            "other processes took %.0f %% of the time of all cores during the measurement: the latencies are too high; "
            "export again with resume=never on an idle machine", 100 * others,
        )  # fmt: skip
    return ExportSummary(
        difference={},
        score_torch=scores[TORCH],
        latency_ms={name: latency.wall for name, latency in latencies.items()},
        latency_size=size,
        threads=config.num_threads,
        latency_range={name: (latency.low, latency.high) for name, latency in latencies.items()},
        cpu_ms={name: latency.cpu for name, latency in latencies.items()},
        busy=others,
        scores=scores,
    )


def _timed_size(task: Task, deployed: Deployed) -> tuple[int, int]:
    """The input size (H, W), cut to multiples of the stride where the network takes no other."""
    height, width = deployed.size or deployed.usual_size or task.input_size(task.require_subnet())
    if deployed.size or deployed.one_image:
        return height, width
    return max(height // deployed.stride, 1) * deployed.stride, max(width // deployed.stride, 1) * deployed.stride


def _timed_files(
    config: ExportConfig, task: Task, parts: Mapping[str, Deployed], images: list[Tensor], folder: Path,
    export: ExportSummary,
) -> dict[str, FileLatency]:  # fmt: skip
    """Time each written file that `export` has no latency of, and print it; returns the latencies of all files."""
    known = {files.MODEL: ONNX, files.MODEL_INT8: INT8}
    timed = {
        file: FileLatency(export.latency_ms[engine], export.latency_size)
        for file, engine in known.items()
        if engine in export.latency_ms
    }
    for name, deployed in parts.items():
        size, path = _timed_size(task, deployed), folder / name
        program = path.with_suffix(".pt2")
        engines = {} if name in timed else {name: (run_onnx(path, config.num_threads), size)}
        if program.is_file():  # a whole detector has none
            if deployed.size is None:  # a program may refuse maps of one pixel
                size = max(size[0], 2 * deployed.stride), max(size[1], 2 * deployed.stride)
            engines[program.name] = run_program(program), size
        for file, (engine, sides) in engines.items():
            image = F.interpolate(images[0], sides, mode="bilinear")
            latency = measure({file: engine}, image, config.stage.latency_rounds)[0][file]
            timed[file] = FileLatency(latency.wall, sides)
            print(f"{file:<16} {latency} at {'x'.join(map(str, sides))}")
    return timed
