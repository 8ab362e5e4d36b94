"""A report as one HTML page that needs nothing else, as Markdown and as CSV."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from nas_transfer.report.collect import Run
from nas_transfer.report.content import Report, Section
from nas_transfer.report.tables import Table, csv_text
from nas_transfer.runs.result import git_revision, versions

TEMPLATE = "page.html.j2"
PAGE_FILE, MARKDOWN_FILE, CSV_FILE = "report.html", "report.md", "report.csv"


def write_report(folder: Path, report: Report, runs: Sequence[Run]) -> list[Path]:
    """Write page, Markdown and CSV, each whole or not at all; returns their paths."""
    texts = {PAGE_FILE: html(report), MARKDOWN_FILE: markdown(report), CSV_FILE: csv_text(runs)}
    for name, text in texts.items():
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)
    return [folder / name for name in texts]


def html(report: Report) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markup"] = Markup  # for what the figures escaped themselves
    return environment.get_template(TEMPLATE).render(report=report, made=_made())


def _made() -> str:
    own = versions()["nas-transfer"]
    revision = git_revision(Path(__file__).parent)
    return f"{time.strftime('%Y-%m-%d %H:%M %Z')}, nas_transfer {own}{f' ({revision})' if revision else ''}"


def markdown(report: Report) -> str:
    """Tables and facts; figures are the page's."""
    parts = ["# Report", f"{report.summary} Made {_made()}."]
    if report.problems is not None:
        parts += _titled(report.problems)
    if report.nets:
        parts.append("## Fine-tuned nets")
        for table in (table for section in report.nets for table in section.tables):
            parts += _titled(table, "###")
    for section in report.routes:
        parts += [f"## {section.title}", *(table.markdown() for table in section.tables)]
    if report.studies:
        parts.append("## Studies")
    for section in report.studies:
        parts += [f"### {section.title}", _facts(section), *(table.markdown() for table in section.tables)]
    parts += _titled(report.ledger)
    if report.inherited is not None:
        parts += _titled(report.inherited)
    parts.append("## Runs")
    for section in report.runs:
        parts += [f"### {section.title}", _facts(section)]
    return "\n\n".join(parts) + "\n"


def _titled(table: Table, level: str = "##") -> list[str]:
    return [f"{level} {table.title}", table.markdown()]


def _facts(section: Section) -> str:
    lines = [f"- folder: `{section.folder}`", *(f"- {name}: {text}" for name, text in section.facts)]
    return "\n".join(lines)
