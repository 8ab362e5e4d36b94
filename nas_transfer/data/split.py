"""The search split and folds: the parts of train on which archs are compared, so that no search ever sees val."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from nas_transfer.data.randomness import stable_seed
from nas_transfer.errors import ConfigError
from nas_transfer.ranges import Range, Share


@dataclass(frozen=True)
class Split:
    """How train is divided: the values under `data.split`.

    Attributes:
        search_fraction: share of the images of train for the search, in [0, 1]. With 1, all of train is both trained on
            and searched on.
        hold_out_search: train on train minus the search split instead of on all of train.
        val_fraction: share of the images of train that become val, above 0 and below 1; None for the val part on disk,
            and for `VAL_FRACTION` of a dataset without a split.

    Raises:
        ConfigError: a fraction out of range, or nothing left to train on.
    """

    search_fraction: Share
    hold_out_search: bool
    val_fraction: Annotated[float, Range(above=0, below=1)] | None

    def __post_init__(self) -> None:
        if not 0 <= self.search_fraction <= 1:
            raise ConfigError(f"data.split.search_fraction must lie in [0, 1], got {self.search_fraction}")
        if self.search_fraction == 1 and self.hold_out_search:
            raise ConfigError(
                "data.split.search_fraction=1 leaves no image to train on with data.split.hold_out_search=true: remove "
                "one of them"
            )
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ConfigError(f"data.split.val_fraction must lie above 0 and below 1, got {self.val_fraction}")


VAL_FRACTION = 0.2
"""Share of the images of a dataset without a split that become val."""


def val_split(num_images: int, fraction: float, groups: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Divide the images of a dataset without a split into train and val; see `search_split`.

    It does not depend on the seed of a run, so that runs with other seeds are scored on the same images.
    """
    return search_split(num_images, fraction, stable_seed(0, "val split"), groups)


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
    if not 0 <= fraction < 1:
        raise ConfigError(f"data.split.search_fraction must lie in [0, 1), got {fraction}")
    units, unit_of_image = _units(num_images, groups)
    num_search = round(fraction * len(units))
    if fraction > 0:
        num_search = min(max(num_search, 1), max(len(units) - 1, 0))
    chosen = np.random.default_rng(stable_seed(seed, "search split")).permutation(len(units))[:num_search]
    in_search = np.isin(unit_of_image, chosen)
    return np.flatnonzero(~in_search), np.flatnonzero(in_search)


def search_folds(num_images: int, folds: int, seed: int, groups: Sequence[int]) -> list[np.ndarray]:
    """Divide the images of train into folds; networks are scored on each one after a training on the others.

    Args:
        num_images: images in train, in an order that does not change between runs.
        folds: their number.
        seed: the same seed makes the same folds.
        groups: one number per image; a group is never divided.

    Returns:
        For each fold its sorted positions, int64. Each position is in one fold, and the numbers of groups in two folds
        differ by one at most.

    Raises:
        ConfigError: fewer groups than folds, or not one group per image.
    """
    units, unit_of_image = _units(num_images, groups)
    if folds > len(units):
        raise ConfigError(
            f"search.folds must be at most the number of different images of train, got {folds} for "
            f"{len(units)}: lower search.folds"
        )
    order = np.random.default_rng(stable_seed(seed, "search folds")).permutation(len(units))
    return [np.flatnonzero(np.isin(unit_of_image, chosen)) for chosen in np.array_split(order, folds)]


def _units(num_images: int, groups: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """The different groups, and for each image the index of its own."""
    if groups is not None and len(groups) != num_images:
        raise ConfigError(f"there must be one group per image, got {len(groups)} groups for {num_images} images")
    units, unit_of_image = np.unique(np.arange(num_images) if groups is None else groups, return_inverse=True)
    return units, unit_of_image
