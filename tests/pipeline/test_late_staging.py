"""P6: what a late step of an ended run still writes to staging, or removes from it, is no other run's affair."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from archiver import model as m
from archiver.settings import S3Settings
from tests.pipeline.faulty_s3 import FaultyS3, S3Fault
from tests.pipeline.holds import Held
from tests.pipeline.moments import dataset_workflow, noise, staged, until
from tests.pipeline.oracle import assert_archived
from tests.pipeline.system import System

FILES = {f"raw/{k:02}.bin": noise(700 + k, k) for k in range(17)}
LATE = {f"raw/late-{k}.bin": noise(600 + k, 50 + k) for k in range(3)}
"""What the catalogue gains between the two jobs."""
SETTINGS = {
    "slots": {"pack": 12, "lts_verify": 12, "lts_bag": 12},
    "archive": {"datasets_at_once": 20},
    # What a stopped process holds goes on late, and nothing is too young for the sweep.
    "sweep": {
        "leftovers_after_hours": 0.0,
        "every_seconds": 0,
        "leftovers_every_seconds": 0,
        "retrieved_every_seconds": 0,
    },
}
WRITES = {
    "the catalogue's record": ("PUT", "/record/[0-9a-f]{64}$", 0),
    "a list of the catalogue's files": ("PUT", "/listing/[0-9a-f]{64}$", 0),
    "the list of these lists": ("PUT", "/listing/[0-9a-f]{64}$", 1),
    "a datablock's list of files": ("PUT", "/plan/[0-9a-f]{64}$", 0),
    "the plan": ("PUT", "/plan/[0-9a-f]{64}$", 1),
    "a datablock": ("PUT", r"/1\.tar\.gz$", 0),
    "its manifest": ("PUT", r"/1\.manifest\.jsonl\.gz$", 0),
    "its verification record": ("PUT", r"/1\.record\.json$", 0),
    "what the bag holds": ("PUT", "/bag/[0-9a-f]{64}$", 0),
}
NOT_HEARD = {
    "the catalogue's record",
    "a list of the catalogue's files",
    "the list of these lists",
    "what the bag holds",
}
"""A cancel waits for these steps, whose heartbeats go on, or comes too late for them."""


@pytest.fixture(scope="module")
async def proxy(s3: S3Settings) -> AsyncIterator[FaultyS3]:
    """Before the S3 server."""
    made = FaultyS3(str(s3.endpoint).rstrip("/")).start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    """Served by each test."""
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, SETTINGS)
    try:
        yield await made.start()
    finally:
        await made.stop()


def hold(proxy: FaultyS3, pid: str, method: str, pattern: str, skip: int = 0) -> Held:
    """The next such request is not passed on until it is let go."""
    held = Held(f"{method} {pattern}")
    proxy.faults.append(S3Fault(method, f"/datasets/{pid}/.*{pattern}", skip=skip, before=held.wait))
    return held


@asynccontextmanager
async def served(system: System, proxy: FaultyS3, queues: str = "all") -> AsyncIterator[None]:
    async with system.workers(queues, overrides={"s3": {"endpoint": proxy.url}}):
        yield


def gains(system: System, pid: str) -> None:
    """The catalogue and the landing zone gain three files."""
    system.put(pid, LATE)
    (block,) = system.standin.store.all("origdatablocks", pid)
    entries = [system.entry(path, data) for path, data in LATE.items()]
    late = {**block, "_id": f"late-{pid}", "dataFileList": entries}
    assert system.standin.store.insert("origdatablocks", late["_id"], late, parent=pid)


async def sweep(system: System) -> None:
    """Leftovers are cleared."""
    done = await system.client.execute_workflow(
        "SweepLeftovers", m.SweepRequest(), id=f"sweep-{system.namespace}-{os.urandom(4).hex()}", task_queue="archiver"
    )
    assert m.SweepLeftoversResult.model_validate(done).problems == []


@pytest.mark.parametrize("way", ["terminated", "cancelled"])
async def test_p6_what_a_late_step_of_an_ended_run_writes_changes_nothing_of_the_next(
    system: System, proxy: FaultyS3, way: str
) -> None:
    names = [name for name in WRITES if way == "terminated" or name not in NOT_HEARD]
    pids = {name: await system.dataset(FILES) for name in names}
    held = {name: hold(proxy, pid, *WRITES[name]) for name, pid in pids.items()}
    async with served(system, proxy):
        try:
            jobs = [await system.start_job(await system.job(pid)) for pid in pids.values()]
            await asyncio.gather(*(one.here() for one in held.values()))
            for job, pid in zip(jobs, pids.values(), strict=True):
                if way == "terminated":
                    await dataset_workflow(system, pid).terminate("test")
                    await job.terminate("test")
                else:
                    await job.signal("cancel", m.StopRequest(reason="test", who="test"))
            if way == "cancelled":
                assert [(await job.result()).counts for job in jobs] == [m.Counts(cancelled=1)] * len(jobs)
            before = {pid: set(staged(system, pid)) for pid in pids.values()}
            files = {pid: {**FILES, **LATE} for pid in pids.values()}
            for name, pid in pids.items():
                if name == "what the bag holds":
                    # The bag is complete by then, and a complete bag is never replaced by one of other files.
                    files[pid] = FILES
                else:
                    gains(system, pid)
            second = await system.archive(*pids.values())
            assert second.counts == m.Counts(archived=len(pids))
        finally:
            for one in held.values():
                one.let_go()
        # The late ones go on: what they store is below the name of their own run.
        await until(lambda: all(staged(system, pid) for pid in pids.values()), "the late requests are done")
        await asyncio.sleep(1)
        for pid in pids.values():
            runs = {key.split("/")[3] for key in staged(system, pid)}
            assert len(runs) == 1
            assert not before[pid] or runs == {key.split("/")[3] for key in before[pid]}
        await sweep(system)
        for pid in pids.values():
            await assert_archived(system, pid, files[pid])


@pytest.mark.parametrize("request_of", [("GET", r"\?.*uploads"), ("POST", r"\?delete")], ids=["looking", "removing"])
async def test_p6_a_late_clean_up_removes_nothing_of_the_next_run(
    system: System, proxy: FaultyS3, request_of: tuple[str, str]
) -> None:
    pid = await system.dataset({"raw/wrong.bin": b"1"}, listed=[system.entry("raw/wrong.bin", b"22")])
    method, pattern = request_of
    late, verifying = Held(f"{method} {pattern}"), Held("verification")
    # All of the bucket: a listing names the prefix in its query, a deletion in its body.
    proxy.faults.append(S3Fault(method, f"/{system.staging_bucket}/?{pattern}", before=late.wait))
    async with served(system, proxy):
        try:
            first = await system.start_job(await system.job(pid))
            await late.here()
            (first_run,) = {key.split("/")[3] for key in staged(system, pid)}
            await dataset_workflow(system, pid).terminate("test")
            await first.terminate("test")
            # The files are put right, and a second job is in the midst of its work when the clean-up goes on.
            system.put(pid, {"raw/wrong.bin": b"22"})
            verifying = hold(proxy, pid, "PUT", r"/1\.record\.json$")
            second = await system.start_job(await system.job(pid))
            await verifying.here()
            there = staged(system, pid)
            late.let_go()
            await asyncio.sleep(2)
            # What the second run staged is there; what it would miss, it would make again: so that is looked at here.
            of_second = [key for key in there if key.split("/")[3] != first_run]
            assert len(of_second) == 7
            assert set(of_second) <= set(staged(system, pid))
            verifying.let_go()
            assert (await second.result()).counts == m.Counts(archived=1)
        finally:
            late.let_go()
            verifying.let_go()
        await assert_archived(system, pid, {"raw/wrong.bin": b"22"})


async def test_p6_a_process_that_is_stopped_while_it_plans_and_goes_on_after_the_next_job(
    system: System, proxy: FaultyS3
) -> None:
    pid = await system.dataset(FILES)
    reading = hold(proxy, pid, "GET", "/listing/[0-9a-f]{64}$", 1)
    through = {"s3": {"endpoint": proxy.url}}
    async with served(system, proxy, "workflows,catalogue,lts"):
        child = system.worker("pack", through)
        job = await system.start_job(await system.job(pid))
        await reading.here()
        os.kill(child.pid, signal.SIGSTOP)
        try:
            reading.let_go()
            async with served(system, proxy, "pack"):
                await job.signal("cancel", m.StopRequest(reason="test", who="test"))
                assert (await job.result()).counts == m.Counts(cancelled=1)
                gains(system, pid)
                assert (await system.archive(pid)).counts == m.Counts(archived=1)
                os.kill(child.pid, signal.SIGCONT)
                await asyncio.sleep(3)
                await sweep(system)
        finally:
            os.kill(child.pid, signal.SIGCONT)
    await assert_archived(system, pid, {**FILES, **LATE})
