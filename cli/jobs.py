"""Submitting, starting and following jobs, for ``archive``, ``start`` and ``status``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, FailureError
from temporalio.service import RPCError, RPCStatusCode

from activities.connection import connect
from archiver import model as m
from archiver.catalogue.client import SciCat
from archiver.errors import SettingsInvalid, SystemFault, UnknownDataset
from archiver.pids import workflow_id
from archiver.settings import Settings
from cli import exits
from workflows import steps
from workflows.visible import attributes, size

LOOK_SECONDS = 0.3

Say = Callable[[str], None]


async def submit(settings: Settings, pids: list[str]) -> str:
    """Create the SciCat job as a user would; returns its id. Raises ``UnknownDataset`` before anything is made."""
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
        job = await scicat.create_job(
            settings.archive.job_type, pids, owner_group=min(g for g in groups if g) if any(groups) else None
        )
        return job.id


async def start(client: Client, job_id: str, pids: list[str] | None) -> WorkflowHandle[Any, m.ArchiveJobResult]:
    """Start the workflow of a job; one that runs already is joined, one that ended is run again (harmless: P3)."""
    check_job_id(job_id)
    return await client.start_workflow(
        "ArchiveJob",
        m.ArchiveJobRequest(job_id=job_id, pids=pids or None),
        id=workflow_id("archive-job", job_id),
        task_queue=steps.WORKFLOWS,
        result_type=m.ArchiveJobResult,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        search_attributes=attributes(job_id=job_id),
        static_summary=f"archive job {job_id}",
        static_details="One SciCat job of type archive. Cancel it here, or send the signal 'cancel' {reason, who}.",
    )


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
        except (RPCError, FailureError):
            continue  # its worker restarts, or it has ended
        line = f"{progress.stage}: {progress.counts.total} of {progress.total} datasets done, in work: {len(progress.running)}"
        if line != last:
            say(line)
            last = line
    try:
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


async def connected(settings: Settings) -> Client:
    """The Temporal client."""
    return await connect(settings)


async def describe(settings: Settings, ref: str) -> tuple[str, dict[str, Any]]:
    """What is known of a job or dataset, for people and as data. Raises ``NotFound``."""
    client = await connect(settings)
    kind = "archive-dataset" if "/" in ref or ref.startswith("pid=") else "archive-job"
    for candidate in (kind, "archive-dataset" if kind == "archive-job" else "archive-job"):
        handle = client.get_workflow_handle(workflow_id(candidate, ref))
        try:
            description = await handle.describe()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise SystemFault(f"Temporal does not say: {error.message}", next_step="try again") from None
            continue
        return await (_job if candidate == "archive-job" else _dataset)(client, handle, description)
    raise exits.NotFound(
        f"nothing is known of {ref!r}",
        expected="the id of a job that was started, or the pid of one of its datasets",
        found="no workflow of that name",
        next_step="archiver start JOB  starts a job that SciCat has",
    )


async def _job(
    client: Client, handle: WorkflowHandle[Any, Any], description: WorkflowExecutionDescription
) -> tuple[str, dict[str, Any]]:
    progress = await handle.query("progress", result_type=m.JobProgress)
    state = description.status.name if description.status else "?"
    lines = [f"{handle.id}  {state}  {progress.stage}  {progress.counts.total} of {progress.total} datasets"]
    datasets: list[dict[str, Any]] = []
    for pid in progress.running:
        try:
            text, data = await describe_dataset(client, pid)
        except RPCError:
            continue  # it ended between the two questions
        lines.append("  " + text.replace("\n", "\n  "))
        datasets.append(data)
    for outcome in progress.outcomes:
        lines.append(f"  {outcome.pid}  {outcome.outcome.upper()}  {outcome.message}")
    if progress.message:
        lines.append(f"  {progress.message}")
    return "\n".join(lines), {
        "workflow": handle.id,
        "state": state,
        "progress": progress.model_dump(),
        "running": datasets,
    }


async def _dataset(
    client: Client, handle: WorkflowHandle[Any, Any], description: WorkflowExecutionDescription
) -> tuple[str, dict[str, Any]]:
    return await describe_dataset(client, handle.id.removeprefix("archive-dataset/"))


async def describe_dataset(client: Client, pid: str) -> tuple[str, dict[str, Any]]:
    """A dataset's stage and, per running datablock, its stage and the bytes moved."""
    handle = client.get_workflow_handle(workflow_id("archive-dataset", pid))
    progress = await handle.query("progress", result_type=m.DatasetProgress)
    text = f"{pid}  {progress.stage.upper()}"
    if progress.datablocks:
        text += f"  {progress.datablocks_done} of {progress.datablocks} datablocks, {size(progress.size_bytes)}"
    if progress.message:
        text += f"  {progress.message}"
    lines, blocks = [text], []
    for n in progress.running:
        block = await describe_datablock(client, pid, n)
        blocks.append(block)
        lines.append(f"  {n}  {block['stage']}  {block['note'] or size(block['done_bytes'])}")
    return "\n".join(lines), {"pid": pid, "progress": progress.model_dump(), "datablocks": blocks}


async def describe_datablock(client: Client, pid: str, n: int) -> dict[str, Any]:
    """Stage of a datablock, and what its running activity last said."""
    handle = client.get_workflow_handle(workflow_id("archive-datablock", pid, str(n)))
    try:
        description = await handle.describe()
        progress = await handle.query("progress", result_type=m.DatablockProgress)
    except RPCError:
        return {"n": n, "stage": "queued", "done_bytes": 0, "total_bytes": 0, "note": ""}
    beat = m.Heartbeat()
    for pending in description.raw_description.pending_activities:
        if pending.HasField("heartbeat_details") and description.status == WorkflowExecutionStatus.RUNNING:
            (beat,) = await client.data_converter.decode(pending.heartbeat_details.payloads[:1], [m.Heartbeat])
    return {
        "n": n,
        "stage": progress.stage,
        "done_bytes": beat.done_bytes,
        "total_bytes": beat.total_bytes or progress.packed_bytes,
        "note": beat.note,
    }
