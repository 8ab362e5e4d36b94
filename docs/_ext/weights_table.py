"""The table of public weights, read from the importers, so that a new importer appears by itself."""

from __future__ import annotations

from config_reference import REPOSITORY
from pages import code, prose, table, write_pages

HEADER = ("layout (`weights_format`)", "supernets", "files and source", "paper", "licence", "start from it")
_FURTHER_SUPERNETS = {
    "ofa_mbv3": ("ofa_mbv3_w12",),
    "detnas": ("detnas_1300m",),
    "efficientnet_lite": ("efficientnet_lite1", "efficientnet_lite2"),
}
"""Supernets beside that of an origin's command which read the same layout."""


def rows() -> list[tuple[str, str, str, str, str, str]]:
    """A row for each importer, and one for this program's own files; cells are Markdown."""
    from nas_transfer.supernet.importing import IMPORTERS

    cells = []
    for name, importer in IMPORTERS.items():
        origin = importer.origin
        command = origin.command.split()
        supernets = [word.removeprefix("supernet=") for word in command if word.startswith("supernet=")]
        supernets += _FURTHER_SUPERNETS.get(name, ())
        files = ", ".join(code(file) for file in origin.files)
        cells.append(
            (
                code(name),
                ", ".join(code(supernet) for supernet in supernets),
                f"{files}: <{origin.url}>",
                f"[arXiv {origin.paper}](https://arxiv.org/abs/{origin.paper})",
                prose(origin.licence),
                code(origin.command),
            )
        )
    own = (
        "`native`",
        "any",
        "`weights.pt` of a run",
        "that of the supernet",
        "yours, and that of what the run started from",
    )
    return [*cells, (*own, "`weights=runs/finetune/TASK/NAME`")]


def write(app: object) -> None:
    """Write docs/_generated/weights.md before Sphinx reads any page."""
    write_pages(REPOSITORY / "docs/_generated", {"weights.md": table(HEADER, rows(), [15, 15, 25, 12, 18, 15])})


def setup(app) -> dict[str, bool]:  # type: ignore[no-untyped-def]
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
