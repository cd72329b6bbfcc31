"""Pack files into a datablock: one pass, bounded memory, the same bytes every time.

What overlaps in threads: a reader (bytes of files, their SHA-256, tar framing), two compressors (members), a collector
(SHA-256 of the datablock), and whoever iterates the result (the upload). hashlib and ISA-L let go of the GIL.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

from archiver.datablock import tar
from archiver.datablock.files import PlannedFile
from archiver.datablock.manifest import ManifestFooter, ManifestHeader, ManifestWriter
from archiver.datablock.members import compressor
from archiver.datablock.plan import Plan
from archiver.errors import ChecksumDiffers, OwnFault, SourceChanged
from archiver.progress import Progress

Buffer: TypeAlias = bytes | bytearray | memoryview
FileBytes: TypeAlias = tuple[PlannedFile, Iterable[Buffer]]

BUFFERS = 4
"""Members in work at a time, each of ``member_bytes``."""
COMPRESSORS = 2
"""Compressing detector data takes 2.5 times as long as hashing it."""
AHEAD = 2
"""Compressed members that wait for the upload."""
WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class PackResult:
    """What was packed. Sizes in bytes; ``size_bytes`` is the plain bytes of the files alone."""

    size_bytes: int
    packed_bytes: int
    files: int
    sha256: str


def pack(files: Iterable[FileBytes], *, plan: Plan, n: int, progress: Progress) -> Packed:
    """Datablock ``n`` of ``plan``, to be iterated once for its bytes.

    Iterating raises ``SourceChanged`` if a file gives another number of bytes than planned, ``ChecksumDiffers`` against
    the catalogue's checksum, ``Stopped`` from ``progress``, and whatever ``files`` raises.
    """
    return Packed(files, plan, n, progress)


class Packed:
    """The bytes of a datablock; after the last of them, ``result`` and ``manifest``."""

    def __init__(self, files: Iterable[FileBytes], plan: Plan, n: int, progress: Progress) -> None:
        self._files = files
        self._plan = plan
        self._n = n
        self._progress = progress
        self._stop = threading.Event()
        self._free: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._members: queue.Queue[Future[bytes] | BaseException | None] = queue.Queue(BUFFERS + 1)
        self._out: queue.Queue[bytes | BaseException | None] = queue.Queue(AHEAD)
        header = ManifestHeader(plan.pid, n, plan.plan_id, plan.format, plan.level, plan.member_bytes)
        self._writer = ManifestWriter(header)
        self._sizes: array[int] = array("Q")
        self._compress = compressor(plan.format, plan.level)
        self._sum = hashlib.sha256()
        self._count = self._plain = self._position = 0
        self._result: PackResult | None = None
        self._manifest: bytes | None = None

    @property
    def result(self) -> PackResult:
        """What was packed; raises ``OwnFault`` before the last byte was taken."""
        if self._result is None:
            raise OwnFault("a datablock was not packed to its end", retryable=False)
        return self._result

    @property
    def manifest(self) -> bytes:
        """Its manifest; raises ``OwnFault`` before the last byte was taken."""
        if self._manifest is None:
            raise OwnFault("a datablock was not packed to its end", retryable=False)
        return self._manifest

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(BUFFERS):
            self._free.put(bytearray(self._plan.member_bytes))
        compressors = ThreadPoolExecutor(COMPRESSORS, f"pack-{self._n}-compress")
        threads = [
            threading.Thread(target=self._read, args=[compressors], name=f"pack-{self._n}-read", daemon=True),
            threading.Thread(target=self._collect, name=f"pack-{self._n}-collect", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            while True:
                item = self._out.get()
                if item is None:
                    break
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._stop.set()
            compressors.shutdown(cancel_futures=True)
            for thread in threads:
                thread.join()
        packed = sum(self._sizes)
        sha256 = self._sum.hexdigest()
        footer = ManifestFooter(self._count, self._plain, self._position, packed, len(self._sizes), sha256)
        self._manifest = self._writer.finish(self._sizes, footer)
        self._result = PackResult(self._plain, packed, self._count, sha256)

    # --- reader ---------------------------------------------------------------------------------------------------

    def _read(self, compressors: ThreadPoolExecutor) -> None:
        try:
            framing = _Framing(self, compressors)
            for file, chunks in self._files:
                self._one(file, chunks, framing)
            framing.write(tar.END_OF_ARCHIVE)
            framing.close()
            self._position = framing.position
            self._hand(self._members, None)
        except BaseException as error:  # noqa: BLE001  carried to the thread that iterates
            self._hand(self._members, error)
        finally:
            close = getattr(self._files, "close", None)
            if close is not None:
                close()

    def _one(self, file: PlannedFile, chunks: Iterable[Buffer], framing: _Framing) -> None:
        offset = framing.position
        framing.write(tar.header(file))
        own = hashlib.sha256()
        theirs = _catalogue_hash(file, own)
        size = 0
        for chunk in chunks:
            size += len(chunk)
            if size > file.size:
                break
            own.update(chunk)
            if theirs is not None and theirs is not own:
                theirs.update(chunk)
            framing.write(chunk)
            self._progress.advance(len(chunk))
        if size != file.size:
            raise SourceChanged(
                f"file {file.path!a} changed while it was read",
                expected=f"{file.size} B",
                found=f"{'more than ' if size > file.size else ''}{min(size, file.size)} B",
                next_step="let the files rest, then submit the job again",
                dataset=self._plan.pid,
                datablock=self._n,
                file=ascii(file.path),
            )
        if theirs is not None and file.chk is not None and theirs.hexdigest() != file.chk.strip().lower():
            raise ChecksumDiffers(
                f"file {file.path!a} has not the checksum that the catalogue gives",
                expected=f"{file.chk_alg} {file.chk}"[:200],
                found=f"{file.chk_alg} {theirs.hexdigest()}",
                next_step="find out which of the two is right, correct it, then submit the job again",
                dataset=self._plan.pid,
                datablock=self._n,
                file=ascii(file.path),
            )
        framing.write(tar.padding(size))
        self._writer.add(file, own.hexdigest(), offset, offset // self._plan.member_bytes)
        self._count += 1
        self._plain += size
        self._progress.advance(0, 1)

    # --- compressors and collector ----------------------------------------------------------------------------------

    def compress(self, buffer: bytearray, size: int) -> bytes:
        """The member of the first ``size`` bytes of ``buffer``, which is then free again."""
        with memoryview(buffer)[:size] as plain:
            member = self._compress(plain)
        self._free.put(buffer)
        return member

    def _collect(self) -> None:
        try:
            while True:
                item = self._take(self._members)
                if item is None or isinstance(item, BaseException):
                    self._hand(self._out, item)
                    return
                member = item.result()
                self._sum.update(member)
                self._sizes.append(len(member))
                self._hand(self._out, member)
        except BaseException as error:  # noqa: BLE001  carried to the thread that iterates
            self._hand(self._out, error)

    # --- hand-over between threads: gives up when the one who iterates has gone -------------------------------------

    def _hand(self, to: queue.Queue[Any], item: object) -> None:
        while not self._stop.is_set():
            try:
                to.put(item, timeout=WAIT_SECONDS)
            except queue.Full:
                continue
            return

    def _take(self, source: queue.Queue[Any]) -> Any:
        while not self._stop.is_set():
            try:
                return source.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                continue
        return None

    def free_buffer(self) -> bytearray:
        """An empty member buffer; raises ``OwnFault`` when the one who iterates has gone."""
        while not self._stop.is_set():
            try:
                return self._free.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                continue
        raise OwnFault("packing was given up")

    def member(self, member: Future[bytes]) -> None:
        """The next member of the datablock, perhaps still in work."""
        self._hand(self._members, member)


class _Framing:
    """Collects the tar stream into member buffers of exactly ``member_bytes``, the last one shorter."""

    def __init__(self, packed: Packed, compressors: ThreadPoolExecutor) -> None:
        self._packed = packed
        self._compressors = compressors
        self._buffer = packed.free_buffer()
        self._used = 0
        self.position = 0

    def write(self, data: Buffer) -> None:
        """Append to the tar stream."""
        size, used = len(data), self._used
        self.position += size
        if used + size <= len(self._buffer):
            self._buffer[used : used + size] = data
            self._used = used + size
            return
        view = memoryview(data)
        while len(view):
            room = len(self._buffer) - self._used
            if room == 0:
                self.close()
                self._buffer, self._used = self._packed.free_buffer(), 0
                room = len(self._buffer)
            piece = view[:room]
            self._buffer[self._used : self._used + len(piece)] = piece
            self._used += len(piece)
            view = view[len(piece) :]

    def close(self) -> None:
        """Hand the buffer over as it is."""
        self._packed.member(self._compressors.submit(self._packed.compress, self._buffer, self._used))


def _catalogue_hash(file: PlannedFile, own: Any) -> Any:
    """A hash of the catalogue's algorithm, ``own`` if it is SHA-256; None for no checksum or none that hashlib has."""
    if not file.chk or not file.chk_alg:
        return None
    name = _ALGORITHMS.get(_plain(file.chk_alg))
    if name == own.name:
        return own
    return hashlib.new(name, usedforsecurity=False) if name is not None else None


def _plain(algorithm: str) -> str:
    return "".join(letter for letter in algorithm.lower() if letter.isalnum())


_ALGORITHMS = {_plain(name): name for name in sorted(hashlib.algorithms_guaranteed) if not name.startswith("shake")}
"""Spelling as catalogues have it (``SHA-256``, ``sha3_256``), and hashlib's name. Only those that every Python has."""
