from itertools import chain

import numpy as np
import pytest

from nas_transfer.data.randomness import stable_seed
from nas_transfer.data.sampler import ResumableBatchSampler, SampleKey, StreamBatchSampler
from nas_transfer.errors import ConfigError, DataError


def indices(sampler: ResumableBatchSampler) -> list[list[int]]:
    return [[key.index for key in batch] for batch in sampler]


def test_an_epoch_visits_every_sample_once_and_epochs_differ() -> None:
    sampler = ResumableBatchSampler(12, 4, seed=0)
    first = indices(sampler)
    sampler.set_position(1, 0)
    second = indices(sampler)
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(12))
    assert first != second
    assert all(key.epoch == 1 for batch in sampler for key in batch)


@pytest.mark.parametrize("groups", [None, [k % 3 for k in range(23)]])
@pytest.mark.parametrize("rank", [0, 1])
def test_resuming_gives_exactly_the_remaining_batches(groups: list[int] | None, rank: int) -> None:
    def make() -> ResumableBatchSampler:
        return ResumableBatchSampler(23, 2, seed=5, groups=groups, rank=rank, world_size=2)

    whole, resumed = make(), make()
    whole.set_position(3, 0)
    resumed.set_position(3, 2)
    assert list(resumed) == list(whole)[2:]
    assert len(resumed) == len(whole) == len(list(whole)) == 5


def test_the_position_is_read_when_the_iteration_starts() -> None:
    sampler = ResumableBatchSampler(12, 4, seed=0)
    expected = list(sampler)
    iteration = iter(sampler)
    sampler.set_position(1, 0)
    assert list(iteration) == expected


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("groups", [None, [int(k > 10) for k in range(37)]])
def test_ranks_get_disjoint_and_equally_many_batches(groups: list[int] | None, drop_last: bool) -> None:
    ranks = [
        ResumableBatchSampler(37, 4, seed=1, groups=groups, drop_last=drop_last, rank=rank, world_size=3)
        for rank in range(3)
    ]
    batches = [indices(sampler) for sampler in ranks]
    assert {len(own) for own in batches} == {len(sampler) for sampler in ranks} == {3}
    seen = [index for own in batches for batch in own for index in batch]
    assert len(seen) == len(set(seen))


def test_groups_fill_batches_and_only_the_last_partial_batch_is_lost() -> None:
    groups = [0] * 10 + [1] * 7 + [2] * 3
    batches = indices(ResumableBatchSampler(20, 3, seed=2, groups=groups))
    assert len(batches) == 20 // 3
    mixed = [batch for batch in batches if len({groups[index] for index in batch}) > 1]
    assert len(mixed) <= 1  # 3 + 2 + 1 full batches, leftovers 1 + 1 + 0 are the partial batch
    assert all(len(batch) == 3 for batch in batches)
    kept = indices(ResumableBatchSampler(20, 3, seed=2, groups=groups, drop_last=False))
    assert sorted(chain(*kept)) == list(range(20))


def test_a_data_set_smaller_than_a_batch_gives_one_smaller_batch() -> None:
    sampler = ResumableBatchSampler(3, 8, seed=0)
    assert len(sampler) == 1
    assert sorted(indices(sampler)[0]) == [0, 1, 2]


def test_without_shuffling_the_order_is_that_of_the_data() -> None:
    sampler = ResumableBatchSampler(5, 2, seed=0, shuffle=False, drop_last=False)
    assert list(sampler) == [
        [SampleKey(0, 0), SampleKey(1, 0)],
        [SampleKey(2, 0), SampleKey(3, 0)],
        [SampleKey(4, 0)],
    ]


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="each of the 4 processes, got 3"):
        ResumableBatchSampler(3, 1, seed=0, world_size=4)
    with pytest.raises(ConfigError, match="batch size"):
        ResumableBatchSampler(3, 0, seed=0)
    with pytest.raises(ConfigError, match="start batch"):
        ResumableBatchSampler(4, 2, seed=0).set_position(0, 3)


def test_seeds_of_different_numbers_differ_and_are_valid_everywhere() -> None:
    seeds = {stable_seed(seed, epoch, index) for seed in range(-2, 3) for epoch in range(5) for index in range(50)}
    assert len(seeds) == 5 * 5 * 50
    assert 0 <= min(seeds) <= max(seeds) < 2**63
    np.random.default_rng(max(seeds))
    assert stable_seed(1, 23) != stable_seed(12, 3)


def test_a_stream_goes_through_epoch_after_epoch_and_can_be_entered_anywhere() -> None:
    epochs = ResumableBatchSampler(10, 3, seed=4)  # three batches an epoch
    expected = []
    for epoch in range(3):
        epochs.set_position(epoch, 0)
        expected += list(epochs)
    whole = StreamBatchSampler(epochs, num_batches=8, start=0)
    assert list(whole) == expected[:8]
    assert len(whole) == 8
    for start in range(9):
        entered = StreamBatchSampler(ResumableBatchSampler(10, 3, seed=4), num_batches=8, start=start)
        assert list(entered) == expected[start:8]
        assert len(entered) == 8  # Lightning counts a resumed run's batches on
