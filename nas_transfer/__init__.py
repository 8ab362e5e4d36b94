"""Weight-sharing supernets, taken to your own vision task and searched there.

The command line does all of the work (``python -m nas_transfer``). From Python, `run` runs what the command line runs,
`load` gives the network of a finished run, and `front` gives the trials that a search left. Nothing heavy is imported
before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Network", "Run", "front", "load", "run"]

if TYPE_CHECKING:
    from nas_transfer.api.network import Network, load
    from nas_transfer.api.running import Run, front, run

_NEED_TORCH = ("Network", "load")


def __getattr__(name: str) -> object:
    if name in __all__:
        module = "network" if name in _NEED_TORCH else "running"
        return getattr(importlib.import_module(f"nas_transfer.api.{module}"), name)
    raise AttributeError(f"module 'nas_transfer' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
