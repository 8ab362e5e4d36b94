"""Score subnets of one trained network on the validation split, repaired and merely cut out, all without training.

    python scripts/cut_parts.py task=small_det data.root=mine weights=RUN -- max ARCH_FILE ...

The settings of ``stage=evaluate`` stand before ``--``, and archs as for ``arch=`` behind it. Repaired are they at their
own input size, and "shared" at the largest one, as with ``search.variants``, if theirs is smaller. "Cut" are the same
channels in the same order as repaired, and "plain" those that lead in the network as it was trained. Both get BatchNorm
statistics of 200 training images.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it, before torch is imported

import torch
from hydra import compose, initialize_config_dir

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.arch import SUPERNET
from nas_transfer.arch_files import LARGEST, resolve_arch
from nas_transfer.data.module import DownstreamData
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.build import build_data, build_space, build_task, build_weights, set_threads
from nas_transfer.stages.common.repair import build_repairer
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import EvaluateConfig
from nas_transfer.tasks.checkpoint import load_whole
from nas_transfer.tasks.task import Task

CALIBRATION_IMAGES = 200


def score(task: Task, data: DownstreamData) -> str:
    """The task's score on the validation split, and mAP50 where there is one."""
    task.ground_truth = data.val_ground_truth
    with torch.inference_mode():
        for batch in data.val_dataloader():
            task.update_metrics(task.on_device(batch))
        metrics = task.compute_metrics()
    names = [task.score_key, *(name for name in ("map_50",) if name in metrics)]
    return ", ".join(f"{name} {100 * metrics[name]:.1f} %" for name in names)


def main(arguments: Sequence[str]) -> None:
    """Print a line for each arch."""
    if "--" not in arguments:
        raise SystemExit(__doc__)
    split = arguments.index("--")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["stage=evaluate", "name=parts", *arguments[:split]])
    config = read_config(cfg, EvaluateConfig)
    set_threads(config.num_threads)
    table, checkpoint = build_weights(config)
    if checkpoint is None:
        raise SystemExit("weights must name the run of a whole network, got null: add weights=RUN")
    space, folders = build_space(config, table), [conf_dir() / "archs"]
    data = build_data(config.data, resolve_arch(LARGEST, space, folders), table.preprocessing)
    plain = build_task(config, table, SUPERNET, data)
    load_whole(plain, checkpoint)
    start = time.perf_counter()
    repairer = build_repairer(config, table, checkpoint, data)
    print(f"order of the channels: {time.perf_counter() - start:.0f} s", flush=True)
    shared = build_repairer(config, table, checkpoint, data, shared=True)
    for text in arguments[split + 1 :]:
        arch = resolve_arch(text, space, folders)
        start = time.perf_counter()
        repaired = repairer.extract(arch)
        seconds = time.perf_counter() - start
        macs = sum(cost.macs for cost in repaired.costs(arch).values()) / 1e6
        scores = f"repaired {score(repaired, data)}"
        if plain.input_size(arch) != plain.input_size(space.largest()):
            scores += f"; shared {score(shared.extract(arch), data)}"
        for name, supernet in (("cut", repairer.supernet), ("plain", plain)):
            subnet = supernet.extract(arch).eval()
            subnet.calibrate(data.calibration_dataloader(CALIBRATION_IMAGES, max(2, data.batch_size)))
            scores += f"; {name} {score(subnet, data)}"
        print(f"{Path(text).stem}: {macs:.1f} M MACs; {scores}; repair {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
