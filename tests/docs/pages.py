"""The pages that people read, and what can be checked of them: blocks of code, inline code, links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

GENERATED = ("_build", "_generated", "reference/api", "reference/configuration")
COMMAND = ("python", "-m", "nas_transfer")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: relative to the repository.
        line: of the opening fence, from 1.
        language: the info string.
        run: whether a comment asks to execute it.
        folder: that the block is to run in a copy of, relative to the repository; None for an empty folder.
        text: without the fences.
    """

    page: Path
    line: int
    language: str
    run: bool
    folder: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README.md, CONTRIBUTING.md, CHANGELOG.md and all hand-written pages below docs/, relative to the repository."""
    docs = REPOSITORY / "docs"
    skipped = [docs / name for name in GENERATED]
    written = [path for path in sorted(docs.rglob("*.md")) if not any(skip in path.parents for skip in skipped)]
    return [path.relative_to(REPOSITORY) for path in (*sorted(REPOSITORY.glob("*.md")), *written)]


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page; inside a block, nothing opens another one."""
    lines = (REPOSITORY / page).read_text().splitlines()
    start, fence, before = None, "", ""
    for number, line in enumerate(lines):
        opening = re.match(r"\s*(`{3,})(.*)$", line)
        if start is None and opening:
            start, fence = number, opening[1]
            marker = re.fullmatch(r"<!-- run(?: in ([\w/]+))? -->", before)
            language = opening[2].strip()
        elif start is not None and line.strip() == fence:
            text = "\n".join(lines[start + 1 : number])
            yield Block(page, start + 1, language, marker is not None, marker[1] if marker else None, text)
            start = None
        before = line.strip()


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks outside blocks."""
    text = re.sub(r"^\s*(`{3,}).*?^\s*\1\s*$", "", (REPOSITORY / page).read_text(), flags=re.S | re.M)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every ``python -m nas_transfer`` in shell text, continued lines joined, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for start in range(len(words)):
            if tuple(words[start : start + 3]) == COMMAND:
                yield words[start + 3 :]


def links(page: Path) -> Iterator[str]:
    """The targets of a page's Markdown links and pictures that are files, without anchors."""
    text = re.sub(r"^\s*(`{3,}).*?^\s*\1\s*$", "", (REPOSITORY / page).read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path = target.split("#")[0]
        if path and not re.match(r"\w+:", path):
            yield path
