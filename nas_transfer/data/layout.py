"""What a layout of files on disk implements, so that `nas_transfer.data.module` can load it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from pycocotools.coco import COCO
from torch.utils.data import Dataset

from nas_transfer.data.drawing import Picture
from nas_transfer.data.images import read_image, usable_images
from nas_transfer.data.inspection import Inventory
from nas_transfer.data.parts import AnnotatedPart, SampleT, Vocabulary
from nas_transfer.data.samples import ScoredBox
from nas_transfer.data.sources import PartName

Annotation = TypeVar("Annotation", bound=AnnotatedPart)
BatchT = TypeVar("BatchT", bound=Mapping[str, object])


class Layout(ABC, Generic[Annotation, SampleT, BatchT]):
    """The hooks of a layout.

    It implements the abstract methods, and overrides the others where it differs.

    Attributes:
        follow_exif: whether images are turned as their EXIF orientation says; not where annotations hold pixel
            positions.
        skip_broken: see `nas_transfer.data.module.DownstreamData`.
    """

    follow_exif: ClassVar[bool] = False
    skip_broken: bool

    @abstractmethod
    def read_part(self, part: PartName, refused: list[str] | None = None) -> Annotation:
        """Find the files of a part and check its annotations.

        Args:
            refused: collects a sentence for each annotation that training refuses, instead of raising it; nothing else
                is left out then.

        Raises:
            MissingPartError: the part is not on disk, and no key names its files.
            DataError: files that were named and are not there, or annotations that cannot be used.
        """

    @abstractmethod
    def describe(self, val: Annotation) -> Vocabulary:
        """The meaning of predictions; called once in `setup`, before any dataset is made."""

    @abstractmethod
    def dataset(self, annotation: Annotation, chosen: np.ndarray, *, training: bool) -> Dataset[SampleT]:
        """The samples of the images at the positions `chosen`, int64, with the training or evaluation transform."""

    @abstractmethod
    def inventory(self, annotation: Annotation, refused: Sequence[str]) -> Inventory:
        """All images of a part for `stage=check`, with what `read_part` refused."""

    @staticmethod
    @abstractmethod
    def collate(samples: list[SampleT]) -> BatchT:
        """Samples as a batch."""

    @abstractmethod
    def draw_sample(self, sample: SampleT) -> Picture:
        """A picture of a sample with its annotations, for people to check them."""

    @abstractmethod
    def prediction_batch(self, image: torch.Tensor, boxes: Sequence[ScoredBox]) -> BatchT:
        """An image from `read` as a batch without annotations; `boxes` are the persons that a pose task reads."""

    def listed(self, annotation: Annotation) -> Sequence[str | Path]:
        """The files that count by their names and sizes when a run is continued."""
        return annotation.image_paths

    def usable(self, annotation: Annotation) -> np.ndarray:
        """Positions of the images that can be used, int64; DataError for a missing file without `skip_broken`."""
        return np.asarray(usable_images(annotation.image_paths, skip_broken=self.skip_broken), dtype=np.int64)

    def trainable(self, annotation: Annotation, usable: np.ndarray) -> np.ndarray:
        """Positions, of these usable ones, of the images that are trained on, int64; DataError for none."""
        return usable

    def unscored(self, annotation: Annotation, chosen: np.ndarray) -> str:
        """Why no score is defined on the images at the positions `chosen`: what they lack; empty where one is."""
        return ""

    def require_same_kind(self, train: Annotation, val: Annotation) -> None:
        """Raise DataError unless both parts have the same classes."""

    def ground_truth(self, annotation: Annotation, chosen: np.ndarray) -> COCO | None:
        """The ground truth of pycocotools for the images at the positions `chosen`; None for metrics without it."""
        return None

    def batch_groups(self, annotation: Annotation, chosen: np.ndarray) -> Sequence[int] | None:
        """A group id for each image; batches avoid mixing groups. None for no groups."""
        return None

    def task_arguments(self) -> dict[str, object]:
        """Facts about the data for the constructor of a task, besides the number of classes."""
        return {}

    def in_own_frame(self, sample: SampleT) -> SampleT:
        """For a crop, make predictions stay in crop coordinates."""
        return sample

    def read(self, path: Path) -> torch.Tensor:
        """Read an image that is no part of the dataset as evaluation reads its own: uint8 (3, H, W)."""
        return self.fitted(read_image(path, follow_exif=self.follow_exif))

    def fitted(self, image: torch.Tensor) -> torch.Tensor:
        """An image uint8 (3, H, W) as evaluation passes it on: as it is, unless the layout resizes its images."""
        return image
