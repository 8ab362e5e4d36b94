"""Latencies of engines that do nothing."""

import torch

from nas_transfer.deploy.timing import PASSES, measure


def test_engines_take_turns_and_quartiles_enclose_the_median() -> None:
    called: list[str] = []

    def engine(name: str):
        def run(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            called.append(name)
            return (images,)

        return run

    found, busy = measure({"a": engine("a"), "b": engine("b")}, torch.zeros(1, 3, 4, 4), rounds=3)
    assert called == (["a"] * PASSES + ["b"] * PASSES) * 4  # the first round is not counted
    for latency in found.values():
        assert 0 <= latency.low <= latency.wall <= latency.high
        assert latency.cpu >= 0
    assert busy is None or busy >= 0
