"""Compare the fronts of finished searches of score against MACs in one box.

    python scripts/compare_fronts.py RUN RUN ...

Printed are, for each search, its trials, the images that its trials and their preparation saw, its best score, the
MACs of its front, and its hypervolume: the share that the front dominates of the box from score 0 to 1 and from no
MACs to the MACs of the costliest network on any of the fronts. The last column says how many points of the joint front
of all searches come from each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from nas_transfer.runs import read_front, read_result
from nas_transfer.search.front import share_of_hypervolume
from nas_transfer.search.pareto import non_dominated


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished searches")
    options = parser.parse_args()
    fronts = [
        np.asarray([[-trial.values["score"], trial.values["macs"]] for trial in read_front(run).trials])
        for run in options.runs
    ]
    reference = np.asarray([0.0, 1.001 * max(front[:, 1].max() for front in fronts)])
    joint = non_dominated(np.concatenate(fronts))
    kept = np.split(joint, np.cumsum([len(front) for front in fronts])[:-1])
    print("| search | trials | images | best score | M MACs | hypervolume | on the joint front |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for run, front, own in zip(options.runs, fronts, kept, strict=True):
        result = read_result(run)
        if result is None or result.search is None:
            parser.error(f"{run} holds no finished search")
        volume = share_of_hypervolume(front, np.asarray([-1.0, 0.0]), reference)
        print(
            f"| {run.name} | {result.search.trials} | {result.images_seen} | {-100 * front[:, 0].min():.1f} % "
            f"| {front[:, 1].min() / 1e6:.1f} to {front[:, 1].max() / 1e6:.1f} | {100 * volume:.1f} % "
            f"| {own.sum()} of {joint.sum()} |"
        )


if __name__ == "__main__":
    main()
