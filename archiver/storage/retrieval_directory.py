"""A directory as retrieval target: a dataset's files below ``<root>/<path>/<pid>/``, with times and modes, never clobbering.

Trusted is the configured root; what lies below it belongs to users, who may change it while we write. So every directory is
opened with ``openat2(2)`` beneath the root, following no symbolic link, and files are made relative to open directories.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType

from archiver.datablock.files import check_path
from archiver.datablock.manifest import ManifestFile
from archiver.datablock.tar import seconds
from archiver.errors import ArchiverError, DestinationRefused, TargetDiffers, TargetFault, TargetFull
from archiver.names import entry_bytes, path_bytes
from archiver.pids import pid_path
from archiver.progress import Progress
from archiver.settings import RetrievalSettings
from archiver.storage.direct_write import publish, reserve
from archiver.storage.directory import open_beneath
from archiver.storage.targets import Delivered, Together, check_length

MARKER = ".archiver-retrieval.json"
"""In each root, written by ``archiver setup``: an unmounted mount point is no place for anybody's data."""
READ_BYTES = 2 * 2**20
RESERVE_FROM = 2**20
"""Files from this size on have their space reserved before the first byte."""
OPEN_FOLDERS = 64
THREADS = 8
MOST_FILES = 64
"""Files written and not yet durable under their names, per sink."""
AHEAD_BYTES = 256 * 2**20
"""Bytes in such files: they lie in the system's cache, not in ours."""
DEFAULT_MODE = 0o644
_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = (errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.EISDIR, errno.ENXIO)
NO_SUCH_NAME = (errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG)
"""What a file system says to a name that it can never have, such as one with a colon on FAT or NTFS."""
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_PORTABLE_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
"""In names that every file system takes, if no dot comes last."""
PORTABLE_NAME_BYTES = 143
"""eCryptfs has the shortest names in use."""


class RetrievalDirectory:
    """Implements ``Target``. ``root`` is one of ``retrieval.roots``, ``path`` the rest, which a user named.

    Raises ``DestinationRefused`` for any other root, and for a path that climbs.
    """

    def __init__(self, root: str, path: str, settings: RetrievalSettings) -> None:
        self.where = f"file://{root}/{path}".rstrip("/") + "/"
        if Path(root) not in settings.roots or "\0" in path or ".." in PurePosixPath(path).parts:
            raise self._refused("a path below one of retrieval.roots, without '..'", ascii(self.where[:200]))
        self.root = root
        self._path = str(PurePosixPath(path.strip("/")))
        self._settings = settings

    def path(self, pid: str, name: str) -> str:
        """Where a file of the dataset goes, below the root."""
        return str(PurePosixPath(self._path) / pid_path(pid)) + f"/{name}"

    def refuses(self, pid: str, name: str) -> str:
        """As ``Target``: what a file system takes is seen when it is tried."""
        return ""

    def check_space(self, need_bytes: int) -> None:
        """As ``Target``: what is free for us and not reserved by the settings must suffice."""
        with self._faults(), self._rooted() as root:
            found = os.fstatvfs(root)
        free = found.f_bavail * found.f_frsize
        total = found.f_blocks * found.f_frsize
        if not total:
            # Some file systems do not say how large they are: a full one is met by writing.
            return
        kept = self._settings.reserve_bytes(total)
        if need_bytes > free - kept:
            ever = need_bytes <= total - kept
            raise TargetFull(
                f"{self.where} has no room for what is to be retrieved",
                expected=f"{need_bytes} B free beside {kept} B (retrieval.reserve)",
                found=f"{free} B free of {total} B",
                next_step="waits until there is room" if ever else "retrieve to a larger file system",
                retryable=ever,
            )

    def sink(self, pid: str, selection: str, attempt: str, progress: Progress, *, piece: str) -> DirectorySink:
        """As ``Target``."""
        work, own = (
            hashlib.sha256(json.dumps(names).encode()).hexdigest() for names in ([pid, selection, piece], [attempt])
        )
        with self._faults(), self._rooted() as root:
            folder = _Folders(root).make(self._below(pid))
        return DirectorySink(self, folder, f".archiver.{work[:20]}.", f"{own[:12]}.", progress)

    def delivered(self, pid: str, files: Iterable[ManifestFile]) -> Iterator[Delivered]:
        """As ``Target``."""
        for file in files:
            check_path(file.path)
            with self._faults(file), self._rooted() as root:
                descriptor = open_beneath(root, path_bytes(self.path(pid, file.path)), _READ)
                found = os.fstat(descriptor)
                os.close(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
                raise TargetFault(
                    f"file {file.path[:200]!a} is not in {self.where} any more",
                    expected=f"a file of {file.size} B",
                    found=f"{_kind(found.st_mode)} of {found.st_size} B",
                    next_step="retried; see who else writes there",
                )
            yield Delivered(file.path, self.path(pid, file.path), file.size, file.sha256)

    def _below(self, pid: str) -> bytes:
        return path_bytes(str(PurePosixPath(self._path) / pid_path(pid)))

    @contextmanager
    def _rooted(self) -> Iterator[int]:
        # The operator's own path: links are followed up to here, and only here.
        root = os.open(self.root, _FOLDER)
        try:
            if not is_marked(root):
                raise TargetFault(
                    f"{self.root} is not marked as a directory for retrieved data",
                    expected=f"{MARKER} there, which archiver setup writes",
                    found="none",
                    next_step="mount it; a new one is prepared by  archiver setup",
                )
            yield root
        finally:
            os.close(root)

    @contextmanager
    def _faults(self, file: ManifestFile | None = None) -> Iterator[None]:
        """What the system says as an error of the right kind; of the way to the dataset's folder, without a file."""
        try:
            yield
        except OSError as error:
            raise self.fault(error, file) from None

    def fault(self, error: OSError, file: ManifestFile | None = None) -> ArchiverError:
        """The error to raise for what the system says."""
        if error.errno in _FULL:
            return TargetFull(
                f"{self.where} is full",
                found=error.strerror,
                next_step="waits until there is room, or quota",
            )
        if error.errno in _ELSEWHERE:
            if file is None:
                return self._refused("folders, and no symbolic link below the root", error.strerror or "")
            return self.differs(file, f"what is in the way: {error.strerror}")
        return TargetFault(
            f"{self.where} cannot be written: {error.strerror}",
            expected="a directory that the worker's user may write",
            found=f"errno {error.errno}" + (f" at {ascii(error.filename)[:200]}" if error.filename else ""),
            next_step="retried; check the mount and the rights of the worker's user",
            file=ascii(file.path[:200]) if file else None,
        )

    def differs(self, file: ManifestFile, found: str) -> TargetDiffers:
        """Something else lies there."""
        return TargetDiffers(
            f"file {file.path[:300]!a} cannot be put into {self.where}: something else lies there",
            expected=f"nothing, or a file of {file.size} B with SHA-256 {file.sha256}",
            found=found,
            next_step="move it away, or retrieve to another directory, then submit the job again",
            file=ascii(file.path[:300]),
        )

    def no_name(self, file: ManifestFile, found: str) -> DestinationRefused:
        """The file system there can never have this name."""
        return DestinationRefused(
            f"file {file.path[:300]!a} cannot have its name in {self.where[:300]!a}",
            expected="a file system that takes every name, as the archive does",
            found=found,
            next_step="retrieve it to another directory, or by links, then submit the job again",
            file=ascii(file.path[:300]),
        )

    def _refused(self, expected: str, found: str) -> DestinationRefused:
        return DestinationRefused(
            f"retrieved data may not go to {self.where[:300]!a}",
            expected=expected,
            found=found,
            next_step="submit the job with another destinationPath; retrieval.roots says which are allowed",
        )


class _Folders:
    """Some open directories beneath ``base``, made durable when they are let go, after ``before`` was called.

    What is named ``left_over`` there when one is opened is removed: nothing of ours is in work then.
    """

    def __init__(self, base: int, left_over: str = "", before: Callable[[], None] = lambda: None) -> None:
        self._base = base
        self._before = before
        self._left_over = path_bytes(left_over)
        self._open: dict[bytes, int] = {}

    def make(self, path: bytes) -> int:
        """Open a directory, making what is missing on the way, durably. The caller closes it."""
        try:
            return open_beneath(self._base, path, _FOLDER)
        except FileNotFoundError:
            pass
        at = os.dup(self._base)
        try:
            for segment in path.split(b"/"):
                with suppress(FileExistsError):
                    os.mkdir(segment, dir_fd=at)
                    sync_folder(at)
                below = open_beneath(at, segment, _FOLDER)
                os.close(at)
                at = below
        except BaseException:
            os.close(at)
            raise
        return at

    def get(self, path: bytes) -> int:
        """An open directory; it stays ours."""
        if path in self._open:
            return self._open[path]
        if len(self._open) >= OPEN_FOLDERS:
            self._before()
            self.close(durable=True)
        folder = self.make(path or b".")
        self._open[path] = folder
        if self._left_over:
            self._sweep(folder)
        return folder

    def close(self, *, durable: bool) -> None:
        """Let all go, ``durable`` once all that was made in them is there."""
        try:
            for folder in self._open.values() if durable else ():
                sync_folder(folder)
        finally:
            while self._open:
                os.close(self._open.popitem()[1])

    def _sweep(self, folder: int) -> None:
        """Remove what another try of the same work left: with its file gone, it cannot publish any more either."""
        with os.scandir(folder) as entries:
            names = [entry_bytes(entry) for entry in entries]
        for name in names:
            if name.startswith(self._left_over):
                try:
                    os.unlink(name, dir_fd=folder)
                except FileNotFoundError:
                    pass
                except IsADirectoryError:
                    _remove_folder(folder, name)


@dataclass
class _Partial:
    """A file in work: written under ``name`` in the open directory ``folder``, which is its own."""

    file: ManifestFile
    folder: int
    descriptor: int
    name: bytes
    final: bytes

    def close(self) -> None:
        """Close the file, once: what comes after a first try is another's descriptor."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class DirectorySink:
    """Implements ``TargetSink``: temporary names beside the final ones, fsync, then a link that clobbers nothing."""

    def __init__(self, target: RetrievalDirectory, base: int, left_over: str, own: str, progress: Progress) -> None:
        self.files = self.skipped = 0
        self._target = target
        self._base = base
        self._prefix = path_bytes(left_over + own)
        self._progress = progress
        self._together = Together(
            "publish", threads=THREADS, most_bytes=AHEAD_BYTES, most=MOST_FILES, progress=progress
        )
        self._folders = _Folders(base, left_over, self._together.drain)
        self._count = 0
        self._folds: bool | None = None
        """Whether the file system takes names for others; not known yet."""
        self._taken: set[str] = set()
        """What is unusual in names that the file system was seen to take."""
        self._written = 0
        self._partial: _Partial | None = None

    def __enter__(self) -> DirectorySink:
        return self

    def begin(self, file: ManifestFile) -> bool:
        """As ``FileSink``. Raises ``TargetDiffers`` if something else lies there."""
        check_path(file.path)
        below, _, final = path_bytes(file.path).rpartition(b"/")
        self._count += 1
        name = self._prefix + b"%d" % self._count
        try:
            folder = self._folder_of(file, below)
            self._check_name(file, folder, final)
            if self._there(folder, final, file):
                self._check_exact(file, folder)
                self.skipped += 1
                return False
            descriptor = os.open(name, _CREATE, 0o600, dir_fd=folder)
            try:
                if file.size >= RESERVE_FROM:
                    reserve(descriptor, file.size)
                self._partial = _Partial(file, os.dup(folder), descriptor, name, final)
            except BaseException:
                os.close(descriptor)
                os.unlink(name, dir_fd=folder)
                raise
        except OSError as error:
            raise self._target.fault(error, file) from None
        self._written = 0
        return True

    def _check_exact(self, file: ManifestFile, folder: int) -> None:
        """Raises ``DestinationRefused`` if what is there under the file's name has another name, for the file system the same:
        where ``a.txt`` is taken for ``A.txt``, only one of the two can be there.
        """
        if self._folds is None:
            self._folds = self._takes_names_for_others(folder)
        if not self._folds:
            return
        at = os.dup(self._base)
        try:
            for segment in path_bytes(file.path).split(b"/"):
                with os.scandir(at) as entries:
                    exact = any(entry_bytes(entry) == segment for entry in entries)
                if not exact:
                    raise self._target.no_name(file, "one that takes it for another name, which is there")
                with suppress(NotADirectoryError):
                    below = open_beneath(at, segment, _FOLDER)
                    os.close(at)
                    at = below
        finally:
            os.close(at)

    def _takes_names_for_others(self, folder: int) -> bool:
        """Whether letters of other case, or other Unicode forms of a letter, are the same name there."""
        name = self._prefix + b"%s"
        tried: list[bytes] = []
        try:
            for letter in (b"a", "\u00e9".encode()):
                with suppress(OSError):
                    os.close(os.open(name % letter, _CREATE, 0o600, dir_fd=folder))
                    tried.append(name % letter)
            for other in (b"A", "\u00c9".encode(), "e\u0301".encode()):
                with suppress(OSError):
                    os.stat(name % other, dir_fd=folder, follow_symlinks=False)
                    return True
            return False
        finally:
            for made in tried:
                os.unlink(made, dir_fd=folder)

    def _folder_of(self, file: ManifestFile, below: bytes) -> int:
        try:
            return self._folders.get(below)
        except OSError as error:
            if error.errno in NO_SUCH_NAME:
                raise self._target.no_name(file, f"{error.strerror}, at a folder") from None
            raise

    def _check_name(self, file: ManifestFile, folder: int, name: bytes) -> None:
        """Raises ``DestinationRefused`` if nothing can have this name there. Tried before a byte is written, in a folder of our
        own, and once for each unusual character.
        """
        unusual = set(name.decode("utf-8")) - _PORTABLE_CHARACTERS
        unusual |= {"last " + name[-1:].decode("ascii", "ignore")} if name.endswith((b".", b" ")) else set()
        unusual |= {"long"} if len(name) > PORTABLE_NAME_BYTES else set()
        if unusual <= self._taken:
            return
        trying = self._prefix + b"name"
        os.mkdir(trying, dir_fd=folder)
        try:
            inner = open_beneath(folder, trying, _FOLDER)
            try:
                os.close(os.open(name, _CREATE, 0o600, dir_fd=inner))
            finally:
                os.close(inner)
        except OSError as error:
            if error.errno in NO_SUCH_NAME:
                raise self._target.no_name(file, error.strerror or "") from None
            raise
        finally:
            _remove_folder(folder, trying)
        self._taken |= unusual

    def data(self, chunk: memoryview) -> None:
        """As ``FileSink``."""
        partial = self._partial
        assert partial is not None  # noqa: S101
        self._written += len(chunk)
        check_length(partial.file, self._written)
        try:
            while len(chunk):
                chunk = chunk[os.write(partial.descriptor, chunk) :]
        except OSError as error:
            raise self._target.fault(error, partial.file) from None

    def commit(self) -> None:
        """As ``FileSink``. The file is there when the context is left, or earlier."""
        partial = self._partial
        assert partial is not None  # noqa: S101
        check_length(partial.file, self._written, done=True)
        # Ours until it is handed over: waiting for room may end in an error.
        self._together.room(partial.file.size)
        self._partial = None
        publishing = self._together.submit(partial.file.size, self._publish, partial)
        publishing.add_done_callback(lambda done: self._discard(partial) if done.cancelled() else None)
        self.files += 1

    def abort(self) -> None:
        """As ``FileSink``."""
        partial, self._partial = self._partial, None
        if partial is not None:
            self._discard(partial)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._together.drain()
        finally:
            self._together.close()
            self.abort()
            try:
                with self._target_faults():
                    self._folders.close(durable=kind is None)
            finally:
                os.close(self._base)

    @contextmanager
    def _target_faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._target.fault(error) from None

    def _publish(self, partial: _Partial) -> None:
        """Runs in a thread. After a failed fsync or close the file is given up: its temporary name goes, nothing was seen."""
        file = partial.file
        try:
            _set_time_and_mode(partial.descriptor, file)
            os.fsync(partial.descriptor)
            partial.close()
            try:
                publish(partial.name, partial.final, partial.folder)
            except FileExistsError:
                # Another retrieval of the same file was faster; or it is not the same.
                if not self._there(partial.folder, partial.final, file):
                    raise self._target.differs(file, "a file that comes and goes") from None
                self._check_exact(file, partial.folder)
        except OSError as error:
            raise self._target.fault(error, file) from None
        finally:
            self._discard(partial)

    def _there(self, folder: int, final: bytes, file: ManifestFile) -> bool:
        """Whether the file is there already, by its bytes. Raises ``TargetDiffers`` if something else is."""
        try:
            descriptor = os.open(final, _READ, dir_fd=folder)
        except FileNotFoundError:
            return False
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise self._target.differs(file, f"a {_kind(found.st_mode)}")
            if found.st_size != file.size:
                raise self._target.differs(file, f"a file of {found.st_size} B")
            digest = hashlib.sha256()
            while chunk := os.read(descriptor, READ_BYTES):
                digest.update(chunk)
                self._progress.note("comparing with what is there")
            if digest.hexdigest() != file.sha256:
                raise self._target.differs(file, f"a file of {found.st_size} B with SHA-256 {digest.hexdigest()}")
            return True
        finally:
            os.close(descriptor)

    def _discard(self, partial: _Partial) -> None:
        """Its temporary name goes; after publishing, the file has its own."""
        with suppress(OSError):
            os.unlink(partial.name, dir_fd=partial.folder)
        with suppress(OSError):
            partial.close()
        os.close(partial.folder)


def _set_time_and_mode(descriptor: int, file: ManifestFile) -> None:
    """As far as the file system has them: a file without its time or mode is whole all the same."""
    when = seconds(file.time) * 10**9
    # Never set-user-id, set-group-id or sticky: the file is the worker's user's, not its former owner's.
    mode = (DEFAULT_MODE if file.mode is None else file.mode) & 0o777
    with _where_supported(errno.EPERM):
        if when:
            os.utime(descriptor, ns=(when, when))
    with _where_supported(errno.EPERM):
        os.fchmod(descriptor, mode)


def sync_folder(folder: int) -> None:
    """Make an open directory's entries durable, where its file system can. Raises ``OSError``."""
    with _where_supported():
        os.fsync(folder)


@contextmanager
def _where_supported(*more: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (*more, *_NOT_SUPPORTED):
            raise


def _remove_folder(at: int, name: bytes) -> None:
    """A folder of ours and the files in it, as far as that can be done."""
    with suppress(OSError):
        folder = open_beneath(at, name, _FOLDER | os.O_NOFOLLOW)
        try:
            with os.scandir(folder) as entries:
                names = [entry_bytes(entry) for entry in entries]
            for inner in names:
                os.unlink(inner, dir_fd=folder)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=at)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "FIFO", stat.S_IFREG: "file"}
    return kinds.get(stat.S_IFMT(mode), "device or other")


def is_marked(root: int | Path) -> bool:
    """Whether a root, or the directory open as this descriptor, carries the marker. Raises ``OSError``."""
    try:
        name, where = (MARKER, root) if isinstance(root, int) else (str(root / MARKER), None)
        return stat.S_ISREG(os.stat(name, dir_fd=where, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def mark(root: Path, *, dry_run: bool) -> bool:
    """Write the marker into a root, which must exist; returns whether there was none. Raises ``TargetFault``."""
    try:
        if not root.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if is_marked(root):
            return False
        if not dry_run:
            descriptor = os.open(root / MARKER, _CREATE, 0o644)
            try:
                os.write(descriptor, b'{"version": 1}\n')
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            folder = os.open(root, _FOLDER)
            try:
                sync_folder(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise TargetFault(
            f"directory {root} of retrieval.roots cannot be marked: {error.strerror}",
            expected="a mounted directory that this user may write to",
            found=f"errno {error.errno}",
            next_step="mount it, or correct retrieval.roots",
            retryable=False,
        ) from None
    return True
