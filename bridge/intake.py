"""From a job's id to its workflow: read the job from SciCat, decide on it, start it. The one way in of every door."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.starting import start_job
from archiver.catalogue.admission import admit, refuse_foreign_datasets
from archiver.catalogue.client import SciCat
from archiver.catalogue.records import Job
from archiver.errors import CatalogueRecordInvalid, ForeignJob, Refused, UnknownJob
from archiver.pids import workflow_id
from archiver.settings import Settings
from bridge.temporal import Connection

LOOK_AT_DATASETS = 20
"""Datasets of a job that tell whether it is another archive's; its workflow looks at each (P7)."""
AGAIN_SECONDS = 0.2
FINISHED = "finished"
"""How every terminal status begins (contract 1.4)."""


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

    async def take(self, job_id: str) -> Taken:
        """See that the job's workflow is started. May be repeated: a job is started once.

        Raises ``UnknownJob`` and ``ForeignJob``, which start nothing; ``Refused``, whose workflow is started all the same,
        because it tells the job's users why in SciCat; ``CatalogueFault`` and ``Unreachable``, which time may mend.
        """
        try:
            job = await self._read(job_id)
        except CatalogueRecordInvalid:
            await self._start(job_id, None)  # it tells
            raise
        if job.status_code.startswith(FINISHED):
            return Taken(job, workflow_id("archive-job", job_id), ended=True)
        now = datetime.now(UTC)
        try:
            admission = admit(job, self._settings.archive, now=now)
        except ForeignJob:
            raise
        except Refused:
            await self._start(job_id, None)
            raise
        await self._refuse_foreign(job)
        ended = not await self._start(job_id, admission.delay(now))
        return Taken(job, workflow_id("archive-job", job_id), not_before=admission.not_before, ended=ended)

    async def _read(self, job_id: str) -> Job:
        """SciCat's record; one that it does not show is asked for again: a webhook may be ahead of its database."""
        until = time.monotonic() + self._settings.bridge.unknown_job_seconds
        while True:
            try:
                return await self._scicat.job(job_id)
            except UnknownJob:
                if time.monotonic() >= until:
                    raise
            await asyncio.sleep(AGAIN_SECONDS)

    async def _refuse_foreign(self, job: Job) -> None:
        first = job.model_copy(update={"datasets": job.datasets[:LOOK_AT_DATASETS]})
        locations = await self._scicat.storage_locations([entry.pid for entry in first.datasets])
        refuse_foreign_datasets(first, locations, self._settings.archive)

    async def _start(self, job_id: str, delay: timedelta | None) -> bool:
        """Whether its workflow runs now; not, if it ran before and ended: that is for the sweep, or for an operator's retry."""
        try:
            await start_job(await self._temporal.client(), job_id, delay=delay, again=False)
        except WorkflowAlreadyStartedError:
            return False
        return True
