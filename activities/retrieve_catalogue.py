"""Queue ``archiver-catalogue``, retrieval: SciCat is read and told; links are made here, and written nowhere else (P8)."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from temporalio import activity
from temporalio.client import Client

from activities.catalogue import (
    GONE,
    log_failed,
    logger,
    not_before,
    policy_of,
    set_in_progress,
    tell_job,
    until_told,
    verdict,
)
from activities.connection import answering
from activities.running import Beat, beating, in_thread, told_async
from archiver import model as m
from archiver.catalogue import payloads
from archiver.catalogue.admission import is_foreign
from archiver.catalogue.client import SciCat
from archiver.catalogue.records import Dataset
from archiver.catalogue.retrieve import RetrieveAdmission, admit_retrieve, refuse_hostile_names
from archiver.errors import CatalogueFault, Refused, TargetFault, UnknownDataset, UnknownFiles
from archiver.pids import pid_path
from archiver.retrieval import wire as w
from archiver.retrieval.delivered import Delivered, from_bytes
from archiver.retrieval.keys import TOLD, RetrievalKeys, selection_of
from archiver.retrieval.result import links, places
from archiver.settings import Settings
from archiver.storage.objects import Bucket
from archiver.storage.retrieval_bucket import RetrievalBucket
from archiver.text import keyword
from workflows.visible import PID

FIRST = 10
"""Unknown names that a message tells."""


class RetrieveCatalogue:
    """Reads SciCat, tells SciCat, for retrieve jobs. Every method may be repeated (P6)."""

    def __init__(self, settings: Settings, staging: Bucket, scicat: SciCat) -> None:
        self._settings = settings
        self._staging = staging
        self._scicat = scicat
        self._target = RetrievalBucket(Bucket(settings.retrieval.bucket, settings.s3, TargetFault), settings.retrieval)

    def all(self) -> list[Callable[..., Any]]:
        """The activities of this queue."""
        return [
            self.begin_retrieve_job,
            self.read_retrieve_page,
            self.finish_retrieve_job,
            self.begin_retrieve_dataset,
            self.finish_retrieve_dataset,
            self.fail_retrieve_dataset,
            self.expire_retrieved,
        ]

    # --- jobs -----------------------------------------------------------------------------------------------------

    @activity.defn(name="begin-retrieve-job")
    @told_async
    async def begin_retrieve_job(self, request: m.BeginJobRequest) -> w.BeginRetrieveJobResult:
        """Read the job, refuse what is not ours or cannot be had, set it in progress.

        Raises ``ForeignJob``, ``Refused``. A job whose ``executionTime`` has not come is tried again then.
        """
        job = await self._scicat.job(request.job_id)
        now = datetime.now(UTC)
        admitted = admit_retrieve(job, self._settings, now=now, pids=request.pids)
        not_before(job, admitted, now)
        total = len(admitted.entries)
        return w.BeginRetrieveJobResult(
            note=await set_in_progress(self._scicat, job, f"Retrieving {total} dataset{'s' if total != 1 else ''}."),
            total=total,
            wanted=_wanted(admitted)[: request.limit],
            owner_group=job.owner_group or "",
            destination=admitted.destination,
            policy=policy_of(self._settings),
        )

    @activity.defn(name="read-retrieve-page")
    @told_async
    async def read_retrieve_page(self, request: m.PageRequest) -> w.RetrievePage:
        """A page of what the job wants, in its order; the list of a job cannot change once it is made."""
        admitted = await self._admitted(request.job_id, request.pids)
        return w.RetrievePage(wanted=_wanted(admitted)[request.offset : request.offset + request.limit])

    async def _admitted(self, job_id: str, pids: list[str] | None) -> RetrieveAdmission:
        return admit_retrieve(await self._scicat.job(job_id), self._settings, now=datetime.now(UTC), pids=pids)

    @activity.defn(name="finish-retrieve-job")
    @told_async
    async def finish_retrieve_job(self, request: w.FinishRetrieveJobRequest) -> m.FinishJobResult:
        """Write the terminal status once, with links to what was retrieved. They live from now on, at most seven days.

        A job that ended well before and is run again is told anew only if it asks for data: its old links may be dead.
        """
        with until_told():
            return await self.tell_end(request, run=str(activity.info().workflow_run_id))

    @staticmethod
    def verdict(request: m.FinishJobRequest) -> tuple[str, str]:
        """What SciCat is told of the end of a job."""
        return verdict(request, "retrieved")

    async def tell_end(self, request: w.FinishRetrieveJobRequest, *, run: str) -> m.FinishJobResult:
        """As ``finish_retrieve_job``, also for the sweep, which tells it again; ``run``: of the job's workflow."""
        code, message = self.verdict(request)
        result = payloads.job_result(message, request, links=bool(request.counts.retrieved))
        if request.counts.retrieved:
            async with beating("making links"):
                result |= await self._result(request, run)
        await tell_job(self._scicat, request.job_id, payloads.job_update(code, message, result))
        logger.info("job %s ended, %s: %s", request.job_id, code, message)
        return m.FinishJobResult(status_code=code, message=message)

    async def _result(self, request: w.FinishRetrieveJobRequest, run: str) -> payloads.Payload:
        """The part of the job's result object that only the requester may see."""
        settings, target, to = self._settings.retrieval, self._target, request.destination
        if to.kind == "directory":
            there = [(one.pid, one.size_bytes) for one in request.outcomes if one.outcome == "retrieved"]
            above = PurePosixPath(to.root) / to.path
            return places(there, lambda pid: str(above / pid_path(pid)), above=str(above), room=payloads.ROOM_FOR_LINKS)
        admitted = await self._admitted(request.job_id, request.pids)
        bad = {one.pid for one in request.outcomes if one.outcome not in m.GOOD}
        retrieved = {one.pid for one in request.outcomes if one.outcome == "retrieved"}
        wanted = [one for one in _wanted(admitted) if one.pid not in bad]
        for one in wanted:
            # What is linked to from now on is not to end before its links do.
            await in_thread(target.renew, one.pid, one.selection)
        return await in_thread(
            links,
            [(one.pid, partial(self._delivered, one, one.pid in retrieved)) for one in wanted],
            presign=lambda key: target.presign(key, settings.url_life_seconds),
            put=target.bucket.put_stream,
            at=f"{target.dataset(wanted[0].pid)}{TOLD}jobs/{request.job_id}/" if wanted else "",
            life_seconds=settings.url_life_seconds,
            room=payloads.ROOM_FOR_LINKS,
            run=run,
        )

    def _delivered(self, wanted: w.Wanted, told: bool) -> Iterator[Delivered]:
        keys = RetrievalKeys(self._settings.staging.prefix, wanted.pid, wanted.selection)
        prefix = self._target.dataset(wanted.pid)
        complete = self._target.bucket.get(keys.complete(prefix))
        if complete is None:
            if told:
                raise self._not_there(wanted.pid, keys.complete(prefix))
            return  # of a job of more failures than are told one by one
        for n in json.loads(complete)["datablocks"]:
            if (listed := self._target.bucket.get(keys.delivered(prefix, n))) is None:
                raise self._not_there(wanted.pid, keys.delivered(prefix, n))
            yield from from_bytes(listed)

    def _not_there(self, pid: str, key: str) -> TargetFault:
        """Links that leave files out would be a lie."""
        return TargetFault(
            f"what was retrieved of dataset {pid} cannot be told: {key} is not in {self._target.where}",
            expected="the list that its retrieval stored there",
            found="nothing",
            next_step="see who deletes from this bucket; cancel the job, and submit it again",
        )

    # --- datasets --------------------------------------------------------------------------------------------------

    @activity.defn(name="begin-retrieve-dataset")
    @told_async
    async def begin_retrieve_dataset(self, request: w.Selection) -> w.BeginRetrieveResult:
        """Mark the dataset as being retrieved; store the catalogue's datablocks, and the wanted names, checked against it.

        Raises ``UnknownDataset``, ``Refused`` (not ours, not archived, being archived), ``HostilePath``, ``UnknownFiles``,
        ``CatalogueFault``.
        """
        dataset = await self._scicat.dataset(request.pid)
        if dataset is None:
            raise UnknownDataset(
                f"SciCat knows no dataset {request.pid}",
                expected="a dataset of that pid that our account may read",
                found=GONE,
                next_step="check the pid, and the rights of the archiver's account",
            )
        self._refuse(dataset)
        admitted = await self._admitted(request.job_id, [request.pid])
        names = dict(admitted.entries).get(request.pid, ())
        refuse_hostile_names(request.job_id, request.pid, names)
        keys = self._keys(request)
        await self._scicat.patch_lifecycle(request.pid, payloads.lifecycle_retrieve_started(request.job_id))
        async with beating("reading datablocks") as say:
            blocks = await self._scicat.datablocks(request.pid)
            if not blocks:
                raise CatalogueFault(
                    f"SciCat calls dataset {request.pid} retrievable, but has no datablock of it",
                    expected="at least one datablock",
                    found="none",
                    next_step="compare SciCat with the LTS; nothing was delivered",
                    retryable=False,
                )
            records = {block.archive_id: block.packed_size for block in blocks}
            stored = await in_thread(self._store, keys, json.dumps(records, sort_keys=True).encode())
            wanted = ""
            if names:
                known = await self._known(request.pid, set(names), say)
                wanted = await in_thread(self._store, keys, gzip.compress(json.dumps(sorted(known)).encode(), mtime=0))
                names = tuple(known)
        return w.BeginRetrieveResult(
            owner_group=dataset.owner_group or "",
            datablocks=len(blocks),
            files=len(names),
            records=stored,
            wanted=wanted,
        )

    def _store(self, keys: RetrievalKeys, data: bytes) -> str:
        """Into staging, under the SHA-256 of the bytes, which is returned."""
        sha256 = hashlib.sha256(data).hexdigest()
        self._staging.put(keys.staged(sha256), data)
        return sha256

    def _refuse(self, dataset: Dataset) -> None:
        archive, lifecycle = self._settings.archive, dataset.lifecycle
        if is_foreign(lifecycle.storage_location, archive):
            raise Refused(
                f"dataset {dataset.pid} belongs to another archive",
                expected=f"storageLocation empty or {archive.storage_location!r}",
                found=f"{lifecycle.storage_location!r}",
                next_step="send its job to that archive; nothing was changed",
            )
        if not lifecycle.retrievable:
            archiving = lifecycle.archive_status_message == payloads.STARTED
            raise Refused(
                f"dataset {dataset.pid} is {'being archived at this moment' if archiving else 'not archived'}",
                expected="a dataset that SciCat shows as retrievable",
                found=f"archiveStatusMessage {lifecycle.archive_status_message!r}",
                next_step="submit the job again when it is archived; nothing was changed",
            )

    async def _known(self, pid: str, names: set[str], say: Callable[..., None]) -> set[str]:
        """Those of the names that the catalogue lists (all of its origdatablocks: SciCat's own check sees 100).

        Raises ``UnknownFiles`` as the setting says.
        """
        unknown = set(names)
        async for block in self._scicat.origdatablocks(pid):
            unknown -= {entry.path for entry in block.catalogue_files(pid)}
            say(note="looking the wanted files up")
            if not unknown:
                break
        known = names - unknown
        if unknown and (self._settings.retrieval.unknown_files == "refuse" or not known):
            told = ", ".join(ascii(name[:100]) for name in sorted(unknown)[:FIRST])
            raise UnknownFiles(
                f"dataset {pid} does not have {len(unknown)} of the {len(names)} files that the job lists",
                expected="names as SciCat lists them for this dataset",
                found=told + (f" and {len(unknown) - FIRST} more" if len(unknown) > FIRST else ""),
                next_step="submit the job with names that the dataset has; nothing was delivered",
                dataset=pid,
            )
        return known

    @activity.defn(name="finish-retrieve-dataset")
    @told_async
    async def finish_retrieve_dataset(self, request: w.FinishRetrieveRequest) -> m.Done:
        """Tell SciCat that everything wanted was checked and lies there (P2); archive states stay as they are."""
        keys = self._keys(request)
        complete = json.dumps({"pid": request.pid, "datablocks": request.datablocks, "files": request.files}).encode()
        with until_told():
            if request.destination.kind != "directory":
                await in_thread(self._target.bucket.put, self._complete(request), complete)
            await self._scicat.patch_lifecycle(request.pid, payloads.lifecycle_retrieved(request))
            await in_thread(self._clean, keys)
        logger.info(
            "dataset %s retrieved: %d files, %d bytes, job %s",
            *(request.pid, request.files, request.size_bytes, request.job_id),
        )
        return m.Done(what="retrieved")

    @activity.defn(name="fail-retrieve-dataset")
    @told_async
    async def fail_retrieve_dataset(self, request: w.FailRetrieveRequest) -> m.Done:
        """Tell SciCat why it was not retrieved, or who stopped it; archive states stay as they are."""
        with until_told():
            with suppress(UnknownDataset):
                await self._scicat.patch_lifecycle(request.pid, payloads.lifecycle_retrieve_failed(request))
            await in_thread(self._clean, self._keys(request))
        log_failed("retrieved", request)
        return m.Done(what="not retrieved")

    # --- the end of retrieved data -----------------------------------------------------------------------------------

    @activity.defn(name="expire-retrieved")
    @told_async
    async def expire_retrieved(self, request: m.SweepRequest) -> w.ExpireResult:
        """Remove from the retrieval bucket what is past its days and no retrieval has in work. Repeating it is harmless."""
        client, loop = activity.client(), asyncio.get_running_loop()

        def in_work(pid: str) -> bool:
            # Asked anew each time, from the thread that removes.
            return keyword(pid) in asyncio.run_coroutine_threadsafe(retrieved_now(client), loop).result()

        async with beating("looking at retrieved data"):
            done = await in_thread(self._target.expire, time.time(), in_work, Beat(loop=loop))
        return w.ExpireResult(**asdict(done))

    def _clean(self, keys: RetrievalKeys) -> None:
        self._staging.delete(entry.key for entry in self._staging.list(keys.work))

    def _complete(self, request: w.Selection) -> str:
        return self._keys(request).complete(self._target.dataset(request.pid))

    def _keys(self, request: w.Selection) -> RetrievalKeys:
        return RetrievalKeys(self._settings.staging.prefix, request.pid, request.selection)


async def retrieved_now(client: Client) -> set[str]:
    """Pids, as ``keyword`` makes them, of which a retrieval runs."""
    query = "WorkflowType IN ('RetrieveDataset', 'RetrieveDatablock') AND ExecutionStatus = 'Running'"
    with answering():
        listed = [one.typed_search_attributes.get(PID) async for one in client.list_workflows(query)]
    return {pid for pid in listed if pid}


def _wanted(admitted: RetrieveAdmission) -> list[w.Wanted]:
    return [
        w.Wanted(pid=pid, selection=selection_of(admitted.destination, names), files=len(names))
        for pid, names in admitted.entries
    ]
