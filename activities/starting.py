"""Starts the workflow of a SciCat job: the one way in for the command line, the bridge and the sweep."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy

from activities.connection import answering
from archiver import model as m
from archiver.pids import workflow_id
from workflows import steps
from workflows.visible import attributes


async def start_job(
    client: Client, job_id: str, pids: list[str] | None = None, *, delay: timedelta | None = None, again: bool = True
) -> WorkflowHandle[Any, m.ArchiveJobResult]:
    """Start the workflow of a job. May be repeated: one that runs is joined, and one that ended is run again (harmless: P3).

    ``delay``: Temporal holds it back so long, over restarts of everything. Without ``again`` a job that ended is not run
    again: ``WorkflowAlreadyStartedError``. Raises ``Unreachable`` where Temporal does not answer.
    """
    with answering():
        return await client.start_workflow(
            "ArchiveJob",
            m.ArchiveJobRequest(job_id=job_id, pids=pids or None),
            id=workflow_id("archive-job", job_id),
            task_queue=steps.WORKFLOWS,
            result_type=m.ArchiveJobResult,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=(
                WorkflowIDReusePolicy.ALLOW_DUPLICATE if again else WorkflowIDReusePolicy.REJECT_DUPLICATE
            ),
            start_delay=delay,
            search_attributes=attributes(job_id=job_id),
            static_summary=f"archive job {job_id}",
            static_details="One SciCat job of type archive. Cancel it here, or send the signal 'cancel' {reason, who}.",
        )
