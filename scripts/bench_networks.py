"""Time the predictions of finished runs side by side.

    python scripts/bench_networks.py RUN RUN ... --images FOLDER [--threads 1] [--rounds 8]

Each round calls every network once on each of a few images, in turn, so that a change in the load of the machine meets
all of them. Printed are M MACs, the median and the quartiles of the milliseconds of a call of
`nas_transfer.load(RUN).predict(image)`, which includes resizing and what follows the network, and the median's share
of the first run's.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import nas_transfer
from nas_transfer.runs import read_result

SUFFIXES = (".jpg", ".jpeg", ".png")


def main() -> None:
    """Time the networks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    parser.add_argument("--count", type=int, default=3, help="number of images")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = sorted(path for path in options.images.iterdir() if path.suffix.lower() in SUFFIXES)[: options.count]
    if not files:
        parser.error(f"{options.images} has no images")
    images = [Image.open(path).convert("RGB") for path in files]
    milliseconds = timed(options.runs, images, options.rounds)
    print("| run | M MACs | ms | quartiles | share |")
    print("| --- | --- | --- | --- | --- |")
    first = np.median(milliseconds[0])
    for folder, times in zip(options.runs, milliseconds, strict=True):
        result = read_result(folder)
        macs = f"{result.costs.macs['total'] / 1e6:.0f}" if result is not None and result.costs is not None else ""
        low, median, high = np.percentile(times, (25, 50, 75))
        print(f"| {folder} | {macs} | {median:.1f} | {low:.1f} to {high:.1f} | {100 * median / first:.0f} % |")


def timed(runs: list[Path], images: list[Image.Image], rounds: int) -> list[list[float]]:
    """The milliseconds of all calls of each network, after two untimed calls."""
    networks = [nas_transfer.load(run) for run in runs]
    for network in networks:
        for _ in range(2):
            network.predict(images[0])
    milliseconds: list[list[float]] = [[] for _ in runs]
    order = list(range(len(runs)))
    shuffled = random.Random(0)
    for _ in range(rounds):
        for image in images:
            shuffled.shuffle(order)
            for index in order:
                start = time.perf_counter()
                networks[index].predict(image)
                milliseconds[index].append(1000 * (time.perf_counter() - start))
    return milliseconds


if __name__ == "__main__":
    main()
