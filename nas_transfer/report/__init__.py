"""Collects run folders into one page. Reads the records of `nas_transfer.runs` and nothing else."""

from nas_transfer.report.collect import Run, find_runs, read_run, read_runs
from nas_transfer.report.content import Report, make_report
from nas_transfer.report.page import write_report
from nas_transfer.report.studies import StudyRecord, read_study

__all__ = [
    "Report",
    "Run",
    "StudyRecord",
    "find_runs",
    "make_report",
    "read_run",
    "read_runs",
    "read_study",
    "write_report",
]
