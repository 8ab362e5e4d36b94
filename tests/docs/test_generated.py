"""The generated pages say everything that the configuration and the importers hold."""

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from nas_transfer.supernet.importing import IMPORTERS
from tests.conftest import REPOSITORY
from tests.docs.pages import commands
from tests.docs.reference import extension
from tests.docs.test_blocks import runs_of
from tests.test_configs import GROUPS
from tests.test_imports import LAYERS

reference = extension("config_reference")


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values; an empty mapping is one."""
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict) and value:
            yield from leaves(value, path)
        elif not str(key).startswith("_"):
            yield path


@pytest.fixture(scope="module")
def written() -> set[str]:
    """Every key that a generated page has a row for."""
    pages = reference.render(reference.read_configuration())
    return {key for page in pages.values() for key in re.findall(r"^\* - `([\w.]+)`$", page, re.M)}


CHOICES = [f"{group}={choice}" for group in ("stage", "task") for choice in GROUPS[group]]


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_every_key_of_a_configuration_is_in_the_reference(choice: str, written: set[str]) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        content = OmegaConf.to_container(compose("config", [choice]), resolve=False)
    missing = [key for key in leaves(content) if key not in written]
    assert not missing


def test_a_comment_is_found_behind_a_value_above_a_key_and_on_the_line_of_a_flow_mapping(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# @package search.sampler\n# Route X: what it is\n# in two lines. More.\n# Cost: a minute.\n"
        "# Command: python -m nas_transfer a=b \\\n#   c=d\n# Prints things.\n_target_: some.Class\n"
        "first: 1  # behind: it\n# above\n# it\nsecond: '# none'\ndeep: {x: 1, y: [2, 3]}  # of both\n"
        "block:  # of the block\n  inner: null\nlast: {}\n"
    )
    file = reference.read_file(path, "sampler")
    assert file.description == "Route X: what it is in two lines. More."
    assert file.notes == (
        ("Cost", "a minute."), ("Command", "python -m nas_transfer a=b c=d"), ("", "Prints things."),
    )  # fmt: skip
    assert file.target == "some.Class"
    assert [(key.path.removeprefix("search.sampler."), key.value, key.comment) for key in file.keys] == [
        ("first", "1", "behind: it"), ("second", "'# none'", "above it"), ("deep.x", "1", "of both"),
        ("deep.y", "[2, 3]", "of both"), ("block.inner", "null", ""), ("last", "{}", ""),
    ]  # fmt: skip


def test_a_key_takes_the_comment_of_the_same_key_in_its_group(tmp_path: Path) -> None:
    for name, text in {"a": "# A.\nflip: 0.5  # probability\n", "b": "# B.\nflip: 0.0\nother: 1\n"}.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / f"data/{name}.yaml").write_text(text)
    configuration = reference.read_configuration(tmp_path)
    assert [key.comment for key in configuration["data"][1].keys] == ["probability", ""]
    assert reference.uncommented(configuration) == [("data/b", "data.other")]


def test_the_first_line_of_a_header_is_never_a_label(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# @package search.sampler\n# The baseline: random archs.\n# Cost: none.\na: 1  # one\n")
    file = reference.read_file(path, "sampler")
    assert file.description == "The baseline: random archs."
    assert file.notes == (("Cost", "none."),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("MSuNAS (Lu et al. 2020): a predictor. Slow.", "MSuNAS (Lu et al. 2020): a predictor"),
        ("After Lu et al. The rest.", "After Lu et al. The rest"),
        ("The score, in 0-1. Another metric: key=x", "The score, in 0-1"),
        ("Score a run. arch= chooses a subnet.", "Score a run"),
    ],
)
def test_a_choice_is_described_by_the_first_sentence_of_its_header(text: str, sentence: str) -> None:
    assert reference.first_sentence(text) == sentence


def test_a_key_without_a_comment_is_explained_by_the_docstring_of_what_takes_it(tmp_path: Path) -> None:
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler/mine.yaml").write_text(
        "# Mine.\n_target_: nas_transfer.search.samplers.evolution.Evolution\ncrossovers: 2\nparents: 3  # best\n"
    )
    keys = reference.read_configuration(tmp_path)["sampler"][0].keys
    assert [key.comment for key in keys] == ["number of crossovers in a generation", "best"]


def empty_cells(page: str) -> list[str]:
    """Rows of list-tables of which a cell is empty, by their first cell."""
    rows = re.findall(r"^\* - .*$(?:\n  - ?.*$)*", page, re.M)
    return [row.splitlines()[0] for row in rows if any(not line[3:].strip(" -") for line in row.splitlines())]


def test_no_cell_of_a_generated_table_is_empty() -> None:
    configuration = reference.read_configuration()
    pages = {**reference.render(configuration)}
    pages |= {f"choices of {group}": reference.choices(files) for group, files in configuration.items()}
    weights = extension("weights_table")
    pages["weights"] = weights.table(weights.HEADER, weights.rows())
    assert len(pages) > 20
    assert {name: empty_cells(page) for name, page in pages.items() if empty_cells(page)} == {}
    assert empty_cells("* - name\n  - meaning\n* - `a`\n  -\n") == ["* - `a`"]


def test_the_table_of_weights_says_all_of_every_importer() -> None:
    rows = {row[0].strip("`"): row for row in extension("weights_table").rows()}
    assert set(rows) == {*IMPORTERS, "native"}
    for name in IMPORTERS:
        _, supernets, file, paper, licence, start = rows[name]
        assert start == f"`{IMPORTERS[name].origin.command}`"
        assert IMPORTERS[name].origin.paper in paper
        assert licence
        assert "<https://" in file
        for supernet in supernets.replace("`", "").split(", "):
            assert (conf_dir() / f"supernet/{supernet}.yaml").is_file()


STRUCTURE = {
    "functions below a stage's entry with a DictConfig": 0,
    "uses of Any": 80,
    "files outside runs/ that name a file of a run folder": 0,
    "constructors with more than 10 parameters": 0,
}
"""The largest number allowed of what makes the code hard to read."""


def test_the_counts_of_the_structure_are_within_their_bounds_and_stand_in_the_documentation() -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/count_structure.py"], capture_output=True, text=True, check=True
    )
    stored = (REPOSITORY / "docs/reference/structure.txt").read_text()
    counted, written = (dict(re.findall(r"^(.+?) {2,}(.+)$", text, re.M)) for text in (done.stdout, stored))
    assert set(counted) == set(written), "run: python scripts/count_structure.py docs/reference/structure.txt"
    for name, most in STRUCTURE.items():
        assert int(counted[name].split(":")[0]) <= most, f"{name}: {counted[name]}"
        assert int(written[name].split(":")[0]) <= most, f"{name}: {written[name]}"


def test_the_picture_of_the_layers_is_the_order_of_imports() -> None:
    text = (REPOSITORY / "docs/_static/layers.svg").read_text()
    drawn = re.findall(r'<rect [^>]*y="(\d+)"[^>]*/>\n<text class="layer" [^>]*>(\w+)</text>', text)
    assert {name for _, name in drawn} == {name for name in LAYERS if not name.startswith("_")}
    rows = [[LAYERS[name] for row, name in drawn if row == each] for each in sorted({row for row, _ in drawn}, key=int)]
    assert all(min(upper) > max(lower) for upper, lower in pairwise(rows))


COMMANDS = [
    pytest.param(arguments, id=f"{group}/{file.name}")
    for group, files in reference.read_configuration().items()
    for file in files
    for label, text in file.notes
    if label.startswith("Command")
    for arguments in commands(re.sub(r"<[^>]*>", "GIVEN", text))
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_the_command_in_a_header_composes(arguments: list[str]) -> None:
    for overrides in runs_of(arguments):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            compose("config", overrides)


def test_most_headers_state_a_command() -> None:
    assert len(COMMANDS) >= 50
