"""``run.json``: the configuration that a run folder belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nas_transfer.runs import files
from nas_transfer.runs.reading import START_ANEW, is_present, read_record, write_record

MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The configuration that a run folder belongs to, written before anything runs.

    Attributes:
        config_sha256: hash of `config`.
        started: date and time, ISO 8601.
        command: the arguments of the command line.
        config: the keys that change the run's result, flat and resolved.
    """

    config_sha256: str
    started: str
    command: tuple[str, ...]
    config: Mapping[str, object]

    def write(self, folder: Path) -> None:
        """Write ``run.json`` into a run folder."""
        write_record(folder / files.RUN, self, MANIFEST_FORMAT)


def read_manifest(folder: Path) -> Manifest | None:
    """Read ``run.json``, None if there is none; RunError if it cannot be used."""
    path = folder / files.RUN
    return read_record(path, Manifest, MANIFEST_FORMAT, START_ANEW) if is_present(path, START_ANEW) else None
