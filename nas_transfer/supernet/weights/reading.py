"""Read checkpoint files as tensors and plain values, never as objects whose loading could run code."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nas_transfer.errors import WeightsError

STATE_KEYS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "model.")
CONFIG_MODULE, CONFIG_CLASSES = "utils.config", ("Config", "AttrDict")
"""The dictionaries of AttentiveNAS's code, ``utils/config.py``, that its files hold in the entry ``args``."""


class _StandIn:
    """Stands in for a class of dictionaries that is not imported: its objects are read as ordered dictionaries."""

    def __new__(cls) -> OrderedDict[str, object]:  # type: ignore[misc]
        """An empty dictionary, which torch's unpickler may fill with items and attributes, as any other one."""
        return OrderedDict()


def _stand_ins() -> list[type]:
    """One class for each name in `CONFIG_CLASSES`; torch's unpickler knows allowed classes by module and name."""
    return [type(name, (_StandIn,), {"__module__": CONFIG_MODULE}) for name in CONFIG_CLASSES]


_ALLOWED: list[type] = [argparse.Namespace, *_stand_ins()]
"""Classes beside tensors and plain values that a file may name. Making their objects runs no code of the file's."""


def read_file(path: Path) -> object:
    """The content of a file that torch.save wrote: tensors, plain values and configurations.

    A configuration is an `argparse.Namespace`, or an object of one of AttentiveNAS's `CONFIG_CLASSES`, which is read as
    a dictionary without importing its class. Every other class is refused.

    Raises:
        WeightsError: the file is missing or damaged, or it holds other objects.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: weights must be the folder of a finished run, or a file")
    torch.serialization.add_safe_globals(_ALLOWED)  # torch's unpickler refuses every other class
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        load = f"torch.load({str(path.resolve())!r}, weights_only=False)"
        raise WeightsError(
            f"{path} must hold only tensors and plain values, got other objects or a damaged file: loading them could "
            "run code; if you trust the file, convert it once, in the folder of the code that wrote it, with "
            f"python -c \"import torch; torch.save({load}['state_dict'], 'tensors.pt')\""
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(
            f"{path} must be a complete checkpoint, got an unreadable file: download or train it again"
        ) from error


def state_of(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a public checkpoint by name, without the prefixes that wrappers add.

    Raises:
        WeightsError: the content is not a mapping of named tensors.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path} must hold named tensors or a state_dict, got {type(content).__name__}")
    state = {str(name): tensor for name, tensor in content.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state
