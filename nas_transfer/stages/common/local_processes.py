"""Workers of a search as processes of this machine, for Hydra's basic launcher, which knows no processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
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

    Args:
        content: the resolved configuration of the search, without Hydra's keys.
        job_logging: the configuration of the log.
        verbose: Hydra's ``hydra.verbose``.
    """

    def __init__(
        self, content: Mapping[str, object], job_logging: Mapping[str, object], verbose: bool | str = False
    ) -> None:
        self._arguments = (content, job_logging, verbose)
        self._processes: list[BaseProcess] = []

    def launch(self, jobs: Sequence[Job]) -> list[str | None]:
        """Run jobs to their end; returns the reason of each failure, None for a success."""
        import torch  # not needed to compose a configuration

        spawn = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU of its parent
        num_gpus = torch.cuda.device_count()
        visible = os.environ.get(VISIBLE_GPUS)
        receivers: list[Connection] = []
        self._processes.clear()  # those of an earlier start have ended
        for index, job in enumerate(jobs):
            receiver, sender = spawn.Pipe(duplex=False)
            environment = gpu_of_worker(index, num_gpus, visible)
            process: BaseProcess = spawn.Process(
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
        alive = [process for process in self._processes if process.pid is not None and process.exitcode is None]
        for process in alive:
            process.terminate()
        for process in alive:
            process.join(SECONDS_TO_END)
            process.kill()
        self._processes.clear()


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
