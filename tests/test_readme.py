"""The README's examples of what users add are complete: written out as they stand, they work."""

import json
import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.stages.test_search import arguments, supernet
from tests.test_cli import forked, run

__all__ = ["supernet"]  # a fixture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the example files that the README shows."""
    text = (REPOSITORY / "README.md").read_text()
    found = dict(re.findall(r"```(?:python|yaml)\n# ([\w/]+\.(?:py|yaml))\n(.*?)```", text, re.S))
    assert set(found) == {"blocks.py", "mine/objective/blocks.yaml", "mine/supernet/tiny.yaml"}
    for name, content in found.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.slow
def test_an_objective_of_ones_own_is_searched_and_limited(folder: Path, supernet: Path) -> None:
    limits = ["objective=[score,blocks]", "search.constraints={blocks: {max: 9}}", "search.trials=8", "name=mine"]
    run(folder, "--config-dir", "mine", *arguments(supernet, *limits))
    front = json.loads((folder / "runs/search/shapes_cls/mine/front.json").read_text())
    assert front["objectives"] == {"score": "maximize", "blocks": "minimize"}
    for member in front["front"]:
        assert member["values"]["blocks"] == sum(member["arch"]["depth"]) <= 9


def test_a_supernet_of_ones_own_is_profiled(folder: Path) -> None:
    done = forked(folder, "--config-dir", "mine", "stage=profile", "task=shapes_cls", "supernet=tiny", "arch=max")
    assert "s4.1" in done.stdout
