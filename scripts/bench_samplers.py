"""Compare samplers by hypervolume on synthetic accuracy surfaces.

    python scripts/bench_samplers.py [--trials 1000] [--ask-batch 50] [--seeds 5] [--samplers NAME ...]
    python scripts/bench_samplers.py --surfaces pairwise deep noise few --trials 50 100 200 --ask-batch 10 --yardstick 1

The space is `bignas`. The two objectives are a surface, by default that below (maximised), and the multiply-accumulates
of an arch at its resolution (minimised). x_g in 0-1 is the position of the value of gene g among its choices, and the
weights are fixed draws from numpy's default_rng(0):

    gain  = sum_g w_g (1 - exp(-2 x_g)) / (1 - exp(-2))                      diminishing returns of each gene
          + sum_s v_s x_depth(s) x_expand(s)                                 depth pays in expanded stages
          + 0.5 sum_s u_s x_kernel(s) x_resolution                           large kernels pay on large images
          - 0.6 sum_s t_s (x_width(s) - x_width(s+1))^2                      unequal widths of neighbours cost
    accuracy = 0.60 + 0.25 (1 - exp(-2.5 gain / gain(all x = 1)))

The other surfaces do not suit a regression on pairs of genes:

    deep        30 products of the positions of 3 to 6 genes, half of them harmful, each position turned around with
                probability 1/2, on top of the single genes
    noise       pairwise, but the sampler is told values with normal noise of 0.01; the hypervolume is that of true ones
    few         pairwise, but the sampler is told values rounded to hundredths, as those of 100 images are

The hypervolume is taken below the reference point (accuracy 0.60, 2000 M) and stated as a share of the box up to
accuracy 0.85 and 0 M, relative to a yardstick: the best share that the default sampler reaches in `--long` evaluations.
All samplers get the same batches and, as in a search, the smallest and the largest arch first. The interactions of the
surface are pairwise, like those of the regression in the default sampler. With "screen=1", the default sampler runs
without the regression. "qnehvi" is that of BoTorch; it needs botorch and optuna-integration.
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

from nas_transfer.arch import Arch
from nas_transfer.paths import conf_dir
from nas_transfer.search.front import share_of_hypervolume
from nas_transfer.search.problem import Costs, Problem
from nas_transfer.search.samplers.base import ArchSampler, History, arch_of, ask
from nas_transfer.supernet.mbconv.table import MBConvTable

BASE, RANGE, LARGEST_MACS = 0.60, 0.25, 2000e6
SURFACES = ("pairwise", "deep", "noise", "few")
NOISE, LEVELS = 0.01, 100
NUM_DEEP, DEEP_GENES = 30, (3, 6)
QNEHVI = """
attempts: 2
build:
  _target_: optuna_integration.BoTorchSampler
  candidates_func: {_target_: hydra.utils.get_method, path: optuna_integration.botorch.qnehvi_candidates_func}
"""
"""What makes `gp` of conf/sampler the noisy expected hypervolume improvement of BoTorch (Daulton et al. 2021)."""
SAMPLERS = ("random", "evolution", "nsga2", "tpe", "pareto_evolution screen=1", "pareto_evolution")


class Surface:
    """The synthetic accuracy of an arch, and its cost; `kind` is one of `SURFACES`."""

    def __init__(self, table: MBConvTable, kind: str = "pairwise") -> None:
        self.table, self.space, self.kind = table, table.space, kind
        rng = np.random.default_rng(0)
        count = len(self.space.genes)
        stages = [stage.name for stage in table.stages]
        self.single = rng.uniform(0.2, 1.0, count)
        self.pairs = {name: rng.uniform(0.5, 2.0, len(stages)) for name in ("depth", "kernel", "width")}
        index = {name: position for position, name in enumerate(self.space.names)}
        self.depth, self.expand, self.kernel, self.width = (
            np.array([index[f"{group}.{stage}"] for stage in stages])
            for group in ("depth", "expand_ratio", "kernel_size", "width")
        )
        self.resolution = index["resolution"]
        self.scale = np.array([max(1, len(gene.choices) - 1) for gene in self.space.genes])
        self.deep = [_product(rng, count, sign) for sign in (-1, 1) for _ in range(NUM_DEEP // 2)]
        self.top = float(self.gain(np.ones((1, count)))[0]) if kind != "deep" else self._largest_gain(rng, count)

    def gain(self, x: np.ndarray) -> np.ndarray:
        """The gain (N,) of positions x (N, G)."""
        single = ((1 - np.exp(-2 * x)) / (1 - np.exp(-2)) * self.single).sum(1)
        if self.kind == "deep":
            return single + sum(
                weight * np.where(turned, 1 - x[:, genes], x[:, genes]).prod(1) for weight, genes, turned in self.deep
            )
        deep = (self.pairs["depth"] * x[:, self.depth] * x[:, self.expand]).sum(1)
        sharp = 0.5 * (self.pairs["kernel"] * x[:, self.kernel] * x[:, [self.resolution]]).sum(1)
        uneven = 0.6 * (self.pairs["width"][:-1] * np.square(np.diff(x[:, self.width], axis=1))).sum(1)
        return single + deep + sharp - uneven

    def _largest_gain(self, rng: np.random.Generator, count: int) -> float:
        """The largest gain of many positions drawn at random, the corners of the space among them."""
        return float(
            self.gain(np.concatenate([rng.random((20_000, count)), rng.integers(0, 2, (20_000, count))])).max()
        )

    def told(self, archs: Sequence[Arch]) -> np.ndarray:
        """The minimised objectives (N, 2) as a sampler sees them."""
        points = self.points(archs)
        if self.kind == "noise":
            draws = [np.random.default_rng([1, *arch.values]).normal(0, NOISE) for arch in archs]
            points[:, 0] += draws
        if self.kind == "few":
            points[:, 0] = np.round(points[:, 0] * LEVELS) / LEVELS
        return points

    def points(self, archs: Sequence[Arch]) -> np.ndarray:
        """The minimised objectives of archs: (N, 2), minus accuracy and MACs."""
        x = np.array([self.space.encode(arch) for arch in archs]) / self.scale
        accuracy = BASE + RANGE * (1 - np.exp(-2.5 * self.gain(x) / self.top))
        return np.stack([-accuracy, self.costs(archs)["macs"]], 1)

    def costs(self, archs: Sequence[Arch]) -> Costs:
        """The costs that are known without an evaluation."""
        sizes = [(arch["resolution"], arch["resolution"]) for arch in archs]
        return {"macs": self.table.body_totals(archs, sizes).macs.astype(np.float64)}


def _product(rng: np.random.Generator, count: int, sign: int) -> tuple[float, np.ndarray, np.ndarray]:
    """A weight, genes, and whether the position of each is turned around."""
    genes = rng.choice(count, rng.integers(DEEP_GENES[0], DEEP_GENES[1] + 1), replace=False)
    return sign * rng.uniform(1.0, 4.0), genes, rng.random(len(genes)) < 0.5


def share(points: np.ndarray) -> float:
    """The hypervolume of points (N, 2) as a share of the box."""
    return share_of_hypervolume(points, np.array([-BASE - RANGE, 0.0]), np.array([-BASE, LARGEST_MACS]))


def through_optuna(surface: Surface, sampler: ArchSampler, trials: int, batch: int) -> np.ndarray:
    """Run a study as a search does, and return the points of all trials."""
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    points = []
    for start in range(0, trials, batch):
        asked = [ask(study, surface.space) for _ in range(min(batch, trials - start))]
        archs = [arch_of(surface.space, trial.params) for trial in asked]
        for trial, value in zip(asked, surface.told(archs), strict=True):
            study.tell(trial, value.tolist())
        points.append(surface.points(archs))
    return np.concatenate(points)


def alone(surface: Surface, sampler: ArchSampler, trials: int, batch: int) -> np.ndarray:
    """Run a sampler without an Optuna study, which is slow with 20,000 trials, and return the points of all trials."""
    history = History()
    points = []
    for start in range(0, trials, batch):
        archs = []
        for number in range(start, min(trials, start + batch)):
            archs.append(sampler.next_arch(history, number))
            history.ask(archs[-1])
        for arch, value in zip(archs, surface.told(archs), strict=True):
            history.add(arch, value.tolist())
        points.append(surface.points(archs))
    return np.concatenate(points)


def build(title: str, surface: Surface, seed: int) -> ArchSampler:
    """Build a sampler from its name in conf/sampler and its options, such as "pareto_evolution screen=1"."""
    name, *overrides = title.split()
    is_qnehvi = name == "qnehvi"
    cfg = OmegaConf.load(conf_dir() / "sampler" / f"{'gp' if is_qnehvi else name}.yaml")
    if is_qnehvi:
        del cfg.build.warn_independent_sampling  # a setting of Optuna's own process
    cfg = OmegaConf.merge(cfg, OmegaConf.create(QNEHVI if is_qnehvi else {}), OmegaConf.from_dotlist(overrides))
    problem = Problem(surface.space, costs=surface.costs, known=lambda archs: {1: surface.costs(archs)["macs"]})
    return instantiate(cfg)(problem=problem, seed=seed)


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--surfaces", nargs="+", default=["pairwise"], choices=SURFACES)
    parser.add_argument(
        "--trials", type=int, nargs="+", default=[1000], help="evaluations after which shares are printed"
    )
    parser.add_argument("--long", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ask-batch", type=int, default=50)
    parser.add_argument(
        "--yardstick", type=float, help="the yardstick of an earlier run, since it takes minutes to compute"
    )
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = instantiate(OmegaConf.load(conf_dir() / "supernet" / "bignas.yaml"))
    for kind in options.surfaces:
        compare(Surface(table, kind), options)


def compare(surface: Surface, options: argparse.Namespace) -> None:
    """Print the shares of all samplers on one surface."""
    yardstick = options.yardstick or max(
        share(alone(surface, build("pareto_evolution", surface, seed), options.long, options.ask_batch))
        for seed in range(options.seeds)
    )
    print(
        f"{surface.kind}: yardstick, pareto_evolution after {options.long} evaluations, best of {options.seeds} seeds: "
        f"{yardstick:.5f}"
        if options.yardstick is None
        else f"{surface.kind}: yardstick {yardstick:.5f}"
    )
    longest = max(options.trials)
    print(f"shares of the yardstick in batches of {options.ask_batch}: mean, seeds")
    for name in options.samplers:
        run: Callable[..., np.ndarray] = partial(through_optuna, surface)
        start = time.perf_counter()
        points = [run(build(name, surface, seed), longest, options.ask_batch) for seed in range(options.seeds)]
        seconds = (time.perf_counter() - start) / options.seeds / longest
        for trials in options.trials:
            shares = [share(each[:trials]) / yardstick for each in points]
            by_seed = " ".join(f"{value:.4f}" for value in shares)
            print(
                f"{name:<26} {trials:5d}  {np.mean(shares):.4f}   {by_seed}   {1000 * seconds:6.1f} ms/trial",
                flush=True,
            )


if __name__ == "__main__":
    main()
