"""Decoded images that are kept in memory, so that a training decodes each file once and not in every epoch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

import torch
from torch.utils.data import get_worker_info

from nas_transfer.data.images import read_image

logger = logging.getLogger(__name__)

MIB = 2**20


class ReadImage(Protocol):
    """Reads an image file, as `nas_transfer.data.images.read_image` does."""

    def __call__(self, path: str | Path, *, follow_exif: bool) -> torch.Tensor:
        """The pixels, uint8 (3, H, W), which the caller may change."""


class ImageCache:
    """Reads image files and keeps their pixels up to a number of bytes.

    The first images to be read are kept, and none is removed: each epoch reads every image once in another order, so
    that making room for another one would gain nothing. The loading processes of a training keep their own images and
    share the limit evenly.

    Args:
        limit: bytes of pixels that are kept, in all loading processes together; 0 for none.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[tuple[str, bool], torch.Tensor] = {}
        self._bytes = 0
        self._is_full = False

    def __getstate__(self) -> dict[str, object]:
        return {"limit": self.limit, "_kept": {}, "_bytes": 0, "_is_full": False}  # another process keeps its own

    @property
    def num_images(self) -> int:
        """How many images are kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Free the memory of all images; those that are read from now on are kept again."""
        self._kept.clear()
        self._bytes, self._is_full = 0, False

    def read(self, path: str | Path, *, follow_exif: bool) -> torch.Tensor:
        """Read an image; the arguments and errors are those of `nas_transfer.data.images.read_image`."""
        key = (str(path), follow_exif)
        if (kept := self._kept.get(key)) is not None:
            return kept.clone()
        image = read_image(path, follow_exif=follow_exif)
        if self._has_room(image.numel()):
            self._kept[key] = image.clone()
            self._bytes += image.numel()
        return image

    def _has_room(self, size: int) -> bool:
        """Whether so many more bytes are within the share of this process; logs what is kept once they are not."""
        worker = get_worker_info()
        if self._bytes + size <= self.limit // (1 if worker is None else worker.num_workers):
            return True
        if self.limit and not self._is_full and (worker is None or worker.id == 0):
            of_process = "" if worker is None else f" by each of {worker.num_workers} loading processes"
            logger.info(
                "data.cache_mib=%d is full: %d decoded images (%.0f MiB) are kept%s, others are read in each epoch",
                self.limit // MIB, len(self._kept), self._bytes / MIB, of_process,
            )  # fmt: skip
        self._is_full = True
        return False
