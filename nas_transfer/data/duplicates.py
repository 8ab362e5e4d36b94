"""Identical images of a part of a dataset, which must be on one side of the search split."""

import hashlib
import logging
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from nas_transfer.data.images import HASH_BYTES, UNREADABLE, coarse_pixels, header, pixel_hash
from nas_transfer.errors import DataError

ValueT = TypeVar("ValueT", bound=Hashable)

logger = logging.getLogger(__name__)

END, BLOCK, LEAST_FOR_THREADS = 4096, 1 << 20, 1000
MOST_HEADERS, MOST_COMPARED = 20_000, 500_000_000
"""Numbers of images whose sizes are read, and of pixels that are decoded, at each start: a few seconds at most."""
JPEG = "JPEG"


def identical_images(paths: Sequence[str | Path], *, follow_exif: bool) -> np.ndarray:
    """A group for each image: the position of the first one with the same pixels, int64 (N,).

    Files with the same bytes are in one group. Of the others, only images of equal size are decoded: JPEG files among
    themselves first at an eighth of their size, which takes a fifth of the time, and those that are then equal, and
    images in several formats, in full. Where this would be more than `MOST_HEADERS` images or `MOST_COMPARED` pixels,
    only bytes are compared, and the log says so; ``stage=check`` compares the pixels of all images.

    Args:
        follow_exif: whether images are turned as their EXIF orientation says.
    """
    groups = identical_files(paths)
    different = np.unique(groups).tolist()
    if len(different) > MOST_HEADERS:
        logger.info("%d images are compared by their bytes alone; stage=check compares their pixels", len(paths))
        return groups
    kinds = _map(_kind, [paths[position] for position in different])
    sizes = [None if kind is None else kind[1] for kind in kinds]
    formats = {position: kind[0] for position, kind in zip(different, kinds, strict=True) if kind is not None}
    same_size = _shared(different, sizes)
    pixels = sum(len(positions) * sizes[different.index(positions[0])][0] for positions in same_size)  # type: ignore[index]
    if pixels > MOST_COMPARED:
        logger.info("%d images are compared by their bytes alone; stage=check compares their pixels", len(paths))
        return groups
    for positions in same_size:
        candidates = [positions]
        if all(formats[position] == JPEG for position in positions):
            candidates = _shared(positions, _map(_coarse, [paths[position] for position in positions]))
        for alike in candidates:
            digests = _map(lambda path: _exact(path, follow_exif), [paths[position] for position in alike])
            for identical in _shared(alike, digests):
                groups[np.isin(groups, identical)] = identical[0]
    return groups


def _kind(path: str | Path) -> tuple[str, tuple[int, int, int]] | None:
    """Format of an image, and its pixels and sides, which are sorted since an orientation may exchange them."""
    try:
        image_format, width, height = header(path)
    except UNREADABLE:
        return None
    return image_format, (width * height, min(width, height), max(width, height))


def _coarse(path: str | Path) -> bytes | None:
    try:
        return hashlib.blake2b(coarse_pixels(path), digest_size=HASH_BYTES).digest()
    except UNREADABLE:
        return None


def _exact(path: str | Path, follow_exif: bool) -> bytes | None:
    try:
        return pixel_hash(path, follow_exif=follow_exif)
    except DataError:
        return None


def identical_files(paths: Sequence[str | Path]) -> np.ndarray:
    """A group for each file: the position of the first one with the same bytes, int64 (N,).

    A file is read only as far as others could be equal to it: its size is looked up, of those of equal size the end is
    read, and of those with equal ends everything. A missing file is a group of its own.
    """
    groups = np.arange(len(paths), dtype=np.int64)
    sizes = _map(_size, paths)
    for same_size in _shared(range(len(paths)), sizes):
        ends = _map(_end, [paths[position] for position in same_size])
        for same_end in _shared(same_size, ends):
            digests = _map(_digest, [paths[position] for position in same_end])
            for identical in _shared(same_end, digests):
                groups[identical] = identical[0]
    return groups


def _shared(positions: Sequence[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """The positions with a key that another one has too, key by key; None is no key."""
    by_key: dict[Hashable, list[int]] = defaultdict(list)
    for position, key in zip(positions, keys, strict=True):
        if key is not None:
            by_key[key].append(position)
    return [found for found in by_key.values() if len(found) > 1]


def _map(read: Callable[[str | Path], ValueT], paths: Sequence[str | Path]) -> list[ValueT]:
    if len(paths) < LEAST_FOR_THREADS:
        return [read(path) for path in paths]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # file systems answer in parallel
        return list(pool.map(read, paths))


def _size(path: str | Path) -> int | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _end(path: str | Path) -> bytes | None:
    """The last bytes of a file: the first ones of many images are the same, such as those of one camera."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - END))
            return stream.read()
    except OSError:
        return None


def _digest(path: str | Path) -> bytes | None:
    try:
        digest = hashlib.sha256()
        with open(path, "rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
        return digest.digest()
    except OSError:
        return None
