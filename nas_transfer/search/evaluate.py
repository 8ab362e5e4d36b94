"""Evaluation of trials: extract a subnet, measure its BatchNorm statistics, score it on the search split.

The supernet and the batches are loaded once for all trials. Every trial sees the same images in the same batches, so
the same arch always gets the same values.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from pycocotools.coco import COCO

from nas_transfer.arch import Arch
from nas_transfer.errors import NasTransferError, storage_error
from nas_transfer.runs import Evaluation, Outcome, Usage
from nas_transfer.runs.phases import Phase
from nas_transfer.search.objectives.base import ArchCost, Objective, TrialSubnet
from nas_transfer.search.problem import Limit
from nas_transfer.search.racing import Contest, Dropped, Race
from nas_transfer.supernet.calibrate import has_batch_norm
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

STATISTICS_IMAGES = "reading images for BatchNorm statistics"

Batch: TypeAlias = Mapping[str, object]

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class TrialImages:
    """The images that trials are evaluated on.

    Attributes:
        calibration: returns batches of train for BatchNorm statistics, with the evaluation transform, for an
            `Evaluation.repeat`; not called for a network without BatchNorm.
        search: batches of the search split.
        ground_truth: annotations of the search split, where metrics need them.
    """

    calibration: Callable[[int], Iterable[Batch]]
    search: Iterable[Batch]
    ground_truth: COCO | None = None


class TrialEvaluator:
    """Evaluate trials of one supernet on one device.

    Args:
        supernet: the task that holds all weights, on its device. It is never changed.
        images: the images that trials are evaluated on.
        objectives: objectives by name, in the order of the study.
        limits: limits on objectives, by name.
        cache_bytes: size up to which batches are kept in memory. Larger sets are read again for every trial.
        precision: precision of forward passes: ``32``, ``bf16`` or ``16``.
        train: trains the subnet of a trial as its `Evaluation` says, and returns the images and the MACs of the
            training; None to score inherited weights.
        repair: cuts a repaired subnet out of one whole network, as its `Evaluation` says; None to extract a subnet of
            the supernet and to measure its BatchNorm statistics.
        race: the rules by which a trial that is clearly dominated is dropped; None to score all trials on all images.

    Attributes:
        trained: images, seconds and MACs of the training of all trials so far.
        repeat: the `Evaluation.repeat` of the calibration batches in use.
    """

    def __init__(
        self,
        supernet: Task,
        images: TrialImages,
        objectives: Mapping[str, Objective],
        limits: Mapping[str, Limit],
        cache_bytes: int,
        precision: str,
        train: Callable[[Task, Evaluation], Usage] | None = None,
        repair: Callable[[Evaluation], Task] | None = None,
        race: Race | None = None,
    ) -> None:
        self.supernet = supernet
        self.train = train
        self.repair = repair
        self.race = race
        self.trained = Usage()
        self.ground_truth = images.ground_truth
        self.objectives = objectives
        self.limits = limits
        self.precision = precision
        self.cache_bytes = cache_bytes
        self._draw_calibration = images.calibration
        if not has_batch_norm(supernet.network):
            logger.info("the network has no BatchNorm: no images are read to measure statistics")
            self._draw_calibration = no_batches
        self.repeat = 0
        self.calibration = cached(self._draw_calibration(0), cache_bytes, STATISTICS_IMAGES)
        self.search = cached(images.search, cache_bytes - size_of(self.calibration), "reading the search split")
        self._prepared: dict[tuple[int, int], tuple[Iterable[Batch], Iterable[Batch]]] = {}

    @property
    def reads_once(self) -> bool:
        """Whether all images that trials are scored on are in memory."""
        return isinstance(self.calibration, list) and isinstance(self.search, list)

    def evaluate(self, evaluation: Evaluation) -> Outcome:
        """Evaluate a trial; an error in one trial becomes its outcome.

        Raises:
            NasTransferError: the configuration or the data cannot be used, so that every trial would fail.
            StorageError: the file system is full or gone.
        """
        start, before = time.monotonic(), self.trained
        try:
            outcome = self._evaluate(evaluation)
        except NasTransferError:
            raise
        except Exception as error:  # includes torch.OutOfMemoryError: other trials may still succeed
            if (failure := storage_error(error)) is not None:
                raise failure from error
            logger.exception("%s failed", evaluation)
            outcome = Outcome.failed(evaluation.trial, evaluation.arch, f"{type(error).__name__}: {error}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return replace(
            outcome, seconds=time.monotonic() - start, training_seconds=self.trained.seconds - before.seconds,
            device=self.supernet.device.type, images=self.trained.images - before.images,
            training_macs=self.trained.training_macs - before.training_macs,
        )  # fmt: skip

    def _evaluate(self, evaluation: Evaluation) -> Outcome:
        subnet = _TrialSubnet(self, evaluation)
        unscored = Outcome(evaluation.trial, evaluation.arch)
        values = subnet.values
        for name, objective in self._in_order():
            try:
                values[name] = self._measure(objective, subnet)
            except Dropped as end:
                return replace(unscored, reason=str(end), left_out=True, scored=end.share)
            limit = self.limits.get(name)
            if limit is not None and not limit.allows(values[name]):
                reason = f"{name} {values[name]:g} is outside search.constraints.{name}"
                return replace(unscored, reason=reason, left_out=True)
        if evaluation.keep and self.repair is not None and self.train is None:
            subnet.score()  # the repaired network is written, and scored where no objective has done it
        undefined = [name for name, value in values.items() if not math.isfinite(value)]
        if undefined:
            reason = f"{undefined[0]} must be a finite number, got {values[undefined[0]]}"
            return Outcome.failed(evaluation.trial, evaluation.arch, reason)
        return replace(unscored, values={name: values[name] for name in self.objectives}, metrics=subnet.metrics)

    def _measure(self, objective: Objective, subnet: TrialSubnet) -> float:
        """The value of an objective; the subnet is not built for one that follows from the arch."""
        if isinstance(objective, ArchCost):
            return float(objective.of_archs(self.supernet, [subnet.arch])[0])
        return float(objective.measure(subnet))

    def _in_order(self) -> Sequence[tuple[str, Objective]]:
        return sorted(self.objectives.items(), key=lambda item: not item[1].measured_first)

    def extract(self, evaluation: Evaluation) -> Task:
        """Extract the subnet of a trial, with recalibrated or repaired and with folded BatchNorms, in eval mode.

        The subnet is a private copy, so training one trial does not affect another.
        """
        arch = self.supernet.space.from_dict(evaluation.arch)
        repair = None if evaluation.after else self.repair  # a saved state replaces the weights
        subnet = self.supernet.extract(arch) if repair is None else repair(evaluation)
        if self.train is not None:
            start = time.monotonic()
            usage = self.train(subnet, evaluation)
            self.trained += replace(usage, seconds=time.monotonic() - start)
        for module in subnet.network.modules():
            if hasattr(module, "inplace"):
                module.inplace = True  # activations: no gradients are needed
        if self.repair is None:  # else the statistics are those of the repair, which a training keeps
            self._calibrate_for(evaluation.repeat)
            with self._autocast():
                subnet.calibrate(self._batches(arch)[0])
        fold_batch_norms(subnet.eval().network)
        subnet.as_deployed = False  # a pass for each batch: images of other sizes change the padding
        return subnet

    def network(self, evaluation: Evaluation) -> Task:
        """The subnet of a trial as objectives measure it."""
        return self.extract(evaluation)

    def metrics(self, trial: TrialSubnet, evaluation: Evaluation) -> dict[str, float]:
        """All metrics of a trial on the search split; `Dropped` for one that loses its race on the way."""
        if self.race is None or evaluation.rivals is None or not isinstance(trial, _TrialSubnet):
            return self.score(trial.task)
        trial.task.keep_tally(self.race.metric)
        return self.score(trial.task, self.race.contest(evaluation, trial.values))

    def score(self, subnet: Task, contest: Contest | None = None) -> dict[str, float]:
        """Compute all metrics of a subnet on the search split.

        They approximate those of a final evaluation: BatchNorms are folded, and a batch of a detector shares its
        padding.
        """
        subnet.ground_truth = self.ground_truth
        with torch.inference_mode(), self._autocast():
            self.predict(subnet, contest)
            return subnet.compute_metrics()

    def predict(self, subnet: Task, contest: Contest | None = None) -> None:
        """Add the predictions of a subnet for the search split to its metrics; `Dropped` if it loses its race."""
        arch = subnet.space.arch_or_largest(subnet.arch)
        num_images = 0
        with torch.inference_mode(), self._autocast():
            for batch in self._batches(arch)[1]:
                subnet.update_metrics(subnet.on_device(batch))
                if contest is not None:
                    before, num_images = num_images, num_images + len(batch["images"])  # type: ignore[arg-type]
                    contest.look(subnet, num_images, before)
            if contest is not None:
                contest.finish(subnet)

    def _calibrate_for(self, repeat: int) -> None:
        """Load the calibration images of a repeat, unless they are in use."""
        if repeat == self.repeat:
            return
        self.repeat, self._prepared = repeat, {}
        self.calibration = cached(
            self._draw_calibration(repeat), self.cache_bytes - size_of(self.search), STATISTICS_IMAGES
        )

    def _batches(self, arch: Arch) -> tuple[Iterable[Batch], Iterable[Batch]]:
        """Calibration and search batches at the input size of an arch, cached for each size within `cache_bytes`."""
        if not isinstance(self.calibration, list) or not isinstance(self.search, list):
            return self.calibration, self.search
        size = self.supernet.input_size(arch)
        if size not in self._prepared:
            search = [self.supernet.prepared(batch, arch) for batch in self.search]
            if search and search[0] is self.search[0]:  # the network resizes the images by itself
                return self.calibration, self.search
            calibration = [self.supernet.prepared(batch, arch) for batch in self.calibration]
            used = sum(size_of(batches) for pair in self._prepared.values() for batches in pair)
            if used + size_of(calibration) + size_of(search) > self.cache_bytes:
                return self.calibration, self.search
            self._prepared[size] = (calibration, search)
        return self._prepared[size]

    def _autocast(self) -> torch.autocast:
        kind = PRECISIONS[self.precision]
        device = self.supernet.device.type
        return torch.autocast(device, dtype=kind or torch.bfloat16, enabled=kind is not None)


def no_batches(repeat: int) -> list[Batch]:
    """No images, for networks without statistics to measure."""
    return []


class _TrialSubnet(TrialSubnet):
    """Extracts the subnet when an objective first needs it, and scores it once.

    Attributes:
        values: those of the objectives that have been measured so far.
    """

    def __init__(self, evaluator: TrialEvaluator, evaluation: Evaluation) -> None:
        self.evaluation, self.evaluator = evaluation, evaluator
        self._arch = evaluator.supernet.space.from_dict(evaluation.arch)
        self.metrics: dict[str, float] = {}
        self.values: dict[str, float] = {}
        self._task: Task | None = None

    @property
    def arch(self) -> Arch:
        return self._arch

    @property
    def task(self) -> Task:
        if self._task is None:
            self._task = self.evaluator.network(self.evaluation)
        return self._task

    def score(self) -> Mapping[str, float]:
        if not self.metrics:
            self.metrics = self.evaluator.metrics(self, self.evaluation)
        return self.metrics


def cached(batches: Iterable[Batch], limit: int, what: str) -> Iterable[Batch]:
    """Load batches into a list if they fit into `limit` bytes; otherwise return them as they are.

    Args:
        what: the work, for the log where it takes long.
    """
    loaded: list[Batch] = []
    total = 0
    for batch in Phase(batches, what, "batches"):
        loaded.append(batch)
        total += _batch_bytes(batch)
        if total > limit:
            logger.info("the images take more than %d MiB and are read again for every trial", limit // 2**20)
            return batches
    return loaded


def size_of(batches: Iterable[Batch]) -> int:
    """Bytes of batches that are kept in memory; 0 if they are read again each time."""
    return sum(_batch_bytes(batch) for batch in batches) if isinstance(batches, list) else 0


def _batch_bytes(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_batch_bytes(part) for part in value.values())
    return sum(_batch_bytes(part) for part in value) if isinstance(value, list | tuple) else 0
