"""What an arch costs at the task's own input size, module by module, without building a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from nas_transfer.data.drawing import contact_sheet
from nas_transfer.errors import ConfigError
from nas_transfer.runs import Result, files
from nas_transfer.search.latency_table import LatencyTable, check_table, device_name
from nas_transfer.space import SUPERNET, Arch
from nas_transfer.stages.common.build import build_arch, build_data, build_table, build_task, set_threads
from nas_transfer.stages.common.results import make_result
from nas_transfer.supernet.protocol import SupernetTable

LEAST_ARCHS = 4
BATCH_SIZE, WARMUP, REPEATS = 1, 3, 15


def run(cfg: DictConfig, folder: Path) -> Result:
    """Print the costs of one arch by module; ConfigError for the supernet, which has none of its own."""
    table = build_table(cfg)
    arch = build_arch(cfg, table.space)
    if arch is SUPERNET:
        raise ConfigError("expected one arch to profile, got arch=supernet: use max, min, a name or a file")
    task = build_task(cfg, table, arch, None)
    height, width = task.input_size(arch)
    print(f"{'module':<20}{'MACs (M)':>14}{'params (M)':>14}   at {height}x{width}")
    for part, cost in task.costs(arch).items():
        for module in cost.modules:
            print(f"{part + ' ' + module.name:<20}{module.macs / 1e6:14.3f}{module.params / 1e6:14.4f}")
    if cfg.data.preview:
        _draw_preview(cfg, arch, folder / files.PREVIEW)
    if cfg.latency:
        _check_latencies(cfg, table)
    return make_result(cfg, task, {})


def _check_latencies(cfg: DictConfig, table: SupernetTable) -> None:
    """Fill this device's latency table for some random archs and print how well it predicts the whole networks."""
    count = cfg.latency
    if not isinstance(count, int) or count < LEAST_ARCHS:
        raise ConfigError(f"expected latency=<a number of archs, at least {LEAST_ARCHS}>, got {count}")
    set_threads(cfg)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    latencies = LatencyTable(Path(cfg.runs) / "latency", device, BATCH_SIZE, WARMUP, REPEATS)
    rng = np.random.default_rng(cfg.seed)
    archs = [table.space.sample(rng) for _ in range(count)]
    found = check_table(latencies, lambda arch: build_task(cfg, table, arch, None), archs)
    print(
        f"latency table of {device_name(device)}, {torch.get_num_threads()} threads, batch {BATCH_SIZE}: "
        f"{found.num_pieces} blocks in {latencies.path}\n"
        f"sums over blocks + {found.offset_ms:.2f} ms against {count - count // 2} measured networks: error "
        f"{100 * found.error:.1f} % in the mean, {100 * found.largest_error:.1f} % at most; "
        f"Kendall's tau {found.rank_correlation:.2f}"
    )


def _draw_preview(cfg: DictConfig, arch: Arch, path: Path) -> None:
    count = cfg.data.preview
    if not isinstance(count, int) or count < 0:
        raise ConfigError(f"expected a number of samples to draw, got data.preview={count}")
    pictures = build_data(cfg, arch, build_table(cfg).preprocessing).preview(count)
    contact_sheet(pictures).save(path)
    print(f"{len(pictures)} training samples with their annotations: {path}")
