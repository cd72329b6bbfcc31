"""What a job or a dataset is doing, or how it ended, in words: ``archiver status``; and the demo's datablocks."""

from __future__ import annotations

from typing import Any

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import TemporalError
from temporalio.service import RPCError, RPCStatusCode

from activities.connection import answering, connect
from archiver import model as m
from archiver.pids import workflow_id
from archiver.settings import Settings
from archiver.text import cut, joined, keyword
from cli.look import QUERY, Data, left, look, moved, spell
from cli.refs import RPC, is_retrieval, pid_of, resolve
from workflows.visible import JOB_ID, STAGE, quoted, size

SIZES = ("done_bytes", "total_bytes", "size_bytes", "packed_bytes")
SHOWN_MESSAGE = 400
SHOWN_RUNS = 10
SHOWN_OUTCOMES = 50
"""Outcomes that ``status`` prints one by one; ``--json`` has all that the workflow keeps."""


async def describe(settings: Settings, ref: str) -> tuple[str, Data]:
    """What is known of a job, dataset or datablock: for people, and as data. Raises ``NotFound``, ``Unreachable``."""
    client = await connect(settings)
    with answering():
        description = await resolve(client, ref)
        found = await look(client, description)
        if found["kind"] == "dataset":
            found["runs"] = await runs_of(client, pid_of(description))
    found["next"] = next_step(found)
    return joined(lines(found)), found


async def runs_of(client: Client, pid: str) -> list[Data]:
    """The latest runs of a dataset, archiving and bringing back, newest first: a run that changed nothing hides no other."""
    query = f"WorkflowType IN ('ArchiveDataset', 'RetrieveDataset') AND DatasetPid = '{quoted(keyword(pid))}'"
    try:
        rows = [row async for row in client.list_workflows(query, limit=SHOWN_RUNS, rpc_timeout=RPC)]
    except RPCError as error:
        if error.status == RPCStatusCode.INVALID_ARGUMENT:  # the search attributes are missing: doctor says so
            return []
        raise
    return [
        {
            "workflow": row.id,
            "kind": "retrieve" if is_retrieval(row.id) else "archive",
            "job": row.typed_search_attributes.get(JOB_ID, ""),
            "stage": row.typed_search_attributes.get(STAGE, "?"),
            "state": row.status.name if row.status else "?",
            "started": row.start_time.isoformat(timespec="seconds"),
            "ended": row.close_time.isoformat(timespec="seconds") if row.close_time else None,
        }
        for row in rows
    ]


def _run_lines(runs: list[Data]) -> list[str]:
    rows = []
    for run in runs:
        begun, ended = run["started"][:16].replace("T", " "), (run["ended"] or "")[:16].replace("T", " ")
        until = f"to {ended}" if ended else "under way"
        rows.append(f"  {run['kind']:<8}  {run['stage']:<16}  {begun} {until} UTC  job {run['job']}")
    return rows


def lines(found: Data) -> list[str]:
    """The tree as lines."""
    if found["kind"] == "dataset":
        rows = [*dataset_lines(found, state=True), *_run_lines(found.get("runs", []))]
    elif found["kind"] == "datablock":
        rows = [f"{found['workflow']}  {found['state']}  {datablock_line(found)}", *_trouble(found)]
    else:
        rows = _job_lines(found)
    if said := next_step(found):
        rows.append(f"next: {said}")
    return rows


def _job_lines(found: Data) -> list[str]:
    rows = [head_of(found)]
    rows += [f"  {found['asked']}"] if found.get("asked") else []
    rows += ["  " + row for row in _trouble(found)]
    for dataset in found["datasets"]:
        rows += ["  " + row for row in dataset_lines(dataset)]
    if found["children_under_way"] > len(found["datasets"]):
        rows.append(f"  and {found['children_under_way'] - len(found['datasets'])} more under way")
    rows += [f"  {pid}  WAITING  another job has it in work" for pid in found["waiting_for_others"]]
    outcomes = found["outcomes"]
    for outcome in outcomes[-SHOWN_OUTCOMES:]:
        rows.append(f"  {outcome['pid']}  {outcome['outcome'].upper()}  {_short(outcome['message'])}".rstrip())
    if len(outcomes) > SHOWN_OUTCOMES:
        rows.append(f"  and {len(outcomes) - SHOWN_OUTCOMES} more: --json lists them")
    if found["message"]:
        rows.append(f"  {_short(found['message'])}")
    return rows


def head_of(found: Data) -> str:
    """A job or a dataset in one line."""
    return "  ".join(head_parts(found))


def head_parts(found: Data) -> list[str]:
    """A job or a dataset: its workflow first, then how it stands."""
    parts: list[str] = [found["workflow"], found["state"], spell(found["seconds"]), found["stage"]]
    if found.get("of"):
        done = "?" if found["done"] is None else found["done"]
        parts.append(f"{done} of {found['of']} " + ("datasets" if found["kind"] == "job" else "datablocks"))
    if found.get("size_bytes"):
        parts.append(size(found["size_bytes"]))
    if found.get("bytes_per_second"):
        parts.append(f"{size(found['bytes_per_second'])}/s")
    return [*parts, *filter(None, [left(found)])]


def dataset_lines(found: Data, *, state: bool = False) -> list[str]:
    """A dataset and its datablocks under way; with ``state`` also how its workflow stands."""
    name = found["name"]
    text = head_of(found) if state else f"{name}  {found['stage'].upper()}"
    if not state and found.get("of"):
        done = "?" if found["done"] is None else found["done"]
        text += f"  {done} of {found['of']} datablocks, {size(found['size_bytes'] or 0)}"
        text += "".join(f", {said}" for said in (left(found),) if said)
    rows = [text, *("  " + row for row in _trouble(found))]
    for block in sorted(found["datablocks"], key=lambda each: each["n"] or 0):
        rows.append("  " + datablock_line(block))
        rows += ["    " + row for row in _trouble(block, said=True)]
    if found["message"]:
        rows.append(f"  {_short(found['message'])}")
    return rows


def datablock_line(block: Data) -> str:
    """Stage, bytes and what it waits for."""
    said = f"waits for {block['waits_for']}" if block["waits_for"] else moved(block)
    return f"datablock {block['n'] or block['name']}  {block['stage']}  {said}".rstrip()


def _trouble(found: Data, *, said: bool = False) -> list[str]:
    """What it waits for (unless already said), and the last error of a step that is tried again."""
    rows = (
        [f"waits for {found['waits_for']}"] if found["waits_for"] and not said and found["kind"] != "datablock" else []
    )
    for step in found["steps"]:
        if error := step["last_error"]:
            at = f" at {error['at'][11:19]} UTC" if error["at"] else ""
            rows.append(f"last error{at}, step {step['step']}, try {error['attempt']}: {_short(error['message'])}")
    return rows


def next_step(found: Data) -> str:
    """What the reader may do now; empty where nothing needs to be done."""
    ref = found["name"]
    waits = [found["waits_for"], *(one["waits_for"] for one in _below(found))]
    if found["state"] == "RUNNING":
        if any("to be resumed: paused by" in text for text in waits):
            return "archiver resume  lets paused queues go on (archiver pause --show lists them)"
        if queue := next((text for text in waits if text.startswith("a worker on queue")), ""):
            name = queue.removeprefix("a worker on queue ").partition(":")[0].strip("'").removeprefix("archiver-")
            return f"start  archiver worker --queues {'workflows' if name == 'archiver' else name}"
        if any(text.startswith("LTS space") for text in waits):
            return "make room on the LTS: what waits goes on by itself"
        return ""
    outcomes = found.get("outcomes") or (
        [found["result"]] if found.get("result") and found["kind"] == "dataset" else []
    )
    kinds = {(outcome.get("error") or {}).get("kind") for outcome in outcomes if outcome["outcome"] == "failed"}
    if "content" in kinds:
        return f"put right what the message names, then  archiver retry {ref}"
    # Of the dataset that was refused or unknown, a second try says the same.
    if found.get("problem_type") in ("UnknownJob", "ForeignJob"):
        return "see in SciCat which job is meant"
    if found.get("problem_type") == "Refused" or kinds == {"refused"}:
        return ""  # the message says what to do; another try is refused too
    if found["state"] in ("FAILED", "TERMINATED", "TIMED_OUT", "CANCELED") or kinds or _stopped(outcomes):
        return f"archiver retry {ref}  does what is missing; what was verified is used again"
    return ""


def _stopped(outcomes: list[Data]) -> bool:
    return any(outcome["outcome"] == "cancelled" for outcome in outcomes)


def _below(found: Data) -> list[Data]:
    rows: list[Data] = []
    for one in [*found.get("datasets", []), *found.get("datablocks", [])]:
        rows += [one, *_below(one)]
    return rows


def _short(text: str) -> str:
    return cut(text, SHOWN_MESSAGE)


# --- for the demo's bars -----------------------------------------------------------------------------------------------


async def datablocks_of(client: Client, pid: str) -> int:
    """How many datablocks the dataset's plan has; 0 before there is a plan."""
    handle = client.get_workflow_handle(workflow_id("archive-dataset", pid))
    try:
        progress = await handle.query("progress", result_type=m.DatasetProgress, rpc_timeout=QUERY)
    except RPCError as error:
        if error.status == RPCStatusCode.UNAVAILABLE:
            raise
        return 0
    except TemporalError:
        return 0
    return int(progress.datablocks)


async def describe_datablock(client: Client, pid: str, n: int) -> dict[str, Any]:
    """Stage of a datablock, and the bytes that its running activity last told of; sizes are 0 while they are not known."""
    handle = client.get_workflow_handle(workflow_id("archive-datablock", pid, str(n)))
    try:
        description = await handle.describe()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        return {"n": n, "stage": "queued", "working": False, "note": "", **dict.fromkeys(SIZES, 0)}
    progress: m.DatablockProgress | None
    try:
        progress = await handle.query("progress", result_type=m.DatablockProgress, rpc_timeout=QUERY)
    except TemporalError:
        progress = None
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
