"""The pieces of a body whose latencies add up to the body's: one for each block, by all that its time depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Piece:
    """A part of a body that runs on its own.

    Attributes:
        key: equal for pieces that take equal time on one device.
        build: makes the plain module with random weights.
        shape: (C, H, W) of its input.
    """

    key: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
