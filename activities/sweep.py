"""The sweeps: jobs that SciCat's webhook lost, jobs that no workflow works on any more, and what terminated runs left.

Nothing here trusts a list: what a list says runs is left alone, and what it does not name is looked at one by one, by
Temporal's own word on the workflow's id, before anything is done. docs/sweep.md says what is never touched.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.catalogue import OUR_WORDS
from activities.connection import answering
from activities.late_writes import DATASET_TOLD, ENDED, NOT_ARCHIVED, LateWrites, digest_of, last_request
from activities.running import Beat, beating, in_thread, told, told_async
from activities.starting import job_workflow_id, start_job
from archiver import model as m
from archiver.catalogue import payloads
from archiver.catalogue.admission import is_foreign, refuse_foreign_datasets
from archiver.catalogue.client import SciCat, not_writable
from archiver.catalogue.records import Dataset, Job, JobHead
from archiver.catalogue.retrieve import admit_any, is_retrieval
from archiver.datablock.contents import contents_of
from archiver.datablock.manifest import ManifestReader
from archiver.errors import (
    CatalogueFault,
    CatalogueRecordInvalid,
    ContentError,
    ForeignJob,
    JobNotWritable,
    NoBag,
    Refused,
    UnknownJob,
)
from archiver.pids import path_pid, pid_path
from archiver.progress import Progress
from archiver.retrieval.keys import retrieved_pid, works
from archiver.settings import Settings
from archiver.storage.bags import read_bag, read_datablock
from archiver.storage.lts import LONG_AGO, Lts
from archiver.storage.objects import Bucket
from archiver.storage.staging import dataset_of
from archiver.text import cut, keyword
from workflows.visible import JOB_ID, PID, quoted

STARTS_AT_ONCE = 16
BUDGET_SECONDS = 240.0
"""After so long a step ends, and the next one of the sweep goes on: also a sweep of very many jobs says how far it is."""
LOST = "finishedUnsuccessful"
LOST_MESSAGE = (
    "The archiver lost this job: its workflow ended without reporting (terminated, or its Temporal was lost). "
    "What was archived stays archived; submit a new job for the other datasets."
)
_PLAIN = re.compile(r"[A-Za-z0-9._/=%-]+")

LOOK_AT_DATASETS = 20
"""Datasets of a job that are looked at before it is taken for another archive's."""
FAULTS = 10
"""Jobs that SciCat may fail to answer for before the step is given up and tried again."""
REMEMBERED_DAYS = 30.0
"""So long Temporal keeps what ended, where ``archiver setup`` made the namespace: of older jobs it cannot say what became."""
DONE = ("started", "delayed", "restarted", "reported", "corrected", "waiting", "running", "foreign", "untold", "failed")
RUNS, FAILED, NEVER = -1.0, -2.0, -3.0
"""Instead of a time: a job's workflow runs, has failed, or was never there (or was forgotten with its namespace)."""

logger = logging.getLogger("archiver.sweep")

Age = tuple[float, str]
"""When something was last touched, and what it is."""


def count(what: str, number: int) -> None:
    """Add to the counter of sweeps, which Prometheus sees where the worker has an endpoint for it."""
    if number:
        meter = activity.metric_meter().with_additional_attributes({"what": what})
        meter.create_counter("archiver_swept", "What sweeps did, by kind").add(number)


# --- jobs ---------------------------------------------------------------------------------------------------------------


class JobSweep:
    """On the catalogue queue: asks SciCat for jobs, and Temporal whether somebody works on them. May be repeated (P6)."""

    def __init__(self, settings: Settings, scicat: SciCat, late_writes: LateWrites) -> None:
        self._settings = settings
        self._scicat = scicat
        self._late_writes = late_writes

    def all(self) -> list[Callable[..., Any]]:
        """The activities."""
        return [self.sweep_jobs, self.find_started, self.look_at_dataset]

    @activity.defn(name="sweep-jobs")
    @told_async
    async def sweep_jobs(self, request: m.SweepRequest) -> m.SweepJobsResult:
        """Start submitted jobs that have no workflow, the oldest first; take up or report those in progress without one.

        Repeating it, also while another does the same, starts nothing twice: a job's workflow id is made of its id.
        """
        async with beating("asking SciCat for jobs") as say:
            archive, sweep = self._settings.archive, self._settings.sweep
            submitted, in_progress = [
                [
                    head
                    for kind in (archive.retrieve_job_type, archive.job_type)
                    for head in await self._scicat.jobs(kind, code)
                ]
                for code in (sweep.submitted_code, payloads.IN_PROGRESS)
            ]
            # Listed after the jobs: a job of before that is not among these has no workflow, or has just got one.
            working = await running_jobs(activity.client())
            round_ = _Round(self._settings, self._scicat, activity.client(), self._late_writes, dry_run=request.dry_run)
            todo = [head for head in (*submitted, *in_progress) if round_.workflow_id(head) not in working]
            until = time.monotonic() + BUDGET_SECONDS
            waiting = iter(todo)

            async def some() -> None:
                while time.monotonic() < until and (head := next(waiting, None)) is not None:
                    await round_.one(head)
                    say(files=round_.looked_at, note=f"{round_.looked_at} of {len(todo)} jobs")

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(STARTS_AT_ONCE):
                        group.create_task(some())
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        done = round_.done
        if not request.dry_run:
            for what in ("started", "restarted", "reported", "corrected"):
                count(f"jobs {what}", done[what])
        return m.SweepJobsResult(
            submitted=len(submitted),
            in_progress=len(in_progress),
            running=len(submitted) + len(in_progress) - len(todo) + done["running"],
            started=done["started"],
            delayed=done["delayed"],
            restarted=done["restarted"],
            reported=done["reported"],
            corrected=done["corrected"],
            waiting=done["waiting"],
            foreign=done["foreign"],
            untold=done["untold"],
            failed=done["failed"],
            more=round_.looked_at < len(todo),
            lines=round_.lines,
        )

    # --- datasets -----------------------------------------------------------------------------------------------------

    @activity.defn(name="find-started")
    @told_async
    async def find_started(self, request: m.SweepRequest) -> m.FoundLeftovers:
        """Datasets that SciCat has as started, by us, for longer than the setting, while no workflow of theirs runs."""
        found: dict[str, Age] = {}
        async with beating("asking SciCat for started datasets") as say:
            pids = await self._scicat.pids(payloads.STARTED)
            working = await running_datasets(activity.client())
            for number, pid in enumerate(pids):
                say(files=number)
                if keyword(pid) in working or (dataset := await self._scicat.dataset(pid)) is None:
                    continue
                if (mark := self._mark(dataset)) is not None:
                    found[pid] = (mark[0], "started in SciCat")
        return picked(found, working, self._settings, running=len(set(map(keyword, pids)) & working))

    @activity.defn(name="look-at-dataset")
    @told_async
    async def look_at_dataset(self, request: m.PidRequest) -> m.LookResult:
        """Whether anything of a dataset runs beside the workflow that asks, which keeps others from starting (its id)."""
        client, own = activity.client(), activity.info().workflow_id
        query = "ExecutionStatus = 'Running'"
        if _PLAIN.fullmatch(keyword(request.pid)):
            query += f" AND {PID.name} = '{keyword(request.pid)}'"
        with answering():
            async for one in client.list_workflows(query):
                if one.id != own and one.typed_search_attributes.get(PID) == keyword(request.pid):
                    return m.LookResult(idle=False, why=f"{one.id} runs")
        dataset = await self._scicat.dataset(request.pid)
        if dataset is None:
            return m.LookResult(idle=True)
        lifecycle = dataset.lifecycle
        mark = self._mark(dataset)
        told = await self._told(request.pid, mark[1]) if mark is not None else None
        unarchived = lifecycle.archive_status_message in NOT_ARCHIVED
        return m.LookResult(
            idle=True,
            archived=lifecycle.is_archived,
            # What was told once, and is marked as started again, is marked by a step that came too late.
            started=told is not None or (mark is not None and mark[0] < _limit(self._settings)),
            job_id=mark[1] if mark else lifecycle.archive_job,
            unarchived=unarchived and not is_foreign(lifecycle.storage_location, self._settings.archive),
            told=told,
        )

    async def _told(self, pid: str, job_id: str) -> m.FailDatasetRequest | None:
        """Why the dataset was not archived, as the last workflow of this job told it; None: it told nothing, or success."""
        query = f"WorkflowType = 'ArchiveDataset' AND {JOB_ID.name} = '{quoted(keyword(job_id))}'"
        latest: WorkflowExecution | None = None
        with answering():
            async for one in activity.client().list_workflows(query):
                ours = one.typed_search_attributes.get(PID) == keyword(pid)
                if ours and (latest is None or one.start_time > latest.start_time):
                    latest = one
        if latest is None or latest.status not in ENDED:
            return None
        told = await last_request(activity.client(), latest.id, latest.run_id or "", DATASET_TOLD)
        return told if isinstance(told, m.FailDatasetRequest) else None

    def _mark(self, dataset: Dataset) -> tuple[float, str] | None:
        """Since when, and by which job, a dataset is marked as started by us; None if it is not."""
        lifecycle, said = dataset.lifecycle, dataset.lifecycle.archive_return_message
        if lifecycle.archive_status_message != payloads.STARTED:
            return None
        # Others mark a dataset with this word too: only what ``lifecycle_started`` wrote is ours.
        if is_foreign(lifecycle.storage_location, self._settings.archive) or not isinstance(said, dict):
            return None
        since = _time(said.get("since"))
        return (since, str(said["job"])) if since is not None and said.get("job") else None


class _Round:
    """What one step of a sweep does about jobs."""

    def __init__(
        self, settings: Settings, scicat: SciCat, client: Client, late_writes: LateWrites, *, dry_run: bool
    ) -> None:
        self._settings = settings
        self._scicat = scicat
        self._client = client
        self._late_writes = late_writes
        self._dry_run = dry_run
        self.looked_at = 0
        self.done = dict.fromkeys(DONE, 0)
        self.lines: list[str] = []

    def workflow_id(self, head: JobHead) -> str:
        """The id of a job's workflow."""
        return job_workflow_id(head.id, retrieve=is_retrieval(head.type, self._settings))

    async def one(self, head: JobHead) -> None:
        """Do what is to be done about a job that no running workflow was listed for."""
        try:
            if head.status_code == payloads.IN_PROGRESS:
                await self._take_up(head)
            else:
                await self._start(head)
        except UnknownJob:
            pass  # deleted meanwhile
        except ForeignJob:
            self.done["foreign"] += 1
        except JobNotWritable:
            self.done["untold"] += 1
        except CatalogueFault as fault:
            # One record that SciCat chokes on keeps no other job waiting; a SciCat that is out does.
            if self.done["failed"] >= FAULTS:
                raise
            self._did("failed", head.id, fault.one_line())
        self.looked_at += 1

    async def _start(self, head: JobHead) -> None:
        """Start a submitted job; one whose workflow ran and ended without telling SciCat anything is taken up."""
        try:
            job = await self._scicat.job(head.id)
        except CatalogueRecordInvalid:
            delay = None  # its workflow says so, to the job's users
        else:
            if job.status_code != head.status_code:
                return
            delay = self._delay(job)
            await self._refuse_foreign(job)
            if self._is_old(head):
                await self._refuse_untold(job)
        if self._dry_run:
            started = (await self._workflow(head)) is None
        else:
            try:
                retrieve = is_retrieval(head.type, self._settings)
                await start_job(self._client, head.id, retrieve=retrieve, delay=delay, again=False)
                started = True
            except WorkflowAlreadyStartedError:
                started = False
        if not started:
            await self._take_up(head)
            return
        self.done["delayed"] += delay is not None
        self._did("started", head.id, f"to begin in {delay}" if delay is not None else "")

    def _delay(self, job: Job) -> timedelta | None:
        """How long the job's workflow is held back. What is refused is told in words by that workflow: started at once."""
        now = datetime.now(UTC)
        try:
            return admit_any(job, self._settings, now=now).delay(now)
        except ForeignJob:
            raise
        except (Refused, ContentError):
            return None

    async def _refuse_foreign(self, job: Job) -> None:
        """Raises ``ForeignJob`` if the job's datasets lie in another archive: its own sweep takes it. The first tells, mostly."""
        locations: dict[str, str | None] = {}
        for entry in job.datasets[:LOOK_AT_DATASETS]:
            dataset = await self._scicat.dataset(entry.pid)
            locations[entry.pid] = dataset.lifecycle.storage_location if dataset else None
            if not is_foreign(locations[entry.pid], self._settings.archive):
                return
        some = job.model_copy(update={"datasets": job.datasets[:LOOK_AT_DATASETS]})
        refuse_foreign_datasets(some, locations, self._settings.archive)

    async def _take_up(self, head: JobHead) -> None:
        """A job whose workflow is gone: start it again, or say so, if it has been gone for long enough."""
        sweep = self._settings.sweep
        ended = await self._workflow(head)
        gone = _since(ended)
        if gone == RUNS:
            self.done["running"] += 1
            return
        if ended is not None and ended.status in ENDED and head.status_code == payloads.IN_PROGRESS:
            # It told SciCat its end, and a step that stood still wrote over that. Or else the job is not ours to write, or
            # a person has put it in progress again.
            if await self._late_writes.tell_again(ended.id, ended.run_id or "", dry_run=self._dry_run):
                self._did("corrected", head.id, "its workflow had ended, and told so")
            else:
                self.done["foreign"] += 1
            return
        if gone == FAILED:
            # It was refused: another archive's.
            self.done["foreign"] += 1
            return
        since = _time(head.updated_at) if gone == NEVER else gone
        # A time that is not known is not taken for long ago.
        if since is None or time.time() - since < sweep.lost_after_seconds:
            self.done["waiting"] += 1
            return
        # Read anew: it may have ended well, and been told so, since it was listed.
        job = await self._scicat.job(head.id)
        if job.status_code != head.status_code:
            return
        if gone != NEVER or self._is_old(head):
            await self._refuse_untold(job)
        if gone == NEVER and not OUR_WORDS.match(job.status_message):
            # Without a workflow of ours only the words tell whose job it is: another archive's is in progress there.
            self.done["foreign"] += 1
            return
        if not self._dry_run and sweep.lost_jobs == "restart":
            await start_job(self._client, head.id, retrieve=is_retrieval(head.type, self._settings))
        elif not self._dry_run:
            await self._scicat.update_job(head.id, payloads.job_update(LOST, LOST_MESSAGE, {"summary": LOST_MESSAGE}))
        self._did(
            "restarted" if sweep.lost_jobs == "restart" else "reported", head.id, "no workflow works on it any more"
        )

    @staticmethod
    def _is_old(head: JobHead) -> bool:
        """Whether Temporal may have forgotten a workflow of this job that ended."""
        created = _time(head.created_at)
        return created is not None and time.time() - created > REMEMBERED_DAYS * 86400

    async def _refuse_untold(self, job: Job) -> None:
        """Raises ``JobNotWritable`` if a dataset of the job was deleted: SciCat would show it as submitted or in progress
        for ever, whatever is done. Such a job is started once. Its workflow did the other datasets, and failed with why."""
        if deleted := await self._scicat.deleted_datasets(job):
            raise not_writable(job.id, deleted)

    async def _workflow(self, head: JobHead) -> WorkflowExecution | None:
        """The latest run of the job's workflow; None: Temporal knows none."""
        with answering():
            try:
                return await self._client.get_workflow_handle(self.workflow_id(head)).describe()
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
                return None

    def _did(self, what: str, job_id: str, words: str) -> None:
        self.done[what] += 1
        would = "would be " if self._dry_run and what != "failed" else ""
        line = cut(f"{job_id}: {would}{what}{f' ({words})' if words else ''}", m.MAX_OUTCOME_MESSAGE)
        logger.info("job %s", line)
        if len(self.lines) < m.MAX_SWEPT:
            self.lines.append(line)


# --- what terminated runs left --------------------------------------------------------------------------------------------


def _since(found: WorkflowExecution | None) -> float:
    """Since when a job's workflow is gone, or one of ``RUNS``, ``FAILED``, ``NEVER``."""
    if found is None:
        return NEVER
    if found.status == WorkflowExecutionStatus.RUNNING or found.close_time is None:
        return RUNS
    return FAILED if found.status == WorkflowExecutionStatus.FAILED else found.close_time.timestamp()


class StagingSweep:
    """On the pack queue: looks through the staging bucket. Clearing is ``clean-staging``'s."""

    def __init__(self, settings: Settings, staging: Bucket) -> None:
        self._settings = settings
        self._staging = staging

    @activity.defn(name="find-staged")
    @told_async
    async def find_staged(self, request: m.SweepRequest) -> m.FoundLeftovers:
        """Datasets of which objects or open uploads lie in staging, all older than the setting, while none runs."""
        found = await in_thread(self._ages, Beat(loop=asyncio.get_running_loop()))
        return picked(found, await running_datasets(activity.client()), self._settings)

    def _ages(self, beat: Progress) -> dict[str, Age]:
        prefix = self._settings.staging.prefix
        objects = ((entry.key, entry.modified, "staged objects") for entry in self._staging.list(f"{prefix}datasets/"))
        uploads = ((one.key, one.begun, "an open upload") for one in self._staging.open_uploads(f"{prefix}datasets/"))
        retrievals = ((entry.key, entry.modified, "a retrieval") for entry in self._staging.list(works(prefix)))

        def ages() -> Iterator[tuple[str | None, Age]]:
            for listed, pid_of in ((objects, dataset_of), (uploads, dataset_of), (retrievals, retrieved_pid)):
                for key, when, what in listed:
                    beat.advance(files=1)
                    yield pid_of(prefix, key), (when, what)

        return newest(ages())


class LtsSweep:
    """On the bag queue: looks through the LTS. Clearing is ``roll-back-lts``'s."""

    def __init__(self, settings: Settings, lts: Lts) -> None:
        self._settings = settings
        self._lts = lts

    @activity.defn(name="find-on-lts")
    @told_async
    async def find_on_lts(self, request: m.SweepRequest) -> m.FoundLeftovers:
        """Datasets of which unverified files or promises of space are on the LTS, all older than the setting."""
        found = await in_thread(self._ages, Beat(loop=asyncio.get_running_loop()))
        return picked(found, await running_datasets(activity.client()), self._settings)

    @activity.defn(name="find-bag", no_thread_cancel_exception=True)
    @told
    def find_bag(self, request: m.PidRequest) -> m.BagSummary:
        """What the complete bag of a dataset holds, its small files and manifests compared with each other. Looks only.

        Raises ``IntegrityMismatch`` for a damaged one, ``LtsFault``.
        """
        beat, blocks, contents = Beat(), [], m.Contents()
        packed = 0
        try:
            bag = read_bag(self._lts, pid_path(request.pid))
        except NoBag:
            return m.BagSummary()
        for archive_id in bag.blocks:
            record, manifest = read_datablock(self._lts, bag, archive_id)
            contents = contents.plus(contents_of(ManifestReader([manifest]).files()))
            blocks.append((archive_id, record.packed_bytes, record.sha256))
            packed += record.packed_bytes
            beat.advance(files=record.files)
        return m.BagSummary(
            complete=True,
            job_id=bag.job,
            datablocks=len(blocks),
            files=contents.files,
            size_bytes=contents.size_bytes,
            packed_bytes=packed,
            level=bag.level,
            records=digest_of(blocks),
            contents=contents,
        )

    def _ages(self, beat: Progress) -> dict[str, Age]:
        return newest((_pid(left.dataset), (left.newest, left.what)) for left in self._lts.leftovers(beat))


def newest(ages: Iterable[tuple[str | None, Age]]) -> dict[str, Age]:
    """Of each dataset the youngest of what lies there: by it all of the dataset's is old, or none."""
    found: dict[str, Age] = {}
    for pid, (when, what) in ages:
        # A time that is not known is taken for now.
        age = (when or time.time(), what)
        if pid is not None and (pid not in found or age > found[pid]):
            found[pid] = age
    return found


def picked(found: dict[str, Age], working: set[str], settings: Settings, *, running: int = 0) -> m.FoundLeftovers:
    """Those that are old enough and that nobody works on, the oldest first, as many as one sweep takes."""
    limit = _limit(settings)
    idle = {pid: age for pid, age in found.items() if keyword(pid) not in working}
    old = [(age, pid) for pid, age in idle.items() if age[0] < limit]
    first = heapq.nsmallest(m.MAX_FOUND, old)
    return m.FoundLeftovers(
        pids=[pid for _, pid in first],
        what=[what + _dated(when) for (when, what), _ in first],
        more=len(old) - len(first),
        young=len(idle) - len(old),
        running=running + len(found) - len(idle),
    )


def _dated(when: float) -> str:
    if when <= LONG_AGO:
        return ""
    return f", since {datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M} UTC"


JOBS = ("ArchiveJob", "RetrieveJob")
DATASETS = ("ArchiveDataset", "ArchiveDatablock", "RetrieveDataset", "RetrieveDatablock")


def running_query(kinds: Sequence[str]) -> str:
    """The visibility query for workflows of these types that run."""
    return f"WorkflowType IN ({', '.join(map(repr, kinds))}) AND ExecutionStatus = 'Running'"


async def running_jobs(client: Client) -> set[str]:
    """Ids of the job workflows that run. Temporal's list may be a moment behind: enough to leave a job alone, no more."""
    with answering():
        return {one.id async for one in client.list_workflows(running_query(JOBS))}


async def running_datasets(client: Client) -> set[str]:
    """Pids, as search attributes have them, of which a dataset's or a datablock's workflow runs."""
    with answering():
        listed = [one.typed_search_attributes.get(PID) async for one in client.list_workflows(running_query(DATASETS))]
    return {pid for pid in listed if pid}


def _limit(settings: Settings) -> float:
    """What was touched after this time is young."""
    return time.time() - settings.sweep.leftovers_after_hours * 3600


def _pid(path: str) -> str | None:
    try:
        return path_pid(path)
    except ValueError:
        return None


def _time(text: object) -> float | None:
    """Seconds since 1970 of an ISO 8601 time."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if isinstance(text, str) else None
    except ValueError:
        return None
