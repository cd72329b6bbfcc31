"""Files as a manifest tells of them, and how they are given to a retrieval target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from archiver.datablock.manifest import ManifestFile
from archiver.progress import Progress, Silent
from archiver.storage.targets import Target, TargetSink

PID = "20.500.11935/0e54aa"
SELECTION = "links, all files"
TIME = "2024-02-03T04:05:06.789Z"
PIECE_BYTES = 3 * 2**20 + 1
"""Bytes handed over at a time."""
HOSTILE = [
    "a b",
    "-rf",
    "deep/er/file",
    "quote'\"`$(id)&<>;|*?[x]\\",
    "percent%2Fhash#q?x=1+y",
    "tab\tx",
    "line\nfeed",
    "\x7f",
    "caf\u00e9",
    "cafe\u0301",
    "\U0001f600/~",
    ".archiver",
    "...",
    "n" * 250,
]


def file(path: str, data: bytes, *, mode: int | None = None, time: str = TIME) -> ManifestFile:
    """A file as the manifest of its datablock has it."""
    return ManifestFile(path, len(data), hashlib.sha256(data).hexdigest(), time, 0, 0, mode=mode)


def pieces(data: bytes) -> Iterator[memoryview]:
    """The data as it comes out of a datablock: in a buffer that is used again."""
    buffer = bytearray(min(len(data), PIECE_BYTES))
    for start in range(0, len(data), PIECE_BYTES):
        piece = data[start : start + PIECE_BYTES]
        buffer[: len(piece)] = piece
        yield memoryview(buffer)[: len(piece)]
        buffer[:] = bytes(len(buffer))


def give(sink: TargetSink, one: ManifestFile, data: bytes) -> bool:
    """One file as ``extract`` gives it, its bytes right; whether it was wanted."""
    if not sink.begin(one):
        return False
    for piece in pieces(data):
        sink.data(piece)
    sink.commit()
    return True


def deliver(
    target: Target,
    files: Iterable[tuple[str, bytes]],
    *,
    pid: str = PID,
    selection: str = SELECTION,
    attempt: str = "1",
    piece: str = "1",
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Give all files; how many were written, and how many were there."""
    with target.sink(pid, selection, attempt, progress or Silent(), piece=piece) as sink:
        for path, data in files:
            give(sink, file(path, data), data)
    return sink.files, sink.skipped
