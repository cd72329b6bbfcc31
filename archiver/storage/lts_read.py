"""What the LTS holds of an archived dataset, for those who read it back: its bag's word, and the bytes.

The bag (P11) is the yardstick for what lies there: each manifest read here has the SHA-256 that the bag says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from archiver.datablock.bag import PAYLOAD_MANIFEST, TAG_MANIFEST, read_manifest_sha256
from archiver.errors import IntegrityMismatch, LtsFault, NoBag
from archiver.pids import pid_path
from archiver.storage.lts import Lts
from archiver.storage.staging import archive_id, manifest_name

_DATABLOCK = re.compile(r"data/([1-9]\d*)\.(tar\.gz|tar\.zst|tar)")
SHOWN = 10


@dataclass(frozen=True)
class Held:
    """A datablock on the LTS, as the bag tells of it: its number, format, and both digests (SHA-256, hexadecimal)."""

    n: int
    format: str
    sha256: str
    manifest_sha256: str


def held(lts: Lts, pid: str) -> dict[str, Held]:
    """The datablocks of a dataset's bag by archiveId. Looks only.

    Raises ``LtsFault`` if the LTS has no complete bag of it (``NoBag``: nothing of one), ``IntegrityMismatch`` if the bag's
    own list is damaged.
    """
    path = pid_path(pid)
    tags, listed = (lts.get_small(path, name) for name in (TAG_MANIFEST, PAYLOAD_MANIFEST))
    if tags is None or listed is None:
        raise (NoBag if tags is None and listed is None else LtsFault)(
            f"the LTS has no complete bag of dataset {pid}",
            expected=f"{path}/{TAG_MANIFEST} and {PAYLOAD_MANIFEST}",
            found="nothing" if tags is None and listed is None else "one of the two",
            next_step="see that the right LTS is mounted, and compare SciCat's datablocks with it; nothing was changed",
            retryable=False,
        )
    try:
        told = read_manifest_sha256(tags).get(PAYLOAD_MANIFEST)
        sums = read_manifest_sha256(listed)
    except UnicodeDecodeError:
        told, sums = None, {}
    if (found := hashlib.sha256(listed).hexdigest()) != told:
        raise IntegrityMismatch(
            f"{PAYLOAD_MANIFEST} of dataset {pid} on the LTS is not what its bag says",
            expected=f"SHA-256 {told}",
            found=f"SHA-256 {found}",
            next_step="see the LTS's health; nothing was delivered",
            retryable=False,
        )
    blocks = {}
    for name, sha256 in sums.items():
        if match := _DATABLOCK.fullmatch(name):
            n, format = int(match[1]), match[2]
            block = Held(n, format, sha256, sums.get(f"data/{manifest_name(n)}", ""))
            blocks[archive_id(pid, n, format)] = block
    return blocks


def compare(pid: str, recorded: Mapping[str, int], blocks: Mapping[str, Held], lts: Lts) -> None:
    """The catalogue's records (archiveId and packed size in bytes) against what lies there.

    Raises ``LtsFault`` that names a record without a file, a file without a record, or one of another size.
    """
    path = pid_path(pid)
    problems = []
    for name in sorted(blocks.keys() | recorded.keys()):
        if name not in recorded:
            problems.append(f"{name} lies on the LTS, without a record in SciCat")
        elif name not in blocks:
            problems.append(f"{name} has a record in SciCat, and is in no bag on the LTS")
        elif (size := lts.size_of(path, name.removeprefix(f"{path}/"))) != recorded[name]:
            found = "no such file" if size is None else f"{size} B"
            problems.append(f"{name} has a record of {recorded[name]} B in SciCat, and on the LTS {found}")
    if problems:
        raise LtsFault(
            f"SciCat's datablocks of dataset {pid} and the LTS do not agree",
            expected="the same datablocks, of the same sizes, in both",
            found="; ".join(problems[:SHOWN])
            + (f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""),
            next_step="find out which of the two is right before anything is changed; nothing was delivered",
            retryable=False,
        )


def manifest(lts: Lts, pid: str, block: Held) -> bytes:
    """The manifest of a datablock, the very bytes that the bag names.

    Raises ``LtsFault`` if it is gone, ``IntegrityMismatch`` if it is another.
    """
    data = lts.get_small(pid_path(pid), f"data/{manifest_name(block.n)}")
    if data is None:
        raise LtsFault(
            f"the manifest of datablock {block.n} of dataset {pid} is not on the LTS",
            expected=f"data/{manifest_name(block.n)} with SHA-256 {block.manifest_sha256}",
            found="nothing",
            next_step="see the LTS's health; the datablock itself can still be read with tar",
            retryable=False,
        )
    if (found := hashlib.sha256(data).hexdigest()) != block.manifest_sha256:
        raise IntegrityMismatch(
            f"the manifest of datablock {block.n} of dataset {pid} is not the one that its bag names",
            expected=f"SHA-256 {block.manifest_sha256}",
            found=f"SHA-256 {found}",
            next_step="see the LTS's health; nothing of this datablock was delivered",
            retryable=False,
        )
    return data


def whole(lts: Lts, pid: str, block: Held) -> Iterable[memoryview]:
    """The datablock's bytes, as ``Lts.read``."""
    return lts.read(pid_path(pid), f"data/{block.n}.{block.format}")


def part(lts: Lts, pid: str, block: Held, offset: int, size: int) -> Iterator[memoryview]:
    """``size`` bytes of the datablock from ``offset``, as ``Lts.part``."""
    return lts.part(pid_path(pid), f"data/{block.n}.{block.format}", offset, size)
