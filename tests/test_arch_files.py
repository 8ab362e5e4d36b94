"""The arch that a command line names: words, files and names find theirs, and errors say what was wrong."""

import json
from pathlib import Path

import pytest

from nas_transfer.arch import SUPERNET
from nas_transfer.arch_files import resolve_arch
from nas_transfer.errors import ArchError
from nas_transfer.space import SearchSpace
from tests.test_space import space

__all__ = ["space"]  # a fixture


@pytest.fixture
def folder(tmp_path: Path, space: SearchSpace) -> Path:
    (tmp_path / "small_one.yaml").write_text("# a comment\nspace: toy\nresolution: 48\nwidth: [8, 32]\ndepth: [1, 3]\n")
    (tmp_path / "found.json").write_text(json.dumps(space.largest().to_dict()))
    (tmp_path / "stranger.yaml").write_text("space: other\nresolution: 48\n")
    (tmp_path / "broken.yaml").write_text("width: [8,\n")
    return tmp_path


def test_the_three_reserved_words(space) -> None:
    assert resolve_arch("supernet", space, []) is SUPERNET
    assert resolve_arch("max", space, []) == space.largest()
    assert resolve_arch("min", space, []) == space.smallest()


def test_a_name_is_looked_up_in_the_folders_in_order(space, folder, tmp_path_factory) -> None:
    earlier = tmp_path_factory.mktemp("earlier")
    arch = resolve_arch("small_one", space, [earlier, folder])
    assert arch is not SUPERNET
    assert arch.values == (48, 8, 32, 1, 3)
    (earlier / "small_one.yaml").write_text("resolution: 64\nwidth: [8, 32]\ndepth: [1, 3]\n")
    arch = resolve_arch("small_one", space, [earlier, folder])
    assert arch is not SUPERNET
    assert arch["resolution"] == 64


@pytest.mark.parametrize("name", ["small_one.yaml", "found.json"])
def test_a_path_is_read_without_any_folder(space, folder, name) -> None:
    assert resolve_arch(str(folder / name), space, []) is not None


def test_a_misspelt_name_says_where_it_looked_and_what_is_near(space, folder) -> None:
    with pytest.raises(ArchError, match=r"got 'smal_one': try small_one") as caught:
        resolve_arch("smal_one", space, [folder])
    assert str(folder) in str(caught.value)


def test_a_missing_file_is_an_error_and_not_a_name(space, folder) -> None:
    with pytest.raises(ArchError, match=r"^the arch file nowhere/small_one\.yaml does not exist: a finished search"):
        resolve_arch("nowhere/small_one.yaml", space, [folder])


def test_an_arch_of_another_space_names_both_and_the_file(space, folder) -> None:
    with pytest.raises(ArchError, match=r"'toy', got one of space 'other'.*stranger\.yaml"):
        resolve_arch("stranger", space, [folder])


def test_an_unreadable_file_is_named_on_one_line(space, folder) -> None:
    with pytest.raises(ArchError, match=r"broken\.yaml") as caught:
        resolve_arch("broken", space, [folder])
    assert "\n" not in str(caught.value)
