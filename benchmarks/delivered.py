"""What lies in the retrieval bucket, read back through S3: a run that did not deliver is no figure."""

from __future__ import annotations

import hashlib
from pathlib import Path

from archiver.datablock.manifest import ManifestReader
from archiver.retrieval.keys import TOLD
from archiver.storage.objects import Bucket, ObjectVersion

Wanted = dict[str, tuple[int, str]]
"""Size and SHA-256 of each file."""


def of_manifest(path: Path) -> Wanted:
    """All files of a datablock."""
    return {file.path: (file.size, file.sha256) for file in ManifestReader([path.read_bytes()]).files()}


def check(bucket: Bucket, prefix: str, wanted: Wanted) -> None:
    """Raises ``RuntimeError`` unless exactly these files, byte for byte, lie below ``prefix``, beside what we tell of them."""
    there = [entry for entry in bucket.list(prefix) if not entry.key.startswith(prefix + TOLD)]
    found: Wanted = {}
    items = ((entry, entry.key, entry.size, ObjectVersion(entry.version)) for entry in there)
    for entry, chunks in bucket.read_many(items, ahead_bytes=32 * 2**20, ahead_requests=128):
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        found[entry.key.removeprefix(prefix)] = (entry.size, digest.hexdigest())
    if found != wanted:
        wrong = sorted(path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path))
        raise RuntimeError(f"below {prefix} {len(wrong)} objects are not what was archived, the first: {wrong[:3]}")


def clear(bucket: Bucket, prefix: str) -> None:
    """Nothing of it stays."""
    bucket.delete([entry.key for entry in bucket.list(prefix)])
