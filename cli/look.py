"""Looks at a job, a dataset or a datablock and all that is under way below it, as plain data: for ``status`` and ``watch``.

The tree comes from Temporal's server, also while no worker runs; only counts and outcomes are asked of the workflows
themselves, within ``QUERY``. Everything is asked at once, ``AT_ONCE`` calls at a time, and every call has a time limit.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from temporalio.api.enums.v1 import EventType, PendingActivityState, WorkflowExecutionStatus
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHistoryEventFilterType
from temporalio.exceptions import FailureError, TemporalError
from temporalio.service import RPCError, RPCStatusCode

from activities.polled import RPC
from archiver import model as m
from archiver.text import cut
from cli import queues
from cli.queues import QueueState, queue_of, when
from cli.refs import describe, kind_of, name_of
from workflows.visible import BYTES_TOTAL, DATABLOCK_COUNT, STAGE, size

QUERY = timedelta(seconds=3)
"""A worker answers a query in milliseconds; without one, nobody does."""
AT_ONCE = queues.AT_ONCE
SHOWN_CHILDREN = 100
"""Datasets or datablocks under way that are looked at; the others are counted."""
SHOWN_ERROR = 600
LAST_EVENTS = 500
"""Events from the end of a cancelled workflow's history in which its cancel is looked for."""
QUICKER, SLOWER = 0.7, 1.5
"""Time left is told as a range: the pace so far, a third faster to half as slow again."""
LEAST_SHARE = 0.02
"""Before so much is done, the pace says nothing."""
STAGE_OF = {
    "pack-datablock": "pack",
    "wait-for-lts-space": "wait for LTS space",
    "copy-to-lts": "copy to LTS",
    "verify-in-lts": "verify in LTS",
    "quarantine-datablock": "quarantine",
    "retrieve-datablock": "read from LTS",
}
"""A datablock's stage by the step that is under way."""
SHARES = {
    "pack": (0.0, 0.5),
    "wait for LTS space": (0.5, 0.0),
    "copy to LTS": (0.5, 0.25),
    "verify in LTS": (0.75, 0.25),
    "read from LTS": (0.0, 1.0),
}
"""How much of a datablock's way is behind it when it enters a stage, and how much the stage is: packing is the slow half."""

_M = TypeVar("_M", bound=m.Wire)
_T = TypeVar("_T")
Data = dict[str, Any]


@dataclass
class Looker:
    """One look: the queues as they are now, and who answers."""

    client: Client
    queues: dict[str, QueueState]
    unserved: set[str]
    answers: bool = True
    """False once a query was not answered: no other is tried."""
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def limited(self, work: Awaitable[_T]) -> _T:
        """Run a call when there is a slot for it."""
        async with self._slots:
            return await work


async def look(client: Client, description: WorkflowExecutionDescription) -> Data:
    """All that is known of a workflow of ours and of what is under way below it. Raises ``RPCError``."""
    states = await queues.read(client)
    looker = Looker(client, states, set(await queues.unserved(client, states)))
    if queues.WORKFLOWS in looker.unserved:
        looker.answers = False
    return await node(looker, description)


async def node(looker: Looker, description: WorkflowExecutionDescription) -> Data:
    """One workflow and its children."""
    kind = kind_of(description.id)
    raw = description.raw_description
    info = raw.workflow_execution_info
    running = info.status == WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
    started = when(raw.workflow_extended_info.original_start_time) or description.start_time
    ended = description.close_time
    held = when(info.execution_time)
    steps = [await step(looker, one) for one in raw.pending_activities] if running else []
    found: Data = {
        "kind": kind,
        "workflow": description.id,
        "run": description.run_id,
        "name": name_of(description.id),
        "state": description.status.name if description.status else "?",
        "stage": description.typed_search_attributes.get(STAGE, "?"),
        "started": started.isoformat(timespec="seconds"),
        "ended": ended.isoformat(timespec="seconds") if ended else None,
        "seconds": round(((ended or datetime.now(UTC)) - started).total_seconds(), 1),
        "steps": steps,
        "waits_for": next((one["waits_for"] for one in steps if one["waits_for"]), ""),
        "last_error": next((one["last_error"] for one in steps if one["last_error"]), None),
        "message": "",
        "progress": None,
        "asked": await _asked(description),
    }
    if running and held and held > datetime.now(UTC):
        found["waits_for"] = f"its time: begins {held:%Y-%m-%d %H:%M} UTC"
    if raw.pending_workflow_task.attempt > 1 and running:
        found["waits_for"] = (
            f"its workflow task, which failed {raw.pending_workflow_task.attempt - 1} times: see the worker's log"
        )
    if kind == "datablock":
        _datablock(found)
        return found
    # In the order in which they began: the server has them in none.
    begun = sorted(raw.pending_children, key=lambda child: child.initiated_id)
    children = begun[:SHOWN_CHILDREN] if running else []
    progress: type[m.JobProgress] | type[m.DatasetProgress] = m.JobProgress if kind == "job" else m.DatasetProgress
    asked, below = await asyncio.gather(
        _ask(looker, description, progress),
        asyncio.gather(*(_child(looker, child.workflow_id, child.run_id) for child in children)),
    )
    found["children_under_way"] = len(raw.pending_children) if running else 0
    _count(found, description, asked)
    found["datasets" if kind == "job" else "datablocks"] = [one for one in below if one is not None]
    if not running:
        await ending(looker.client, description, found)
    elif asked is None and not found["waits_for"]:
        found["waits_for"] = f"a worker on queue {queues.WORKFLOWS}: no worker answers"
    _shares(found)
    return found


async def _asked(description: WorkflowExecutionDescription) -> str:
    """Who had it taken up again, and why; empty where nobody did."""
    memo = await description.memo()
    return f"taken up again by {memo['asked_by']}: {memo.get('reason')}" if memo.get("asked_by") else ""


async def _child(looker: Looker, workflow: str, run_id: str) -> Data | None:
    description = await looker.limited(describe(looker.client, workflow, run_id))
    return await node(looker, description) if description is not None else None


async def _ask(looker: Looker, description: WorkflowExecutionDescription, kind: type[_M]) -> _M | None:
    """The answer of the ``progress`` query; None if nobody answers it."""
    if not looker.answers:
        return None
    handle = looker.client.get_workflow_handle(description.id, run_id=description.run_id)
    try:
        answer: _M = await looker.limited(handle.query("progress", result_type=kind, rpc_timeout=QUERY))
        return answer
    except RPCError as error:
        if error.status == RPCStatusCode.UNAVAILABLE:
            raise
    except TemporalError:
        pass
    looker.answers = False
    return None


def _count(found: Data, description: WorkflowExecutionDescription, asked: m.Wire | None) -> None:
    """Sizes and counts: from the workflow, or what search attributes tell of it."""
    attributes = description.typed_search_attributes
    if asked is not None:
        found["progress"] = asked.model_dump()
        found["stage"] = found["progress"]["stage"]
        found["message"] = found["progress"]["message"]
    if isinstance(asked, m.JobProgress):
        found |= {"done": asked.counts.total, "of": asked.total, "waiting_for_others": asked.waiting_for_others}
        found["outcomes"] = [outcome.model_dump() for outcome in asked.outcomes]
    elif isinstance(asked, m.DatasetProgress):
        found |= {"done": asked.datablocks_done, "of": asked.datablocks, "size_bytes": asked.size_bytes}
    elif found["kind"] == "job":
        found |= {"done": None, "of": None, "outcomes": [], "waiting_for_others": []}
    else:
        found |= {"done": None, "of": attributes.get(DATABLOCK_COUNT), "size_bytes": attributes.get(BYTES_TOTAL)}


# --- steps: what is under way, and what it waits for -------------------------------------------------------------------


async def step(looker: Looker, pending: PendingActivityInfo) -> Data:
    """A pending activity in an operator's words."""
    beat = m.Heartbeat()
    runs = pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
    if pending.heartbeat_details.payloads:
        payloads = list(pending.heartbeat_details.payloads[:1])
        try:
            (beat,) = await looker.client.data_converter.decode(payloads, [m.Heartbeat])
        except (ValueError, RuntimeError):
            pass  # not ours to read
    name, queue, now = pending.activity_type.name, queue_of(pending), datetime.now(UTC)
    begun = when(pending.last_started_time)
    rate = None
    if runs and beat.done_bytes and begun and (heard := when(pending.last_heartbeat_time)) and heard > begun:
        rate = int(beat.done_bytes / (heard - begun).total_seconds())
    error = None
    if pending.HasField("last_failure"):
        at = when(pending.last_attempt_complete_time) or begun
        error = {
            "message": cut(pending.last_failure.message, SHOWN_ERROR),
            "at": at.isoformat(timespec="seconds") if at else None,
            "attempt": pending.attempt - 1,
        }
    state = looker.queues.get(queue)
    place = None if runs or state is None else _place(pending, state)
    return {
        "step": name,
        "queue": queue,
        "runs": runs,
        "attempt": pending.attempt,
        "since": (begun if runs else when(pending.scheduled_time) or now).isoformat(timespec="seconds"),  # type: ignore[union-attr]
        "worker": pending.last_worker_identity if runs else "",
        "done_bytes": beat.done_bytes if runs else 0,
        "total_bytes": beat.total_bytes if runs else 0,
        "files": beat.files if runs else 0,
        "bytes_per_second": rate,
        "note": beat.note if runs else "",
        "queue_place": place,
        "waits_for": _waits_for(looker, pending, beat, place),
        "last_error": error,
        "next_try": _next_try(pending, now),
    }


def _next_try(pending: PendingActivityInfo, now: datetime) -> str | None:
    due = when(pending.next_attempt_schedule_time)
    waits = pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    return due.isoformat(timespec="seconds") if waits and due and due > now else None


def _place(pending: PendingActivityInfo, state: QueueState) -> Data | None:
    """Where it stands in its queue, as far as the server tells: how many wait, and whether any waits longer."""
    if not state.waiting:
        return None
    since = when(pending.scheduled_time)
    first = since is not None and (datetime.now(UTC) - since).total_seconds() >= state.oldest_seconds - 1
    return {"waiting": state.waiting, "longest": first, "before": 0 if first else max(0, state.waiting - 1)}


def _waits_for(looker: Looker, pending: PendingActivityInfo, beat: m.Heartbeat, place: Data | None) -> str:
    """Why it does not move; empty while it does."""
    state, queue = pending.state, queue_of(pending)
    if pending.paused:
        manual = pending.pause_info.manual
        said = f" by {manual.identity}" + (f": {manual.reason}" if manual.reason else "") if manual.identity else ""
        return f"the step to be resumed: paused in Temporal{said}"
    if state == PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED:
        return "the step to stop: it was told to"
    if state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED:
        return in_units(beat.note) if pending.activity_type.name == "wait-for-lts-space" else ""
    if due := _next_try(pending, datetime.now(UTC)):
        return f"try {pending.attempt} of step {pending.activity_type.name} at {due[11:19]} UTC, after an error"
    known = looker.queues.get(queue)
    if known is not None and known.paused:
        return f"queue {queue} to be resumed: paused by {known.who} at {known.since[:16].replace('T', ' ')}: {known.reason}"
    if queue in looker.unserved:
        return f"a worker on queue {queue}: none asks for work, and none is seen to be busy"
    what = "LTS space, behind another datablock" if queue == "archiver-lts-space" else f"a free slot of {queue}"
    return what + ", " + placed(place)


def in_units(note: str) -> str:
    """A note with its bytes in larger units."""
    return re.sub(r"(\d+) B\b", lambda match: size(int(match[1])), note)


def placed(place: Data | None) -> str:
    """A place in a queue in words."""
    if place is None:
        return "place unknown"
    if place["longest"]:
        return f"the longest waiting of about {place['waiting']}"
    return f"up to {place['before']} before it"


def _datablock(found: Data) -> None:
    """A datablock's number, stage and bytes, from the step under way."""
    pid, _, n = found["name"].rpartition("/")
    found |= {"pid": pid, "n": int(n) if n.isdigit() else None}
    current = found["steps"][0] if found["steps"] else None
    if current is not None:
        found["stage"] = STAGE_OF.get(current["step"], current["step"])
    found |= {
        "done_bytes": current["done_bytes"] if current else 0,
        "total_bytes": current["total_bytes"] if current else 0,
        "bytes_per_second": current["bytes_per_second"] if current else None,
    }
    before, own = SHARES.get(found["stage"], (0.0, 0.0))
    share = found["done_bytes"] / found["total_bytes"] if found["total_bytes"] else 0.0
    found["share"] = round(before + own * min(1.0, share), 4)


def _shares(found: Data) -> None:
    """How much of the whole is done, the rate of all below, and how long the rest takes at the pace so far."""
    below = found.get("datasets") or found.get("datablocks") or []
    rates = [one["bytes_per_second"] for one in below if one.get("bytes_per_second")]
    found["bytes_per_second"] = sum(rates) if rates else None
    found["share"] = found["seconds_left"] = None
    if found["state"] != "RUNNING" or not found.get("of"):
        return
    share = (found["done"] or 0) + sum(one["share"] or 0.0 for one in below)
    found["share"] = share = round(min(1.0, share / found["of"]), 4)
    stands = bool(below) and all(_stands(one) for one in below)
    if share >= LEAST_SHARE and not stands and not found["waits_for"]:
        left = found["seconds"] * (1 - share) / share
        found["seconds_left"] = [round(left * QUICKER), round(left * SLOWER)]


def _stands(one: Data) -> bool:
    below = one.get("datablocks") or []
    return bool(one["waits_for"]) or (bool(below) and all(_stands(each) for each in below))


# --- how it ended ------------------------------------------------------------------------------------------------------


async def ending(client: Client, description: WorkflowExecutionDescription, found: Data) -> None:
    """Message, result and who ended it, from the last event: no worker is needed."""
    handle = client.get_workflow_handle(description.id, run_id=description.run_id)
    history = handle.fetch_history_events(event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT, rpc_timeout=RPC)
    events = [event async for event in history]
    found |= {"problem": None, "result": None}
    if not events:
        return
    event: HistoryEvent = events[-1]
    if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
        ended = event.workflow_execution_terminated_event_attributes
        by = f" by {ended.identity}" if ended.identity else ""
        found["problem"] = f"terminated{by}: {ended.reason or 'no reason given'}"
    elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED:
        found["problem"] = await _who_cancelled(client, description)
    elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
        failure = event.workflow_execution_failed_event_attributes.failure
        error = await client.data_converter.decode_failure(failure)
        found["problem"] = error.message if isinstance(error, FailureError) else str(error)
        found["problem_type"] = error.type if hasattr(error, "type") else ""
    elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT:
        found["problem"] = "ran out of time"
    elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
        kind: type[m.Wire] = m.ArchiveJobResult if found["kind"] == "job" else m.DatasetOutcome
        payloads = list(event.workflow_execution_completed_event_attributes.result.payloads[:1])
        try:
            (result,) = await client.data_converter.decode(payloads, [kind])
        except (ValueError, RuntimeError):
            return
        found["result"] = result.model_dump()
        found["message"] = result.message
        if isinstance(result, m.ArchiveJobResult):
            found |= {"done": result.counts.total, "of": found["of"] or result.counts.total}
    if found["problem"] and not found["message"]:
        found["message"] = found["problem"]


async def _who_cancelled(client: Client, description: WorkflowExecutionDescription) -> str:
    """Who asked Temporal to cancel it, and why, from the last events."""
    request = GetWorkflowExecutionHistoryReverseRequest(namespace=client.namespace, maximum_page_size=LAST_EVENTS)
    request.execution.workflow_id, request.execution.run_id = description.id, description.run_id
    told = await client.workflow_service.get_workflow_execution_history_reverse(request, timeout=RPC)
    for event in told.history.events:
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED:
            asked = event.workflow_execution_cancel_requested_event_attributes
            stop = m.StopRequest.from_text(asked.cause or None)
            who = asked.identity if stop.who == m.StopRequest.from_text(None).who and asked.identity else stop.who
            return f"stopped by {who}: {stop.reason}"
    return "cancelled"


def spell(seconds: float) -> str:
    """A length of time for people: 2 h 14 min."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def left(found: Data) -> str:
    """Time left in words; empty while it cannot be told."""
    if not found.get("seconds_left"):
        return ""
    least, most = found["seconds_left"]
    return f"about {spell(least)} to {spell(most)} left"


def moved(block: Data) -> str:
    """Bytes of a datablock's stage: 3.0 of 9.0 MiB at 2.1 MiB/s."""
    if not block["done_bytes"]:
        return ""
    of = f" of {size(block['total_bytes'])}" if block["total_bytes"] else ""
    rate = f" at {size(block['bytes_per_second'])}/s" if block["bytes_per_second"] else ""
    return f"{size(block['done_bytes'])}{of}{rate}"
