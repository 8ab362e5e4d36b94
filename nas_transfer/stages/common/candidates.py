"""The jobs of a search: archs come from a job's file, each becomes an outcome in a file of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from nas_transfer.errors import ConfigError
from nas_transfer.runs import Evaluation, read_job, write_started
from nas_transfer.search.evaluate import PRECISIONS, CandidateEvaluator
from nas_transfer.search.problem import Limit
from nas_transfer.space import SUPERNET
from nas_transfer.stages.common.build import build_data, build_task, build_weights, set_threads
from nas_transfer.stages.common.run_directory import config_sha256, log_to
from nas_transfer.stages.common.slurm_jobs import slurm_job
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.checkpoint import Checkpoint, load_network
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)

_evaluators: dict[str, CandidateEvaluator] = {}
"""The one evaluator of this process, by its configuration's hash: later jobs find supernet and images loaded."""


def evaluate_job(cfg: DictConfig, folder: Path, build: Callable[[DictConfig], CandidateEvaluator]) -> None:
    """Evaluate the archs of one job; each outcome is a file of its own.

    Args:
        build: makes the evaluator, which later jobs of this process find ready.

    Raises:
        NasTransferError: the configuration, the data or the weights cannot be used.
    """
    if cfg.search.job is None:
        raise ConfigError("expected a search to run as a sweep, got hydra.mode=RUN: leave hydra.mode out")
    path = Path(cfg.search.job)
    log_to(folder)
    if (job := slurm_job()) is not None:
        write_started(path, job)
    evaluator = _evaluator(cfg, build)
    for evaluation in read_job(path):
        file = path.parent.parent / evaluation.file
        if file.is_file():
            continue
        outcome = evaluator.evaluate(evaluation)
        outcome.write(file)
        shown = ", ".join(f"{name} {value:.6g}" for name, value in outcome.values.items())
        logger.info("%s: %s (%.2f s)", evaluation, shown or outcome.reason, outcome.seconds)


def _evaluator(cfg: DictConfig, build: Callable[[DictConfig], CandidateEvaluator]) -> CandidateEvaluator:
    key = config_sha256(cfg)
    if key not in _evaluators:
        _evaluators.clear()  # two supernets at once may not fit into memory
        _evaluators[key] = build(cfg)
    return _evaluators[key]


def build_evaluator(cfg: DictConfig, *, cache: bool = True) -> CandidateEvaluator:
    """The evaluator that a search's jobs use; without cache it reads the images anew for every candidate."""
    set_threads(cfg)
    table, checkpoint = supernet_weights(cfg)
    data = build_data(cfg, SUPERNET, table.preprocessing)
    supernet = build_task(cfg, table, SUPERNET, data)
    load_network(supernet, checkpoint)
    return evaluator_of(cfg, supernet, data, cache=cache)


def supernet_weights(cfg: DictConfig) -> tuple[SupernetTable, Checkpoint]:
    """The table and the weights of the supernet that is searched; ConfigError if there are none, or one arch's."""
    table, checkpoint = build_weights(cfg)
    if checkpoint is None:
        raise ConfigError("expected weights=<a supernet's run, or a file> to search, got none")
    if checkpoint.arch is not None:
        raise ConfigError(f"expected the weights of a supernet to search, got those of one arch in {checkpoint.path}")
    return table, checkpoint


def evaluator_of(
    cfg: DictConfig,
    supernet: Task,
    data: Any,
    *,
    cache: bool = True,
    train: Callable[[Task, Evaluation], int] | None = None,
) -> CandidateEvaluator:
    """The evaluator of a supernet's archs as the configuration says."""
    if cfg.search.precision not in PRECISIONS:
        raise ConfigError(f"expected search.precision to be one of {', '.join(PRECISIONS)}, got {cfg.search.precision}")
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    evaluator = CandidateEvaluator(
        supernet.to("cuda" if on_gpu else "cpu"),
        partial(data.calibration_dataloader, cfg.calibration_images, max(2, data.batch_size)),
        data.search_dataloader(),
        data.search_ground_truth,
        {str(name): instantiate(objective) for name, objective in cfg.search.objectives.items()},
        limits_of(cfg),
        cfg.search.cache_mb * 2**20 if cache else 0,
        cfg.search.precision,
        train,
    )
    if cfg.search.precision != "32":
        _tell_of_the_precision(evaluator)
    return evaluator


def _tell_of_the_precision(evaluator: CandidateEvaluator) -> None:
    """Log what the reduced precision changes in the largest and the smallest arch's score."""
    space, key = evaluator.supernet.table.space, evaluator.supernet.score_key
    chosen = evaluator.precision
    for arch in (space.largest(), space.smallest()):
        scores = []
        for evaluator.precision in ("32", chosen):
            scores.append(evaluator.score(evaluator.extract(Evaluation(0, arch.to_dict())))[key])
        logger.info("%s of arch %s: %.5f at 32, %.5f at %s", key, arch.short_id(), scores[0], scores[1], chosen)


def limits_of(cfg: DictConfig) -> dict[str, Limit]:
    """The limits on objectives; ConfigError for another name or bound."""
    limits = {}
    for name, bounds in (cfg.search.constraints or {}).items():
        if name not in cfg.search.objectives:
            raise ConfigError(
                f"expected search.constraints of the objectives {', '.join(cfg.search.objectives)}, got {name}: "
                f"add it, objective=[{','.join(map(str, cfg.search.objectives))},{name}]"
            )
        if unknown := set(bounds) - {"min", "max"}:
            raise ConfigError(f"expected min and max in search.constraints.{name}, got {sorted(unknown)}")
        low, high = (None if bounds.get(key) is None else float(bounds[key]) for key in ("min", "max"))
        limits[str(name)] = Limit(low, high)
    return limits
