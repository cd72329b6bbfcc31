"""Write a stream to a new file: reserved first, past the page cache where possible, durable when it returns.

O_DIRECT from a few reused aligned buffers, filled straight from the incoming chunks, written by a thread beside the one
that hashes. After a failed write, fsync or close the file is given up: a second fsync would
succeed without having written anything.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from archiver.direct_io import NO_DIRECT_IO, give_up_direct_io
from archiver.progress import Progress
from archiver.storage.objects import Buffer

BUFFER_BYTES = 4 * 2**20
BUFFERS = 3
ALIGN = 4096
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
AT_FDCWD = -100
RENAME_NOREPLACE = 1
NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""What ``fsync(2)`` of a directory says where there is no such thing: its entries are durable by themselves, or never."""
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What ``link(2)`` says on file systems without hard links, as some tape front ends are."""


def reserve(descriptor: int, size: int) -> bool:
    """``fallocate(2)`` itself: glibc's ``posix_fallocate`` would write every block where it is not supported.

    Returns False where the file system has no reservation. Raises ``OSError``: the file then holds what could be had,
    and must be unlinked at once.
    """
    if not size:
        return True
    while _libc.fallocate(descriptor, 0, 0, size) != 0:
        number = ctypes.get_errno()
        if number == errno.EINTR:
            continue
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        raise OSError(number, os.strerror(number))
    return True


def sync_folder(folder: Path) -> bool:
    """Make a directory's entries durable; returns whether its file system can. Raises ``OSError``."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def publish(partial: Path | bytes, final: Path | bytes, folder: int | None = None) -> None:
    """Give a finished file its final name without clobbering: ``link(2)``, or ``renameat2(2)`` where there are no links.

    Names are relative to the directory that is open as ``folder``, where it is given. Raises ``FileExistsError`` if the
    name is taken, and ``OSError``; ``partial`` is then still there.
    """
    at = AT_FDCWD if folder is None else folder
    try:
        os.link(partial, final, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if _libc.renameat2(at, bytes(partial), at, bytes(final), RENAME_NOREPLACE) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), final) from None


def write_stream(
    path: Path,
    chunks: Iterable[Buffer],
    *,
    size: int,
    direct_io: bool,
    reserved: Callable[[bool], None],
    progress: Progress,
) -> tuple[int, str]:
    """Create ``path``, write the stream, fsync; returns bytes written and their SHA-256.

    ``reserved`` is told whether the space was reserved, before the first byte. Raises ``OSError``, and what ``chunks``
    or ``progress`` raise; the file is left for the caller to unlink. More bytes than ``size`` are not written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    direct = os.O_DIRECT if direct_io else 0
    try:
        descriptor = os.open(path, flags | direct, 0o444)
    except OSError as error:
        if not direct or error.errno not in NO_DIRECT_IO:
            raise
        path.unlink(missing_ok=True)
        direct = 0
        descriptor = os.open(path, flags, 0o444)
    try:
        reserved(reserve(descriptor, size))
        written, sha256 = _copy(descriptor, chunks, size, progress)
        os.ftruncate(descriptor, written)
        os.fsync(descriptor)
    except BaseException:
        try:
            os.close(descriptor)
        except OSError:
            pass  # the file is given up already
        raise
    os.close(descriptor)
    return written, sha256


def _copy(descriptor: int, chunks: Iterable[Buffer], size: int, progress: Progress) -> tuple[int, str]:
    digest = hashlib.sha256()
    free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[mmap.mmap, int, int] | None] = queue.SimpleQueue()
    failed: list[OSError] = []
    buffers = [mmap.mmap(-1, BUFFER_BYTES) for _ in range(BUFFERS)]
    for buffer in buffers:
        free.put(buffer)

    def write() -> None:
        while (item := full.get()) is not None:
            buffer, used, offset = item
            if not failed:
                try:
                    with memoryview(buffer) as view:
                        try:
                            _pwrite_all(descriptor, view[:used], offset)
                        except OSError as error:
                            if error.errno not in NO_DIRECT_IO:
                                raise
                            # Some file systems take O_DIRECT, and then refuse the write; fsync comes after it anyway.
                            give_up_direct_io(descriptor)
                            _pwrite_all(descriptor, view[:used], offset)
                except OSError as error:
                    failed.append(error)
            free.put(buffer)

    thread = threading.Thread(target=write, name="write-lts", daemon=True)
    thread.start()
    total = used = offset = 0
    buffer = free.get()
    try:
        for chunk in chunks:
            data = memoryview(chunk)
            if total + len(data) > size:
                total += len(data)
                break
            digest.update(data)
            total += len(data)
            while len(data):
                piece = data[: BUFFER_BYTES - used]
                buffer[used : used + len(piece)] = piece
                used += len(piece)
                data = data[len(piece) :]
                if used == BUFFER_BYTES:
                    full.put((buffer, used, offset))
                    offset += used
                    buffer, used = free.get(), 0
            if failed:
                break
            progress.advance(len(chunk))
        if used and not failed:
            padded = -(-used // ALIGN) * ALIGN
            buffer[used:padded] = bytes(padded - used)
            full.put((buffer, padded, offset))
    finally:
        full.put(None)
        thread.join()
    if failed:
        raise failed[0]
    for buffer in buffers:
        buffer.close()
    return total, digest.hexdigest()


def _pwrite_all(descriptor: int, data: memoryview, offset: int) -> None:
    while len(data):
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
