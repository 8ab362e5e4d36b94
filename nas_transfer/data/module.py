"""What all data layouts share: which part feeds which loader, in which order, with which workers."""

import itertools
import os
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from nas_transfer.data.drawing import Picture
from nas_transfer.data.images import read_image
from nas_transfer.data.inspection import Inventory
from nas_transfer.data.randomness import stable_seed
from nas_transfer.data.sampler import ResumableBatchSampler, SampleKey, StreamBatchSampler
from nas_transfer.errors import ConfigError, DataError

Sample = dict[str, Any]
Batch = dict[str, Any]
Record = dict[str, Any]
Draw = Callable[[str], None]


@dataclass(frozen=True)
class Vocabulary:
    """What the numbers that a network predicts stand for.

    Attributes:
        names: of the classes, or of the keypoints.
        ids: of the classes in the annotation or label files; of keypoints, that of their one category.
        edges: pairs of keypoints between which a limb is drawn.
        flip_pairs: indices of left and right keypoints.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    edges: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Parts:
    """The data sets behind the four loaders; each takes a `SampleKey` and returns one sample.

    Attributes:
        val: the quoted split, evaluation transform.
        train: what is trained on, training transform; None when the data set has no train part.
        calibration: train minus the search split, evaluation transform.
        search: the search split, evaluation transform.
        train_groups: one number per training image; a batch holds one group as far as possible.
        train_missing: why there is no train part: a sentence for the user.
    """

    val: Dataset[Sample]
    train: Dataset[Sample] | None = None
    calibration: Dataset[Sample] | None = None
    search: Dataset[Sample] | None = None
    train_groups: Sequence[int] | None = None
    train_missing: str = ""


class DownstreamData(LightningDataModule):
    """Loaders over the `Parts` that a layout's `setup` puts into `self.parts`.

    A trainer must be built with `use_distributed_sampler=False`: training batches are split over ranks here, and the
    other loaders give every rank the whole part. `stream` makes `train_dataloader` a single stream of batches over as
    many epochs as a run is long, which starts at the trainer's own step: a resumed run goes on at its batch.
    """

    parts: Parts | None
    train_sampler: ResumableBatchSampler

    def __init__(
        self,
        root: str,
        batch_size: int,
        num_workers: int,
        seed: int,
        collate: Callable[[list[Sample]], Batch],
        draw: Draw | None,
    ) -> None:
        super().__init__()
        if num_workers < 0:
            raise ConfigError(f"expected num_workers >= 0, got {num_workers}.")
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.collate = collate
        self.draw = draw
        self.parts = None
        self._stream_batches: int | None = None
        self._first_epoch = 0
        self._batches_per_step = 1

    def stream(self, num_batches: int, batches_per_step: int, first_epoch: int = 0) -> None:
        """Make `train_dataloader` one stream of `num_batches` batches, `batches_per_step` to a training step.

        Another `first_epoch` gives another order and other augmentations of the same images.
        """
        self._stream_batches = num_batches
        self._first_epoch = first_epoch
        self._batches_per_step = batches_per_step

    @property
    def val_ground_truth(self) -> Any:
        """What the metric needs to know of the validation split beside its batches; None for most layouts."""
        return None

    @property
    def search_ground_truth(self) -> Any:
        """The same of the search split."""
        return None

    def task_arguments(self) -> dict[str, Any]:
        """What a task's constructor needs to know of the data beside the number of classes."""
        return {}

    @abstractmethod
    def draw_sample(self, sample: Sample) -> Picture:
        """A picture of a sample with its annotations, for people to check them."""

    def in_own_frame(self, sample: Sample) -> Sample:
        """The sample, with what is predicted of it left in the crop's own pixels where it is a crop."""
        return sample

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The meaning of predictions."""

    @abstractmethod
    def inventories(self) -> dict[str, Inventory]:
        """All of train (the search split included) and val as they are on disk, whatever is broken; needs no `setup`.

        Raises:
            DataError: a part or an annotation file that cannot be found or read at all.
        """

    def read(self, path: Path) -> torch.Tensor:
        """An image that is no part of the data set, as evaluation reads its own: uint8 (3, H, W)."""
        return read_image(path, follow_exif=False)

    def prediction_batch(self, image: torch.Tensor, boxes: Sequence[Record]) -> Batch:
        """One image that `read` gave, as a batch of `val_dataloader` without annotations.

        `boxes` are the persons that a pose task looks at: bbox [x, y, width, height] and score.
        """
        return {"images": [image]}

    def preview(self, count: int) -> list[Picture]:
        """Pictures of the first `count` samples that training sees, augmented as there; all samples if there are fewer.

        Raises:
            DataError: there is no train part, or a sample that cannot be read.
        """
        train = self._from_train(self.require_parts().train, "train on")
        keys = itertools.chain.from_iterable(self._epoch_sampler(rank=0, world_size=1))
        return [self.draw_sample(train[key]) for key in itertools.islice(keys, count)]  # type: ignore[index]

    def prepare_data(self) -> None:
        """Draw the embedded data set into `root`, if this is one and it is not there yet."""
        if self.draw is not None:
            self.draw(str(self.root))

    def require_parts(self) -> Parts:
        """The data sets; `setup` is run if it has not been."""
        if self.parts is None:
            self.setup("fit")
        if self.parts is None:
            raise ConfigError(f"expected {type(self).__name__}.setup to fill `parts`, got None.")
        return self.parts

    @property
    def num_train_images(self) -> int:
        """Images that an epoch of `train_dataloader` draws from, on all ranks together; 0 without a train part."""
        train = self.require_parts().train
        return 0 if train is None else _length(train)

    def batches_per_epoch(self, world_size: int) -> int:
        """Training batches that each of `world_size` ranks gets from one pass over the data; DataError without any."""
        return len(self._epoch_sampler(rank=0, world_size=world_size))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, augmented batches of this rank; their order is `self.train_sampler`'s."""
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
        images = _length(self._from_train(parts.train, "train on"))
        groups = parts.train_groups
        return ResumableBatchSampler(
            images, self.batch_size, self.seed, groups=groups, rank=rank, world_size=world_size
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """The quoted split in its order on disk, every image once."""
        return self._in_order(self.require_parts().val, self.batch_size, persistent=True)

    def search_dataloader(self) -> DataLoader[Batch]:
        """The search split with the evaluation transform, every image once; it does not depend on `hold_out_search`."""
        search = self._from_train(self.require_parts().search, "search on")
        return self._in_order(search, self.batch_size, persistent=True)

    def calibration_dataloader(self, num_images: int, batch_size: int, draw: int = 0) -> DataLoader[Batch]:
        """The first `num_images` of train minus the search split in a fixed seeded order, evaluation transform.

        Another `draw` gives others, as far as there are more.
        For BatchNorm statistics. Gives all images when there are fewer. The last batch may be smaller, but a last
        image is never alone, for a globally pooled branch has no variance on it: the batches are then larger by one.
        """
        images = self._from_train(self.require_parts().calibration, "calibrate on")
        seed = stable_seed(self.seed, "calibration", *([draw] if draw else []))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(_length(images), generator=generator)[:num_images].tolist()
        while len(chosen) > batch_size > 1 and len(chosen) % batch_size == 1:
            batch_size += 1
        return self._in_order(_KeyedSubset(images, chosen), batch_size, persistent=False)

    def _from_train(self, part: Dataset[Sample] | None, purpose: str) -> Dataset[Sample]:
        if part is None:
            raise DataError(self.require_parts().train_missing)
        if _length(part) == 0:
            raise DataError(
                f"expected images to {purpose} in {self.root}, got none: "
                "add training images or change data.search_fraction."
            )
        return part

    def _in_order(self, part: Dataset[Sample], batch_size: int, persistent: bool) -> DataLoader[Batch]:
        sampler = ResumableBatchSampler(_length(part), batch_size, self.seed, shuffle=False, drop_last=False)
        return self._loader(part, sampler, persistent)

    def _loader(self, part: Dataset[Sample], sampler: Sampler[list[SampleKey]], persistent: bool) -> DataLoader[Batch]:
        workers = min(self.num_workers, os.cpu_count() or 1, len(sampler))  # type: ignore[arg-type]
        return DataLoader(
            part,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=self.collate,
            persistent_workers=persistent and workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: otherwise starting an iteration draws from the global one, and resuming would differ.
            generator=torch.Generator().manual_seed(stable_seed(self.seed, "workers")),
        )


class _KeyedSubset(Subset[Sample]):
    """A subset whose samples are asked for by `SampleKey`."""

    def __getitem__(self, key: SampleKey) -> Sample:  # type: ignore[override]
        return self.dataset[SampleKey(self.indices[key.index], key.epoch)]

    def __getitems__(self, keys: list[SampleKey]) -> list[Sample]:  # type: ignore[override]
        return [self[key] for key in keys]


def _length(part: Dataset[Sample]) -> int:
    return len(part)  # type: ignore[arg-type]
