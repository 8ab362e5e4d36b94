"""The base of all data layouts: finding parts, cutting the search split, and the loaders with their order."""

import copy
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pycocotools.coco import COCO
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import Self

from nas_transfer.data.drawing import Picture
from nas_transfer.data.duplicates import identical_images
from nas_transfer.data.image_cache import MIB, ImageCache
from nas_transfer.data.inspection import Inventory
from nas_transfer.data.layout import Annotation, BatchT, Layout
from nas_transfer.data.parts import KeyedSubset, NamesFiles, Parts, SampleT, Vocabulary
from nas_transfer.data.randomness import seeded_order, stable_seed
from nas_transfer.data.sampler import ResumableBatchSampler, SampleKey, StreamBatchSampler
from nas_transfer.data.sources import MissingPartError, PartName
from nas_transfer.data.split import VAL_FRACTION, Split, search_folds, search_split, val_split
from nas_transfer.errors import ConfigError, DataError
from nas_transfer.ranges import Count, Positive
from nas_transfer.runs import list_images

PART_NAMES: tuple[PartName, ...] = ("train", "val")

VIEW_EPOCHS = 100_000
"""Distance between the first epochs of two draws of views."""

NAME_LETTERS = 36
"""Letters of a file's name in the caption of a picture: its end."""


Draw = Callable[[str], None]


@dataclass(kw_only=True, eq=False, repr=False)
class DownstreamData(LightningDataModule, Layout[Annotation, SampleT, BatchT]):
    """The loaders over train, its search split and val of one dataset.

    A layout is a subclass with its own fields and the hooks of `Layout`.

    A trainer must be built with `use_distributed_sampler=False`: training batches are split over ranks here, and the
    other loaders give every rank the whole part. `stream` makes `train_dataloader` a single stream of batches over as
    many epochs as a run is long, which starts at the trainer's own step: a resumed run continues at its batch.

    Attributes:
        root: the folder of the dataset.
        batch_size: samples per device.
        num_workers: data loading processes per device; 0 loads in the training process.
        seed: seed of the order, the augmentation and the search split.
        cache_mib: MiB of decoded images that are kept in memory.
        skip_broken: decode every file in `setup` and leave broken ones out.
        split: how train is divided.
        draw: draws a dataset into a folder; None for files that are there already.
        annotation_files: the annotation files that `setup` has read, by part.
        val_cut: share of the images that became val when a part was read; None for a val part on disk.
        decoded: the images that are kept in memory.
        image_lists: names and sizes of the images that it has found, by part; see `nas_transfer.runs.list_images`.

    Raises:
        ConfigError: a negative number of workers.
    """

    root: Path
    batch_size: Positive
    num_workers: Count
    seed: Count
    skip_broken: bool
    split: Split
    draw: Draw | None
    cache_mib: Count

    def __post_init__(self) -> None:
        super().__init__()
        if self.num_workers < 0:
            raise ConfigError(f"num_workers must be at least 0, got {self.num_workers}")
        self.root = Path(self.root).expanduser()  # configurations hold text
        self.decoded = ImageCache(self.cache_mib * MIB)
        self.read_image = self.decoded.read
        self.parts: Parts[SampleT] | None = None
        self.annotation_files: dict[str, Path] = {}
        self.image_lists: dict[str, str] = {}
        self.val_cut: float | None = None
        self.train_sampler: ResumableBatchSampler
        self._stream_batches: int | None = None
        self._first_epoch = 0
        self._batches_per_step = 1

    def prepare_data(self) -> None:
        """Draw the dataset into `root`, if it is one to draw and is not there yet."""
        if self.draw is not None:
            self.draw(str(self.root))

    def setup(self, stage: str = "fit") -> None:
        """Find and check the parts and cut the search split, once.

        Raises:
            DataError: a part that cannot be used, or no val part.
            ConfigError: a value that does not fit the files.
        """
        if self.parts is not None:
            return
        val = self._read("val")
        self._note("val", val)
        vocabulary = self.describe(val)
        usable = self.usable(val)
        if unscored := self.unscored(val, usable):
            raise DataError(f"no score is defined on val of {self.root}, which has {unscored}: annotate it")
        quoted = self.dataset(val, usable, training=False)
        parts: Parts[SampleT] = Parts(vocabulary, quoted, self.ground_truth(val, usable))
        try:
            train = self._read("train")
        except MissingPartError as missing:
            self.parts = replace(parts, train_missing=str(missing))
        else:
            self._note("train", train)
            self.require_same_kind(train, val)
            self.parts = self._with_train(parts, train)

    def _read(self, part: PartName, refused: list[str] | None = None) -> Annotation:
        """The annotations of a part, cut out of those of all images where the dataset has no split."""
        fraction = self.split.val_fraction
        sentences: list[str] | None = None if refused is None else []
        annotation = self.read_part(part if fraction is None else "train", sentences)
        whole = fraction is not None or annotation.undivided
        if refused is not None and sentences and not (whole and part == "val"):  # once for both parts
            refused += sentences
        if not whole:
            return annotation
        self.val_cut = fraction or VAL_FRACTION
        train, val = val_split(annotation.num_images, self.val_cut, self._groups(annotation))
        return annotation.only(train if part == "train" else val)

    def _note(self, part: PartName, annotation: Annotation) -> None:
        """Remember which files the part was read from, for `annotation_files` and `image_lists`."""
        for number, path in enumerate(annotation.annotation_paths):
            self.annotation_files[f"{part} annotations{f' {number + 1}' if number else ''}"] = path
        digests = "".join(f"{digest}\n" for digest in annotation.digests)
        self.image_lists[part] = list_images(self.listed(annotation), self.root) + digests

    def _with_train(self, parts: Parts[SampleT], train: Annotation) -> Parts[SampleT]:
        usable = self.usable(train)
        trainable = self.trainable(train, usable)
        train_part, search_part = self._search_split(train)
        outside_search = np.intersect1d(train_part, trainable)
        trained = outside_search if self.split.hold_out_search else trainable
        search = np.intersect1d(search_part, usable)
        return self._with_search(parts, train, trained, outside_search, search, scored=search)

    def _with_search(
        self, parts: Parts[SampleT], train: Annotation, trained: np.ndarray, outside_search: np.ndarray,
        search: np.ndarray, *, scored: np.ndarray,
    ) -> Parts[SampleT]:  # fmt: skip
        """The parts of train at these positions; `scored` are all that one score is computed on."""
        return replace(
            parts,
            train=self.dataset(train, trained, training=True),
            calibration=self.dataset(train, outside_search, training=False),
            search=self.dataset(train, search, training=False),
            search_ground_truth=self.ground_truth(train, scored),
            search_unscored=self.unscored(train, scored),
            train_groups=self.batch_groups(train, trained),
        )

    def folds(self, count: int) -> list[Self]:
        """The dataset once for each fold of train: the fold is its search split, and the other folds are trained on.

        The search split of `split` plays no part. The ground truth of each is that of all folds, whose predictions are
        scored together. Identical images are in one fold.

        Raises:
            ConfigError: fewer different images than folds.
            DataError: there is no train part.
        """
        parts = self.require_parts()
        if parts.train is None:
            raise DataError(parts.train_missing)
        train = self._read("train")
        usable = self.usable(train)
        trainable = self.trainable(train, usable)
        folds: list[Self] = []
        for fold in search_folds(train.num_images, count, self.seed, self._groups(train)):
            search, others = np.intersect1d(fold, usable), np.setdiff1d(trainable, fold)
            data = copy.copy(self)
            data.parts = self._with_search(parts, train, others, others, search, scored=usable)
            folds.append(data)
        return folds

    def _search_split(self, train: Annotation) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the images for training and for the search; identical images are on the same side.

        Over all images, broken ones included: a broken image does not move the split. With a `search_fraction` of 1,
        both are all of train.
        """
        if self.split.search_fraction == 1:
            everything = np.arange(train.num_images)
            return everything, everything
        if self.split.search_fraction == 0:
            return search_split(train.num_images, 0, self.seed)
        return search_split(train.num_images, self.split.search_fraction, self.seed, self._groups(train))

    def _groups(self, annotation: Annotation) -> list[int]:
        """A group for each image: identical ones have the same."""
        return identical_images(annotation.image_paths, follow_exif=self.follow_exif).tolist()

    def inventories(self) -> dict[str, Inventory]:
        """All of train (the search split included) and val as they are on disk, whatever is broken; needs no `setup`.

        Raises:
            DataError: a part or an annotation file that cannot be found or read at all.
        """
        inventories: dict[str, Inventory] = {}
        for part in PART_NAMES:
            refused: list[str] = []
            try:
                annotation = self._read(part, refused)
            except MissingPartError:
                if part == "val":
                    raise
                continue
            search = self._search_split(annotation)[1] if part == "train" else ()
            inventory = self.inventory(annotation, refused)
            form = annotation.form + ("" if self.val_cut is None else f": {self.val_cut:g} of the images are val")
            inventories[part] = replace(inventory, search=frozenset(map(int, search)), form=form)
        return inventories

    def require_parts(self) -> Parts[SampleT]:
        """The datasets; `setup` is run if it has not been."""
        if self.parts is None:
            self.setup("fit")
        assert self.parts is not None  # setup fills it or raises
        return self.parts

    @property
    def vocabulary(self) -> Vocabulary:
        """The meaning of predictions."""
        return self.require_parts().vocabulary

    @property
    def num_classes(self) -> int:
        """Number of classes C, without background; of keypoints K for a pose task."""
        return len(self.vocabulary.names)

    @property
    def val_ground_truth(self) -> COCO | None:
        """pycocotools ground truth of exactly the images of `val_dataloader`; None for layouts without it."""
        return self.require_parts().val_ground_truth

    @property
    def search_ground_truth(self) -> COCO | None:
        """The same of `search_dataloader`; DataError without a train part."""
        parts = self.require_parts()
        if parts.search is None:
            raise DataError(parts.train_missing)
        return parts.search_ground_truth

    def stream(self, num_batches: int, batches_per_step: int, first_epoch: int = 0) -> None:
        """Make `train_dataloader` one stream of `num_batches` batches, `batches_per_step` to a training step.

        Another `first_epoch` gives another order and other augmentations of the same images.
        """
        self._stream_batches = num_batches
        self._first_epoch = first_epoch
        self._batches_per_step = batches_per_step

    def preview(self, count: int) -> list[Picture]:
        """Pictures of the first `count` samples that training sees, augmented as there; all samples if there are fewer.

        Their captions begin with the names of their files where the dataset knows them.

        Raises:
            DataError: there is no train part, or a sample that cannot be read.
        """
        train = self._from_train(self.require_parts().train, "train on")
        keys = itertools.chain.from_iterable(self._epoch_sampler(rank=0, world_size=1))
        pictures = []
        for key in itertools.islice(keys, count):
            picture = self.draw_sample(train[key])  # type: ignore[index]
            if isinstance(train, NamesFiles):
                name = Path(train.file_of(key.index)).name[-NAME_LETTERS:]
                picture = replace(picture, caption=f"{name}: {picture.caption}".rstrip(": "))
            pictures.append(picture)
        return pictures

    @property
    def num_train_images(self) -> int:
        """Images that an epoch of `train_dataloader` draws from, on all ranks together; 0 without a train part."""
        train = self.require_parts().train
        return 0 if train is None else _length(train)

    @property
    def num_val_images(self) -> int:
        """Images that `val_dataloader` gives; persons for a pose task."""
        return _length(self.require_parts().val)

    def batches_per_epoch(self, world_size: int) -> int:
        """Training batches that each of `world_size` ranks gets from one pass over the data; DataError without any."""
        return len(self._epoch_sampler(rank=0, world_size=world_size))

    def train_dataloader(self) -> DataLoader[BatchT]:
        """Shuffled, augmented batches of this rank, in the order of `self.train_sampler`."""
        trainer = self.trainer
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        self.train_sampler = self._epoch_sampler(rank, world_size)
        sampler: Sampler[list[SampleKey]] = self.train_sampler
        if self._stream_batches is not None:
            start = 0 if trainer is None else trainer.global_step * self._batches_per_step
            sampler = StreamBatchSampler(self.train_sampler, self._stream_batches, start, self._first_epoch)
        return self._loader(self._from_train(self.require_parts().train, "train on"), sampler, persistent=False)

    def _epoch_sampler(self, rank: int, world_size: int) -> ResumableBatchSampler:
        parts = self.require_parts()
        images, groups = _length(self._from_train(parts.train, "train on")), parts.train_groups
        return ResumableBatchSampler(
            images, self.batch_size, self.seed, groups=groups, rank=rank, world_size=world_size
        )

    def val_dataloader(self) -> DataLoader[BatchT]:
        """The quoted split in the order on disk, every image once."""
        return self._in_order(self.require_parts().val, self.batch_size, persistent=True)

    def search_dataloader(self, batch_size: int | None = None, *, shuffled: bool = False) -> DataLoader[BatchT]:
        """The search split with the evaluation transform, every image once; it does not depend on `hold_out_search`.

        Args:
            batch_size: images per batch; None for that of the training.
            shuffled: in an order that depends on the seed alone: the first images then stand for all of them.
        """
        parts = self.require_parts()
        search = self._from_train(parts.search, "search on")
        if parts.search_unscored:
            raise DataError(
                f"no score is defined on the search split of {self.root}, which has {parts.search_unscored}: annotate "
                "more images of train, or raise data.split.search_fraction"
            )
        if shuffled:
            search = KeyedSubset(search, seeded_order(_length(search), stable_seed(self.seed, "search order")))
        return self._in_order(search, batch_size or self.batch_size, persistent=True)

    def calibration_dataloader(self, num_images: int, batch_size: int, draw: int = 0) -> DataLoader[BatchT]:
        """Images of train minus the search split, evaluation transform, for the statistics of BatchNorm.

        The last batch may be smaller. It never has one image alone, of which a globally pooled branch has no variance:
        all batches are then larger by one.

        Args:
            num_images: taken from the start of a fixed seeded order; all images if there are fewer.
            batch_size: images per batch.
            draw: another one gives another order, hence other images where train has more.
        """
        images = self._from_train(self.require_parts().calibration, "calibrate on")
        order = seeded_order(_length(images), stable_seed(self.seed, "calibration", *([draw] if draw else [])))
        chosen = order[:num_images]
        while len(chosen) > batch_size > 1 and len(chosen) % batch_size == 1:
            batch_size += 1
        return self._in_order(KeyedSubset(images, chosen), batch_size, persistent=False)

    def view_dataloader(self, num_images: int, draw: int = 0) -> DataLoader[BatchT]:
        """At least `num_images` augmented images of train, in the batches that a training would see.

        Args:
            num_images: smaller datasets give several views of each image.
            draw: another one gives other views.
        """
        sampler = self._epoch_sampler(rank=0, world_size=1)
        batches = max(1, -(-num_images // sampler.batch_size))
        train = self._from_train(self.require_parts().train, "draw views of")
        return self._loader(train, StreamBatchSampler(sampler, batches, 0, draw * VIEW_EPOCHS), persistent=False)

    def _from_train(self, part: Dataset[SampleT] | None, purpose: str) -> Dataset[SampleT]:
        if part is None:
            raise DataError(self.require_parts().train_missing)
        if _length(part) == 0:
            raise DataError(
                f"no images to {purpose} in {self.root}: add training images or change data.split.search_fraction"
            )
        return part

    def _in_order(self, part: Dataset[SampleT], batch_size: int, persistent: bool) -> DataLoader[BatchT]:
        sampler = ResumableBatchSampler(_length(part), batch_size, self.seed, shuffle=False, drop_last=False)
        return self._loader(part, sampler, persistent)

    def _loader(
        self, part: Dataset[SampleT], sampler: Sampler[list[SampleKey]], persistent: bool
    ) -> DataLoader[BatchT]:
        workers = min(self.num_workers, os.cpu_count() or 1, len(sampler))  # type: ignore[arg-type]
        return DataLoader(
            part,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=self.collate,
            persistent_workers=persistent and workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Without a generator, starting an iteration would draw from the global one, and a resumed run would differ.
            generator=torch.Generator().manual_seed(stable_seed(self.seed, "workers")),
        )


def _length(part: Dataset[SampleT]) -> int:
    return len(part)  # type: ignore[arg-type]
