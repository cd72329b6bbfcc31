"""``archiver verify``: an archived dataset is read again from the LTS and compared; good, bad, or could not be checked."""

from __future__ import annotations

from typing import Any

from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy

from activities.connection import answering
from archiver import model as m
from archiver.pids import workflow_id
from archiver.retrieval import wire as w
from archiver.settings import Settings
from cli import exits
from workflows import steps
from workflows.visible import attributes, size

CODES = {"good": 0, "bad": exits.MISMATCH, "unknown": exits.FAILED}
GIVE_UP_SECONDS = 3600.0
"""An LTS that cannot be read for so long was not checked; a verification can be asked for again at any time."""


async def verify(client: Client, settings: Settings, pid: str) -> w.CheckDatasetResult:
    """Run it to its end; one that is under way for this dataset is joined. Raises ``Unreachable``."""
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
            static_summary=f"verify {pid} on the LTS",
            static_details="Reads and compares; changes nothing.",
        )
        done: w.CheckDatasetResult = await handle.result()
    return done


def lines(done: w.CheckDatasetResult) -> str:
    """In words."""
    word = {"good": "good", "bad": "BAD", "unknown": "COULD NOT BE CHECKED"}[done.outcome]
    head = f"{done.pid}  {word}  {done.datablocks} datablocks read, {done.files} files, {size(done.size_bytes)}"
    level = f", at level {done.level!r}" if done.level else ""
    level += {
        "same": "; the files are those of SciCat's origdatablocks",
        "differs": "; the files are NOT those of SciCat's origdatablocks",
        "not compared": "; not compared with SciCat's origdatablocks",
    }[done.catalogue]
    more: list[Any] = [f"    {message}" for message in done.messages]
    return "\n".join([head + level, *more])
