"""The manifest of a datablock: gzip JSON lines, ``<n>.manifest.jsonl.gz`` (format: docs/manifest.md, version 1).

First a header, then a line per file in the order of the tar, then lines with the packed sizes of the members, then a
footer. Written while the datablock is packed, from the first and only read of the source.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from archiver.datablock.files import PlannedFile, decompress_lines
from archiver.errors import IntegrityMismatch, OwnFault

MANIFEST_VERSION = 1
SIZES_PER_LINE = 1000
MAX_LINE_BYTES = 2**24
"""SciCat's database has no larger document, and a line is a part of one."""
_FLUSH_BYTES = 256 * 2**10


@dataclass(frozen=True)
class ManifestHeader:
    """Which datablock this is, and how it was made."""

    pid: str
    datablock: int
    plan: str
    format: str
    level: int
    member_bytes: int
    version: int = MANIFEST_VERSION


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """A file of the datablock. ``offset``: of its header in the tar, in bytes; ``member``: the first one to read."""

    path: str
    size: int
    sha256: str
    time: str
    offset: int
    member: int
    chk: str | None = None
    chk_alg: str | None = None
    mode: int | None = None
    uid: str | None = None
    gid: str | None = None


@dataclass(frozen=True)
class ManifestFooter:
    """The sums, and the datablock's own digest. Sizes in bytes."""

    files: int
    size_bytes: int
    tar_bytes: int
    packed_bytes: int
    members: int
    sha256: str


T = TypeVar("T", ManifestHeader, ManifestFile, ManifestFooter)


class ManifestWriter:
    """Builds a manifest in memory, compressed as it grows (about 100 bytes a file)."""

    def __init__(self, header: ManifestHeader) -> None:
        self._packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        self._parts: list[bytes] = []
        self._lines: list[str] = []
        self._held = 0
        self._line({"kind": "header", **asdict(header)})

    def add(self, file: PlannedFile, sha256: str, offset: int, member: int) -> None:
        """A file, in the order of the tar."""
        fields: dict[str, Any] = {
            "kind": "file",
            "path": file.path,
            "size": file.size,
            "sha256": sha256,
            "time": file.time,
            "offset": offset,
            "member": member,
        }
        for name in ("chk", "chk_alg", "mode", "uid", "gid"):
            value = getattr(file, name)
            if value is not None:
                fields[name] = value
        self._line(fields)

    def finish(self, sizes: array[int], footer: ManifestFooter) -> bytes:
        """The whole manifest; the same datablock gives the same bytes."""
        for start in range(0, len(sizes), SIZES_PER_LINE):
            self._line({"kind": "members", "first": start, "sizes": list(sizes[start : start + SIZES_PER_LINE])})
        self._line({"kind": "footer", **asdict(footer)})
        self._flush()
        self._parts.append(self._packer.flush())
        return b"".join(self._parts)

    def _line(self, fields: dict[str, Any]) -> None:
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        self._lines.append(line)
        self._held += len(line)
        if self._held >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        # A lone surrogate in a field that is no path becomes its JSON escape, so that it comes back as it was.
        lines = ("\n".join(self._lines) + "\n").encode("utf-8", "backslashreplace")
        self._parts.append(self._packer.compress(lines))
        self._lines, self._held = [], 0


class ManifestReader:
    """Reads a manifest once, streaming: ``header``, then ``files()``, then ``member_sizes`` and ``footer``.

    Raises ``IntegrityMismatch`` if it is damaged, cut off, or of a version that this program does not read.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._lines = decompress_lines(chunks, longest=MAX_LINE_BYTES)
        self.member_sizes: array[int] = array("Q")
        self._footer: ManifestFooter | None = None
        first = self._next()
        if first.pop("kind", None) != "header" or first.get("version") != MANIFEST_VERSION:
            raise _damaged(f"a header of version {MANIFEST_VERSION}", f"version {first.get('version')!r}")
        self.header = _make(ManifestHeader, first)

    def files(self) -> Iterator[ManifestFile]:
        """The files, in the order of the tar."""
        while True:
            fields = self._next()
            kind = fields.pop("kind", None)
            if kind == "file":
                yield _make(ManifestFile, fields)
            elif kind == "members":
                if fields.get("first") != len(self.member_sizes):
                    raise _damaged(f"member {len(self.member_sizes)}", f"member {fields.get('first')!r}")
                try:
                    self.member_sizes.extend(fields["sizes"])
                except (KeyError, TypeError, OverflowError):
                    raise _damaged("packed sizes of members in bytes", repr(fields.get("sizes"))[:60]) from None
            elif kind == "footer":
                self._footer = _make(ManifestFooter, fields)
                self._end()
                return
            else:
                raise _damaged("a file, members or footer", repr(kind)[:40])

    @property
    def footer(self) -> ManifestFooter:
        """The sums; there once ``files()`` was read to its end."""
        if self._footer is None:
            raise _damaged("a manifest read to its end", "no footer yet")
        return self._footer

    def read_footer(self) -> ManifestFooter:
        """The footer, reading over everything before it."""
        for _ in self.files():
            pass
        return self.footer

    def _next(self) -> dict[str, Any]:
        try:
            line = next(self._lines, None)
            fields = json.loads(line) if line is not None else None
        except (OwnFault, ValueError, RecursionError) as error:
            raise _damaged("readable gzip JSON lines", str(error)[:200]) from None
        if not isinstance(fields, dict):
            raise _damaged(
                "a JSON object on every line up to the footer", "the end" if line is None else "another value"
            )
        return fields

    def _end(self) -> None:
        footer = self.footer
        try:
            behind = next(self._lines, None)
        except OwnFault as error:
            raise _damaged("the end behind the footer", str(error)[:200]) from None
        if behind is not None or len(self.member_sizes) != footer.members:
            raise _damaged(
                f"{footer.members} members and nothing behind the footer", f"{len(self.member_sizes)} members"
            )
        if sum(self.member_sizes) != footer.packed_bytes:
            raise _damaged(f"members of {footer.packed_bytes} bytes", f"{sum(self.member_sizes)} bytes")


_TYPES = {"int": (int,), "str": (str,), "int | None": (int, type(None)), "str | None": (str, type(None))}


def _make(kind: type[T], fields: dict[str, Any]) -> T:
    known = {}
    for name, field in kind.__dataclass_fields__.items():
        if name in fields:
            value = known[name] = fields[name]
            if not isinstance(value, _TYPES[str(field.type)]):
                raise _damaged(f"{field.type} as {name}", repr(value)[:60])
    try:
        return kind(**known)
    except TypeError as error:
        raise _damaged(f"the fields of {kind.__name__}", str(error)[:200]) from None


def _damaged(expected: str, found: str) -> IntegrityMismatch:
    return IntegrityMismatch("the manifest is damaged", expected=expected, found=found, retryable=False)
