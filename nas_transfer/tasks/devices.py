"""Move batches to a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor

Value = TypeVar("Value")


def to_device(value: Value, device: torch.device) -> Value:
    """The value with all tensors in it, inside dictionaries, lists and tuples too, on a device."""
    moved: object = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=device.type == "cuda")
    elif isinstance(value, Mapping):
        moved = {key: to_device(part, device) for key, part in value.items()}
    elif isinstance(value, list | tuple):
        moved = type(value)(to_device(part, device) for part in value)
    return cast(Value, moved)
