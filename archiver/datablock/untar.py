"""A strict streaming reader of the tar that we write; shares nothing with the writer, so that no fault of one hides in the other.

Accepts POSIX ustar and PAX extended headers (POSIX.1-2017, pax) of regular files, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

BLOCK = 512
PAX_LIMIT = 64 * 2**10
PAX_KEYS = frozenset({"path", "size", "uid", "gid", "uname", "gname"})
"""What our headers need; others (sparse files, links) would make a reader see other bytes than lie there."""


class Damaged(Exception):
    """The bytes are not those of the datablock; the text says what was expected and found, ``file`` where it was seen."""

    def __init__(self, text: str, *, file: str | None = None) -> None:
        self.file = file
        super().__init__(text)


class MemberSink(Protocol):
    """Takes the members as they come."""

    def begin(self, path: str, size: int, offset: int) -> None:
        """A file begins; ``offset``: of its first header block in the tar."""

    def data(self, chunk: memoryview) -> None:
        """Bytes of the file."""

    def end(self) -> None:
        """The file has ended."""


class TarStream:
    """Feed it the tar's bytes in pieces of any size, then call ``close``. Raises ``Damaged``."""

    def __init__(self, sink: MemberSink) -> None:
        self._sink = sink
        self._pending = bytearray()
        self._need = BLOCK
        self._on: Callable[[bytes], None] = self._header
        self._left = 0
        self._pad = 0
        self._pax: dict[str, str] = {}
        self._zero_blocks = 0
        self._start = 0
        self.position = 0

    def feed(self, data: memoryview) -> None:
        """The next bytes of the tar."""
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                self._sink.data(piece)
                self._left -= len(piece)
                at += len(piece)
                self.position += len(piece)
                if not self._left:
                    self._finish_member()
                continue
            missing = self._need - len(self._pending)
            piece = data[at : at + missing]
            self._pending += piece
            at += len(piece)
            self.position += len(piece)
            if len(self._pending) == self._need:
                block = bytes(self._pending)
                self._pending.clear()
                self._on(block)

    def seek(self, position: int) -> None:
        """The next bytes are those at ``position`` of the tar. Raises ``Damaged`` if a file is not yet at its end."""
        if self._left or self._pending or self._on != self._header or self._pax or self._zero_blocks:
            raise Damaged(f"the end of a file expected at {self.position}, found none")
        self.position = position

    def close(self) -> None:
        """The tar has ended: it must have ended with its end-of-archive blocks and nothing behind them."""
        if self._left or self._pending or self._zero_blocks != 2:
            raise Damaged(f"end-of-archive blocks expected, found the end after {self.position} bytes")

    def _header(self, block: bytes) -> None:
        if not any(block):
            self._zero_blocks += 1
            if self._zero_blocks > 2:
                raise Damaged(f"nothing expected behind the end of the archive, found more at {self.position}")
            return
        if self._zero_blocks:
            raise Damaged(f"end-of-archive expected at {self.position - BLOCK}, found a header")
        if block[257:265] != b"ustar\x0000":
            raise Damaged(f"a ustar header expected at {self.position - BLOCK}, found none")
        stated = _octal(block[148:156], "checksum")
        if stated != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            raise Damaged(f"header checksum {stated} expected at {self.position - BLOCK}, found another")
        kind, size = block[156:157], _octal(block[124:136], "size")
        if not self._pax:
            self._start = self.position - BLOCK
        if kind == b"x":
            if self._pax or not 0 < size <= PAX_LIMIT:
                raise Damaged(f"one small PAX header per file expected, found one of {size} bytes")
            padded = -(-size // BLOCK) * BLOCK
            self._need, self._on = padded, lambda data: self._extended(data, size)
            return
        if kind != b"0":
            raise Damaged(f"a regular file expected at {self._start}, found type {kind!r}")
        name = block[:100].split(b"\0", 1)[0]
        prefix = block[345:500].split(b"\0", 1)[0]
        path = self._pax.get("path") or _text(prefix + b"/" + name if prefix else name)
        if "size" in self._pax:
            size = _decimal(self._pax["size"])
        self._pax = {}
        self._left, self._pad = size, -size % BLOCK
        self._sink.begin(path, size, self._start)
        if not size:
            self._finish_member()

    def _extended(self, data: bytes, size: int) -> None:
        if any(data[size:]):
            raise Damaged("zeros expected behind a PAX header, found other bytes")
        rest = data[:size]
        while rest:
            digits, space, _ = rest.partition(b" ")
            length = _decimal(_text(digits))
            if not space or length <= len(digits) + 1 or length > len(rest) or rest[length - 1 : length] != b"\n":
                raise Damaged("PAX records 'length key=value' expected, found other bytes")
            key, equals, value = rest[len(digits) + 1 : length - 1].partition(b"=")
            if not equals:
                raise Damaged("a PAX record with '=' expected, found none")
            name = _text(key)
            if name not in PAX_KEYS or name in self._pax:
                raise Damaged(f"PAX records of {', '.join(sorted(PAX_KEYS))}, each once, expected, found {name[:60]!r}")
            self._pax[name] = _text(value)
            rest = rest[length:]
        if not self._pax:
            raise Damaged("a PAX record expected, found none")
        self._need, self._on = BLOCK, self._header

    def _finish_member(self) -> None:
        self._sink.end()
        if self._pad:
            self._need, self._on = self._pad, self._padding

    def _padding(self, data: bytes) -> None:
        if any(data):
            raise Damaged("zeros expected behind a file, found other bytes")
        self._need, self._on = BLOCK, self._header


def _octal(field: bytes, what: str) -> int:
    digits = field.rstrip(b"\0 ")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        raise Damaged(f"an octal {what} expected in a header, found {field!r}") from None


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise Damaged(f"a decimal number expected in a PAX record, found {text[:40]!r}")
    return int(text)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Damaged(f"UTF-8 expected in a name, found {data[:60]!r}") from None
