"""Submitting, starting and following jobs, for ``archive`` and ``start``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, FailureError, TemporalError, WorkflowAlreadyStartedError

from activities.connection import answering
from activities.starting import job_workflow_id, start_job
from archiver import model as m
from archiver.errors import CatalogueFault, SettingsInvalid, UnknownDataset
from archiver.settings import Settings
from archiver.text import name
from cli import exits
from cli.pid_list import named

LOOK_SECONDS = 0.3
LOOKS_AT_ONCE = 10
"""Datasets that are looked up side by side before jobs are made of them."""

Say = Callable[[str], None]


async def owner_groups(settings: Settings, pids: list[str], say: Say) -> dict[str, str]:
    """The owner group of each dataset, empty where it has none.

    Raises ``UnknownDataset`` with the names of those that SciCat does not know, after telling each of them.
    """
    from archiver.catalogue.client import SciCat

    slots = asyncio.Semaphore(LOOKS_AT_ONCE)
    async with SciCat(settings.scicat) as scicat:

        async def one(pid: str) -> str | None:
            async with slots:
                dataset = await scicat.dataset(pid)
            return None if dataset is None else dataset.owner_group or ""

        found = dict(zip(pids, await asyncio.gather(*map(one, pids)), strict=True))
    unknown = [pid for pid, group in found.items() if group is None]
    if not unknown:
        return {pid: group or "" for pid, group in found.items()}
    if len(unknown) > 1:
        for pid in unknown:
            say(f"{name(pid)}: SciCat knows no such dataset")
    raise UnknownDataset(
        f"SciCat knows no dataset {name(unknown[0])}"
        if len(unknown) == 1
        else f"SciCat knows {len(unknown)} of these {len(pids)} datasets not",
        expected="pids that our account may read",
        found="none" if len(pids) == 1 else named(unknown),
        next_step="correct the pids, or see docs/scicat.md for the rights of the account; no job was made",
    )


async def submit(
    settings: Settings,
    pids: list[str],
    say: Say,
    *,
    retrieve: bool = False,
    files: list[str] | None = None,
    to: str = "",
) -> AsyncIterator[str]:
    """Create SciCat jobs for these datasets as a user would, at most ``DATASETS_PER_JOB`` in each; yields their ids.

    ``retrieve``: jobs that bring the datasets back, or of each these ``files``, as links or ``to`` a destination of the settings.
    Raises ``UnknownDataset``, and ``Refused`` for such a destination, before anything is made; ``CatalogueFault`` saying which
    datasets have no job.
    """
    from archiver.catalogue.client import SciCat
    from archiver.catalogue.payloads import DATASETS_PER_JOB
    from archiver.catalogue.records import Job
    from archiver.catalogue.retrieve import destination_of

    if to:
        # What the job's workflow would refuse is refused before there is a job.
        destination_of(
            Job(id="to be made", type=settings.archive.retrieve_job_type, params={"destinationPath": to}),
            settings.retrieval,
        )
    groups = await owner_groups(settings, pids, say)
    archive, made = settings.archive, 0
    parts = [pids[start : start + DATASETS_PER_JOB] for start in range(0, len(pids), DATASETS_PER_JOB)]
    if len(parts) > 1:
        say(f"{len(pids)} datasets make {len(parts)} jobs: SciCat takes at most {DATASETS_PER_JOB} datasets in one")
    async with SciCat(settings.scicat) as scicat:
        for part in parts:
            try:
                job = await scicat.create_job(
                    archive.retrieve_job_type if retrieve else archive.job_type,
                    part,
                    owner_group=min((group for pid in part if (group := groups[pid])), default=None),
                    files=files,
                    to=to,
                )
            except CatalogueFault as fault:
                if made == 0:
                    raise
                left = len(pids) - made
                raise CatalogueFault(
                    f"{made} of {len(pids)} datasets have jobs, {left} have none, from {name(part[0])} on: {fault.what}",
                    expected=fault.expected,
                    found=fault.found,
                    next_step="the same command again is harmless: what is done or in work is not done twice",
                    retryable=fault.retryable,
                ) from None
            made += len(part)
            yield job.id


async def is_retrieval(settings: Settings, job_id: str) -> bool:
    """Whether SciCat has the job with the type that brings data back. Raises ``UnknownJob``, ``ForeignJob``."""
    from archiver.catalogue.admission import refuse_foreign_type
    from archiver.catalogue.client import SciCat

    async with SciCat(settings.scicat) as scicat:
        job = await scicat.job(job_id, lists=False)
    retrieval = job.type == settings.archive.retrieve_job_type
    if not retrieval:
        refuse_foreign_type(job, settings.archive)
    return retrieval


async def start(
    client: Client, job_id: str, pids: list[str] | None, *, again: bool = True, retrieve: bool = False
) -> WorkflowHandle[Any, m.ArchiveJobResult]:
    """Start the workflow of a job; without ``again`` one that ended is not run again, but followed to that end.

    Raises ``SettingsInvalid`` (usage) if it is no job id.
    """
    check_job_id(job_id)
    try:
        return await start_job(client, job_id, pids, again=again, retrieve=retrieve)
    except WorkflowAlreadyStartedError:
        return client.get_workflow_handle(job_workflow_id(job_id, retrieve=retrieve), result_type=m.ArchiveJobResult)


def check_job_id(job_id: str) -> None:
    """Raises ``SettingsInvalid`` (usage) if it is no job id."""
    try:
        UUID(job_id)
    except ValueError:
        raise SettingsInvalid(
            f"{job_id!r} is no job id", expected="the UUID of a SciCat job", found=repr(job_id)
        ) from None


async def finish(handle: WorkflowHandle[Any, m.ArchiveJobResult], say: Say) -> tuple[m.ArchiveJobResult | None, str]:
    """Follow a job to its end, telling what changes; the result, or None and the reason if the job as a whole failed."""
    waiting = asyncio.ensure_future(handle.result())
    last = ""
    while not waiting.done():
        await asyncio.wait([waiting], timeout=LOOK_SECONDS)
        try:
            progress = await handle.query("progress", result_type=m.JobProgress)
        except TemporalError:
            continue  # its worker restarts, or it has ended
        line = f"{progress.stage}: {progress.counts.total} of {progress.total} datasets done, in work: {len(progress.running)}"
        if line != last:
            say(line)
            last = line
    try:
        with answering():
            return waiting.result(), ""
    except WorkflowFailureError as failed:
        cause = failed.cause
        if isinstance(cause, ApplicationError) and cause.type == "UnknownJob":
            raise exits.NotFound(cause.message) from None
        return None, cause.message if isinstance(cause, FailureError) else str(cause)


def code_of(result: m.ArchiveJobResult | None) -> int:
    """The exit code of a job's end."""
    if result is None:
        return exits.FAILED
    counts = result.counts
    if counts.good == counts.total:
        return 0
    if counts.good:
        return exits.PARTLY
    return exits.CONTENT if counts.content_errors == counts.total else exits.FAILED
