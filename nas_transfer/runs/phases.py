"""Log lines about work that takes long: how long it will take, as soon as that is known, and where it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Generic, TypeVar

from nas_transfer.runs.texts import duration

logger = logging.getLogger(__name__)

LONG_SECONDS = 10.0
"""Work that takes at least this long is announced."""
EVERY_SECONDS = 30.0
"""Time between two lines about it."""

Part = TypeVar("Part", covariant=True)


class Phase(Generic[Part]):
    """The parts of some work, which are logged while they are taken, again for each iteration.

    Short work is not mentioned. The first line comes when the parts so far show that all of them take more than
    `least_seconds`, and another one every `EVERY_SECONDS`.

    Args:
        parts: what is iterated over.
        what: the work, such as ``BatchNorm statistics``.
        unit: what a part is, in the plural.
        least_seconds: the duration from which the work is announced; longer for work that is done for each trial.
    """

    def __init__(self, parts: Iterable[Part], what: str, unit: str, *, least_seconds: float = LONG_SECONDS) -> None:
        self._parts, self._what, self._unit, self._least_seconds = parts, what, unit, least_seconds

    def __len__(self) -> int:
        assert isinstance(self._parts, Sized)
        return len(self._parts)

    def __iter__(self) -> Iterator[Part]:
        total = len(self) if isinstance(self._parts, Sized) else None
        started = time.monotonic()
        told: float | None = None
        for done, part in enumerate(self._parts):
            now = time.monotonic()
            taken = now - started
            if done and total is not None and (told is None or now - told >= EVERY_SECONDS):
                left = taken / done * (total - done)
                if taken + left >= self._least_seconds and taken >= 1:
                    logger.info("%s: %d of %d %s, %s left", self._what, done, total, self._unit, duration(left))
                    told = now
            yield part
