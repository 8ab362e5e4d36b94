"""The search as a Hydra sweeper: an Optuna study proposes archs, and any of Hydra's launchers runs their evaluation.

Hydra takes a sweeper only from a package below ``hydra_plugins``, which would be imported by every Hydra program of the
environment. `register` therefore adds an alias of that kind to Hydra's table of plugin classes: an undocumented
attribute, so the version of hydra-core is bounded and a test runs a search. The launcher for Ray has one too.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, read_write

from nas_transfer.errors import BusyError, ConfigError, NasTransferError, storage_error
from nas_transfer.stages.common.ray_jobs import RayLauncher
from nas_transfer.stages.common.run_directory import log_to
from nas_transfer.stages.config.base import RunConfig
from nas_transfer.stages.config.entry import begin_run, joined_run
from nas_transfer.stages.config.search import SearchConfig

if TYPE_CHECKING:
    from nas_transfer.runs import Job
    from nas_transfer.search.loop import Launch
    from nas_transfer.stages.common.launching import WorkerLauncher
    from nas_transfer.stages.common.slurm_jobs import QueueWatch

ALIAS = "hydra_plugins.nas_transfer"
BASIC, SLURM = "BasicLauncher", "SlurmLauncher"
LOCAL = ("JoblibLauncher", "LocalLauncher")
"""Launchers whose jobs run on this machine."""
REFUSED = "sbatch: error:"
"""What SLURM begins with when it does not take a job."""


class ArchSweeper(Sweeper):
    """Runs one search. Each of its jobs evaluates some archs."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the configuration and build the launcher."""
        self.composed = config
        if launcher_of(config) == SLURM:
            self.submitted = Path(str(config.hydra.sweep.dir)) / ".submitit" / secrets.token_hex(3)
            with read_write(config.hydra.launcher):
                config.hydra.launcher.submitit_folder = str(self.submitted / "%j")
        self.job_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> float | None:
        """Run the search to its end. `arguments` are those of the command line; every job gets them too.

        Raises:
            NasTransferError: everything that a user can correct.
        """
        for override in OverridesParser.create().parse_overrides(arguments):
            if override.is_sweep_override():
                raise ConfigError(
                    f"a search takes one value for {override.key_or_group}, got several: run one command for each value"
                )
        self.arguments = arguments
        self.queue: QueueWatch | None = None
        self.log_plainly()
        logging.getLogger("hydra._internal.core_plugins.basic_launcher").setLevel(logging.WARNING)
        return run_search(self.composed, self.launch, self.stop)

    def log_plainly(self) -> None:
        """Log as the jobs do."""
        configure_log(self.composed.hydra.job_logging, self.composed.hydra.verbose)

    def launch(self, jobs: Sequence[Job]) -> list[str | None]:
        """Run jobs through the launcher to their end; returns the reason of each failure, None for a success.

        Raises:
            NasTransferError: raised by a job; every other job would raise it too.
        """
        batch = [
            [*self.arguments, f"search.job='{job.path}'", f"hydra.sweep.subdir=jobs/{job.path.stem}"] for job in jobs
        ]
        first = min(jobs[0].trials, default=0)
        try:
            if launcher_of(self.composed) == SLURM:
                returns = self.launch_on_slurm(batch, first)
            else:
                returns = self.job_launcher.launch(batch, initial_job_idx=first)
        except NasTransferError:
            raise
        except Exception as error:  # submitit raises for all jobs when one of them died: the files tell which
            if (failure := storage_error(error)) is not None:
                raise failure from error
            text = " ".join(str(error).split())
            if REFUSED in text:
                raise ConfigError(f"SLURM takes no such job: {text.partition(REFUSED)[2].strip()}") from error
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            return [reason] * len(jobs)
        finally:
            self.log_plainly()  # launchers reconfigure the log
            log_to(Path(self.composed.run_dir))
        return [_failure(result) for result in returns]

    def launch_on_slurm(self, batch: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        """Run jobs while their queue is watched. They are cancelled if this process is ended.

        Submitit raises an exception as soon as one job has died, while others still run: it is raised once all have
        ended.
        """
        from nas_transfer.stages.common.launching import while_watched  # torch, not needed before
        from nas_transfer.stages.common.slurm_jobs import QueueWatch

        self.queue = watch = QueueWatch(self.submitted)

        def launch() -> Sequence[JobReturn]:
            try:
                return self.job_launcher.launch(batch, initial_job_idx=first)
            except Exception:
                watch.wait()
                raise

        return while_watched(launch, watch.look, self.stop)

    def stop(self) -> None:
        """Cancel the jobs of a cluster."""
        if self.queue is not None:
            self.queue.cancel()
        if isinstance(self.job_launcher, RayLauncher):
            self.job_launcher.stop()


def run_search(cfg: DictConfig, launch: Launch, stop: Callable[[], None] | None = None) -> float | None:
    """Run, continue or join the search of a composed configuration, Hydra's keys included.

    Args:
        cfg: the composed configuration.
        launch: runs jobs.
        stop: ends the jobs that `launch` runs in another thread; None for none.

    Returns:
        The picked arch's score; None if workers were added to a search that another process runs.

    Raises:
        NasTransferError: everything that a user can correct.
    """
    from nas_transfer.stages.common.workers import join  # torch and Optuna, not needed before
    from nas_transfer.stages.search import search

    try:
        with begin_run(cfg, cfg.hydra, imports=True) as (config, run):
            log_to(run.folder)
            workers = None if cfg.search.workers is None else _worker_launcher(cfg, launch, stop)
            return search(_search_config(cfg, config), launch, workers)
    except BusyError:
        if cfg.search.workers is None:
            raise
    config = _search_config(cfg, joined_run(cfg, cfg.hydra))
    log_to(config.folder)
    join(config, _worker_launcher(cfg, launch, stop))
    return None


def _search_config(cfg: DictConfig, config: RunConfig) -> SearchConfig:
    if isinstance(config, SearchConfig):
        return config
    raise ConfigError(f"stage.config must name a subclass of SearchConfig for this sweeper, got {cfg.stage.config}")


def launcher_of(cfg: DictConfig) -> str:
    """The name of the class of the configured launcher."""
    return str(cfg.hydra.launcher._target_).rpartition(".")[2]


def _worker_launcher(cfg: DictConfig, launch: Launch, stop: Callable[[], None] | None) -> WorkerLauncher:
    """Starts workers through the launcher; as processes of this machine where the launcher runs one job at a time.

    Raises:
        ConfigError: workers on other machines cannot reach the database.
    """
    from nas_transfer.stages.common.launching import WorkerLauncher
    from nas_transfer.stages.common.local_processes import LocalProcesses

    name = launcher_of(cfg)
    if name == BASIC:
        without_hydra = OmegaConf.masked_copy(cfg, [str(group) for group in cfg if group != "hydra"])
        content = cast(dict[str, object], OmegaConf.to_container(without_hydra, resolve=True))
        job_logging = cast(dict[str, object], OmegaConf.to_container(cfg.hydra.job_logging, resolve=True))
        processes = LocalProcesses(content, job_logging, cfg.hydra.verbose)
        return WorkerLauncher(processes.launch, processes.stop)
    if cfg.search.storage is None and name not in LOCAL:
        raise ConfigError(
            f"workers on several machines need a database that all of them reach, got search.storage=null with {name}: "
            "set search.storage=postgresql://... or another URL of Optuna (sqlite:////... if all nodes are one machine)"
        )
    return WorkerLauncher(launch) if stop is None else WorkerLauncher(launch, stop)


def _failure(result: JobReturn) -> str | None:
    if result.status == JobStatus.COMPLETED:
        return None
    error = result._return_value
    if isinstance(error, NasTransferError):
        raise error
    if (failure := storage_error(error)) is not None:
        raise failure
    return f"{type(error).__name__}: {error}"


def register() -> None:
    """Register the plugins with Hydra, below `ALIAS`. Every process that composes a configuration must do it."""
    plugins = Plugins.instance()
    for plugin in (ArchSweeper, RayLauncher):
        plugins.register(plugin)
        plugins.class_name_to_class[f"{ALIAS}.{plugin.__name__}"] = plugin
