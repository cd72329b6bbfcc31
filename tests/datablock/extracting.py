"""What stands on both sides of an extraction: readers that keep their word and no more, and a sink that holds us to ours."""

from __future__ import annotations

import gzip
import hashlib
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from archiver.datablock import members
from archiver.datablock.extract import Extracted, extract, extract_files, pass_through
from archiver.datablock.files import PlannedFile
from archiver.datablock.manifest import ManifestFile, ManifestFooter, ManifestHeader, ManifestWriter
from tests.datablock.making import TIME

MEMBER_BYTES = 2**16


class Sink:
    """Keeps what was committed; fails the test where the calls come in another order, or from two threads."""

    def __init__(
        self, unwanted: Iterable[str] = (), fail: Callable[[str, str], None] = lambda call, path: None
    ) -> None:
        self.committed: dict[str, bytes] = {}
        self.begun: list[str] = []
        self.aborted: list[str] = []
        self.calls = 0
        self._unwanted = set(unwanted)
        self._fail = fail
        self._path: str | None = None
        self._parts: list[bytes] = []
        self.threads: set[int] = set()

    def begin(self, file: ManifestFile) -> bool:
        self._called()
        assert self._path is None
        self._fail("begin", file.path)
        self.begun.append(file.path)
        if file.path in self._unwanted:
            return False
        self._path, self._parts = file.path, []
        return True

    def data(self, chunk: memoryview) -> None:
        self._called()
        assert self._path is not None
        self._fail("data", self._path)
        self._parts.append(bytes(chunk))

    def commit(self) -> None:
        self._called()
        assert self._path is not None
        self._fail("commit", self._path)
        assert self._path not in self.committed
        self.committed[self._path] = b"".join(self._parts)
        self._path = None

    def abort(self) -> None:
        # Nobody is told of an error in here, so that it is kept for the test to see.
        self.aborted.append(self._path or "nothing was begun")
        self._called()
        self._path = None

    @property
    def left_open(self) -> bool:
        return self._path is not None

    def _called(self) -> None:
        self.calls += 1
        self.threads.add(threading.get_ident())
        assert len(self.threads) == 1


class Source:
    """A datablock to be read: a chunk turns into rubbish when the next but one is asked for. Counts what was read."""

    def __init__(self, data: bytes, chunk: int = 40_000) -> None:
        self.data = data
        self.chunk = chunk
        self.ranges: list[tuple[int, int]] = []
        self.read_bytes = 0
        self.closed = True

    def whole(self) -> Chunks:
        return Chunks(self, self._chunks(0, len(self.data)))

    def range(self, offset: int, size: int) -> Chunks:
        self.ranges.append((offset, size))
        return Chunks(self, self._chunks(offset, size))

    def _chunks(self, offset: int, size: int) -> Iterator[memoryview]:
        lent: list[bytearray] = []
        for at in range(offset, min(offset + size, len(self.data)), self.chunk):
            lent.append(bytearray(self.data[at : min(at + self.chunk, offset + size)]))
            if len(lent) == 3:
                spoiled = lent.pop(0)
                spoiled[:] = b"\xee" * len(spoiled)
            self.read_bytes += len(lent[-1])
            yield memoryview(lent[-1])


class Chunks:
    """Closed at its end, or by ``close``, but not by being forgotten."""

    def __init__(self, source: Source, chunks: Iterator[memoryview]) -> None:
        self._source, self._chunks = source, chunks
        source.closed = False

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> memoryview:
        try:
            return next(self._chunks)
        except BaseException:
            self._source.closed = True
            raise

    def close(self) -> None:
        self._source.closed = True


def nothing(size: int) -> None:
    """No progress."""


def take_all(data: bytes, manifest: bytes, sink: Sink | None = None) -> tuple[Sink, Extracted]:
    sink = sink or Sink()
    return sink, extract(Source(data).whole, manifest, sink, progress=nothing)


def take(
    data: bytes, manifest: bytes, wanted: Iterable[str], sink: Sink | None = None
) -> tuple[Sink, Extracted, Source]:
    sink, source, names = sink or Sink(), Source(data), set(wanted)
    return sink, extract_files(source.range, manifest, names.__contains__, sink, progress=nothing), source


def hand_on(data: bytes, manifest: bytes) -> tuple[bytes, Extracted]:
    out = bytearray()
    result = pass_through(Source(data).whole, manifest, out.extend, progress=nothing)
    return bytes(out), result


def forge(
    tar: bytes,
    files: list[tuple[str, int, int, bytes]],
    *,
    format: str = "tar.gz",
    footer: dict[str, Any] | None = None,
    compress: Callable[[int, memoryview], bytes] | None = None,
) -> tuple[bytes, bytes]:
    """Any tar as a datablock, and a manifest that says what it likes: path, size, offset and content of each file."""
    honest = members.compressor(format, 1)
    pieces = [memoryview(tar)[at : at + MEMBER_BYTES] for at in range(0, len(tar), MEMBER_BYTES)]
    packed = [compress(k, piece) if compress else honest(piece) for k, piece in enumerate(pieces)]
    data = b"".join(packed)
    writer = ManifestWriter(ManifestHeader("20.500.1/x", 1, "0" * 32, format, 1, MEMBER_BYTES))
    for path, size, offset, content in files:
        file = PlannedFile(path, size, TIME, "v")
        writer.add(file, hashlib.sha256(content).hexdigest(), offset, offset // MEMBER_BYTES)
    sizes = array("Q", map(len, packed))
    sums = {
        "files": len(files),
        "size_bytes": sum(size for _, size, _, _ in files),
        "tar_bytes": len(tar),
        "packed_bytes": len(data),
        "members": len(sizes),
        "sha256": hashlib.sha256(data).hexdigest(),
        **(footer or {}),
    }
    return data, writer.finish(sizes, ManifestFooter(**sums))


def same_lines(one: bytes, other: bytes) -> bool:
    """Do two manifests say the same? A gzip header has bits that say nothing of the content."""
    return gzip.decompress(one) == gzip.decompress(other)
