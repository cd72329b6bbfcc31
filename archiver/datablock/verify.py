"""Verify a datablock against its manifest, in a process of its own: ``python -m archiver.datablock.verify``.

Reads past the page cache, hashes the whole in one thread, decodes in another, with another decoder than the packer's
(zlib-ng; zstandard), and in a third compares packed and plain size of every member, name, order, size, offset and
SHA-256 of every file, their exact number, the end of the archive, nothing behind.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from archiver.datablock.beside import Beside
from archiver.datablock.decode import decoder
from archiver.datablock.manifest import ManifestFile, ManifestReader
from archiver.datablock.untar import Damaged, TarStream
from archiver.direct_io import PastCacheReader
from archiver.errors import IntegrityMismatch, LtsFault, SystemFault

PIECES_AHEAD = 4
"""Decoded pieces (``decode.PIECE_BYTES``) that wait to be hashed."""


@dataclass(frozen=True)
class VerifyResult:
    """What was proved. ``level``: ``host`` if the bytes came past this host's cache, else ``cache``.

    Sizes in bytes: ``size_bytes`` of the files, ``packed_bytes`` and ``sha256`` of the datablock.
    """

    level: str
    how_read: str
    size_bytes: int
    packed_bytes: int
    files: int
    sha256: str


def verify(
    read: Callable[[], Iterable[memoryview]], manifest: bytes, *, progress: Callable[[int], None]
) -> VerifyResult:
    """Compare; a mismatch is looked at a second time, and both findings stand in the error. Changes nothing.

    ``read`` gives the datablock's chunks anew at each call; a chunk must stay valid until the next but one is asked for.
    ``progress`` is told the bytes of every chunk. The result's level is ``cache``: only the caller knows what it reads.

    Raises ``IntegrityMismatch`` (never retried by itself) and ``LtsFault`` for a read error, which is no mismatch.
    """
    first = _attempt(read, manifest, progress)
    if isinstance(first, VerifyResult):
        return first
    second = _attempt(read, manifest, progress)
    if isinstance(second, VerifyResult):
        again = "the second reading matched"
    else:
        again = "the same at the second reading" if second == first else f"at the second reading {second}"
    raise IntegrityMismatch(
        "the datablock on the LTS does not match its manifest",
        expected="the bytes that were packed",
        found=f"{first[:450]}; {again[:450]}",
        next_step="see the LTS's health; while archiving it is taken into quarantine and made anew",
        retryable=False,
    )


def _attempt(
    read: Callable[[], Iterable[memoryview]], manifest: bytes, progress: Callable[[int], None]
) -> VerifyResult | str:
    # The sizes of the members stand behind the files in the manifest, so it is read twice, streaming.
    scan = ManifestReader([manifest])
    scan.read_footer()
    try:
        return compare(read, scan, Files(ManifestReader([manifest]).files()), progress)
    except Damaged as error:
        return str(error)


def compare(
    read: Callable[[], Iterable[memoryview]],
    scan: ManifestReader,
    files: Files,
    progress: Callable[[int], None],
    write: Callable[[memoryview], None] | None = None,
) -> VerifyResult:
    """Read the whole datablock once and compare everything; ``scan`` is its manifest, read to its end.

    ``write`` gets every chunk, which stays the reader's. Raises ``Damaged``, ``LtsFault`` for a read error, and whatever
    ``files``, ``progress`` and ``write`` raise.
    """
    footer = scan.footer
    tar = TarStream(files)
    whole = hashlib.sha256()

    def take(chunk: memoryview) -> None:
        whole.update(chunk)
        if write is not None:
            write(chunk)

    packed = one_pass(read, scan, tar, files, progress, take=take)
    if (whole.hexdigest(), packed) != (footer.sha256, footer.packed_bytes):
        raise Damaged(
            f"SHA-256 {footer.sha256} of {footer.packed_bytes} B expected, found {whole.hexdigest()} of {packed} B"
        )
    found = (files.count, files.size_bytes, tar.position)
    if found != (footer.files, footer.size_bytes, footer.tar_bytes):
        raise Damaged(
            f"{footer.files} files of {footer.size_bytes} B in {footer.tar_bytes} B of tar expected, found {found}"
        )
    return VerifyResult("cache", "given", footer.size_bytes, packed, footer.files, footer.sha256)


class Files:
    """Compares the members with the manifest's files, in order."""

    def __init__(self, expected: Iterator[ManifestFile]) -> None:
        self._expected = expected
        self._file: ManifestFile | None = None
        self._hash = hashlib.sha256()
        self.count = self.size_bytes = 0

    def begin(self, path: str, size: int, offset: int) -> None:
        """A file begins in the tar."""
        file = next(self._expected, None)
        if file is None or (file.path, file.size, file.offset) != (path, size, offset):
            wanted = f"{file.path[:200]!a} of {file.size} B at {file.offset}" if file else "the end"
            named = file.path if file else path
            raise Damaged(f"{wanted} expected, found {path[:200]!a} of {size} B at {offset}", file=named)
        self._file = file
        self._hash = hashlib.sha256()

    def data(self, chunk: memoryview) -> None:
        """Bytes of the file."""
        self._hash.update(chunk)

    def end(self) -> None:
        """The file has ended."""
        assert self._file is not None  # noqa: S101
        if self._hash.hexdigest() != self._file.sha256:
            name = f"{self._file.path[:200]!a}"
            text = f"{name} with SHA-256 {self._file.sha256} expected, found {self._hash.hexdigest()}"
            raise Damaged(text, file=self._file.path)
        self.count += 1
        self.size_bytes += self._file.size

    def close(self) -> None:
        """The tar has ended. Raises ``Damaged`` if a file is missing."""
        if (missing := next(self._expected, None)) is not None:
            raise Damaged(f"{missing.path[:200]!a} expected, found the end", file=missing.path)

    def give_up(self) -> None:
        """Called from the reading thread at an error: no further file is wanted."""

    def leave(self) -> None:
        """The last call, from the thread of ``begin``, ``data`` and ``end``, however they ended."""


class PlainBytes(Protocol):
    """Takes what was decoded: ``TarStream``, or what looks at parts of the tar."""

    def feed(self, data: memoryview) -> None:
        """The next bytes."""

    def close(self) -> None:
        """All bytes came. Raises ``Damaged`` if that is not the end."""


def one_pass(
    read: Callable[[], Iterable[memoryview]],
    scan: ManifestReader,
    plain: PlainBytes,
    files: Files,
    progress: Callable[[int], None],
    *,
    take: Callable[[memoryview], None] | None = None,
    chosen: Sequence[int] | None = None,
) -> int:
    """Read, decode in a thread beside, look at what comes out in another; the packed bytes read. ``take`` is called here.

    Ends early with the first error: the reader is closed, ``files`` told to give up, and both threads ended before it is
    raised. No chunk is asked for before the decoder is done with the one before the last. ``chosen``: see ``decoder``.
    """
    members = Beside("members", plain.feed, ahead=PIECES_AHEAD, end=files.leave)
    header = scan.header
    decode = decoder(header.format, scan.member_sizes, header.member_bytes, members.feed, chosen)
    packed = 0
    source = _readable(read)
    # The last to be entered is the first to be left: whoever decodes then finds that nobody takes what comes out.
    with Beside("decode", decode.feed, ahead=1) as decoding, members:
        try:
            for chunk in source:
                decoding.feed(chunk)
                if take is not None:
                    take(chunk)
                packed += len(chunk)
                progress(len(chunk))
            decoding.finish()
            decode.close()
            members.finish()
        except BaseException:
            files.give_up()
            raise
        finally:
            source.close()
        plain.close()
        files.close()
    return packed


def _readable(read: Callable[[], Iterable[memoryview]]) -> Generator[memoryview]:
    """The chunks; only an error of reading them is the LTS's, not one of whoever takes them."""
    try:
        yield from read()
    except OSError as error:
        raise LtsFault(
            f"the datablock cannot be read: {error.strerror or error}",
            found=f"errno {error.errno}",
            next_step="retried; see the LTS's health",
        ) from None


# --- the process: one request per line on standard input, lines of progress and one answer on standard output -----------


def serve() -> None:
    """Answer verification requests until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        _say(**_answer(Path(request["path"]), base64.b64decode(request["manifest"]), request["direct_io"]))


def _answer(path: Path, manifest: bytes, direct_io: str) -> dict[str, Any]:
    reader = PastCacheReader(path, direct_io)
    try:
        result = verify(lambda: reader, manifest, progress=lambda size: _say(progress=size))
    except SystemFault as error:
        fields = {"what": error.what, "expected": error.expected, "found": error.found, "next_step": error.next_step}
        return {"error": type(error).__name__, "retryable": error.retryable, **fields}
    return {"result": asdict(replace(result, level=reader.level, how_read=reader.how))}


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
