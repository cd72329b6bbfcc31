"""Submitting, starting and following jobs, for ``archive`` and ``start``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, FailureError, TemporalError, WorkflowAlreadyStartedError

from activities.connection import answering
from activities.starting import job_workflow_id, start_job
from archiver import model as m
from archiver.catalogue.client import SciCat
from archiver.errors import SettingsInvalid, UnknownDataset, UnknownJob
from archiver.settings import Settings
from cli import exits

LOOK_SECONDS = 0.3

Say = Callable[[str], None]


async def submit(
    settings: Settings, pids: list[str], *, retrieve: bool = False, files: list[str] | None = None, to: str = ""
) -> str:
    """Create the SciCat job as a user would; returns its id. Raises ``UnknownDataset`` before anything is made.

    ``retrieve``: one that brings the datasets back, or of each these ``files``, as links or ``to`` a destination of the settings.
    """
    async with SciCat(settings.scicat) as scicat:
        groups = set()
        for pid in pids:
            dataset = await scicat.dataset(pid)
            if dataset is None:
                raise UnknownDataset(
                    f"SciCat knows no dataset {pid}",
                    expected="a pid that our account may read",
                    found="none",
                    dataset=pid,
                )
            groups.add(dataset.owner_group)
        archive = settings.archive
        job = await scicat.create_job(
            archive.retrieve_job_type if retrieve else archive.job_type,
            pids,
            owner_group=min(g for g in groups if g) if any(groups) else None,
            files=files,
            to=to,
        )
        return job.id


async def is_retrieval(settings: Settings, job_id: str) -> bool:
    """Whether SciCat has the job with the type that brings data back. One that it does not know is its workflow's to tell."""
    async with SciCat(settings.scicat) as scicat:
        try:
            return (await scicat.job(job_id, lists=False)).type == settings.archive.retrieve_job_type
        except UnknownJob:
            return False


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
