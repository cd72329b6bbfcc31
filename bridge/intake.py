"""From a job's id to its workflow: read the job from SciCat, decide on it, start it once. The one way in of every door.

The same id may come any number of times, at once or after years: the workflow's id is made of the job's, and a job that ended
is run again only if SciCat still, or again, calls it submitted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.starting import job_workflow_id, start_job
from archiver.catalogue.admission import refuse_foreign_datasets, refuse_foreign_type
from archiver.catalogue.client import SciCat
from archiver.catalogue.queries import PAGE
from archiver.catalogue.records import Job
from archiver.catalogue.retrieve import admit_any, is_retrieval
from archiver.errors import CatalogueRecordInvalid, ContentError, ForeignJob, Refused, UnknownJob
from archiver.settings import Settings
from bridge.temporal import Connection
from bridge.together import Together

PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between two looks for a job that SciCat does not show yet."""
JOBS_TOGETHER = 50
"""Jobs read by one request: their ids stand in the URL, and a job of thousands of datasets is not small."""
FINISHED = "finished"
"""How every terminal status begins (contract 1.4)."""

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


class Intake:
    """Takes jobs by their ids; nothing else that a caller says of a job is believed. Safe for concurrent calls."""

    def __init__(self, settings: Settings, scicat: SciCat, temporal: Connection) -> None:
        self._settings = settings
        self._scicat = scicat
        self._temporal = temporal
        self._jobs = Together(scicat.job, scicat.some_jobs, most=JOBS_TOGETHER)
        self._places = Together(self._of_one, self._of_many, most=PAGE)

    async def take(self, job_id: str) -> Taken:
        """See that the job's workflow is started. May be repeated: a job is started once.

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
        runs = await self._start(job, delay, retrieve=retrieve)
        name = job_workflow_id(job.id, retrieve=retrieve)
        if problem is not None:
            problem.workflow = name
            raise problem
        return Taken(job, name, not_before=not_before, ended=not runs)

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
