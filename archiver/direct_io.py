"""Reading a file past this host's page cache: O_DIRECT with several buffers, else fsync and DONTNEED, and say which.

An ordinary read may return the old good bytes of a damaged file from the page cache (reliability-notes M1).
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

BUFFER_BYTES = 4 * 2**20
BUFFERS = 4
NO_DIRECT_IO = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


class PastCacheReader:
    """Iterate it once for the bytes of ``path``, in chunks that are valid until the next one is asked for.

    ``how`` says afterwards how they were read: ``O_DIRECT``, or ``fsync+DONTNEED`` where the file system has no O_DIRECT
    or ``direct_io`` is ``never``. Raises ``OSError`` as the system gives it.
    """

    def __init__(self, path: Path, direct_io: str = "auto") -> None:
        self.path = path
        self.how = ""
        self._direct = direct_io != "never"

    def __iter__(self) -> Iterator[memoryview]:
        descriptor = self._open()
        try:
            yield from self._read_ahead(descriptor)
        finally:
            if self.how != "O_DIRECT":
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def _open(self) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        if self._direct:
            try:
                descriptor = os.open(self.path, flags | os.O_DIRECT)
                with mmap.mmap(-1, mmap.PAGESIZE) as probe:
                    os.preadv(descriptor, [probe], 0)
            except OSError as error:
                if error.errno not in NO_DIRECT_IO:
                    raise
            else:
                self.how = "O_DIRECT"
                return descriptor
        descriptor = os.open(self.path, flags)
        # DONTNEED drops clean pages only, so what is not yet written must be written first.
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self.how = "fsync+DONTNEED"
        return descriptor

    def _read_ahead(self, descriptor: int) -> Iterator[memoryview]:
        free: queue.SimpleQueue[mmap.mmap | None] = queue.SimpleQueue()
        full: queue.SimpleQueue[tuple[mmap.mmap, int] | OSError] = queue.SimpleQueue()
        buffers = [mmap.mmap(-1, BUFFER_BYTES) for _ in range(BUFFERS)]
        for buffer in buffers:
            free.put(buffer)

        def read() -> None:
            offset = 0
            try:
                while (buffer := free.get()) is not None:
                    size = os.preadv(descriptor, [buffer], offset)
                    offset += size
                    full.put((buffer, size))
                    if size == 0:
                        return
            except OSError as error:
                full.put(error)

        thread = threading.Thread(target=read, name="read-past-cache", daemon=True)
        thread.start()
        try:
            while True:
                item = full.get()
                if isinstance(item, OSError):
                    raise item
                buffer, size = item
                if size == 0:
                    return
                with memoryview(buffer) as view, view[:size] as chunk:
                    yield chunk
                free.put(buffer)
        finally:
            free.put(None)
            thread.join()
            for buffer in buffers:
                buffer.close()
