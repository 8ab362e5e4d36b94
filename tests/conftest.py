"""What several tests share."""

import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line sets it; before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from nas_transfer.supernet.mbconv.table import MBConvTable

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLES = REPOSITORY.parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist hand the files out in the order of `pytest_collection_modifyitems`, and never wait for the disk.

    What a test wrote need not survive a power failure. Programs that a test starts do wait.
    """
    config.option.loadscopereorder = False  # else those with the most tests come first, which are not the longest
    os.fsync = lambda descriptor: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have the most slow tests: a long one at the end would leave a process idle."""
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker("slow")
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Look for garbage less often, and never among what was imported: a tenth of the time of all tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def load_supernet(name: str) -> MBConvTable:
    """The supernet table of that name in conf/supernet."""
    return instantiate(OmegaConf.load(REPOSITORY / "conf" / "supernet" / f"{name}.yaml"))


def sample_data(name: str) -> Path:
    """A folder of real sample data; the test is skipped where it is absent."""
    folder = SAMPLES / name
    if not folder.is_dir():
        pytest.skip(f"no sample dataset {name}")
    return folder


def nightly_but(values: Iterable[object], *now: object) -> list[Any]:
    """Parameters of a test, of which all but `now` are left to the nightly run."""

    def at_night(value: object) -> object:
        if isinstance(value, type(pytest.param())):
            return value  # it has marks of its own
        return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.nightly)

    return [value if value in now else at_night(value) for value in values]
