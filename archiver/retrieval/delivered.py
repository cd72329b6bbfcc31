"""What was delivered of a datablock: the list from which a job's links are made. JSON lines, gzip, one file a line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Delivered:
    """A file, or a datablock as it is (``unpack``), that lies at the destination. ``key``: in the retrieval bucket.

    Size in bytes, SHA-256 hexadecimal; ``archive_id`` of the datablock that it came from.
    """

    name: str
    key: str
    size: int
    sha256: str
    archive_id: str
    unpack: bool = False


def to_bytes(items: Iterable[Delivered]) -> bytes:
    """The list; the same items give the same bytes."""
    lines = "".join(json.dumps(asdict(item), separators=(",", ":")) + "\n" for item in items)
    return gzip.compress(lines.encode(), mtime=0)


def from_bytes(data: bytes) -> Iterator[Delivered]:
    """The items of a list made by ``to_bytes``."""
    for line in gzip.decompress(data).splitlines():
        yield Delivered(**json.loads(line))
