"""Evaluation of trials by cross-validation: a network for each fold of train, and one score of all predictions."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from nas_transfer.runs import Evaluation, Outcome, Usage, files
from nas_transfer.runs.atomic import replacing
from nas_transfer.search.evaluate import TrialEvaluator, TrialImages, no_batches
from nas_transfer.search.objectives.base import TrialSubnet
from nas_transfer.supernet.layers import fold_batch_norms
from nas_transfer.tasks.metrics import MetricStates, metric_states, set_metric_states
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """The folds of an evaluation that are done.

    Attributes:
        folds: their number.
        states: of the metrics, with the predictions of these folds.
        seconds: their duration.
        trained: images, seconds and MACs of their training.
    """

    folds: int = 0
    states: MetricStates = field(default_factory=dict)
    seconds: float = 0.0
    trained: Usage = field(default_factory=Usage)


class FoldedEvaluator(TrialEvaluator):
    """Evaluate trials on all images of train.

    For each fold, a network of the trial's arch is trained on the other folds and predicts the fold. The predictions of
    all folds are then scored once, as those of one network would be. Objectives other than the score measure the arch
    before any training. After each fold, the predictions so far are saved, and an interrupted evaluation goes on from
    there.

    Args:
        folds: evaluators that train and predict one fold each; their ground truth is that of all folds.
        folder: the run folder of the search.
    """

    def __init__(self, folds: Sequence[TrialEvaluator], folder: Path) -> None:
        first = folds[0]
        super().__init__(
            first.supernet, TrialImages(no_batches, [], first.ground_truth), first.objectives, first.limits, 0,
            first.precision, first.train, first.repair,
        )  # fmt: skip
        self.folds = folds
        self.folder = folder
        self._seconds_before = 0.0

    def evaluate(self, evaluation: Evaluation) -> Outcome:
        """Evaluate a trial; see `TrialEvaluator.evaluate`."""
        self._seconds_before = 0.0
        outcome = super().evaluate(evaluation)
        return replace(outcome, seconds=outcome.seconds + self._seconds_before)

    def network(self, evaluation: Evaluation) -> Task:
        """The subnet with the weights from which all folds start, for latency and memory."""
        subnet = self.supernet.extract(self.supernet.space.from_dict(evaluation.arch))
        fold_batch_norms(subnet.eval().network)
        return subnet

    def metrics(self, trial: TrialSubnet, evaluation: Evaluation) -> dict[str, float]:
        """All metrics of the predictions of all folds."""
        done = self._read(evaluation)
        if done.folds:
            logger.info("%s: resuming after %d of %d folds", evaluation, done.folds, len(self.folds))
        self._seconds_before = done.seconds
        self.trained += done.trained
        for fold in self.folds[done.folds :]:
            started, before = time.monotonic(), fold.trained
            subnet = fold.extract(evaluation)
            set_metric_states(subnet, done.states)
            fold.predict(subnet)
            used = _difference(fold.trained, before)
            self.trained += used
            seconds = done.seconds + time.monotonic() - started
            done = Scored(done.folds + 1, metric_states(subnet), seconds, done.trained + used)
            if done.folds < len(self.folds):
                self._write(evaluation, done)
        subnet.ground_truth = self.ground_truth
        with torch.inference_mode():
            metrics = subnet.compute_metrics()
        self._file(evaluation).unlink(missing_ok=True)
        return metrics

    def _file(self, evaluation: Evaluation) -> Path:
        return files.folds_file(self.folder, evaluation.file)

    def _write(self, evaluation: Evaluation, done: Scored) -> None:
        if not evaluation.file:
            return  # timed, and not kept
        content = {**vars(done), "trained": vars(done.trained), "arch": dict(evaluation.arch)}
        file = self._file(evaluation)
        file.parent.mkdir(exist_ok=True)
        with replacing(file) as temporary:
            torch.save(content, temporary)

    def _read(self, evaluation: Evaluation) -> Scored:
        """The folds that an interrupted evaluation of this arch has done; none of a file that cannot be used."""
        file = self._file(evaluation)
        if not evaluation.file or not file.is_file():
            return Scored()
        try:
            content = torch.load(file, map_location=self.supernet.device, weights_only=True)
            if content.pop("arch") != evaluation.arch or not 0 < content["folds"] < len(self.folds):
                raise ValueError("it is of another evaluation")
            return Scored(**{**content, "trained": Usage(**content["trained"])})
        except Exception as error:  # a damaged file makes the unpickler fail in any way
            logger.warning("%s cannot be used (%s): all folds are trained again", file, " ".join(str(error).split()))
            return Scored()


def _difference(after: Usage, before: Usage) -> Usage:
    return Usage(
        after.images - before.images, after.seconds - before.seconds, after.gpu_seconds - before.gpu_seconds,
        after.training_macs - before.training_macs,
    )  # fmt: skip
