"""Starts the workflow of a SciCat job: the one way in for the command line, the bridge and the sweep."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy

from activities.connection import answering
from archiver import model as m
from archiver.pids import workflow_id
from archiver.retrieval import wire as w
from archiver.text import MAX_KEYWORD, one_line
from workflows import steps
from workflows.visible import attributes

MAX_REASON = 300
"""Characters of why a job was taken up again."""


def job_workflow_id(job_id: str, *, retrieve: bool = False) -> str:
    """The id of a job's workflow: Temporal then holds one at a time."""
    return workflow_id("retrieve-job" if retrieve else "archive-job", job_id)


async def start_job(
    client: Client,
    job_id: str,
    pids: list[str] | None = None,
    *,
    retrieve: bool = False,
    delay: timedelta | None = None,
    again: bool = True,
    asked: m.StopRequest | None = None,
) -> WorkflowHandle[Any, m.ArchiveJobResult]:
    """Start the workflow of a job. May be repeated: one that runs is joined, and one that ended is run again (harmless: P3).

    ``retrieve``: it is of the type that brings data back. ``delay``: Temporal holds it back so long, over restarts of everything.
    ``asked``: who had it taken up again, and why, for whoever looks at it later.
    Without ``again`` a job that ended is not run again: ``WorkflowAlreadyStartedError``. Raises ``Unreachable`` where Temporal
    does not answer.
    """
    operation = "retrieve" if retrieve else "archive"
    request: m.Wire = m.ArchiveJobRequest(job_id=job_id, pids=pids or None)
    if retrieve:
        request = w.RetrieveJobRequest(job_id=job_id, pids=pids or None)
    with answering():
        return await client.start_workflow(
            "RetrieveJob" if retrieve else "ArchiveJob",
            request,
            id=job_workflow_id(job_id, retrieve=retrieve),
            task_queue=steps.WORKFLOWS,
            result_type=m.ArchiveJobResult,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            id_reuse_policy=(
                WorkflowIDReusePolicy.ALLOW_DUPLICATE if again else WorkflowIDReusePolicy.REJECT_DUPLICATE
            ),
            start_delay=delay,
            search_attributes=attributes(job_id=job_id, operation=operation),
            memo={"asked_by": one_line(asked.who, MAX_KEYWORD), "reason": one_line(asked.reason, MAX_REASON)}
            if asked
            else None,
            static_summary=f"{operation} job {job_id}",
            static_details=(
                f"One SciCat job of type {operation}. Cancel it here, or send the signal 'cancel' {{reason, who}}."
            ),
        )
