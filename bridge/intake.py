"""From a job's id to its workflow: read the job from SciCat, decide on it, start it once. The one way in of every door.

The same id may come any number of times, at once or after years: the workflow's id is made of the job's, and a job that ended
is run again only if SciCat still, or again, calls it submitted.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.starting import job_workflow_id, start_job
from archiver.catalogue.admission import refuse_foreign_datasets, refuse_foreign_type
from archiver.catalogue.client import SciCat
from archiver.catalogue.queries import PAGE
from archiver.catalogue.records import Job
from archiver.catalogue.retrieve import admit_any, is_retrieval
from archiver.errors import ArchiverError, CatalogueRecordInvalid, ContentError, ForeignJob, Refused, UnknownJob
from archiver.settings import Settings
from bridge.temporal import Connection
from bridge.together import Together

logger = logging.getLogger("archiver.bridge")

PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between two looks for a job that SciCat does not show yet."""
JOBS_TOGETHER = 50
"""Jobs read by one request: their ids stand in the URL, and a job of thousands of datasets is not small."""
STARTS_AT_ONCE = 16
"""Starts that Temporal is asked for at a time."""
MANY_STARTS = 20
"""Of more starts under way than these, who may not wait is told that its job is being started."""
MOST_QUEUED = 5000
"""Jobs whose start nobody waits for; more than these are waited for, and end as a 503."""
FINISH_SECONDS = 10.0
FINISHED = "finished"
"""How every terminal status begins."""

Pids = tuple[str, ...]
Places = dict[str, str | None]
"""Storage locations by pid."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A job that is in work, will be, or is done. ``not_before`` is None: at once."""

    job: Job
    workflow_id: str
    not_before: datetime | None = None
    ended: bool = False
    """It ended before: nothing was started."""
    queued: bool = False
    """It was read, and is being started: that was not waited for."""


class Intake:
    """Takes jobs by their ids; nothing else that a caller says of a job is believed. Safe for concurrent calls."""

    def __init__(self, settings: Settings, scicat: SciCat, temporal: Connection) -> None:
        self._settings = settings
        self._scicat = scicat
        self._temporal = temporal
        self._jobs = Together(scicat.job, scicat.some_jobs, most=JOBS_TOGETHER)
        self._places = Together(self._of_one, self._of_many, most=PAGE)
        self._slots = asyncio.Semaphore(STARTS_AT_ONCE)
        self._starting: set[asyncio.Task[bool]] = set()
        self._queued: set[asyncio.Task[bool]] = set()
        self._somebody_started = asyncio.Event()

    async def take(self, job_id: str, *, wait: bool = True) -> Taken:
        """See that the job's workflow is started. May be repeated: a job is started once.

        With ``wait=False`` a start is not waited for where many are under way and Temporal answers: it goes on by itself, and
        what then fails is the sweep's to find.

        Raises ``UnknownJob`` and ``ForeignJob``, which start nothing; ``Refused`` and ``ContentError``, whose workflow
        is started all the same, because it tells the job's users why in SciCat; ``CatalogueFault`` and ``Unreachable``, which
        time may mend.
        """
        archive = self._settings.archive
        problem: Refused | ContentError | None = None
        try:
            job = await self._read(job_id)
        except CatalogueRecordInvalid as invalid:
            job, problem = await self._scicat.job(job_id, lists=False), invalid
        refuse_foreign_type(job, archive)
        refuse_foreign_datasets(job, await self._locations(job), archive)
        now = datetime.now(UTC)
        not_before = delay = None
        if problem is None:
            try:
                admission = admit_any(job, self._settings, now=now)
                not_before, delay = admission.not_before, admission.delay(now)
            except ForeignJob:
                raise
            except (Refused, ContentError) as refused:
                problem = refused
        retrieve = is_retrieval(job.type, self._settings)
        runs = await self._started(job, delay, retrieve=retrieve, wait=wait)
        name = job_workflow_id(job.id, retrieve=retrieve)
        if problem is not None:
            problem.workflow = name
            raise problem
        return Taken(job, name, not_before=not_before, ended=runs is False, queued=runs is None)

    async def finish(self) -> None:
        """Wait a while for the starts that nobody waits for; what is left is the sweep's."""
        if self._queued:
            _, left = await asyncio.wait(self._queued, timeout=FINISH_SECONDS)
            for task in left:
                task.cancel()
            if left:
                logger.warning("%d jobs are left to the sweep", len(left))

    async def _started(self, job: Job, delay: timedelta | None, *, retrieve: bool, wait: bool) -> bool | None:
        """As ``_start``, or None: it goes on, and is not waited for."""
        task = asyncio.create_task(self._in_turn(job, delay, retrieve=retrieve))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        try:
            while not wait and not task.done() and len(self._queued) < MOST_QUEUED:
                # That Temporal answers somebody, and not that it may, is why nobody need wait.
                started = asyncio.create_task(self._somebody_started.wait())
                await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
                started.cancel()
                if not task.done() and len(self._starting) > MANY_STARTS:
                    self._queued.add(task)
                    task.add_done_callback(self._left_alone)
                    return None
            return await task
        except asyncio.CancelledError:
            task.cancel()
            raise

    def _left_alone(self, task: asyncio.Task[bool]) -> None:
        self._queued.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            told = error.one_line() if isinstance(error, ArchiverError) else type(error).__name__
            logger.warning("a job that was taken could not be started, and is left to the sweep: %s", told)

    async def _in_turn(self, job: Job, delay: timedelta | None, *, retrieve: bool) -> bool:
        async with self._slots:
            runs = await self._start(job, delay, retrieve=retrieve)
        # Wakes up who waits now, and nobody who comes later.
        self._somebody_started.set()
        self._somebody_started = asyncio.Event()
        return runs

    async def _read(self, job_id: str) -> Job:
        """SciCat's record; one that it does not show is asked for again: a webhook may be ahead of its database."""
        patience, pauses = self._settings.bridge.unknown_job_seconds, iter(PAUSES)
        while True:
            try:
                return await self._jobs.read(job_id)
            except UnknownJob:
                pause = min(next(pauses, PAUSES[-1]), patience)
                if pause <= 0:
                    raise
            patience -= pause
            await asyncio.sleep(pause)

    async def _locations(self, job: Job) -> Places:
        """Of the job's first datasets; of a longer list each is looked at when it is begun (P7)."""
        pids = tuple(dict.fromkeys(entry.pid for entry in job.datasets))[:PAGE]
        try:
            return await self._places.read(pids) if pids else {}
        except CatalogueRecordInvalid:
            return {}  # a dataset's record that cannot be read is that dataset's failure, in words (P7)

    async def _of_one(self, pids: Pids) -> Places:
        return await self._scicat.storage_locations(list(pids))

    async def _of_many(self, asked: list[Pids]) -> dict[Pids, Places]:
        pids = list(dict.fromkeys(pid for each in asked for pid in each))
        pages = [pids[start : start + PAGE] for start in range(0, len(pids), PAGE)]
        found: Places = {}
        for page in await asyncio.gather(*map(self._scicat.storage_locations, pages)):
            found |= page
        return {each: {pid: found[pid] for pid in each if pid in found} for each in asked}

    async def _start(self, job: Job, delay: timedelta | None, *, retrieve: bool) -> bool:
        """Whether its workflow runs now; not, if it ended before and nobody wants it once more."""
        submitted = self._settings.sweep.submitted_code
        if job.status_code.startswith(FINISHED):
            return False
        client = await self._temporal.client()
        try:
            await start_job(client, job.id, retrieve=retrieve, delay=delay, again=False)
            return True
        except WorkflowAlreadyStartedError:
            # It ended. What SciCat says from now on was written before that end, or since, by somebody who submits it anew.
            if job.status_code != submitted or (await self._scicat.job(job.id, lists=False)).status_code != submitted:
                return False
        await start_job(client, job.id, retrieve=retrieve, delay=delay)
        return True
