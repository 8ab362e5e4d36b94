"""What a run that was ended has left on disk, in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nas_transfer.runs import files


@dataclass
class CurrentRun:
    """The run of this process.

    Attributes:
        folder: its folder; None before there is one.
        saved_step: the training step after which its state was last saved; None before.
    """

    folder: Path | None = None
    saved_step: int | None = None

    def begin(self, folder: Path) -> None:
        """Note that a run begins."""
        self.folder, self.saved_step = folder, None

    def kept(self) -> str:
        """What is kept of it, and what the same command does."""
        if self.folder is None:
            return "nothing has begun"
        if count := len(files.trial_files(self.folder)):
            trials = f"{count} evaluated trial{' is' if count == 1 else 's are'}"
            return f"{trials} kept in {self.folder}: the same command goes on with the next one"
        if any((self.folder / name).is_file() for name in (files.LAST_CHECKPOINT, files.PREVIOUS_CHECKPOINT)):
            state = "the last state" if self.saved_step is None else f"the state after step {self.saved_step}"
            return f"{state} of the training is kept in {self.folder}: the same command continues from it"
        return f"nothing is kept in {self.folder} yet: the same command begins again"


CURRENT = CurrentRun()
"""The run of this process; its stages note in it what they save."""
