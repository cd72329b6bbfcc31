"""Whether the sweeps do their work: read from Temporal's list of those that ended, for ``health``, ``doctor`` and ``jobs``."""

from __future__ import annotations

from typing import Any

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import FailureError

from activities.polled import RPC
from archiver.text import one_line
from cli.look import Data
from workflows.visible import MESSAGE

PARTS = {"jobs": "Sweep", "leftovers": "SweepLeftovers", "retrieved": "ExpireRetrieved"}
"""Parts of ``archiver sweep``, and the removal of retrieved data, with their workflows."""
LOOKED_AT = 20
"""Of each part, the last that ended."""
REPEATEDLY = 3
"""So many in a row that failed are a failure of the sweep: one alone may have met a restart of SciCat."""
MAX_REASON = 400


async def failing(client: Client) -> list[Data]:
    """The parts of which the last ``REPEATEDLY`` or more failed in a row, since when, and why. Raises ``RPCError``."""
    found = []
    for part, workflow in PARTS.items():
        query = f"WorkflowType = '{workflow}' AND ExecutionStatus != 'Running'"
        rows = [row async for row in client.list_workflows(query, limit=LOOKED_AT, rpc_timeout=RPC)]
        ended = sorted((row for row in rows if row.close_time), key=lambda row: str(row.close_time), reverse=True)
        bad: list[WorkflowExecution] = []
        for row in ended:
            if row.status == WorkflowExecutionStatus.COMPLETED and not (await row.memo()).get(MESSAGE):
                break
            if row.status in (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.CANCELED):
                continue  # somebody's wish
            bad.append(row)
        if len(bad) >= REPEATEDLY:
            since = min(row.start_time for row in bad)
            found.append(
                {
                    "part": part,
                    "failed": len(bad),
                    "at_least": len(bad) == LOOKED_AT,
                    "since": since.isoformat(timespec="seconds"),
                    "reason": one_line(await _reason(client, bad[0]), MAX_REASON),
                }
            )
    return found


def line(state: Data) -> str:
    """For people."""
    at_least = "at least " if state["at_least"] else ""
    since = state["since"][:16].replace("T", " ")
    return f"the sweep for {state['part']} failed {at_least}{state['failed']} times in a row since {since}: {state['reason']}"


async def _reason(client: Client, row: WorkflowExecution) -> str:
    message = (await row.memo()).get(MESSAGE)
    if message:
        return str(message)
    handle = client.get_workflow_handle(row.id, run_id=row.run_id)
    try:
        await handle.result(rpc_timeout=RPC)
    except WorkflowFailureError as failed:
        cause: Any = failed.cause
        while isinstance(cause, FailureError) and isinstance(cause.cause, FailureError):
            cause = cause.cause
        return cause.message if isinstance(cause, FailureError) else str(cause)
    return "it did not come to its end"
