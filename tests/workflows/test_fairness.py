"""Many wait for few slots: who goes first. A real server orders the backlog, one slot packs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import uuid4

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.service import RPCError

from archiver import model as m
from archiver.pids import workflow_id
from tests.workflows.conftest import Serve
from tests.workflows.scripted import Script
from workflows import priority, steps

WAITING = 40
"""Datasets of the large job that queue for the one slot before the small job comes."""


class Facility(Script):
    """A job of 200 datasets of one group, and small ones of others; copying to the LTS has one slot, and takes a while."""

    def __init__(self) -> None:
        super().__init__(datasets=200, datablocks=1, policy=m.Policy(datasets_at_once=WAITING))
        self.slots = {steps.LTS_COPY: 1}
        self.tag = uuid4().hex[:8]
        self.groups: dict[str, str] = {}
        self.replaced = {"begin-job": self.begin_job, "begin-dataset": self.begin_dataset, "copy-to-lts": self.copy}
        self.copied: list[str] = []
        self.go_on = asyncio.Event()

    async def begin_job(self, request: m.BeginJobRequest) -> m.BeginJobResult:
        pids = request.pids or []
        group = self.groups[pids[0]]
        return m.BeginJobResult(total=len(pids), policy=self.policy, pids=pids[: request.limit], owner_group=group)

    async def begin_dataset(self, request: m.BeginDatasetRequest) -> m.BeginDatasetResult:
        return m.BeginDatasetResult(state="go", owner_group=self.groups[request.pid], source={"pid": request.pid})

    async def copy(self, request: m.CopyRequest) -> m.CopyResult:
        self.copied.append(request.pid)
        await self.go_on.wait()
        await asyncio.sleep(0.2)
        return m.CopyResult(archive_id=f"{request.pid}/data/{request.n}.tar.gz")

    async def submit(self, client: Client, name: str, datasets: int, group: str) -> WorkflowHandle:  # type: ignore[type-arg]
        pids = [self.pid(name, k) for k in range(datasets)]
        self.groups |= dict.fromkeys(pids, group)
        job_id = str(uuid4())
        return await client.start_workflow(
            "ArchiveJob",
            m.ArchiveJobRequest(job_id=job_id, pids=pids),
            id=f"archive-job/{job_id}",
            task_queue=steps.WORKFLOWS,
            result_type=m.ArchiveJobResult,
        )

    async def until_called(self, step: str, times: int) -> None:
        async with asyncio.timeout(180):
            while self.names().count(step) < times:
                await asyncio.sleep(0.1)

    def pid(self, name: str, k: int) -> str:
        return f"20.500.1/{self.tag}-{name}-{k}"


async def test_a_small_job_of_another_group_overtakes_two_hundred_datasets(serve: Serve) -> None:
    facility = Facility()
    client = await serve(facility, sandboxed=False)
    large = await facility.submit(client, "large", 200, "bulk")
    await facility.until_called("wait-for-lts-space", WAITING)
    small = await facility.submit(client, "small", 1, "other")
    await facility.until_called("wait-for-lts-space", WAITING + 1)
    await queued(client, facility.pid("small", 0))
    facility.go_on.set()
    async with asyncio.timeout(120):
        result = await small.result()
    progress = await large.query("progress", result_type=m.JobProgress)
    await stop(large)
    assert result.counts == m.Counts(archived=1)
    assert facility.copied.index(facility.pid("small", 0)) <= 2, (
        "behind the one that ran, and one that a poller had already"
    )
    assert progress.counts.total < WAITING / 2


async def test_groups_take_turns_where_all_have_large_jobs(serve: Serve) -> None:
    facility = Facility()
    client = await serve(facility, sandboxed=False)
    first = await facility.submit(client, "first", WAITING, "one")
    await facility.until_called("wait-for-lts-space", WAITING)
    second = await facility.submit(client, "second", 8, "two")
    await facility.until_called("wait-for-lts-space", WAITING + 8)
    await queued(client, facility.pid("second", 0))
    facility.go_on.set()
    async with asyncio.timeout(120):
        while len(facility.copied) < 16:
            await asyncio.sleep(0.1)
    of_second = sum("second" in pid for pid in facility.copied[:16])
    await stop(first, second)
    # Its share by numbers would be 2.7; all of its eight were seen.
    assert of_second >= 6, f"{of_second} of the first 16 were of the group that came later"


async def queued(client: Client, pid: str) -> None:
    """Wait until the copy of the only datablock of ``pid`` is in the queue."""
    handle = client.get_workflow_handle(workflow_id("archive-datablock", pid, "1"))
    async with asyncio.timeout(60):
        while True:
            pending = (await handle.describe()).raw_description.pending_activities
            if any(one.activity_type.name == "copy-to-lts" for one in pending):
                return
            await asyncio.sleep(0.1)


async def stop(*jobs: WorkflowHandle) -> None:  # type: ignore[type-arg]
    """To their end: other tests serve the same queues. One that has ended by itself needs no stop."""
    for job in jobs:
        with suppress(RPCError):
            await job.cancel()
    for job in jobs:
        with suppress(WorkflowFailureError):
            await job.result()


def test_bulk_is_a_large_job_or_a_large_dataset() -> None:
    assert priority.of_dataset(1, "g").priority_key == priority.USUAL
    assert priority.of_dataset(11, "g").priority_key == priority.BULK
    assert priority.of_datablock(priority.USUAL, 2**30, "g").priority_key == priority.USUAL
    assert priority.of_datablock(priority.USUAL, 2**40 + 1, "g").priority_key == priority.BULK
    assert priority.of_datablock(priority.BULK, 1, "g").priority_key == priority.BULK
    assert priority.of_datablock(None, 1, "g").priority_key == priority.USUAL


def test_the_fairness_key_is_the_owner_group_cut_to_what_temporal_takes() -> None:
    assert priority.of_dataset(1, "p12345").fairness_key == "p12345"
    assert priority.of_dataset(1, "").fairness_key is None
    key = priority.of_dataset(1, "é" * 40).fairness_key
    assert key == "é" * 32
