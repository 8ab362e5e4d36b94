"""The search as a Hydra sweeper: an Optuna study proposes archs, and any of Hydra's launchers runs their evaluation.

Hydra takes a sweeper only from a package below ``hydra_plugins``, which would be imported by every Hydra program of the
environment. `register` therefore adds an alias of that kind to Hydra's table of plugin classes: an undocumented
attribute, so the version of hydra-core is bounded and a test runs a search.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from nas_transfer.errors import ConfigError, NasTransferError, storage_error
from nas_transfer.stages.common.run_directory import log_to
from nas_transfer.stages.config.entry import begin_run
from nas_transfer.stages.config.search import SearchConfig

if TYPE_CHECKING:
    from nas_transfer.runs import Job
    from nas_transfer.search.loop import Launch

TARGET = "hydra_plugins.nas_transfer.ArchSweeper"


class ArchSweeper(Sweeper):
    """Runs one search. Each of its jobs evaluates some archs."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the configuration and build the launcher."""
        self.composed = config
        self.launch_jobs = (
            Plugins.instance()
            .instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)
            .launch
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
        self.log_plainly()
        logging.getLogger("hydra._internal.core_plugins.basic_launcher").setLevel(logging.WARNING)
        return run_search(self.composed, self.launch)

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
        try:
            returns = list(self.launch_jobs(batch, initial_job_idx=min(jobs[0].trials, default=0)))
        except NasTransferError:
            raise
        except Exception as error:  # submitit raises for all jobs when one of them died: the files tell which
            if (failure := storage_error(error)) is not None:
                raise failure from error
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            return [reason] * len(jobs)
        finally:
            self.log_plainly()  # launchers reconfigure the log
            log_to(Path(self.composed.run_dir))
        return [_failure(result) for result in returns]


def run_search(cfg: DictConfig, launch: Launch) -> float | None:
    """Run or continue the search of a composed configuration, Hydra's keys included; returns the picked arch's score.

    Raises:
        NasTransferError: everything that a user can correct.
    """
    from nas_transfer.stages.search import search  # torch and Optuna, not needed before

    with begin_run(cfg, cfg.hydra, imports=True) as (config, run):
        if not isinstance(config, SearchConfig):
            raise ConfigError(
                f"stage.config must name a subclass of SearchConfig for this sweeper, got {cfg.stage.config}"
            )
        log_to(run.folder)
        return search(config, launch)


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
    """Register the sweeper with Hydra as `TARGET`. Every process that composes a configuration must do it."""
    plugins = Plugins.instance()
    plugins.register(ArchSweeper)
    plugins.class_name_to_class[TARGET] = ArchSweeper
