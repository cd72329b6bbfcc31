"""``archiver verify``: an archived dataset is read again from the LTS and compared; good, bad, or could not be checked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError

from activities.connection import answering
from activities.polled import RPC
from archiver import model as m
from archiver import text
from archiver.pids import workflow_id
from archiver.retrieval import wire as w
from archiver.settings import Settings
from archiver.text import cut, joined, name
from cli import exits
from workflows import steps
from workflows.visible import attributes, size

CODES = {"good": 0, "bad": exits.MISMATCH, "unknown": exits.FAILED}
GIVE_UP_SECONDS = 3600.0
"""An LTS that cannot be read for so long was not checked; a verification can be asked for again at any time."""
LOOK_SECONDS = 0.5
SHOWN_ERROR = 400
WORDS = {
    "find-held": "reading the bag",
    "check-datablock": "reading datablocks",
    "recall-datablocks": "asking the LTS to restore datablocks",
    "record-events": "adding the outcome to the receipt",
}
"""Steps as they are said."""

Say = Callable[[str], None]


async def verify(client: Client, settings: Settings, pid: str, say: Say = lambda _: None) -> w.CheckDatasetResult:
    """Run it to its end, telling what is read and what is tried again; one that is under way for this dataset is joined.

    Raises ``Unreachable``; ``NotFound`` for a dataset that was never archived.
    """
    policy = m.Policy(give_up_seconds=GIVE_UP_SECONDS, heartbeat_seconds=settings.worker.heartbeat_timeout_seconds)
    with answering():
        handle = await client.start_workflow(
            "VerifyDataset",
            w.CheckDatasetRequest(pid=pid, policy=policy),
            id=workflow_id("verify-dataset", pid),
            task_queue=steps.WORKFLOWS,
            result_type=w.CheckDatasetResult,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            search_attributes=attributes(job_id="", pid=pid, operation="verify"),
            static_summary=text.summary(f"verify {pid} on the LTS"),
            static_details="Reads and compares; the receipt tells of it, nothing else is changed.",
        )
        done = await _followed(handle, say)
    return await _judged(settings, done) if done.nothing else done


async def _followed(handle: WorkflowHandle[Any, w.CheckDatasetResult], say: Say) -> w.CheckDatasetResult:
    """Its result; until then it is said what is under way, and why something is tried again."""
    waiting, last = asyncio.ensure_future(handle.result()), ""
    while not waiting.done():
        await asyncio.wait([waiting], timeout=LOOK_SECONDS)
        with contextlib.suppress(RPCError):
            raw = (await handle.describe(rpc_timeout=RPC)).raw_description
            for pending in raw.pending_activities:
                line = WORDS.get(pending.activity_type.name, pending.activity_type.name)
                if pending.attempt > 1 and pending.last_failure.message:
                    line = f"try {pending.attempt} of {line}: {cut(pending.last_failure.message, SHOWN_ERROR)}"
                if line != last and not waiting.done():
                    say(line)
                    last = line
    return waiting.result()


async def _judged(settings: Settings, done: w.CheckDatasetResult) -> w.CheckDatasetResult:
    """Of a dataset that the LTS has no bag of: bad if SciCat says that it is archived. Raises ``NotFound`` for any other."""
    from archiver.catalogue import payloads
    from archiver.catalogue.client import SciCat

    async with SciCat(settings.scicat) as scicat:
        dataset = await scicat.dataset(done.pid)
    status = dataset.lifecycle.archive_status_message if dataset is not None else ""
    if status == payloads.ARCHIVED:
        said = f"SciCat says {payloads.ARCHIVED}, and the LTS has no bag of it"
        return done.model_copy(update={"outcome": "bad", "messages": [said, *done.messages]})
    raise exits.NotFound(
        f"{name(done.pid)} is not in the archive",
        expected="a dataset that was archived here",
        found="no bag on the LTS"
        + (
            ", and SciCat knows no such dataset"
            if dataset is None
            else f", and SciCat says {status or 'nothing of an archive'}"
        ),
        next_step="check the pid; archiver archive PID  archives a dataset",
    )


def lines(done: w.CheckDatasetResult) -> str:
    """In words."""
    word = {"good": "good", "bad": "BAD", "unknown": "COULD NOT BE CHECKED"}[done.outcome]
    if done.catalogue == "differs" and not done.bad:
        # Both are said: nobody is to restore a datablock that is well, or to believe that SciCat can give it back.
        word = "good on the LTS, BAD in SciCat"
    head = f"{done.pid}  {word}  {done.datablocks} datablocks read, {done.files} files, {size(done.size_bytes)}"
    level = f", at level {done.level!r}" if done.level else ""
    level += {
        "same": "; the files are those of SciCat's origdatablocks",
        "differs": "; SciCat's records are NOT those of the archive",
        "not compared": "; not compared with SciCat's origdatablocks",
    }[done.catalogue]
    more: list[Any] = [f"    {message}" for message in done.messages]
    return joined([head + level, *more])
