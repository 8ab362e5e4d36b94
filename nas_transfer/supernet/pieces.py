"""The pieces of a body that are timed one by one; the sum of their latencies approximates the body's latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Piece:
    """A part of a body that runs on its own, such as the stem or one block.

    Attributes:
        key: describes everything that the latency depends on; pieces with equal keys are timed once for each device.
        build: makes the plain module with random weights.
        shape: (C, H, W) of its input.
    """

    key: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
