"""Whether the sweeps do their work: read from Temporal's list of those that ended, for ``health``, ``doctor`` and ``jobs``."""

from __future__ import annotations

from typing import Any

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import FailureError

from activities.polled import RPC
from archiver.text import one_line
from cli.look import Data
from workflows.visible import FAILED, MESSAGE, SINCE, WAS_GOOD

PARTS = {"jobs": "Sweep", "leftovers": "SweepLeftovers", "retrieved": "ExpireRetrieved"}
"""Parts of ``archiver sweep``, and the removal of retrieved data, with their workflows."""
LOOKED_AT = 20
"""Of each part, the last runs."""
REPEATEDLY = 3
"""So many in a row that failed are a failure of the sweep: one alone may have met a restart of SciCat."""
MAX_REASON = 400


async def failing(client: Client) -> list[Data]:
    """The parts of which the last ``REPEATEDLY`` or more looks failed in a row, since when, and why. Raises ``RPCError``."""
    states = [await _failed(client, part, workflow) for part, workflow in PARTS.items()]
    return [state for state in states if state["failed"] >= REPEATEDLY]


async def _failed(client: Client, part: str, workflow: str) -> Data:
    rows = [
        row async for row in client.list_workflows(f"WorkflowType = '{workflow}'", limit=LOOKED_AT, rpc_timeout=RPC)
    ]
    failed, since, reason = 0, "", ""
    for row in sorted(rows, key=lambda row: row.start_time, reverse=True):
        memo = dict(await row.memo())
        if not memo and row.status != WorkflowExecutionStatus.FAILED:
            continue  # it has not looked yet, only said what it would do, or was stopped by somebody
        if memo and not memo.get(FAILED):
            break
        failed += int(memo.get(FAILED, 1))
        since = str(memo.get(SINCE) or row.start_time.isoformat(timespec="seconds"))
        reason = reason or str(memo.get(MESSAGE) or await _reason(client, row))
        if memo.get(WAS_GOOD):
            break
    return {"part": part, "failed": failed, "since": since, "reason": one_line(reason, MAX_REASON)}


def line(state: Data) -> str:
    """For people."""
    since = state["since"][:16].replace("T", " ")
    return f"the sweep for {state['part']} failed {state['failed']} times in a row since {since}: {state['reason']}"


async def _reason(client: Client, row: WorkflowExecution) -> str:
    handle = client.get_workflow_handle(row.id, run_id=row.run_id)
    try:
        await handle.result(rpc_timeout=RPC)
    except WorkflowFailureError as failed:
        cause: Any = failed.cause
        while isinstance(cause, FailureError) and isinstance(cause.cause, FailureError):
            cause = cause.cause
        return cause.message if isinstance(cause, FailureError) else str(cause)
    return "it did not come to its end"
