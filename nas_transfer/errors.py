"""The one exception family: what a user can mend by changing the command, the data or a file.

Every message is one sentence of the form "expected ..., got ...: try ...". The command line prints it without a
traceback and ends with exit code 2; anything outside this family is a defect of the program and keeps its traceback.
"""


class NasTransferError(Exception):
    """Base of every error that is the input's fault."""


class ConfigError(NasTransferError):
    """A configuration value that cannot be used, alone or together with another."""


class DataError(NasTransferError):
    """A data set on disk that does not have the layout or the content it should have."""


class ArchError(NasTransferError):
    """An arch outside its search space, or one that cannot be found."""


class WeightsError(NasTransferError):
    """A checkpoint that cannot be read safely or does not fit the network."""


class RunError(NasTransferError):
    """A run directory that is missing, unfinished, or belongs to another configuration."""
