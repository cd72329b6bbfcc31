"""The SciCat client: about fifteen calls over ``httpx``.

A 401 or 403 may mean an expired token, an empty list may mean no rights, a 500 may mean a body too large, and an answer that
did not come may hide a write that was done: so both log in once more, lists are compared with counts, and writes are read back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from archiver.catalogue import payloads, queries
from archiver.catalogue.payloads import Counters
from archiver.catalogue.queries import BLOCKS_AT_ONCE, PAGE, Query
from archiver.catalogue.records import Datablock, Dataset, Job, JobHead, Lifecycle, OrigDatablock
from archiver.catalogue.session import ADMIN, QUICK_TRIES, TOO_LARGE, Session, no_route, words
from archiver.errors import CatalogueFault, CatalogueRecordInvalid, JobNotWritable, UnknownDataset, UnknownJob
from archiver.settings import SciCatSettings
from archiver.text import name

MAX_BODY_BYTES = 15_000_000
"""SciCat answers a body over 16 MB with a 500."""
SMALL_BODY_BYTES = 1_000_000
"""A body that no server or proxy refuses for its size."""
PAUSE_SECONDS = 1.0
"""Between a write of a job that failed and the next."""
DELETED_DATASET = "Unable to get a dataset"
"""Beginning of SciCat's 404 to every PATCH of a job, once a dataset that the job names was deleted."""
NAMED = 3
"""Deleted datasets that a message names."""
Document = dict[str, Any]


class SciCat:
    """One account at one SciCat. Enter it; safe for concurrent calls."""

    def __init__(self, settings: SciCatSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._session = Session(settings, transport=transport)
        self._borrowed = False

    @classmethod
    def over(cls, session: Session) -> SciCat:
        """Over a session that stays its maker's to close."""
        scicat = cls.__new__(cls)
        scicat._session, scicat._borrowed = session, True
        return scicat

    async def __aenter__(self) -> SciCat:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._borrowed:
            await self._session.close()

    # --- account ------------------------------------------------------------------------------------------------------

    async def whoami(self) -> dict[str, Any]:
        """Our account as SciCat sees it. Raises ``CatalogueFault`` if it sees none even after another login."""
        return await self._session.whoami()

    async def healthy(self) -> bool:
        """Whether SciCat says that it and its database are up."""
        return await self._session.healthy()

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def job(self, job_id: str, *, lists: bool = True) -> Job:
        """A job by its id. Raises ``UnknownJob`` if SciCat knows none (it answers 400).

        Without ``lists`` its dataset list is left out, so that a job whose list cannot be read can be told so.
        """
        status, body = await self._session.read("GET", f"/api/v4/jobs/{_segment(job_id)}", allow=(400, 404))
        if status != 200:
            if not isinstance(body, dict) or no_route(body):
                raise self._session.wrong_address(f"SciCat has no jobs at {self._session.where}", status, body)
            raise UnknownJob(
                f"SciCat knows no job {job_id}",
                expected="a job of that id that our account may read",
                found=self._session.hidden(words(body))[:200] or f"status {status}",
                next_step="check the id, and the rights of the archiver's account",
            )
        job = Job.read(self._object(body, f"job {job_id}"), lists=lists)
        if job.id != job_id:
            raise self._session.fault(f"SciCat's answer is not job {job_id}", job_id, job.id or "another document")
        return job

    async def some_jobs(self, job_ids: list[str]) -> dict[str, Job]:
        """Those of these jobs that SciCat shows and that can be read; why another is not among them, ``job`` says."""
        found: dict[str, Job] = {}
        for document in await self._list(queries.some_jobs(job_ids)):
            with contextlib.suppress(CatalogueRecordInvalid):
                job = Job.read(document)
                if job.id in job_ids:
                    found[job.id] = job
        return found

    async def jobs(self, job_type: str, status_code: str) -> list[JobHead]:
        """All jobs of this type and status, the oldest first, whatever order and limit SciCat or a proxy applies."""
        found: list[JobHead] = []
        async for entry in self._all("id", "jobs", partial(queries.jobs, job_type, status_code)):
            head = JobHead.read(entry)
            if (head.type, head.status_code) == (job_type, status_code):
                found.append(head)
        return sorted(found, key=lambda head: (head.created_at, head.id))

    async def create_job(
        self,
        job_type: str,
        pids: list[str],
        *,
        owner_group: str | None = None,
        files: list[str] | None = None,
        to: str = "",
    ) -> Job:
        """Submit a job as a user would. Not to be repeated blindly: each success is another job.

        Raises ``CatalogueFault``; the job may exist all the same, because SciCat answers with the status of its own
        webhook.
        """
        try:
            _, body = await self._session.call(
                "POST",
                "/api/v4/jobs",
                json_body=payloads.create_job(job_type, pids, owner_group, files=files, to=to),
            )
            return Job.read(self._object(body, "a job"))
        except CatalogueFault as fault:
            raise self._session.fault(
                fault.what,
                fault.expected or "success",
                fault.found or "nothing",
                next_step="see in SciCat whether the job is there before submitting another",
                retryable=False,
            ) from None

    async def update_job(self, job_id: str, payload: dict[str, Any]) -> bool:
        """Bring the job to ``payload``: read, compare, write only what differs; returns whether it was written.

        Every write runs SciCat's update actions again (mails), so an answer that failed is followed by a reading, not by
        another write. Raises ``JobNotWritable`` if a dataset of the job was deleted: SciCat then refuses every status.
        """
        path = f"/api/v4/jobs/{_segment(job_id)}"
        if payloads.job_says(await self.job(job_id, lists=False), payload):
            return False
        for attempt in range(QUICK_TRIES):
            try:
                status, body = await self._session.call("PATCH", path, json_body=payload, allow=(404,))
                if status != 404:
                    return True
                fault = await self._not_found(job_id, status, body)
            except JobNotWritable:
                raise
            except CatalogueFault as error:
                fault = error
            # Also after a 400: an update action can fail after the job was saved.
            if payloads.job_says(await self.job(job_id, lists=False), payload):
                return True
            if not fault.retryable or attempt == QUICK_TRIES - 1:
                break
            await asyncio.sleep(PAUSE_SECONDS)
        raise fault

    async def _not_found(self, job_id: str, status: int, body: Any) -> CatalogueFault:
        """What a 404 to the update of a job means. Raises ``JobNotWritable`` if a dataset of the job is really gone."""
        if not words(body).startswith(DELETED_DATASET):
            return self._session.wrong_address(f"SciCat has no PATCH of job {job_id}", status, body)
        deleted = await self.deleted_datasets(await self.job(job_id))
        if deleted:
            raise not_writable(job_id, deleted, self._session.hidden(words(body)))
        return self._session.fault(
            f"SciCat refuses the status of job {job_id}",
            "success: all its datasets are there",
            f"status {status}: {words(body)}",
        )

    async def deleted_datasets(self, job: Job) -> list[str]:
        """Those datasets of a job that SciCat does not have any more. Each one is asked for by itself before it is told."""
        pids = list(dict.fromkeys(entry.pid for entry in job.datasets))
        deleted: list[str] = []
        for start in range(0, len(pids), PAGE):
            some = pids[start : start + PAGE]
            shown = await self.storage_locations(some)
            deleted += [pid for pid in some if pid not in shown and await self.dataset(pid) is None]
        return deleted

    # --- datasets -----------------------------------------------------------------------------------------------------

    async def dataset(self, pid: str) -> Dataset | None:
        """A dataset, or None if SciCat says that it has none. Raises ``CatalogueFault`` for a 404 that says less."""
        status, body = await self._session.read("GET", f"/api/v4/datasets/{_segment(pid)}", allow=(404,))
        if status == 404:
            if isinstance(body, dict) and not no_route(body):
                return None
            raise self._session.wrong_address(f"SciCat has no datasets at {self._session.where}", status, body)
        dataset = Dataset.read(self._object(body, f"dataset {pid}"))
        if dataset.pid != pid:
            raise self._session.fault(f"SciCat's answer is not dataset {pid}", pid, dataset.pid)
        return dataset

    async def pids(self, archive_status: str) -> list[str]:
        """Pids of all datasets with this archiveStatusMessage, read as ``jobs``."""
        return [
            str(entry["pid"]) async for entry in self._all("pid", "datasets", partial(queries.pids, archive_status))
        ]

    async def storage_locations(self, pids: list[str]) -> dict[str, str | None]:
        """Of each dataset that SciCat shows, its ``storageLocation``. For at most ``PAGE`` pids."""
        return {pid: found.storage_location for pid, found in (await self.lifecycles(pids)).items()}

    async def lifecycles(self, pids: list[str]) -> dict[str, Lifecycle]:
        """Of each dataset that SciCat shows, its lifecycle. For at most ``PAGE`` pids: they stand in the URL."""
        found = await self._list(queries.storage_locations(pids))
        return {one.pid: one.lifecycle for one in map(Dataset.read, found) if one.pid in pids}

    async def patch_lifecycle(self, pid: str, fields: dict[str, Any]) -> None:
        """Set fields of the lifecycle, and only these. May be repeated. Raises ``UnknownDataset`` if it was deleted."""
        path = f"/api/v4/datasets/{_segment(pid)}/datasetlifecycle"
        # 409: older backends, if nothing changes.
        await self._patch_dataset(pid, path, fields, 409)

    async def patch_counters(self, pid: str, right: Counters) -> bool:
        """Bring the dataset's counters to ``right``: read, compare, write only if one differs, look again.

        Returns whether they were written. May be repeated. Raises ``CatalogueFault`` if SciCat does not keep them,
        ``UnknownDataset`` if the dataset was deleted.
        """
        path = f"/api/v4/datasets/{_segment(pid)}"
        for tries in range(QUICK_TRIES + 1):
            dataset = await self.dataset(pid)
            if dataset is None:
                raise dataset_deleted(pid)
            if (there := Counters.of(dataset)) == right:
                return tries > 0
            if tries < QUICK_TRIES:
                await self._patch_dataset(pid, path, right.payload())
        raise self._session.fault(
            f"SciCat does not keep the counters of dataset {pid}",
            f"{right.payload()}",
            f"{there.payload()}",
            next_step="see who else writes to it; retried",
        )

    async def right_counters(self, dataset: Dataset, archived: Counters) -> Counters:
        """What the counters ought to be where the datablocks sum up to ``archived``.

        ``size`` and ``numberOfFiles`` stay where SciCat has some. Where it has 0, as earlier versions of ours and other
        writers left it, they are summed over the origdatablocks, or taken from ``archived`` if there are none any more.
        """
        size, files = dataset.size or 0, dataset.number_of_files or 0
        if not files:
            listed = 0
            async for block in self.origdatablocks(dataset.pid):
                for entry in block.catalogue_files(dataset.pid):
                    files, listed = files + 1, listed + entry.size
            size = size or listed
        return archived._replace(size=size or archived.size, files=files or archived.files)

    async def _patch_dataset(self, pid: str, path: str, fields: dict[str, Any], *allow: int) -> None:
        status, body = await self._session.read("PATCH", path, json_body=fields, allow=(404, *allow))
        if status == 404:
            raise await self._no_dataset(pid, f"PATCH {path}", status, body)

    async def _no_dataset(self, pid: str, what: str, status: int, body: Any) -> CatalogueFault | UnknownDataset:
        """What a 404 to a call about a dataset means."""
        if await self.dataset(pid) is None:
            return dataset_deleted(pid)
        return self._session.wrong_address(f"SciCat has no {what}", status, body)

    # --- origdatablocks -----------------------------------------------------------------------------------------------

    async def origdatablocks(self, pid: str) -> AsyncIterator[OrigDatablock]:
        """Every origdatablock, a few at a time, compared with SciCat's count.

        Raises ``CatalogueFault`` if SciCat shows fewer than it counts, none of a dataset that has files, or has another
        number at the end.
        """
        ids = [entry["_id"] for entry in await self._complete("origdatablocks", pid, self._ids)]
        if not ids:
            dataset = await self.dataset(pid)
            if dataset is not None and dataset.number_of_files:
                raise self._session.fault(
                    f"SciCat counts files of dataset {pid}, but no origdatablock",
                    f"origdatablocks with {dataset.number_of_files} files",
                    "0 origdatablocks",
                    next_step=f"see whether they were deleted, and whether our account has {ADMIN}",
                    retryable=False,
                )
        for start in range(0, len(ids), BLOCKS_AT_ONCE):
            wanted = ids[start : start + BLOCKS_AT_ONCE]
            for block in await self._blocks(pid, wanted):
                yield block
        if (count := await self._count(pid, "origdatablocks")) != len(ids):
            raise self._session.fault(
                f"the origdatablocks of dataset {pid} changed while they were read",
                f"{len(ids)} origdatablocks",
                f"{count}",
                next_step="retried; see whether its ingest is still going on",
            )

    async def _blocks(self, pid: str, wanted: list[str]) -> list[OrigDatablock]:
        """These origdatablocks; read again once if they are not all there: our token may have expired."""
        for last in (False, True):
            found = {
                block.id: block
                for block in map(OrigDatablock.read, await self._list(queries.origdatablocks(pid, wanted)))
                if block.dataset == pid
            }
            if found.keys() == set(wanted):
                return [found[one] for one in wanted]
            if not last:
                await self.whoami()
        raise self._session.fault(
            f"origdatablocks of dataset {pid} vanished while they were read",
            f"{len(wanted)} blocks: {', '.join(wanted)}",
            f"{len(found)}",
        )

    # --- datablocks ---------------------------------------------------------------------------------------------------

    async def datablocks(self, pid: str) -> list[Datablock]:
        """Every datablock of the dataset, compared with SciCat's count; files counted, not listed."""
        return [Datablock.read(entry) for entry in await self._complete("datablocks", pid, self._registered)]

    async def datablock(self, archive_id: str) -> Document | None:
        """The datablock of this archiveId, with its files, whichever dataset it is of; None if SciCat has none."""
        found = await self._with_archive_id(archive_id)
        if not found:
            # An empty list is also what the anonymous get: it counts only if SciCat knows us.
            await self.whoami()
            found = await self._with_archive_id(archive_id)
        return found[0] if found else None

    async def create_datablock(self, payload: dict[str, Any]) -> bool:
        """Register a datablock; returns whether it was created now. May be repeated: its archiveId is unique.

        After a 409 or an answer that tells nothing it is read back and compared. Raises ``CatalogueFault`` if another
        datablock has this archiveId.
        """
        size = len(json.dumps(payload, ensure_ascii=False).encode())
        if size > MAX_BODY_BYTES:
            raise self._session.fault(
                f"datablock {payload['archiveId']} is too large to be registered",
                f"at most {MAX_BODY_BYTES} B of JSON",
                f"{size} B",
                next_step="lower datablock.max_metadata_bytes; the dataset must then be planned anew",
                retryable=False,
            )
        fault: CatalogueFault | None = None
        try:
            status, _ = await self._session.call("POST", "/api/v3/datablocks", json_body=payload, allow=(409,))
            if status != 409:
                return True
        except CatalogueFault as error:
            if not error.retryable:
                raise
            fault = error
        there = await self._with_archive_id(payload["archiveId"])
        if not there and fault is None:
            await self.whoami()
            there = await self._with_archive_id(payload["archiveId"])
        if not there:
            if fault is not None and size > SMALL_BODY_BYTES:
                # SciCat says 500 to a body over its limit, a proxy may just hang up.
                raise self._session.fault(
                    fault.what,
                    fault.expected or "success",
                    fault.found or "nothing",
                    next_step=f"retried; if it stays so with this body of {size} B: {TOO_LARGE}",
                )
            raise fault or self._session.fault(
                f"SciCat says that datablock {payload['archiveId']} exists, but does not show it",
                "the datablock",
                "none",
            )
        if not payloads.same_datablock(there[0], payload):
            raise self._session.fault(
                f"another datablock is registered as {payload['archiveId']}",
                f"dataset {payload['datasetId']}, {payload['packedSize']} B packed, {payload['version']}",
                f"dataset {there[0].get('datasetId')}, {there[0].get('packedSize')} B packed, {there[0].get('version')}",
                next_step="compare SciCat with the LTS; nothing was changed",
                retryable=False,
            )
        return False

    # --- reading lists --------------------------------------------------------------------------------------------------

    async def _with_archive_id(self, archive_id: str) -> list[dict[str, Any]]:
        found = await self._list(queries.datablocks_of_archive_id(archive_id))
        return [entry for entry in found if entry.get("archiveId") == archive_id]

    async def _complete(
        self, what: str, pid: str, read: Callable[[str, int], Awaitable[list[Document]]]
    ) -> list[Document]:
        """All that SciCat counts, each once. A list that is short is read again once, by an account that SciCat knows.

        Lists show the anonymous nothing and say 200; the nested count says 403 to them.
        """
        for last in (False, True):
            count = await self._count(pid, what)
            found = {key: entry for entry in await read(pid, count) if isinstance(key := entry.get("_id"), str)}
            if len(found) == count:
                return list(found.values())
            if not last:
                await self.whoami()
        raise self._session.fault(
            f"SciCat does not show all {what} of dataset {pid}",
            f"{count} {what}",
            f"{len(found)}",
            next_step=f"our account needs {ADMIN} to read those of other groups (docs/scicat.md)",
            retryable=bool(found),
        )

    async def _count(self, pid: str, what: str) -> int:
        path = f"/api/v3/datasets/{_segment(pid)}/{what}/count"
        status, body = await self._session.read("GET", path, allow=(404,))
        if status == 404:
            raise await self._no_dataset(pid, f"GET {path}", status, body)
        answer = self._object(body, "a count")
        count = answer.get("count")
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise self._session.fault(f"SciCat's count of {what} of {pid} is none", "a number", repr(count)[:60])
        return count

    async def _ids(self, pid: str, count: int) -> list[Document]:
        """Ids of the origdatablocks."""
        return await self._by_skips(count, lambda skip: queries.origdatablock_ids(pid, skip=skip))

    async def _registered(self, pid: str, count: int) -> list[Document]:
        """The datablocks a few at a time, because each carries up to 20,000 files, which are counted and dropped."""
        return await self._by_skips(count, lambda skip: queries.datablocks(pid, skip=skip))

    async def _by_skips(self, count: int, page: Callable[[int], Query]) -> list[Document]:
        """Pages until there are ``count`` entries, or one brings nothing new."""
        found: list[Document] = []
        while len(found) < count:
            entries = [_without_files(entry) for entry in await self._list(page(len(found)))]
            if all(entry in found for entry in entries):
                break
            found += entries
        return found

    async def _all(self, key: str, what: str, query: Callable[..., Query]) -> AsyncIterator[Document]:
        """Every entry once, in pages that each go on beyond the last ``key`` of the one before, until one is empty.

        So a limit that SciCat or a proxy applies without a word hides none. A page that is not in order may hide entries
        between its own: its two halves are asked for, and theirs, until they show nothing that the page did not.
        """
        seen: set[str] = set()
        parts = [("", "", True)]
        while parts:
            after, until, unseen = parts.pop()
            page = await self._list(query(after=after, until=until))
            keys = [self._key(entry, key, what, after, until) for entry in page]
            for entry, value in zip(page, keys, strict=True):
                if value not in seen:
                    seen.add(value)
                    unseen = True
                    yield entry
            if not keys or not unseen:
                continue
            if keys == (in_order := sorted(set(keys))):
                parts.append((keys[-1], until, True))
            else:
                middle = in_order[(len(in_order) - 1) // 2]
                parts += [(after, middle, False), (middle, until, False)]

    def _key(self, entry: Document, key: str, what: str, after: str, until: str) -> str:
        """The entry's key, if it lies where it was asked for: or a list that does not heed ``where`` would never end."""
        value = entry.get(key)
        if not isinstance(value, str) or not value or value <= after or (until and value > until):
            upto = f" and up to {until!r}" if until else ""
            raise self._session.fault(
                f"SciCat's list of {what} does not go on", f"{key} beyond {after!r}{upto}", repr(value)[:100]
            )
        return value

    async def _list(self, query: Query) -> list[dict[str, Any]]:
        _, answer = await self._session.read("GET", query.path, params=query.params)
        if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
            raise self._session.fault(
                f"SciCat's answer to {query.path} is no list", "a JSON array", words(answer) or "another value"
            )
        return answer

    def _object(self, answer: Any, what: str) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise self._session.fault(
                f"SciCat's answer is not {what}", "a JSON object", words(answer) or "another value"
            )
        return answer


def dataset_deleted(pid: str) -> UnknownDataset:
    """The error for a dataset that was deleted while it was worked on."""
    return UnknownDataset(
        f"SciCat has no dataset {pid} any more",
        expected="the dataset that is worked on",
        found="none: it was deleted meanwhile",
        next_step="nothing of the archive was removed; restore the dataset in SciCat, then submit it again",
        dataset=pid,
    )


def not_writable(job_id: str, deleted: list[str], answer: str = "") -> JobNotWritable:
    """The error for a job of which SciCat refuses every status because these datasets of it were deleted."""
    names = ", ".join(name(pid) for pid in deleted[:NAMED]) + (
        f" and {len(deleted) - NAMED} more" if len(deleted) > NAMED else ""
    )
    were = "dataset {} was" if len(deleted) == 1 else "datasets {} were"
    return JobNotWritable(
        f"SciCat refuses every status of job {job_id}, because its {were.format(names)} deleted",
        expected="a job whose datasets all exist",
        found=f"status 404: {answer}"[:200] if answer else f"{len(deleted)} deleted",
        next_step="nothing can be told in this job any more; archive what is still wanted with a new job",
    )


def _segment(text: str) -> str:
    """One segment of a path; a client would take dots alone for steps between folders."""
    return text.replace(".", "%2E") if text in (".", "..") else quote(text, safe="", errors="replace")


def _without_files(entry: Document) -> Document:
    files = entry.get("dataFileList")
    return {**entry, "dataFileList": [None] * len(files)} if isinstance(files, list) else entry
