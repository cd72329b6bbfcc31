"""An exclusive lock of one process on one LTS queue (P12): held while the process lives, whatever ends it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from archiver.errors import LtsFault


class ExclusiveLock:
    """``flock`` on a file that names its holder. Enter it to take it; ``LtsFault`` names who has it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> ExclusiveLock:
        try:
            return self._take()
        except OSError as error:
            raise LtsFault(
                f"lock {self._path} cannot be taken: {error.strerror or error}",
                expected="a file that this process may lock",
                found=f"errno {error.errno}",
                next_step="give the worker's user the right to write there, or set worker.lock_dir to a local directory",
                retryable=False,
            ) from None

    def _take(self) -> ExclusiveLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 500, 0).decode("utf-8", "replace") or "unknown"
            os.close(descriptor)
            raise LtsFault(
                f"queue {self._path.stem} is served by another process",
                expected="exactly one process per LTS queue",
                found=f"lock {self._path} held by {holder}",
                next_step="stop that process first; LTS workers are never deployed side by side",
                retryable=False,
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        ours = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(ours).encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
