"""From an arch to its objectives: a private copy, exact BatchNorm statistics, the score on the search split.

The supernet and the batches are loaded once and serve all candidates: every candidate sees the same images in the same
batches, so that the same arch always gets the same values.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from pycocotools.coco import COCO

from nas_transfer.errors import NasTransferError
from nas_transfer.runs import Evaluation, Outcome
from nas_transfer.search.objectives.base import Objective, TrialSubnet
from nas_transfer.search.problem import Limit
from nas_transfer.space import Arch
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

Batch: TypeAlias = Mapping[str, object]

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


class CandidateEvaluator:
    """Evaluates archs of one supernet on one device.

    Args:
        supernet: a task that holds all weights, on its device; never changed.
        calibration: gives for each `Evaluation.repeat` batches of train for BatchNorm statistics, evaluation transform.
        search: batches of the search split.
        ground_truth: of the search split.
        objectives: by name, in order.
        limits: on any of the objectives.
        cache_bytes: batches are kept in memory up to this size, and read anew for every candidate beyond it.
        precision: of the forward passes: ``32``, ``bf16`` or ``16``.
        train: trains a candidate's private copy before its statistics are measured, as its work says, and tells on how
            many images; None to score inherited weights.
    """

    def __init__(
        self,
        supernet: Task,
        calibration: Callable[[int], Iterable[Batch]],
        search: Iterable[Batch],
        ground_truth: COCO | None,
        objectives: Mapping[str, Objective],
        limits: Mapping[str, Limit],
        cache_bytes: int,
        precision: str,
        train: Callable[[Task, Evaluation], int] | None = None,
    ) -> None:
        self.supernet = supernet
        self.train = train
        self.images, self.training_seconds = 0, 0.0
        self.ground_truth = ground_truth
        self.objectives = objectives
        self.limits = limits
        self.precision = precision
        self.cache_bytes = cache_bytes
        self._draw_calibration = calibration
        self.repeat = 0
        self.calibration = cached(calibration(0), cache_bytes)
        self.search = cached(search, cache_bytes - size_of(self.calibration))
        self._prepared: dict[tuple[int, int], tuple[Iterable[Batch], Iterable[Batch]]] = {}

    def evaluate(self, evaluation: Evaluation) -> Outcome:
        """The values of a candidate, or why it has none.

        Whatever goes wrong in one candidate is its outcome; only what no candidate could survive is raised.

        Raises:
            NasTransferError: the configuration or the data cannot be used.
        """
        start, images, training = time.monotonic(), self.images, self.training_seconds
        try:
            outcome = self._evaluate(evaluation)
        except NasTransferError:
            raise
        except Exception as error:  # a defect of one candidate, torch.OutOfMemoryError too: the search goes on
            logger.exception("%s failed", evaluation)
            outcome = Outcome.failed(evaluation.trial, evaluation.arch, f"{type(error).__name__}: {error}")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return replace(
            outcome, seconds=time.monotonic() - start, training_seconds=self.training_seconds - training,
            device=self.supernet.device.type, images=self.images - images,
        )  # fmt: skip

    def _evaluate(self, evaluation: Evaluation) -> Outcome:
        subnet = _TrialSubnet(self, evaluation)
        unscored = Outcome(evaluation.trial, evaluation.arch)
        values: dict[str, float] = {}
        for name, objective in self._in_order():
            values[name] = float(objective.measure(subnet))
            limit = self.limits.get(name)
            if limit is not None and not limit.allows(values[name]):
                reason = f"{name} {values[name]:g} is outside search.constraints.{name}"
                return replace(unscored, reason=reason, left_out=True)
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            reason = f"expected a number for {wrong[0]}, got {values[wrong[0]]}"
            return Outcome.failed(evaluation.trial, evaluation.arch, reason)
        return replace(unscored, values={name: values[name] for name in self.objectives}, metrics=subnet.metrics)

    def _in_order(self) -> Sequence[tuple[str, Objective]]:
        return sorted(self.objectives.items(), key=lambda item: not item[1].measured_first)

    def extract(self, evaluation: Evaluation) -> Task:
        """The candidate's network with recalibrated statistics, in eval mode, BatchNorms folded as for deployment.

        A copy of its own that is trained first if the evaluator trains: what one candidate learns no other one sees.
        """
        arch = self.supernet.table.space.from_dict(evaluation.arch)
        subnet = self.supernet.extract(arch)
        if self.train is not None:
            start = time.monotonic()
            self.images += self.train(subnet, evaluation)
            self.training_seconds += time.monotonic() - start
        self._draw_again(evaluation.repeat)
        for module in subnet.network.modules():
            if hasattr(module, "inplace"):
                module.inplace = True  # activations: no gradient needs their input
        with self._autocast():
            subnet.calibrate(self._batches(arch)[0])
        fold_batch_norms(subnet.eval().network)
        return subnet

    def score(self, subnet: Task) -> dict[str, float]:
        """All metrics of a subnet on the search split."""
        arch = subnet.table.space.arch_or_largest(subnet.arch)
        subnet.ground_truth = self.ground_truth
        with torch.inference_mode(), self._autocast():
            for batch in self._batches(arch)[1]:
                subnet.update_metrics(subnet.on_device(batch))
            return subnet.compute_metrics()

    def _draw_again(self, repeat: int) -> None:
        """Calibrate on the images of another repeat from now on."""
        if repeat == self.repeat:
            return
        self.repeat, self._prepared = repeat, {}
        self.calibration = cached(self._draw_calibration(repeat), self.cache_bytes - size_of(self.search))

    def _batches(self, arch: Arch) -> tuple[Iterable[Batch], Iterable[Batch]]:
        """Calibration and search batches as the arch sees them, kept for each input size while the memory lasts."""
        if not isinstance(self.calibration, list) or not isinstance(self.search, list):
            return self.calibration, self.search
        size = self.supernet.input_size(arch)
        if size not in self._prepared:
            parts = [
                [self.supernet.prepared(batch, arch) for batch in part] for part in (self.calibration, self.search)
            ]
            used = sum(size_of(part) for pair in self._prepared.values() for part in pair)
            if used + sum(map(size_of, parts)) > self.cache_bytes:
                return self.calibration, self.search
            self._prepared[size] = (parts[0], parts[1])
        return self._prepared[size]

    def _autocast(self) -> torch.autocast:
        kind = PRECISIONS[self.precision]
        device = self.supernet.device.type
        return torch.autocast(device, dtype=kind or torch.bfloat16, enabled=kind is not None)


class _TrialSubnet(TrialSubnet):
    """Builds the network when an objective first needs it, and scores it once."""

    def __init__(self, evaluator: CandidateEvaluator, evaluation: Evaluation) -> None:
        self.evaluation, self.evaluator = evaluation, evaluator
        self._arch = evaluator.supernet.table.space.from_dict(evaluation.arch)
        self.metrics: dict[str, float] = {}
        self._task: Task | None = None

    @property
    def arch(self) -> Arch:
        return self._arch

    @property
    def task(self) -> Task:
        if self._task is None:
            self._task = self.evaluator.extract(self.evaluation)
        return self._task

    def score(self) -> Mapping[str, float]:
        if not self.metrics:
            self.metrics = self.evaluator.score(self.task)
        return self.metrics


def cached(batches: Iterable[Batch], limit: int) -> Iterable[Batch]:
    """The batches in a list, if they fit into `limit` bytes, else as they came."""
    kept: list[Batch] = []
    total = 0
    for batch in batches:
        kept.append(batch)
        total += _batch_bytes(batch)
        if total > limit:
            logger.info("more than %d MiB of images: they are read anew for every candidate", limit // 2**20)
            return batches
    return kept


def size_of(batches: Iterable[Batch]) -> int:
    """Bytes of the batches that are kept in memory, 0 for those that are not."""
    return sum(_batch_bytes(batch) for batch in batches) if isinstance(batches, list) else 0


def _batch_bytes(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_batch_bytes(part) for part in value.values())
    return sum(_batch_bytes(part) for part in value) if isinstance(value, list | tuple) else 0
