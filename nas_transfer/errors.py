"""The one exception family: what a user can mend by changing the command, the data or a file.

Every message is one line: what is wrong, what was given, what to do. The command line prints it without a traceback and
ends with exit code 2; anything outside this family is a defect of the program and keeps its traceback.
"""

from collections.abc import Iterable


class NasTransferError(Exception):
    """Base of every error that is the input's fault."""


class ConfigError(NasTransferError):
    """Configuration values that cannot be used, alone or together.

    Args:
        faults: a sentence for each value.
    """

    def __init__(self, *faults: str) -> None:
        several = f"{len(faults)} faults in the configuration: {'; '.join(faults)}"
        super().__init__(several if len(faults) > 1 else "".join(faults))
        self.faults = faults


class DataError(NasTransferError):
    """A data set on disk that does not have the layout or the content it should have."""


class ArchError(NasTransferError):
    """An arch outside its search space, or one that cannot be found."""


class WeightsError(NasTransferError):
    """A checkpoint that cannot be read safely or does not fit the network."""


class RunError(NasTransferError):
    """A run directory that is missing, unfinished, or belongs to another configuration."""


def report_faults(faults: Iterable[str]) -> None:
    """Raise one ConfigError for all faults, if there are any; a record's ``__post_init__`` calls it with its own."""
    collected = tuple(faults)
    if collected:
        raise ConfigError(*collected)
