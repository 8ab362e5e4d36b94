"""Print the cost of an arch at the input size of the task, module by module, without building a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from nas_transfer.arch import SUPERNET
from nas_transfer.data.drawing import contact_sheet
from nas_transfer.data.images import write_image
from nas_transfer.data.module import DownstreamData
from nas_transfer.errors import ConfigError
from nas_transfer.runs import Result, files
from nas_transfer.search.attainable import CostRange
from nas_transfer.search.latency_table import LatencyTable, check_table, device_name, pass_times
from nas_transfer.stages.common.build import build_arch, build_data, build_space, build_task, set_threads
from nas_transfer.stages.common.results import make_result
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import ProfileConfig
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.task import Task

BATCH_SIZE, WARMUP, REPEATS = 1, 3, 15


def run(cfg: DictConfig, folder: Path) -> Result:
    """Print the costs of one arch by module; ConfigError for the supernet."""
    config = read_config(cfg, ProfileConfig)
    table = config.supernet.build()
    arch = build_arch(config, table)
    if arch is SUPERNET:
        raise ConfigError("stage=profile needs one arch, got arch=supernet: use max, min, a name or a file")
    task = build_task(config, table, arch, None)
    height, width = task.input_size(arch)
    print(f"{'module':<20}{'MACs (M)':>14}{'params (M)':>14}   at {height}x{width}")
    for part, cost in task.costs(arch).items():
        for module in cost.modules:
            print(f"{part + ' ' + module.name:<20}{module.macs / 1e6:14.3f}{module.params / 1e6:14.4f}")
    macs = task.cost_totals(task.space.ends()).macs
    print(f"macs of the smallest and the largest arch: {CostRange(int(macs.min()), int(macs.max()))}")
    if config.data is not None:
        _draw_preview(build_data(config.data, arch, table.preprocessing), config.preview, folder / files.PREVIEW)
    if config.latency:
        _check_latencies(config, table)
    return make_result(config, task, {})


def _check_latencies(config: ProfileConfig, table: SupernetTable) -> None:
    """Fill this device's latency table for some random archs and print how well it predicts the whole networks."""
    count = config.latency
    set_threads(config.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    latencies = LatencyTable(Path(config.runs) / "latency", device, BATCH_SIZE, WARMUP, REPEATS)
    rng = np.random.default_rng(config.seed)
    space = build_space(config, table)
    archs = [space.sample(rng) for _ in range(count)]
    check = check_table(latencies, lambda arch: build_task(config, table, arch, None), archs)
    times = [_milliseconds(build_task(config, table, end, None), device) for end in space.ends()]
    low, high = min(times), max(times)
    print(f"latency of the smallest and the largest arch: {low:.1f} and {high:.1f} ms (x{high / low:.3g})")
    print(
        f"latency table of {device_name(device)}, {torch.get_num_threads()} threads, batch {BATCH_SIZE}: "
        f"{check.num_pieces} blocks in {latencies.path}\n"
        f"sums over blocks + {check.offset_ms:.2f} ms against {count - count // 2} measured networks: error "
        f"{100 * check.error:.1f} % on average, {100 * check.largest_error:.1f} % at most; "
        f"Kendall's tau {check.rank_correlation:.2f}"
    )


def _milliseconds(task: Task, device: torch.device) -> float:
    """The median time of a pass of the whole network, in milliseconds."""
    task.eval().to(device)
    fold_batch_norms(task.network)
    shape = (BATCH_SIZE, 3, *task.input_size(task.require_subnet()))
    return float(np.median(pass_times(task.run_network, shape, device, WARMUP, REPEATS)))


def _draw_preview(data: DownstreamData, count: int, path: Path) -> None:
    pictures = data.preview(count)
    write_image(contact_sheet(pictures), path)
    print(f"{len(pictures)} training samples with their annotations: {path}")
