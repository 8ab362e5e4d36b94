"""Which trained net to take: every comparable net beside the whole network and its variants made by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nas_transfer.arch_files import LARGEST
from nas_transfer.report.collect import Run
from nas_transfer.report.inheritance import runs_by_digest
from nas_transfer.report.nets import Net, data_root, nets_by_data
from nas_transfer.report.studies import StudyRecord
from nas_transfer.runs import Ancestor, ArchContent, files
from nas_transfer.search.pareto import non_dominated
from nas_transfer.search.resizing import LEAST_GAIN, advantages

TOLERANCE = 0.01
"""How much less than the best score the recommended net may have: one point."""
WHOLE, RESIZED, NARROWED = "whole network", "whole network, smaller input", "whole network, narrower heads"
ROUTE_A, ROUTE_B, ROUTE_C = "route A", "route B", "route C"
REPAIRED, UNSEARCHED = "parts of the whole network", "given arch"
MACS, LATENCY = "macs", "latency_ms"


@dataclass(frozen=True)
class Candidate:
    """A trained net among those that a user can choose from.

    Attributes:
        net: the net.
        name: its run, told apart from the others.
        origin: where its arch comes from: one of the constants of this module.
        latency_ms: measured milliseconds by engine.
    """

    net: Net
    name: str
    origin: str
    latency_ms: Mapping[str, float]

    @property
    def is_baseline(self) -> bool:
        """Whether it is the whole network, at any input size or with narrower heads."""
        return self.origin in (WHOLE, RESIZED, NARROWED)

    @property
    def macs(self) -> float:
        """MACs of all parts."""
        return float(self.net.result.costs.macs["total"])

    @property
    def second(self) -> tuple[str, float] | None:
        """The task's second metric, which follows the score in its metrics."""
        key = self.net.result.score_key
        names = [name for name in self.net.result.metrics if name != key and "/" not in name]
        return (names[0], self.net.result.metrics[names[0]]) if names else None


@dataclass(frozen=True)
class Choice:
    """The comparable nets of one task and dataset, and the one to take.

    Attributes:
        candidates: by MACs, the cheapest first.
        pick: the recommended one: the cheapest within `TOLERANCE` of the best score.
        whole: the whole network: the best of its runs at the largest input; None if it was not trained.
        engine: of the latencies that are compared; None if fewer than two nets have one.
        attainable: range of the MACs of the archs that the searches could have chosen, None if unknown.
        front: range of the MACs of the archs on their fronts, None without a search.
    """

    candidates: tuple[Candidate, ...]
    pick: Candidate
    whole: Candidate | None
    engine: str | None
    attainable: tuple[float, float] | None
    front: tuple[float, float] | None

    @property
    def baselines(self) -> list[Candidate]:
        """The whole network, resized and narrowed, without those that another one dominates, the cheapest first."""
        whole = [one for one in self.candidates if one.is_baseline]
        if not whole:
            return []
        kept = non_dominated(np.asarray([(one.macs, -one.net.score) for one in whole]))
        distinct = {one.macs: one for one, keep in zip(whole, kept.tolist(), strict=True) if keep}
        return [distinct[macs] for macs in sorted(distinct)]

    @property
    def below(self) -> list[Candidate]:
        """The nets that cost less than every baseline that was trained."""
        least = min((one.macs for one in self.candidates if one.is_baseline), default=0.0)
        return [one for one in self.candidates if one.macs < least]

    def gain(self, candidate: Candidate) -> float | None:
        """Its score minus that of the baselines at the same MACs; None where that is undefined."""
        if not self.baselines:
            return None
        gains, _ = advantages(_points(self.baselines), _points([candidate]))
        return None if np.isnan(gains[0]) else float(gains[0])

    @property
    def winners(self) -> list[Candidate]:
        """The nets that score more than the baselines at the same MACs."""
        gains = [(one, self.gain(one)) for one in self.candidates if not one.is_baseline]
        return [one for one, gain in gains if gain is not None and gain > LEAST_GAIN]

    def cost(self, candidate: Candidate, axis: str) -> float | None:
        """Its MACs or its latency."""
        if axis == MACS:
            return candidate.macs
        return candidate.latency_ms.get(self.engine) if self.engine is not None else None


def choices(nets: Sequence[Net], studies: Sequence[StudyRecord], runs: Sequence[Run]) -> list[Choice]:
    """A choice for each task and dataset.

    Args:
        nets: finished fine-tuned nets of any tasks.
        studies: of any tasks.
        runs: all of them, for what they were exported at and descend from.
    """
    return [_choice(of_data, studies, runs) for of_data in nets_by_data(nets)]


def _choice(nets: Sequence[Net], studies: Sequence[StudyRecord], runs: Sequence[Run]) -> Choice:
    first = nets[0].run
    own = [one for one in studies if (one.run.task, data_root(one.run)) == (first.task, data_root(first))]
    whole_archs = _whole_archs(nets, own)
    latencies = _latencies(runs)
    names = unique_names([net.folder for net in nets])
    largest = {space: max(_macs_of(nets, archs), default=0.0) for space, archs in whole_archs.items()}
    candidates = []
    for net, name in zip(nets, names, strict=True):
        origin = _origin(net, studies, runs)
        if net.arch in whole_archs.get(net.supernet, ()):
            origin = WHOLE if net.result.costs.macs["total"] >= largest[net.supernet] else RESIZED
        elif any(net.comes_from(trial.arch, study.run.task) for study in own for trial in study.front.narrowed):
            origin = NARROWED
        measured = {
            **_searched_latency(net, own),
            **net.result.costs.latency_ms,
            **latencies.get(net.result.config_sha256, {}),
        }
        candidates.append(Candidate(net, name, origin, measured))
    candidates.sort(key=lambda one: (one.macs, -one.net.score))
    best = max(one.net.score for one in candidates)
    pick = next(one for one in candidates if one.net.score >= best - TOLERANCE)
    whole = [one for one in candidates if one.origin == WHOLE]
    same = [one for one in whole if one.net.supernet == pick.net.supernet]
    return Choice(
        tuple(candidates),
        pick,
        max(same or whole, key=lambda one: one.net.score, default=None),
        _engine(candidates),
        _hull([one.summary.attainable.get(MACS) for one in own if one.summary is not None]),
        _hull([(float(t.costs.macs["total"]),) * 2 for one in own for t in one.front.trials if t.costs is not None]),
    )


def _whole_archs(nets: Sequence[Net], studies: Sequence[StudyRecord]) -> dict[str, list[ArchContent]]:
    """The archs of the whole network at any input size, by supernet.

    They are those of ``arch=max`` and of the trials that searches compare with; and those that differ from one of them
    in one gene alone, which changes the input size and no weight.
    """
    found: dict[str, list[ArchContent]] = {}
    for net in nets:
        if net.arch_name == LARGEST:
            found.setdefault(net.supernet, []).append(net.arch)
    for study in studies:
        for trial in study.front.resized:
            found.setdefault(str(trial.arch.get("space", "net")), []).append(trial.arch)
    for net in nets:
        known = found.get(net.supernet, [])
        params = {other.result.costs.params["total"] for other in nets if other.arch in known}
        if net.arch not in known and net.result.costs.params["total"] in params:
            sizes = {other.result.costs.size for other in nets if other.arch in known}
            if net.result.costs.size not in sizes and any(_differences(net.arch, other) == 1 for other in known):
                known.append(net.arch)
    return found


def _differences(one: ArchContent, other: ArchContent) -> int:
    return sum(one.get(name) != other.get(name) for name in {*one, *other})


def _macs_of(nets: Sequence[Net], archs: Sequence[ArchContent]) -> list[float]:
    return [float(net.result.costs.macs["total"]) for net in nets if net.arch in archs]


def _origin(net: Net, studies: Sequence[StudyRecord], runs: Sequence[Run]) -> str:
    """The route of the first study with the net's arch on its front."""
    fronts = ((one, trial.arch) for one in studies for trial in one.front.trials)
    study = next((one for one, arch in fronts if net.comes_from(arch, one.run.task)), None)
    if study is None:
        return UNSEARCHED
    if study.run.stage == "proxy":
        return ROUTE_C
    provenance = study.run.result.provenance if study.run.result is not None else ()
    parent = _made(provenance[-1], runs) if provenance else None
    if parent is not None and parent.result is not None and parent.result.arch is not None:
        return REPAIRED
    return ROUTE_A if study.run.task == net.run.task else ROUTE_B


def _made(ancestor: Ancestor, runs: Sequence[Run]) -> Run | None:
    """The run that made a file, by the hash of its configuration or by its folder."""
    by_folder = {(run.folder / files.WEIGHTS).resolve(): run for run in runs}
    return runs_by_digest(runs).get(ancestor.config_sha256) or by_folder.get(Path(ancestor.file).resolve())


def _latencies(runs: Sequence[Run]) -> dict[str, Mapping[str, float]]:
    """The latencies that exports measured, by the hash of the configuration of the training."""
    found: dict[str, Mapping[str, float]] = {}
    for run in runs:
        if run.result is not None and run.result.export is not None and run.result.provenance:
            found[run.result.provenance[-1].config_sha256] = run.result.export.latency_ms
    return found


def _searched_latency(net: Net, studies: Sequence[StudyRecord]) -> dict[str, float]:
    """The latency of the net's arch in the first search that measured it."""
    for study in studies:
        for trial in (*study.front.trials, *study.front.baselines):
            if trial.arch == net.arch and LATENCY in trial.values:
                return {"measured in the search": trial.values[LATENCY]}
    return {}


def _engine(candidates: Sequence[Candidate]) -> str | None:
    """The engine with which most nets were timed, at least two; of several, the first that was exported to."""
    counts = Counter(engine for one in candidates for engine in one.latency_ms)
    engine, count = max(counts.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    return engine if count > 1 else None


def _hull(ranges: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [one for one in ranges if one is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of paths, as few as tell all of them apart."""
    names = []
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        depth = 1
        while depth < len(folder.parts) and any(other[-depth:] == folder.parts[-depth:] for other in others):
            depth += 1
        names.append(str(Path(*folder.parts[-depth:])))
    return names


def _points(candidates: Sequence[Candidate]) -> npt.NDArray[np.float64]:
    return np.asarray([(one.macs, one.net.score) for one in candidates], dtype=np.float64).reshape(-1, 2)
