"""A report as one HTML page that needs no other file, as Markdown and as CSV."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from nas_transfer.report.collect import Run
from nas_transfer.report.content import Report, Section
from nas_transfer.report.spreadsheet import csv_text
from nas_transfer.report.tables import Table
from nas_transfer.runs import files
from nas_transfer.runs.atomic import write_text
from nas_transfer.runs.texts import markdown_code, markdown_text
from nas_transfer.runs.versions import git_revision, versions

TEMPLATE, SCRIPT = "page.html.j2", "choice.js"


def write_report(folder: Path, report: Report, runs: Sequence[Run]) -> list[Path]:
    """Write page, Markdown and CSV, each whole or not at all; returns their paths."""
    texts = {
        files.REPORT_PAGE: html(report),
        files.REPORT_MARKDOWN: markdown(report),
        files.REPORT_CSV: csv_text(runs),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
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
    environment.filters["markup"] = Markup  # figures escape their own text
    script = (Path(__file__).parent / SCRIPT).read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # the only script that may run
    return environment.get_template(TEMPLATE).render(report=report, made=_made(), script=script, digest=digest)


def _made() -> str:
    version = versions()["nas-transfer"]
    revision = git_revision(Path(__file__).parent)
    return f"{time.strftime('%Y-%m-%d %H:%M %Z')}, nas_transfer {version}{f' ({revision})' if revision else ''}"


def markdown(report: Report) -> str:
    """Tables and facts; only the page has figures."""
    parts = ["# Report", markdown_text(f"{report.summary} Made {_made()}.")]
    for choice in report.choices:
        parts += [
            _heading(choice.title, "##"),
            markdown_text(f"{choice.answer} {choice.reach}"),
            choice.table.markdown(),
        ]
    for advice in report.advice:
        parts += [_heading(advice.title, "##"), markdown_text(advice.text), markdown_code(advice.command)]
    for section in report.strengths:
        parts += [_heading(section.title, "##"), *(text for table in section.tables for text in _titled(table, "###"))]
    if report.problems is not None:
        parts += _titled(report.problems)
    if report.nets:
        parts.append("## Fine-tuned nets")
        for table in (table for section in report.nets for table in section.tables):
            parts += _titled(table, "###")
    for section in report.routes:
        parts += [_heading(section.title, "##"), *(table.markdown() for table in section.tables)]
    if report.studies:
        parts.append("## Studies")
    for section in report.studies:
        parts += [_heading(section.title, "###"), _facts(section), *(table.markdown() for table in section.tables)]
    parts += _titled(report.costs)
    if report.inherited is not None:
        parts += _titled(report.inherited)
    parts.append("## Runs")
    for section in report.runs:
        parts += [_heading(section.title, "###"), _facts(section)]
        parts += [text for table in section.tables for text in _titled(table, "####")]
    if report.nothing is not None:
        parts += _titled(report.nothing)
    return "\n\n".join(parts) + "\n"


def _titled(table: Table, level: str = "##") -> list[str]:
    return [_heading(table.title, level), table.markdown()]


def _heading(title: str, level: str) -> str:
    return f"{level} {markdown_text(title)}"


def _facts(section: Section) -> str:
    lines = [f"- folder: {markdown_code(str(section.folder))}"]
    lines += [f"- {markdown_text(name)}: {markdown_text(text)}" for name, text in section.facts]
    return "\n".join(lines)
