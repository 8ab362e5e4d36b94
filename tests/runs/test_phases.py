"""Work that takes long says where it is and how long it will take."""

import logging
import time

import pytest

from nas_transfer.runs.phases import EVERY_SECONDS, Phase

TOLD = (1, 4, 7, 10)


@pytest.mark.parametrize(
    ("least", "seconds", "expected"),
    [
        ({}, 1, ["repair: 1 of 12 blocks, 11 s left"]),
        ({}, 0.5, []),  # 6 s
        ({"least_seconds": EVERY_SECONDS}, 2, []),  # 24 s
        (
            {"least_seconds": EVERY_SECONDS},
            10,
            [f"repair: {k} of 12 blocks, {10 * (12 - k)} s left" for k in (1, 4, 7, 10)],
        ),
    ],
    ids=["long", "short", "short for a trial", "long for a trial"],
)
def test_work_is_announced_from_a_duration_on(
    least: dict[str, float], seconds: float, expected: list[str], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    done = []
    for part in Phase(range(12), "repair", "blocks", **least):
        done.append(part)
        clock[0] += seconds
    assert done == list(range(12))
    assert caplog.messages == expected
