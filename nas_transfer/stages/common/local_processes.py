"""Workers of a search as processes of this machine, for Hydra's basic launcher, which knows no processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from hydra.core.utils import configure_log
from hydra.utils import get_method
from omegaconf import OmegaConf

from nas_transfer.errors import NasTransferError
from nas_transfer.runs import Job
from nas_transfer.stages.common.signals import RECEIVER, EndedBySignal

logger = logging.getLogger(__name__)

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
EXIT_REFUSED, EXIT_ENDED = 2, 143
SECONDS_TO_END = 30.0
"""How long a process may take to give its trial back before it is killed."""


class LocalProcesses:
    """Run each job in a process of its own. A process that dies takes no other one with it.

    Importing the program takes seconds. On Linux without a GPU, one process therefore begins to import it at once, and
    those of the jobs are its forks.

    Args:
        content: the resolved configuration of the search, without Hydra's keys.
        job_logging: the configuration of the log.
        verbose: Hydra's ``hydra.verbose``.
    """

    def __init__(
        self, content: Mapping[str, object], job_logging: Mapping[str, object], verbose: bool | str = False
    ) -> None:
        import torch  # not needed to compose a configuration

        self._arguments = (content, job_logging, verbose)
        self._processes: list[BaseProcess] = []
        self._num_gpus = torch.cuda.device_count()
        module = str(OmegaConf.select(OmegaConf.create(dict(content)), "stage.run")).rpartition(".")[0]
        self._context = _context(module, self._num_gpus)

    def launch(self, jobs: Sequence[Job]) -> list[str | None]:
        """Run jobs to their end; returns the reason of each failure, None for a success."""
        visible = os.environ.get(VISIBLE_GPUS)
        receivers: list[Connection] = []
        self._processes.clear()  # those of an earlier start have ended
        for index, job in enumerate(jobs):
            receiver, sender = self._context.Pipe(duplex=False)
            environment = {**os.environ, **gpu_of_worker(index, self._num_gpus, visible)}
            process: BaseProcess = self._context.Process(
                target=_work, args=(*self._arguments, str(job.path), environment, sender)
            )
            self._processes.append(process)
            receivers.append(receiver)
            process.start()
            sender.close()
        started = list(self._processes)
        for waited in started:
            waited.join()
        return [_reason(ended, receiver) for ended, receiver in zip(started, receivers, strict=True)]

    def stop(self) -> None:
        """End all processes. Each one gives its trial back first."""
        alive = [process for process in self._processes if process.pid is not None and not _has_ended(process)]
        for process in alive:
            process.terminate()
        for process in alive:
            if not _has_ended(process, SECONDS_TO_END):
                process.kill()
        self._processes.clear()


def _context(module: str, num_gpus: int) -> ForkServerContext | SpawnContext:
    """Starts processes: forks of one that imports this module, or new ones where a GPU might not survive the fork."""
    if sys.platform != "linux" or num_gpus:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module, __name__])
    forkserver.ensure_running()
    return context


def gpu_of_worker(index: int, num_gpus: int, visible: str | None) -> Mapping[str, str]:
    """The environment that gives a worker one of several GPUs, in turn.

    Args:
        index: number of the worker.
        num_gpus: GPUs that this process can use.
        visible: value of `VISIBLE_GPUS` in this process, None if it is not set.
    """
    if num_gpus < 2:
        return {}
    names = visible.split(",") if visible else [str(number) for number in range(num_gpus)]
    return {VISIBLE_GPUS: names[index % len(names)]}


def _has_ended(process: BaseProcess, seconds: float = 0.0) -> bool:
    """Whether a process ends within so many seconds. Its exit code is left to the thread that joins it."""
    return bool(wait([process.sentinel], seconds))


def _reason(process: BaseProcess, receiver: Connection) -> str | None:
    try:
        sentence = receiver.recv() if receiver.poll() else None
    except EOFError:  # it has sent nothing
        sentence = None
    if process.exitcode == 0:
        return None
    if sentence is not None:
        return str(sentence)
    code = process.exitcode or 0
    return f"its process was ended by signal {-code}" if code < 0 else f"its process ended with exit code {code}"


def _work(
    content: Mapping[str, object], job_logging: Mapping[str, object], verbose: bool | str, job: str,
    environment: Mapping[str, str], sender: Connection,
) -> None:  # fmt: skip
    """Run one job in this process."""
    os.environ.update(environment)
    RECEIVER.install()
    configure_log(OmegaConf.create(dict(job_logging)), verbose)
    cfg = OmegaConf.create(dict(content))
    cfg.search.job = job
    try:
        get_method(cfg.stage.run)(cfg, Path(cfg.run_dir))
    except NasTransferError as error:
        sender.send(str(error))
        sys.exit(EXIT_REFUSED)
    except (EndedBySignal, KeyboardInterrupt):
        sys.exit(EXIT_ENDED)
    except Exception as error:
        logger.exception("a worker failed")
        sender.send(f"{type(error).__name__}: {' '.join(str(error).split())}")
        sys.exit(1)
