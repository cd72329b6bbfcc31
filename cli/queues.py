"""The task queues as Temporal's server sees them: who asks for work, how much waits, and whether an operator paused them.

A pause is Temporal's own: a rate limit of 0 on the queue, kept by the server with reason, name and time. No worker knows
of it, so none forgets it: it lasts over restarts of workers and of Temporal until it is taken back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import PendingActivityState, TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueueConfig
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueResponse,
    UpdateTaskQueueConfigRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.groups import GROUPS
from activities.polled import RPC, asking, described, is_paused
from archiver.errors import SettingsInvalid
from workflows import steps

BEATS_WITHIN = timedelta(minutes=5)
AT_ONCE = 16
"""Calls to Temporal at a time."""
LOOKS = 200
"""Workflows looked at to tell a queue that is busy from one that nobody serves."""

WORKFLOWS = steps.WORKFLOWS
DATA = tuple(f"archiver-{name}" for name in ("pack", *GROUPS["lts"]))
"""What ``archiver pause`` stops: every queue that reads or writes data. SciCat is still read and told."""
ACTIVITY_QUEUES = (steps.CATALOGUE, *DATA)
QUEUE_OF = {step.name: step.queue for step in steps.ALL}
"""The queue of each step, by its registered name."""


@dataclass(frozen=True)
class QueueState:
    """One task queue. ``waiting`` is the server's own estimate."""

    name: str
    asking: int
    """Workers that asked for work lately; those whose slots are all taken do not ask."""
    waiting: int
    oldest_seconds: float
    """For how long the task that waits longest has waited."""
    paused: bool = False
    reason: str = ""
    who: str = ""
    since: str = ""

    def as_data(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def when(stamp: Timestamp) -> datetime | None:
    """A time of Temporal's; None if it is not set."""
    return stamp.ToDatetime(tzinfo=UTC) if stamp.seconds or stamp.nanos else None


def names_of(queue: str | None) -> tuple[str, ...]:
    """The queues meant by what was typed: a name or group as ``--queues`` takes it, or a full name; none: all that move data.

    Raises ``SettingsInvalid`` (usage).
    """
    if queue is None:
        return DATA
    short = queue.removeprefix("archiver-")
    chosen = (
        tuple(f"archiver-{name}" for name in GROUPS.get(short, ()) if name != "workflows") if short != "all" else DATA
    )
    if not chosen:
        known = sorted({name.removeprefix("archiver-") for name in ACTIVITY_QUEUES} | {"lts"})
        raise SettingsInvalid(f"{queue!r} is no queue that can be paused", expected=", ".join(known), found=repr(queue))
    return chosen


async def read(client: Client, names: Iterable[str] = (WORKFLOWS, *ACTIVITY_QUEUES)) -> dict[str, QueueState]:
    """These queues, all asked at once. Raises ``RPCError``."""
    wanted = list(dict.fromkeys(names))
    return dict(zip(wanted, await asyncio.gather(*(_read(client, name) for name in wanted)), strict=True))


async def _read(client: Client, name: str, config: TaskQueueConfig | None = None) -> QueueState:
    return _state(name, await described(client, name, config=config))


def _state(name: str, told: DescribeTaskQueueResponse) -> QueueState:
    limit = told.config.queue_rate_limit
    changed = when(limit.metadata.update_time)
    return QueueState(
        name=name,
        asking=len(asking(told)),
        waiting=max(0, told.stats.approximate_backlog_count),
        oldest_seconds=told.stats.approximate_backlog_age.ToTimedelta().total_seconds(),
        paused=is_paused(told),
        reason=limit.metadata.reason,
        who=limit.metadata.update_identity,
        since=changed.isoformat(timespec="seconds") if changed else "",
    )


async def set_paused(client: Client, names: Iterable[str], paused: bool, *, reason: str, who: str) -> list[QueueState]:
    """Pause or resume these queues, with who and why; what runs goes on to its end. May be repeated. Raises ``RPCError``."""
    changed = []
    for name in names:
        request = UpdateTaskQueueConfigRequest(
            namespace=client.namespace,
            identity=who,
            task_queue=name,
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        )
        request.update_queue_rate_limit.reason = reason
        if paused:
            request.update_queue_rate_limit.rate_limit.requests_per_second = 0
        answer = await client.workflow_service.update_task_queue_config(request, timeout=RPC)
        # What is read right after a change may still be as before it.
        changed.append(await _read(client, name, answer.config))
    return changed


def line(state: QueueState) -> str:
    """One queue, and whether it is paused, in words."""
    if state.paused:
        return (
            f"paused   {state.name:<20} by {state.who} since {state.since[:16].replace('T', ' ')} UTC: {state.reason}"
        )
    changed = f"resumed by {state.who}: {state.reason}" if state.who else ""
    return f"running  {state.name:<20} {changed}".rstrip()


async def unserved(client: Client, states: dict[str, QueueState]) -> list[str]:
    """Queues for which no worker asks and on which nothing is seen to run: whoever waits there waits in vain."""
    silent = [name for name, state in states.items() if not state.asking]
    if not silent or silent == [WORKFLOWS]:
        return silent
    busy = await _busy(client)
    return [name for name in silent if name not in busy]


async def _busy(client: Client) -> set[str]:
    """Queues on which a step runs now, as far as ``LOOKS`` datablocks and as many datasets under way tell."""
    limit = asyncio.Semaphore(AT_ONCE)
    found: set[str] = set()

    async def look(workflow_id: str, run_id: str) -> None:
        async with limit:
            try:
                told = await client.get_workflow_handle(workflow_id, run_id=run_id).describe(rpc_timeout=RPC)
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
                return
            found.update(queue_of(one) for one in told.raw_description.pending_activities if runs_now(one))

    for kind in ("ArchiveDatablock", "ArchiveDataset", "RetrieveDatablock", "RetrieveDataset"):
        query = f"WorkflowType = '{kind}' AND ExecutionStatus = 'Running'"
        listed = client.list_workflows(query, limit=LOOKS, page_size=LOOKS, rpc_timeout=RPC)
        await asyncio.gather(*[look(one.id, one.run_id) async for one in listed])
    return found


def queue_of(pending: PendingActivityInfo) -> str:
    """Where an activity waits or runs."""
    return pending.activity_options.task_queue.name or QUEUE_OF.get(pending.activity_type.name, "?")


def runs_now(pending: PendingActivityInfo) -> bool:
    """Whether a worker has it, and was heard of lately."""
    heard = when(pending.last_heartbeat_time) or when(pending.last_started_time)
    return (
        pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        and heard is not None
        and datetime.now(UTC) - heard < BEATS_WITHIN
    )
