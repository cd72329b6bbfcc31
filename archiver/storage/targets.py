"""Where retrieved data goes, behind one protocol: a bucket, or a directory (docs/architecture.md).

A file appears under its name only whole and with the bytes of its manifest; what is already there so is not written again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import ParamSpec, Protocol

from archiver.datablock.manifest import ManifestFile
from archiver.datablock.sink import FileSink
from archiver.errors import IntegrityMismatch
from archiver.progress import Progress

P = ParamSpec("P")
WAIT_SECONDS = 1.0
"""How long one wait lasts before progress is told, which may stop it."""
STOP_SECONDS = 5.0
"""How long an aborted file waits for what is on its way."""


@dataclass(frozen=True)
class Delivered:
    """A file that is there. ``where``: its key in the bucket, or its path below the configured root."""

    name: str
    where: str
    size: int
    sha256: str


class TargetSink(FileSink, Protocol):
    """A sink in a context: left without an error, all that was committed is there, durable; else nothing is half there.

    ``skipped`` counts the files that were there already, ``files`` those written. What the context's end raises has its cause
    in the target.
    """

    files: int
    skipped: int

    def __enter__(self) -> TargetSink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Target(Protocol):
    """A place for retrieved data. Thread-safe; a sink belongs to one thread."""

    where: str
    """For messages."""

    def refuses(self, pid: str, name: str) -> str:
        """Why no file of this name can lie there, whatever is tried; empty if nothing is known against it."""
        ...

    def check_space(self, need_bytes: int) -> None:
        """Raises ``TargetFull`` unless so much more may be written now."""
        ...

    def sink(self, pid: str, selection: str, attempt: str, progress: Progress, *, piece: str) -> TargetSink:
        """Where files of a dataset go, unpacked or as datablocks (``whole``).

        ``selection`` and ``piece`` (the datablock) name the work, the same on every try; what a killed try of it left is
        removed. No two sinks of one piece may be at work at once; others may, also on the same files. ``attempt`` is
        another at every try.
        """
        ...

    def delivered(self, pid: str, files: Iterable[ManifestFile]) -> Iterator[Delivered]:
        """Each of these files where it now is. Raises ``TargetFault`` at the first that is not there in its size."""
        ...


def whole(name: str, size: int, sha256: str) -> ManifestFile:
    """A datablock as a file of its own, to be given to a sink."""
    return ManifestFile(name, size, sha256, "", 0, 0)


@contextmanager
def stream(sink: FileSink, file: ManifestFile) -> Iterator[Callable[[memoryview], None] | None]:
    """Write one file as it is: yields where its bytes go, or None if it is there already; visible when left without error.

    The bytes must have been checked before the context is left (``extract.pass_through`` does).
    """
    if not sink.begin(file):
        yield None
        return
    try:
        yield sink.data
    except BaseException:
        sink.abort()
        raise
    sink.commit()


def check_length(file: ManifestFile, written: int, *, done: bool = False) -> None:
    """Raises ``IntegrityMismatch`` for more bytes than the manifest's, or, when ``done``, for fewer."""
    if written > file.size or (done and written != file.size):
        raise IntegrityMismatch(
            f"file {file.path[:200]!a} is not as long as its manifest says",
            expected=f"{file.size} B",
            found=f"{written} B" if done else f"{written} B or more",
            next_step="archiver verify  says whether the LTS holds it",
            file=ascii(file.path[:200]),
            retryable=False,
        )


class Together:
    """Pieces of work in threads, so many and so many bytes at a time; the first error is raised by the next call.

    Whoever waits tells progress, which may raise ``Stopped``.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int,
        most_bytes: int,
        most: int,
        progress: Progress,
        waiting: str = "waiting for the retrieval target",
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most_bytes, self._most = most_bytes, most
        self._progress = progress
        self._waiting = waiting
        self._pending: deque[tuple[Future[object], int]] = deque()
        self._bytes = 0

    def submit(self, size: int, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Future[object]:
        """Hand over, once there is room beside what is in work."""
        self.room(size)
        future: Future[object] = self._pool.submit(work, *args, **kwargs)
        self._pending.append((future, size))
        self._bytes += size
        return future

    def room(self, size: int) -> None:
        """Wait until so much may be handed over."""
        while self._pending and (
            self._pending[0][0].done() or len(self._pending) >= self._most or self._bytes + size > self._most_bytes
        ):
            self._oldest()

    def drain(self) -> None:
        """Wait until all is done."""
        while self._pending:
            self._oldest()

    def _oldest(self) -> None:
        future, size = self._pending[0]
        while not wait([future], WAIT_SECONDS).done:
            self._progress.note(self._waiting)
        self._pending.popleft()
        self._bytes -= size
        # What was given up with its file has no result to look at.
        try:
            future.result()
        except CancelledError:
            pass

    def give_up(self, futures: Iterable[Future[object]]) -> None:
        """Do not begin these, and wait a little for those that are running; their errors are nobody's."""
        mine = set(futures)
        running = [future for future in mine if not future.cancel()]
        wait(running, STOP_SECONDS)
        kept = [(future, size) for future, size in self._pending if future not in mine]
        self._bytes = sum(size for _, size in kept)
        self._pending = deque(kept)

    def close(self) -> None:
        """Begin nothing more, and wait a little for what is running: whoever stops is not to hang with a server that hangs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future, _ in self._pending if not future.cancelled()], STOP_SECONDS)
