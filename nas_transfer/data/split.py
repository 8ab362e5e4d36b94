"""The search split: the part of train on which archs are compared, so that no search ever sees the quoted split."""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas_transfer.data.randomness import stable_seed
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import ShareBelowOne

END, BLOCK, LEAST_FOR_THREADS = 4096, 1 << 20, 1000


@dataclass(frozen=True)
class Split:
    """How train is divided: the values under `data.split`.

    Attributes:
        search_fraction: share of the images of train for the search, in [0, 1).
        hold_out_search: train on train minus the search split instead of on all of train.

    Raises:
        ConfigError: a fraction outside [0, 1).
    """

    search_fraction: ShareBelowOne
    hold_out_search: bool

    def __post_init__(self) -> None:
        _require_fraction(self.search_fraction)


def search_split(
    num_images: int, fraction: float, seed: int, groups: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the images of train into those for training and those for the search.

    Args:
        num_images: images in train, in an order that does not change between runs.
        fraction: share of images (of groups, where given) for the search, in [0, 1); 0 makes no split.
        seed: the same seed makes the same split.
        groups: one number per image (a video, a scene, a patient); a group is never divided.

    Returns:
        Two sorted, disjoint int64 arrays of positions, for training and for the search. With a fraction above 0 and at
        least two images (groups) neither is empty.

    Raises:
        ConfigError: a fraction outside [0, 1), or not one group per image.
    """
    _require_fraction(fraction)
    if groups is not None and len(groups) != num_images:
        raise ConfigError(f"there must be one group per image, got {len(groups)} groups for {num_images} images")
    units, unit_of_image = np.unique(np.arange(num_images) if groups is None else groups, return_inverse=True)
    num_search = round(fraction * len(units))
    if fraction > 0:
        num_search = min(max(num_search, 1), max(len(units) - 1, 0))
    chosen = np.random.default_rng(stable_seed(seed, "search split")).permutation(len(units))[:num_search]
    in_search = np.isin(unit_of_image, chosen)
    return np.flatnonzero(~in_search), np.flatnonzero(in_search)


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


def _shared(positions: Sequence[int], keys: Sequence[object]) -> list[list[int]]:
    """The positions with a key that another one has too, key by key; None is no key."""
    by_key: dict[object, list[int]] = defaultdict(list)
    for position, key in zip(positions, keys, strict=True):
        if key is not None:
            by_key[key].append(position)
    return [found for found in by_key.values() if len(found) > 1]


def _map(read: Callable[[str | Path], object], paths: Sequence[str | Path]) -> list[object]:
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


def _require_fraction(fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise ConfigError(f"data.split.search_fraction must lie in [0, 1), got {fraction}")
