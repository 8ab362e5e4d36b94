"""Train one arch, or the whole supernet, on a downstream task."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from nas_transfer.runs.result import Result
from nas_transfer.stages.common.training import train
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.training import TrainConfig


def run(cfg: DictConfig, folder: Path) -> Result | None:
    """Train, evaluate, and write weights and predictions to `folder`; None on a rank that does not write.

    Raises:
        NasTransferError: the configuration, the data, the arch or the weights cannot be used.
    """
    return train(read_config(cfg, TrainConfig), folder)
