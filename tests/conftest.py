"""What several tests share."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it; before torch is imported

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from nas_transfer.supernet.table import MBConvTable  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = REPOSITORY.parent / "shared" / "data"


def load_supernet(name: str) -> MBConvTable:
    """The supernet table of that name in conf/supernet."""
    return instantiate(OmegaConf.load(REPOSITORY / "conf" / "supernet" / f"{name}.yaml"))


def sample_data(name: str) -> Path:
    """A folder of real sample data; the test is skipped where it is absent."""
    folder = SAMPLES / name
    if not folder.is_dir():
        pytest.skip(f"no sample data set {name}")
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
