"""Compare the time of a sandwich step of a supernet with that of the same four archs as static channels_last modules.

    python scripts/bench_supernet.py [--supernet bignas] [--batch 16] [--size 128] [--rounds 5] [--threads 2]

Both sides run forward and backward passes of the largest, two random and the smallest arch on the same images. They
alternate in one process, so that changes in the speed of the machine affect both. The script prints median seconds,
multiply-accumulates per second and the ratio of each round. A forward and a backward pass together count as three
forward passes. The script takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it, before torch is imported

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from nas_transfer.arch import Arch
from nas_transfer.paths import conf_dir
from nas_transfer.supernet.networks import build_body, build_classifier
from nas_transfer.supernet.ops import copy_slices
from nas_transfer.supernet.protocol import SupernetTable


def load_table(name: str) -> SupernetTable:
    """Build the table of a supernet in conf/supernet."""
    with initialize_config_dir(str(conf_dir() / "supernet"), version_base="1.3"):
        return instantiate(compose(name))


def sandwich_seconds(networks: list[tuple[nn.Module, nn.Module, Arch | None]], images: Tensor, labels: Tensor) -> float:
    """Time a forward and a backward pass of each (body, classifier, arch to activate or None)."""
    for body, classifier, _ in networks:
        body.zero_grad(set_to_none=True)
        classifier.zero_grad(set_to_none=True)
    start = time.perf_counter()
    for body, classifier, arch in networks:
        if arch is not None:
            body.set_arch(arch)  # type: ignore[operator]
            classifier.set_arch(arch)  # type: ignore[operator]
        nn.functional.cross_entropy(classifier(body(images)[-1]), labels).backward()
    return time.perf_counter() - start


def cut(supernet: nn.Module, subnet: nn.Module) -> nn.Module:
    """A plain subnet with the weights of the supernet."""
    copy_slices(supernet, subnet)
    return subnet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--supernet", default="bignas")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    table = load_table(options.supernet)
    generator = np.random.default_rng(0)
    space = table.space
    archs = [space.largest(), space.sample(generator), space.sample(generator), space.smallest()]
    body = build_body(table).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    classifier = build_classifier(table, 1000).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    elastic = [(body, classifier, arch) for arch in archs]
    static = [
        (cut(body, build_body(table, arch)), cut(classifier, build_classifier(table, 1000, arch)), None)
        for arch in archs
    ]
    images = torch.randn(options.batch, 3, options.size, options.size).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (options.batch,))
    size = (options.size, options.size)
    macs = sum(table.body_cost(arch, size).macs + table.classifier_cost(arch, size, 1000).macs for arch in archs)
    sandwich_seconds(elastic, images, labels), sandwich_seconds(static, images, labels)  # warm-up
    rounds = [
        (sandwich_seconds(elastic, images, labels), sandwich_seconds(static, images, labels))
        for _ in range(options.rounds)
    ]
    supernet, subnets = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = [elastic_seconds / static_seconds for elastic_seconds, static_seconds in rounds]
    total_macs = 3 * macs * options.batch
    print(
        f"{options.supernet}, batch {options.batch}, {options.size} px, {options.threads} threads, "
        f"torch {torch.__version__}"
    )
    print(f"{'':24}{'s/sandwich step':>16}{'GMAC/s':>9}")
    print(f"{'supernet':24}{supernet:16.3f}{total_macs / supernet / 1e9:9.1f}")
    print(f"{'four static subnets':24}{subnets:16.3f}{total_macs / subnets / 1e9:9.1f}")
    print(f"supernet / static: median {statistics.median(ratios):.3f}, rounds {' '.join(f'{r:.3f}' for r in ratios)}")


if __name__ == "__main__":
    main()
