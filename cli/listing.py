"""``archiver jobs``: jobs as Temporal's visibility has them, and those that are stuck. No worker is needed."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowExecution

from activities.polled import RPC
from archiver.errors import SettingsInvalid
from archiver.text import cut, keyword
from cli import queues, sweep_state
from cli.look import Data, spell
from cli.queues import queue_of
from cli.refs import describe, is_retrieval, kind_of, name_of
from workflows.visible import BYTES_TOTAL, JOB_ID, MESSAGE, STAGE, WELL, quoted, size

SHOWN_ERROR = 300
FAILED_TRIES = 3
"""A step that failed so often in a row is stuck, though it is still tried."""
LOOK_SECONDS = 8.0
"""So long ``--stuck`` looks at workflows one by one; how many it did not come to is said."""
GROUP_DATASETS = 2000
"""Datasets of a group, newest first, whose jobs ``--group`` finds."""
IDS_PER_QUERY = 50
SINCE = re.compile(r"(\d{1,4})([mhdw])")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def query_of(*, running: bool = False, failed: bool = False, since: str | None = None) -> str:
    """The visibility query. Raises ``SettingsInvalid`` (usage)."""
    parts = ["WorkflowType IN ('ArchiveJob', 'RetrieveJob')"]
    if running:
        parts.append("ExecutionStatus = 'Running'")
    if failed:
        parts.append(
            "(ExecutionStatus IN ('Failed', 'Terminated', 'TimedOut', 'Canceled')"
            f" OR (ExecutionStatus = 'Completed' AND Stage != '{WELL}'))"
        )
    if since:
        match = SINCE.fullmatch(since)
        if match is None:
            raise SettingsInvalid(f"--since {since!r} is no span of time", expected="30m, 12h, 7d or 2w", found=since)
        begin = datetime.now(UTC) - timedelta(**{UNITS[match[2]]: int(match[1])})
        parts.append(f"StartTime > '{begin:%Y-%m-%dT%H:%M:%S.%fZ}'")
    return " AND ".join(parts)


def group_query(group: str) -> str:
    """The visibility query for datasets of an owner group."""
    return f"WorkflowType IN ('ArchiveDataset', 'RetrieveDataset') AND OwnerGroup = '{quoted(keyword(group))}'"


async def jobs(
    client: Client,
    *,
    limit: int,
    running: bool = False,
    failed: bool = False,
    stuck: bool = False,
    group: str | None = None,
    since: str | None = None,
) -> Data:
    """Jobs, those that run first, then by their end, newest first; each job by its latest run. Raises ``RPCError``."""
    if sum((running or stuck, failed)) > 1 or (stuck and (group is not None or since)):
        raise SettingsInvalid(
            "these filters do not go together",
            expected="one of --running, --failed, --stuck; --group and --since not with --stuck",
            found="several of them",
        )
    query = query_of(running=running or stuck, failed=failed, since=since)
    paused = [state for state in (await queues.read(client)).values() if state.paused]
    told: Data = {
        "paused": [state.as_data() for state in paused],
        "none": "no such job" if group is not None or since else _none(running, failed, stuck),
        "failing_sweeps": await sweep_state.failing(client),
    }
    if stuck:
        return told | await _stuck(client, query, limit)
    if group is not None:
        return told | await _of_group(client, query, group, limit, failed)
    rows = [row async for row in client.list_workflows(query, limit=limit, page_size=limit, rpc_timeout=RPC)]
    latest = await _latest(client, rows, failed)
    # The server counts runs. Of those not looked at, some may be of jobs that a later run has taken up.
    more = (await client.count_workflows(query, rpc_timeout=RPC)).count - len(rows) if len(rows) == limit else 0
    shown = [await _told(row, failed) for row in latest]
    return told | {"jobs": shown, "of": len(latest) + max(0, more), "of_at_most": more > 0}


async def _latest(client: Client, rows: list[WorkflowExecution], failed: bool) -> list[WorkflowExecution]:
    """Without runs that a later one of the same job followed: a job that failed and was retried well has not failed."""
    newest: dict[str, WorkflowExecution] = {}
    for row in rows:
        if row.id not in newest or row.start_time > newest[row.id].start_time:
            newest[row.id] = row
    if failed:
        names = list(newest)
        for start in range(0, len(names), IDS_PER_QUERY):
            wanted = ", ".join(f"'{name}'" for name in names[start : start + IDS_PER_QUERY])
            async for row in client.list_workflows(f"WorkflowId IN ({wanted})", rpc_timeout=RPC):
                if row.start_time > newest[row.id].start_time:
                    newest[row.id] = row
    return [row for row in rows if newest[row.id] is row]


async def _of_group(client: Client, query: str, group: str, limit: int, failed: bool) -> Data:
    """Jobs with a dataset of this owner group under way or done."""
    names: list[str] = []
    async for row in client.list_workflows(group_query(group), limit=GROUP_DATASETS, rpc_timeout=RPC):
        job = row.typed_search_attributes.get(JOB_ID)
        if job and job not in names:
            names.append(job)
    found: list[WorkflowExecution] = []
    for start in range(0, len(names), IDS_PER_QUERY):
        wanted = ", ".join(f"'{quoted(name)}'" for name in names[start : start + IDS_PER_QUERY])
        found += [row async for row in client.list_workflows(f"{query} AND ScicatJobId IN ({wanted})", rpc_timeout=RPC)]
    latest = await _latest(client, found, failed)
    return {"jobs": [await _told(row, failed) for row in latest[:limit]], "of": len(latest)}


def _none(running: bool, failed: bool, stuck: bool) -> str:
    """What is said where the list is empty."""
    if stuck:
        return "no job is stuck"
    return "no job is under way" if running else "no job failed" if failed else "no job is known"


async def _stuck(client: Client, query: str, limit: int) -> Data:
    """Running jobs below which something is stuck, and what it is.

    Stuck is a workflow of which a step has failed ``FAILED_TRIES`` times in a row and is not paused; or a step waits in a
    queue that no worker serves; or the workflow itself cannot go on, because its task fails or nobody takes it.
    """
    states = await queues.read(client)
    unserved = set(await queues.unserved(client, states))
    slots, until = asyncio.Semaphore(queues.AT_ONCE), time.monotonic() + LOOK_SECONDS
    left_out = 0
    why: dict[str, list[Data]] = {}

    async def look(row: WorkflowExecution) -> None:
        nonlocal left_out
        async with slots:
            if time.monotonic() > until:
                left_out += 1
                return
            description = await describe(client, row.id, row.run_id)
        if description is None:
            return
        reasons = _reasons(description.raw_description, states, unserved)
        if reasons:
            job = description.typed_search_attributes.get(JOB_ID) or _job_of(row)
            why.setdefault(job, []).append({"workflow": row.id, "reasons": reasons})

    kinds = ("ArchiveJob", "RetrieveJob", "ArchiveDataset", "RetrieveDataset", "ArchiveDatablock", "RetrieveDatablock")
    for kind in kinds:
        every = f"WorkflowType = '{kind}' AND ExecutionStatus = 'Running'"
        looks: list[asyncio.Task[None]] = []
        async for row in client.list_workflows(every, page_size=1000, rpc_timeout=RPC):
            looks.append(asyncio.create_task(look(row)))
            if len(looks) % 1000 == 0 and time.monotonic() > until:
                break
        await asyncio.gather(*looks)
    rows = [row async for row in client.list_workflows(query, rpc_timeout=RPC)]
    found = [_row(row) | {"stuck": why[name_of(row.id)]} for row in rows if name_of(row.id) in why]
    orphans = {name: each for name, each in why.items() if name not in {name_of(row.id) for row in rows}}
    return {"jobs": found[:limit], "of": len(found), "without_job": orphans, "not_looked_at": left_out}


def _job_of(row: WorkflowExecution) -> str:
    return name_of(row.id) if kind_of(row.id) == "job" else "?"


def _reasons(raw: Any, states: dict[str, queues.QueueState], unserved: set[str]) -> list[str]:
    reasons = []
    for pending in raw.pending_activities:
        step, queue = pending.activity_type.name, queue_of(pending)
        runs = pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        if pending.paused or (queue in states and states[queue].paused and not runs):
            continue
        if pending.attempt > FAILED_TRIES:
            reasons.append(
                f"step {step} failed {pending.attempt - 1} times: {cut(pending.last_failure.message, SHOWN_ERROR)}"
            )
        elif not runs and queue in unserved:
            reasons.append(f"step {step} waits for a worker on queue {queue}")
    if raw.pending_workflow_task.attempt > FAILED_TRIES:
        reasons.append(f"its workflow task failed {raw.pending_workflow_task.attempt - 1} times: see the worker's log")
    elif raw.HasField("pending_workflow_task") and queues.WORKFLOWS in unserved:
        reasons.append(f"no worker serves queue {queues.WORKFLOWS}")
    return reasons


async def _told(row: WorkflowExecution, failed: bool) -> Data:
    """With why it ``failed``, as its workflow left it in Temporal's list."""
    message = (await row.memo()).get(MESSAGE) if failed else None
    return _row(row) | ({"message": str(message)} if message else {})


def _row(row: WorkflowExecution) -> Data:
    ended = row.close_time
    return {
        "job": name_of(row.id),
        "kind": "retrieve" if is_retrieval(row.id) else "archive",
        "workflow": row.id,
        "state": row.status.name if row.status else "?",
        "stage": row.typed_search_attributes.get(STAGE, "?"),
        "started": row.start_time.isoformat(timespec="seconds"),
        "ended": ended.isoformat(timespec="seconds") if ended else None,
        "seconds": round(((ended or datetime.now(UTC)) - row.start_time).total_seconds(), 1),
        "size_bytes": row.typed_search_attributes.get(BYTES_TOTAL),
    }


def lines(told: Data) -> list[str]:
    """As a table, with what is paused before it."""
    rows = [
        f"paused  {state['name']}  by {state['who']} since {state['since'][:16].replace('T', ' ')}: {state['reason']}"
        for state in told["paused"]
    ]
    rows += [f"FAILS   {sweep_state.line(state)}" for state in told["failing_sweeps"]]
    if told["jobs"]:
        rows.append(f"{'job':<36}  {'kind':<8}  {'state':<10}  {'stage':<25}  {'begun (UTC)':<16}  {'for':>12}  size")
    for job in told["jobs"]:
        moved = size(job["size_bytes"]) if job["size_bytes"] else ""
        begun = job["started"][:16].replace("T", " ")
        rows.append(
            f"{job['job']:<36}  {job['kind']:<8}  {job['state']:<10}  {job['stage']:<25}  {begun}  "
            f"{spell(job['seconds']):>12}  {moved}".rstrip()
        )
        if job.get("message"):
            rows.append(f"    {job['message']}")
        rows += _stuck_lines(job.get("stuck", []))
    for job_id, stuck in told.get("without_job", {}).items():
        rows += [f"{job_id:<36}  its job does not run", *_stuck_lines(stuck)]
    if told["of"] > len(told["jobs"]):
        at_most = "at most " if told.get("of_at_most") else ""
        rows.append(f"{len(told['jobs'])} of {at_most}{told['of']}: --limit shows more")
    if told.get("not_looked_at"):
        rows.append(f"{told['not_looked_at']} workflows were not looked at: there are too many for one look")
    return rows or [told.get("none", "no such job")]


def _stuck_lines(stuck: list[Data]) -> list[str]:
    return [f"    {one['workflow']}: {reason}" for one in stuck for reason in one["reasons"]]
