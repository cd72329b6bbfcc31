"""Verify a datablock against its manifest, in a process of its own: ``python -m archiver.datablock.verify``.

Reads past the page cache, hashes the whole in one thread and decodes in another, with another decoder than the packer's
(zlib-ng; zstandard), member by member: packed and plain size of every member, name, order, size, offset and SHA-256 of
every file, their exact number, the end of the archive, nothing behind (reliability-notes section 2, V1-V8).
"""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from archiver.datablock.manifest import ManifestFile, ManifestReader
from archiver.datablock.untar import TarDamaged, TarStream
from archiver.direct_io import PastCacheReader
from archiver.errors import IntegrityMismatch, LtsFault

PIECE = 1 << 20
"""Bytes decoded at a time: bounds memory whatever a member claims to hold."""


@dataclass(frozen=True)
class VerifyResult:
    """What was proved. ``level`` ``host``: the bytes came past this host's cache."""

    level: str
    how_read: str
    size_bytes: int
    packed_bytes: int
    files: int
    sha256: str


def verify(
    read: Callable[[], Iterable[memoryview]],
    manifest: bytes,
    *,
    progress: Callable[[int], None],
    how_read: Callable[[], str] = lambda: "given",
) -> VerifyResult:
    """Compare; a mismatch is looked at a second time, and both findings stand in the error. Changes nothing.

    Raises ``IntegrityMismatch`` (never retried by itself) and ``LtsFault`` for a read error, which is no mismatch.
    """
    first = _attempt(read, manifest, progress, how_read)
    if isinstance(first, VerifyResult):
        return first
    second = _attempt(read, manifest, progress, how_read)
    again = f"the same at the second reading: {second}" if isinstance(second, str) else "the second reading matched"
    raise IntegrityMismatch(
        "the datablock on the LTS does not match its manifest",
        expected="the bytes that were packed",
        found=f"{first}; {again}"[:900],
        next_step="it is set aside and made anew from the source; see the LTS's health",
        retryable=False,
    )


def _attempt(
    read: Callable[[], Iterable[memoryview]],
    manifest: bytes,
    progress: Callable[[int], None],
    how_read: Callable[[], str],
) -> VerifyResult | str:
    # The sizes of the members stand behind the files in the manifest, so it is read twice, streaming.
    scan = ManifestReader([manifest])
    footer = scan.read_footer()
    reader = ManifestReader([manifest])
    files = _Files(reader.files())
    try:
        sha256, packed = _pass(read(), scan.header.format, scan.member_sizes, scan.header.member_bytes, files, progress)
        files.close()
    except (TarDamaged, _Different) as error:
        return str(error)
    except OSError as error:
        raise LtsFault(
            f"the datablock cannot be read: {error.strerror or error}",
            found=f"errno {error.errno}",
            next_step="retried; see the LTS's health",
        ) from None
    if sha256 != footer.sha256 or packed != footer.packed_bytes:
        return f"SHA-256 {footer.sha256} of {footer.packed_bytes} B expected, found {sha256} of {packed} B"
    if (files.count, files.size_bytes) != (footer.files, footer.size_bytes):
        return f"{footer.files} files expected, found {files.count}"
    how = how_read()
    return VerifyResult("host", how, footer.size_bytes, packed, footer.files, sha256)


class _Different(Exception):
    """What was found is not what the manifest says."""


class _Files:
    """Compares the members with the manifest's files, in order."""

    def __init__(self, expected: Iterator[ManifestFile]) -> None:
        self._expected = expected
        self._file: ManifestFile | None = None
        self._hash = hashlib.sha256()
        self.count = self.size_bytes = 0

    def begin(self, path: str, size: int, offset: int) -> None:
        file = next(self._expected, None)
        if file is None or (file.path, file.size, file.offset) != (path, size, offset):
            wanted = f"{file.path!a} of {file.size} B at {file.offset}" if file else "the end"
            raise _Different(f"{wanted} expected, found {path[:200]!a} of {size} B at {offset}")
        self._file = file
        self._hash = hashlib.sha256()

    def data(self, chunk: memoryview) -> None:
        self._hash.update(chunk)

    def end(self) -> None:
        assert self._file is not None  # noqa: S101
        if self._hash.hexdigest() != self._file.sha256:
            raise _Different(
                f"file {self._file.path!a} with SHA-256 {self._file.sha256} expected, found {self._hash.hexdigest()}"
            )
        self.count += 1
        self.size_bytes += self._file.size

    def close(self) -> None:
        if (missing := next(self._expected, None)) is not None:
            raise _Different(f"{missing.path!a} expected, found the end")


def _pass(
    chunks: Iterable[memoryview],
    format: str,
    sizes: array[int],
    member_bytes: int,
    files: _Files,
    progress: Callable[[int], None],
) -> tuple[str, int]:
    """One reading: the whole is hashed here, in its own order; the decoder works in a thread beside."""
    whole = hashlib.sha256()
    packed = 0
    todo: queue.Queue[bytes | None] = queue.Queue(2)
    failed: list[BaseException] = []

    def decode() -> None:
        try:
            tar = TarStream(files)
            decoder = _DECODERS[format](sizes, member_bytes, tar)
            while (piece := todo.get()) is not None:
                decoder.feed(piece)
            decoder.close()
            tar.close()
        except BaseException as error:  # noqa: BLE001  carried to the thread that waits
            failed.append(error)
            while todo.get() is not None:
                pass

    thread = threading.Thread(target=decode, name="decode", daemon=True)
    thread.start()
    try:
        for chunk in chunks:
            # The reader reuses its buffer, so the decoder gets a copy.
            todo.put(bytes(chunk))
            whole.update(chunk)
            packed += len(chunk)
            progress(len(chunk))
    finally:
        todo.put(None)
        thread.join()
    if failed:
        raise failed[0]
    return whole.hexdigest(), packed


class _Members:
    """Cuts the packed stream where the manifest says that members begin, and decodes each for itself."""

    def __init__(self, sizes: array[int], member_bytes: int, tar: TarStream) -> None:
        self._sizes = sizes
        self._member_bytes = member_bytes
        self._tar = tar
        self._index = 0
        self._left = sizes[0] if sizes else 0
        self._begin()

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            if self._index >= len(self._sizes):
                raise _Different(f"nothing expected behind member {len(self._sizes)}, found more bytes")
            piece = view[: self._left]
            self._decode(piece)
            self._left -= len(piece)
            view = view[len(piece) :]
            if not self._left:
                self._end_member()

    def close(self) -> None:
        if self._index < len(self._sizes):
            raise _Different(f"{len(self._sizes)} members expected, found the end in member {self._index + 1}")

    def _end_member(self) -> None:
        self._finish()
        last = self._index == len(self._sizes) - 1
        if self._plain > self._member_bytes or (self._plain != self._member_bytes and not last):
            raise _Different(f"{self._member_bytes} B expected in member {self._index + 1}, found {self._plain} B")
        self._index += 1
        if self._index < len(self._sizes):
            self._left = self._sizes[self._index]
            self._begin()

    def _give(self, plain: bytes | memoryview) -> None:
        self._plain += len(plain)
        if self._plain > self._member_bytes:
            raise _Different(f"at most {self._member_bytes} B expected in member {self._index + 1}, found more")
        self._tar.feed(memoryview(plain))

    def _begin(self) -> None:
        self._plain = 0

    def _decode(self, piece: memoryview) -> None:
        self._give(piece)

    def _finish(self) -> None:
        pass


class _GzipMembers(_Members):
    def _begin(self) -> None:
        super()._begin()
        from zlib_ng import zlib_ng

        self._error: Any = zlib_ng.error
        self._unpacker = zlib_ng.decompressobj(31)

    def _decode(self, piece: memoryview) -> None:
        data: Any = piece
        try:
            while len(data) and not self._unpacker.eof:
                self._give(self._unpacker.decompress(data, PIECE))
                data = self._unpacker.unconsumed_tail
        except self._error as error:
            raise _Different(f"gzip member {self._index + 1} expected, found: {error}") from None
        if len(data) or self._unpacker.unused_data:
            raise _Different(f"the end of gzip member {self._index + 1} expected, found more bytes")

    def _finish(self) -> None:
        try:
            while not self._unpacker.eof:
                plain = self._unpacker.decompress(b"", PIECE)
                if not plain:
                    raise _Different(f"the end of gzip member {self._index + 1} expected, found it cut off")
                self._give(plain)
        except self._error as error:
            raise _Different(f"gzip member {self._index + 1} expected, found: {error}") from None


class _ZstdMembers(_Members):
    def _begin(self) -> None:
        super()._begin()
        import zstandard

        self._error: Any = zstandard.ZstdError
        self._unpacker = zstandard.ZstdDecompressor().decompressobj()

    def _decode(self, piece: memoryview) -> None:
        for start in range(0, len(piece), PIECE):
            try:
                plain = self._unpacker.decompress(piece[start : start + PIECE])
            except self._error as error:
                raise _Different(f"zstd frame {self._index + 1} expected, found: {error}") from None
            self._give(plain)
            if self._unpacker.unused_data:
                raise _Different(f"the end of zstd frame {self._index + 1} expected, found more bytes")

    def _finish(self) -> None:
        if not self._unpacker.eof:
            raise _Different(f"the end of zstd frame {self._index + 1} expected, found it cut off")


_DECODERS: dict[str, type[_Members]] = {"tar.gz": _GzipMembers, "tar.zst": _ZstdMembers, "tar": _Members}


# --- the process: one request per line on standard input, lines of progress and one answer on standard output -----------


def serve() -> None:
    """Answer verification requests until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        _say(**_answer(Path(request["path"]), base64.b64decode(request["manifest"]), request["direct_io"]))


def _answer(path: Path, manifest: bytes, direct_io: str) -> dict[str, Any]:
    reader = PastCacheReader(path, direct_io)
    try:
        result = verify(
            lambda: reader, manifest, progress=lambda size: _say(progress=size), how_read=lambda: reader.how
        )
        return {"result": asdict(result)}
    except (IntegrityMismatch, LtsFault) as error:
        fields = {"what": error.what, "expected": error.expected, "found": error.found, "next_step": error.next_step}
        return {"error": type(error).__name__, "retryable": error.retryable, **fields}


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
