"""``batch_size.json``: the batch size that a training with ``data.batch_size=auto`` has found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nas_transfer.runs import files
from nas_transfer.runs.reading import is_present, read_record, write_record

BATCH_SIZE_FORMAT = 1


@dataclass(frozen=True)
class FoundBatchSize:
    """The batch size per device, and the device for which it was found."""

    batch_size: int
    device: str

    def write(self, folder: Path) -> None:
        """Write it into the run folder."""
        write_record(folder / files.BATCH_SIZE, self, BATCH_SIZE_FORMAT)


def read_batch_size(folder: Path) -> FoundBatchSize | None:
    """Read what a run has found, None for a run that did not look for it."""
    path = folder / files.BATCH_SIZE
    return read_record(path, FoundBatchSize, BATCH_SIZE_FORMAT) if is_present(path) else None
