"""Compare what ranks subnets of one whole network early with their scores after a long training.

    python scripts/rank_repair.py RUN ...     finished runs of stage=proxy, one for each seed

Each search must have proxy.rungs=[0,...,STEPS] with proxy.keep=1 and search.sampler.damage=true. For each run, a table
has Kendall's tau of the damage, of the MACs and of the score after each rung against the score after the last one, with
bootstrap intervals, over all archs and over those at the largest input size alone. With several runs, the last table
has the mean over runs, with a Student's t interval. MACs are those of the number of classes that stage=profile assumes.
Command for a drawn task: scripts/rank_repair.sh.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nas_transfer.api.running import composed
from nas_transfer.arch import Arch
from nas_transfer.runs import Outcome, files, read_damage, read_outcome
from nas_transfer.search.damage import ArchDamage, fit_additive
from nas_transfer.search.statistics import paired_difference, rank_quality
from nas_transfer.stages.common.build import build_blank
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import PredictConfig
from nas_transfer.stages.config.trained import with_trained_groups
from nas_transfer.tasks.task import Task

UNTRAINED = "untrained score"
ALL = "all"

Estimates = Mapping[str, Mapping[Arch, float]]


def task_of(run: Path) -> Task:
    """The task of a run, without weights."""
    cfg = composed(["stage=predict"])
    cfg.weights, cfg.images = str(run), "-"
    config = read_config(with_trained_groups(cfg), PredictConfig)
    return build_blank(config, config.supernet.build())


def scores_of(outcomes: Sequence[Outcome | None], task: Task) -> dict[Arch, float]:
    """The scores of all outcomes that have one, without those of trials that were dropped between rungs."""
    return {
        task.space.from_dict(outcome.arch): outcome.metrics[task.score_key]
        for outcome in outcomes
        if outcome is not None and outcome.reason is None and task.score_key in outcome.metrics
    }


def early_scores(run: Path, task: Task) -> dict[str, dict[Arch, float]]:
    """The scores after each rung but the last, by a name of the rung, shortest training first."""
    steps = sorted({int(path.name.split(".")[1]) for path in (run / files.RUNGS_FOLDER).glob("*.*.json")})
    by_steps = {step: scores_of([read_outcome(path) for path in files.rung_files(run, step).values()], task)
                for step in steps[:-1]}  # fmt: skip
    return {f"score after {step} steps" if step else UNTRAINED: scores for step, scores in by_steps.items()}


def taus_of(run: Path) -> dict[tuple[str, str], float]:
    """Print the tables of a run. Returns Kendall's tau of each estimate over each group of archs."""
    task, table = task_of(run), read_damage(run)
    if table is None:
        raise SystemExit(f"{run / files.DAMAGE} does not exist: search with search.sampler.damage=true")
    early = early_scores(run, task)
    trained = scores_of([read_outcome(path) for path in files.trial_files(run)], task)
    archs = [arch for arch in trained if all(arch in scores for scores in early.values())]
    if UNTRAINED not in early or len(archs) < 3:
        raise SystemExit(f"{run} must have proxy.rungs=[0,...,STEPS] with proxy.keep=1 and at least three trials")
    damages = dict(zip(archs, ArchDamage(task.space, table)(archs).tolist(), strict=True))
    features = dict(zip(archs, (-ArchDamage(task.space, table, "features")(archs)).tolist(), strict=True))
    macs = dict(zip(archs, task.cost_totals(archs).macs.tolist(), strict=True))
    line = fit_additive(np.asarray(list(damages.values())), np.asarray([early[UNTRAINED][arch] for arch in archs]))
    print(f"\n{run}: damages of {len(table.choices)} choices in {table.seconds:.0f} s")
    print(f"untrained score = {100 * line.whole:.1f} % - {100 * line.factor:.2f} points x damage\n")
    print(f"| arch | M MACs | damage | {' | '.join(early)} | trained |\n|{' --- |' * (4 + len(early))}")
    for arch in sorted(archs, key=lambda one: -macs[one]):
        scores = " | ".join(f"{100 * scores[arch]:.1f} %" for scores in [*early.values(), trained])
        print(f"| {arch.short_id()} | {macs[arch] / 1e6:.1f} | {damages[arch]:.3f} | {scores} |")
    estimates = {
        "damage": {arch: -damage for arch, damage in damages.items()}, "damage of features": features,
        **early, "MACs": macs,
    }  # fmt: skip
    full_size = [arch for arch in archs if task.input_size(arch) == task.input_size(task.space.largest())]
    print("\n| archs | estimate | Kendall's tau | 95 % interval | number |\n| --- | --- | --- | --- | --- |")
    return {**rows_of(ALL, archs, estimates, trained), **rows_of("largest input", full_size, estimates, trained)}


def rows_of(
    title: str, archs: Sequence[Arch], estimates: Estimates, trained: Mapping[Arch, float]
) -> dict[tuple[str, str], float]:
    """Print a row for each estimate; none for fewer than three archs. Returns Kendall's taus."""
    taus: dict[tuple[str, str], float] = {}
    if len(archs) < 3:
        return taus
    scores = np.asarray([trained[arch] for arch in archs])
    for name, values in estimates.items():
        found = rank_quality(scores, np.asarray([values[arch] for arch in archs]), 0)
        taus[title, name] = found.tau
        print(f"| {title} | {name} | {found.tau:.2f} | {found.low:.2f} to {found.high:.2f} | {found.count} |")
    return taus


def main() -> None:
    """Print the tables of each run, and the means over runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    runs = [taus_of(run) for run in parser.parse_args().runs]
    if len(runs) < 2:
        return
    print("\n| archs | estimate | Kendall's tau of each run | mean | 95 % interval |\n| --- | --- | --- | --- | --- |")
    for title, name in [key for key in runs[0] if all(key in taus for taus in runs)]:
        taus = [run[title, name] for run in runs]
        mean = paired_difference(taus, [0.0] * len(taus))
        each = " ".join(f"{tau:.2f}" for tau in taus)
        print(f"| {title} | {name} | {each} | {mean.mean:.2f} | {mean.low:.2f} to {mean.high:.2f} |")


if __name__ == "__main__":
    main()
