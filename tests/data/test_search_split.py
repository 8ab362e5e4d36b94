import numpy as np
import pytest

from nas_transfer.data.split import Split, search_split
from nas_transfer.errors import ConfigError


def test_the_split_is_a_partition_of_the_asked_size_and_the_same_each_time() -> None:
    train, search = search_split(200, 0.1, seed=3)
    assert len(search) == 20
    assert sorted([*train, *search]) == list(range(200))
    again = search_split(200, 0.1, seed=3)
    assert np.array_equal(train, again[0])
    assert np.array_equal(search, again[1])
    assert not np.array_equal(search, search_split(200, 0.1, seed=4)[1])


def test_a_group_is_never_divided() -> None:
    groups = [k // 7 for k in range(100)]
    train, search = search_split(100, 0.2, seed=0, groups=groups)
    assert not {groups[k] for k in train} & {groups[k] for k in search}
    assert len({groups[k] for k in search}) == 3
    assert len(train) + len(search) == 100


@pytest.mark.parametrize(("num_images", "fraction", "expected"), [(2, 0.01, 1), (2, 0.99, 1), (1, 0.5, 0), (9, 0.0, 0)])
def test_neither_part_is_empty_where_that_can_be(num_images: int, fraction: float, expected: int) -> None:
    assert len(search_split(num_images, fraction, seed=0)[1]) == expected


def test_a_fraction_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"got 1\.0"):
        search_split(10, 1.0, seed=0)
    with pytest.raises(ConfigError, match=r"data\.split\.search_fraction .* got -0\.1"):
        Split(-0.1, hold_out_search=False)
