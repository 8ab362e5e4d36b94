"""Samplers of batches: reproducible, resumable at any batch, and split over ranks."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch.utils.data

from nas_transfer.data.randomness import stable_seed
from nas_transfer.errors import ConfigError, DataError


class SampleKey(NamedTuple):
    """The key of a sample: its position in the dataset, and the epoch for which its augmentation is drawn."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    epoch: int


class ResumableBatchSampler(torch.utils.data.Sampler[list[SampleKey]]):
    """A `batch_sampler` that gives batches of `SampleKey`s, whose order is a pure function of (seed, epoch).

    All ranks compute the same list of batches and each takes every `world_size`-th: batches of different ranks share no
    sample, and all ranks get the same number. A dataset smaller than `batch_size * world_size` gives smaller batches,
    so that each rank has at least one.

    With `groups` (one number per sample, for instance landscape or portrait) a batch holds samples of one group. The
    leftovers of all groups make mixed batches, so that `drop_last` drops only one partial batch in all.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        groups: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Raises ConfigError for an impossible batch size or rank, DataError for fewer samples than ranks."""
        if batch_size < 1:
            raise ConfigError(f"data.batch_size must be at least 1, got batch size {batch_size}")
        if not 0 <= rank < world_size:
            raise ConfigError(f"a rank must lie in 0..{world_size - 1}, got {rank}: check the settings of the launcher")
        if num_samples < world_size:
            raise DataError(
                f"there must be at least one sample for each of the {world_size} processes, got {num_samples}: "
                "use fewer devices or more data"
            )
        if groups is not None and len(groups) != num_samples:
            raise ConfigError(f"there must be one group per sample, got {len(groups)} groups for {num_samples} samples")
        self.num_samples = num_samples
        self.batch_size = min(batch_size, num_samples // world_size)
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.groups = None if groups is None else np.asarray(groups, dtype=np.int64)
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start_batch = 0

    def set_position(self, epoch: int, start_batch: int) -> None:
        """Make the next iteration that of `epoch`, from batch `start_batch` of this rank on; 0 is the whole epoch."""
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ConfigError(
                f"the epoch must be at least 0 and the start batch in 0..{len(self)}, got {epoch} and {start_batch}: "
                "the dataset, the batch size or the number of devices differs from that of the resumed run"
            )
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Batches of one full epoch for each rank: the same in all epochs, and independent of `start_batch`."""
        batches = self.num_samples // self.batch_size if self.drop_last else -(-self.num_samples // self.batch_size)
        return batches // self.world_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.epoch  # read now, not when the first batch is fetched
        of_rank = self._epoch_batches(epoch)[self.rank :: self.world_size][: len(self)]
        return iter([[SampleKey(int(index), epoch) for index in batch] for batch in of_rank[self.start_batch :]])

    def _epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """The batches of all ranks in one epoch, each an int64 array of sample positions."""
        rng = np.random.default_rng(stable_seed(self.seed, "order", epoch))
        order = rng.permutation(self.num_samples) if self.shuffle else np.arange(self.num_samples)
        size = self.batch_size
        batches: list[np.ndarray] = []
        leftovers = order
        if self.groups is not None:
            rests = []
            for group in np.unique(self.groups):
                members = order[self.groups[order] == group]
                full = len(members) // size * size
                batches += [members[start : start + size] for start in range(0, full, size)]
                rests.append(members[full:])
            leftovers = np.concatenate(rests)
            if self.shuffle:
                leftovers = rng.permutation(leftovers)
        batches += [leftovers[start : start + size] for start in range(0, len(leftovers), size)]
        if self.drop_last and len(batches[-1]) < size:
            batches.pop()
        if self.shuffle:
            batches = [batches[position] for position in rng.permutation(len(batches))]
        return batches


class StreamBatchSampler(torch.utils.data.Sampler[list[SampleKey]]):
    """The batches of one epoch after another as a finite stream that can start at any batch.

    Args:
        epochs: gives the batches of each epoch; the stream sets its position.
        num_batches: length of the whole stream, whatever `start` is.
        start: the batch of the stream at which the iteration begins.
        first_epoch: the number of the first epoch in the stream.
    """

    def __init__(self, epochs: ResumableBatchSampler, num_batches: int, start: int, first_epoch: int = 0) -> None:
        self.epochs = epochs
        self.num_batches = num_batches
        self.start = start
        self.first_epoch = first_epoch

    def __len__(self) -> int:
        """Batches of the whole stream: Lightning counts those of a resumed run from `start` on."""
        return self.num_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        position = self.start
        while position < self.num_batches:
            epoch, offset = divmod(position, len(self.epochs))
            self.epochs.set_position(self.first_epoch + epoch, offset)
            for batch in self.epochs:
                if position == self.num_batches:
                    return
                yield batch
                position += 1
