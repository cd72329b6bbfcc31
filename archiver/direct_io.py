"""Reading a file past this host's page cache: O_DIRECT with several buffers, else fsync and DONTNEED, and say which.

An ordinary read may return the old good bytes of a damaged file from the page cache.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

BUFFER_BYTES = 4 * 2**20
BUFFERS = 4
"""One being read, one that waits, and the two that the taker may hold."""
ALIGN = 4096
NO_DIRECT_IO = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)
MEMORY_FILE_SYSTEMS = (0x01021994, 0x858458F6)
"""``f_type`` of tmpfs and ramfs (linux/magic.h): the page cache is all they have, whatever they accept."""
_libc = ctypes.CDLL(None, use_errno=True)


class PastCacheReader:
    """Iterate it for the bytes of ``path``, as often as needed; each time it is read anew.

    A chunk stays valid until the next but one is asked for, so that one can be worked on while the next is read.
    ``how`` says afterwards how they were read: ``O_DIRECT``, or ``fsync+DONTNEED`` where the file system has no O_DIRECT
    or ``direct_io`` is ``never``. ``level`` says what that proves: ``host``, or ``cache`` on a
    file system that lies in memory. Raises ``OSError`` as the system gives it.
    """

    def __init__(self, path: Path, direct_io: str = "auto") -> None:
        self.path = path
        self.how = ""
        self.level = "cache"
        self._direct = direct_io != "never"

    def __iter__(self) -> Iterator[memoryview]:
        descriptor = self._open()
        try:
            self.level = "cache" if _file_system(descriptor) in MEMORY_FILE_SYSTEMS else "host"
            yield from self._read_ahead(descriptor)
        finally:
            if self.how != "O_DIRECT":
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def _open(self) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        if self._direct and (descriptor := self._open_direct(flags)) is not None:
            self.how = "O_DIRECT"
            return descriptor
        descriptor = os.open(self.path, flags)
        try:
            # DONTNEED drops clean pages only, so what is not yet written must be written first.
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError:
            os.close(descriptor)
            raise
        self.how = "fsync+DONTNEED"
        return descriptor

    def _open_direct(self, flags: int) -> int | None:
        """With O_DIRECT, tried by a first read; None where the file system has none."""
        descriptor = None
        try:
            descriptor = os.open(self.path, flags | os.O_DIRECT)
            os.preadv(descriptor, [mmap.mmap(-1, ALIGN)], 0)
        except OSError as error:
            if descriptor is not None:
                os.close(descriptor)
            if error.errno not in NO_DIRECT_IO:
                raise
            return None
        return descriptor

    def _read_at(self, descriptor: int, buffer: mmap.mmap, offset: int) -> int:
        """Some file systems take O_DIRECT, and then refuse a read of it: the rest is read without, and so is told."""
        try:
            return os.preadv(descriptor, [buffer], offset)
        except OSError as error:
            if self.how != "O_DIRECT" or error.errno not in NO_DIRECT_IO:
                raise
        give_up_direct_io(descriptor)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self.how = "fsync+DONTNEED"
        return os.preadv(descriptor, [buffer], offset)

    def _read_ahead(self, descriptor: int) -> Iterator[memoryview]:
        free: queue.SimpleQueue[mmap.mmap | None] = queue.SimpleQueue()
        full: queue.SimpleQueue[tuple[mmap.mmap, int] | OSError | None] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            free.put(mmap.mmap(-1, BUFFER_BYTES))
        end = os.fstat(descriptor).st_size

        def read() -> None:
            offset = 0
            try:
                # Not read beyond the end: there some file systems refuse an unaligned offset instead of saying nothing.
                while offset < end and (buffer := free.get()) is not None:
                    size = self._read_at(descriptor, buffer, offset)
                    if offset + size < end:
                        # A short read goes on at an aligned offset, or O_DIRECT refuses it.
                        size -= size % ALIGN
                        if not size:
                            raise OSError(errno.EIO, f"the file ends at {offset} of {end} bytes")
                    offset += size
                    full.put((buffer, size))
                full.put(None)
            except OSError as error:
                full.put(error)

        thread = threading.Thread(target=read, name="read-past-cache", daemon=True)
        thread.start()
        lent: list[mmap.mmap] = []
        try:
            while (item := full.get()) is not None:
                if isinstance(item, OSError):
                    raise item
                buffer, size = item
                lent.append(buffer)
                yield memoryview(buffer)[:size]
                if len(lent) == 2:
                    free.put(lent.pop(0))
        finally:
            free.put(None)
            thread.join()


def give_up_direct_io(descriptor: int) -> None:
    """From now on its reads and writes go through the page cache. Raises ``OSError``."""
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)


def _file_system(descriptor: int) -> int:
    """``f_type`` of ``fstatfs(2)``, the first word of its answer on Linux; 0 if it gives none."""
    answer = (ctypes.c_long * 64)()
    return 0 if _libc.fstatfs(descriptor, answer) else answer[0]
