"""The operator's hand: ``cancel``, ``retry``, ``abandon``. Each is recorded in Temporal with who asked and why."""

from __future__ import annotations

import asyncio
import getpass
import socket
from contextlib import suppress
from typing import Any

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from activities.polled import RPC
from activities.starting import job_workflow_id, start_job
from archiver import model as m
from archiver.errors import CatalogueFault, JobNotWritable, Refused, UnknownDataset
from archiver.retrieval import wire as w
from archiver.settings import Settings
from cli import look
from cli.look import Data
from cli.refs import describe, is_retrieval, kind_of, name_of, pid_of, resolve
from workflows.visible import JOB_ID

LOOK_SECONDS = 0.3
LONGEST_LOOK_SECONDS = 5.0
ROUNDS = 10
"""Looks for children that a terminated workflow had just started."""
ABANDONED = "abandoned: "


def whoever() -> str:
    """user@host, where nobody says who asks."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


async def cancel(client: Client, ref: str, *, reason: str, who: str) -> Data:
    """Ask a job or a dataset to stop. Raises ``Refused`` where there is nothing to stop, ``RPCError``."""
    found = await _stoppable(client, ref)
    await _signal(client, found, m.StopRequest(reason=reason, who=who))
    return {"workflow": found.id, "asked": True, "reason": reason, "who": who}


async def retry(client: Client, settings: Settings, ref: str, *, reason: str, who: str) -> Data:
    """Start what failed or was stopped again: of a dataset that dataset, of a job what it was started with.

    A job's datasets that were abandoned stay so, unless the job itself was. Raises ``Refused`` while it runs, or where
    nothing is left of it, ``RPCError``.
    """
    found = await resolve(client, ref)
    kind = kind_of(found.id)
    if kind == "datablock":
        raise Refused(
            f"{found.id} cannot be taken up alone",
            expected="a job or a dataset",
            found="a datablock",
            next_step="archiver retry PID  takes up its dataset",
        )
    if kind == "dataset" and _runs(found):
        raise _not_over(found)
    job_id = found.typed_search_attributes.get(JOB_ID) or (name_of(found.id) if kind == "job" else "")
    retrieve = is_retrieval(found.id)
    job = await describe(client, job_workflow_id(job_id, retrieve=retrieve)) if job_id else None
    if job is None:
        raise Refused(
            f"Temporal knows no job of {found.id}",
            expected="a job that was started",
            found="none",
            next_step="archiver archive PID  makes a new job of a dataset",
        )
    if _runs(job):
        raise _not_over(job)
    request = await _input(client, job)
    left_out: list[str] = []
    if kind == "dataset":
        pids: list[str] | None = [pid_of(found)]
    else:
        pids = request.pids
        if not await _was_abandoned(client, job):
            left_out = await _abandoned(client, job_id, retrieve)
        if left_out:
            from archiver.catalogue.client import SciCat

            async with SciCat(settings.scicat) as scicat:
                listed = pids or [entry.pid for entry in (await scicat.job(job_id)).datasets]
            pids = [pid for pid in dict.fromkeys(listed) if pid not in left_out]
            if not pids:
                raise Refused(
                    f"every dataset of {job.id} was abandoned",
                    expected="a dataset that is to be taken up again",
                    found=f"{len(left_out)} abandoned",
                    next_step="archiver retry PID  takes one of them up all the same",
                )
    asked = m.StopRequest(reason=reason, who=who)
    await start_job(client, request.job_id, pids, retrieve=retrieve, asked=asked)
    return {
        "workflow": job.id,
        "job": request.job_id,
        "pids": pids,
        "abandoned": left_out,
        "reason": reason,
        "who": who,
    }


def stopped_query(job_id: str, retrieve: bool) -> str:
    """The visibility query for runs of a job's datasets that somebody stopped."""
    kind = "RetrieveDataset" if retrieve else "ArchiveDataset"
    return (
        f"WorkflowType = '{kind}' AND ScicatJobId = '{job_id}'"
        " AND (ExecutionStatus IN ('Terminated', 'Canceled') OR Stage = 'stopped')"
    )


async def _abandoned(client: Client, job_id: str, retrieve: bool) -> list[str]:
    """The job's datasets whose latest run an operator abandoned."""
    query = stopped_query(job_id, retrieve)
    names = dict.fromkeys([row.id async for row in client.list_workflows(query, rpc_timeout=RPC)])
    found = []
    for workflow in names:
        latest = await describe(client, workflow)
        if latest is not None and await _was_abandoned(client, latest):
            found.append(pid_of(latest))
    return found


async def _was_abandoned(client: Client, found: WorkflowExecutionDescription) -> bool:
    """Whether an operator ended it for good."""
    if _runs(found):
        return False
    ending: Data = {"kind": kind_of(found.id), "message": "", "of": None}
    await look.ending(client, found, ending)
    return ABANDONED in (ending["problem"] or ending["message"])


async def abandon(client: Client, settings: Settings, ref: str, *, reason: str, who: str, within: float) -> Data:
    """Stop for good: ask, and what has not stopped ``within`` so many seconds is terminated, and SciCat told here.

    For work whose clean-up cannot succeed: a cancel waits for it as long as it takes. What a terminated workflow leaves on
    the LTS and in staging goes with the dataset's next run or with the sweep. Raises ``Refused``, ``CatalogueFault``,
    ``RPCError``.
    """
    found = await _stoppable(client, ref)
    stop = m.StopRequest(reason=ABANDONED + reason, who=who)
    await _signal(client, found, stop)
    done: Data = {"workflow": found.id, "reason": stop.reason, "who": who, "terminated": []}
    if await _ended(client, found, within):
        return done
    terminated: list[str] = []
    datasets: set[str] = set()
    # The children first: a dataset whose job is gone would begin a roll-back of its own.
    for _ in range(ROUNDS):
        running = await _tree(client, found)
        if not running:
            break
        for one in reversed(running):
            if await _terminate(client, one, stop):
                terminated.append(one.id)
                datasets |= {pid_of(one)} if kind_of(one.id) == "dataset" else set()
        await asyncio.sleep(LOOK_SECONDS)
    untold = ""
    try:
        await _tell(settings, found, sorted(datasets), stop)
    except JobNotWritable as refused:
        untold = refused.one_line()
    except CatalogueFault as fault:
        raise CatalogueFault(
            f"{found.id} is abandoned, {len(terminated)} workflows were terminated, but SciCat could not be told: {fault.what}",
            expected=fault.expected,
            found=fault.found,
            next_step="set its status in SciCat by hand",
            retryable=fault.retryable,
        ) from None
    return {**done, "terminated": terminated, "untold": untold}


async def _stoppable(client: Client, ref: str) -> WorkflowExecutionDescription:
    found = await resolve(client, ref)
    if kind_of(found.id) == "datablock":
        raise Refused(
            f"{found.id} cannot be stopped alone",
            expected="a job or a dataset",
            found="a datablock",
            next_step=f"archiver cancel {name_of(found.id).rpartition('/')[0]}  stops its dataset",
        )
    if not _runs(found):
        raise _over(found)
    return found


async def _signal(client: Client, found: WorkflowExecutionDescription, stop: m.StopRequest) -> None:
    try:
        await client.get_workflow_handle(found.id).signal("cancel", stop, rpc_timeout=RPC)
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        raise _over(found) from None


def _over(found: WorkflowExecutionDescription) -> Refused:
    ended = f", ended {found.close_time:%Y-%m-%d %H:%M} UTC" if found.close_time else ""
    return Refused(
        f"{found.id} does not run: there is nothing to stop",
        expected="a job or dataset under way",
        found=(found.status.name if found.status else "?") + ended,
        next_step=f"archiver status {name_of(found.id)}  tells how it ended",
    )


def _not_over(found: WorkflowExecutionDescription) -> Refused:
    return Refused(
        f"{found.id} still runs: it retries by itself",
        expected="a job or dataset that ended",
        found="RUNNING",
        next_step=f"archiver watch {name_of(found.id)}, or archiver cancel {name_of(found.id)} first",
    )


def _runs(found: WorkflowExecutionDescription) -> bool:
    return found.status == WorkflowExecutionStatus.RUNNING


async def _input(client: Client, job: WorkflowExecutionDescription) -> m.ArchiveJobRequest:
    """What the job was started with: perhaps only some of its datasets."""
    handle: WorkflowHandle[Any, Any] = client.get_workflow_handle(job.id, run_id=job.run_id)
    async for event in handle.fetch_history_events(page_size=1, rpc_timeout=RPC):
        payloads = list(event.workflow_execution_started_event_attributes.input.payloads[:1])
        (request,) = await client.data_converter.decode(payloads, [m.ArchiveJobRequest])
        return m.ArchiveJobRequest(job_id=request.job_id, pids=request.pids)
    return m.ArchiveJobRequest(job_id=name_of(job.id))


async def _ended(client: Client, found: WorkflowExecutionDescription, within: float) -> bool:
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + within, LOOK_SECONDS
    while True:
        now = await describe(client, found.id)
        if now is None or not _runs(now):
            return True
        if loop.time() >= until:
            return False
        await asyncio.sleep(min(pause, max(0.0, until - loop.time())))
        pause = min(pause * 1.5, LONGEST_LOOK_SECONDS)


async def _tree(client: Client, found: WorkflowExecutionDescription) -> list[WorkflowExecutionDescription]:
    """The workflow and all below it that runs, parents before their children."""
    rows: list[WorkflowExecutionDescription] = []
    names = [found.id]
    while names:
        described = [await describe(client, name) for name in names]
        running = [one for one in described if one is not None and _runs(one)]
        rows += running
        names = [child.workflow_id for one in running for child in one.raw_description.pending_children]
    return rows


async def _terminate(client: Client, found: WorkflowExecutionDescription, stop: m.StopRequest) -> bool:
    try:
        handle = client.get_workflow_handle(found.id, run_id=found.run_id)
        await handle.terminate(reason=stop.as_text(), rpc_timeout=RPC)
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        return False  # it ended by itself meanwhile
    return True


async def _tell(settings: Settings, found: WorkflowExecutionDescription, pids: list[str], stop: m.StopRequest) -> None:
    """Say in SciCat what a terminated workflow cannot say any more. Raises ``CatalogueFault``."""
    from activities.catalogue import verdict
    from archiver.catalogue import payloads
    from archiver.catalogue.client import SciCat

    job_id = found.typed_search_attributes.get(JOB_ID) or name_of(found.id)
    async with SciCat(settings.scicat) as scicat:
        for pid in pids:
            dataset = await scicat.dataset(pid)
            if is_retrieval(found.id):
                if dataset is not None and dataset.lifecycle.retrieve_status_message == payloads.STARTED:
                    failed = w.FailRetrieveRequest(pid=pid, selection="", job_id=job_id, stopped=stop)
                    with suppress(UnknownDataset):
                        await scicat.patch_lifecycle(pid, payloads.lifecycle_retrieve_failed(failed))
                continue
            # As the step fail-dataset does: one that is archived or was never marked keeps its record.
            if dataset is not None and dataset.lifecycle.archive_status_message == payloads.STARTED:
                request = m.FailDatasetRequest(pid=pid, job_id=job_id, stopped=stop)
                with suppress(UnknownDataset):
                    await scicat.patch_lifecycle(pid, payloads.lifecycle_failed(request, archivable=True))
        if kind_of(found.id) == "job":
            end = m.FinishJobRequest(job_id=job_id, total=len(pids), counts=m.Counts(), outcomes=[], stopped=stop)
            code, message = verdict(
                end.model_copy(update={"counts": m.Counts(cancelled=len(pids))}),
                "retrieved" if is_retrieval(found.id) else "archived",
            )
            await scicat.update_job(job_id, payloads.job_update(code, message, payloads.job_result(message, end)))
