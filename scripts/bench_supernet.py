"""Compare the time of the archs of a supernet with that of the same archs as static channels_last networks.

    python scripts/bench_supernet.py [--task classification detection segmentation] [--archs 8] [--rounds 3]

For each task, batch size and input size, both sides run the smallest, the largest and some random archs on the same
images in training mode. They alternate in one process, so that changes in the speed of the machine affect both. An arch
of the supernet adds to gradients that the largest arch has left, as in a sandwich, and its time includes `set_arch`. A
sandwich is the largest, two random and the smallest arch, from empty gradients. The script prints the ratio supernet :
static of each arch, the median over the rounds, and with ``--operators`` the operators whose time differs most. With
one thread, the times are CPU times, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it, before torch is imported

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch.profiler import ProfilerActivity, profile

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.arch import SUPERNET, Arch
from nas_transfer.paths import conf_dir
from nas_transfer.stages.common.build import build_task, set_threads
from nas_transfer.stages.config.base import TaskRunConfig
from nas_transfer.stages.config.entry import read_config
from nas_transfer.tasks.task import Task

TASKS: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]] = {
    "classification": (("task=imagenet", "supernet.resolutions=[{size}]"), (4, 16), (96, 160)),
    "detection": (
        ("task=small_det", "weights=null", "task.build.genes.min_size=null", "task.build.detector.min_size={size}"),
        (1, 4),
        (128, 224),
    ),
    "segmentation": (
        ("task=small_seg", "weights=null", "task.build.genes.scale_percent=null", "data.crop_size=[{size},{size}]"),
        (2, 6),
        (96, 160),
    ),
}
"""The overrides of the configuration, the batch sizes and the input sizes of each task."""
CLASSES = {"classification": 1000, "detection": 20, "segmentation": 12}
NUM_OPERATORS = 12

Result = TypeVar("Result")
Seconds: TypeAlias = tuple[float, float]
"""Of the forward and of the backward pass."""


def main() -> None:
    """Run the comparison and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--supernet", default="bignas")
    parser.add_argument("--batch", nargs="+", type=int, help="batch sizes, instead of those of the task")
    parser.add_argument("--size", nargs="+", type=int, help="input sizes in pixels, instead of those of the task")
    parser.add_argument("--archs", type=int, default=8, help="number of random archs, at least 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--operators", action="store_true", help="print the operators whose time differs most")
    options = parser.parse_args()
    set_threads(options.threads)
    print(f"{options.supernet}, {options.threads} threads, torch {torch.__version__}; ratios supernet : static")
    print("| task | batch | pixels | pass | median | of the smallest, the largest and the random archs | sandwich |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    tables = []
    for name in options.task:
        overrides, batches, sizes = TASKS[name]
        for size in options.size or sizes:
            task = build(options.supernet, name, [value.format(size=size) for value in overrides])
            for batch_size in options.batch or batches:
                batch = make_batch(name, batch_size, size)
                comparison = Comparison(task, batch, options.archs)
                for row in comparison.rows(options.rounds):
                    print(f"| {name} | {batch_size} | {size} | {row}", flush=True)
                if options.operators:
                    tables.append((f"{name}, batch {batch_size}, {size} px", comparison.operators()))
    for title, lines in tables:
        print(f"\nMilliseconds of operators of all archs, {title}: supernet, static, difference")
        print("\n".join(lines))


def build(supernet: str, name: str, overrides: Sequence[str]) -> Task:
    """A task with the weights of a whole supernet, from random ones."""
    torch.manual_seed(0)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", [*overrides, f"supernet={supernet}", f"task.cost_classes={CLASSES[name]}"])
        config = read_config(composed, TaskRunConfig)
    return build_task(config, config.supernet.build(), SUPERNET, None).train()


def make_batch(name: str, count: int, size: int) -> Mapping[str, object]:
    """A training batch of random images (uint8) and labels."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    images = draw(256, count, 3, size, size).to(torch.uint8)
    if name == "classification":
        return {"images": images, "labels": draw(CLASSES[name], count)}
    if name == "segmentation":
        return {"images": list(images), "labels": list(draw(CLASSES[name], count, size, size))}
    corners = 0.5 * size * torch.rand(count, 6, 2, generator=generator)
    sides = 8 + 0.4 * size * torch.rand(count, 6, 2, generator=generator)
    targets = [
        {"boxes": torch.cat([corner, corner + side], 1), "labels": 1 + draw(CLASSES[name], 6)}
        for corner, side in zip(corners, sides, strict=True)
    ]
    return {"images": list(images), "targets": targets}


class Comparison:
    """The passes of some archs inside a supernet and as static networks, on one batch.

    Args:
        task: the supernet.
        batch: a training batch.
        num_random: number of random archs beside the smallest and the largest.
    """

    def __init__(self, task: Task, batch: Mapping[str, object], num_random: int) -> None:
        self.task, self.batch = task, batch
        self.clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        generator = np.random.default_rng(0)
        space = task.space
        self.archs = [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(num_random))]
        self.static = [task.extract(arch) for arch in self.archs]
        task.zero_grad(set_to_none=True)
        self.run(task, space.largest(), keep=True)

    def run(self, task: Task, arch: Arch | None, *, keep: bool) -> Seconds:
        """Time a forward and a backward pass.

        Args:
            arch: the arch to activate; None for a static network.
            keep: whether to add to the gradients of the pass before.
        """
        torch.manual_seed(0)  # proposals and dropout
        if not keep:
            task.zero_grad(set_to_none=True)
        start = self.clock()
        if arch is not None:
            task.set_arch(arch)
        losses, _ = task.losses(self.batch, regularise=False, teacher=None)
        loss = torch.stack(list(losses.values())).sum()
        forward = self.clock() - start
        loss.backward()
        return forward, self.clock() - start - forward

    def elastic_pass(self, index: int) -> Seconds:
        """A pass of an arch inside the supernet."""
        return self.run(self.task, self.archs[index], keep=True)

    def static_pass(self, index: int) -> Seconds:
        """A pass of an arch as a static network."""
        return self.run(self.static[index], None, keep=False)

    def sandwich(self, *, elastic: bool) -> float:
        """The seconds of the passes of a sandwich."""
        total = 0.0
        for position, index in enumerate((1, 2, 3, 0)):  # the largest, two random ones, the smallest
            if elastic:
                total += sum(self.run(self.task, self.archs[index], keep=position > 0))
            else:
                total += sum(self.static_pass(index))
        return total

    def rows(self, rounds: int) -> list[str]:
        """Time all archs and return the cells of the table, one row for each pass."""
        ratios = np.empty((rounds, len(self.archs), 2))
        sandwiches = np.empty(rounds)
        for number in range(-1, rounds):  # one round to warm up
            for index in range(len(self.archs)):
                pair = in_turn(number + index, partial(self.elastic_pass, index), partial(self.static_pass, index))
                elastic, static = (np.array([seconds[0], sum(seconds)]) for seconds in pair)
                ratios[number, index] = elastic / static
            whole = in_turn(number, partial(self.sandwich, elastic=True), partial(self.sandwich, elastic=False))
            sandwiches[number] = whole[0] / whole[1]
        rows = []
        for part, name in enumerate(("forward", "forward and backward")):
            archs = np.median(ratios[:, :, part], 0)
            cell = " ".join(f"{ratio:.2f}" for ratio in archs)
            whole_cell = f"{np.median(sandwiches):.2f} ({sandwiches.min():.2f} to {sandwiches.max():.2f})"
            rows.append(f"{name} | {np.median(archs):.3f} | {cell} | {whole_cell if part else ''} |")
        return rows

    def operators(self) -> list[str]:
        """The operators whose own time differs most between both sides, and the sums, in milliseconds."""
        sides = []
        for one_pass in (self.elastic_pass, self.static_pass):
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                for index in range(len(self.archs)):
                    one_pass(index)
            sides.append(
                {event.key: (event.self_cpu_time_total / 1e3, event.count) for event in profiler.key_averages()}
            )
        elastic, static = sides
        nothing = (0.0, 0)

        def difference(key: str) -> float:
            return elastic.get(key, nothing)[0] - static.get(key, nothing)[0]

        keys = sorted({*elastic, *static}, key=lambda key: -abs(difference(key)))[:NUM_OPERATORS]
        lines = []
        for key in keys:
            (one, count), (other, other_count) = elastic.get(key, nothing), static.get(key, nothing)
            lines.append(f"{key[:44]:44} {one:9.1f} ({count:5}) {other:9.1f} ({other_count:5}) {one - other:+9.1f}")
        totals = [sum(milliseconds for milliseconds, _ in side.values()) for side in sides]
        lines.append(f"{'all':44} {totals[0]:9.1f}         {totals[1]:9.1f}         {totals[0] - totals[1]:+9.1f}")
        return lines


def in_turn(number: int, first: Callable[[], Result], second: Callable[[], Result]) -> tuple[Result, Result]:
    """The results of two functions, of which the second is called first in every other round."""
    if number % 2:
        other = second()
        return first(), other
    return first(), second()


if __name__ == "__main__":
    main()
