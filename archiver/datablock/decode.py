"""The decoders of verification and retrieval: packed bytes back to the tar, member by member, by other code than the packer's.

Each member starts and ends where the manifest says, holds exactly ``member_bytes`` of tar (the last one no more), and
nothing is decoded beyond that, whatever a member claims to hold.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import zstandard
from zlib_ng import zlib_ng

from archiver.datablock.untar import Damaged

FEED_BYTES = 2**20
"""Packed bytes given to a decoder at a time: larger ones fall out of the processor's cache (11 times slower, measured)."""
PIECE_BYTES = 2**20
"""Plain bytes taken from a decoder at a time."""
MAX_MEMBER_BYTES = 2**26
"""The settings allow no larger members, and a zstd frame is decoded whole."""
_GZIP_ERROR: Any = zlib_ng.error


class Decoder(Protocol):
    """Takes the packed stream in pieces of any size. Raises ``Damaged``."""

    def feed(self, data: memoryview) -> None:
        """The next bytes of the datablock; not kept."""

    def close(self) -> None:
        """The datablock has ended."""


Give = Callable[[memoryview], None]


def decoder(
    format: str, sizes: array[int], member_bytes: int, give: Give, chosen: Sequence[int] | None = None
) -> Decoder:
    """The decoder of ``format``; ``sizes`` are the packed sizes of the members in bytes. Raises ``Damaged``.

    ``give`` gets the tar in pieces that it may keep, each of one member. With ``chosen``, indices in ascending order, the
    stream is these members alone, one behind the other.
    """
    kinds = {"tar.gz": _GzipMembers, "tar.zst": _ZstdMembers, "tar": _Members}
    if format not in kinds:
        raise Damaged(f"a format of {', '.join(kinds)} expected in the manifest, found {format[:40]!r}")
    if not 0 < member_bytes <= MAX_MEMBER_BYTES:
        raise Damaged(f"members of at most {MAX_MEMBER_BYTES} B expected in the manifest, found {member_bytes}")
    return kinds[format](sizes, member_bytes, give, range(len(sizes)) if chosen is None else chosen)


class _Members:
    """Members that are not compressed; what the other formats share."""

    def __init__(self, sizes: array[int], member_bytes: int, give: Give, chosen: Sequence[int]) -> None:
        self._sizes = sizes
        self._chosen = chosen
        self._member_bytes = member_bytes
        self._give = give
        self._index = -1
        self._next()

    def feed(self, data: memoryview) -> None:
        """The next bytes of the datablock."""
        while len(data):
            if self._index >= len(self._chosen):
                raise Damaged(f"nothing expected behind {len(self._chosen)} members, found more bytes")
            piece = data[: min(self._left, FEED_BYTES)]
            self._decode(piece)
            data = data[len(piece) :]
            self._left -= len(piece)
            if not self._left:
                self._finish()
                last = self._chosen[self._index] == len(self._sizes) - 1
                if self._size != self._member_bytes and not (last and self._size):
                    raise Damaged(f"{self._member_bytes} B expected in {self._name}, found {self._size} B")
                self._next()

    def close(self) -> None:
        """The datablock has ended."""
        if self._index < len(self._chosen):
            raise Damaged(f"{len(self._chosen)} members expected, found the end in {self._name}")

    @property
    def _name(self) -> str:
        return f"member {self._chosen[self._index] + 1}"

    def _next(self) -> None:
        self._index += 1
        self._size = 0
        there = self._index < len(self._chosen)
        self._left = self._sizes[self._chosen[self._index]] if there else 0
        if there and not self._left:
            raise Damaged(f"a size expected for {self._name} in the manifest, found 0")
        self._begin()

    def _out(self, plain: bytes | memoryview) -> None:
        self._size += len(plain)
        if self._size > self._member_bytes:
            raise Damaged(f"at most {self._member_bytes} B expected in {self._name}, found more")
        self._give(memoryview(plain))

    def _begin(self) -> None:
        """A member begins."""

    def _decode(self, piece: memoryview) -> None:
        """The next bytes of the member."""
        self._out(bytes(piece))

    def _finish(self) -> None:
        """The member must have ended."""


class _GzipMembers(_Members):
    """RFC 1952; zlib-ng checks each member's CRC-32 and length."""

    def _begin(self) -> None:
        self._unpacker = zlib_ng.decompressobj(31)

    def _decode(self, piece: memoryview) -> None:
        data: bytes | memoryview = piece
        try:
            while len(data) and not self._unpacker.eof:
                self._out(self._unpacker.decompress(data, PIECE_BYTES))
                data = self._unpacker.unconsumed_tail
        except _GZIP_ERROR as error:
            raise Damaged(f"gzip in {self._name} expected, found: {error}") from None
        if len(data) or self._unpacker.unused_data:
            raise Damaged(f"the end of {self._name} expected, found more bytes")

    def _finish(self) -> None:
        try:
            while not self._unpacker.eof:
                plain = self._unpacker.decompress(b"", PIECE_BYTES)
                if not plain:
                    raise Damaged(f"the end of gzip expected in {self._name}, found it cut off")
                self._out(plain)
        except _GZIP_ERROR as error:
            raise Damaged(f"gzip in {self._name} expected, found: {error}") from None


class _ZstdMembers(_Members):
    """RFC 8878. A frame is decoded whole into a buffer of ``member_bytes``: streaming has no bound on what comes out."""

    def _begin(self) -> None:
        self._frame = bytearray()
        if self._left > 2 * self._member_bytes + PIECE_BYTES:
            raise Damaged(f"at most about {self._member_bytes} B expected in {self._name}, found {self._left} B")

    def _decode(self, piece: memoryview) -> None:
        self._frame += piece

    def _finish(self) -> None:
        try:
            claimed = zstandard.frame_content_size(self._frame)
            if not 0 <= claimed <= self._member_bytes:
                raise Damaged(f"at most {self._member_bytes} B expected in {self._name}, found {claimed} B claimed")
            unpacker = zstandard.ZstdDecompressor()
            plain = unpacker.decompress(self._frame, self._member_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Damaged(f"zstd in {self._name} expected, found: {error}") from None
        for start in range(0, len(plain), PIECE_BYTES):
            self._out(memoryview(plain)[start : start + PIECE_BYTES])
