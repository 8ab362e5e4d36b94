"""Latency by blocks: the pieces are the body, each is timed once, and whole networks judge the predictions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.search.latency_table import LatencyTable, check_table, device_name, kendall_tau, pass_times
from tests.conftest import load_supernet
from tests.tasks.test_pose import SIZE, make_task

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["bignas_nano", "detnas_nano"])
def test_the_pieces_one_after_the_other_are_the_body(name: str) -> None:
    table = load_supernet(name)
    rng = np.random.default_rng(0)
    for arch in [table.space.smallest(), table.space.sample(rng)]:
        features = torch.zeros(1, 3, 64, 96)
        macs = 0
        for piece in table.pieces(arch, (64, 96)):
            assert tuple(features.shape[1:]) == piece.shape
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                features = piece.build().eval()(features)
            macs += counter.get_total_flops() // 2
        assert macs == table.body_cost(arch, (64, 96)).macs
        assert tuple(features.shape) == (1, table.feature_channels(arch)[-1], 2, 3)


def test_each_block_is_timed_once_and_remembered(tmp_path: Path) -> None:
    table = load_supernet("bignas_nano")
    arch = table.space.largest()
    latencies = LatencyTable(tmp_path, CPU, batch_size=1, warmup=0, repeats=2)
    total = latencies.body_ms(table, arch, (48, 48))
    keys = [piece.key for piece in table.pieces(arch, (48, 48))]
    assert set(latencies.times) == set(keys)
    assert len(set(keys)) < len(keys)  # equal blocks share a time
    assert total == pytest.approx(sum(latencies.times[key] for key in keys))
    again = LatencyTable(tmp_path, CPU, batch_size=1, warmup=0, repeats=2)
    assert again.body_ms(table, arch, (48, 48)) == total
    assert device_name(CPU) in again.path.name


def test_a_table_is_checked_against_whole_networks_that_it_has_not_seen(tmp_path: Path) -> None:
    table = load_supernet("bignas_nano")
    rng = np.random.default_rng(0)
    archs = [table.space.smallest(), table.space.sample(rng), table.space.smallest(), table.space.largest()]
    latencies = LatencyTable(tmp_path, CPU, batch_size=1, warmup=1, repeats=5)
    found = check_table(latencies, make_task, archs)
    assert found.num_pieces == len({piece.key for arch in archs for piece in table.pieces(arch, SIZE)})
    assert np.isfinite([found.offset_ms, found.error, found.largest_error]).all()
    assert found.rank_correlation == 1  # the smallest and the largest are not confused


def test_passes_are_counted_after_the_warm_up() -> None:
    calls = []
    times = pass_times(lambda images: calls.append(images.shape), (2, 3, 4, 4), CPU, warmup=2, repeats=3)
    assert calls == [(2, 3, 4, 4)] * 5
    assert times.shape == (3,)
    assert (times > 0).all()


def test_kendalls_tau_is_the_share_of_concordant_pairs() -> None:
    assert kendall_tau(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 4])) == 1
    assert kendall_tau(np.array([1, 2, 3, 4]), np.array([4, 3, 2, 1])) == -1
    assert kendall_tau(np.array([1, 2, 3]), np.array([1, 3, 2])) == pytest.approx(1 / 3)
