"""Queue ``archiver-catalogue``: every SciCat call. Writes about one dataset come one after another by its workflow."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.running import BENIGN, beating, in_thread, told_async
from archiver import model as m
from archiver.catalogue import payloads
from archiver.catalogue.admission import NOT_YET, Admission, admit, is_foreign
from archiver.catalogue.client import SciCat
from archiver.catalogue.payloads import Counters
from archiver.catalogue.records import Dataset, Job
from archiver.datablock.contents import Counting
from archiver.datablock.files import CatalogueFile, path_key, write_lines
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.record import DatablockRecord
from archiver.errors import (
    CatalogueChanged,
    CatalogueFault,
    EmptyDataset,
    IntegrityMismatch,
    JobNotWritable,
    Refused,
    UnknownDataset,
)
from archiver.pids import pid_path
from archiver.retrieval import wire as w
from archiver.settings import Settings
from archiver.storage.objects import Bucket
from archiver.storage.staging import Staged, StagingKeys, archive_id
from archiver.text import name, one_line

FILES_PER_LIST = 20_000
"""Files of one sorted list in staging: what is held in memory while origdatablocks are read (P10)."""

PASSING = frozenset({"datasetlifecycle", "updatedAt", "updatedBy", "history"})
"""Fields of a dataset that change while it is archived: its bag keeps the others."""

FINISHED_WELL = "finishedSuccessful"
OUR_WORDS = re.compile(
    r"(Archiving|Retrieving) \d+ datasets?\b|\d+ datasets?: |Nothing was (archived|retrieved): |Stopped by |"
    r"The archiver lost this job"
)
"""How every message begins that we write as a job's status. Any other was written by somebody else, and stays."""
MAX_WHO, MAX_REASON = 100, 300
"""Characters of who stopped a job, and why, in the sentence that its users get."""
MAX_PID, NAMED = 80, 5
"""Characters of a pid, and pids, that a job's message names."""


GONE = "none: it was deleted after the job was made, or our account may not read it"
"""Of a dataset that a job names."""

logger = logging.getLogger("archiver.catalogue")


class CatalogueActivities:
    """Reads SciCat, tells SciCat. Every method may be repeated (P6)."""

    def __init__(self, settings: Settings, staging: Bucket, scicat: SciCat) -> None:
        self._settings = settings
        self._staging = staging
        self._scicat = scicat

    def all(self) -> list[Callable[..., Any]]:
        """The activities of this queue."""
        return [
            self.begin_job,
            self.read_job_page,
            self.finish_job,
            self.begin_dataset,
            self.read_origdatablocks,
            self.compare_with_catalogue,
            self.register_datablocks,
            self.finish_dataset,
            self.fail_dataset,
        ]

    # --- jobs -----------------------------------------------------------------------------------------------------

    @activity.defn(name="begin-job")
    @told_async
    async def begin_job(self, request: m.BeginJobRequest) -> m.BeginJobResult:
        """Read the job, refuse what is not ours, set it in progress. A job that ended well before keeps its status.

        Raises ``ForeignJob``, ``Refused``: see ``admission``. A job whose ``executionTime`` has not come is tried again then.
        """
        job = await self._scicat.job(request.job_id)
        now = datetime.now(UTC)
        admitted = admit(job, self._settings.archive, now=now, pids=request.pids)
        not_before(job, admitted, now)
        pids = admitted.pids
        return m.BeginJobResult(
            note=await set_in_progress(self._scicat, job, f"Archiving {_datasets(len(pids))}."),
            total=len(pids),
            pids=pids[: request.limit],
            owner_group=job.owner_group or "",
            policy=policy_of(self._settings),
        )

    @activity.defn(name="read-job-page")
    @told_async
    async def read_job_page(self, request: m.PageRequest) -> m.PageResult:
        """A page of the job's pids, each once, in the job's order; the list of a job cannot change once it is made."""
        pids = request.pids
        if pids is None:
            job = await self._scicat.job(request.job_id)
            pids = [entry.pid for entry in job.datasets]
        return m.PageResult(pids=list(dict.fromkeys(pids))[request.offset : request.offset + request.limit])

    @activity.defn(name="finish-job")
    @told_async
    async def finish_job(self, request: m.FinishJobRequest) -> m.FinishJobResult:
        """Write the terminal status once: read, compare, write only what differs (SciCat mails at every write).

        A job that ended well before and is run again changed nothing: what its users were told stays.
        """
        with until_told():
            return await self.tell_end(request)

    @staticmethod
    def verdict(request: m.FinishJobRequest) -> tuple[str, str]:
        """What SciCat is told of the end of a job."""
        return verdict(request)

    async def tell_end(self, request: m.FinishJobRequest) -> m.FinishJobResult:
        """As ``finish_job``, also for the sweep, which tells it again. Raises ``JobNotWritable``, ``CatalogueFault``."""
        code, message = self.verdict(request)
        result = payloads.job_result(message, request)
        told = await self._scicat.job(request.job_id, lists=False)
        if told.status_code == code == FINISHED_WELL and request.counts.archived == 0:
            return m.FinishJobResult(status_code=code, message=message)
        await tell_job(self._scicat, request.job_id, payloads.job_update(code, message, result))
        logger.info("job %s ended, %s: %s", request.job_id, code, message)
        return m.FinishJobResult(status_code=code, message=message)

    # --- datasets --------------------------------------------------------------------------------------------------

    @activity.defn(name="begin-dataset")
    @told_async
    async def begin_dataset(self, request: m.BeginDatasetRequest) -> m.BeginDatasetResult:
        """Mark the dataset ``started`` and not archivable before anything else, unless it is archived or not ours."""
        try:
            pid_path(request.pid)
        except ValueError:
            raise Refused(
                f"dataset {request.pid[:200]} cannot have a directory on the LTS",
                expected="a pid of at most 255 bytes once it is percent-encoded",
                found=f"{len(quote(request.pid, safe=''))} bytes",
                next_step="give the dataset a shorter pid; nothing was changed",
            ) from None
        dataset = await self._scicat.dataset(request.pid)
        if dataset is None:
            raise UnknownDataset(
                f"SciCat knows no dataset {request.pid}",
                expected="a dataset of that pid that our account may read",
                found=GONE,
                next_step="check the pid, and the rights of the archiver's account",
            )
        self._refuse_foreign(dataset)
        lifecycle = dataset.lifecycle
        if lifecycle.is_archived:
            return await self._already(dataset)
        if lifecycle.archive_status_message in NOT_YET:
            raise Refused(
                f"dataset {request.pid} is not ready to be archived",
                expected="a dataset whose ingest is finished",
                found=f"archiveStatusMessage {lifecycle.archive_status_message!r}",
                next_step="submit the job again when its files and origdatablocks are there",
            )
        # Without what this very step changes: a second run of it stores the same, and a bag does not say "started".
        lasting = {name: value for name, value in dataset.raw.items() if name not in PASSING}
        record = json.dumps(lasting, ensure_ascii=False, sort_keys=True, indent=1).encode("utf-8", "replace")
        await self._scicat.patch_lifecycle(request.pid, payloads.lifecycle_started(request.job_id))
        stored = await in_thread(self._staged(request.pid, request.run).put, "record", record)
        return m.BeginDatasetResult(
            state="go",
            owner_group=dataset.owner_group or "",
            source=dataset.landing_fields,
            record=stored,
            files=dataset.number_of_files or 0,
        )

    def _refuse_foreign(self, dataset: Dataset) -> None:
        if self._is_foreign(dataset):
            raise Refused(
                f"dataset {dataset.pid} belongs to another archive",
                expected=f"storageLocation empty or {self._settings.archive.storage_location!r}",
                found=f"{dataset.lifecycle.storage_location!r}",
                next_step="send its job to that archive; nothing was changed",
            )

    def _is_foreign(self, dataset: Dataset) -> bool:
        return is_foreign(dataset.lifecycle.storage_location, self._settings.archive)

    async def _already(self, dataset: Dataset) -> m.BeginDatasetResult:
        """P3: an archived dataset is a success that changes nothing, if its datablocks are there and its counters right."""
        datablocks = await self._scicat.datablocks(dataset.pid)
        if not datablocks:
            raise CatalogueFault(
                f"SciCat calls dataset {dataset.pid} archived, but has no datablock of it",
                expected="at least one datablock",
                found="none",
                next_step="compare SciCat with the LTS; nothing was changed",
                retryable=False,
            )
        files, size = sum(block.files for block in datablocks), sum(block.size for block in datablocks)
        packed = sum(block.packed_size for block in datablocks)
        right = await self._scicat.right_counters(dataset, Counters(size, files, packed, files))
        mended = await self._scicat.patch_counters(dataset.pid, right)
        changed = "its counters in SciCat were put right" if mended else "nothing changed"
        return m.BeginDatasetResult(
            state="already",
            message=f"was archived before: {len(datablocks)} datablocks, {files} files; {changed}",
            datablocks=len(datablocks),
            files=files,
            size_bytes=size,
            packed_bytes=packed,
        )

    @activity.defn(name="read-origdatablocks")
    @told_async
    async def read_origdatablocks(self, request: m.PidRequest) -> m.ListingResult:
        """Read all origdatablocks and store their files as sorted lists: no list of files travels through Temporal (P9).

        Raises ``CatalogueRecordInvalid`` and ``EmptyDataset`` (catalogue wrong) or ``CatalogueFault`` (SciCat ill).
        """
        staged = self._staged(request.pid, request.run)
        counting, blocks = Counting(), 0
        held: list[CatalogueFile] = []
        lists: list[str] = []

        async def store() -> None:
            nonlocal held
            data = await in_thread(_sorted_list, held)
            lists.append(await in_thread(staged.put, "listing", data))
            held = []

        async with beating("reading origdatablocks") as say:
            async for block in self._scicat.origdatablocks(request.pid):
                blocks += 1
                for entry in block.catalogue_files(request.pid):
                    held.append(entry)
                    counting.add(entry)
                    if len(held) >= FILES_PER_LIST:
                        await store()
                say(files=counting.contents.files, done_bytes=counting.contents.size_bytes)
            if held:
                await store()
        if not lists:
            raise EmptyDataset(
                f"dataset {request.pid} has no files",
                expected="origdatablocks that list at least one file",
                found=f"{blocks} origdatablocks with no file",
                next_step="register the dataset's files in SciCat, then submit the job again",
                dataset=request.pid,
            )
        listing = await in_thread(staged.put, "listing", json.dumps(lists).encode())
        return m.ListingResult(**counting.contents.model_dump(), listing=listing, origdatablocks=blocks)

    @activity.defn(name="compare-with-catalogue")
    @told_async
    async def compare_with_catalogue(self, request: m.CompareRequest) -> m.Done:
        """See that SciCat's origdatablocks list, now, exactly the files that were verified on the LTS. Changes nothing.

        Raises ``CatalogueChanged``, ``IntegrityMismatch``: as ``same_files``; ``UnknownDataset``, ``CatalogueFault``.
        """
        async with beating("comparing with the origdatablocks") as say:
            now = await catalogue_contents(self._scicat, request.pid, say)
        same_files(request.pid, now, request.verified, request.listed)
        if request.datablocks:
            blocks = await self._scicat.datablocks(request.pid)
            same_records(request, len(blocks), sum(block.packed_size for block in blocks))
        return m.Done(what=f"the catalogue lists the same: {now.in_words()}")

    @activity.defn(name="register-datablocks")
    @told_async
    async def register_datablocks(self, request: m.DatasetRef) -> m.RegisterResult:
        """Count once more, register the verified datablocks one after another, then put the dataset's counters right.

        Nothing is registered unless SciCat lists, at this moment, the very files that were verified. Raises as
        ``compare_with_catalogue``, and ``StagedLost`` for a staged list or manifest that cannot be read any more. Repeating it is
        harmless: a datablock that is there already is read back and compared (deterministic archiveId).
        """
        staged = self._staged(request.pid, request.run)
        index = await in_thread(staged.get, "bag", request.bag)
        records = [record for line in index.splitlines() if (record := DatablockRecord.read(line)) is not None]
        created = 0
        async with beating("registering") as say:
            now = await catalogue_contents(self._scicat, request.pid, say)
            same_files(request.pid, now, request.verified, request.listed)
            dataset = await self._scicat.dataset(request.pid)
            if dataset is None:
                raise UnknownDataset(f"dataset {request.pid} vanished from SciCat while it was archived")
            for n, record in zip(range(1, request.datablocks + 1), records, strict=True):
                manifest = await in_thread(staged.manifest, request.plan_id, n, record.manifest_sha256, lost="bag")
                payload = await in_thread(
                    payloads.datablock,
                    dataset,
                    record,
                    ManifestReader(iter([manifest])).files(),
                    archive_id=archive_id(request.pid, n, request.format),
                    format=request.format,
                )
                created += await self._scicat.create_datablock(payload)
                say(files=n, note=f"datablock {n} of {request.datablocks}")
            datablocks = await self._scicat.datablocks(request.pid)
            ours = {archive_id(request.pid, n, request.format) for n in range(1, request.datablocks + 1)}
            if missing := ours - {block.archive_id for block in datablocks}:
                raise CatalogueFault(
                    f"SciCat does not show datablocks of {request.pid} that it accepted",
                    expected=f"{len(ours)} datablocks",
                    found=f"{len(missing)} missing, first {min(missing)}",
                    next_step="retried; check the read rights of the archiver's account",
                )
            files = sum(block.files for block in datablocks)
            packed = sum(block.packed_size for block in datablocks)
            await self._scicat.patch_counters(request.pid, Counters(now.size_bytes, now.files, packed, files))
        return m.RegisterResult(
            datablocks=len(datablocks),
            files=files,
            size_bytes=sum(block.size for block in datablocks),
            packed_bytes=packed,
            created=created,
        )

    @activity.defn(name="finish-dataset")
    @told_async
    async def finish_dataset(self, request: m.FinishDatasetRequest) -> m.Done:
        """Report the dataset as archived: retrievable, not archivable, with our storage location."""
        with until_told():
            await self._scicat.patch_lifecycle(
                request.pid, payloads.lifecycle_archived(request, self._settings.archive.storage_location)
            )
        logger.info(
            "dataset %s archived: %d files, %d bytes in %d datablocks, job %s",
            *(request.pid, request.files, request.size_bytes, request.datablocks, request.job_id),
        )
        return m.Done(what=payloads.ARCHIVED)

    @activity.defn(name="fail-dataset")
    @told_async
    async def fail_dataset(self, request: m.FailDatasetRequest) -> m.Done:
        """Say in the dataset's lifecycle why it was not archived. Never touches one that is archived."""
        with until_told():
            dataset = await self._scicat.dataset(request.pid)
            if dataset is None:
                return m.Done(what="the dataset is gone")
            if dataset.lifecycle.is_archived:
                return m.Done(what="the dataset is archived: its record stays as it is")
            if self._is_foreign(dataset):
                return m.Done(what="the dataset belongs to another archive: its record stays as it is")
            if request.error is None and dataset.lifecycle.archive_status_message != payloads.STARTED:
                return m.Done(what="stopped before the dataset was marked: its record stays as it is")
            fields = payloads.lifecycle_failed(request, archivable=self._settings.archive.archivable_after_failure)
            try:
                await self._scicat.patch_lifecycle(request.pid, fields)
            except UnknownDataset:
                return m.Done(what="the dataset is gone")
        log_failed("archived", request)
        return m.Done(what=str(fields["archiveStatusMessage"]))

    def _staged(self, pid: str, run: str) -> Staged:
        return Staged(self._staging, StagingKeys(self._settings.staging.prefix, pid, run))


async def catalogue_contents(scicat: SciCat, pid: str, say: Callable[..., None]) -> m.Contents:
    """What the origdatablocks list now, read from SciCat and from nowhere else."""
    counting = Counting()
    async for block in scicat.origdatablocks(pid):
        for entry in block.catalogue_files(pid):
            counting.add(entry)
        say(files=counting.contents.files, done_bytes=counting.contents.size_bytes)
    return counting.contents


def same_records(request: m.CompareRequest, datablocks: int, packed_bytes: int) -> None:
    """Raises ``CatalogueChanged`` if SciCat has records of other datablocks than lie on the LTS, or none."""
    if (datablocks, packed_bytes) != (request.datablocks, request.packed_bytes):
        raise CatalogueChanged(
            f"SciCat's records of the datablocks of {request.pid} are not those of the LTS",
            expected=f"{request.datablocks} records, of {request.packed_bytes} B packed",
            found=f"{datablocks} records, of {packed_bytes} B" if datablocks else "none",
            next_step="archiver rebuild  registers what is missing; a record that is wrong is removed by hand first",
            dataset=request.pid,
        )


def same_files(pid: str, now: m.Contents, verified: m.Contents, listed: m.Contents) -> None:
    """P4: number, bytes and digest of all verified manifests are those of the catalogue's files.

    ``listed``: the catalogue's files when archiving began, where that is known. Raises ``CatalogueChanged`` if the catalogue
    has others now; ``IntegrityMismatch`` if something between its reading and the verification of the datablocks lost files.
    """
    if verified.same(now):
        return
    if listed.same(now):
        raise IntegrityMismatch(
            f"what was verified of dataset {pid} is not what its origdatablocks list",
            expected=now.in_words(),
            found=verified.in_words(),
            next_step="submit the job again, and report this: files were lost between two of the archiver's own steps",
            dataset=pid,
            retryable=False,
        )
    raise CatalogueChanged(
        f"the origdatablocks of dataset {pid} list other files than were archived",
        expected=f"in SciCat {verified.in_words()}, as archived",
        found=now.in_words(),
        next_step="see who changes them; when they are right, submit the job again, and it is planned anew",
        dataset=pid,
    )


def log_failed(done: str, request: m.FailDatasetRequest | w.FailRetrieveRequest) -> None:
    """One line in the log on a dataset that was not ``done``: a warning where the operator, or time, must act."""
    error, stopped = request.error, request.stopped
    why = error.message if error is not None else f"stopped by {stopped.who}: {stopped.reason}" if stopped else "?"
    level = logging.WARNING if error is not None and error.kind == "system" else logging.INFO
    logger.log(level, "dataset %s not %s, job %s: %s", request.pid, done, request.job_id, why)


@contextmanager
def until_told() -> Iterator[None]:
    """For the steps that never give up: also an account that SciCat refuses is waited for, until it is put right.

    Only what no time and no operator can mend ends them: ``JobNotWritable``, ``UnknownDataset``.
    """
    try:
        yield
    except JobNotWritable:
        raise
    except CatalogueFault as fault:
        fault.retryable = True
        raise


async def set_in_progress(scicat: SciCat, job: Job, message: str) -> str:
    """Set a job in progress, unless it ended well before. Returns why SciCat refuses that, if a dataset of it was deleted."""
    if job.status_code == FINISHED_WELL:
        return ""
    try:
        await scicat.update_job(job.id, payloads.job_update(payloads.IN_PROGRESS, message))
    except JobNotWritable as refused:
        # Its other datasets are done all the same.
        logger.warning("%s", refused.one_line())
        return refused.one_line()
    return ""


async def tell_job(scicat: SciCat, job_id: str, update: payloads.Payload) -> None:
    """Write a job's end. Raises ``JobNotWritable`` with what it was to be told, because nobody can read that in SciCat."""
    try:
        await scicat.update_job(job_id, update)
    except JobNotWritable as refused:
        end = f"{update['statusCode']}: {update['statusMessage']}"
        # The first part is what is to be read in one line; what to do next stays at the end.
        raise JobNotWritable(
            f"{refused.what}. The job ended as {one_line(end, 600)}", next_step=refused.next_step
        ) from None


def _datasets(number: int) -> str:
    return f"{number} dataset{'s' if number != 1 else ''}"


def not_before(job: Job, admitted: Admission, now: datetime) -> None:
    """Raises ``NotYet`` for a job started by hand, or woken by a signal, before its time: the server keeps that time."""
    if (delay := admitted.delay(now)) is not None:
        raise ApplicationError(
            f"job {job.id} is to be started at {admitted.not_before}",
            type="NotYet",
            next_retry_delay=delay,
            category=BENIGN,
        )


def policy_of(settings: Settings) -> m.Policy:
    """The settings that steer a job's workflows, read once."""
    archive = settings.archive
    return m.Policy(
        datasets_at_once=archive.datasets_at_once,
        datablocks_at_once=archive.datablocks_at_once,
        give_up_seconds=archive.give_up_after_hours * 3600,
        heartbeat_seconds=settings.worker.heartbeat_timeout_seconds,
        delete_sources=settings.landing.delete_after_archive,
    )


def _sorted_list(files: list[CatalogueFile]) -> bytes:
    ordered = sorted(files, key=lambda entry: path_key(entry.path))
    return b"".join(write_lines(ordered))


def verdict(request: m.FinishJobRequest, done: str = "archived") -> tuple[str, str]:
    """Status code and the one sentence that users get, on one line. ``done``: what was to be done."""
    counts, total = request.counts, request.total
    if request.problem is not None:
        return "finishedUnsuccessful", one_line(f"Nothing was {done}: {request.problem.message}", payloads.MAX_TEXT)
    parts = [
        f"{number} {name}"
        for number, name in (
            (counts.archived, "archived"),
            (counts.retrieved, "retrieved"),
            (counts.already_archived, "archived before"),
            (counts.content_errors, f"not {done} because of their files or records"),
            (counts.system_errors, f"not {done} because of a system error"),
            (counts.cancelled, "stopped"),
        )
        if number
    ]
    said = f"{_datasets(total)}: {', '.join(parts) or 'none begun'}"
    if request.stopped is not None:
        # What people wrote is cut, never what became of the datasets.
        who = one_line(request.stopped.who, MAX_WHO) or "somebody"
        why = one_line(request.stopped.reason, MAX_REASON) or "no reason given"
        return "finishedUnsuccessful", f"Stopped by {who} ({why}): {said}."
    if counts.good == total:
        return FINISHED_WELL, f"{said}."
    failed = [one for one in request.outcomes if one.outcome not in m.GOOD]
    told = f"{said}{_which(failed, counts.total - counts.good, done)}."
    if failed and failed[0].message:
        pid, why = failed[0].pid, failed[0].message
        told = f"{told[:-1]}; first: " + (why if total == 1 or pid in why else f"{name(pid, MAX_PID)}: {why}")
    code = "finishedUnsuccessful" if counts.system_errors == total else "finishedWithDatasetErrors"
    return code, one_line(told, payloads.MAX_TEXT)


def _which(failed: list[m.DatasetOutcome], count: int, done: str) -> str:
    """The names of those that failed, where there are several: SciCat shows its users no other list of them."""
    if count < 2 or not failed:
        return ""
    shown = ", ".join(name(one.pid, MAX_PID) for one in failed[:NAMED])
    more = count - min(NAMED, len(failed))
    return f"; not {done}: {shown}" + (f" and {more} more" if more else "")
