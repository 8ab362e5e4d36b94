"""What a task says of one image: rows for files, and a picture for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from nas_transfer.data.drawing import Picture


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        rows: by the file that they belong in: ``.json`` for COCO's result format, ``.csv`` for a table.
        draw: the image, uint8 (3, H, W), with what scores at least a threshold in 0-1, its longer side as many pixels.
        label_ids: the class of each pixel as an id of the data's label files, uint8 (H, W); None for other tasks.
    """

    rows: dict[str, list[dict[str, Any]]]
    draw: Callable[[Tensor, float, int], Picture]
    label_ids: np.ndarray | None = None
