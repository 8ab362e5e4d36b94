"""The comparison of routes from their runs."""

from pathlib import Path

import numpy as np
import pytest

from nas_transfer.errors import RunError
from nas_transfer.report.routes import chosen_archs, compare
from nas_transfer.report.tables import route_table
from nas_transfer.runs import Front, Trial, files
from tests.report.run_folders import costs, make_result


def write_result(folder: Path, stage: str, **changes: object) -> None:
    make_result(stage, "shapes_det", **changes).write(folder)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    scores = {"A": [(0.5, 0.4), (0.6, 0.4), (0.55, 0.4)], "C": [(0.52, 0.45), (0.61, 0.42), (0.58, 0.43)]}
    for route, seeds in scores.items():
        for seed, pair in enumerate(seeds):
            for index, score in enumerate(pair):
                folder = tmp_path / f"finetune/shapes_det/{route}-{seed}-{index}"
                write_result(folder, "finetune", score=score, costs=costs(100e6 / (1 + index)))
    spent = {"images_seen": 1600, "passes_per_image": 4, "seconds": 100.0}
    for seed in range(3):
        write_result(tmp_path / f"finetune/shapes_det/A-{seed}", "finetune", **spent)
        write_result(tmp_path / f"search/shapes_det/A-{seed}", "search", **spent | {"images_seen": 0})
        cheap = spent | {"images_seen": 160, "passes_per_image": 1, "training_macs": 250_000_000_000}
        write_result(tmp_path / f"proxy/shapes_det/C-{seed}", "proxy", **cheap)
    return tmp_path


def test_hypervolumes_and_their_difference_are_those_computed_by_hand(runs: Path) -> None:
    comparison = compare(runs, "shapes_det")
    assert comparison.reference_macs == pytest.approx(110e6)

    def volume(large: float, small: float) -> float:  # at 100 and 50 of 110 M MACs
        return ((110 - 50) * small + (110 - 100) * (large - small)) / 110

    first = [volume(*pair) for pair in ((0.5, 0.4), (0.6, 0.4), (0.55, 0.4))]
    second = [volume(*pair) for pair in ((0.52, 0.45), (0.61, 0.42), (0.58, 0.43))]
    assert list(comparison.routes["A"].volumes.values()) == pytest.approx(first)
    assert list(comparison.routes["C"].volumes.values()) == pytest.approx(second)
    difference = comparison.difference("C", "A")
    assert difference is not None
    assert difference.mean == pytest.approx(np.mean(np.subtract(second, first)))
    assert comparison.routes["A"].images == dict.fromkeys(range(3), 1600)
    assert comparison.routes["A"].passes == dict.fromkeys(range(3), 6400)
    assert comparison.routes["A"].seconds == dict.fromkeys(range(3), 200.0)
    table = route_table(comparison, runs)
    text = table.markdown()
    assert "| C | 160 | 160 | 0.25 | 100 | 52.0 61.0 58.0 |" in text
    assert [row[-1].startswith(str(difference)) for row in table.rows] == [False, True]


def test_an_unfinished_run_is_named(runs: Path) -> None:
    (runs / "finetune/shapes_det/C-1-1" / files.RESULT).unlink()
    with pytest.raises(RunError, match=r"C-1-1/result\.json is missing: the run is not finished"):
        compare(runs, "shapes_det")
    with pytest.raises(RunError, match="no retrained net"):
        compare(runs, "shapes_seg")


def test_a_net_without_a_score_is_refused(runs: Path) -> None:
    write_result(runs / "finetune/shapes_det/C-1-1", "finetune", score=None)
    with pytest.raises(RunError, match="has no score"):
        compare(runs, "shapes_det")


def test_nets_are_chosen_evenly_over_the_front(tmp_path: Path) -> None:
    trials = tuple(Trial(number, {}, {"score": 0.5}, file=files.arch_file(number)) for number in range(9))
    Front({"score": "maximize"}, trials).write(tmp_path)
    assert [path.stem for path in chosen_archs(tmp_path, 5)] == [f"trial_{number}" for number in (0, 2, 4, 6, 8)]
    assert len(chosen_archs(tmp_path, 20)) == 9
    with pytest.raises(RunError, match=r"front\.json does not exist"):
        chosen_archs(tmp_path / "other", 5)
