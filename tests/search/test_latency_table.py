"""Latency tables: the pieces form the body, each is timed once, and predictions are checked on whole networks."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_transfer.search import latency_table
from nas_transfer.search.latency_table import LatencyTable, check_table, device_name, head_layers, pass_times
from nas_transfer.supernet.networks import latency_pieces
from tests.conftest import load_supernet
from tests.tasks.test_detector_genes import detector
from tests.tasks.test_pose import SIZE, make_task

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["bignas_nano", "detnas_nano", "resnet50"])
def test_the_pieces_one_after_the_other_are_the_body(name: str) -> None:
    table = load_supernet(name)
    rng = np.random.default_rng(0)
    for arch in [table.space.smallest(), table.space.sample(rng)]:
        features = torch.zeros(1, 3, 64, 96)
        macs = 0
        for piece in latency_pieces(table, arch, (64, 96)):
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
    keys = [piece.key for piece in latency_pieces(table, arch, (48, 48))]
    assert set(latencies.times) == set(keys)
    assert len(set(keys)) < len(keys)  # equal blocks share a time
    assert total == pytest.approx(sum(latencies.times[key] for key in keys))
    again = LatencyTable(tmp_path, CPU, batch_size=1, warmup=0, repeats=2)
    assert again.body_ms(table, arch, (48, 48)) == total
    assert device_name(CPU) in again.path.name


def test_a_table_is_checked_against_whole_networks_that_it_has_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def millions(run: Callable, shape: Sequence[int], *_: object) -> np.ndarray:
        """Multiply-accumulates instead of milliseconds, which other work on the machine would change."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(torch.zeros(*shape))
        return np.asarray([counter.get_total_flops() / 2e6])

    monkeypatch.setattr(latency_table, "pass_times", millions)
    table = load_supernet("bignas_nano")
    rng = np.random.default_rng(0)
    archs = [table.space.smallest(), table.space.sample(rng), table.space.smallest(), table.space.largest()]
    check = check_table(LatencyTable(tmp_path, CPU, batch_size=1, warmup=1, repeats=5), make_task, archs)
    body = {piece.key for arch in archs for piece in latency_pieces(table, arch, SIZE)}
    head = {str(layer) for arch in archs for layer, _ in head_layers(make_task(arch).eval(), (1, 3, *SIZE))}
    assert check.num_pieces == len(body) + len(head)
    assert check.offset_ms == pytest.approx(0)  # every multiply-accumulate of the whole network is in the table
    assert check.error == pytest.approx(0)
    assert check.rank_correlation == 1


def test_errors_are_those_of_archs_that_did_not_set_the_offset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = iter([12.0, 16.0, 20.0, 50.0])
    monkeypatch.setattr(latency_table, "pass_times", lambda *_: np.asarray([next(whole)]))
    monkeypatch.setattr(LatencyTable, "network_ms", lambda _self, task: sums[task.arch])
    space = load_supernet("bignas_nano").space
    rng = np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(4)]
    sums = dict(zip(archs, [10.0, 10.0, 21.0, 41.0], strict=True))
    check = check_table(LatencyTable(tmp_path, CPU, batch_size=1, warmup=1, repeats=5), make_task, archs)
    assert check.offset_ms == 4  # median of 2 and 6
    assert check.error == pytest.approx((5 / 20 + 5 / 50) / 2)
    assert check.largest_error == pytest.approx(5 / 20)
    assert check.rank_correlation == 1


def test_the_layers_of_a_detector_are_counted_as_often_as_they_run() -> None:
    task = detector().extract(detector().space.smallest()).eval()
    sizes = task.sizes(task.require_subnet())
    layers = head_layers(task, (1, 3, sizes.min_size, sizes.max_size))
    kinds = [type(layer).__name__ for layer, _ in layers]
    assert kinds.count("Conv2d") == 3 + 3 + 3 * 4  # laterals, smoothing, and the RPN on four levels
    rows = {shape[0] for layer, shape in layers if isinstance(layer, nn.Linear)}
    assert kinds.count("Linear") == 4
    assert rows == {50}  # up to ten proposals, rounded up


def test_the_layers_of_a_detector_are_timed_and_remembered(tmp_path: Path) -> None:
    task = detector().extract(detector().space.smallest()).eval()
    latencies = LatencyTable(tmp_path, CPU, batch_size=1, warmup=0, repeats=1)
    total = latencies.network_ms(task)
    arch = task.require_subnet()
    assert total > latencies.body_ms(task.table, arch, task.input_size(arch)) > 0
    again = LatencyTable(tmp_path, CPU, batch_size=1, warmup=0, repeats=1)
    assert again.network_ms(task) == pytest.approx(total)
    assert again.times == latencies.times


def test_passes_are_counted_after_the_warm_up() -> None:
    calls = []
    times = pass_times(lambda images: calls.append(images.shape), (2, 3, 4, 4), CPU, warmup=2, repeats=3)
    assert calls == [(2, 3, 4, 4)] * 5
    assert times.shape == (3,)
    assert (times > 0).all()
