"""Retrievals of one dataset at once: what is the same is read once for all, what overlaps is right for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from archiver import model as m
from archiver.settings import S3Settings
from tests.pipeline import holds as at
from tests.pipeline.holds import Holds, holding, s3_through
from tests.pipeline.moments import MIB, noise, until
from tests.pipeline.retrieving import assert_retrieved, ended, start_retrieve
from tests.pipeline.system import System

FILES = {"a.txt": b"text", "big.bin": noise(20 * MIB, 1), "c.bin": noise(100_000, 2)}


class Reads(Interceptor):
    """Counts how often each datablock is read."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Reads(next, self.of)


class _Reads(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, of: Counter[str]) -> None:
        super().__init__(next)
        self._of = of

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        if activity.info().activity_type == "retrieve-datablock":
            self._of[input.args[0].pid] += 1
        return await self.next.execute_activity(input)


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    """A system that also delivers to a directory."""
    overrides = {
        "retrieval": {"roots": [str(tmp_path_factory.mktemp("shared"))]},
        "slots": {"pack": 2, "lts_read": 4},
    }
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, overrides)
    try:
        yield await made.start()
    finally:
        await made.stop()


@pytest.fixture(scope="module")
def reads() -> Reads:
    return Reads()


@pytest.fixture(scope="module")
async def holds(system: System, reads: Reads) -> AsyncIterator[Holds]:
    with holding(system) as held:
        async with system.workers(overrides=s3_through(held), interceptors=[reads]):
            yield held
            held.let_all_go()


async def archived(system: System) -> str:
    pid = await system.dataset(FILES)
    assert (await system.archive(pid)).counts == m.Counts(archived=1)
    return pid


async def waits(system: System, job: str, pid: str) -> bool:
    """Whether the job waits for a dataset that another has in work."""
    progress = await system.client.get_workflow_handle(f"retrieve-job/{job}").query("progress")
    return pid in progress["waiting_for_others"]


async def test_two_jobs_of_one_dataset_read_the_lts_once_and_both_have_it(
    system: System, holds: Holds, reads: Reads
) -> None:
    pid = await archived(system)
    held = holds.s3(at.PUT_PART, pid)
    first, one = await start_retrieve(system, pid)
    await held.here()
    second, two = await start_retrieve(system, pid)
    await until(lambda: waits(system, second, pid))
    held.let_go()
    for job, handle in ((first, one), (second, two)):
        assert (await ended(handle)).counts == m.Counts(retrieved=1)
        await assert_retrieved(system, job, pid, FILES)
    assert reads.of[pid] == 1


async def test_overlapping_selections_at_once_are_each_right(system: System, holds: Holds, reads: Reads) -> None:
    pid = await archived(system)
    (root,) = system.settings.retrieval.roots
    wanted = [None, ["a.txt", "big.bin"], ["big.bin", "c.bin"]]
    # Each of the three is in the middle of the same large file when the others begin it.
    held = [holds.s3(at.PUT_PART, pid) for _ in wanted]
    started = [await start_retrieve(system, pid, files=files) for files in wanted]
    folder, into = await start_retrieve(system, pid, destinationPath=f"{root}/mine")
    for one in held:
        await one.here()
    for one in held:
        one.let_go()
    assert (await ended(into)).counts == m.Counts(retrieved=1)
    for (job, handle), files in zip(started, wanted, strict=True):
        assert (await ended(handle)).counts == m.Counts(retrieved=1)
        await assert_retrieved(system, job, pid, {name: FILES[name] for name in files or FILES}, of=FILES)
    assert {one.name: one.read_bytes() for one in (root / "mine" / pid).iterdir()} == FILES
    assert (await system.job_record(folder))["statusCode"] == "finishedSuccessful"
    assert reads.of[pid] == 4


async def test_a_failing_selection_takes_nothing_from_another_of_the_same_dataset(
    system: System, holds: Holds, reads: Reads
) -> None:
    pid = await archived(system)
    held = holds.s3(at.PUT_PART, pid)
    good, one = await start_retrieve(system, pid)
    await held.here()
    bad, two = await start_retrieve(system, pid, files=["not there"])
    assert (await ended(two)).counts == m.Counts(content_errors=1)
    held.let_go()
    assert (await ended(one)).counts == m.Counts(retrieved=1)
    await assert_retrieved(system, good, pid, FILES)
    assert "result" not in (await system.job_record(bad))["jobResultObject"]


async def test_a_stop_is_shared_by_who_waits_for_the_same_who_is_told_by_whom_and_may_ask_again(
    system: System, holds: Holds
) -> None:
    pid = await archived(system)
    held = holds.s3(at.PUT_PART, pid)
    _, one = await start_retrieve(system, pid)
    await held.here()
    second, two = await start_retrieve(system, pid)
    await until(lambda: waits(system, second, pid))
    await one.signal("cancel", m.StopRequest(reason="wrong beam line", who="anna"))
    for handle in (one, two):
        assert (await ended(handle)).counts == m.Counts(cancelled=1)
    held.let_go()
    (told,) = (await system.job_record(second))["jobResultObject"]["datasets"]
    assert (told["outcome"], told["message"]) == ("cancelled", "stopped by anna: wrong beam line")
    job, again = await start_retrieve(system, pid)
    assert (await ended(again)).counts == m.Counts(retrieved=1)
    await assert_retrieved(system, job, pid, FILES)
