"""The product at a SciCat that somebody has: archived, brought back, swept up, and one dataset deleted under its job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

from archiver import model as m
from archiver.settings import S3Settings
from tests.live.backend import Backend
from tests.live.system import LiveSystem
from tests.pipeline.moments import until
from tests.pipeline.oracle import assert_archived
from tests.pipeline.retrieving import assert_retrieved, retrieve
from tests.sweep.sweeping import runs, sweeping

FILES = {"a.txt": b"text", "deep/er/b.bin": bytes(range(256)) * 500, "empty": b""}


@pytest.fixture
async def system(
    backend: Backend, tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[LiveSystem]:
    made = LiveSystem(tmp_path_factory.mktemp("live"), temporal_address, s3, backend)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def test_a_dataset_is_archived_and_brought_back(system: LiveSystem) -> None:
    pid = await system.dataset(FILES)
    async with system.workers():
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
        await assert_archived(system, pid, FILES)
        record = await system.record(pid)
        assert (record["size"], record["numberOfFiles"]) == (sum(map(len, FILES.values())), len(FILES))
        job, result = await retrieve(system, pid)
        assert result.counts == m.Counts(retrieved=1)
        await assert_retrieved(system, job, pid, FILES)


async def test_a_dataset_whose_counters_were_zeroed_is_mended_by_the_next_job(system: LiveSystem) -> None:
    pid = await system.dataset(FILES)
    names = ("size", "numberOfFiles", "packedSize", "numberOfFilesArchived")
    async with system.workers():
        await system.archive(pid)
        right = await system.record(pid)
        path = f"/api/v4/datasets/{pid.replace('/', '%2F')}"
        (await system.http.patch(path, json=dict.fromkeys(names[:3], 0))).raise_for_status()
        (await system.http.patch(f"{path}/datasetlifecycle", json={"archivable": True})).raise_for_status()
        job = await system.job(pid)
        (await system.http.patch(f"{path}/datasetlifecycle", json={"archivable": False})).raise_for_status()
        result = await (await system.start_job(job)).result()
    assert result.counts == m.Counts(already_archived=1)
    now = await system.record(pid)
    assert {name: now[name] for name in names} == {name: right[name] for name in names}


async def test_a_job_whose_webhook_was_lost_is_started_by_the_sweep(system: LiveSystem) -> None:
    pid = await system.dataset(FILES)
    job = await system.job(pid)
    async with sweeping(system) as sweeper:
        await sweeper.jobs()
    assert len(await runs(system, job)) == 1
    # A backend that others use has jobs of theirs: the sweep began them in our namespace too, where nobody goes on with them.
    async for one in system.client.list_workflows("ExecutionStatus = 'Running'"):
        if one.id != f"archive-job/{job}":
            await system.client.get_workflow_handle(one.id).terminate("not ours")
    async with system.workers():
        record = await until(lambda: finished(system, job), "the job ends")
    assert record["statusCode"] == "finishedSuccessful"
    await assert_archived(system, pid, FILES)


async def finished(system: LiveSystem, job: str) -> dict[str, Any] | None:
    record = await system.job_record(job)
    return record if record["statusCode"].startswith("finished") else None


async def test_a_job_one_of_whose_datasets_was_deleted_ends_and_its_other_dataset_is_archived(
    backend: Backend, system: LiveSystem
) -> None:
    pid, deleted = await system.dataset(FILES), await system.dataset(FILES)
    job = await system.job(pid, deleted)
    await backend.delete_dataset(deleted)
    async with system.workers():
        handle = await system.start_job(job)
        async with asyncio.timeout(300):
            with pytest.raises(WorkflowFailureError) as failed:
                await handle.result()
        await assert_archived(system, pid, FILES)
    cause = failed.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "JobNotWritable"
    assert deleted in cause.message
    assert (await system.job_record(job))["statusCode"] == "jobSubmitted", "SciCat takes no status of it any more"
