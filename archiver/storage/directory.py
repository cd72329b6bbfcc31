"""A landing zone that is a directory on a shared file system: hostile input (reliability-notes section 4, M9).

Opened with ``openat2(2)``, following no symbolic link; regular files only; names are bytes. Trusted is the part of the
template before its first field, which the operator wrote; the rest is named by users, and so is what lies there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from archiver.datablock.files import MAX_PATH_BYTES, PlannedFile, SourceFile, check_path, path_key
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
    """The files beneath the folder ``fixed + filled``. Implements ``Landing``.

    ``fixed`` is the operator's: links are followed there. ``filled`` comes from the dataset's record: none are.
    """

    def __init__(self, fixed: str, filled: str, fields: Mapping[str, str]) -> None:
        folder = fixed + filled
        self._pid = fields.get("pid")
        self.where = f"file://{folder}"
        if not fixed.endswith("/") and not filled.startswith("/"):
            # The field goes on with a name that the template began.
            fixed, filled = fixed[: fixed.rfind("/") + 1], folder[fixed.rfind("/") + 1 :]
        if ".." in PurePosixPath(folder).parts or "\0" in folder:
            raise self._no_folder("an absolute path without '..'", ascii(folder[:200]))
        self._base = fixed
        self._below = os.fsencode(filled.strip("/")) or b"."

    def list(self) -> Iterator[SourceFile]:
        """As ``Landing``. Raises ``HostilePath`` for anything that is neither a regular file nor a folder."""
        root = self._root()
        if root is None:
            return
        try:
            yield from self._walk(root)
        except OSError as error:
            raise self._fault(error) from None
        finally:
            os.close(root)

    def _walk(self, root: int) -> Iterator[SourceFile]:
        """Depth first in the order of whole paths, without recursion: one folder is open at a time, and names are held."""
        levels = [(b"", _names(root, b""))]
        while levels:
            below, names = levels[-1]
            descriptor = _folder(root, below)
            try:
                while names and not names[-1].endswith(b"/"):
                    name = _from_key(names.pop())
                    yield self._file(below + name, os.stat(name, dir_fd=descriptor, follow_symlinks=False))
            finally:
                os.close(descriptor)
            if names:
                folder = below + _from_key(names.pop())
                if len(folder) >= MAX_PATH_BYTES:
                    raise self._hostile(folder, f"paths of at most {MAX_PATH_BYTES} bytes", f"{len(folder)} bytes")
                levels.append((folder, _names(root, folder)))
            else:
                levels.pop()

    def _file(self, path: bytes, found: os.stat_result) -> SourceFile:
        if not stat.S_ISREG(found.st_mode):
            raise self._hostile(path, "regular files and folders only", _kind(found.st_mode))
        return SourceFile(os.fsdecode(path), found.st_size, _version(found))

    def fetch(
        self, files: Iterable[PlannedFile], *, ahead_bytes: int, ahead_objects: int
    ) -> Iterator[tuple[PlannedFile, Iterator[Buffer]]]:
        """As ``Landing``; the system reads ahead. The version is checked before the first and after the last byte."""
        root = self._root()
        try:
            for file in files:
                if root is None:
                    raise _changed(file, "no folder")
                yield file, self._read(root, file)
        finally:
            if root is not None:
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
                parent = _folder(root, folder)
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
        """The dataset's folder, or None if there is none.

        Raises ``SourceFault`` if nothing at all lies where datasets do: an unmounted landing zone is no evidence that
        files are missing. Raises ``HostilePath`` if a link is on the way, ``CatalogueRecordInvalid`` if it is no folder.
        """
        try:
            base = os.open(self._base, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
            try:
                with os.scandir(base) as entries:
                    if next(entries, None) is None:
                        raise OSError(errno.ENOENT, f"{self._base} is empty; is it mounted?")
                return self._open_root(base)
            finally:
                os.close(base)
        except OSError as error:
            raise self._fault(error) from None

    def _open_root(self, base: int) -> int | None:
        try:
            # Without O_NOFOLLOW, so that a link at the end is told as one, and not as "no folder".
            return open_beneath(base, self._below, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            if error.errno in (errno.ELOOP, errno.EXDEV):
                raise HostilePath(
                    f"{self.where} is reached through a symbolic link",
                    expected="a folder by its own path; links only before the first field of landing.url_template",
                    found=error.strerror,
                    next_step="give the folder's own path in sourceFolder, or the linked part in the template",
                    dataset=self._pid,
                ) from None
            if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):
                raise self._no_folder("a folder", error.strerror or "") from None
            raise

    def _no_folder(self, expected: str, found: str) -> CatalogueRecordInvalid:
        return CatalogueRecordInvalid(
            f"the landing zone of dataset {self._pid} is no folder that may be read",
            expected=expected,
            found=found,
            next_step="correct sourceFolder in the dataset's record",
            dataset=self._pid,
        )

    def _hostile(self, path: bytes, expected: str, found: str) -> HostilePath:
        name = ascii(os.fsdecode(path)[-300:])
        return HostilePath(
            f"{name} in {self.where} cannot be archived",
            expected=expected,
            found=found,
            next_step="replace it by a regular file with a shorter path, or remove it, then submit the job again",
            file=name,
        )

    def _fault(self, error: OSError) -> SourceFault:
        return SourceFault(
            f"{self.where} cannot be read: {error.strerror}",
            expected="a readable folder",
            found=f"errno {error.errno}" + (f" at {ascii(error.filename)[:200]}" if error.filename else ""),
            next_step="retried; check the mount and the rights of the worker's user",
        )


def _folder(root: int, below: bytes) -> int:
    return open_beneath(root, below or b".", _FLAGS | os.O_DIRECTORY)


def _names(root: int, below: bytes) -> list[bytes]:
    """What lies in a folder, as sort keys, the first last. A folder sorts as its name and a slash: as its files do."""
    descriptor = _folder(root, below)
    try:
        with os.scandir(descriptor) as entries:
            names = [path_key(entry.name) + b"/" * entry.is_dir(follow_symlinks=False) for entry in entries]
    finally:
        os.close(descriptor)
    names.sort(reverse=True)
    return names


def _from_key(key: bytes) -> bytes:
    return os.fsencode(key.decode("utf-8", "surrogatepass"))


def _version(found: os.stat_result) -> str:
    # Not the device: its number is each host's own on network file systems, and plan and pack may run on two.
    return f"{found.st_ino}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_size}"


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
