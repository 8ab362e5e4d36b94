"""The jobs of a search: a job file lists archs, and each one's outcome is written to a file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from nas_transfer.arch import SUPERNET
from nas_transfer.data.module import DownstreamData
from nas_transfer.errors import ConfigError
from nas_transfer.runs import Evaluation, Usage, read_job, write_started
from nas_transfer.runs.texts import value_text
from nas_transfer.search.damage import ArchDamage
from nas_transfer.search.evaluate import TrialEvaluator, TrialImages, no_batches
from nas_transfer.search.planning import end_archs
from nas_transfer.stages.common.build import (
    build_blank,
    build_data,
    build_task,
    build_weights,
    evaluation_device,
    hold_run_inputs,
    set_threads,
)
from nas_transfer.stages.common.damage import cuts_parts, damage_of_run, give_damage, hold_damage, ranks_public_parts
from nas_transfer.stages.common.evaluation import evaluation_batch
from nas_transfer.stages.common.limits import limits_of
from nas_transfer.stages.common.racing import make_race
from nas_transfer.stages.common.repair import RepairedTrials
from nas_transfer.stages.common.run_directory import log_to
from nas_transfer.stages.common.slurm_jobs import slurm_job
from nas_transfer.stages.config.search import SearchConfig
from nas_transfer.supernet.links import repair_module
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.checkpoint import Checkpoint, is_whole, load_network, random_weights
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=SearchConfig)

_evaluators: dict[tuple[str, Path], TrialEvaluator] = {}
"""The evaluator of this process by the hash of its configuration, so that later jobs need not load it again."""


def job_of(config: SearchConfig, folder: Path) -> Path:
    """The file of the job that this process runs. Its log goes to the run folder from now on.

    Raises:
        ConfigError: this process runs no job.
    """
    if config.search.job is None:
        raise ConfigError("hydra.mode must be MULTIRUN for a search, got RUN: remove hydra.mode from the command")
    path = Path(config.search.job)
    log_to(folder)
    if (job := slurm_job()) is not None:
        write_started(path, job)
    return path


def evaluate_job(path: Path, evaluator: TrialEvaluator) -> None:
    """Evaluate the archs of one job; each outcome is written to its own file.

    Raises:
        NasTransferError: the configuration, the data or the weights cannot be used.
    """
    for evaluation in read_job(path):
        file = path.parent.parent / evaluation.file
        if file.is_file():
            continue
        outcome = evaluator.evaluate(evaluation)
        outcome.write(file)
        shown = ", ".join(f"{name} {value_text(name, value)}" for name, value in outcome.values.items())
        logger.info("%s: %s (%.2f s)", evaluation, shown or outcome.reason, outcome.seconds)


def evaluator_in_process(config: Config, build: Callable[[Config], TrialEvaluator]) -> TrialEvaluator:
    """The evaluator of this process, which is made for the first of its jobs."""
    key = config.config_sha256, config.folder
    if key not in _evaluators:
        _evaluators.clear()  # two supernets at once may not fit into memory
        _evaluators[key] = build(config)
    return _evaluators[key]


def has_evaluator(config: SearchConfig) -> bool:
    """Whether this process has made the evaluator of a search."""
    return (config.config_sha256, config.folder) in _evaluators


def build_evaluator(config: SearchConfig, *, cache: bool = True, measures_damage: bool = True) -> TrialEvaluator:
    """The evaluator of the jobs of a search.

    Args:
        cache: False to read the images again for every trial.
        measures_damage: whether to measure the damages of choices first, where the search asks for them.
    """
    set_threads(config.num_threads)
    table, checkpoint = searched_weights(config)
    data = build_data(config.data, SUPERNET, table.preprocessing)
    supernet = build_task(config, table, SUPERNET, data)
    if cuts_parts(config, checkpoint):
        repair = RepairedTrials(config, table, checkpoint, data)
        if measures_damage:
            hold_damage(config, checkpoint, repair.repairer)
        damage = damage_of_run(config, supernet.space, checkpoint)
        scores = not ranks_public_parts(config, checkpoint)
        return evaluator_of(config, supernet, data, cache=cache, repair=repair, damage=damage, scores=scores)
    load_network(supernet, checkpoint)
    return evaluator_of(config, supernet, data, cache=cache)


def searched_weights(config: SearchConfig) -> tuple[SupernetTable, Checkpoint]:
    """The table and the weights that are searched: those of a supernet, or of one whole network, of the task or public.

    A proxy search may start from random ones, see `nas_transfer.tasks.checkpoint.random_weights`.

    Raises:
        ConfigError: there are no weights, or they are of another arch alone, or of a family that cannot be repaired.
    """
    table, checkpoint = build_weights(config)
    if checkpoint is None and config.starts_from_random_weights:
        return table, random_weights(table)
    if checkpoint is None:
        raise ConfigError(
            "a search needs the weights of a supernet or of the largest network, got none: "
            "add weights=<its finished run's folder>"
        )
    if checkpoint.arch is None:
        if cuts_parts(config, checkpoint):
            repair_module(table)
        return table, checkpoint
    if not is_whole(checkpoint, build_blank(config, table)):
        raise ConfigError(
            f"a search needs the weights of a supernet or of the largest network of this task, got those of another "
            f"arch or task in {checkpoint.path}: train with arch=supernet or arch=max"
        )
    repair_module(table)
    return table, checkpoint


def evaluator_of(
    config: SearchConfig,
    supernet: Task,
    data: DownstreamData,
    *,
    cache: bool = True,
    train: Callable[[Task, Evaluation], Usage] | None = None,
    repair: Callable[[Evaluation], Task] | None = None,
    damage: ArchDamage | None = None,
    scores: bool = True,
) -> TrialEvaluator:
    """The configured evaluator of the archs of a supernet; without `scores`, no image is read."""
    hold_run_inputs(config, data, records=False)
    objectives = {name: objective.build() for name, objective in config.search.objectives.items()}
    give_damage(objectives, damage)
    in_batch, races = evaluation_batch(supernet, data), config.search.race is not None
    images = TrialImages(no_batches, [])
    if scores:
        images = TrialImages(
            partial(data.calibration_dataloader, config.calibration_images, in_batch),
            data.search_dataloader(data.batch_size if races else in_batch, shuffled=races),
            data.search_ground_truth,
        )
    evaluator = TrialEvaluator(
        supernet.to(evaluation_device(config.trainer.accelerator)),
        images,
        objectives,
        limits_of(config.search.constraints),
        config.search.cache_mib * 2**20 if cache else 0,
        config.search.precision,
        train,
        repair,
        make_race(config, supernet, objectives, data),
    )
    if evaluator.reads_once and train is None and repair is None:
        data.decoded.clear()  # its images are in memory as batches, and no training reads them again
    if config.search.precision != "32" and scores:
        _log_effect_of_precision(evaluator)
    return evaluator


def _log_effect_of_precision(evaluator: TrialEvaluator) -> None:
    """Log how a reduced precision changes the scores of the largest and the smallest arch."""
    key, chosen = evaluator.supernet.score_key, evaluator.precision
    for arch in reversed(end_archs(evaluator.supernet.space, repairs=evaluator.repair is not None)):
        scores = []
        for evaluator.precision in ("32", chosen):
            scores.append(evaluator.score(evaluator.extract(Evaluation(0, arch.to_dict())))[key])
        full, reduced = (100 * score for score in scores)
        logger.info("%s of arch %s: %.2f %% at 32, %.2f %% at %s", key, arch.short_id(), full, reduced, chosen)
