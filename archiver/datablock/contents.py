"""One digest over which files there are, in no order: what was archived is counted against the catalogue by it.

The digest is the sum, modulo 2**256, of the SHA-256 of each file's ``path``, a NUL byte (which no path holds) and its size in
decimal digits. A sum needs no sorting and no memory, however many files there are: the catalogue's lists, which come in any
order, and the datablocks' manifests, verified in any order, add up to the same. XOR would do as well, but for a file that is
listed twice: it would cancel itself out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol

from archiver.datablock.files import path_key
from archiver.model import Contents

MODULUS = 2**256


class Listed(Protocol):
    """A file of any list: the catalogue's, the plan's, a manifest's."""

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int: ...


class Counting:
    """Adds files up as they stream by."""

    def __init__(self) -> None:
        self._files = self._bytes = self._sum = 0

    def add(self, file: Listed) -> None:
        """One more file."""
        digest = hashlib.sha256(b"%b\0%d" % (path_key(file.path), file.size)).digest()
        self._files += 1
        self._bytes += file.size
        self._sum = (self._sum + int.from_bytes(digest)) % MODULUS

    @property
    def contents(self) -> Contents:
        """All until now."""
        return Contents(files=self._files, size_bytes=self._bytes, digest=f"{self._sum:064x}")


def contents_of(files: Iterable[Listed]) -> Contents:
    """Of all these files."""
    counting = Counting()
    for file in files:
        counting.add(file)
    return counting.contents
