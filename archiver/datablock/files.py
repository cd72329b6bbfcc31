"""Files as the catalogue, the landing zone and the plan know them, their paths, and lists of them as gzip JSON lines."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from archiver.errors import HostilePath, OwnFault

MAX_PATH_BYTES = 4096
MAX_SEGMENT_BYTES = 255
LINES_CHUNK = 256 * 2**10


@dataclass(frozen=True, slots=True)
class CatalogueFile:
    """A file as an origdatablock lists it. ``size`` in bytes, ``time`` as SciCat gives it, ``mode`` as an integer."""

    path: str
    size: int
    time: str
    chk: str | None = None
    chk_alg: str | None = None
    mode: int | None = None
    uid: str | None = None
    gid: str | None = None

    def to_line(self) -> bytes:
        """One JSON line without its newline; absent values are left out."""
        return _dump(self._fields())

    def _fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"p": self.path, "s": self.size, "t": self.time}
        for key, value in (("c", self.chk), ("a", self.chk_alg), ("m", self.mode), ("u", self.uid), ("g", self.gid)):
            if value is not None:
                fields[key] = value
        return fields

    @classmethod
    def from_line(cls, line: bytes) -> CatalogueFile:
        """The inverse of ``to_line``."""
        get = json.loads(line).get
        return cls(get("p"), get("s"), get("t"), get("c"), get("a"), get("m"), get("u"), get("g"))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as the landing zone lists it; ``version`` (ETag, or inode and times) must be what is later read."""

    path: str
    size: int
    version: str


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of a datablock: the catalogue's facts and the version seen in the landing zone."""

    path: str
    size: int
    time: str
    version: str
    chk: str | None = None
    chk_alg: str | None = None
    mode: int | None = None
    uid: str | None = None
    gid: str | None = None

    @classmethod
    def of(cls, file: CatalogueFile, version: str) -> PlannedFile:
        """The catalogue's file in the version seen."""
        return cls(file.path, file.size, file.time, version, file.chk, file.chk_alg, file.mode, file.uid, file.gid)

    def to_line(self) -> bytes:
        """One JSON line without its newline; absent values are left out."""
        fields: dict[str, Any] = {"p": self.path, "s": self.size, "t": self.time, "v": self.version}
        for key, value in (("c", self.chk), ("a", self.chk_alg), ("m", self.mode), ("u", self.uid), ("g", self.gid)):
            if value is not None:
                fields[key] = value
        return _dump(fields)

    @classmethod
    def from_line(cls, line: bytes) -> PlannedFile:
        """The inverse of ``to_line``."""
        get = json.loads(line).get
        return cls(get("p"), get("s"), get("t"), get("v"), get("c"), get("a"), get("m"), get("u"), get("g"))


class _Line(Protocol):
    def to_line(self) -> bytes: ...


F = TypeVar("F", CatalogueFile, PlannedFile)


def path_key(path: str) -> bytes:
    """The order of all lists: UTF-8 bytes, as S3 lists keys. Lone surrogates keep an order and are refused later."""
    return path.encode("utf-8", "surrogatepass")


def check_path(path: str) -> None:
    """Raises ``HostilePath`` for a path that cannot be a file beneath a dataset and said exactly by every store."""
    reason = _hostile(path)
    if reason is not None:
        raise HostilePath(
            f"the catalogue lists a path that {reason}",
            expected="a relative path without '.', '..' or empty segments",
            found=ascii(path[:200]),
            next_step="correct the origdatablock, then submit the job again",
            file=ascii(path[:200]),
        )


def _hostile(path: str) -> str | None:
    if not path:
        return "is empty"
    if "\0" in path:
        return "holds a NUL character"
    try:
        data = path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if data[0] == 0x2F:
        return "is absolute"
    if len(data) > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    for segment in data.split(b"/"):
        if segment in (b"", b".", b".."):
            return f"has the segment '{segment.decode()}'"
        if len(segment) > MAX_SEGMENT_BYTES:
            return f"has a segment longer than {MAX_SEGMENT_BYTES} bytes"
    return None


def write_lines(items: Iterable[_Line]) -> Iterator[bytes]:
    """The items as gzip JSON lines, chunk by chunk; the same items give the same bytes."""
    return compress_lines(item.to_line() for item in items)


def compress_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines (without newlines) as gzip with a time stamp of 0, chunk by chunk."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line) + 1
        if size >= LINES_CHUNK:
            if data := packer.compress(b"\n".join(held) + b"\n"):
                yield data
            held, size = [], 0
    yield packer.compress(b"\n".join(held) + b"\n" if held else b"") + packer.flush()


def decompress_lines(
    chunks: Iterable[bytes | bytearray | memoryview], *, longest: int | None = None
) -> Iterator[bytes]:
    """The inverse of ``compress_lines``, in bounded memory. Raises ``OwnFault`` if it is not such a list or is cut off.

    ``longest``: the most bytes that a line may have.
    """
    unpacker = zlib.decompressobj(31)
    rest = b""
    try:
        for chunk in chunks:
            data = bytes(chunk)
            while data:
                plain = unpacker.decompress(data, 4 * LINES_CHUNK)
                data = unpacker.unconsumed_tail
                lines = (rest + plain).split(b"\n")
                rest = lines.pop()
                yield from lines
                if longest is not None and len(rest) > longest:
                    raise OwnFault(f"a list of files has a line of more than {longest} bytes", retryable=False)
                if not plain and not data:
                    break
    except zlib.error as error:
        raise OwnFault(f"a list of files cannot be read: {error}", retryable=False) from None
    if not unpacker.eof or rest or unpacker.unused_data:
        raise OwnFault("a list of files is cut off, or something follows it", retryable=False)


def read_lines(chunks: Iterable[bytes | bytearray | memoryview], kind: type[F]) -> Iterator[F]:
    """The inverse of ``write_lines``."""
    for line in decompress_lines(chunks):
        yield kind.from_line(line)


def _dump(fields: dict[str, Any]) -> bytes:
    # ASCII, so that a lone surrogate survives to the check that refuses it by name.
    return json.dumps(fields, separators=(",", ":")).encode("ascii")
