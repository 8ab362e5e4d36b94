"""Time the computation of the costs of many archs at once.

    python scripts/bench_costs.py [--archs 10000]

Classification uses the resolution of each arch, detection 800 x 1333 pixels with neck and heads. The first call fills
caches and the second uses them. For comparison, the costs of some archs are then computed one by one, and must agree.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from hydra import compose, initialize_config_dir

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.arch import SUPERNET
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.build import build_task
from nas_transfer.stages.config.base import TaskRunConfig
from nas_transfer.stages.config.entry import read_config


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"seconds for the macs and params of {options.archs} archs, one thread: first call, second call, one by one")
    for supernet, name in (("bignas", "imagenet"), ("bignas", "coco_det"), ("detnas_1300m", "imagenet")):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = read_config(compose("config", [f"task={name}", f"supernet={supernet}"]), TaskRunConfig)
        table = config.supernet.build()
        with torch.device("meta"):
            task = build_task(config, table, SUPERNET, None)
        rng = np.random.default_rng(0)
        archs = [table.space.sample(rng) for _ in range(options.archs)]
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            totals = task.cost_totals(archs)
            seconds.append(time.perf_counter() - start)
        some = archs[: max(1, options.archs // 50)]
        start = time.perf_counter()
        for index, arch in enumerate(some):
            costs = task.costs(arch).values()
            macs, params = sum(cost.macs for cost in costs), sum(cost.params for cost in costs)
            if (macs, params) != (totals.macs[index], totals.params[index]):
                raise SystemExit(f"arch {arch.short_id()} has other costs alone than among {options.archs} archs")
        single = (time.perf_counter() - start) * len(archs) / len(some)
        print(f"{supernet:<14} {name:<10} {seconds[0]:.3f}  {seconds[1]:.3f}  {single:.2f}")


if __name__ == "__main__":
    main()
