"""``archiver receipt``: what happened to a dataset, in order (docs/receipt.md).

A dataset that is archived has its receipt beside its bag, and that is all of it. Of any other, what SciCat and Temporal's
histories still know is put together; every line says which source it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecution

from activities.connection import Unreachable, answering, connect
from archiver import model as m
from archiver.catalogue import payloads
from archiver.catalogue.client import SciCat
from archiver.catalogue.records import Dataset
from archiver.datablock.events import EVENTS, read, stamp
from archiver.errors import ArchiverError, LtsFault
from archiver.pids import pid_path, workflow_id
from archiver.settings import Settings
from archiver.storage.open import open_lts
from archiver.text import joined
from cli import exits
from cli.refs import RPC, describe
from workflows.visible import quoted

Data = dict[str, Any]

RUNS = 5
"""The latest runs of a dataset whose histories are read, where there is no receipt of them."""
SHOWN_DATABLOCKS = 200
SOURCE_SECONDS = 30.0
"""A source that does not answer for so long is told to be missing."""
CHANGED = "metadata modification"
STEPS = {
    "begin-dataset": ("ingestion start", "Archiving began; SciCat shows the dataset as started"),
    "plan-dataset": (
        "validation",
        "The files were looked up in the landing zone and compared with the catalogue's list",
    ),
    "publish-bag": ("information package creation", "The bag was completed on the LTS"),
    "register-datablocks": (CHANGED, "The datablocks were registered in SciCat"),
    "finish-dataset": ("ingestion end", "SciCat shows the dataset as datasetOnArchiveDisk: archived, and retrievable"),
    "fail-dataset": (CHANGED, "SciCat was told why the dataset was not archived"),
    "delete-sources": ("deletion", "The source files were removed from the landing zone"),
}
"""Of a dataset's workflow: the steps that a curator wants to know of."""


async def receipt(settings: Settings, pid: str) -> tuple[str, Data]:
    """For people, and as data. Raises ``NotFound``; the error of a source that does not answer, where no other knows more."""
    if not pid:
        raise _unknown(pid)
    events, sources = _on_lts(settings, pid)
    problem: ArchiverError | None = None
    if not any(event.get("type") == "ingestion end" and event.get("outcome") == "success" for event in events):
        recorded = {event.get("run") for event in events}
        registered = any(event.get("type") == CHANGED for event in events)
        known: list[Data] = []
        for name, ask in (
            ("scicat", lambda: _in_scicat(settings, pid, datablocks=not registered)),
            ("temporal", lambda: _in_temporal(settings, pid, recorded)),
        ):
            try:
                found = await asyncio.wait_for(_ask(ask), SOURCE_SECONDS)
            except (ArchiverError, TimeoutError) as error:
                fault = error if isinstance(error, ArchiverError) else Unreachable(f"{name} gave no answer in time")
                sources[name], problem = f"missing: {fault.one_line()}", problem or fault
            else:
                sources[name] = f"{len(found)} events"
                known += found
        if not events and not known:
            if problem is not None:
                raise problem
            raise _unknown(pid)
        events = _merged(events, known)
    return joined(_lines(pid, events, sources)), {"pid": pid, "sources": sources, "events": events}


def _unknown(pid: str) -> exits.NotFound:
    return exits.NotFound(
        f"nothing is known of dataset {pid[:200]!a}",
        expected="the pid of a dataset that SciCat has, or that was archived here",
        found="no receipt on the LTS, no record in SciCat, no run in Temporal",
        next_step="check the pid; a job's datasets are listed by  archiver status JOB",
    )


async def _ask(ask: Callable[[], Awaitable[list[Data]]]) -> list[Data]:
    return await ask()


def _merged(recorded: list[Data], known: list[Data]) -> list[Data]:
    """By time; what the receipt says stays in its own order."""
    latest, keyed = "", []
    for event in recorded:
        latest = max(latest, str(event.get("time", "")))
        keyed.append((latest, event))
    keyed += [(str(event["time"]), event) for event in known]
    return [event for _, event in sorted(keyed, key=lambda each: each[0])]


# --- the sources ------------------------------------------------------------------------------------------------------


def _on_lts(settings: Settings, pid: str) -> tuple[list[Data], dict[str, str]]:
    """The receipt beside the bag, if this machine sees the LTS and there is one."""
    try:
        folder = pid_path(pid)
    except ValueError:
        return [], {"lts": "none: such a pid has no directory on the LTS"}
    lts = open_lts(settings)
    path = f"{lts.where(folder)}/{EVENTS}"
    try:
        data = lts.get_small(folder, EVENTS)
    except LtsFault as fault:
        # A machine that does not mount the LTS is not at fault.
        return [], {"lts": f"missing: {fault.one_line()}"}
    if data is None:
        return [], {"lts": f"none: there is no {path}"}
    return [{**event, "source": "lts"} for event in read(data)], {"lts": path}


async def _in_scicat(settings: Settings, pid: str, *, datablocks: bool) -> list[Data]:
    """What the dataset's record says, and when its datablocks were registered."""
    async with SciCat(settings.scicat) as scicat:
        dataset = await scicat.dataset(pid)
        if dataset is None:
            return []
        events = _record(dataset)
        blocks = await scicat.datablocks(pid) if datablocks else []
    for block in blocks[:SHOWN_DATABLOCKS]:
        text = f"Datablock {block.archive_id} was registered"
        detail = {"files": block.files, "bytes": block.size, "packed_bytes": block.packed_size}
        events.append(_event("scicat", block.created_at, CHANGED, text, object=block.archive_id, detail=detail))
    if len(blocks) > SHOWN_DATABLOCKS:
        more = f"{len(blocks) - SHOWN_DATABLOCKS} more datablocks are registered"
        events.append(_event("scicat", blocks[-1].created_at, CHANGED, more, object=pid))
    return events


def _record(dataset: Dataset) -> list[Data]:
    raw, pid = dataset.raw, dataset.pid
    events = [_event("scicat", raw.get("createdAt"), "creation", "The dataset was registered in SciCat", object=pid)]
    history = raw.get("history")
    for entry in history if isinstance(history, list) else []:
        status = _at(entry, "datasetlifecycle", "currentValue", "archiveStatusMessage")
        if isinstance(status, str) and status:
            text = f"SciCat showed the dataset as {status}"
            events.append(_event("scicat", _at(entry, "updatedAt"), CHANGED, text, object=pid))
    life = dataset.lifecycle
    if status := life.archive_status_message:
        said = _at(life.archive_return_message, "summary") or life.archive_return_message
        text = f"SciCat shows the dataset as {status}" + (f": {said}" if isinstance(said, str) and said else "")
        changed = _at(raw, "datasetlifecycle", "updatedAt") or raw.get("updatedAt")
        failed = status in (payloads.FAILED, payloads.CONTENT)
        events.append(_event("scicat", changed, CHANGED, text, object=pid, failed=failed))
    return events


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


async def _in_temporal(settings: Settings, pid: str, recorded: set[Any]) -> list[Data]:
    """What the histories of the dataset's latest runs say, but for runs that the receipt tells of."""
    client = await connect(settings)
    name = workflow_id("archive-dataset", pid)
    with answering():
        latest = await describe(client, name)
        if latest is None:
            return []
        # Only a name that is one is asked for in a query: what others do to a server's SQL is not tried.
        listed = client.list_workflows(f"WorkflowId = '{quoted(name)}'", limit=RUNS, page_size=RUNS, rpc_timeout=RPC)
        runs: list[WorkflowExecution] = [run async for run in listed]
        if latest.run_id not in {run.run_id for run in runs}:  # the list may be a moment behind
            runs.insert(0, latest)
        events: list[Data] = []
        for run in reversed(runs):
            if run.run_id not in recorded:
                events += await _run(client, run, pid)
        return events


async def _run(client: Client, run: WorkflowExecution, pid: str) -> list[Data]:
    """One run, from its history."""
    events: list[Data] = []
    steps: dict[int, str] = {}
    handle = client.get_workflow_handle(run.id, run_id=run.run_id)

    def tell(at: Any, type: str, text: str, *, object: str = pid, failed: bool = False) -> None:
        time = stamp(at.event_time.ToDatetime(UTC))
        more = {"workflow": run.id, "run": run.run_id}
        events.append(_event("temporal", time, type, text, object=object, failed=failed) | more)

    async for one in handle.fetch_history_events(rpc_timeout=RPC):
        match one.event_type:
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                steps[one.event_id] = one.activity_task_scheduled_event_attributes.activity_type.name
            case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                step = steps[one.activity_task_completed_event_attributes.scheduled_event_id]
                if step in STEPS:
                    tell(one, *STEPS[step])
            case EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED:
                ended = one.activity_task_failed_event_attributes
                step = steps[ended.scheduled_event_id]
                type = STEPS.get(step, ("validation", ""))[0]
                tell(one, type, f"Step {step} failed: {ended.failure.message}", failed=True)
            case EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED:
                child = one.child_workflow_execution_completed_event_attributes.workflow_execution.workflow_id
                text = f"Datablock {child.rpartition('/')[2]} lies on the LTS and was verified"
                tell(one, "fixity check", text)
            case EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED:
                broken = one.child_workflow_execution_failed_event_attributes
                child = broken.workflow_execution.workflow_id
                cause = broken.failure.cause.message or broken.failure.message
                tell(
                    one, "fixity check", f"Datablock {child.rpartition('/')[2]} was not archived: {cause}", failed=True
                )
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
                payload = one.workflow_execution_completed_event_attributes.result
                (outcome,) = await client.data_converter.decode(payload.payloads[:1], [m.DatasetOutcome])
                good = outcome.outcome in ("archived", "already_archived")
                tell(one, "ingestion end", f"The run ended, {outcome.outcome}: {outcome.message}", failed=not good)
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED:
                tell(one, "ingestion end", "The run was cancelled, and cleaned up after itself", failed=True)
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
                why = one.workflow_execution_terminated_event_attributes.reason
                tell(one, "ingestion end", f"The run was terminated: {why or 'no reason given'}", failed=True)
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
                why = one.workflow_execution_failed_event_attributes.failure.message
                tell(one, "ingestion end", f"The run failed: {why}", failed=True)
    return events


def _event(
    source: str, time: Any, type: str, text: str, *, object: str, failed: bool = False, detail: Data | None = None
) -> Data:
    """As in a receipt, with its source."""
    return {
        "version": 1,
        "time": time if isinstance(time, str) else "",
        "type": type,
        "event": text,
        "outcome": "failure" if failed else "success",
        "object": object,
        **({"detail": detail} if detail else {}),
        "source": source,
    }


# --- for people -------------------------------------------------------------------------------------------------------


def _lines(pid: str, events: list[Data], sources: dict[str, str]) -> list[str]:
    rows = [f"receipt of {pid}, {len(events)} events, printed {stamp(datetime.now(UTC).replace(microsecond=0))}"]
    rows += [f"source {name}: {said}" for name, said in sources.items()]
    rows += [_line(event) for event in events]
    return rows


def _line(event: Data) -> str:
    """One event: when, by which source, its PREMIS type, how it ended where not well, what, and the small print."""
    small = event.get("detail")
    print_ = [f"{name} {value}" for name, value in small.items()] if isinstance(small, dict) else []
    print_ += [f"{name} {event[name]}" for name in ("job", "agent") if event.get(name)]
    failed = "FAILED: " if event.get("outcome") != "success" else ""
    return (
        f"{event.get('time') or 'at an unknown time':<24}  {event.get('source', ''):<8}  {event.get('type', ''):<28}  "
        f"{failed}{event.get('event', '')}" + (f"  [{', '.join(print_)}]" if print_ else "")
    )
