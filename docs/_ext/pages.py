"""Writing of generated pages: Markdown escapes, tables, and files that change only when their content does."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>$|#~])")
_SETTING = re.compile(r"(?<![\w'\"`])([a-z_][\w./]*=(?:[\w./<>*-]+|\[[^\]]*\]|\{[^}]*\})|stage=\w+)")


def code(text: str) -> str:
    """Text as inline code, whatever it holds."""
    if not text:
        return ""
    ticks = max((len(run) for run in re.findall(r"`+", text)), default=0) + 1
    pad = " " if "`" in text else ""
    return f"{'`' * ticks}{pad}{text}{pad}{'`' * ticks}"


def prose(text: str) -> str:
    """Plain text as Markdown: its settings (``key=value``) as code, everything else literally."""
    parts = _SETTING.split(text)
    return "".join(code(part) if odd else _SPECIAL.sub(r"\\\1", part) for odd, part in _alternate(parts))


def _alternate(parts: Sequence[str]) -> Iterable[tuple[bool, str]]:
    return ((index % 2 == 1, part) for index, part in enumerate(parts))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int] | None = None) -> str:
    """A list-table; cells are Markdown of one line."""
    lines = ["```{list-table}", ":header-rows: 1"]
    if widths is not None:
        lines.append(f":widths: {' '.join(map(str, widths))}")
    lines.append("")
    for row in (header, *rows):
        lines += [f"{'* -' if column == 0 else '  -'} {cell}".rstrip() for column, cell in enumerate(row)]
    return "\n".join([*lines, "```", ""])


def write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Make `folder` hold exactly these pages, by file name; files that would not change are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in set(folder.glob("*.md")) - {folder / name for name in pages}:
        stale.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
