"""Samplers compared by hypervolume on a made-up accuracy surface: python scripts/bench_samplers.py

The space is `bignas`, the two objectives are the surface below (maximised) and the true multiply-accumulates at each
arch's own resolution (minimised). With x_g in 0-1 for the place of gene g's value among its choices and fixed weights
from numpy's default_rng(0):

    gain  = sum_g w_g (1 - exp(-2 x_g)) / (1 - exp(-2))                      diminishing returns of every gene
          + sum_s v_s x_depth(s) x_expand(s)                                 depth pays where a stage is expanded
          + 0.5 sum_s u_s x_kernel(s) x_resolution                           large kernels pay on large images
          - 0.6 sum_s t_s (x_width(s) - x_width(s+1))^2                      neighbouring widths want to agree
    accuracy = 0.60 + 0.25 (1 - exp(-2.5 gain / gain(all x = 1)))

The hypervolume is taken below the reference point (accuracy 0.60, 2000 M) and given as a share of the box up to
accuracy 0.85 and 0 M. All samplers get the same batches of `--ask-batch` and, as in a search, the smallest and the
largest arch first. The yardstick is the best that the default sampler reaches in `--long` evaluations. The interactions
of the surface are pairwise, as those of the default sampler's regression: "screen=1" is that sampler without it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import optuna
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from nas_transfer.paths import conf_dir
from nas_transfer.search.front import share_of_hypervolume
from nas_transfer.search.problem import Costs, Problem
from nas_transfer.search.samplers.base import ArchSampler, History, arch_of, ask
from nas_transfer.space import Arch
from nas_transfer.supernet.mbconv.table import MBConvTable

BASE, RANGE, LARGEST_MACS = 0.60, 0.25, 2000e6
SAMPLERS = ("random", "evolution", "nsga2", "tpe", "pareto_evolution screen=1", "pareto_evolution")


class Surface:
    """The made-up accuracy of an arch, and its true cost."""

    def __init__(self, table: MBConvTable) -> None:
        self.table, self.space = table, table.space
        rng = np.random.default_rng(0)
        count = len(self.space.genes)
        stages = [stage.name for stage in table.stages]
        self.single = rng.uniform(0.2, 1.0, count)
        self.pairs = {name: rng.uniform(0.5, 2.0, len(stages)) for name in ("depth", "kernel", "width")}
        place = {name: k for k, name in enumerate(self.space.names)}
        self.depth, self.expand, self.kernel, self.width = (
            np.array([place[f"{group}.{stage}"] for stage in stages])
            for group in ("depth", "expand_ratio", "kernel_size", "width")
        )
        self.resolution = place["resolution"]
        self.scale = np.array([max(1, len(gene.choices) - 1) for gene in self.space.genes])
        self.top = float(self.gain(np.ones((1, count)))[0])

    def gain(self, x: np.ndarray) -> np.ndarray:
        single = ((1 - np.exp(-2 * x)) / (1 - np.exp(-2)) * self.single).sum(1)
        deep = (self.pairs["depth"] * x[:, self.depth] * x[:, self.expand]).sum(1)
        sharp = 0.5 * (self.pairs["kernel"] * x[:, self.kernel] * x[:, [self.resolution]]).sum(1)
        uneven = 0.6 * (self.pairs["width"][:-1] * np.square(np.diff(x[:, self.width], axis=1))).sum(1)
        return single + deep + sharp - uneven

    def points(self, archs: Sequence[Arch]) -> np.ndarray:
        """(N, 2): minus accuracy, MACs."""
        x = np.array([self.space.encode(arch) for arch in archs]) / self.scale
        accuracy = BASE + RANGE * (1 - np.exp(-2.5 * self.gain(x) / self.top))
        return np.stack([-accuracy, self.costs(archs)["macs"]], 1)

    def costs(self, archs: Sequence[Arch]) -> Costs:
        """What is known without an evaluation."""
        sizes = [(arch["resolution"], arch["resolution"]) for arch in archs]
        return {"macs": self.table.body_totals(archs, sizes).macs.astype(np.float64)}


def share(points: np.ndarray) -> float:
    return share_of_hypervolume(points, np.array([-BASE - RANGE, 0.0]), np.array([-BASE, LARGEST_MACS]))


def through_optuna(surface: Surface, sampler: ArchSampler, trials: int, batch: int) -> np.ndarray:
    """All points that a study asks for, as a search asks them."""
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    points = []
    for start in range(0, trials, batch):
        asked = [ask(study, surface.space) for _ in range(min(batch, trials - start))]
        values = surface.points([arch_of(surface.space, trial.params) for trial in asked])
        for trial, value in zip(asked, values, strict=True):
            study.tell(trial, value.tolist())
        points.append(values)
    return np.concatenate(points)


def alone(surface: Surface, sampler: ArchSampler, trials: int, batch: int) -> np.ndarray:
    """The same without Optuna's bookkeeping, which takes long with 20,000 trials."""
    history = History()
    points = []
    for start in range(0, trials, batch):
        archs = []
        for number in range(start, min(trials, start + batch)):
            archs.append(sampler.next_arch(history, number))
            history.ask(archs[-1])
        values = surface.points(archs)
        for arch, value in zip(archs, values, strict=True):
            history.add(arch, value.tolist())
        points.append(values)
    return np.concatenate(points)


def build(title: str, surface: Surface, seed: int) -> ArchSampler:
    """A sampler from its name in conf/sampler and options: "pareto_evolution screen=1"."""
    name, *overrides = title.split()
    cfg = OmegaConf.load(conf_dir() / "sampler" / f"{name}.yaml")
    cfg = OmegaConf.merge(cfg, OmegaConf.from_dotlist(overrides))
    problem = Problem(surface.space, costs=surface.costs, known=lambda archs: {1: surface.costs(archs)["macs"]})
    return instantiate(cfg)(problem=problem, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--long", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ask-batch", type=int, default=50)
    parser.add_argument("--yardstick", type=float, help="an earlier run's, which takes minutes to compute")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    surface = Surface(instantiate(OmegaConf.load(conf_dir() / "supernet" / "bignas.yaml")))
    yardstick = options.yardstick or max(
        share(alone(surface, build("pareto_evolution", surface, seed), options.long, options.ask_batch))
        for seed in range(options.seeds)
    )
    print(
        f"hypervolume after {options.long} evaluations of pareto_evolution, best of {options.seeds} seeds: "
        f"{yardstick:.5f}"
    )
    print(f"after {options.trials} evaluations in batches of {options.ask_batch}, as a share of it, by seed:")
    for name in options.samplers:
        run: Callable[..., np.ndarray] = partial(through_optuna, surface)
        start = time.perf_counter()
        found = [
            share(run(build(name, surface, seed), options.trials, options.ask_batch)) / yardstick
            for seed in range(options.seeds)
        ]
        seconds = (time.perf_counter() - start) / options.seeds / options.trials
        shown = " ".join(f"{value:.4f}" for value in found)
        print(f"{name:<26} {np.mean(found):.4f}   {shown}   {1000 * seconds:6.1f} ms/trial", flush=True)


if __name__ == "__main__":
    main()
