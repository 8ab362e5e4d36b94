"""Route C: score each trial after a short training on the task, from inherited or repaired weights.

Every trial starts from the same file, ``warm_start.pt``: the inherited body, and a neck and head that were trained once
behind the frozen body. Trials do not share what they learn, so a score does not depend on earlier trials (as in
NSGANetV2, Lu et al. 2020, arXiv 2007.10396). From the weights of one whole network of the task, every trial starts as a
repaired subnet of it (`nas_transfer.tasks.repair`) and imitates it; there is nothing to warm up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from nas_transfer.arch import SUPERNET
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.randomness import stable_seed
from nas_transfer.errors import RunError
from nas_transfer.runs import Evaluation, Spent, Usage, files, read_spent
from nas_transfer.runs.atomic import replacing
from nas_transfer.runs.plan import Timing, read_timing
from nas_transfer.runs.reading import holds_tensors
from nas_transfer.search.damage import ArchDamage
from nas_transfer.search.evaluate import TrialEvaluator
from nas_transfer.search.folds import FoldedEvaluator
from nas_transfer.search.loop import is_prepared
from nas_transfer.search.planning import end_archs
from nas_transfer.stages.common.build import (
    LastCheckpoint,
    build_bare_trainer,
    build_data,
    build_task,
    build_training_settings,
    set_threads,
)
from nas_transfer.stages.common.candidates import evaluator_of, searched_weights
from nas_transfer.stages.common.damage import damage_of_run, hold_damage
from nas_transfer.stages.common.folds import require_unseen
from nas_transfer.stages.common.repair import RepairedTrials
from nas_transfer.stages.common.timing import timing_of
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.search import ProxyConfig
from nas_transfer.stages.search import run_job
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.checkpoint import (
    RANDOM,
    Checkpoint,
    inherit,
    load_checkpoint,
    load_network,
    load_whole,
    save_checkpoint,
)
from nas_transfer.tasks.task import Task
from nas_transfer.tasks.training import TaskModule, TrainingSettings

logger = logging.getLogger(__name__)

TIMED_STEPS = 5
REPEATED_EPOCHS = 1_000_000
"""Distance between the first epochs of two repeats, so that their batches and augmentations differ."""


def run(cfg: DictConfig, folder: Path) -> None:
    """Train and evaluate the archs of one job; the first job makes the warm start."""
    run_job(read_config(cfg, ProxyConfig), folder, build_proxy_evaluator, time_proxy)


@dataclass(frozen=True)
class ProxyTraining:
    """Trains the subnet of a trial as fine-tuning does.

    Calls with the same steps and repeat see the same batches, which depend on the seed and the step alone.

    Args:
        config: the configuration.
        data: the data module.
        last: steps of the last rung, the length of the learning-rate schedule. A longer training has a longer schedule.
        fold: which fold of train `data` keeps for the score; None where it keeps the search split.
        repaired: whether subnets are parts of one whole network of the task.
        teacher: the network that subnets imitate; None to learn from the labels alone.
    """

    config: ProxyConfig
    data: DownstreamData
    last: int
    fold: int | None = None
    repaired: bool = False
    teacher: Task | None = None

    def __call__(self, subnet: Task, evaluation: Evaluation) -> Usage:
        """Train a subnet for the steps of its evaluation; returns the images that it saw and the MACs."""
        if evaluation.steps == evaluation.after:
            return Usage()
        seed = stable_seed(self.config.seed, "repeat", evaluation.repeat) if evaluation.repeat else self.config.seed
        settings = replace(self.settings(max(evaluation.steps, self.last)), seed=seed)
        folder = self.config.folder
        before = files.state_file(folder, evaluation.trial, evaluation.after, self.fold) if evaluation.after else None
        kept = files.state_file(folder, evaluation.trial, evaluation.steps, self.fold) if evaluation.keep else None
        module = TaskModule(subnet, settings, self.teacher)
        return self.train(
            module, evaluation.steps, "" if evaluation.trial < 0 else self.named(f"trial {evaluation.trial}"),
            before=before, after=evaluation.after, kept=kept, repeat=evaluation.repeat,
        )  # fmt: skip

    def named(self, what: str) -> str:
        """Some work with the fold that it is done for, for the log."""
        return what if self.fold is None else f"{what}, fold {self.fold + 1} of {self.config.search.folds}"

    def settings(self, total_steps: int) -> TrainingSettings:
        """How a task is trained with a learning rate that runs over `total_steps` steps."""
        accumulate = self.config.task.recipe.build().accumulate
        settings = build_training_settings(self.config, total_steps, self.data.batch_size * accumulate)
        return replace(settings, keep_statistics=self.repaired)

    def train(
        self, module: TaskModule, steps: int, what: str, *, before: Path | None = None, after: int = 0,
        kept: Path | None = None, repeat: int = 0,
    ) -> Usage:  # fmt: skip
        """Train a task up to this number of steps; returns the images that it saw and the MACs.

        Args:
            what: what trains, for log lines about its progress; empty for none.
            before: the state to continue from, saved after `after` steps.
            kept: where to save the state at the end; None for nowhere.
            repeat: see `Evaluation`.
        """
        device, batches = module.task.device, module.settings.recipe.accumulate
        # Longer than the training, which the trainer ends: Lightning does not resume an epoch that is complete.
        length = max(steps, self.last) * batches
        self.data.stream(length, batches_per_step=batches, first_epoch=repeat * REPEATED_EPOCHS)
        trainer = build_bare_trainer(self.config.trainer, steps, what)
        if kept is not None:
            kept.parent.mkdir(exist_ok=True)
            trainer.callbacks.append(LastCheckpoint(kept, steps))
        if before is not None and not holds_tensors(before):
            rung = self.config.folder / files.RUNGS_FOLDER / f"{before.stem}.json"
            raise RunError(
                f"{before} is missing or damaged: delete {rung} and repeat the command, which makes it again"
            )
        trainer.fit(
            module.train(), datamodule=self.data, ckpt_path=None if before is None else str(before), weights_only=True
        )
        module.task.to(device)  # Lightning leaves it on the CPU
        images = (steps - after) * batches * self.data.batch_size
        return Usage(images, training_macs=module.training_macs - module.macs_before)


def build_proxy_evaluator(config: ProxyConfig) -> TrialEvaluator:
    """The evaluator that trains each subnet before it scores it.

    Raises:
        NasTransferError: the data or the weights cannot be used.
    """
    table, checkpoint, trainings, repair = _parts(config)
    file = config.folder / config.stage.prepares
    starts = [files.warm_start_file(file, training.fold) for training in trainings]
    if is_prepared(file):
        return _evaluator(config, table, checkpoint, starts, trainings, repair)
    others = [
        _warm_start_of_fold(config, table, checkpoint, training, start)
        for training, start in zip(trainings[1:], starts[1:], strict=True)
    ]
    with replacing(file) as temporary:
        spent = _together([_make_warm_start(config, table, checkpoint, trainings[0], temporary), *others])
        evaluator = _evaluator(config, table, checkpoint, [temporary, *starts[1:]], trainings, repair)
        if (timing := read_timing(config.folder)) is None:
            spent = _timed(evaluator, min(TIMED_STEPS, trainings[0].last), spent)
        else:
            spent = replace(spent, step_seconds=timing.step_seconds, scoring_seconds=timing.scoring_seconds)
        spent.write(file.parent)
    return evaluator


def _parts(
    config: ProxyConfig, *, measures_damage: bool = True
) -> tuple[SupernetTable, Checkpoint, list[ProxyTraining], RepairedTrials | None]:
    """Table, weights, trainings (one for each fold) and repair of the trials.

    See `build_evaluator` for `measures_damage`.
    """
    last = config.rungs().steps[-1]
    set_threads(config.num_threads)
    table, checkpoint = searched_weights(config)
    data = build_data(config.data, SUPERNET, table.preprocessing)
    if config.search.folds is not None:
        require_unseen(config, checkpoint)
        folds = enumerate(data.folds(config.search.folds))
        return table, checkpoint, [ProxyTraining(config, each, last, fold) for fold, each in folds], None
    training = ProxyTraining(config, data, last)
    repair = None
    if checkpoint.arch is not None:
        repair = RepairedTrials(config, table, checkpoint, data)
        if measures_damage:
            hold_damage(config, checkpoint, repair.repairer)
        taught = last and config.task.sampling.build().distillation
        training = replace(training, repaired=True, teacher=repair.whole if taught else None)
    return table, checkpoint, [training], repair


def time_proxy(config: ProxyConfig) -> Timing:
    """Time the trials of a proxy search and a step of its warm-up, before the warm-up; nothing of it is kept."""
    started = time.monotonic()
    table, checkpoint, trainings, repair = _parts(config, measures_damage=False)
    training = trainings[0]
    task, untrained = _inherited(config, table, checkpoint, training)
    warmup, seconds = config.proxy.warmup_steps, 0.0
    if untrained and warmup:
        task.body.requires_grad_(False)
        timed, begun = min(TIMED_STEPS, warmup), time.monotonic()
        training.train(TaskModule(task, training.settings(warmup)), timed, "")
        seconds = len(trainings) * warmup * (time.monotonic() - begun) / timed
        task.body.requires_grad_(True)
    evaluator = _joined(config, [_evaluator_of_fold(config, task, each, repair) for each in trainings])
    steps = min(TIMED_STEPS, training.last)
    return timing_of(config, evaluator, steps=steps, started=started, warmup_seconds=seconds)


def _evaluator(
    config: ProxyConfig, table: SupernetTable, whole: Checkpoint, starts: Sequence[Path],
    trainings: Sequence[ProxyTraining], repair: RepairedTrials | None,
) -> TrialEvaluator:  # fmt: skip
    evaluators = []
    for file, training in zip(starts, trainings, strict=True):
        supernet = build_task(config, table, SUPERNET, training.data)
        load_network(supernet, load_checkpoint(str(file), table))
        damage = damage_of_run(config, supernet.space, whole)
        evaluators.append(_evaluator_of_fold(config, supernet, training, repair, damage))
    return _joined(config, evaluators)


def _evaluator_of_fold(
    config: ProxyConfig, supernet: Task, training: ProxyTraining, repair: RepairedTrials | None,
    damage: ArchDamage | None = None,
) -> TrialEvaluator:  # fmt: skip
    if config.search.folds is not None:  # all folds share the memory
        search = replace(config.search, cache_mib=config.search.cache_mib // config.search.folds)
        config = replace(config, search=search)
    return evaluator_of(config, supernet, training.data, train=training, repair=repair, damage=damage)


def _joined(config: ProxyConfig, evaluators: Sequence[TrialEvaluator]) -> TrialEvaluator:
    return evaluators[0] if config.search.folds is None else FoldedEvaluator(evaluators, config.folder)


def _inherited(
    config: ProxyConfig, table: SupernetTable, checkpoint: Checkpoint, training: ProxyTraining
) -> tuple[Task, list[str]]:
    """The supernet's task with the inherited weights, and the names of its tensors that have none."""
    task = build_task(config, table, SUPERNET, training.data)
    if checkpoint.format == RANDOM:
        if not training.fold:  # once for all folds
            logger.warning("weights=null: each arch is trained from random weights, so expect low scores")
        return task, []
    if checkpoint.arch is None:
        return task, inherit(task, checkpoint)
    load_whole(task, checkpoint)
    return task, []


def _make_warm_start(
    config: ProxyConfig, table: SupernetTable, checkpoint: Checkpoint, training: ProxyTraining, file: Path
) -> Spent:
    """Load the inherited weights and train neck and head behind the frozen body, unless all of it is trained."""
    task, untrained = _inherited(config, table, checkpoint, training)
    spent = Spent()
    if untrained and config.proxy.warmup_steps:
        what = training.named("warm-up of neck and head behind the frozen body")
        logger.info("%s: %d steps", what, config.proxy.warmup_steps)
        task.body.requires_grad_(False)
        start = time.monotonic()
        steps = config.proxy.warmup_steps
        usage = training.train(TaskModule(task, training.settings(steps)), steps, training.named("warm-up"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        spent = Spent(time.monotonic() - start, device, usage.images, training_macs=usage.training_macs)
        logger.info("warm-up: %d images in %.0f s", usage.images, spent.seconds)
    save_checkpoint(
        file, task, parent=None if checkpoint.format == RANDOM else checkpoint, metrics={}, versions={},
        stage=config.stage.name, config_sha256=config.config_sha256,
    )  # fmt: skip
    return replace(spent, provenance=checkpoint.lineage())


def _warm_start_of_fold(
    config: ProxyConfig, table: SupernetTable, checkpoint: Checkpoint, training: ProxyTraining, file: Path
) -> Spent:
    """Make the warm start of a fold other than the first, unless an interrupted search has made it."""
    record = files.spent_file(file)
    if not (file.is_file() and holds_tensors(file) and (file.parent / record).is_file()):
        with replacing(file) as temporary:
            _make_warm_start(config, table, checkpoint, training, temporary).write(file.parent, record)
    return read_spent(file.parent, record)


def _together(spent: Sequence[Spent]) -> Spent:
    """What the warm starts of all folds used."""
    return replace(
        spent[0],
        seconds=sum(one.seconds for one in spent),
        images=sum(one.images for one in spent),
        training_macs=sum(one.training_macs for one in spent),
    )


def _timed(evaluator: TrialEvaluator, steps: int, spent: Spent) -> Spent:
    """`spent`, plus the time to train the smallest and the largest arch for a few steps and to score them."""
    timed = end_archs(evaluator.supernet.space, repairs=evaluator.repair is not None)
    outcomes = [evaluator.evaluate(Evaluation(-1, arch.to_dict(), steps=steps)) for arch in timed]
    return replace(
        spent,
        seconds=spent.seconds + sum(outcome.seconds for outcome in outcomes),
        images=spent.images + sum(outcome.images for outcome in outcomes),
        training_macs=spent.training_macs + sum(outcome.training_macs for outcome in outcomes),
        device=evaluator.supernet.device.type,
        step_seconds=tuple(outcome.training_seconds / steps for outcome in outcomes) if steps else (),
        scoring_seconds=tuple(outcome.seconds - outcome.training_seconds for outcome in outcomes),
    )
