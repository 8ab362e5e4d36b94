"""How many images racing saves, and what it costs, on recorded results of each image.

    python scripts/bench_racing.py --record FILE task=shapes_cls data.root=DIR weights=RUN ... [--trials 60]
    python scripts/bench_racing.py FILE [FILE ...] [--rates 0.01 0.05 0.1 0.2] [--orders 20] [--ask-batch 10]

`--record` evaluates archs of a supernet that are drawn at random, the smallest and the largest among them, on all
images of the search split, and writes what each did in each image into one file. All other arguments are those of
`python -m nas_transfer stage=search`.

Without `--record`, each file is searched anew without a network: its archs are asked in their order in batches, and
each races against the front before its batch, as in a search. That is repeated with other orders of the images and of
the archs. Printed by error rate, as means over the orders:

    saved       share of the images of all archs that were not scored
    dropped     share of the archs that were dropped
    wrong       share of the archs that were dropped although they score at least as much as their rival on all images:
                what the error rate bounds, of the archs that do
    lost        members of the front of all archs that were dropped
    regret      hypervolume lost, as a share of that of the front of all archs; the box ends at the largest cost

The next table gives the same for looks at other shares of the split, at the rate 0.05.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from hydra import compose, initialize_config_dir

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from nas_transfer.runs import Evaluation, Outcome
from nas_transfer.search import racing
from nas_transfer.search.front import share_of_hypervolume
from nas_transfer.search.pareto import non_dominated
from nas_transfer.stages.common.candidates import build_evaluator
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import SearchConfig
from nas_transfer.tasks.box_tally import BoxTally
from nas_transfer.tasks.tally import HitTally, PixelTally, Tally

KINDS: Mapping[str, type[Tally]] = {kind.__name__: kind for kind in (HitTally, PixelTally, BoxTally)}
SCHEDULES = ((1 / 2,), (1 / 4, 1 / 2), (1 / 8, 1 / 4, 1 / 2, 3 / 4), tuple(k / 16 for k in range(1, 16)))


@dataclass(frozen=True)
class Records:
    """What archs did in each image: their tallies, scores (N,) and costs (N,)."""

    tallies: Sequence[Tally]
    scores: np.ndarray
    costs: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """The minimised objectives (N, 2)."""
        return np.stack([-self.scores, self.costs], 1)

    def ordered(self, rng: np.random.Generator) -> Records:
        """The same with other orders of archs and of images, of which the first archs stay first."""
        archs = np.append([0, 1], 2 + rng.permutation(len(self.costs) - 2))
        images = rng.permutation(len(self.tallies[0].images))
        tallies = [reordered(self.tallies[index], images) for index in archs]
        return Records(tallies, self.scores[archs], self.costs[archs])


def reordered(tally: Tally, images: np.ndarray) -> Tally:
    """A tally of the same images in another order."""
    arrays = tally.arrays()
    if isinstance(tally, BoxTally):
        arrays["positions"] = np.argsort(images)[tally.positions]
        return tally.with_arrays({**arrays, "images": tally.images[images], "objects": tally.objects[images]})
    return tally.with_arrays({name: values[images] if values.ndim else values for name, values in arrays.items()})


def record(path: Path, overrides: Sequence[str], trials: int) -> None:
    """Evaluate random archs on all images, and write their tallies."""
    with TemporaryDirectory() as folder:
        common = ["stage=search", "search.race=0.5", f"run_dir={folder}", "objective=[score,macs]"]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("config", [*common, *overrides])
        evaluator = build_evaluator(read_config(cfg, SearchConfig))
        race, space = evaluator.race, evaluator.supernet.space
        assert race is not None
        rng = np.random.default_rng(0)
        archs = [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(trials - 2))]
        rows: list[Tally] = []
        keep = racing.Contest.finish

        def collect(contest: racing.Contest, task: object) -> None:
            rows.append(task.tally())  # type: ignore[attr-defined]

        racing.Contest.finish = collect  # type: ignore[method-assign,assignment]
        try:
            outcomes = [evaluator.evaluate(Evaluation(n, arch.to_dict(), rivals=())) for n, arch in enumerate(archs)]
        finally:
            racing.Contest.finish = keep  # type: ignore[method-assign]
    for outcome in outcomes:
        if outcome.reason is not None:
            raise SystemExit(f"trial {outcome.trial} has no values: {outcome.reason}")
    content = {f"{n}.{name}": values for n, tally in enumerate(rows) for name, values in tally.arrays().items()}
    costs = np.asarray([outcome.values["macs"] for outcome in outcomes])
    np.savez_compressed(path, kind=np.asarray(type(rows[0]).__name__), costs=costs, **content)
    print(f"{path}: {len(rows)} archs, {len(rows[0].images)} images")


def read(path: Path) -> Records:
    """The records of a file."""
    with np.load(path, allow_pickle=False) as content:
        kind, costs = KINDS[str(content["kind"])], content["costs"]
        parts: list[dict[str, np.ndarray]] = [{} for _ in costs]
        for key in content.files:
            number, _, name = key.partition(".")
            if name:
                parts[int(number)][name] = content[key]
    tallies = [kind(**{name: v if v.ndim else v.item() for name, v in part.items()}) for part in parts]
    return Records(tallies, np.asarray([tally.score for tally in tallies]), costs)


@dataclass(frozen=True)
class Result:
    """What racing did to one order of archs; shares, but for `lost`."""

    saved: float
    dropped: float
    wrong: float
    lost: float
    regret: float


def raced(records: Records, rate: float, shares: Sequence[float], batch: int, seed: int) -> Result:
    """Let archs race in batches; the first two, the smallest and the largest, are scored on all images."""
    images = len(records.tallies[0].images)
    looks = sorted({max(racing.LEAST_IMAGES, int(np.ceil(share * images))) for share in shares})
    looks = [look for look in looks if look < images]
    level, points = rate / max(1, len(looks)), records.points
    scored, alive = np.ones(len(points)), np.ones(len(points), dtype=bool)
    wrong = comparable = 0
    for start in range(0, len(points), batch):
        before = np.flatnonzero(alive[:start])
        front = before[non_dominated(points[before])] if len(before) else before
        outcomes = [Outcome(int(k), {}, {"score": records.scores[k], "macs": records.costs[k]}) for k in front]
        for arch in range(max(2, start), min(len(points), start + batch)):
            costs = {"macs": float(records.costs[arch])}
            rival = racing.rival_of(costs, outcomes, {"score": "maximize", "macs": "minimize"}, "score")
            if rival is None:
                continue
            is_as_good = records.scores[arch] >= records.scores[rival.trial]
            comparable += is_as_good
            for look in looks:
                mine, other = (records.tallies[index].part(0, look) for index in (arch, rival.trial))
                rng = np.random.default_rng([seed, look])
                if other.score > mine.score and mine.chance(other, level, rng) <= level:
                    scored[arch], alive[arch] = look / images, False
                    wrong += is_as_good
                    break
    whole = non_dominated(points)
    ideal, reference = np.asarray([-1.0, 0.0]), np.asarray([0.0, records.costs.max()])
    volumes = [share_of_hypervolume(part, ideal, reference) for part in (points, points[alive])]
    return Result(
        1 - scored.mean(), 1 - alive.mean(), wrong / max(1, comparable), float((whole & ~alive).sum()),
        1 - volumes[1] / volumes[0],
    )  # fmt: skip


def row(title: str, records: Records, rate: float, shares: Sequence[float], options: argparse.Namespace) -> None:
    """Print the means over the orders."""
    results = []
    for order in range(options.orders):
        ordered = records.ordered(np.random.default_rng(order))
        results.append(raced(ordered, rate, shares, options.ask_batch, order))
    saved, dropped, wrong, lost, regret = (
        np.mean([getattr(result, name) for result in results]) for name in Result.__dataclass_fields__
    )
    print(
        f"  {title:<26} {100 * saved:6.1f} % {100 * dropped:7.1f} % {100 * wrong:8.2f} % {lost:7.2f} "
        f"{100 * regret:9.3f} %",
        flush=True,
    )


def main() -> None:
    """Record results, or print the tables of recorded ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="recorded files; with --record arguments of stage=search")
    parser.add_argument("--record", type=Path, help="write this file")
    parser.add_argument("--trials", type=int, default=60, help="with --record: number of archs")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.05, 0.1, 0.2])
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--ask-batch", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.record is not None:
        record(options.record, options.files, options.trials)
        return
    head = f"{'saved':>8} {'dropped':>9} {'wrong':>10} {'lost':>7} {'regret':>11}"
    for path in map(Path, options.files):
        records = read(path)
        front = int(non_dominated(records.points).sum())
        print(
            f"{path.stem}: {len(records.costs)} archs, {len(records.tallies[0].images)} images, front {front}, scores "
            f"{records.scores.min():.3f} to {records.scores.max():.3f}, {options.orders} orders"
        )
        print(f"  {'error rate':<26} {head}")
        for rate in options.rates:
            row(f"{rate:g}", records, rate, racing.LOOKS, options)
        print(f"  {'looks, at the rate 0.05':<26} {head}")
        for shares in SCHEDULES:
            title = f"every {shares[0]:g}" if len(shares) > 4 else ", ".join(f"{share:g}" for share in shares)
            row(title, records, 0.05, shares, options)


if __name__ == "__main__":
    main()
