"""Jobs for processes that import nothing heavy: they succeed, are refused, die, or wait for a signal."""

import os
import signal
import time
from pathlib import Path

from omegaconf import DictConfig

from nas_transfer.errors import ConfigError


def run(cfg: DictConfig, folder: Path) -> None:
    """Do what the job's name says."""
    name = Path(cfg.search.job).stem
    if name == "refused":
        raise ConfigError("the weights do not fit")
    if name == "broken":
        raise ValueError("a defect\nof two lines")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / f"{name}.done").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    if name.startswith("parent"):
        (folder / f"{name}.done").write_text(f"{os.getppid()} {os.environ.get('CHANGED')}")
    if name == "waits":
        time.sleep(600)
