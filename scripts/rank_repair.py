"""Compare what ranks subnets of one whole network before they are trained with their scores after a training.

    python scripts/rank_repair.py RUN                 a finished stage=proxy with proxy.rungs=[0,STEPS] proxy.keep=1
    python scripts/rank_repair.py RUN TRAINED ...     a finished search, and the run folders of trained networks

The search must have measured the damages of its choices (sampler=predicted_front or objective=[damage,macs]). The table
has Kendall's tau of the damage, of the untrained repaired score and of the MACs against the score after the training,
each with a bootstrap interval, over all archs and over those at the largest input size alone. MACs are those of the
number of classes that stage=profile assumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nas_transfer.api.running import composed
from nas_transfer.arch import Arch
from nas_transfer.runs import Outcome, files, read_damage, read_outcome, read_result
from nas_transfer.search.damage import ArchDamage, fit_additive
from nas_transfer.search.statistics import rank_quality
from nas_transfer.stages.common.build import build_blank
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import PredictConfig
from nas_transfer.stages.config.trained import with_trained_groups
from nas_transfer.tasks.task import Task

UNTRAINED = 0


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


def trained_scores(run: Path, trained: Sequence[Path], task: Task) -> dict[Arch, float]:
    """The scores after a training: of trained networks, or of the trials of a proxy search."""
    if not trained:
        return scores_of([read_outcome(path) for path in files.trial_files(run)], task)
    scores = {}
    for folder in trained:
        result = read_result(folder)
        if result is None or result.arch is None or result.score is None:
            raise SystemExit(f"{folder} must be the folder of a finished training of one arch, got none")
        scores[task.space.from_dict(result.arch)] = result.score
    return scores


def untrained_scores(run: Path, task: Task) -> dict[Arch, float]:
    """The scores of a search, or of the first rung of a proxy search."""
    trials = files.trial_files(run)
    rungs = [read_outcome(run / files.rung_file(int(path.stem), UNTRAINED)) for path in trials]
    if any(outcome is not None for outcome in rungs):
        return scores_of(rungs, task)
    return scores_of([read_outcome(path) for path in trials], task)


def rows_of(
    title: str, archs: Sequence[Arch], estimates: Mapping[str, Mapping[Arch, float]], trained: Mapping[Arch, float]
) -> list[str]:
    """A row of the table for each estimate; none for fewer than three archs."""
    if len(archs) < 3:
        return []
    scores = np.asarray([trained[arch] for arch in archs])
    rows = []
    for name, values in estimates.items():
        quality = rank_quality(scores, np.asarray([values[arch] for arch in archs]), 0)
        rows.append(
            f"| {title} | {name} | {quality.tau:.2f} | {quality.low:.2f} to {quality.high:.2f} | {quality.count} |"
        )
    return rows


def main() -> None:
    """Print the table and the archs behind it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("trained", type=Path, nargs="*")
    options = parser.parse_args()
    task, table = task_of(options.run), read_damage(options.run)
    if table is None:
        raise SystemExit(f"{options.run / files.DAMAGE} does not exist: search with sampler=predicted_front")
    untrained = untrained_scores(options.run, task)
    trained = trained_scores(options.run, options.trained, task)
    archs = [arch for arch in untrained if arch in trained]
    damages = dict(zip(archs, ArchDamage(task.space, table)(archs).tolist(), strict=True))
    features = dict(zip(archs, (-ArchDamage(task.space, table, "features")(archs)).tolist(), strict=True))
    macs = dict(zip(archs, task.cost_totals(archs).macs.tolist(), strict=True))
    line = fit_additive(np.asarray(list(damages.values())), np.asarray([untrained[arch] for arch in archs]))
    print(f"damages of {len(table.choices)} choices in {table.seconds:.0f} s")
    print(f"untrained score = {100 * line.whole:.1f} % - {100 * line.factor:.2f} points x damage\n")
    print("| arch | M MACs | damage | untrained | trained |\n| --- | --- | --- | --- | --- |")
    for arch in sorted(archs, key=lambda one: -macs[one]):
        print(f"| {arch.short_id()} | {macs[arch] / 1e6:.1f} | {damages[arch]:.3f} | {100 * untrained[arch]:.1f} % | "
              f"{100 * trained[arch]:.1f} % |")  # fmt: skip
    estimates = {
        "damage": {arch: -damage for arch, damage in damages.items()}, "damage of features": features,
        "untrained score": untrained, "MACs": macs,
    }  # fmt: skip
    full_size = [arch for arch in archs if task.input_size(arch) == task.input_size(task.space.largest())]
    print("\n| archs | estimate | Kendall's tau | 95 % interval | number |\n| --- | --- | --- | --- | --- |")
    print(
        "\n".join(rows_of("all", archs, estimates, trained) + rows_of("largest input", full_size, estimates, trained))
    )


if __name__ == "__main__":
    main()
