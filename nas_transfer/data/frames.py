"""The frames of a video file or a camera, read by OpenCV, which the extra ``video`` installs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from nas_transfer.errors import ConfigError, DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"})


class Capture(Protocol):
    """What is used of ``cv2.VideoCapture``."""

    def isOpened(self) -> bool:
        """Whether there are frames to read."""

    def grab(self) -> bool:
        """Go to the next frame; False for none."""

    def retrieve(self) -> tuple[bool, np.ndarray]:
        """Whether it can be decoded, and its pixels, uint8 (H, W, 3) in the order blue, green, red."""

    def release(self) -> None:
        """Close it."""


def read_frames(source: Path | int, step: int = 1, most: int | None = None) -> Iterator[tuple[int, torch.Tensor]]:
    """Read every `step`-th frame of a video file, or of the camera with this index.

    Args:
        source: the file, or the index of a camera from 0.
        step: 1 for all frames.
        most: number of frames that are read; None for all of a file, and of a camera until the program ends.

    Yields:
        The number of the frame in the video, from 0, and its pixels, RGB, uint8 (3, H, W).

    Raises:
        ConfigError: OpenCV is not installed.
        DataError: no video, or no such camera.
    """
    with _opened(source) as capture:
        number, read = 0, 0
        while (most is None or read < most) and capture.grab():
            if number % step == 0:
                decoded, pixels = capture.retrieve()
                if decoded:
                    yield number, torch.from_numpy(np.ascontiguousarray(pixels[:, :, ::-1])).permute(2, 0, 1)
                    read += 1
            number += 1
        if not number:
            raise DataError(f"{_name(source)} has no frame that can be read: convert it, for instance to MP4")


@contextmanager
def _opened(source: Path | int) -> Iterator[Capture]:
    try:
        import cv2
    except ImportError as err:
        raise ConfigError(
            f"{_name(source)} needs OpenCV, which is not installed: pip install 'nas-transfer[video]' or "
            "opencv-python-headless"
        ) from err
    capture: Capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    try:
        if not capture.isOpened():
            raise DataError(f"{_name(source)} cannot be opened by OpenCV: name another file or camera with images=")
        yield capture
    finally:
        capture.release()


def _name(source: Path | int) -> str:
    return f"camera {source}" if isinstance(source, int) else f"the video {source}"
