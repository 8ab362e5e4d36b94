"""Latency tables: each block is timed once on a device, and the latency of an arch is the sum over its blocks.

Neck and head are timed layer by layer: convolutions and linear layers, each at the shape of its input in a pass of the
network. What lies between the layers (activations, resizing, non-maximum suppression) and the effects of blocks on each
other are missing; `check_table` measures how well the sum predicts whole networks, with a constant offset for the
difference. Once-for-All (Cai et al. 2020) uses the same kind of table for bodies.
"""

from __future__ import annotations

import copy
import logging
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nas_transfer.arch import Arch
from nas_transfer.errors import RunError
from nas_transfer.runs.atomic import sweep, write_json
from nas_transfer.runs.reading import is_present, read_json
from nas_transfer.search.statistics import kendall_tau
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.supernet.networks import latency_pieces
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

BOXES = 50
"""Step in which the number of boxes counts."""


def pass_times(
    run: Callable[[Tensor], object], shape: Sequence[int], device: torch.device, warmup: int, repeats: int
) -> np.ndarray:
    """Time `repeats` passes on the same random input of this shape, in milliseconds: (repeats,)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(tuple(shape), generator=generator).to(device)
    if inputs.ndim == 4:
        inputs = inputs.to(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for number in range(warmup + repeats):
            _wait_for(device)
            start = time.perf_counter()
            run(inputs)
            _wait_for(device)
            if number >= warmup:
                times.append(1000 * (time.perf_counter() - start))
    return np.asarray(times)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The name of the processor, in a form that suits file names."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpus = Path("/proc/cpuinfo")
        model = re.search(r"model name\s*: (.*)", cpus.read_text()) if cpus.is_file() else None
        name = model.group(1) if model else platform.processor() or platform.machine()
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


class LatencyTable:
    """Times of blocks on one device, measured on first use and stored in a file.

    Args:
        folder: folder of the files, one for each device, number of threads and batch size.
        device: device that is measured.
        batch_size: images per pass.
        warmup: passes before the measurement.
        repeats: measured passes of a block; their median is stored.
    """

    def __init__(self, folder: Path, device: torch.device, batch_size: int, warmup: int, repeats: int) -> None:
        threads = "" if device.type == "cuda" else f"-{torch.get_num_threads()}threads"
        self.path = folder / f"{device_name(device)}{threads}-batch{batch_size}.json"
        self.device = device
        self.batch_size = batch_size
        self.warmup = warmup
        self.repeats = repeats
        sweep(folder.glob(".*"))
        self.times = _read_times(self.path)

    def network_ms(self, subnet: Task) -> float:
        """Milliseconds per batch of a whole network: its body and the layers of neck and head.

        Args:
            subnet: the task of one arch, in eval mode on the device.
        """
        arch = subnet.require_subnet()
        size = subnet.input_size(arch)
        total = self.body_ms(subnet.table, arch, size)
        known = len(self.times)
        for layer, shape in head_layers(subnet, (self.batch_size, 3, *size)):
            key = f"{layer} {list(shape)}"
            if key not in self.times:
                self.times[key] = self._measured(copy.deepcopy(layer), shape)
            total += self.times[key]
        if len(self.times) > known:
            self._save()
        return total

    def body_ms(self, table: SupernetTable, arch: Arch, input_size: tuple[int, int]) -> float:
        """Milliseconds per batch of the body of an arch at an input size (H, W), summed over its blocks."""
        known = len(self.times)
        total = 0.0
        for piece in latency_pieces(table, arch, input_size):
            if piece.key not in self.times:
                module = piece.build().eval().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                fold_batch_norms(module)
                self.times[piece.key] = self._measured(module, (self.batch_size, *piece.shape))
            total += self.times[piece.key]
        if len(self.times) > known:
            self._save()
        return total

    def _measured(self, module: nn.Module, shape: Sequence[int]) -> float:
        return float(np.median(pass_times(module, shape, self.device, self.warmup, self.repeats)))

    def _save(self) -> None:
        write_json(self.path, self.times)


def head_layers(subnet: Task, shape: Sequence[int]) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """The convolutions and linear layers behind the body, each with the shape of its input, in the order of a pass.

    A layer that runs several times is listed as often. The number of boxes that reach a box head depends on the image:
    it is rounded up to a multiple of `BOXES`.

    Args:
        subnet: the task of one arch, in eval mode.
        shape: (B, 3, H, W) of the images.
    """
    body = set(subnet.body.modules())
    layers: list[tuple[nn.Module, tuple[int, ...]]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows, *rest = inputs[0].shape
        layers.append((layer, (rows if rows == shape[0] else -(-rows // BOXES) * BOXES, *rest)))

    hooks = [
        module.register_forward_pre_hook(note)
        for module in subnet.network.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module not in body
    ]
    try:
        pass_times(subnet.run_network, shape, subnet.device, 0, 1)
    finally:
        for hook in hooks:
            hook.remove()
    return layers


@dataclass(frozen=True)
class TableCheck:
    """How well a table predicts whole networks.

    Attributes:
        offset_ms: median difference between measured latencies and sums over the first half of the archs.
        error: mean absolute error over the second half, as a fraction of the measured latency.
        largest_error: largest absolute error over the second half, as a fraction of the measured latency.
        rank_correlation: Kendall's tau between prediction and measurement over the second half.
        num_pieces: blocks and layers in the table.
    """

    offset_ms: float
    error: float
    largest_error: float
    rank_correlation: float
    num_pieces: int


def check_table(table: LatencyTable, build: Callable[[Arch], Task], archs: Sequence[Arch]) -> TableCheck:
    """Compare the sums of a table with measured whole networks, heads included.

    Args:
        table: the table.
        build: builds the task of an arch, with any weights.
        archs: at least four archs. The first half sets the offset, the second half measures the errors.
    """
    sums, measured = [], []
    for arch in archs:
        task = build(arch).eval().to(table.device)
        fold_batch_norms(task.network)
        sums.append(table.network_ms(task))
        shape = (table.batch_size, 3, *task.input_size(arch))
        measured.append(np.median(pass_times(task.run_network, shape, table.device, table.warmup, table.repeats)))
    half = len(archs) // 2
    offset = float(np.median(np.subtract(measured[:half], sums[:half])))
    predicted, actual = np.asarray(sums[half:]) + offset, np.asarray(measured[half:])
    errors = np.abs(predicted - actual) / actual
    correlation = kendall_tau(predicted, actual)
    return TableCheck(offset, float(errors.mean()), float(errors.max()), correlation, len(table.times))


def _read_times(path: Path) -> dict[str, float]:
    """The times in a file; none where there is no file, or a damaged one, which is replaced."""
    try:
        times = read_json(path) if is_present(path) else {}
    except RunError as error:
        if not path.is_file():
            raise
        logger.warning("%s; the blocks are timed again", error)
        return {}
    if not isinstance(times, dict) or not all(isinstance(time, float) and time > 0 for time in times.values()):
        logger.warning("%s does not hold times; the blocks are timed again", path)
        return {}
    return times
