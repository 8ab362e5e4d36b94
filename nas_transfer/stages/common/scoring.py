"""Scoring of a network while it trains: how often, the weights that scored best, and early stopping."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping

from nas_transfer.errors import RunError, WeightsError
from nas_transfer.stages.config.training import ScoringConfig
from nas_transfer.supernet.weights.reading import read_file
from nas_transfer.tasks.training import SCORE, ScoringModule

logger = logging.getLogger(__name__)

MOST_SCORINGS, MOST_SHARE = 10, 0.1
"""How often ``scoring.every=auto`` scores at most, and the share of the work of a training that this takes at most."""
SCORED_PER_TRAINED = 3
"""An image that is trained on costs as much as so many that are scored: a backward pass counts as two forward ones."""

Save = Callable[[Path, Mapping[str, float], int], None]
"""Write the weights as they are now, with their metrics and their step."""


def steps_between_scorings(
    every: Literal["auto"] | float | None, total_steps: int, steps_per_epoch: int, images_per_step: int,
    val_images: int,
) -> int | None:  # fmt: skip
    """Optimiser steps between two scorings of a training; None to score the end alone.

    Args:
        every: epochs; ``auto`` for `MOST_SCORINGS` scorings, or as many as cost `MOST_SHARE` of the training.
    """
    if every is None:
        return None
    if every != "auto":
        return max(1, round(every * steps_per_epoch))
    work = SCORED_PER_TRAINED * total_steps * images_per_step
    affordable = int(MOST_SHARE * work / max(1, val_images))
    return math.ceil(total_steps / min(affordable, MOST_SCORINGS)) if affordable else None


class BestWeights(Callback):
    """Keep the weights that scored best so far in a file, which states their step and their score.

    It must come before callbacks that exchange the weights for a validation, such as an average: Lightning ends a
    validation in the order of the callbacks. The file is the only record of the best weights. A run that resumes from a
    state before the step of the file makes this step again, and finds its score no better.

    Args:
        path: where the weights are kept.
        save: writes them.
        score_key: the metric that is watched; higher is better.
        total_steps: length of the run, for the log.
        required: whether a resumed run needs the file, because it ends with these weights.

    Raises:
        RunError: the file that a resumed run needs is missing or damaged.

    Attributes:
        step, score: of the best weights; None before the first scoring.
    """

    def __init__(self, path: Path, save: Save, score_key: str, total_steps: int, *, required: bool = False) -> None:
        self.path, self.save, self.score_key, self.total_steps = path, save, score_key, total_steps
        self.required = required
        self.step: int | None = None
        self.score = -math.inf
        self._scored_step = -1
        self._had_best = False
        self._is_first = True

    def state_dict(self) -> dict[str, int]:
        """The step of the last scoring, and whether a score was defined so far."""
        return {"scored_step": self._scored_step, "has_best": int(self.step is not None)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue after the last scoring."""
        self._scored_step = state_dict["scored_step"]
        self._had_best = bool(state_dict.get("has_best", self._scored_step >= 0))  # of earlier versions: any score

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Read what an interrupted run has kept; a new run keeps nothing of an earlier attempt."""
        self._is_first = True
        if trainer.global_step == 0:
            if trainer.is_global_zero:
                self.path.unlink(missing_ok=True)
            return
        try:
            kept = read_file(self.path)
            assert isinstance(kept, dict)
            self.step, self.score = int(kept["step"]), float(kept["metrics"][self.score_key])
        except (WeightsError, KeyError, TypeError, ValueError, AssertionError):
            if self._had_best and self.required:
                raise RunError(
                    f"{self.path} is missing or damaged, and scoring.use_best=true ends with the best weights of all "
                    "steps: put it back, or train again with resume=never"
                ) from None
            if self._had_best:
                logger.warning("%s is missing or damaged: the best of the remaining steps is kept", self.path)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: object, index: int) -> None:
        """Score the state that a run resumes from if it was saved before it was scored: Lightning leaves this out."""
        is_first, self._is_first = self._is_first, False
        every = trainer.val_check_batch
        if not is_first or not index or every is None or index % int(every) or self._scored_step >= trainer.global_step:
            return
        connector = trainer._logger_connector
        first_of_loop = connector._first_loop_iter  # as Lightning does it around a validation within an epoch
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        connector._first_loop_iter = first_of_loop
        if trainer.should_stop:
            raise StopIteration  # ends the epoch before this batch, as the interrupted run would have ended

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep the weights if they score better than all before."""
        assert isinstance(module, ScoringModule)
        metrics, step = module.finish_scoring(), trainer.global_step
        self._scored_step = step
        score = metrics.get(self.score_key, math.nan)
        if math.isfinite(score) and score > self.score:
            self.step, self.score = step, score
            if trainer.is_global_zero:
                self.save(self.path, metrics, step)
        best = "" if self.step is None else f", best {100 * self.score:.2f} % at step {self.step}"
        logger.info("step %d of %d: %s %.2f %%%s", step, self.total_steps, self.score_key, 100 * score, best)


def early_stopping(config: ScoringConfig) -> list[Callback]:
    """Lightning's early stopping if it is asked for."""
    if config.patience is None:
        return []
    return [EarlyStopping(SCORE, patience=config.patience, mode="max", check_finite=False)]
