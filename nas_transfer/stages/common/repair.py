"""Cut repaired subnets out of the weights of one whole network."""

from __future__ import annotations

import logging
import time

from nas_transfer.data.module import DownstreamData
from nas_transfer.space import SUPERNET, Arch
from nas_transfer.stages.common.build import build_task, evaluation_device
from nas_transfer.stages.config.base import DataRunConfig
from nas_transfer.supernet.protocol import SupernetTable
from nas_transfer.tasks.checkpoint import Checkpoint, load_whole
from nas_transfer.tasks.repair import SubnetRepairer
from nas_transfer.tasks.task import Task

logger = logging.getLogger(__name__)


def build_repairer(
    config: DataRunConfig, table: SupernetTable, checkpoint: Checkpoint, data: DownstreamData, repeat: int = 0
) -> SubnetRepairer:
    """Repairs the subnets of a whole network on the device that evaluates.

    Args:
        repeat: another one draws other views.

    Raises:
        ConfigError: subnets of this family cannot be repaired.
        WeightsError: the weights do not fit the task.
    """
    supernet = build_task(config, table, SUPERNET, data)
    load_whole(supernet, checkpoint)
    supernet.to(evaluation_device(config.trainer.accelerator))
    return SubnetRepairer(supernet, data.view_dataloader(config.repair_views, repeat))


def extract_repaired(
    config: DataRunConfig, table: SupernetTable, checkpoint: Checkpoint, arch: Arch, data: DownstreamData
) -> Task:
    """The task of a repaired subnet on the CPU, in eval mode; the errors are those of `build_repairer`."""
    start = time.monotonic()
    subnet = build_repairer(config, table, checkpoint, data).extract(arch)
    seconds = time.monotonic() - start
    logger.info("arch %s is cut out of %s and repaired (%.0f s)", arch.short_id(), checkpoint.path, seconds)
    return subnet.cpu()
