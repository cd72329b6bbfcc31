"""A landing zone that is a directory on a shared file system, which is hostile input.

Opened with ``openat2(2)``, following no symbolic link; regular files only; names are bytes. Trusted is the part of the
template before its first field, which the operator wrote; the rest is named by users, and so is what lies there.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import PurePosixPath

from archiver.datablock.files import MAX_PATH_BYTES, PlannedFile, SourceFile, check_path, path_key
from archiver.errors import CatalogueRecordInvalid, HostilePath, SourceChanged, SourceFault
from archiver.names import entry_bytes, path_bytes, path_text
from archiver.progress import SILENT, Progress
from archiver.settings import LandingSettings
from archiver.storage.direct_write import publish
from archiver.storage.objects import Buffer

SYS_OPENAT2 = 437
AT_FDCWD = -100
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
READ_BYTES = 2 * 2**20
FRESH_SECONDS = 2.0
"""What changed so short ago may change again within one tick of the file system's clock."""
REMOVING = b".archiver-removing."
"""Beginning of the name that a file has between being looked at and being removed."""
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENXIO)
"""What ``open_beneath`` says where no file can be reached without a link."""
_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """Open ``path`` beneath the directory ``root``, with no symbolic link anywhere on the way. Raises ``OSError``.

    By ``openat2``, or where that is refused (filters of some containers, Linux before 5.6) segment by segment.
    """
    if not has_openat2():
        return _open_by_segments(root, path, flags)
    return _openat2(root, path, flags, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)


@cache
def has_openat2() -> bool:
    """Whether this process may call ``openat2``."""
    try:
        os.close(_openat2(AT_FDCWD, b".", os.O_PATH | os.O_CLOEXEC, 0))
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.EPERM)
    return True


def _openat2(root: int, path: bytes, flags: int, resolve: int) -> int:
    how = struct.pack("QQQ", flags, 0, resolve)
    descriptor: int = _libc.syscall(SYS_OPENAT2, root, ctypes.c_char_p(path), how, ctypes.c_size_t(len(how)))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path_text(path))
    return descriptor


def _open_by_segments(root: int, path: bytes, flags: int) -> int:
    """The same guarantee as ``openat2`` beneath ``root``: each name is one entry of an open directory, and no link."""
    segments = [segment for segment in path.split(b"/") if segment not in (b"", b".")] or [b"."]
    if path.startswith(b"/") or b".." in segments:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path_text(path))
    at = os.dup(root)
    try:
        for place, segment in enumerate(segments, 1):
            how = flags if place == len(segments) else os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            try:
                below = os.open(segment, how | os.O_NOFOLLOW, dir_fd=at)
            except NotADirectoryError:
                if stat.S_ISLNK(os.stat(segment, dir_fd=at, follow_symlinks=False).st_mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path_text(path)) from None
                raise
            os.close(at)
            at = below
    except BaseException:
        os.close(at)
        raise
    return at


def version_beneath(root: int, path: bytes) -> str:
    """The version of a file beneath an open directory, as a plan would have it. Raises ``OSError``."""
    descriptor = open_beneath(root, path, _FLAGS)
    try:
        return _version(os.fstat(descriptor))
    finally:
        os.close(descriptor)


class DirectoryLanding:
    """The files beneath the folder ``fixed + filled``. Implements ``Landing``.

    ``fixed`` is the operator's: links are followed there. ``filled`` comes from the dataset's record: none are.
    """

    def __init__(
        self, fixed: str, filled: str, fields: Mapping[str, str], settings: LandingSettings | None = None
    ) -> None:
        self._settings = settings or LandingSettings()
        folder = fixed + filled
        self._pid = fields.get("pid")
        self.where = f"file://{folder}"
        if not fixed.endswith("/") and not filled.startswith("/"):
            # The field goes on with a name that the template began.
            fixed, filled = fixed[: fixed.rfind("/") + 1], folder[fixed.rfind("/") + 1 :]
        if ".." in PurePosixPath(folder).parts or "\0" in folder:
            raise self._no_folder("an absolute path without '..'", ascii(folder[:200]))
        self._base = fixed
        self._below = path_bytes(filled.strip("/")) or b"."

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
        file = SourceFile(path_text(path), found.st_size, _version(found))
        if self._settings.without_version == "refuse" and not self.certain(file.version):
            raise no_version(self.where, file, "change times with fractions of a second", "whole seconds")
        return file

    def certain(self, version: str) -> bool:
        """As ``Landing``: whether the change time has a fraction of a second.

        File systems without one (FAT, sshfs, NFS of old servers) often have no change time at all and tell the
        modification time instead, which everybody can put back.
        """
        return int(version.split(":")[1]) % 10**9 != 0

    def fetch(
        self, files: Iterable[PlannedFile], *, ahead_bytes: int, ahead_objects: int, progress: Progress = SILENT
    ) -> Iterator[tuple[PlannedFile, Iterator[Buffer]]]:
        """As ``Landing``; the system reads ahead. The version is checked before the first and after the last byte."""
        root = self._root()
        try:
            for file in files:
                if root is None:
                    raise self._changed(file, "no folder")
                yield file, self._once_or_twice(root, file, progress)
        finally:
            if root is not None:
                os.close(root)

    def _once_or_twice(self, root: int, file: PlannedFile, progress: Progress) -> Iterator[Buffer]:
        changed = int(file.version.split(":")[1]) / 10**9
        if self.certain(file.version) and changed < time.time() - FRESH_SECONDS:
            yield from self._read(root, file)
            return
        digest = hashlib.sha256()
        for chunk in self._read(root, file):
            digest.update(chunk)
            yield chunk
        again = self._sha256(root, file, progress)
        if again != digest.hexdigest():
            raise changed_while_read(self.where, file, digest.hexdigest(), again)

    def _sha256(self, root: int, file: PlannedFile, progress: Progress) -> str:
        digest = hashlib.sha256()
        for chunk in self._read(root, file, anew=True):
            digest.update(chunk)
            progress.note(f"reading {file.path[:200]!a} a second time")
        return digest.hexdigest()

    def _read(self, root: int, file: PlannedFile, *, anew: bool = False) -> Iterator[Buffer]:
        descriptor = self._open(root, file)
        try:
            if anew:
                # This host's cache would give what the first reading left there, whatever the file server has now.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            now = os.fstat(descriptor)
            if _version(now) != file.version:
                raise self._changed(file, f"{now.st_size} B in version {_version(now)}")
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
            raise self._changed(file, f"{now.st_size} B in version {_version(now)}")

    def _open(self, root: int, file: PlannedFile) -> int:
        check_path(file.path)
        try:
            descriptor = open_beneath(root, path_bytes(file.path), _FLAGS)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise self._changed(file, error.strerror or "nothing") from None
            raise self._fault(error) from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise self._changed(file, _kind(found.st_mode))
        return descriptor

    def delete(self, files: Iterable[tuple[PlannedFile, str]], progress: Progress) -> int:
        """As ``Landing``. Folders stay. A file is first moved to a name of our own and looked at there: what somebody else
        put in its place meanwhile is moved back.
        """
        root = self._root()
        if root is None:
            return 0
        removal = _Removal(self, root, progress)
        try:
            return sum(removal.remove(file, sha256) for file, sha256 in files)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise self._no_right(error) from None
            raise self._fault(error) from None
        finally:
            removal.close()
            os.close(root)

    def open_archived(
        self, root: int, file: PlannedFile, sha256: str, progress: Progress
    ) -> tuple[int, os.stat_result]:
        """The file, open, and its state, if it is what was archived. Raises ``SourceChanged`` if it is not.

        Its change time alone proves no change: it moves with every hard link that is made or removed, also by us. Then,
        and wherever the version is not believed, the bytes are compared.
        """
        descriptor = self._open(root, file)
        try:
            found = os.fstat(descriptor)
            if _content(found) != (int(file.version.split(":")[0]), file.size):
                raise self._changed(file, f"{found.st_size} B in version {_version(found)}")
            believed = self._settings.delete_check == "version" and self.certain(file.version)
            if not (believed and _version(found) == file.version):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                digest = hashlib.sha256()
                while chunk := os.read(descriptor, READ_BYTES):
                    digest.update(chunk)
                    progress.note(f"reading {file.path[:200]!a} once more")
                if digest.hexdigest() != sha256 or _version(os.fstat(descriptor)) != _version(found):
                    raise self._changed(file, f"SHA-256 {digest.hexdigest()}")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, found

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

    def _changed(self, file: PlannedFile, found: str) -> SourceChanged:
        return SourceChanged(
            f"file {file.path!a} in {self.where} changed or vanished after the dataset was planned",
            expected=f"{file.size} B in version {file.version}",
            found=found,
            next_step="let the files rest, then submit the job again; if nobody writes them, archiver doctor tries the mount",
            file=ascii(file.path),
        )

    def _no_folder(self, expected: str, found: str) -> CatalogueRecordInvalid:
        return CatalogueRecordInvalid(
            f"the landing zone of dataset {self._pid} is no folder that may be read",
            expected=expected,
            found=found,
            next_step="correct sourceFolder in the dataset's record",
            dataset=self._pid,
        )

    def _hostile(self, path: bytes, expected: str, found: str) -> HostilePath:
        name = ascii(path_text(path)[-300:])
        return HostilePath(
            f"{name} in {self.where} cannot be archived",
            expected=expected,
            found=found,
            next_step="replace it by a regular file with a shorter path, or remove it, then submit the job again",
            file=name,
        )

    def _no_right(self, error: OSError) -> SourceFault:
        """Not retried: the dataset is archived and reported, and its job's end is not to wait for somebody's rights."""
        return SourceFault(
            f"source files in {self.where} cannot be removed: {error.strerror}",
            expected="folders that this user may write to, and files that it may read",
            found=f"errno {error.errno}" + (f" at {ascii(error.filename)[:200]}" if error.filename else ""),
            next_step="remove them by hand; for the next datasets let the user of the queue delete write there",
            retryable=False,
        )

    def _fault(self, error: OSError) -> SourceFault:
        return SourceFault(
            f"{self.where} cannot be read: {error.strerror}",
            expected="a readable folder",
            found=f"errno {error.errno}" + (f" at {ascii(error.filename)[:200]}" if error.filename else ""),
            next_step="retried; check the mount and the rights of the worker's user",
        )


class _Removal:
    """Removes files one after another; what an earlier attempt moved and left is put back when its folder is opened."""

    def __init__(self, landing: DirectoryLanding, root: int, progress: Progress) -> None:
        self._landing = landing
        self._root = root
        self._progress = progress
        self._own = REMOVING + secrets.token_hex(6).encode() + b"."
        self._below: bytes | None = None
        self._parent = -1
        self._left_over: dict[bytes, bytes] = {}

    def remove(self, file: PlannedFile, sha256: str) -> bool:
        """Remove it if it is what was archived. Raises ``OSError``, ``SourceFault`` and what the progress raises."""
        check_path(file.path)
        below, _, name = path_bytes(file.path).rpartition(b"/")
        digest = hashlib.sha256(path_bytes(file.path)).hexdigest()[:20].encode()
        try:
            self._enter(below)
            if (left := self._left_over.pop(digest, None)) is not None:
                with suppress(FileExistsError, FileNotFoundError):
                    self._move_back(left, name)
            descriptor, found = self._landing.open_archived(self._root, file, sha256, self._progress)
        except SourceChanged:
            return False
        except OSError as error:
            if error.errno in _NOT_THERE:
                return False
            raise
        try:
            return self._move_and_remove(file, descriptor, found, name, self._own + digest)
        finally:
            os.close(descriptor)

    def _move_and_remove(
        self, file: PlannedFile, descriptor: int, found: os.stat_result, name: bytes, own: bytes
    ) -> bool:
        # Raises ``Stopped`` in an attempt that stood still, which removes nothing any more.
        self._progress.advance(files=1)
        if _version(os.fstat(descriptor)) != _version(found):
            return False
        try:
            os.rename(name, own, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            moved = os.stat(own, dir_fd=self._parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if os.path.samestat(moved, os.fstat(descriptor)) and _content(moved) == _content(found):
            with suppress(FileNotFoundError):  # another attempt has put it back
                os.unlink(own, dir_fd=self._parent)
                return True
            return False
        try:
            self._move_back(own, name)
        except FileExistsError:
            raise SourceFault(
                f"file {file.path!a} was replaced twice while it was to be removed",
                expected="the archived file",
                found=f"another one, which now has the name {path_text(own)}",
                next_step=f"see which of the two belongs there, in {self._landing.where}",
                retryable=False,
                file=ascii(file.path),
            ) from None
        return False

    def _move_back(self, own: bytes, name: bytes) -> None:
        """Without clobbering, by all that the file system has. Raises ``FileExistsError`` if the name is taken."""
        try:
            publish(own, name, self._parent)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            with suppress(FileNotFoundError):
                os.stat(name, dir_fd=self._parent, follow_symlinks=False)
                raise FileExistsError from None
            os.rename(own, name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
            return
        with suppress(FileNotFoundError):
            os.unlink(own, dir_fd=self._parent)

    def _enter(self, below: bytes) -> None:
        if below == self._below:
            return
        self.close()
        self._parent, self._below = _folder(self._root, below), below
        if not os.access(b".", os.W_OK | os.X_OK, dir_fd=self._parent, effective_ids=True):
            # Before the files are read.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path_text(below))
        with os.scandir(self._parent) as entries:
            names = [name for entry in entries if (name := entry_bytes(entry)).startswith(REMOVING)]
        self._left_over = {name.rpartition(b".")[2]: name for name in names}

    def close(self) -> None:
        """Let the folder go."""
        if self._parent >= 0:
            os.close(self._parent)
        self._parent, self._below = -1, None


def _content(found: os.stat_result) -> tuple[int, int]:
    """What only a change of the bytes, or somebody's wish, moves: not links and names."""
    return found.st_mtime_ns, found.st_size


def _folder(root: int, below: bytes) -> int:
    return open_beneath(root, below or b".", _FLAGS | os.O_DIRECTORY)


def _names(root: int, below: bytes) -> list[bytes]:
    """What lies in a folder, as sort keys, the first last. A folder sorts as its name and a slash: as its files do."""
    descriptor = _folder(root, below)
    try:
        with os.scandir(descriptor) as entries:
            names = [
                path_key(path_text(entry_bytes(entry))) + b"/" * entry.is_dir(follow_symlinks=False)
                for entry in entries
            ]
    finally:
        os.close(descriptor)
    names.sort(reverse=True)
    return names


def _from_key(key: bytes) -> bytes:
    return path_bytes(key.decode("utf-8", "surrogatepass"))


def _version(found: os.stat_result) -> str:
    # Neither device nor inode: both may be numbers of this host or this mount only, and plan and pack may run on two.
    return f"{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_size}"


def no_version(where: str, file: SourceFile, expected: str, found: str) -> SourceFault:
    """What to raise where ``landing.without_version`` is ``refuse``."""
    return SourceFault(
        f"file {file.path[:200]!a} in {where} has no version by which a change would be seen",
        expected=expected,
        found=found,
        next_step="set landing.without_version to read_twice, or let files be written where they get a version",
        retryable=False,
        file=ascii(file.path[:200]),
    )


def changed_while_read(where: str, file: PlannedFile, first: str, second: str) -> SourceChanged:
    """Two readings differ."""
    return SourceChanged(
        f"file {file.path!a} in {where} changed while it was read",
        expected=f"SHA-256 {first} also when it is read a second time",
        found=f"SHA-256 {second}",
        next_step="let the files rest, then submit the job again",
        file=ascii(file.path),
    )


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFREG: "regular file"}
    return kinds.get(stat.S_IFMT(mode), "device or other")
