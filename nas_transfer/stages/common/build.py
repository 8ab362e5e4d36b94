"""Build the objects of a run from its configuration: table, arch, data, task and trainer."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.trainer.states import TrainerFn

from nas_transfer.arch import SUPERNET, ArchOrSupernet
from nas_transfer.arch_files import find_arch_file, is_arch_file, resolve_arch
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.randomness import stable_seed
from nas_transfer.errors import ConfigError, RunError, WeightsError
from nas_transfer.paths import conf_dir
from nas_transfer.runs import WEIGHTS, files, hold_inputs, input_file, read_inputs, require_same_file
from nas_transfer.runs.atomic import replacing
from nas_transfer.runs.reading import START_ANEW, holds_tensors, is_present
from nas_transfer.space import SearchSpace
from nas_transfer.stages.common.kept import CURRENT
from nas_transfer.stages.common.progress import ProgressLog, TrainingBar
from nas_transfer.stages.common.run_directory import is_main_process
from nas_transfer.stages.common.signals import RECEIVER, SIGNALS, EndedBySignal
from nas_transfer.stages.config.base import DataRunConfig, TaskRunConfig, TrainerConfig
from nas_transfer.stages.config.factory import AUTO, Factory
from nas_transfer.stages.config.training import ScoredRunConfig
from nas_transfer.supernet.preprocessing import Preprocessing
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.checkpoint import Checkpoint, load_checkpoint, table_of_weights, weights_file
from nas_transfer.tasks.task import Task, TaskSettings
from nas_transfer.tasks.training import TrainingSettings

logger = logging.getLogger(__name__)

SAVE_DIR = "save_dir"
"""Where Lightning's loggers write."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class LastCheckpoint(Callback):
    """Save the training state to one file, which is replaced atomically. The state before it is kept, too.

    Lightning's ModelCheckpoint expects a copy of the weights from before the step under manual optimisation; resuming
    needs them from after it.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.saved_step = 0

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Treat the state of a resumed run as saved, since accumulated gradients are in no checkpoint."""
        self.saved_step = CURRENT.saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Save after every `every_n_steps`-th optimiser step."""
        step = trainer.global_step
        if step != self.saved_step and step % self.every_n_steps == 0:
            self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Save the state after a complete step."""
        self.saved_step = trainer.global_step
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.path, weights_only=False)  # takes part, and writes nothing
            return
        previous = files.previous(self.path)
        previous.unlink(missing_ok=True)  # three files at once might be too much
        with replacing(self.path) as temporary:
            trainer.save_checkpoint(temporary, weights_only=False)
            if self.path.exists():
                self.path.rename(previous)
        CURRENT.saved_step = self.saved_step


def last_checkpoint(folder: Path) -> Path | None:
    """The latest training state that can be read; None if there is none, so that the training begins.

    Raises:
        RunError: there are only damaged ones.
    """
    damaged: list[Path] = []
    for name in (files.LAST_CHECKPOINT, files.PREVIOUS_CHECKPOINT):
        path = folder / name
        if not is_present(path, START_ANEW):
            continue
        if _is_training_state(path):
            for other in damaged:
                logger.warning("%s is damaged: going on from %s", other, path)
            return path
        damaged.append(path)
    if damaged:
        raise RunError(f"{' and '.join(map(str, damaged))} cannot be read: {START_ANEW}")
    return None


def _is_training_state(path: Path) -> bool:
    if not holds_tensors(path):
        return False
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a damaged file makes the unpickler fail in any way
        return False
    return isinstance(state, dict) and state.keys() >= {"state_dict", "optimizer_states", "global_step", "loops"}


class EndOnSignal(Callback):
    """End a training on SIGTERM and SIGINT, after the current step is done and saved.

    Validations are ended at once. Several ranks end together, as Lightning does it, without saving.

    Args:
        last: saves the state.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self.last = last
        self.step = 0

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Hold the signals back from now on."""
        self.step = trainer.global_step
        self._hold(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """End the training after a signal, unless gradients of steps that are not saved are being accumulated."""
        before, self.step = self.step, trainer.global_step
        if RECEIVER.pending is None or trainer.world_size > 1:
            return
        if self.step == self.last.saved_step:
            raise EndedBySignal(RECEIVER.pending)
        if self.step != before:
            self.last.save(trainer)
            raise EndedBySignal(RECEIVER.pending)

    def on_validation_start(self, trainer: pl.Trainer, *_: object) -> None:
        """Let a signal end the validation."""
        RECEIVER.hold(())

    def on_validation_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Hold the signals back again where the training goes on."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._hold(trainer)

    def on_train_end(self, *_: object) -> None:
        """Hold nothing back any more."""
        RECEIVER.hold(())
        if RECEIVER.pending is not None:
            raise EndedBySignal(RECEIVER.pending)

    def on_exception(self, *_: object) -> None:
        """Hold nothing back any more."""
        RECEIVER.hold(())

    def _hold(self, trainer: pl.Trainer) -> None:
        RECEIVER.hold(SIGNALS if trainer.world_size == 1 else [signal.SIGTERM])
        if trainer.world_size == 1:
            RECEIVER.reclaim()  # Lightning's handler would end the training before the state is saved


def set_threads(num_threads: int) -> None:
    """Limit the threads of this process, keep freed memory, and silence notices that users cannot act on."""
    torch.set_num_threads(num_threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # ours is: StreamBatchSampler
    warnings.filterwarnings("ignore", message=".*srun.*available.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)


def evaluation_device(accelerator: str) -> torch.device:
    """Where networks run outside Lightning's trainer: on the GPU unless ``trainer.accelerator`` is the CPU."""
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones.

    By default, glibc returns every large block to the system, which then fills each new one with zeros, page by page.
    This takes a quarter of the time of a small network on a CPU. Nothing is changed if an environment variable
    configures the allocator.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "LD_PRELOAD")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def build_arch(config: TaskRunConfig, table: SupernetTable) -> ArchOrSupernet:
    """The arch that ``arch=`` names, or the supernet; ArchError for an unknown name."""
    return resolve_arch(config.arch, build_space(config, table), arch_folders())


def arch_folders() -> list[Path]:
    """Where named archs are."""
    return [conf_dir() / "archs"]


def build_space(config: TaskRunConfig, table: SupernetTable) -> SearchSpace:
    """All archs of a task: the genes of the table and of the task."""
    return build_blank(config, table).space


def build_blank(config: TaskRunConfig, table: SupernetTable) -> Task:
    """The supernet's task without values in its tensors, for its archs and their costs."""
    with torch.device("meta"):
        return build_task(config, table, SUPERNET, None)


def build_weights(config: DataRunConfig) -> tuple[SupernetTable, Checkpoint | None]:
    """The table of the supernet, and the weights to start from, if any. The table takes what comes with them.

    Raises:
        WeightsError: the weights cannot be used.
        RunError: the run began with other weights.
    """
    table = config.supernet.build()
    if config.weights is None:
        return table, None
    checkpoint = load_checkpoint(config.weights, table, config.weights_format)
    require_same_file(config.folder, WEIGHTS, input_file(checkpoint.path, checkpoint.sha256))
    return table_of_weights(table, checkpoint), checkpoint


def build_data(factory: Factory[DownstreamData], arch: ArchOrSupernet, preprocessing: Preprocessing) -> DownstreamData:
    """The data module after its `setup`; DataError for a dataset that cannot be used."""
    data = make_data(factory, arch, preprocessing)
    data.setup("fit")
    return data


def make_data(factory: Factory[DownstreamData], arch: ArchOrSupernet, preprocessing: Preprocessing) -> DownstreamData:
    """The data module before its `setup`; a dataset to draw is drawn.

    Classification resizes images with the interpolation of the weights. A supernet is trained without the search split,
    so that a search never scores images that were trained on, unless it is told to score on all of train. A single arch
    is trained on all of train.
    """
    if factory["batch_size"] == AUTO:
        raise ConfigError("data.batch_size=auto is for stage=finetune and stage=pretrain: name a number")
    chosen: dict[str, object] = {}
    split = factory["split"]
    if isinstance(split, Mapping) and split["hold_out_search"] is None:
        chosen["split"] = {**split, "hold_out_search": arch is SUPERNET and split["search_fraction"] != 1}
    if "interpolation" in factory and factory["interpolation"] is None:
        chosen["interpolation"] = preprocessing.interpolation
    data = factory.with_values(**chosen).build()
    data.prepare_data()
    return data


def hold_run_inputs(config: DataRunConfig, data: DownstreamData, *, records: bool = True) -> None:
    """Record the content that a run reads: weights, arch file, annotations, images. Call it before the work begins.

    Args:
        records: False for a job of a search, which only compares.

    Raises:
        RunError: the run is continued, and began with other content.
        WeightsError: a new run has no weights.
    """
    paths = dict(data.annotation_files)
    if config.weights is not None:
        paths[WEIGHTS] = weights_file(config.weights, config.supernet.build())
        if records and not paths[WEIGHTS].is_file() and read_inputs(config.folder) is None:
            raise WeightsError(
                f"{paths[WEIGHTS]} does not exist: weights must be the folder of a finished run, or a file"
            )
    if is_arch_file(config.arch):
        paths["arch"] = find_arch_file(config.arch, arch_folders())
    # The weights may be gone where a finished search is picked again.
    read = {role: input_file(path) for role, path in paths.items() if path.is_file()}
    hold_inputs(config.folder, read, data.image_lists, writes=records and is_main_process())


def build_training_settings(config: TaskRunConfig, total_steps: int, total_batch: int) -> TrainingSettings:
    """How a task is trained for `total_steps` steps of `total_batch` images."""
    recipe = config.task.recipe.build().for_total_batch(total_batch)
    return TrainingSettings(recipe, config.task.sampling.build(), config.seed, total_steps)


def build_task(config: TaskRunConfig, table: SupernetTable, arch: ArchOrSupernet, data: DownstreamData | None) -> Task:
    """The task with new weights, drawn from the seed."""
    settings = TaskSettings(table, arch, config.task.cost_classes if data is None else data.num_classes)
    torch.manual_seed(stable_seed(config.seed, "weights"))
    built = config.task.build.build()(settings, **({} if data is None else data.task_arguments()))
    built.ground_truth = None if data is None else data.val_ground_truth
    return built


def build_bare_trainer(config: TrainerConfig, steps: int, what: str = "", folder: Path | None = None) -> pl.Trainer:
    """Lightning's trainer for a short training without validation that writes nothing to disk.

    Args:
        what: what trains, for log lines about its progress; empty for none.
        folder: for files that Lightning writes and deletes again.
    """
    return config.lightning.build(
        **_trainer_arguments(config),
        default_root_dir=None if folder is None else str(folder),
        enable_progress_bar=False,
        callbacks=[ProgressLog(what, steps)] if what else [],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        max_epochs=1,
        max_steps=steps,
    )


def build_trainer(config: ScoredRunConfig, folder: Path, callbacks: Sequence[Callback] = ()) -> pl.Trainer:
    """Lightning's trainer with progress and loggers. Its only epoch is the whole run (see `training`)."""
    on_terminal = sys.stdout.isatty()
    bars: list[Callback] = []
    if config.trainer.enable_progress_bar:
        bars.append(TrainingBar() if on_terminal else ProgressLog())
    return config.trainer.lightning.build(
        **_trainer_arguments(config.trainer),
        enable_progress_bar=config.trainer.enable_progress_bar and on_terminal,
        callbacks=[*bars, *callbacks],
        logger=[_build_logger(name, logger, config.run_dir, folder) for name, logger in config.logger.items()],
        enable_checkpointing=False,  # `LastCheckpoint` and `BestWeights` do it
        default_root_dir=str(folder),
        max_epochs=1,
        check_val_every_n_epoch=None,
    )


def _build_logger(name: str, logger: Factory[Logger], run_dir: str, folder: Path) -> Logger:
    """One of Lightning's loggers; `folder` is that of the run. ConfigError if its package is not installed."""
    in_run = SAVE_DIR in logger and logger[SAVE_DIR] == run_dir
    try:
        return logger.build(**({SAVE_DIR: str(folder)} if in_run else {}))
    except InstantiationException as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise ConfigError(f"logger={name} needs a package that is not installed: pip install {name}") from error
        raise


def _trainer_arguments(config: TrainerConfig) -> dict[str, object]:
    """The arguments of every Trainer: this program orders the batches itself."""
    return config.arguments() | {
        "sync_batchnorm": config.sync_batchnorm and torch.cuda.is_available(),  # torch's refuses a CPU
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
    }
