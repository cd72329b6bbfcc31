"""A complete bag as it lies on the LTS, checked against itself; what was known of each datablock comes out of it again.

Small files and manifests are read, datablocks are not: their sizes are looked at, and that a bag is complete says that they
were verified. Whether they still are, ``archiver verify`` sees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from archiver.datablock.bag import PAYLOAD_MANIFEST, TAG_MANIFEST, read_bag_info, read_manifest_sha256
from archiver.datablock.events import EVENTS
from archiver.datablock.events import read as read_events
from archiver.datablock.manifest import ManifestHeader, ManifestReader
from archiver.datablock.record import DatablockRecord
from archiver.errors import IntegrityMismatch, LtsFault, NoBag
from archiver.model import LEVELS
from archiver.pids import path_pid, pid_path
from archiver.storage import lts_read
from archiver.storage.lts import Lts
from archiver.storage.lts_read import Held
from archiver.storage.staging import datablock_name

TAGS = ("bagit.txt", "bag-info.txt", "dataset.json", PAYLOAD_MANIFEST)
"""What the tag manifest of a complete bag lists."""


@dataclass(frozen=True)
class Bag:
    """What a dataset's bag says. ``level``: the weakest that was proved of its datablocks; ``job``: the one that archived it."""

    pid: str
    plan_id: str
    level: str
    job: str
    blocks: Mapping[str, Held]
    """By archiveId, in the order of their numbers."""
    levels: Mapping[str, str]
    """What was proved of single datablocks, where the receipt tells."""

    def level_of(self, archive_id: str) -> str:
        """What was proved of a datablock: as the receipt tells, which no digest guards, but never less than the bag says."""
        told = self.levels.get(archive_id, self.level)
        return max(self.level, told, key=LEVELS.index) if told in LEVELS else self.level


def read_bag(lts: Lts, path: str) -> Bag:
    """The bag in a dataset's directory (``pid_path``), every file of it but ``data/`` compared with its digest. Looks only.

    Raises ``NoBag`` if there is no complete one, ``IntegrityMismatch`` if it is damaged or another dataset's, ``LtsFault``.
    """
    pid = path_pid(path)
    tags = _tag_files(lts, path, pid)
    info = read_bag_info(tags["bag-info.txt"])
    plan_id, level = info.get("Archiver-Plan", ""), info.get("Archiver-Verification-Level", "")
    if _pid_of(tags["dataset.json"]) != pid or info.get("External-Identifier") != " ".join(pid.split()):
        raise _damaged(pid, f"dataset.json and bag-info.txt of dataset {pid}", "those of another dataset")
    if level not in LEVELS:
        raise _damaged(pid, f"a level of verification, one of {', '.join(LEVELS)}", ascii(level)[:60])
    blocks = dict(sorted(lts_read.held(lts, pid).items(), key=lambda one: one[1].n))
    listed = read_manifest_sha256(tags[PAYLOAD_MANIFEST])
    if [block.n for block in blocks.values()] != list(range(1, len(blocks) + 1)) or len(listed) != 2 * len(blocks):
        raise _damaged(
            pid, f"in {PAYLOAD_MANIFEST} datablocks from 1 on, each with its manifest", f"{len(listed)} files"
        )
    if not blocks:
        raise _damaged(pid, f"at least one datablock in {PAYLOAD_MANIFEST}", "none")
    job, levels = _receipt(lts.get_small(path, EVENTS) or b"", pid)
    return Bag(pid, plan_id, level, job, blocks, levels)


def read_datablock(lts: Lts, bag: Bag, archive_id: str) -> tuple[DatablockRecord, bytes]:
    """What verification knew of a datablock, and its manifest, compared with the bag and with the size that lies there.

    Raises ``IntegrityMismatch`` if they are not of one piece, ``LtsFault``.
    """
    block = bag.blocks[archive_id]
    try:
        data = lts_read.manifest(lts, bag.pid, block)
    except LtsFault as fault:
        if fault.retryable:
            raise
        raise _damaged(bag.pid, fault.expected or "its manifest", fault.what, block.n) from None
    reader = ManifestReader([data])
    files = size = 0
    for file in reader.files():
        files, size = files + 1, size + file.size
    header, footer = reader.header, reader.footer
    packed = lts.size_of(pid_path(bag.pid), f"data/{datablock_name(block.n, block.format)}")
    for what, expected, found in (
        ("its dataset, number, plan and format", (bag.pid, block.n, bag.plan_id, block.format), _key(header)),
        ("its SHA-256", block.sha256, footer.sha256),
        ("its files and their bytes", (footer.files, footer.size_bytes), (files, size)),
        ("its size on the LTS", footer.packed_bytes, packed if packed is not None else "no such file"),
    ):
        if expected != found:
            raise _damaged(bag.pid, f"{what}: {expected}", f"{found}", block.n)
    record = DatablockRecord(
        n=block.n,
        plan_id=bag.plan_id,
        size_bytes=footer.size_bytes,
        packed_bytes=footer.packed_bytes,
        files=footer.files,
        sha256=footer.sha256,
        manifest_sha256=block.manifest_sha256,
        manifest_bytes=len(data),
        level=bag.level_of(archive_id),
        how_read="",
        verified_at="",
    )
    return record, data


def _tag_files(lts: Lts, path: str, pid: str) -> dict[str, bytes]:
    """The bag's own files, each as the tag manifest says."""
    listed = lts.get_small(path, TAG_MANIFEST)
    if listed is None:
        raise NoBag(
            f"the LTS has no complete bag of dataset {pid}",
            expected=f"{path}/{TAG_MANIFEST}",
            found="nothing",
            next_step="a dataset that was never finished has none: archive it anew; else see that the right LTS is mounted",
            dataset=pid,
            retryable=False,
        )
    try:
        sums = read_manifest_sha256(listed)
    except UnicodeDecodeError:
        sums = {}
    # Names are compared before one is opened.
    if sorted(sums) != sorted(TAGS):
        raise _damaged(pid, f"{', '.join(TAGS)} in {TAG_MANIFEST}", ", ".join(map(ascii, sums))[:200] or "nothing")
    files = {}
    for name in TAGS:
        data = lts.get_small(path, name)
        found = None if data is None else hashlib.sha256(data).hexdigest()
        if data is None or found != sums[name]:
            raise _damaged(pid, f"{name} with SHA-256 {sums[name]}", f"SHA-256 {found}" if found else "no such file")
        files[name] = data
    return files


def _pid_of(record: bytes) -> object:
    """The pid that ``dataset.json`` names; None if it names none."""
    try:
        dataset = json.loads(record)
    except (ValueError, RecursionError):
        return None
    return dataset.get("pid") if isinstance(dataset, dict) else None


def _receipt(data: bytes, pid: str) -> tuple[str, dict[str, str]]:
    """The job that did the last thing to the dataset, and the level last proved of each datablock, where the receipt tells."""
    job, levels = "", {}
    for event in read_events(data):
        if event.get("outcome") != "success":
            continue
        detail, of = event.get("detail"), event.get("object")
        if event.get("type") == "fixity check" and isinstance(of, str) and isinstance(detail, dict):
            levels[of] = str(detail.get("level"))
        elif of == pid and isinstance(event.get("job"), str):
            job = event["job"]
    return job, levels


def _key(header: ManifestHeader) -> tuple[str, int, str, str]:
    return header.pid, header.datablock, header.plan, header.format


def _damaged(pid: str, expected: str, found: str, datablock: int | None = None) -> IntegrityMismatch:
    return IntegrityMismatch(
        f"the bag of dataset {pid} on the LTS is damaged",
        expected=expected,
        found=found,
        next_step="see the LTS's health, and its other copies if it keeps any; nothing of this dataset was changed",
        dataset=pid,
        datablock=datablock,
        retryable=False,
    )
