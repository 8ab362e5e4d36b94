"""Semantic segmentation from images with a label image each: pairs in a list, twin folders, or Cityscapes' layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from nas_transfer.data.augmentation import SegmentationAugmentation
from nas_transfer.data.drawing import Picture, draw_label_map
from nas_transfer.data.image_cache import ReadImage
from nas_transfer.data.images import read_image, usable_images
from nas_transfer.data.inspection import Contents, Inventory
from nas_transfer.data.label_files import NUM_IDS, LabelledFiles, LabelTable, label_table, read_labels, require_labels
from nas_transfer.data.module import DownstreamData
from nas_transfer.data.parts import Vocabulary
from nas_transfer.data.randomness import seeded_call
from nas_transfer.data.sampler import SampleKey
from nas_transfer.data.samples import ScoredBox, SegmentationBatch, SegmentationSample
from nas_transfer.data.segmentation_transforms import IGNORE_LABEL, SegmentationTrain
from nas_transfer.data.sources import LabelMapSources, PartName
from nas_transfer.errors import DataError
from nas_transfer.ranges import Positive


class LabelledMaps(Dataset[SegmentationSample]):
    """Images with label maps; a sample is {"image": uint8 (3, H, W), "labels": uint8 (H, W), "sample_id": int}.

    Args:
        files: all files of a part (train or val).
        chosen: positions in `files` that this dataset holds; `sample_id` is such a position, so that an image keeps
            its augmentation whether or not the search split is held out.
        table: what the ids of the label files mean.
        transform: transform of image and labels together, or None.
        seed: seed of the augmentation.
        read: reads an image file.
    """

    def __init__(
        self,
        files: LabelledFiles,
        chosen: np.ndarray,
        table: LabelTable,
        transform: SegmentationTrain | None,
        seed: int,
        read: ReadImage = read_image,
    ) -> None:
        self.images = np.asarray([str(files.images[position]) for position in chosen], dtype=np.str_)
        self.labels = np.asarray([str(files.labels[position]) for position in chosen], dtype=np.str_)
        self.sample_ids = chosen
        self.table = table
        self.transform = transform
        self.seed = seed
        self.read = read

    def __len__(self) -> int:
        return len(self.sample_ids)

    def file_of(self, index: int) -> str:
        """The file of the image at a position."""
        return str(self.images[index])

    def __getitem__(self, key: SampleKey) -> SegmentationSample:
        sample_id = int(self.sample_ids[key.index])
        path = str(self.images[key.index])
        image = self.read(path, follow_exif=False)
        labels = read_labels(str(self.labels[key.index]), self.table)
        if image.shape[-2:] != labels.shape:
            raise DataError(
                f"the label image {self.labels[key.index]} is {labels.shape[1]}x{labels.shape[0]}, but {path} is "
                f"{image.shape[-1]}x{image.shape[-2]}: correct the pair (labels refer to the stored pixels, not to the "
                "EXIF orientation)"
            )
        if self.transform is not None:
            image, labels = seeded_call(self.transform, self.seed, key.epoch, sample_id, image, labels)
        return {"image": image, "labels": labels, "sample_id": sample_id}


@dataclass(kw_only=True, eq=False, repr=False)
class LabelMapsData(DownstreamData[LabelledFiles, SegmentationSample, SegmentationBatch]):
    """Images with one label image each: Cityscapes, ADE20K, CamVid, and your own.

    Attributes:
        sources: where lists or folders are.
        class_names: in label order, from 0.
        class_ids: id of each class in the label files; None for 0, 1, 2 and so on.
        ignore_ids: ids that are neither trained nor scored.
        crop_size: height and width of training crops in pixels.
        augmentation: augmentation of the training images.

    Raises:
        ConfigError: classes or a crop size that cannot be used.
        DataError: (in setup) missing files.
    """

    sources: LabelMapSources
    class_names: Sequence[str]
    class_ids: Sequence[int] | None
    ignore_ids: Sequence[int]
    crop_size: Sequence[Positive]
    augmentation: SegmentationAugmentation

    def __post_init__(self) -> None:
        super().__post_init__()
        self.class_names = tuple(str(name) for name in self.class_names)
        self.table = label_table(len(self.class_names), self.class_ids, self.ignore_ids)
        self.train_transform = SegmentationTrain(self.crop_size, self.augmentation)

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes, with their ids in the label files; needs no `setup`."""
        ids = [int(np.flatnonzero(self.table.lookup == label)[0]) for label in range(len(self.class_names))]
        return Vocabulary(tuple(self.class_names), tuple(ids))

    def task_arguments(self) -> dict[str, object]:
        """The class names, for scores per class."""
        return {"class_names": list(self.class_names)}

    def read_part(self, part: PartName, refused: list[str] | None = None) -> LabelledFiles:
        """List the files; nothing is read."""
        return self.sources.find(self.root, part)

    def describe(self, val: LabelledFiles) -> Vocabulary:
        """The classes."""
        return self.vocabulary

    def listed(self, annotation: LabelledFiles) -> list[Path]:
        """The images and their label images."""
        return [*annotation.images, *annotation.labels]

    def usable(self, annotation: LabelledFiles) -> np.ndarray:
        """Positions of the pairs that can be used."""
        readable = super().usable(annotation)
        if not self.skip_broken:
            require_labels(annotation)
            return readable
        usable = np.intersect1d(readable, usable_images(annotation.labels, skip_broken=True))
        if not len(usable):
            raise DataError(
                f"no image with its label image can be read, the first is {annotation.images[0]}: repair the dataset"
            )
        return usable.astype(np.int64)

    def unscored(self, annotation: LabelledFiles, chosen: np.ndarray) -> str:
        """Pixels of a class are needed; label images are read up to the first that has some."""
        for position in chosen:
            if bool((read_labels(annotation.labels[position], self.table) != IGNORE_LABEL).any()):
                return ""
        return "no pixels of any class"

    def dataset(self, annotation: LabelledFiles, chosen: np.ndarray, *, training: bool) -> Dataset[SegmentationSample]:
        """Whole images, or augmented crops for training."""
        transform = self.train_transform if training else None
        return LabelledMaps(annotation, chosen, self.table, transform, self.seed, self.read_image)

    def inventory(self, annotation: LabelledFiles, refused: Sequence[str]) -> Inventory:
        """Every image with its label image."""
        num_classes = len(self.class_names)
        maps = LabelledMaps(annotation, np.arange(annotation.num_images), self.table, None, self.seed)

        def look(position: int) -> tuple[torch.Tensor, Contents]:
            sample = maps[SampleKey(position, 0)]
            counts = np.bincount(sample["labels"].flatten().numpy(), minlength=NUM_IDS)
            pixels = np.append(counts[:num_classes], counts[num_classes:].sum())
            return sample["image"], Contents(np.flatnonzero(pixels[:-1]), pixels=pixels)

        return Inventory(self.class_names, [str(path) for path in annotation.images], look, refused)

    @staticmethod
    def collate(samples: list[SegmentationSample]) -> SegmentationBatch:
        """Lists of images and of label maps."""
        return {
            "images": [sample["image"] for sample in samples],
            "labels": [sample["labels"] for sample in samples],
            "sample_ids": torch.tensor([sample["sample_id"] for sample in samples], dtype=torch.int64),
        }

    def draw_sample(self, sample: SegmentationSample) -> Picture:
        """The image under its label map."""
        return draw_label_map(sample["image"], sample["labels"], self.class_names)

    def prediction_batch(self, image: torch.Tensor, boxes: Sequence[ScoredBox]) -> SegmentationBatch:
        """The image alone."""
        return {"images": [image]}
