"""Compare predictors on the trials of finished searches.

    python scripts/bench_predictors.py RUN ...     runs of stage=search or stage=proxy

For each search, each predictor is fitted to four fifths of the trials and predicts the others, with three divisions.
The table has the mean over searches of Kendall's tau of the predictions of the first objective, and of the root of
their mean square error as a share of the standard deviation of the values. Searches with fewer than `--least` different
values are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rank_repair import task_of

from nas_transfer.runs import files, read_front, read_outcome
from nas_transfer.search.pareto import signs
from nas_transfer.search.predictors import PREDICTORS, cross_validated, features_of
from nas_transfer.search.statistics import kendall_tau, paired_difference

DIVISIONS = 3


def trials_of(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """The features (N, F) of the archs of a search, and the values (N,) of its first objective, minimised."""
    (name, direction), *_ = read_front(run).objectives.items()
    outcomes = [read_outcome(path) for path in files.trial_files(run)]
    scored = [outcome for outcome in outcomes if outcome is not None and outcome.reason is None]
    space = task_of(run).space
    archs = [space.from_dict(outcome.arch) for outcome in scored]
    values = np.asarray([outcome.values[name] for outcome in scored], dtype=np.float64)
    return features_of(space, archs), values * signs([direction])[0]


def qualities(features: np.ndarray, values: np.ndarray) -> dict[str, tuple[float, float]]:
    """Kendall's tau and the relative error of each predictor."""
    found = {}
    for name in PREDICTORS:
        predictions = [cross_validated(name, features, values, seed) for seed in range(DIVISIONS)]
        taus = [kendall_tau(values, predicted) for predicted in predictions]
        errors = [np.sqrt(np.square(values - predicted).mean()) / values.std() for predicted in predictions]
        found[name] = (float(np.mean(taus)), float(np.mean(errors)))
    return found


def main() -> None:
    """Print a table of all predictors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--least", type=int, default=20, help="smallest number of different values")
    options = parser.parse_args()
    torch.set_num_threads(1)
    searches = []
    for run in options.runs:
        features, values = trials_of(run)
        if len(np.unique(values)) < options.least:
            print(f"{run}: {len(np.unique(values))} different values in {len(values)} trials, left out")
            continue
        searches.append(qualities(features, values))
        each = ", ".join(f"{name} {tau:.2f} / {error:.2f}" for name, (tau, error) in searches[-1].items())
        print(f"{run}: {len(values)} trials, {each}", flush=True)
    if len(searches) < 2:
        raise SystemExit("a table of means needs at least two searches")
    print("\n| predictor | Kendall's tau | relative error | tau: gp - predictor |\n| --- | --- | --- | --- |")
    for name in PREDICTORS:
        tau, error = np.mean([search[name] for search in searches], axis=0)
        more = paired_difference([search["gp"][0] for search in searches], [search[name][0] for search in searches])
        print(f"| {name} | {tau:.3f} | {error:.3f} | {more.mean:+.3f} ({more.low:+.3f} to {more.high:+.3f}) |")


if __name__ == "__main__":
    main()
