"""What an arch costs at the task's own input size, module by module, without building a network."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from nas_transfer.data.drawing import contact_sheet
from nas_transfer.errors import ConfigError
from nas_transfer.report.manifest import Result
from nas_transfer.space import Arch
from nas_transfer.stages.build import build_arch, build_data, build_table, build_task
from nas_transfer.stages.results import make_result

PREVIEW_FILE = "preview.png"


def run(cfg: DictConfig, folder: Path) -> Result:
    """Print the costs of one arch by module; ConfigError for the supernet, which has none of its own."""
    table = build_table(cfg)
    arch = build_arch(cfg, table.space)
    if arch is None:
        raise ConfigError("expected one arch to profile, got arch=supernet: use max, min, a name or a file")
    task = build_task(cfg, table, arch, None, total_steps=0)
    height, width = task.input_size(arch)
    print(f"{'module':<20}{'MACs (M)':>14}{'params (M)':>14}   at {height}x{width}")
    for part, cost in task.costs(arch).items():
        for module in cost.modules:
            print(f"{part + ' ' + module.name:<20}{module.macs / 1e6:14.3f}{module.params / 1e6:14.4f}")
    if cfg.data.preview:
        _draw_preview(cfg, arch, folder / PREVIEW_FILE)
    return make_result(cfg, task, {})


def _draw_preview(cfg: DictConfig, arch: Arch, path: Path) -> None:
    count = cfg.data.preview
    if not isinstance(count, int) or count < 0:
        raise ConfigError(f"expected a number of samples to draw, got data.preview={count}")
    pictures = build_data(cfg, arch).preview(count)
    contact_sheet(pictures).save(path)
    print(f"{len(pictures)} training samples with their annotations: {path}")
