"""What lies in the staging bucket, and under which names (docs/architecture.md); nothing else lies there.

Two rules keep what a late, stopped or dead process writes away from everybody else. Everything of a run lies below the run's own
name. And what the steps of a run hand on to each other is named by the SHA-256 of its bytes, or read against one, which the
workflow knows: nobody can put other bytes there unnoticed, whatever the store says of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from archiver.errors import StagedLost
from archiver.pids import path_pid, pid_path

if TYPE_CHECKING:
    from archiver.storage.objects import Bucket

READS = 3
"""Times a staged object is read before other bytes than were stored are taken for what lies there."""

Kind = Literal["record", "listing", "plan", "bag"]
"""The catalogue's record for the bag; the catalogue's files; the plan with its lists of files; what the bag holds."""


@dataclass(frozen=True)
class StagingKeys:
    """Keys of one run of one dataset. The same on every try of a step; ``n`` counts datablocks from 1."""

    prefix: str
    pid: str
    run: str = ""

    @property
    def dataset(self) -> str:
        """Everything of this dataset lies below this prefix, and nothing of another (``pid_path``)."""
        return f"{self.prefix}datasets/{pid_path(self.pid)}/"

    def named(self, kind: Kind, sha256: str) -> str:
        """An object by the SHA-256 of its bytes."""
        return self._own(f"{kind}/{sha256}")

    def datablock(self, plan_id: str, n: int, extension: str) -> str:
        """The staged datablock."""
        return self._own(f"{plan_id}/{n}.{extension}")

    def manifest(self, plan_id: str, n: int) -> str:
        """Its manifest."""
        return self._own(f"{plan_id}/{n}.manifest.jsonl.gz")

    def verified(self, plan_id: str, n: int) -> str:
        """Its record: there only after verification."""
        return self._own(f"{plan_id}/{n}.record.json")

    def _own(self, name: str) -> str:
        if not self.run:
            raise ValueError("staged objects lie below the name of a run")
        return f"{self.dataset}{self.run}/{name}"


class Staged:
    """The small staged objects of one run, read against what the workflow knows of them. Thread-safe."""

    def __init__(self, bucket: Bucket, keys: StagingKeys) -> None:
        self._bucket = bucket
        self._keys = keys

    def put(self, kind: Kind, data: bytes) -> str:
        """Store an object under its SHA-256, which is returned. May be repeated: the same bytes have the same name."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._bucket.put(self._keys.named(kind, sha256), data)
        return sha256

    def get(self, kind: Kind, sha256: str) -> bytes:
        """What ``put`` stored. Raises ``StagedLost`` if it is not there any more, or damaged; the bucket's fault."""
        return self.read(self._keys.named(kind, sha256), sha256, lost=kind)

    def manifest(self, plan_id: str, n: int, sha256: str, *, lost: str) -> bytes:
        """The manifest of datablock ``n``. Raises as ``get``; ``lost`` says what is to be made again."""
        return self.read(self._keys.manifest(plan_id, n), sha256, lost=lost, datablock=n)

    def read(self, key: str, sha256: str, *, lost: str, datablock: int | None = None) -> bytes:
        """An object of these bytes. Raises as ``get``."""
        return read_staged(self._bucket, key, sha256, self._keys.pid, lost=lost, datablock=datablock)


def read_staged(bucket: Bucket, key: str, sha256: str, pid: str, *, lost: str, datablock: int | None = None) -> bytes:
    """A staged object of these bytes. Raises ``StagedLost`` if it is not there any more, or damaged; the bucket's fault."""
    found = ""
    for _ in range(READS):
        data = bucket.raw(key)
        found = "nothing" if data is None else f"{len(data)} B of SHA-256 {hashlib.sha256(data).hexdigest()}"
        if data is not None and hashlib.sha256(data).hexdigest() == sha256:
            return data
    raise lost_object(key, f"SHA-256 {sha256}", found, pid, lost=lost, datablock=datablock)


def lost_object(
    key: str, expected: str, found: str, pid: str, *, lost: str, datablock: int | None = None
) -> StagedLost:
    """The error of who finds a staged object gone or damaged."""
    return StagedLost(
        f"staged object {key} is not what this run stored there",
        lost=lost,
        expected=expected,
        found=found,
        next_step="it is made again a few times; if it lasts, see the S3 server's health and who else writes to the bucket",
        dataset=pid,
        datablock=datablock,
    )


def datablock_name(n: int, extension: str) -> str:
    """File name of a datablock below ``data/`` of its dataset."""
    return f"{n}.{extension}"


def manifest_name(n: int) -> str:
    """File name of a datablock's manifest below ``data/`` of its dataset."""
    return f"{n}.manifest.jsonl.gz"


def archive_id(pid: str, n: int, extension: str) -> str:
    """The datablock's path on the LTS, which is its archiveId in SciCat: the same on every try."""
    return f"{pid_path(pid)}/data/{datablock_name(n, extension)}"


def dataset_of(prefix: str, key: str) -> str | None:
    """The pid of the dataset that a key of the staging bucket belongs to; None if it is none of ours."""
    parts = key.removeprefix(prefix).split("/")
    if not key.startswith(prefix) or parts[0] != "datasets":
        return None
    for depth in (2, 3):
        try:
            return path_pid("/".join(parts[1:depth])) if len(parts) > depth else None
        except ValueError:
            continue
    return None
