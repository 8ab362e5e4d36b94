"""The annotations of a part of a dataset, and the torch datasets made from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from pycocotools.coco import COCO
from torch.utils.data import Dataset, Subset
from typing_extensions import Self

from nas_transfer.data.sampler import SampleKey

SampleT = TypeVar("SampleT")


class AnnotatedPart(Protocol):
    """The checked annotations of train or val; each layout has a class of its own."""

    @property
    def num_images(self) -> int:
        """Images that the part lists, broken ones included."""

    @property
    def image_paths(self) -> Sequence[str | Path]:
        """Their files, in the order of the part."""

    @property
    def annotation_paths(self) -> Sequence[Path]:
        """The files that the part was read from, without those of its images."""

    @property
    def digests(self) -> Sequence[str]:
        """A line "sha256:<hash> <name>" for each file of annotations that belongs to one image."""

    @property
    def form(self) -> str:
        """What people call the form of its files."""

    @property
    def undivided(self) -> bool:
        """Whether these are the images of train and val together, since the dataset has no split."""

    def only(self, positions: np.ndarray) -> Self:
        """The part with the images at these positions alone, int64."""


@dataclass(frozen=True)
class Vocabulary:
    """The meaning of the numbers that a network predicts.

    Attributes:
        names: names of the classes, or of the keypoints.
        ids: ids of the classes in the annotation or label files; for keypoints, the id of their one category.
        edges: pairs of keypoints between which a limb is drawn.
        flip_pairs: indices of left and right keypoints.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    edges: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Parts(Generic[SampleT]):
    """The datasets behind the four loaders; each takes a `SampleKey` and returns one sample.

    Attributes:
        vocabulary: vocabulary of the annotations.
        val: the quoted split, evaluation transform.
        val_ground_truth: pycocotools ground truth of exactly the images of `val`; None for other layouts.
        train: what is trained on, training transform; None when the dataset has no train part.
        calibration: train minus the search split, evaluation transform.
        search: the search split, evaluation transform.
        search_ground_truth: the same as `val_ground_truth` of `search`.
        search_unscored: why no score is defined on `search`; empty where one is.
        train_groups: one number per training image; a batch holds one group as far as possible.
        train_missing: why there is no train part: a sentence for the user.
    """

    vocabulary: Vocabulary
    val: Dataset[SampleT]
    val_ground_truth: COCO | None
    train: Dataset[SampleT] | None = None
    calibration: Dataset[SampleT] | None = None
    search: Dataset[SampleT] | None = None
    search_ground_truth: COCO | None = None
    search_unscored: str = ""
    train_groups: Sequence[int] | None = None
    train_missing: str = ""


@runtime_checkable
class NamesFiles(Protocol):
    """A dataset that knows the files of its samples."""

    def file_of(self, index: int) -> str:
        """The file of the sample at a position."""


class KeyedSubset(Subset[SampleT]):
    """A subset that takes a `SampleKey`."""

    def __getitem__(self, key: SampleKey) -> SampleT:  # type: ignore[override]
        return self.dataset[SampleKey(self.indices[key.index], key.epoch)]

    def __getitems__(self, keys: list[SampleKey]) -> list[SampleT]:  # type: ignore[override]
        return [self[key] for key in keys]
