"""Exceptions for mistakes that a user can correct in the command, the data or a file.

Each message is one line that says what is wrong, what was given and what to do. The command line prints it without a
traceback and exits with code 2. Any other exception is a defect of the program and keeps its traceback.
"""

import errno
from collections.abc import Iterable, Iterator


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
    """A dataset does not have the required layout or content."""


class ArchError(NasTransferError):
    """An arch is outside its search space, or it cannot be found."""


class WeightsError(NasTransferError):
    """Weights cannot be read safely, or they do not fit the network."""


class RunError(NasTransferError):
    """A run folder is missing, unfinished, or belongs to another configuration."""


class BusyError(RunError):
    """Another process runs in the folder."""


class StorageError(NasTransferError):
    """The file system is full or cannot be reached any more. It ends a run: no trial fails because of it."""


STORAGE_FAILURES = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENOTCONN, errno.ENODEV,
        errno.ESHUTDOWN,
    }
)  # fmt: skip
"""Numbers of system errors that every later access would meet, too."""


def storage_error(error: BaseException) -> StorageError | None:
    """The failure of a file system behind an error, as a sentence; None if there is none."""
    for cause in _causes(error):
        if isinstance(cause, StorageError):
            return cause
        if isinstance(cause, OSError) and cause.errno in STORAGE_FAILURES:
            file = cause.filename2 or cause.filename  # of a copy, the target
            where = f"{file} cannot be read or written" if file else "a file cannot be written"
            return StorageError(
                f"{where} ({cause.strerror}): make space or bring the file system back; the same command then continues"
            )
    return None


IN_THE_WAY = frozenset(
    {
        errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EACCES, errno.EPERM, errno.ELOOP,
        errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE,
    }
)  # fmt: skip
"""Numbers of system errors that a user can correct, since they are about a file or the limits of the user."""


def file_fault(error: BaseException) -> str | None:
    """A sentence for an error of the file system; None for other errors."""
    if (failure := storage_error(error)) is not None:
        return str(failure)
    if isinstance(error, OSError) and error.errno in IN_THE_WAY and error.filename:
        return (
            f"{error.filename} cannot be used ({error.strerror}): move it away or change its permissions, or use "
            "another runs=... or name=..."
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def report_faults(faults: Iterable[str]) -> None:
    """Raise one ConfigError for all faults, if there are any. Records call it in ``__post_init__``."""
    collected = tuple(faults)
    if collected:
        raise ConfigError(*collected)
