"""Exit codes of errors."""

from __future__ import annotations

from archiver.errors import (
    ArchiverError,
    ContentError,
    IntegrityMismatch,
    NoBag,
    Refused,
    SettingsInvalid,
    SystemFault,
    UnknownDataset,
    UnknownJob,
)

FAILED, USAGE, PARTLY, CONTENT, NOT_FOUND, REFUSED, UNREACHABLE, MISMATCH = 1, 2, 3, 4, 5, 6, 7, 8


class NotFound(Refused):
    """No such job or dataset."""


def exit_code(error: ArchiverError) -> int:
    """The exit code that tells what kind of error it is; unknown means failure."""
    kinds: tuple[tuple[type[ArchiverError], int], ...] = (
        (SettingsInvalid, USAGE),
        (NotFound, NOT_FOUND),
        (UnknownDataset, NOT_FOUND),
        (UnknownJob, NOT_FOUND),
        (NoBag, NOT_FOUND),
        (Refused, REFUSED),
        (ContentError, CONTENT),
        (IntegrityMismatch, MISMATCH),
    )
    for kind, code in kinds:
        if isinstance(error, kind):
            return code
    if isinstance(error, SystemFault) and error.retryable:
        return UNREACHABLE
    return FAILED
