"""Every command on the pages composes, marked blocks run, and settings and paths that the pages name exist."""

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import OmegaConf

import nas_transfer.cli  # noqa: F401  registers the resolvers
from nas_transfer.paths import conf_dir
from tests.conftest import REPOSITORY
from tests.docs.pages import Block, blocks, commands, inline_code, links, pages
from tests.docs.reference import known_keys
from tests.test_cli import forked

SHELLS = ("bash", "console", "sh")
FLAGS = ("-m", "--multirun", "--help")
QUICK = (Path("README.md"), Path("docs/guide/your_data.md"))
"""Pages whose commands compose in the fast suite too; all others take half a minute."""


def marks_of(page: Path) -> list[pytest.MarkDecorator]:
    """The marks of the commands on a page."""
    return [] if page in QUICK else [pytest.mark.slow]


BLOCKS = [block for page in pages() for block in blocks(page)]
IN_BLOCKS = [
    pytest.param(arguments, id=f"{block}-{number}", marks=marks_of(block.page))
    for block in BLOCKS
    if block.language in SHELLS
    for number, arguments in enumerate(commands(block.text))
]
INLINE = [
    pytest.param(arguments, id=f"{page}-{code}", marks=marks_of(page))
    for page in pages()
    for code in dict.fromkeys(inline_code(page))
    for arguments in commands(code)
]


def overrides_of(arguments: list[str]) -> tuple[list[str], bool]:
    """A command's overrides and whether it sweeps; `--config-dir` is taken from docs/examples."""
    overrides, words = [], iter(arguments)
    for word in words:
        if word == "--config-dir":
            overrides.append(f"hydra.searchpath=[file://{REPOSITORY}/docs/examples/{next(words)}]")
        elif word == "--cfg":
            assert next(words) in ("job", "hydra", "all")
        elif word not in FLAGS:
            overrides.append(word)
    return overrides, bool({"-m", "--multirun"} & set(arguments))


def values_of(override: Override) -> list[str]:
    """What a sweep sets an override to, each as an override of its own."""
    key = override.get_key_element()
    value = override.value()
    if isinstance(value, Glob):
        folder = conf_dir() / key
        return [f"{key}={name}" for name in value.filter(sorted(path.stem for path in folder.glob("*.yaml")))]
    if override.is_sweep_override():
        return [f"{key}={each}" for each in override.sweep_string_iterator()]
    return [override.input_line or ""]


def runs_of(arguments: list[str]) -> Iterator[list[str]]:
    """The overrides of every run that a command starts."""
    overrides, sweeps = overrides_of(arguments)
    parsed = OverridesParser.create().parse_overrides(overrides)
    if sweeps:
        yield from map(list, itertools.product(*map(values_of, parsed)))
    else:
        yield overrides


@pytest.mark.parametrize("arguments", IN_BLOCKS + INLINE)
def test_the_configuration_of_every_command_composes_and_lacks_nothing(arguments: list[str]) -> None:
    for overrides in runs_of(arguments):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("config", overrides)
        missing = OmegaConf.missing_keys(cfg)
        if cfg.stage.name == "profile":  # reads no dataset
            missing = {key for key in missing if not key.startswith("data.")}
        assert not missing, f"{' '.join(overrides)} has to set {', '.join(sorted(missing))}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.run], ids=str)
def test_a_marked_block_runs(block: Block, tmp_path: Path) -> None:
    if block.folder is not None:
        shutil.copytree(REPOSITORY / block.folder, tmp_path, dirs_exist_ok=True)
    if block.language == "python":
        done = subprocess.run([sys.executable, "-c", block.text], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return
    lines = [line for line in block.text.replace("\\\n", " ").splitlines() if line.split("#")[0].strip()]
    found = list(commands(block.text))
    assert len(found) == len(lines) > 0, "a marked block holds commands of this program and nothing else"
    for arguments in found:
        assert forked(tmp_path, *arguments).stdout


def test_some_blocks_run() -> None:
    assert sum(block.run for block in BLOCKS) >= 4
    assert len(IN_BLOCKS) >= 30


@pytest.mark.parametrize("page", pages(), ids=str)
def test_a_page_names_settings_and_paths_that_exist(page: Path) -> None:
    known = known_keys()
    for code in inline_code(page):
        for key in re.findall(r"(?:^|[\s'])([a-z_][\w./]*)=", code):
            assert key in known, f"{page}: `{code}`"
        path = code.rstrip("/")
        if re.match(r"(nas_transfer|conf|docs|scripts|tests|\.ci)/[\w./*-]+$", path) and "_build" not in path:
            assert any(REPOSITORY.glob(path.replace("NAME", "*"))), f"{page}: `{code}`"
        if re.match(r"(data|deploy|report|runs|search|stages|supernet|tasks)/[\w./]+\.py$", path):
            assert (REPOSITORY / "nas_transfer" / path).is_file(), f"{page}: `{code}`"


@pytest.mark.parametrize("page", pages(), ids=str)
def test_a_page_links_to_files_that_exist(page: Path) -> None:
    for target in links(page):
        path = (REPOSITORY / page).parent / target
        generated = re.search(r"reference/(api|configuration)/", path.resolve().as_posix())  # `make docs` checks these
        assert generated or path.exists(), f"{page}: {target}"


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 200


def test_the_readme_describes_every_stage() -> None:
    text = (REPOSITORY / "README.md").read_text()
    stages = {path.stem for path in (conf_dir() / "stage").glob("*.yaml")}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) == stages
