"""What an operator names: a job by its id or the beginning of it, a dataset by its pid, or a workflow by its own id."""

from __future__ import annotations

import re
from datetime import timedelta

from temporalio.client import Client, WorkflowExecutionDescription
from temporalio.service import RPCError, RPCStatusCode

from archiver.pids import MAX_WORKFLOW_ID, workflow_id
from archiver.text import MAX_KEYWORD, keyword
from cli import exits
from workflows.visible import PID, quoted

RPC = timedelta(seconds=5)
KINDS = {
    "archive-job": "job",
    "archive-dataset": "dataset",
    "archive-datablock": "datablock",
    "retrieve-job": "job",
    "retrieve-dataset": "dataset",
    "retrieve-datablock": "datablock",
}
"""The first part of a workflow's id, and what it works on."""
BY_NAME = ("archive-job", "retrieve-job", "archive-dataset")
"""Workflows that are found by a job's id or a pid alone."""
SHORTENED = re.compile(r"[0-9a-fA-F][0-9a-fA-F-]{5,34}")
SHOWN = 5


def kind_of(workflow: str) -> str:
    """``job``, ``dataset`` or ``datablock``; empty for a workflow of another kind."""
    return KINDS.get(workflow.partition("/")[0], "")


def is_retrieval(workflow: str) -> bool:
    """Whether it brings data back."""
    return workflow.startswith("retrieve-")


def name_of(workflow: str) -> str:
    """The job's id, the dataset's pid, or ``PID/N`` of a datablock, of a retrieval with its selection; shortened as its id is."""
    return workflow.partition("/")[2]


def pid_of(found: WorkflowExecutionDescription) -> str:
    """The pid of a dataset's or a datablock's workflow, exactly.

    Its id holds it, unless that is shortened; then the search attribute does, which escapes and cuts what no keyword can hold.
    """
    parts = name_of(found.id).split("/")
    behind = {"retrieve-dataset": 1, "archive-datablock": 1, "retrieve-datablock": 2}.get(found.id.partition("/")[0], 0)
    exact = "/".join(parts[: len(parts) - behind])
    if len(found.id) == MAX_WORKFLOW_ID and "~" in found.id:
        return found.typed_search_attributes.get(PID) or exact
    return exact


async def resolve(client: Client, ref: str) -> WorkflowExecutionDescription:
    """The latest run of what ``ref`` names. Raises ``NotFound``, and ``RPCError`` where Temporal does not answer."""
    given = (ref,) if kind_of(ref) and "/" in ref else tuple(workflow_id(kind, ref) for kind in BY_NAME)
    for each in given:
        found = await describe(client, each)
        if found is not None:
            return found
    # Job ids are long: the beginning of one is enough where only one job begins so.
    begun = await _begin_with(client, ref) if SHORTENED.fullmatch(ref) else []
    if len(begun) == 1 and (found := await describe(client, begun[0])) is not None:
        return found
    # A dataset that was only brought back here, or whose archiving Temporal has forgotten.
    if not begun and (latest := await _of_dataset(client, ref)) and (found := await describe(client, latest)):
        return found
    raise exits.NotFound(
        f"nothing is known of {ref[:200]!r}" if not begun else f"{len(begun)} jobs begin with {ref!r}",
        expected="the id of a job that was started, or the pid of one of its datasets",
        found=", ".join(name_of(one) for one in begun[:SHOWN]) or "no workflow of that name",
        next_step=(
            "give more of the id"
            if begun
            else "archiver start JOB  starts a job that SciCat has; what ended long ago only SciCat still knows"
        ),
    )


async def describe(client: Client, workflow: str, run_id: str | None = None) -> WorkflowExecutionDescription | None:
    """A workflow as the server has it; None if there is none. Raises ``RPCError`` for anything else."""
    try:
        return await client.get_workflow_handle(workflow, run_id=run_id).describe(rpc_timeout=RPC)
    except RPCError as error:
        # A name that is too long, or holds what Temporal does not take, names nothing.
        if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
            return None
        raise


async def _of_dataset(client: Client, pid: str) -> str:
    """The dataset's latest retrieval."""
    if not pid or len(pid) > MAX_KEYWORD:
        return ""
    try:
        listed = client.list_workflows(
            f"WorkflowType = 'RetrieveDataset' AND DatasetPid = '{quoted(keyword(pid))}'", limit=1, rpc_timeout=RPC
        )
        return next(iter([one.id async for one in listed]), "")
    except RPCError as error:
        if error.status == RPCStatusCode.INVALID_ARGUMENT:  # the search attributes are missing, or no such name can be
            return ""
        raise


def begun_query(beginning: str) -> str:
    """The visibility query for jobs whose id begins so."""
    return f"WorkflowType IN ('ArchiveJob', 'RetrieveJob') AND ScicatJobId STARTS_WITH '{beginning.lower()}'"


async def _begin_with(client: Client, beginning: str) -> list[str]:
    query = begun_query(beginning)
    try:
        listed = client.list_workflows(query, limit=100, rpc_timeout=RPC)
        return list(dict.fromkeys([one.id async for one in listed]))
    except RPCError as error:
        if error.status == RPCStatusCode.INVALID_ARGUMENT:  # the search attributes are missing: doctor says so
            return []
        raise
