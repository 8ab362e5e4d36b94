"""From the configuration to the objects of a run: table, arch, data, task and trainer."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback

from nas_transfer.arch_files import resolve_arch
from nas_transfer.data.randomness import stable_seed
from nas_transfer.errors import ConfigError
from nas_transfer.paths import conf_dir
from nas_transfer.runs import files
from nas_transfer.runs.atomic import replacing
from nas_transfer.space import SUPERNET, ArchOrSupernet, SearchSpace
from nas_transfer.stages.common.progress import ProgressLog
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.checkpoint import Checkpoint, load_checkpoint
from nas_transfer.tasks.task import Task, TaskSettings
from nas_transfer.tasks.training import TrainingSettings

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LENGTH_KEYS = ("max_steps", "max_epochs", "check_val_every_n_epoch", "limit_train_batches")
"""Trainer keys that this program turns into the length of its one stream of batches."""


class LastCheckpoint(Callback):
    """Keep the newest training state in one file, which is either the old one or the whole new one.

    Lightning's ModelCheckpoint expects a copy of the weights from before the step under manual optimisation; resuming
    needs them from after it.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ConfigError(f"expected checkpoint_every_n_steps of at least 1, got {every_n_steps}")
        self.path = path
        self.every_n_steps = every_n_steps
        self.saved_step = 0

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Know a resumed run's state as saved: between two steps there are gradients that no checkpoint holds."""
        self.saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Save after every `every_n_steps`-th optimiser step."""
        step = trainer.global_step
        if step == self.saved_step or step % self.every_n_steps:
            return
        self.saved_step = step
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.path, weights_only=False)  # takes part, and writes nothing
            return
        with replacing(self.path) as temporary:
            trainer.save_checkpoint(temporary, weights_only=False)


def set_threads(cfg: DictConfig) -> None:
    """Bound the process's threads, keep its memory and silence third-party notices that no user can act on."""
    torch.set_num_threads(cfg.num_threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # ours is: StreamBatchSampler
    warnings.filterwarnings("ignore", message=".*srun.*available.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones.

    By default it gives every large one back to the system, which fills each new one with zeros page by page: a quarter
    of the time of a small network on a CPU. Environment variables of the allocator win.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "LD_PRELOAD")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def build_table(cfg: DictConfig) -> SupernetTable:
    """The supernet's table."""
    return instantiate(cfg.supernet)


def build_arch(cfg: DictConfig, space: SearchSpace) -> ArchOrSupernet:
    """The arch that ``arch=`` names, or the supernet; ArchError if there is none."""
    return resolve_arch(str(cfg.arch), space, [conf_dir() / "archs"])


def build_weights(cfg: DictConfig) -> tuple[SupernetTable, Checkpoint | None]:
    """The supernet's table and the weights to start from, if any; their preprocessing is then the table's.

    Raises:
        WeightsError: weights that cannot be used.
    """
    table = build_table(cfg)
    if cfg.weights is None:
        return table, None
    checkpoint = load_checkpoint(str(cfg.weights), table, str(cfg.weights_format))
    return replace(table, preprocessing=checkpoint.preprocessing), checkpoint  # type: ignore[type-var]


def build_data(cfg: DictConfig, arch: ArchOrSupernet, preprocessing: Preprocessing) -> Any:
    """The data module, set up; DataError for a data set that is not as it should be."""
    data = make_data(cfg, arch, preprocessing)
    data.setup("fit")
    return data


def make_data(cfg: DictConfig, arch: ArchOrSupernet, preprocessing: Preprocessing) -> Any:
    """The data module before it has looked at its files; an embedded data set is drawn.

    Where images are resized for classification, that is done as the weights expect it.

    Supernet training leaves the search split out of train, so that a search never scores what was trained on; a fixed
    arch trains on all of train.
    """
    options = {key: value for key, value in cfg.data.items() if key != "preview"}
    if options["split"]["hold_out_search"] is None:
        options["split"] = OmegaConf.merge(options["split"], {"hold_out_search": arch is SUPERNET})
    if "interpolation" in options and options["interpolation"] is None:
        options["interpolation"] = preprocessing.interpolation
    data = instantiate(options)
    data.prepare_data()
    return data


def build_training_settings(cfg: DictConfig, total_steps: int, total_batch: int) -> TrainingSettings:
    """How a task is trained for so many steps of a total batch of so many images."""
    recipe = instantiate(cfg.task.recipe).for_total_batch(total_batch)
    return TrainingSettings(recipe, instantiate(cfg.task.sampling), cfg.seed, total_steps)


def build_task(cfg: DictConfig, table: SupernetTable, arch: ArchOrSupernet, data: Any) -> Task:
    """The task with new weights, drawn from the seed."""
    settings = TaskSettings(table, arch, cfg.task.cost_classes if data is None else data.num_classes)
    torch.manual_seed(stable_seed(cfg.seed, "weights"))
    built = instantiate(cfg.task.build)(settings, **({} if data is None else data.task_arguments()))
    built.ground_truth = None if data is None else data.val_ground_truth
    return built


def build_bare_trainer(cfg: DictConfig, steps: int) -> pl.Trainer:
    """Lightning's trainer for a short training that leaves nothing on disk and is not validated on the way."""
    return instantiate(
        _trainer_options(cfg) | {"enable_progress_bar": False, "limit_val_batches": 0},
        logger=False,
        enable_checkpointing=False,
        max_epochs=1,
        max_steps=steps,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


def build_trainer(cfg: DictConfig, folder: Path) -> pl.Trainer:
    """Lightning's trainer with our callbacks; its one epoch is the whole run (see `training`)."""
    callbacks: list[Callback] = []
    on_terminal = sys.stdout.isatty()
    if cfg.trainer.enable_progress_bar:
        callbacks.append(pl.callbacks.RichProgressBar() if on_terminal else ProgressLog())
    if cfg.ema_decay is not None:
        callbacks.append(pl.callbacks.EMAWeightAveraging(decay=cfg.ema_decay))
    # Last, so that a step's checkpoint holds what the others did after that step.
    callbacks.append(LastCheckpoint(folder / files.LAST_CHECKPOINT, cfg.checkpoint_every_n_steps))
    loggers: list[Any] = [pl.loggers.CSVLogger(str(folder), name=files.LOGS_FOLDER)]
    if cfg.tensorboard:
        try:
            loggers.append(pl.loggers.TensorBoardLogger(str(folder), name=files.TENSORBOARD_FOLDER))
        except ModuleNotFoundError as error:
            raise ConfigError("expected TensorBoard for tensorboard=true, got none: pip install tensorboard") from error
    return instantiate(
        _trainer_options(cfg) | {"enable_progress_bar": cfg.trainer.enable_progress_bar and on_terminal},
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=str(folder),
        max_epochs=1,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


def _trainer_options(cfg: DictConfig) -> dict[str, Any]:
    options = {str(key): value for key, value in cfg.trainer.items() if key not in LENGTH_KEYS}
    if options["sync_batchnorm"] and not torch.cuda.is_available():
        options["sync_batchnorm"] = False  # torch's refuses a CPU; a supernet's own are shared anywhere
    return options
