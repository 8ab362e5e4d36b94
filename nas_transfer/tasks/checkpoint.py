"""The file in which a finished run leaves its network: tensors and plain values, read without unpickling objects."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_transfer.errors import WeightsError
from nas_transfer.space import Arch, SearchSpace
from nas_transfer.supernet.ops import leading_slice
from nas_transfer.tasks.base import Task

FORMAT = "nas_transfer/1"
WEIGHTS_FILE = "weights.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network on disk.

    Attributes:
        path: where it was read.
        space: name of the search space.
        arch: the arch's dict form, None for a supernet.
        task: class name of the task that trained it.
        num_classes: of that task.
        body: tensors of the body by name.
        rest: tensors of neck and head by name.
    """

    path: Path
    space: str
    arch: dict[str, Any] | None
    task: str
    num_classes: int
    body: dict[str, Tensor]
    rest: dict[str, Tensor]


def save_checkpoint(path: Path, task: Task) -> None:
    """Write a task's network, atomically."""
    body = task.body.state_dict()
    inside = {id(tensor) for tensor in task.body.state_dict(keep_vars=True).values()}
    whole = task.network.state_dict(keep_vars=True)
    content = {
        "format": FORMAT,
        "space": task.table.space.name,
        "arch": None if task.arch is None else task.arch.to_dict(),
        "task": type(task).__name__,
        "num_classes": task.settings.num_classes,
        "body": {name: tensor.cpu() for name, tensor in body.items()},
        "rest": {name: tensor.detach().cpu() for name, tensor in whole.items() if id(tensor) not in inside},
    }
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint: a run directory or the file itself.

    Raises:
        WeightsError: nothing is there, it is not tensors only, it is damaged, or it is of another kind.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(
            f"expected weights in {file}, got no such file: give the folder of a finished run or a .pt file"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"expected a file of tensors and plain values, got {file} with other objects in it (or damaged): "
            "loading it could run code, so save its state_dict alone with torch.save"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(
            f"expected a complete checkpoint, got the unreadable file {file}: fetch or train it again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(f"expected a checkpoint of this program ({FORMAT}), got {file} of another format")
    return Checkpoint(file, *(content[key] for key in ("space", "arch", "task", "num_classes", "body", "rest")))


def checkpoint_arch(checkpoint: Checkpoint, space: SearchSpace) -> Arch | None:
    """The arch that a checkpoint holds, None for a supernet.

    Raises:
        WeightsError: it is of another space.
    """
    if checkpoint.space != space.name:
        raise WeightsError(
            f"expected weights of the space '{space.name}', got {checkpoint.path} of '{checkpoint.space}': "
            f"set supernet={checkpoint.space}"
        )
    return None if checkpoint.arch is None else space.from_dict(checkpoint.arch)


def load_network(task: Task, checkpoint: Checkpoint) -> None:
    """Fill the whole network of a task of the same kind and class count.

    Raises:
        WeightsError: another task or class count, or a tensor that differs (the first one is named).
    """
    have = (checkpoint.task, checkpoint.num_classes)
    want = (type(task).__name__, task.settings.num_classes)
    if have != want:
        raise WeightsError(
            f"expected weights of {want[0]} with {want[1]} classes, got {checkpoint.path} of {have[0]} with {have[1]}"
        )
    inside = {id(tensor) for tensor in task.body.state_dict(keep_vars=True).values()}
    whole = task.network.state_dict(keep_vars=True)
    load_body(task, checkpoint)
    _fill(
        {name: tensor for name, tensor in whole.items() if id(tensor) not in inside}, checkpoint.rest, task, checkpoint
    )


def load_body(task: Task, checkpoint: Checkpoint) -> None:
    """Fill a task's body; a subnet takes its slices of a supernet's weights.

    Raises:
        WeightsError: a tensor that differs (the first one is named).
    """
    _fill(task.body.state_dict(keep_vars=True), checkpoint.body, task, checkpoint)


def can_fill_network(task: Task, checkpoint: Checkpoint) -> bool:
    """Whether neck and head can be taken over too: same kind of task, same number of classes."""
    return (checkpoint.task, checkpoint.num_classes) == (type(task).__name__, task.settings.num_classes)


def _fill(targets: dict[str, Tensor], sources: dict[str, Tensor], task: Task, checkpoint: Checkpoint) -> None:
    may_slice = checkpoint.arch is None and task.arch is not None
    parts = {}
    for name, target in targets.items():
        shape = None if name not in sources else tuple(sources[name].shape)
        problem = f"expected tensor '{name}' of shape {tuple(target.shape)} in {checkpoint.path}, got {shape or 'none'}"
        if shape is None or not (may_slice or shape == target.shape):
            raise WeightsError(f"{problem}: the weights are of another arch or space")
        try:
            parts[name] = leading_slice(sources[name], target.shape, name)
        except ValueError as error:
            raise WeightsError(f"{problem}: the weights are of another space") from error
    unused = sorted(set(sources) - set(targets))
    if unused and not may_slice:
        raise WeightsError(
            f"expected no tensor '{unused[0]}' in {checkpoint.path}: the weights are of another arch or space"
        )
    with torch.no_grad():
        for name, part in parts.items():
            targets[name].copy_(part)
