"""Score a finished run on the validation split."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from nas_transfer.runs import Result
from nas_transfer.stages.common.analysis import write_analysis
from nas_transfer.stages.common.build import build_trainer, hold_run_inputs, set_threads
from nas_transfer.stages.common.evaluation import evaluate_task, load_trained
from nas_transfer.stages.common.results import make_result, write_predictions
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.trained import changes_since, with_trained_task
from nas_transfer.stages.config.training import EvaluateConfig
from nas_transfer.tasks.training import ScoringModule

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, folder: Path) -> Result | None:
    """Load a network, extract and recalibrate it if the weights are of a supernet, and score it.

    The task is that of the run that ``weights=`` names, unless the command names one.

    Raises:
        ConfigError: there are no weights, or they do not hold the arch.
        NasTransferError: the data or the weights cannot be used.
    """
    cfg = with_trained_task(cfg)
    config = read_config(cfg, EvaluateConfig)
    set_threads(config.num_threads)
    for difference in changes_since(cfg):
        logger.warning("%s", difference)
    task, data, checkpoint = load_trained(config)
    task.keeps_details = True
    hold_run_inputs(config, data)
    trainer = build_trainer(config, folder)
    module = ScoringModule(task)
    metrics = evaluate_task(config, module, data, trainer)
    if not trainer.is_global_zero:
        return None
    write_predictions(config.sample_predictions, folder, task, data)
    write_analysis(config.sample_predictions, folder, module, data)
    return make_result(config, task, metrics, devices=trainer.world_size, provenance=checkpoint.lineage())
