"""What several tests share."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from nas_transfer.supernet.table import MBConvTable

REPOSITORY = Path(__file__).resolve().parent.parent


def load_supernet(name: str) -> MBConvTable:
    """The supernet table of that name in conf/supernet."""
    return instantiate(OmegaConf.load(REPOSITORY / "conf" / "supernet" / f"{name}.yaml"))
