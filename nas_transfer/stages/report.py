"""Collect any set of runs into one page."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from nas_transfer.report.collect import find_runs
from nas_transfer.report.content import make_report
from nas_transfer.report.page import write_report
from nas_transfer.stages.config.entry import read_config
from nas_transfer.stages.config.network import ReportConfig


def run(cfg: DictConfig, folder: Path) -> None:
    """Write the report. There is no `result.json`, so that the same command writes the report again.

    Raises:
        ConfigError: `runs_in` is not a list of folders and patterns, or contains no run.
    """
    config = read_config(cfg, ReportConfig)
    folders, without_runs = find_runs(config.patterns, exclude=folder)
    report, runs = make_report(folders, without_runs)
    for path in write_report(folder, report, runs):
        print(path)
    unusable = 0 if report.problems is None else len(report.problems.rows)
    print(f"{report.summary}{f' Unfinished, missing or broken: {unusable}.' if unusable else ''}")
