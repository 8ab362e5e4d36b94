"""How many calibration images a trial needs: scores and ranks of archs against those of many images.

    python scripts/bench_calibration.py [--counts 32 64 128 256 512] [--reference 2000] [--archs 16] [--draws 3]
        task=shapes_cls weights=RUN ...

Archs of a supernet, drawn at random, with the smallest and the largest among them, are scored on the search split after
their BatchNorm statistics were measured on more and more images of train. The keys are those of `stage=search`. The
reference has as many images as `--reference`, or all of train, from a draw of its own. Printed for each count, as means
over draws of the images, the worst draw in parentheses:

    tau         Kendall's tau of the scores against those of the reference, over all archs
    points      mean distance of a score from that of the reference, in points
    seconds     for the statistics and the score of an arch

The last row is the reference with other images, that is, chance alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nas_transfer.api.running import composed
from nas_transfer.arch import Arch
from nas_transfer.runs import Evaluation
from nas_transfer.search.evaluate import TrialEvaluator
from nas_transfer.search.statistics import kendall_tau
from nas_transfer.stages.common.candidates import build_evaluator
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import SearchConfig


def main() -> None:
    """Score the archs after each number of images, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--reference", type=int, default=2000, help="images of the reference")
    parser.add_argument("--archs", type=int, default=16)
    parser.add_argument("--draws", type=int, default=3, help="draws of the images of each count")
    parser.add_argument("keys", nargs="*", help="of stage=search")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        print("| images | tau | points | seconds |\n| --- | --- | --- | --- |")
        for row in rows(options, Path(folder)):
            print(row, flush=True)


def rows(options: argparse.Namespace, folder: Path) -> Iterable[str]:
    """The rows of the table, the reference last."""
    search = ["stage=search", "num_threads=1", *options.keys, f"run_dir={folder}"]
    settings = {count: read_config(composed([*search, f"calibration_images={count}"]), SearchConfig)
                for count in (*options.counts, options.reference)}  # fmt: skip
    of_reference = build_evaluator(settings[options.reference])
    if of_reference.repair is not None:
        raise SystemExit("bench_calibration.py needs the weights of a supernet: repaired subnets measure no statistics")
    space, rng = of_reference.supernet.space, np.random.default_rng(0)
    archs = [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(options.archs - 2))]
    expected, _ = scored(of_reference, archs, 0)
    for count, config in settings.items():
        evaluator = of_reference if count == options.reference else build_evaluator(config)
        taus, distances, seconds = [], [], []
        for draw in range(1, options.draws + 1):
            scores, times = scored(evaluator, archs, draw)
            taus.append(kendall_tau(expected, scores))
            distances.append(100 * float(np.abs(scores - expected).mean()))
            seconds.append(statistics.mean(times))
        yield (
            f"| {count} | {statistics.mean(taus):.3f} ({min(taus):.3f}) | "
            f"{statistics.mean(distances):.2f} ({max(distances):.2f}) | {statistics.mean(seconds):.2f} |"
        )


def scored(evaluator: TrialEvaluator, archs: list[Arch], draw: int) -> tuple[np.ndarray, list[float]]:
    """Scores (N,) and seconds of archs after statistics on one draw of the images."""
    scores, seconds = [], []
    for number, arch in enumerate(archs):
        start = time.process_time()
        outcome = evaluator.evaluate(Evaluation(number, arch.to_dict(), repeat=draw))
        seconds.append(time.process_time() - start)
        if outcome.reason is not None:
            raise SystemExit(f"arch {arch.short_id()} has no score: {outcome.reason}")
        scores.append(outcome.metrics[evaluator.supernet.score_key])
    return np.asarray(scores), seconds


if __name__ == "__main__":
    main()
