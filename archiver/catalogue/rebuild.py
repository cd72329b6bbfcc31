"""The catalogue's records of an archived dataset, made again from its bag alone: after SciCat lost them (docs/rebuild.md).

What is posted is what was posted when the dataset was archived, by the same functions. What SciCat has stays as it is: a
record that says something else than the bag is told, and then nothing of its dataset is changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from archiver import model as m
from archiver.catalogue import payloads
from archiver.catalogue.admission import NOT_YET, is_foreign
from archiver.catalogue.client import SciCat
from archiver.catalogue.payloads import Counters
from archiver.catalogue.records import Dataset
from archiver.datablock.manifest import ManifestReader
from archiver.errors import CatalogueFault, IntegrityMismatch, Refused, UnknownDataset
from archiver.model import LEVELS
from archiver.settings import ArchiveSettings
from archiver.storage.bags import Bag, read_bag, read_datablock
from archiver.storage.lts import Lts

SHOWN = 10
ROUNDS = 3
"""Times a dataset's counters and state are put right until it reads back so: SciCat may lose an update."""
HEAD = ("datasetId", "archiveId", "size", "packedSize", "chkAlg")
"""Fields of a record that must be the same; groups and times of making are not compared, they may change."""
ENTRY = ("size", "chk", "uid", "gid", "perm")

Document = dict[str, Any]


@dataclass
class Rebuilt:
    """What was done about a dataset, or what there is to do. ``counters``: by name, what SciCat said and what is right."""

    pid: str
    datablocks: int
    missing: list[str] = field(default_factory=list)
    """archiveIds of which SciCat had no record."""
    counters: dict[str, tuple[int, int]] = field(default_factory=dict)
    status: str | None = None
    """The dataset's archiveStatusMessage, where it was not archived."""
    notes: list[str] = field(default_factory=list)

    @property
    def changes(self) -> bool:
        """Whether there is, or was, anything to do."""
        return bool(self.missing or self.counters or self.status is not None)


@dataclass(frozen=True)
class Sums:
    """Of a bag's datablocks. Sizes in bytes."""

    files: int = 0
    size: int = 0
    packed: int = 0

    def plus(self, payload: Document) -> Sums:
        """With one more."""
        files = len(payload["dataFileList"])
        return Sums(self.files + files, self.size + payload["size"], self.packed + payload["packedSize"])


class Rebuilding:
    """From one LTS into one SciCat, one dataset after another; without ``apply`` nothing is written. May be repeated (P6)."""

    def __init__(self, scicat: SciCat, lts: Lts, archive: ArchiveSettings, *, apply: bool) -> None:
        self._scicat = scicat
        self._lts = lts
        self._archive = archive
        self._apply = apply

    async def dataset(self, path: str) -> Rebuilt:
        """Compare the bag in this directory (``pid_path``) with SciCat, and register what is missing there.

        All is compared before anything is written. Raises ``NoBag``, ``IntegrityMismatch`` (a damaged bag, or records that
        say something else), ``UnknownDataset``, ``Refused`` (another archive's, or in work at this moment), ``CatalogueFault``,
        ``LtsFault``. After an error in the midst of writing, the next time goes on from there.
        """
        bag = await asyncio.to_thread(read_bag, self._lts, path)
        dataset = await self._dataset(bag.pid)
        done = Rebuilt(bag.pid, len(bag.blocks))
        sums = await self._compare(bag, dataset, done)
        if dataset.number_of_files and dataset.number_of_files != sums.files:
            done.notes.append(
                f"SciCat counts {dataset.number_of_files} files of the dataset (it looks at 100 origdatablocks), "
                f"the bag holds {sums.files}"
            )
        done.counters = _counters(dataset, await self._right_counters(dataset, sums))
        done.status = None if _archived(dataset) else dataset.lifecycle.archive_status_message
        if self._apply:
            for archive_id in done.missing:
                await self._register(bag, archive_id)
            if done.changes:
                await self._finish(bag, sums)
        return done

    async def _dataset(self, pid: str) -> Dataset:
        """The dataset as SciCat has it now, if it is ours to write."""
        dataset = await self._scicat.dataset(pid)
        if dataset is None:
            raise UnknownDataset(
                f"SciCat knows no dataset {pid}",
                expected="the dataset itself, of which only datablocks are registered again",
                found="none",
                next_step="restore it first: dataset.json in its bag holds its record; datasets are not made here",
                dataset=pid,
            )
        lifecycle = dataset.lifecycle
        if is_foreign(lifecycle.storage_location, self._archive):
            raise Refused(
                f"dataset {pid} belongs to another archive",
                expected=f"storageLocation empty or {self._archive.storage_location!r}",
                found=f"{lifecycle.storage_location!r}",
                next_step="see which of the two holds it; nothing was changed",
                dataset=pid,
            )
        if lifecycle.archive_status_message in (payloads.STARTED, *NOT_YET):
            raise Refused(
                f"dataset {pid} is in work",
                expected="no archiving and no ingest that has begun",
                found=f"archiveStatusMessage {lifecycle.archive_status_message!r}",
                next_step="let it end, and see  archiver status PID; if nothing works on it, archive it again: "
                "what its bag holds is registered then, and nothing is packed anew",
                dataset=pid,
            )
        return dataset

    async def _compare(self, bag: Bag, dataset: Dataset, done: Rebuilt) -> Sums:
        """Each datablock of the bag with its record, one at a time; what has none is told as missing."""
        problems = [
            f"{block.archive_id} has a record in SciCat, and is not in the bag"
            for block in await self._scicat.datablocks(bag.pid)
            if block.archive_id not in bag.blocks
        ]
        sums = Sums()
        for archive_id in bag.blocks:
            ours = await asyncio.to_thread(self._payload, bag, archive_id, dataset)
            sums = sums.plus(ours)
            there = await self._scicat.datablock(archive_id)
            if there is None:
                done.missing.append(archive_id)
            else:
                problems += await asyncio.to_thread(differences, there, ours, bag.level)
        if problems:
            raise IntegrityMismatch(
                f"SciCat's records of dataset {bag.pid} say something else than its bag",
                expected="no record, or the bag's own",
                found=_some(problems),
                next_step="find out which is right; a wrong record is removed by hand, then the right one is registered here. "
                "Nothing of this dataset was changed",
                dataset=bag.pid,
                retryable=False,
            )
        return sums

    async def _right_counters(self, dataset: Dataset, sums: Sums) -> Counters:
        return await self._scicat.right_counters(dataset, Counters(sums.size, sums.files, sums.packed, sums.files))

    def _payload(self, bag: Bag, archive_id: str, dataset: Dataset) -> Document:
        """The record as it is registered when the dataset is archived."""
        record, manifest = read_datablock(self._lts, bag, archive_id)
        files = ManifestReader([manifest]).files()
        format = bag.blocks[archive_id].format
        return payloads.datablock(dataset, record, files, archive_id=archive_id, format=format)

    async def _register(self, bag: Bag, archive_id: str) -> None:
        """One record; seen to be there as it was sent."""
        # Read anew each time: an archiving that begins meanwhile has the right of way.
        dataset = await self._dataset(bag.pid)
        ours = await asyncio.to_thread(self._payload, bag, archive_id, dataset)
        await self._scicat.create_datablock(ours)
        there = await self._scicat.datablock(archive_id)
        wrong = ["nothing"] if there is None else await asyncio.to_thread(differences, there, ours, bag.level)
        if wrong:
            raise CatalogueFault(
                f"SciCat does not show datablock {archive_id} as it was registered",
                expected="the record that was sent",
                found=_some(wrong),
                next_step="see SciCat's log, then run it again",
                dataset=bag.pid,
            )

    async def _finish(self, bag: Bag, sums: Sums) -> None:
        """Counters, then the state, once all records are there; until the dataset reads back so."""
        shown = {block.archive_id for block in await self._scicat.datablocks(bag.pid)}
        if shown != set(bag.blocks):
            raise CatalogueFault(
                f"SciCat does not show the datablocks of {bag.pid} that its bag holds",
                expected=f"{len(bag.blocks)} datablocks",
                found=_some(sorted(shown ^ set(bag.blocks))),
                next_step="run it again",
                dataset=bag.pid,
            )
        for _ in range(ROUNDS):
            dataset = await self._dataset(bag.pid)
            right = await self._right_counters(dataset, sums)
            if not _counters(dataset, right) and _archived(dataset):
                return
            await self._scicat.patch_counters(bag.pid, right)
            if not _archived(dataset):
                fields = payloads.lifecycle_archived(_finished(bag, sums), self._archive.storage_location)
                await self._scicat.patch_lifecycle(bag.pid, fields)
        raise CatalogueFault(
            f"SciCat does not show dataset {bag.pid} as it was told",
            expected=f"{payloads.ARCHIVED}, {sums.packed} B packed, {sums.files} files",
            found=f"{dataset.lifecycle.archive_status_message}, {dataset.packed_size} B packed, "
            f"{dataset.number_of_files_archived} files",
            next_step="see who else writes to it, then run it again",
            dataset=bag.pid,
        )


def differences(there: Document, ours: Document, least_level: str) -> list[str]:
    """What a registered datablock says otherwise than the one that we would register, in words; nothing: it agrees.

    The level in ``version`` may be any that is not less than the bag's: the receipt that tells it may be lost.
    """
    name = ours["archiveId"]
    problems = [_says(name, key, there.get(key), ours[key]) for key in HEAD if there.get(key) != ours[key]]
    version, _, level = str(there.get("version")).partition(" verified:")
    proved = level in LEVELS and LEVELS.index(level) >= LEVELS.index(least_level)
    if not proved or version != ours["version"].partition(" verified:")[0]:
        problems.append(_says(name, "version", there.get("version"), ours["version"]))
    listed = there.get("dataFileList")
    return problems + list(_files(name, listed if isinstance(listed, list) else [], ours["dataFileList"]))


def _files(name: str, there: list[Any], ours: list[Document]) -> Iterator[str]:
    if len(there) != len(ours):
        yield _says(name, "files", len(there), len(ours))
    known = {entry["path"]: entry for entry in there if isinstance(entry, dict) and isinstance(entry.get("path"), str)}
    for entry in ours:
        found = known.get(entry["path"])
        if found is None:
            yield f"{name} does not list {entry['path']!a} in SciCat"
            continue
        for key in ENTRY:
            if found.get(key) != entry.get(key):
                yield _says(f"{name}, {entry['path']!a}", key, found.get(key), entry.get(key))
        if not _same_time(found.get("time"), entry["time"]):
            yield _says(f"{name}, {entry['path']!a}", "time", found.get("time"), entry["time"])


def _same_time(there: object, ours: str) -> bool:
    """SciCat keeps times to the millisecond, and gives them back in UTC; one without a zone is read in the server's own."""
    try:
        one, other = (datetime.fromisoformat(str(text).replace("Z", "+00:00")) for text in (there, ours))
    except ValueError:
        return False
    if one.tzinfo is None or other.tzinfo is None:
        return there == ours or other.tzinfo is None
    one, other = (time.replace(microsecond=time.microsecond // 1000 * 1000) for time in (one, other))
    return one == other


def _says(name: str, key: str, there: object, ours: object) -> str:
    return f"{name}: {key} {ascii(there)[:100]} in SciCat, {ascii(ours)[:100]} in the bag"


def _some(told: Iterable[str]) -> str:
    told = list(told)
    return "; ".join(told[:SHOWN]) + (f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else "")


def _archived(dataset: Dataset) -> bool:
    return dataset.lifecycle.retrievable and dataset.lifecycle.archive_status_message == payloads.ARCHIVED


def _counters(dataset: Dataset, right: Counters) -> dict[str, tuple[int, int]]:
    """Those of the dataset's counters that are not as they ought to be: what is there, and what is right."""
    there = Counters.of(dataset).payload()
    return {name: (there[name], value) for name, value in right.payload().items() if there[name] != value}


def _finished(bag: Bag, sums: Sums) -> m.FinishDatasetRequest:
    return m.FinishDatasetRequest(
        pid=bag.pid,
        job_id=bag.job,
        datablocks=len(bag.blocks),
        files=sums.files,
        size_bytes=sums.size,
        packed_bytes=sums.packed,
        level=bag.level,
    )
