"""The sweep for leftovers: what terminated runs left is found and cleared; what is registered, at work or young is not."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.service import RPCError, RPCStatusCode

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from archiver.settings import S3Settings
from cli import jobs
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.gate import gate_before_s3, landing_through, staging_through
from tests.pipeline.moments import MIB, full_lts, noise, on_lts, stage, staged, until, uploads
from tests.pipeline.oracle import assert_archived, assert_clean, nothing_left
from tests.pipeline.retrieving import fetched
from tests.pipeline.system import System
from tests.pipeline.test_cancel import Stoppable
from tests.sweep.sweeping import Sweeper, sweeping

FILES = {"a.bin": noise(MIB, 1), "b.bin": noise(16 * MIB, 2)}
"""Two datablocks: the first verifies, the second is in work when all is terminated."""
SMALL = {"a.txt": b"text"}
VERIFIED = {"1.tar.gz", "1.manifest.jsonl.gz"}
ANY_AGE = {"sweep": {"leftovers_after_hours": 0}}
OLD = time.time() - 30 * 86400


@pytest.fixture(scope="module")
async def stoppable(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[Stoppable]:
    overrides = {
        "datablock": {"target_bytes": MIB, "fetch_objects": 1},
        "archive": {"datablocks_at_once": 1},
        "sweep": {"every_seconds": 0, "leftovers_every_seconds": 0, "leftovers_after_hours": 0},
    }
    system = await System(tmp_path_factory.mktemp("system"), temporal_address, s3, overrides).start()
    try:
        with gate_before_s3(system) as landing, gate_before_s3(system) as staging:
            async with (
                system.workers("workflows,catalogue"),
                system.workers("pack", landing_through(system, landing)),
                system.workers("lts", staging_through(staging)),
            ):
                yield Stoppable(system, landing, staging)
    finally:
        await system.stop()


async def terminate_all(system: System) -> None:
    """No workflow can clean up after itself."""
    async for one in system.client.list_workflows("ExecutionStatus = 'Running'"):
        try:
            await system.client.get_workflow_handle(one.id).terminate("for the test")
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise  # what is not found has just ended with its parent


def is_clear(system: System, pid: str) -> bool:
    """As the oracle says."""
    try:
        nothing_left(system, pid)
    except AssertionError:
        return False
    return True


async def finds_nothing(sweeper: Sweeper) -> bool:
    """Nothing is left of what other tests terminated: such activities write on until they hear of it."""
    return (await sweeper.leftovers()).found == 0


@pytest.mark.parametrize("where", ["pack", "wait for LTS space", "copy to LTS", "verify in LTS"])
async def test_p5_what_a_run_terminated_in_any_stage_left_is_cleared_and_what_verified_stays(
    stoppable: Stoppable, where: str
) -> None:
    system = stoppable.system
    pid, other = await system.dataset(FILES), await system.dataset(SMALL)
    await system.start_job(await system.job(pid, other))
    try:
        await stoppable.bring(pid, where, other)
        await terminate_all(system)
    finally:
        await stoppable.let_go()
    assert not is_clear(system, pid)
    assert (await system.lifecycle(pid))["archiveStatusMessage"] == "started"
    sweeper = Sweeper(system, "archiver")

    async def cleared() -> bool:
        # Terminated activities write on until they hear of it: hours, in earnest, before they are old enough.
        await sweeper.leftovers()
        return is_clear(system, pid) and on_lts(system, pid).keys() == VERIFIED

    await until(cleared)
    message = await assert_clean(system, pid, "scheduleArchiveJobFailed", files=FILES)
    assert "ended without reporting" in message
    assert (await system.lifecycle(pid))["archivable"] is True
    kept = on_lts(system, pid)
    assert (await system.archive(pid)).counts == m.Counts(archived=1)
    await assert_archived(system, pid, FILES)
    assert on_lts(system, pid).items() > kept.items(), "what verified was used again"
    if where == "verify in LTS":
        await until(lambda: finds_nothing(sweeper))


async def test_p3_what_is_at_work_is_not_touched_and_goes_on(stoppable: Stoppable) -> None:
    system = stoppable.system
    pid = await system.dataset(FILES)
    sweeper = Sweeper(system, "archiver")
    await until(lambda: finds_nothing(sweeper))
    with full_lts(system):
        handle = await system.start_job(await system.job(pid))
        await until(lambda: _in_stage(system, pid, 1, "wait for LTS space"))
        before = staged(system, pid)
        assert before
        swept = await sweeper.leftovers()
        assert (swept.found, swept.problems) == (0, [])
        assert swept.running >= 1
        assert staged(system, pid) == before
    assert (await handle.result()).counts == m.Counts(archived=1)
    await assert_archived(system, pid, FILES)


@pytest.mark.one_version
async def test_p3_a_dataset_that_starts_while_it_is_cleared_waits_for_that_and_is_archived(
    stoppable: Stoppable,
) -> None:
    system = stoppable.system
    sweeper = Sweeper(system, "archiver")
    await until(lambda: finds_nothing(sweeper))
    pid = await system.dataset(SMALL)
    leave(system, pid)
    system.standin.faults.append(Fault("GET", f"/datasets/{pid}$", hang_seconds=3))
    sweep = asyncio.create_task(sweeper.leftovers())
    await until(lambda: not system.standin.faults, "the dataset is being looked at")
    job = await system.start_job(await system.job(pid))
    assert (await sweep).cleared == 1
    assert (await job.result()).counts == m.Counts(archived=1)
    await assert_archived(system, pid, SMALL)


async def test_p3_a_dataset_that_starts_between_finding_and_clearing_is_left_alone(make_system: MakeSystem) -> None:
    """Temporal's list may be behind; the workflow's id is not."""
    system = await make_system()
    pid = await system.dataset(SMALL)
    leave(system, pid)
    async with sweeping(system, overrides=ANY_AGE) as sweeper:
        await system.client.start_workflow(
            "ArchiveDataset", m.ArchiveDatasetRequest(pid=pid), id=f"archive-dataset/{pid}", task_queue="nobody"
        )  # without search attributes: no list tells whose it is
        before = everything(system, pid)
        swept = await sweeper.leftovers()
    assert (swept.found, swept.cleared, swept.running) == (1, 0, 1)
    assert everything(system, pid) == before


async def test_p3_a_datablock_that_still_runs_keeps_its_dataset_from_being_cleared(make_system: MakeSystem) -> None:
    from workflows.visible import attributes

    system = await make_system()
    pid = await system.dataset(SMALL)
    leave(system, pid)
    async with sweeping(system, overrides=ANY_AGE) as sweeper:
        await system.client.start_workflow(
            "Later",
            id=f"archive-datablock/{pid}/1",
            task_queue="nobody",
            search_attributes=attributes(job_id="j", pid=pid),
        )
        before = everything(system, pid)
        swept = await until(lambda: _left_alone(sweeper))
    assert (swept.found, swept.cleared) == (1, 0)
    assert everything(system, pid) == before


async def test_every_kind_of_leftover_is_cleared_and_what_is_not_ours_stays(make_system: MakeSystem) -> None:
    system = await make_system()
    pid = await system.dataset(SMALL)
    leave(system, pid)
    theirs = system.lts / pid / "data" / "notes.txt"
    theirs.write_text("of a person")
    system.boto.put_object(Bucket=system.staging_bucket, Key="somebody/else", Body=b"x")
    async with sweeping(system, overrides=ANY_AGE) as sweeper:
        swept = await sweeper.leftovers()
    assert (swept.found, swept.cleared, swept.problems) == (1, 1, [])
    nothing_left(system, pid)
    assert on_lts(system, pid).keys() == {"notes.txt"}
    assert [one["Key"] for one in system.boto.list_objects_v2(Bucket=system.staging_bucket)["Contents"]] == [
        "somebody/else"
    ]
    assert pid in swept.lines[0]


async def test_what_is_young_is_left_alone_whatever_else_of_the_dataset_is_old(make_system: MakeSystem) -> None:
    system = await make_system()
    pid = await system.dataset(SMALL)
    leave(system, pid)
    for path in (system.lts / pid).rglob("*"):
        os.utime(path, (OLD, OLD))
    (system.lts / pid / "data" / ".9.tar.gz.x-1-1.partial").write_bytes(b"just now")
    before = everything(system, pid)
    async with sweeping(system) as sweeper:
        swept = await sweeper.leftovers()
    assert (swept.found, swept.cleared) == (0, 0)
    assert swept.young >= 1
    assert everything(system, pid) == before


async def test_p3_an_archived_dataset_loses_what_is_staged_of_it_and_nothing_else(make_system: MakeSystem) -> None:
    system = await make_system()
    pid = await system.dataset(SMALL)
    async with system.workers():
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
    record, bag = await system.record(pid), files_of(system, pid)
    system.boto.put_object(Bucket=system.staging_bucket, Key=f"datasets/{pid}/plan/plan.json", Body=b"{}")
    # What the bag does not list, and has a name of ours, goes out of it, unchanged: a late copy leaves such files.
    (system.lts / pid / "data" / "7.tar.gz").write_bytes(b"of a person")
    async with sweeping(system, overrides=ANY_AGE) as sweeper:
        swept = await sweeper.leftovers()
    assert swept.cleared == 1
    (kept,) = [
        path for path in (system.lts / ".archiver/quarantine" / pid).rglob("*7.tar.gz*") if path.suffix != ".json"
    ]
    assert kept.read_bytes() == b"of a person"
    assert (await system.record(pid), files_of(system, pid)) == (record, bag)
    await assert_archived(system, pid, SMALL)


async def test_a_dataset_that_another_archive_has_started_is_left_alone(make_system: MakeSystem) -> None:
    system = await make_system()
    for said in ({"archiveReturnMessage": {"by": "another"}}, {"storageLocation": "another"}, {}):
        pid = await system.dataset(SMALL)
        life = {"archivable": False, "archiveStatusMessage": "started", **said}
        await system.http.patch(f"/api/v4/datasets/{pid.replace('/', '%2F')}/datasetlifecycle", json=life)
    async with sweeping(system, overrides=ANY_AGE) as sweeper:
        assert (await sweeper.leftovers()).found == 0


def of_retrievals(system: System) -> list[str]:
    """What retrievals keep in staging."""
    listed = system.boto.list_objects_v2(Bucket=system.staging_bucket, Prefix="retrievals/").get("Contents", [])
    return [entry["Key"] for entry in listed]


async def test_p5_what_a_terminated_retrieval_left_in_staging_is_cleared_and_one_that_runs_goes_on(
    make_system: MakeSystem,
) -> None:
    system = await make_system()
    pid, other = await system.dataset(SMALL), await system.dataset(SMALL)
    async with system.workers():
        assert (await system.archive(pid, other)).counts == m.Counts(archived=2)

    async def begun(pid: str) -> tuple[str, Any]:
        """A retrieval that waits for somebody to read the LTS."""
        before = len(of_retrievals(system))
        job = await system.job(type="retrieve", jobParams={"datasetList": [{"pid": pid, "files": []}]})
        handle = await jobs.start(system.client, job, None, retrieve=True)
        await until(lambda: len(of_retrievals(system)) > before)
        return job, handle

    async with system.workers("workflows,catalogue"):
        await begun(pid)
        await terminate_all(system)
        job, handle = await begun(other)
    record, bag = await system.record(pid), files_of(system, pid)
    before = of_retrievals(system)
    async with sweeping(system, "catalogue,pack,lts-bag") as sweeper:
        assert (await sweeper.leftovers()).cleared == 0, "too young"
    assert of_retrievals(system) == before
    async with sweeping(system, "catalogue,pack,lts-bag", ANY_AGE) as sweeper:
        swept = await until(lambda: _cleared(sweeper))
    assert "1 objects of retrievals removed" in swept.lines[0]
    assert of_retrievals(system) == [key for key in before if other in key]
    assert (await system.record(pid), files_of(system, pid)) == (record, bag)
    async with system.workers():
        assert (await handle.result()).counts == m.Counts(retrieved=1)
    assert await fetched(system, job) == SMALL
    assert of_retrievals(system) == []


async def test_a_dry_run_finds_and_changes_nothing(make_system: MakeSystem) -> None:
    system = await make_system()
    pid = await system.dataset(SMALL)
    leave(system, pid)
    before, record = everything(system, pid), await system.record(pid)
    async with sweeping(system, overrides=ANY_AGE) as sweeper:
        swept = await sweeper.leftovers(dry_run=True)
    assert (swept.found, swept.cleared) == (1, 0)
    assert "would be cleared" in swept.lines[0]
    assert (everything(system, pid), await system.record(pid)) == (before, record)
    assert [one.id async for one in system.client.list_workflows("WorkflowType = 'SweepDataset'")] == []


async def test_a_place_that_cannot_be_looked_at_is_told_and_the_others_are_swept(make_system: MakeSystem) -> None:
    system = await make_system()
    pid = await system.dataset(SMALL)
    leave(system, pid)
    system.standin.faults.append(Fault("GET", "/datasets$", times=10_000, status=400))
    async with sweeping(system, overrides=ANY_AGE) as sweeper:
        swept = await sweeper.leftovers()
    assert (swept.found, swept.cleared) == (1, 1)
    assert any("/datasets" in problem for problem in swept.problems)
    nothing_left(system, pid)


# --- what runs leave ------------------------------------------------------------------------------------------------------


def leave(system: System, pid: str, promise: int = 1) -> None:
    """Everything that a run can leave behind, by the names that runs give."""
    folder = system.lts / pid
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "1.tar.gz").write_bytes(b"copied, not verified")
    (folder / "data" / ".2.tar.gz.0a1b2c3d-5-1.partial").write_bytes(b"half")
    (folder / "data" / ".1.manifest.jsonl.gz.0a1b2c3d-6-1.partial").write_bytes(b"half")
    (folder / ".bag-info.txt.bag.partial").write_bytes(b"half")
    promised = json.dumps({"for": f"{pid}/2", "bytes": 1000})
    (system.lts / ".archiver" / "promises" / f"{promise:016x}.json").write_text(promised)
    for name in ("runs/0.jsonl.gz", "plan/plan.json", "0123/1.tar.gz"):
        system.boto.put_object(Bucket=system.staging_bucket, Key=f"datasets/{pid}/{name}", Body=b"x")
    system.boto.create_multipart_upload(Bucket=system.staging_bucket, Key=f"datasets/{pid}/0123/2.tar.gz")


def files_of(system: System, pid: str) -> dict[str, bytes]:
    """What lies in the dataset's directory on the LTS."""
    folder = system.lts / pid
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everything(system: System, pid: str) -> tuple[Any, ...]:
    """All that lies anywhere of the dataset."""
    promises = sorted(path.read_text() for path in Path(system.lts / ".archiver" / "promises").glob("*.json"))
    return files_of(system, pid), staged(system, pid), uploads(system, pid), promises


async def _in_stage(system: System, pid: str, n: int, where: str) -> bool:
    return await stage(system, pid, n) == where


async def _cleared(sweeper: Sweeper) -> m.SweepLeftoversResult | None:
    """Temporal's list of what runs may be behind."""
    swept = await sweeper.leftovers()
    return swept if swept.cleared else None


async def _left_alone(sweeper: Sweeper) -> m.SweepLeftoversResult | None:
    swept = await sweeper.leftovers()
    return swept if swept.running and not swept.cleared else None
