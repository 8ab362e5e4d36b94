"""Jobs on a Ray cluster: Hydra's launcher ``hydra/launcher=ray``, which needs the extra ``[ray]``.

It is written here because hydra-ray-launcher 1.2.2 sets the size of the object store, with which Ray refuses to join a
cluster that runs already, and requires a cloudpickle older than the one of current releases; 1.4 needs a pre-release of
Hydra. Both stop to wait for all jobs once one has died, and install a cloud's client.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from nas_transfer.errors import ConfigError

if TYPE_CHECKING:
    from ray import ObjectRef

logger = logging.getLogger(__name__)

SECONDS_TO_END = 30.0
"""How long a job may take to give its trial back before it is killed."""


class RayLauncher(Launcher):
    """Runs each job as a task of Ray, in a process of its own. A job that dies takes no other one with it.

    Args:
        address: address of the cluster, ``auto`` for the one of this machine, null to start Ray on this machine if
            none runs.
        num_cpus: CPUs of a job.
        num_gpus: GPUs of a job.
        max_retries: how often a job is started again after its process or its node has died.
        options: further options of Ray's tasks, such as ``resources`` or ``memory``.
    """

    def __init__(
        self, address: str | None, num_cpus: float, num_gpus: float, max_retries: int, options: Mapping[str, object]
    ) -> None:
        self.address = address
        self.resources = {"CPU": num_cpus, "GPU": num_gpus}
        self.options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": max_retries, **options}
        self._refs: list[ObjectRef] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what every job needs."""
        self._context, self._function, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs to their end. A job whose process died is returned as failed.

        Raises:
            ConfigError: Ray is not installed, or its cluster does not answer.
        """
        setup_globals()
        ray = self._connected()
        remote = ray.remote(**self.options, max_calls=1)(_run)  # a process of its own for each job
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            arguments = (self._context, config, self._function, Singleton.get_state(), os.getcwd())
            self._refs.append(remote.remote(*arguments))
        started = list(self._refs)
        try:
            return [_returned(ray, ref) for ref in started]
        except BaseException:
            self.stop()
            raise
        finally:
            self._refs.clear()

    def stop(self) -> None:
        """End all jobs. Each worker of a search gives its trial back first."""
        if not self._refs:
            return
        ray = importlib.import_module("ray")
        refs = list(self._refs)
        for ref in refs:
            ray.cancel(ref)
        _, alive = ray.wait(refs, num_returns=len(refs), timeout=SECONDS_TO_END)
        for ref in alive:
            ray.cancel(ref, force=True)

    def _connected(self) -> ModuleType:
        """Ray, connected to its cluster."""
        try:
            ray = importlib.import_module("ray")
        except ImportError as error:
            raise ConfigError("hydra/launcher=ray needs Ray: pip install 'nas-transfer[ray]'") from error
        if not ray.is_initialized():
            try:
                ray.init(address=self.address, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"no Ray cluster answers at hydra.launcher.address={self.address}: {_first_line(error)}"
                ) from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= count for name, count in self.resources.items()) for node in nodes):
            logger.warning("no node of the Ray cluster has %s for a job: jobs wait until one joins", self.resources)
        return ray


def _returned(ray: ModuleType, ref: ObjectRef) -> JobReturn:
    """What a job returned, once it has ended."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        result = JobReturn(status=JobStatus.FAILED)
        cause = getattr(error, "cause", None)  # of an exception that was raised before the job began
        result.return_value = cause or RuntimeError(f"{type(error).__name__}: {_first_line(error)}")
        return result


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _run(
    context: HydraContext, config: DictConfig, function: TaskFunction, singletons: Mapping[object, object], folder: str
) -> JobReturn:
    """Run one job in a process of Ray."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it, before torch is imported
    try:
        os.chdir(folder)  # paths of the configuration are relative to it
    except OSError as error:
        raise ConfigError(f"{folder} is not on this node ({error.strerror}): all nodes must share its disk") from error
    importlib.import_module("nas_transfer.cli")  # registers what a configuration may name
    setup_globals()
    Singleton.set_state(dict(singletons))
    HydraConfig.instance().set_config(config)
    return run_job(
        task_function=function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )
