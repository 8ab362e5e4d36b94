"""The comparison of routes from what runs leave."""

import json
from pathlib import Path

import numpy as np
import pytest

from nas_transfer.errors import RunError
from nas_transfer.report.routes import chosen_archs, comparison
from nas_transfer.report.tables import route_table


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def net(score: float, macs: float) -> dict:
    return {"score": score, "score_key": "map", "costs": {"macs": {"total": macs}}}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    scores = {"A": [(0.5, 0.4), (0.6, 0.4), (0.55, 0.4)], "C": [(0.52, 0.45), (0.61, 0.42), (0.58, 0.43)]}
    for route, seeds in scores.items():
        for seed, pair in enumerate(seeds):
            for place, score in enumerate(pair):
                write(
                    tmp_path / f"finetune/shapes_det/{route}-{seed}-{place}/result.json",
                    net(score, 100e6 / (1 + place)),
                )
    for seed in range(3):
        spent = {"images_seen": 1600, "passes_per_image": 4, "seconds": 100.0}
        write(tmp_path / f"finetune/shapes_det/A-{seed}/result.json", spent)
        write(tmp_path / f"search/shapes_det/A-{seed}/result.json", spent | {"images_seen": 0})
        write(tmp_path / f"proxy/shapes_det/C-{seed}/result.json", spent | {"images_seen": 160, "passes_per_image": 1})
    return tmp_path


def test_hypervolumes_and_their_difference_are_those_computed_by_hand(runs: Path) -> None:
    found = comparison(runs, "shapes_det")
    assert found.reference_macs == pytest.approx(110e6)

    def volume(large: float, small: float) -> float:  # at 100 and 50 of 110 M MACs
        return ((110 - 50) * small + (110 - 100) * (large - small)) / 110

    first = [volume(*pair) for pair in ((0.5, 0.4), (0.6, 0.4), (0.55, 0.4))]
    second = [volume(*pair) for pair in ((0.52, 0.45), (0.61, 0.42), (0.58, 0.43))]
    assert list(found.routes["A"].volumes.values()) == pytest.approx(first)
    assert list(found.routes["C"].volumes.values()) == pytest.approx(second)
    difference = found.difference("C", "A")
    assert difference is not None
    assert difference.mean == pytest.approx(np.mean(np.subtract(second, first)))
    assert found.routes["A"].images == dict.fromkeys(range(3), 1600)
    assert found.routes["A"].passes == dict.fromkeys(range(3), 6400)
    assert found.routes["A"].seconds == dict.fromkeys(range(3), 200.0)
    table = route_table(found, runs)
    text = table.markdown()
    assert "| C | 160 | 160 | 100 | 52.0 61.0 58.0 |" in text
    assert [row[-1].startswith(str(difference)) for row in table.rows] == [False, True]


def test_an_unfinished_run_is_named(runs: Path) -> None:
    (runs / "finetune/shapes_det/C-1-1/result.json").unlink()
    with pytest.raises(RunError, match=r"C-1-1/result\.json, got none: the run is not finished"):
        comparison(runs, "shapes_det")
    with pytest.raises(RunError, match="retrained nets"):
        comparison(runs, "shapes_seg")


def test_nets_are_chosen_evenly_over_the_front(tmp_path: Path) -> None:
    members = [{"file": f"archs/trial_{number}.yaml"} for number in range(9)]
    write(tmp_path / "front.json", {"front": members})
    assert [path.stem for path in chosen_archs(tmp_path, 5)] == [f"trial_{number}" for number in (0, 2, 4, 6, 8)]
    assert len(chosen_archs(tmp_path, 20)) == 9
    with pytest.raises(RunError, match=r"front\.json, got none"):
        chosen_archs(tmp_path / "other", 5)
