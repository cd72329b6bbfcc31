"""``archiver sweep``: the sweeps of the schedules, at once, or only what they would do (docs/sweep.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from temporalio.client import Client, WorkflowFailureError
from temporalio.common import SearchAttributePair, TypedSearchAttributes, WorkflowIDConflictPolicy
from temporalio.exceptions import FailureError

from activities.connection import answering, connect
from archiver import model as m
from archiver.errors import OwnFault
from archiver.settings import Settings
from archiver.text import joined
from workflows import steps
from workflows.visible import OPERATION

PARTS = ("jobs", "leftovers")
PATIENCE_SECONDS = 15.0
"""After so long without an end it is said what is waited for."""
_KINDS = {"jobs": "Sweep", "leftovers": "SweepLeftovers"}

Said = tuple[str, dict[str, Any]]
"""For people, and as data."""


async def sweep(settings: Settings, parts: list[str], *, dry_run: bool, say: Callable[[str], None]) -> dict[str, Said]:
    """Each part in turn, to its end. Raises ``Unreachable``, or ``OwnFault`` with what stopped it."""
    client = await connect(settings)
    return {part: await _sweep(client, part, dry_run=dry_run, say=say) for part in parts}


async def _sweep(client: Client, part: str, *, dry_run: bool, say: Callable[[str], None]) -> Said:
    name = f"archiver-sweep-{part}-{'dry-run' if dry_run else 'by-hand'}"
    with answering():
        handle = await client.start_workflow(
            _KINDS[part],
            m.SweepRequest(dry_run=dry_run),
            id=name,
            task_queue=steps.WORKFLOWS,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            search_attributes=TypedSearchAttributes([SearchAttributePair(OPERATION, "sweep")]),
            static_summary=f"sweep for {part}" + " (dry run)" * dry_run,
            result_type=m.SweepJobsResult if part == "jobs" else m.SweepLeftoversResult,
        )
        ended = asyncio.create_task(handle.result())
        done, _ = await asyncio.wait([ended], timeout=PATIENCE_SECONDS)
        if not done:
            say(
                f"waiting for {name}: archiver health  tells whether workers serve its queues; Ctrl-C leaves it going on"
            )
        try:
            result: m.SweepJobsResult | m.SweepLeftoversResult = await ended
        except WorkflowFailureError as failed:
            cause = failed.cause
            raise OwnFault(
                f"the sweep for {part} did not come to its end",
                found=(cause.message if isinstance(cause, FailureError) else str(cause))[:600],
                next_step=f"mend it, then  archiver sweep {part}; the schedule tries again by itself",
                retryable=False,
            ) from None
    head = jobs(result) if isinstance(result, m.SweepJobsResult) else leftovers(result)
    return ("would do, and did nothing: " * dry_run) + head, {
        **result.model_dump(),
        "dry_run": dry_run,
        "workflow": name,
    }


def jobs(swept: m.SweepJobsResult) -> str:
    """For people."""
    parts = [
        f"{swept.started} started" + (f" ({swept.delayed} for later)" if swept.delayed else ""),
        f"{swept.restarted} lost ones started again",
        f"{swept.reported} lost ones reported",
        f"{swept.corrected} told again, over a status that came too late",
        f"{swept.running} at work",
        f"{swept.waiting} not lost for long enough",
        f"{swept.foreign} of other archives",
        f"{swept.untold} that SciCat lets nobody end, because a dataset of theirs was deleted",
        f"{swept.failed} that SciCat did not answer for",
    ]
    said = ", ".join(part for part in parts if not part.startswith("0 "))
    text = f"jobs: {swept.submitted} submitted, {swept.in_progress} in progress in SciCat: {said or 'nothing to do'}"
    return joined([text + ("; more are left for the next sweep" if swept.more else ""), *_indented(swept.lines)])


def leftovers(swept: m.SweepLeftoversResult) -> str:
    """For people."""
    parts = [
        f"{swept.cleared} cleared",
        f"{swept.corrected} jobs and retrievals told again, over a status that came too late",
        f"{swept.running} at work",
        f"{swept.young} young",
        f"{swept.more} for the next",
    ]
    said = ", ".join(part for part in parts if not part.startswith("0 "))
    text = f"leftovers: of {swept.found} datasets" + (f"; {said}" if said else "")
    return joined([text, *_indented(swept.lines), *(f"  PROBLEM  {one}" for one in swept.problems)])


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
