"""The prediction of a task for one image: rows for files, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import numpy as np
from torch import Tensor

from nas_transfer.data.drawing import Picture


class RunLengths(TypedDict):
    """A mask in COCO's compressed run-length encoding: [height, width] and the encoded runs."""

    size: list[int]
    counts: str


class ScoredResult(TypedDict):
    """Keys of every record of COCO's result format."""

    image_id: int
    category_id: int
    score: float


class CocoResult(ScoredResult, total=False):
    """One prediction in COCO's result format, with one of these keys.

    bbox [x, y, width, height] in pixels; a mask as `segmentation`; keypoints [x, y, score, ...] in pixels.
    """

    bbox: list[float]
    segmentation: RunLengths
    keypoints: list[float]


Row: TypeAlias = Mapping[str, object]
"""A JSON object, or a line of a table."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        rows: by the name of the file that they belong in: ``.json`` for COCO's result format, ``.csv`` for a table.
        draw: draws, on an image uint8 (3, H, W), all predictions that score at least a threshold in 0-1; its third
            argument is the longer side of the picture in pixels.
        label_ids: the class of each pixel as an id of the label files, uint8 (H, W); None for other tasks.
    """

    rows: Mapping[str, Sequence[Row]]
    draw: Callable[[Tensor, float, int], Picture]
    label_ids: np.ndarray | None = None
