"""Collect any set of runs into one page."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nas_transfer.errors import ConfigError
from nas_transfer.report.collect import find_runs
from nas_transfer.report.content import make_report
from nas_transfer.report.page import write_report


def run(cfg: DictConfig, folder: Path) -> None:
    """Write the report; no result.json, so that the same command always makes it anew from what is there by then.

    Raises:
        ConfigError: `runs_in` is no list of folders and patterns, or there is no run in any of them.
    """
    folders, without_runs = find_runs(places_of(cfg), exclude=folder)
    report, runs = make_report(folders, without_runs)
    for path in write_report(folder, report, runs):
        print(path)
    unusable = 0 if report.problems is None else len(report.problems.rows)
    print(f"{report.summary}{f' Unfinished, missing or broken: {unusable}.' if unusable else ''}")


def places_of(cfg: DictConfig) -> list[str]:
    """The folders and patterns that ``runs_in`` names; all below ``runs`` by default."""
    given = cfg.runs_in
    if given is None:
        return [str(cfg.runs)]
    places = OmegaConf.to_container(given) if OmegaConf.is_config(given) else given
    places = [places] if isinstance(places, str) else places
    if not isinstance(places, list) or not places or not all(isinstance(place, str) and place for place in places):
        raise ConfigError(f"expected runs_in='[runs/search/*/*, runs/finetune/*/*]', folders and patterns, got {given}")
    return [str(place) for place in places]
