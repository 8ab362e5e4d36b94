"""``result.json``: what a run did, its score, its costs, and the versions that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nas_transfer.runs import files
from nas_transfer.runs.costs import Ancestor, ArchContent, Costs, Usage
from nas_transfer.runs.fronts import Direction, Validation
from nas_transfer.runs.kinds import TaskKind
from nas_transfer.runs.reading import is_present, read_record, write_record
from nas_transfer.runs.versions import git_revision, versions

RESULT_FORMAT = 1


@dataclass(frozen=True)
class SearchSummary:
    """A search in figures.

    Attributes:
        trials, failed, left_out: numbers of trials.
        front: trials on the front.
        hypervolume: share of the box that the front dominates, None where it is undefined.
        ends: where that box ends, by objective.
        picked: number of the picked trial.
        objectives: whether each is maximised or minimised.
        spent: what preparation, trials, validation and repeats used.
        validation: how well short trainings rank archs; None if that was not measured.
        attainable: the lowest and the highest value of each cost that the searched archs can have; empty if unknown.
    """

    trials: int
    failed: int
    left_out: int
    front: int
    hypervolume: float | None
    ends: Mapping[str, float]
    picked: int
    objectives: Mapping[str, Direction]
    spent: Mapping[str, Usage]
    validation: Validation | None = None
    attainable: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class FileLatency:
    """The latency of an exported file.

    Attributes:
        latency_ms: of one image, in milliseconds.
        size: (H, W) at which it was measured.
    """

    latency_ms: float
    size: tuple[int, int]


@dataclass(frozen=True)
class TrainingSummary:
    """How a training of one arch ended.

    Attributes:
        steps: optimiser steps that were made.
        planned_steps: those that the configuration asked for; more than `steps` after early stopping.
        metric: the metric that was watched.
        best_step: the step after which the weights scored best, the last one included.
        best_score: their score on the validation split, a fraction.
        weights: whether the run ends with the last weights or with the best ones.
    """

    steps: int
    planned_steps: int
    metric: str
    best_step: int
    best_score: float
    weights: Literal["last", "best"]

    def __str__(self) -> str:
        """For people."""
        early = f", ended early after {self.steps} of {self.planned_steps}" if self.steps < self.planned_steps else ""
        kept = "weights.pt holds these" if self.weights == "best" else f"weights.pt holds those of step {self.steps}"
        best = f"best {self.metric} {100 * self.best_score:.2f} % at step {self.best_step}{early}"
        return f"{best}; {kept}" if self.best_step != self.steps else f"{best}, the last one"


@dataclass(frozen=True)
class Int8Summary:
    """A network in 8-bit integers, in figures.

    Attributes:
        score: its score, a fraction.
        loss: by how much that of the ONNX file in floats is higher.
        speedup: how many times its latency that of the ONNX file in floats is.
        layers, float_layers: convolutions and linear layers in integers, and those left in floats.
        images: images of train on which ranges were measured.
        instructions: those for bytes that the processor has; empty for none.
    """

    score: float
    loss: float
    speedup: float
    layers: int
    float_layers: int
    images: int
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class ExportSummary:
    """An export in figures.

    Attributes:
        difference: largest difference between a file and torch, by file: as a share of the largest output, or for a
            detector the share of detections without a match.
        score_torch: score of the torch network, a fraction; the score of the run is that of onnxruntime.
        latency_ms: median latency of one image in milliseconds, by engine.
        latency_size: (H, W) at which it was measured.
        threads: number of CPU threads.
        files: latency by file: that of ONNX files in onnxruntime, of torch.export files in torch; empty if unknown.
        latency_range: quartiles of the latency, by engine.
        cpu_ms: median time of the processor for one image, over all threads, by engine.
        busy: share of the time of all cores that other processes took meanwhile; None if unknown.
        scores: scores by engine, fractions.
        int8: the network in 8-bit integers; None without one.
    """

    difference: Mapping[str, float]
    score_torch: float
    latency_ms: Mapping[str, float]
    latency_size: tuple[int, int]
    threads: int
    files: Mapping[str, FileLatency] = field(default_factory=dict)
    latency_range: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    cpu_ms: Mapping[str, float] = field(default_factory=dict)
    busy: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    int8: Int8Summary | None = None


@dataclass(frozen=True)
class Result:
    """Everything that ``result.json`` holds. Scores are fractions in 0-1.

    Attributes:
        stage, task: what ran.
        arch: dict form, None for a supernet.
        score_key: the metric that searches maximise.
        score: its value, None for a stage that scores nothing.
        metrics: all of the task's metrics.
        costs: costs of the arch, or of the supernet's largest arch.
        seconds: wall time of the stage's work, without interruptions.
        devices: processes that trained, one for each device.
        gpu_hours: seconds x devices on an accelerator, 0 on CPUs.
        images_seen: images loaded for training; a sandwich runs each through several archs (`passes_per_image`).
        passes_per_image: archs that each image was run through.
        samples_digest: hash over the ids of the training samples in their order, empty without training.
        seed, config_sha256, versions, git: to reproduce the run.
        provenance: files that its weights descend from, oldest first.
        search: summary of a search; None for other stages.
        export: summary of an export; None for other stages.
        kind: how a report tabulates the task's networks, None if unknown.
        status: ``finished``; an unfinished run has no result.
        training: how a training of one arch ended; None for other stages.
        training_macs: multiply-accumulates of all forward and backward passes of the training, a backward pass as two
            forward passes; of a search, those of its preparation and its trials. 0 for runs that did not count them.
    """

    stage: str
    task: str
    arch: ArchContent | None
    score_key: str | None
    score: float | None
    metrics: Mapping[str, float]
    costs: Costs
    seconds: float
    devices: int
    gpu_hours: float
    images_seen: int
    passes_per_image: int
    samples_digest: str
    seed: int
    config_sha256: str
    provenance: tuple[Ancestor, ...] = ()
    search: SearchSummary | None = None
    export: ExportSummary | None = None
    kind: TaskKind | None = None
    versions: Mapping[str, str] = field(default_factory=versions)
    git: str | None = field(default_factory=lambda: git_revision(Path(__file__).parent))
    status: Literal["finished"] = "finished"
    training_macs: int = 0
    training: TrainingSummary | None = None

    def write(self, folder: Path) -> None:
        """Write ``result.json`` into a run folder."""
        write_record(folder / files.RESULT, self, RESULT_FORMAT)


def read_result(folder: Path) -> Result | None:
    """Read the result of a run, None if it is unfinished; RunError if the file cannot be used."""
    path = folder / files.RESULT
    return read_record(path, Result, RESULT_FORMAT) if is_present(path) else None
