"""What several tests share."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it; before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from nas_transfer.supernet.mbconv.table import MBConvTable

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = REPOSITORY.parent / "shared" / "data"


def load_supernet(name: str) -> MBConvTable:
    """The supernet table of that name in conf/supernet."""
    return instantiate(OmegaConf.load(REPOSITORY / "conf" / "supernet" / f"{name}.yaml"))


def sample_data(name: str) -> Path:
    """A folder of real sample data; the test is skipped where it is absent."""
    folder = SAMPLES / name
    if not folder.is_dir():
        pytest.skip(f"no sample dataset {name}")
    return folder
