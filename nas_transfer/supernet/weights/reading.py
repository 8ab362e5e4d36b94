"""Read checkpoint files as tensors and plain values, never as objects whose loading could run code."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nas_transfer.errors import WeightsError

STATE_KEYS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "model.")
OF_DAMAGED_PICKLES = ("Unsupported operand", "String is too long")
"""Words with which torch's unpickler refuses bytes that are no pickle, rather than an object."""
HEAD_BYTES = 512
LFS_START = b"version https://git-lfs.github.com/spec/"
PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")
VARIANCE = "running_var"
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
    _refuse_stand_ins_for_downloads(path)
    torch.serialization.add_safe_globals(_ALLOWED)  # torch's unpickler refuses every other class
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old or strange files: whatever is wrong is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(words in str(error) for words in OF_DAMAGED_PICKLES):
            raise _unreadable(path) from error
        load = f"torch.load({str(path.resolve())!r}, weights_only=False)"
        raise WeightsError(
            f"{path} must hold only tensors and plain values, got other objects or a damaged file: loading them could "
            "run code; if you trust the file, convert it once, in the folder of the code that wrote it, with "
            f"python -c \"import torch; torch.save({load}['state_dict'], 'tensors.pt')\""
        ) from error
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        raise _unreadable(path) from error


def _unreadable(path: Path) -> WeightsError:
    return WeightsError(f"{path} must be a complete checkpoint, got an unreadable file: download or train it again")


def _refuse_stand_ins_for_downloads(path: Path) -> None:
    """Refuse what is often on disk in the place of a file that was not downloaded."""
    with path.open("rb") as stream:
        start = stream.read(HEAD_BYTES)
    if start.startswith(LFS_START):
        raise WeightsError(f"{path} must be a checkpoint, got a pointer of Git LFS to it: run git lfs pull there")
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(PAGE_STARTS):
        raise WeightsError(
            f"{path} must be a checkpoint, got a web page: download the file itself, whose address differs from that "
            "of the page about it"
        )


def require_plain_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that no layer can be filled with.

    Raises:
        WeightsError: a tensor is sparse, quantised, complex or without data, repeats its own memory, or has values that
            are not finite, or variances below 0; the message names it.
    """
    for name, tensor in tensors.items():
        fault = _fault_of(name, tensor)
        if fault is not None:
            raise WeightsError(
                f"tensor {name!a} in {path} must be {fault}: save ordinary tensors, or download or train the file again"
            )


def _fault_of(name: str, tensor: Tensor) -> str | None:
    """What a tensor must be and is not."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return "dense, got a sparse or nested one"
    if tensor.is_quantized:
        return "of numbers, got a quantised one"
    if tensor.is_meta:
        return "with data, got one on the device meta"
    if tensor.is_complex():
        return "of real numbers, got complex ones"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"stored in full, got {tensor.numel()} numbers in {tensor.untyped_storage().nbytes()} bytes"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
        return "finite, got NaN or infinity"
    if name.endswith(VARIANCE) and tensor.numel() and float(tensor.min()) < 0:
        return f"at least 0, got a variance of {float(tensor.min()):g}"
    return None


def state_of(content: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a public checkpoint by name, without the prefixes that wrappers add.

    Raises:
        WeightsError: the content is not a mapping of named tensors, or `require_plain_tensors` refuses one.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path} must hold named tensors or a state_dict, got {type(content).__name__}")
    state = {str(name): tensor for name, tensor in content.items()}
    require_plain_tensors(state, path)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state
