"""Ranges of the numbers in a configuration, as part of their types: ``Annotated[float, Range(above=0)]``.

Records and classes state them where they state a field's type; the reader of the configuration checks them before
anything is built. NaN lies in no range, and infinity only where a range says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, TypeAlias

LARGEST = 2**63 - 1
"""Largest whole number that other libraries can hold."""


@dataclass(frozen=True)
class Range:
    """The numbers that a value may have; None for no bound.

    Attributes:
        minimum, maximum: the smallest and the largest number.
        above, below: bounds that are not allowed themselves.
        infinite: whether infinity is allowed.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    infinite: bool = False

    def fault(self, value: float) -> str | None:
        """What a number must be and is not, such as ``at least 1``; None for a number in the range."""
        if math.isnan(value) or (math.isinf(value) and not self.infinite):
            return "a finite number"
        if self.minimum is not None and not value >= self.minimum:
            return f"at least {self.minimum:g}"
        if self.above is not None and not value > self.above:
            return f"above {self.above:g}"
        if self.maximum is not None and not value <= self.maximum:
            return f"at most {self.maximum:g}"
        if self.below is not None and not value < self.below:
            return f"below {self.below:g}"
        if isinstance(value, int) and abs(value) > LARGEST:
            return f"at most {LARGEST}"
        return None


ANY = Range()

Positive: TypeAlias = Annotated[int, Range(minimum=1)]
Several: TypeAlias = Annotated[int, Range(minimum=2)]
Count: TypeAlias = Annotated[int, Range(minimum=0)]
PositiveNumber: TypeAlias = Annotated[float, Range(above=0)]
Amount: TypeAlias = Annotated[float, Range(minimum=0)]
Share: TypeAlias = Annotated[float, Range(minimum=0, maximum=1)]
PositiveShare: TypeAlias = Annotated[float, Range(above=0, maximum=1)]
ShareBelowOne: TypeAlias = Annotated[float, Range(minimum=0, below=1)]
