"""A landing zone that is a directory on a shared file system: hostile input (reliability-notes section 4, M9).

Opened with ``openat2(2)`` beneath the dataset's folder, following no symbolic link; regular files only; names are bytes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from archiver.datablock.files import PlannedFile, SourceFile, check_path
from archiver.errors import CatalogueRecordInvalid, HostilePath, SourceChanged, SourceFault
from archiver.progress import Progress
from archiver.storage.objects import Buffer

SYS_OPENAT2 = 437
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
READ_BYTES = 2 * 2**20
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """``openat2`` of ``path`` beneath the directory ``root``; no symbolic link anywhere on the way. Raises ``OSError``."""
    how = struct.pack("QQQ", flags, 0, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    descriptor: int = _libc.syscall(SYS_OPENAT2, root, ctypes.c_char_p(path), how, ctypes.c_size_t(len(how)))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return descriptor


class DirectoryLanding:
    """The files beneath one folder. Implements ``Landing``."""

    def __init__(self, folder: str, fields: Mapping[str, str]) -> None:
        if ".." in PurePosixPath(folder).parts or "\0" in folder or not folder.startswith("/"):
            raise CatalogueRecordInvalid(
                f"the landing zone of dataset {fields.get('pid')} is no folder that may be read",
                expected="an absolute path without '..'",
                found=ascii(folder[:200]),
                next_step="correct sourceFolder in the dataset's record",
                dataset=fields.get("pid"),
            )
        self._folder = folder
        self.where = f"file://{folder}"

    def list(self) -> Iterator[SourceFile]:
        """As ``Landing``. Raises ``HostilePath`` for anything that is neither a regular file nor a folder."""
        root = self._root()
        if root is None:
            return
        try:
            yield from self._walk(root, b"")
        except OSError as error:
            raise self._fault(error) from None
        finally:
            os.close(root)

    def _walk(self, root: int, below: bytes) -> Iterator[SourceFile]:
        descriptor = open_beneath(root, below or b".", _FLAGS | os.O_DIRECTORY) if below else os.dup(root)
        entries: list[tuple[bytes, os.stat_result]] = []
        try:
            for entry in os.listdir(descriptor):
                found = os.stat(entry, dir_fd=descriptor, follow_symlinks=False)
                # A folder sorts as its name and a slash: then the walk is in the order of whole paths.
                entries.append((os.fsencode(entry) + (b"/" if stat.S_ISDIR(found.st_mode) else b""), found))
        finally:
            os.close(descriptor)
        for name, found in sorted(entries, key=lambda pair: pair[0]):
            path = below + name
            if stat.S_ISDIR(found.st_mode):
                yield from self._walk(root, path)
            elif stat.S_ISREG(found.st_mode):
                yield SourceFile(os.fsdecode(path), found.st_size, _version(found))
            else:
                raise HostilePath(
                    f"{os.fsdecode(path)!a} in {self.where} is no regular file",
                    expected="regular files and folders only",
                    found=_kind(found.st_mode),
                    next_step="replace it by the file itself, then submit the job again",
                    file=ascii(os.fsdecode(path)),
                )

    def fetch(
        self, files: Iterable[PlannedFile], *, ahead_bytes: int, ahead_objects: int
    ) -> Iterator[tuple[PlannedFile, Iterator[Buffer]]]:
        """As ``Landing``; the system reads ahead. The version is checked before the first and after the last byte."""
        root = self._root()
        if root is None:
            raise self._fault(OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
        try:
            for file in files:
                yield file, self._read(root, file)
        finally:
            os.close(root)

    def _read(self, root: int, file: PlannedFile) -> Iterator[Buffer]:
        descriptor = self._open(root, file)
        try:
            left = file.size
            while left:
                chunk = os.read(descriptor, min(READ_BYTES, left))
                if not chunk:
                    break
                left -= len(chunk)
                yield chunk
            now = os.fstat(descriptor)
        except OSError as error:
            raise self._fault(error) from None
        finally:
            os.close(descriptor)
        if left or _version(now) != file.version:
            raise _changed(file, f"{now.st_size} B in another version")

    def _open(self, root: int, file: PlannedFile) -> int:
        check_path(file.path)
        try:
            descriptor = open_beneath(root, os.fsencode(file.path), _FLAGS)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENXIO):
                raise _changed(file, error.strerror or "nothing") from None
            raise self._fault(error) from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or _version(found) != file.version:
            os.close(descriptor)
            raise _changed(file, f"{found.st_size} B in another version, {_kind(found.st_mode)}")
        return descriptor

    def delete(self, files: Iterable[PlannedFile], progress: Progress) -> int:
        """As ``Landing``. Folders stay."""
        root = self._root()
        if root is None:
            return 0
        deleted = 0
        try:
            for file in files:
                try:
                    os.close(self._open(root, file))
                except SourceChanged:
                    continue
                folder, _, name = os.fsencode(file.path).rpartition(b"/")
                parent = open_beneath(root, folder, _FLAGS | os.O_DIRECTORY) if folder else os.dup(root)
                try:
                    if _version(os.stat(name, dir_fd=parent, follow_symlinks=False)) == file.version:
                        os.unlink(name, dir_fd=parent)
                        deleted += 1
                finally:
                    os.close(parent)
                progress.advance(files=1)
        except OSError as error:
            raise self._fault(error) from None
        finally:
            os.close(root)
        return deleted

    def _root(self) -> int | None:
        try:
            return os.open(self._folder, _FLAGS | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._fault(error) from None

    def _fault(self, error: OSError) -> SourceFault:
        return SourceFault(
            f"{self.where} cannot be read: {error.strerror}",
            expected="a readable folder",
            found=f"errno {error.errno}" + (f" at {ascii(error.filename)[:200]}" if error.filename else ""),
            next_step="retried; check the mount and the rights of the worker's user",
        )


def _version(found: os.stat_result) -> str:
    return f"{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_size}"


def _changed(file: PlannedFile, found: str) -> SourceChanged:
    return SourceChanged(
        f"file {file.path!a} changed or vanished after the dataset was planned",
        expected=f"{file.size} B in version {file.version}",
        found=found,
        next_step="let the files rest, then submit the job again",
        file=ascii(file.path),
    )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFREG: "regular file"}
    return kinds.get(stat.S_IFMT(mode), "device or other")
