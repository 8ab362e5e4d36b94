"""Exceptions for mistakes that a user can correct in the command, the data or a file.

Each message is one line that says what is wrong, what was given and what to do. The command line prints it without a
traceback and exits with code 2. Any other exception is a defect of the program and keeps its traceback.
"""

from collections.abc import Iterable


class NasTransferError(Exception):
    """Base class of errors that a user can correct."""


class ConfigError(NasTransferError):
    """Configuration values are invalid, alone or in combination.

    Args:
        faults: one sentence for each fault.
    """

    def __init__(self, *faults: str) -> None:
        several = f"{len(faults)} faults in the configuration: {'; '.join(faults)}"
        super().__init__(several if len(faults) > 1 else "".join(faults))
        self.faults = faults


class DataError(NasTransferError):
    """A data set does not have the required layout or content."""


class ArchError(NasTransferError):
    """An arch is outside its search space, or it cannot be found."""


class WeightsError(NasTransferError):
    """Weights cannot be read safely, or they do not fit the network."""


class RunError(NasTransferError):
    """A run folder is missing, unfinished, or belongs to another configuration."""


def report_faults(faults: Iterable[str]) -> None:
    """Raise one ConfigError for all faults, if there are any. Records call it in ``__post_init__``."""
    collected = tuple(faults)
    if collected:
        raise ConfigError(*collected)
