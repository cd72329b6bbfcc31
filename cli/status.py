"""What a job or a dataset is doing, or how it ended: for ``archiver status``, and for the demo's bars."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.exceptions import FailureError, TemporalError
from temporalio.service import RPCError, RPCStatusCode

from activities.connection import answering, connect
from archiver import model as m
from archiver.pids import workflow_id
from archiver.settings import Settings
from cli import exits
from workflows.visible import STAGE, size

QUERY_SECONDS = timedelta(seconds=5)
"""A worker answers a query in milliseconds; without one, nobody does."""
UNANSWERED = "no worker answers: is one serving the queue 'archiver'?"

SIZES = ("done_bytes", "total_bytes", "size_bytes", "packed_bytes")

Described = tuple[str, dict[str, Any]]
"""For people, and as data."""
_M = TypeVar("_M", bound=m.Wire)


async def describe(settings: Settings, ref: str) -> Described:
    """What is known of a job or dataset. Raises ``NotFound``, ``Unreachable``."""
    client = await connect(settings)
    with answering():
        for kind in ("archive-job", "archive-dataset"):
            handle = client.get_workflow_handle(workflow_id(kind, ref))
            try:
                description = await handle.describe()
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
                continue
            return await (describe_dataset(client, ref) if kind == "archive-dataset" else _job(client, description))
    raise exits.NotFound(
        f"nothing is known of {ref!r}",
        expected="the id of a job that was started, or the pid of one of its datasets",
        found="no workflow of that name",
        next_step="archiver start JOB  starts a job that SciCat has",
    )


async def _job(client: Client, description: WorkflowExecutionDescription) -> Described:
    progress = await _ask(client.get_workflow_handle(description.id), m.JobProgress)
    state = description.status.name if description.status else "?"
    head = f"{description.id}  {state}  {_age(description)}"
    data: dict[str, Any] = {"workflow": description.id, "state": state}
    if progress is None:
        stage = description.typed_search_attributes.get(STAGE, "?")
        return f"{head}  {stage}  ({UNANSWERED})", {**data, "stage": stage, "progress": None, "running": []}
    lines = [f"{head}  {progress.stage}  {progress.counts.total} of {progress.total} datasets"]
    running: list[dict[str, Any]] = []
    for pid in progress.running:
        try:
            text, described = await describe_dataset(client, pid)
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            text, described = f"{pid}  NOT STARTED YET", {"pid": pid, "progress": None, "datablocks": []}
        lines.append("  " + text.replace("\n", "\n  "))
        running.append(described)
    for outcome in progress.outcomes:
        lines.append(f"  {outcome.pid}  {outcome.outcome.upper()}  {outcome.message}".rstrip())
    problem = await _problem(client, description)
    if said := problem or progress.message:
        lines.append(f"  {said}")
    return "\n".join(lines), {
        **data,
        "problem": problem,
        "stage": progress.stage,
        "progress": progress.model_dump(),
        "running": running,
    }


async def _problem(client: Client, description: WorkflowExecutionDescription) -> str:
    """Why a workflow failed as a whole; empty if it did not."""
    if description.status in (WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.COMPLETED):
        return ""
    try:
        await client.get_workflow_handle(description.id, run_id=description.run_id).result()
    except WorkflowFailureError as failed:
        cause = failed.cause
        return cause.message if isinstance(cause, FailureError) else str(cause)
    return ""


async def describe_dataset(client: Client, pid: str) -> Described:
    """A dataset's stage and, per running datablock, its stage and bytes. Raises ``RPCError`` if it was never started."""
    handle = client.get_workflow_handle(workflow_id("archive-dataset", pid))
    progress = await _ask(handle, m.DatasetProgress)
    if progress is None:
        stage = (await handle.describe()).typed_search_attributes.get(STAGE, "?")
        return f"{pid}  {stage.upper()}  ({UNANSWERED})", {"pid": pid, "progress": None, "datablocks": []}
    text = f"{pid}  {progress.stage.upper()}"
    if progress.datablocks:
        text += f"  {progress.datablocks_done} of {progress.datablocks} datablocks, {size(progress.size_bytes)}"
    if progress.message:
        text += f"  {progress.message}"
    blocks = [await describe_datablock(client, pid, n) for n in progress.running]
    rows = [f"  datablock {b['n']}  {b['stage']}  {b['note'] or _moved(b)}".rstrip() for b in blocks]
    return "\n".join([text, *rows]), {"pid": pid, "progress": progress.model_dump(), "datablocks": blocks}


async def datablocks_of(client: Client, pid: str) -> int:
    """How many datablocks the dataset's plan has; 0 before there is a plan."""
    try:
        progress = await _ask(client.get_workflow_handle(workflow_id("archive-dataset", pid)), m.DatasetProgress)
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        progress = None
    return progress.datablocks if progress else 0


async def describe_datablock(client: Client, pid: str, n: int) -> dict[str, Any]:
    """Stage of a datablock, and the bytes that its running activity last told of; sizes are 0 while they are not known."""
    handle = client.get_workflow_handle(workflow_id("archive-datablock", pid, str(n)))
    try:
        description = await handle.describe()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        return {"n": n, "stage": "queued", "working": False, "note": "", **dict.fromkeys(SIZES, 0)}
    progress = await _ask(handle, m.DatablockProgress)
    beat = m.Heartbeat()
    working = False
    for pending in description.raw_description.pending_activities:
        working = pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        if pending.HasField("heartbeat_details") and description.status == WorkflowExecutionStatus.RUNNING:
            (beat,) = await client.data_converter.decode(pending.heartbeat_details.payloads[:1], [m.Heartbeat])
    return {
        "n": n,
        "stage": progress.stage if progress else description.typed_search_attributes.get(STAGE, "?"),
        "done_bytes": beat.done_bytes,
        "total_bytes": beat.total_bytes or (progress.packed_bytes if progress else 0),
        "size_bytes": progress.size_bytes if progress else 0,
        "packed_bytes": progress.packed_bytes if progress else 0,
        "working": working,
        "note": beat.note,
    }


async def _ask(handle: WorkflowHandle[Any, Any], kind: type[_M]) -> _M | None:
    """The answer of the ``progress`` query; None if nobody answers it. Raises ``RPCError`` if there is no such workflow."""
    try:
        answer: _M = await handle.query("progress", result_type=kind, rpc_timeout=QUERY_SECONDS)
        return answer
    except RPCError as error:
        if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.UNAVAILABLE):
            raise
        return None
    except TemporalError:
        return None


def _moved(block: dict[str, Any]) -> str:
    if not block["done_bytes"]:
        return ""
    return size(block["done_bytes"]) + (f" of {size(block['total_bytes'])}" if block["total_bytes"] else "")


def _age(description: WorkflowExecutionDescription) -> str:
    end = description.close_time or datetime.now(UTC)
    seconds = max(0, int((end - description.start_time).total_seconds()))
    hours, minutes = divmod(seconds // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
