"""The values of annotations: what pycocotools and numpy can safely be given.

pycocotools checks nothing. Coordinates that are not finite or lie far outside end its process or fill the memory, and
so do run lengths of another number of pixels. All of this follows from the values, so nothing is rasterised here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

LARGEST_ID = 2**63 - 1
LARGEST_COORDINATE = 1e6
"""In pixels, of boxes in images of unknown size."""
MARGIN = 10
"""How far coordinates may lie outside of an image, in multiples of its longer side."""
LONGEST_OUTLINE = 4_000_000
"""Length of a polygon in pixels. pycocotools needs about 100 bytes a pixel to rasterise it."""
NUMBERS = {int, float}
FIRST_CODE, CONTINUES, NEGATIVE, DIGIT_BITS, MOST_DIGITS = 48, 0x20, 0x10, 5, 7
"""Of COCO's compressed run lengths: characters from "0" on hold five bits of a number, and whether another follows."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a finite number; neither a truth value nor a whole number that no float can hold."""
    if type(value) not in NUMBERS:
        return False
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def is_id(value: object) -> TypeGuard[int]:
    """Whether this is a whole number of at most 64 bits."""
    return type(value) is int and -LARGEST_ID <= value <= LARGEST_ID


def is_text(value: object) -> TypeGuard[str]:
    """Whether this is a text that can be written to a file; JSON and file names may hold halves of characters."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_near(xs: Sequence[float], ys: Sequence[float], height: int, width: int) -> bool:
    """Whether finite coordinates lie in an image or at most `MARGIN` times its longer side outside of it."""
    margin = MARGIN * max(height, width)
    return -margin <= min(xs) and max(xs) <= width + margin and -margin <= min(ys) and max(ys) <= height + margin


def mask_problem(segmentation: object, height: int, width: int) -> str:
    """The fault of a segmentation of an image, or an empty string."""
    if isinstance(segmentation, dict):
        return _run_length_problem(segmentation.get("size"), segmentation.get("counts"), height, width)
    if not isinstance(segmentation, list) or not segmentation:
        return "none"
    if not all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in segmentation):
        return "polygons that are no lists of x, y pairs"
    problems = (_polygon_problem(polygon, height, width) for polygon in segmentation if polygon)
    problem = next(filter(None, problems), "")
    return problem or (
        "" if any(len(polygon) >= 6 for polygon in segmentation) else "no polygon of three points or more"
    )


def _polygon_problem(polygon: list[float], height: int, width: int) -> str:
    try:
        finite = set(map(type, polygon)) <= NUMBERS and math.isfinite(sum(polygon))
    except OverflowError:
        finite = False
    if not finite:
        return "a polygon whose coordinates are not finite numbers"
    xs, ys = polygon[::2], polygon[1::2]
    if not is_near(xs, ys, height, width):
        return f"a polygon more than {MARGIN} times the sides of its image of {width}x{height} away"
    longest = len(xs) * max(max(xs) - min(xs), max(ys) - min(ys))
    if longest > LONGEST_OUTLINE and _outline(xs, ys) > LONGEST_OUTLINE:
        return f"a polygon with an outline of more than {LONGEST_OUTLINE} pixels"
    return ""


def _outline(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The steps that a rasteriser takes along a polygon."""
    points = np.asarray([xs, ys])
    return float(np.abs(points - np.roll(points, 1, axis=1)).max(0).sum())


def _run_length_problem(size: object, counts: object, height: int, width: int) -> str:
    if not isinstance(size, list) or size != [height, width] or set(map(type, size)) != {int}:
        return f"an RLE of size {ascii(size)[:100]} for an image of height {height} and width {width}"
    if isinstance(counts, str):
        runs = _decompressed(counts)
        if runs is None:
            return "an RLE whose counts cannot be decompressed"
        valid, total = bool((runs >= 0).all()), int(runs.sum())
    elif isinstance(counts, list):
        if not set(map(type, counts)) <= {int}:
            return "an RLE whose counts are no whole numbers"
        valid, total = min(counts, default=0) >= 0, sum(counts)
    else:
        return "an RLE without counts"
    if not valid:
        return "an RLE with negative counts"
    return "" if total == height * width else f"an RLE of {total} pixels for an image of {height * width}"


def _decompressed(text: str) -> np.ndarray | None:
    """The runs of a compressed RLE, int64 (N,); None for a text that is none. The format is that of pycocotools."""
    try:
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - FIRST_CODE
    except UnicodeEncodeError:
        return None
    if not len(codes):
        return np.zeros(0, dtype=np.int64)
    last = codes & CONTINUES == 0
    if codes.min() < 0 or codes.max() >= 2 * CONTINUES or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > MOST_DIGITS:
        return None
    places = DIGIT_BITS * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & (CONTINUES - 1)) << places, starts)
    numbers -= np.where(codes[ends] & NEGATIVE, 1 << DIGIT_BITS * lengths, 0)
    # From the fourth on, each number is the difference from the last but one.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
