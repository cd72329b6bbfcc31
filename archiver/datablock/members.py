"""Compressed members: a datablock's tar stream is cut every ``member_bytes`` and each piece compressed for itself.

A series of gzip members is a gzip file (RFC 1952 2.2), a series of zstd frames a zstd file (RFC 8878 3.1), so any tool
unpacks the whole, and one file can be had by reading only the members it lies in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import zstandard
from isal import isal_zlib

SAMPLE_BYTES = 16 * 2**10
SAMPLES = 4
WORTH_IT = 0.95
"""A sample that shrinks below this share makes a member worth compressing: what is saved else costs more than it is."""
STORED_BLOCK = 65535
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

Compress = Callable[[memoryview], bytes]


def compressor(format: str, level: int) -> Compress:
    """The function that makes one member of ``format`` (``tar.gz``, ``tar.zst``, ``tar``). Deterministic; for any thread."""
    if format == "tar.gz":
        return lambda data: gzip_member(data, level)
    if format == "tar.zst":
        return lambda data: zstd_frame(data, level)
    return bytes


def gzip_member(data: memoryview, level: int) -> bytes:
    """One gzip member; stored instead of compressed where a sample does not shrink, which saves time and space."""
    if len(data) > SAMPLES * SAMPLE_BYTES and not _shrinks(data):
        return _stored_member(data)
    member: bytes = isal_zlib.compress(data, level=level, wbits=31)
    return member


def zstd_frame(data: memoryview, level: int) -> bytes:
    """One zstd frame with its content's size and checksum. A compressor object is not for several threads."""
    return zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=True).compress(data)


def _shrinks(data: memoryview) -> bool:
    step = (len(data) - SAMPLE_BYTES) // (SAMPLES - 1)
    sample = b"".join(data[k * step : k * step + SAMPLE_BYTES] for k in range(SAMPLES))
    return len(isal_zlib.compress(sample, level=1, wbits=-15)) < WORTH_IT * len(sample)


def _stored_member(data: memoryview) -> bytes:
    """RFC 1951 3.2.4: stored blocks of at most 65,535 bytes."""
    parts: list[bytes | memoryview] = [_GZIP_HEADER]
    for start in range(0, len(data), STORED_BLOCK):
        piece = data[start : start + STORED_BLOCK]
        last = start + STORED_BLOCK >= len(data)
        parts += [struct.pack("<BHH", last, len(piece), len(piece) ^ 0xFFFF), piece]
    parts.append(struct.pack("<II", isal_zlib.crc32(data), len(data) & 0xFFFFFFFF))
    return b"".join(parts)
