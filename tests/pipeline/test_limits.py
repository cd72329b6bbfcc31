"""Limits of the LTS, of histories and of disks, seen on the real activities of many datasets."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from archiver import model as m
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.gate import gate_before_s3, staging_through
from tests.pipeline.moments import MIB, noise, until
from tests.pipeline.oracle import assert_archived
from tests.pipeline.system import System

DATASETS = 12
LTS_STEPS = ("wait-for-lts-space", "copy-to-lts", "verify-in-lts")


class Counted(Interceptor):
    """Counts the activities that run, by name: ended, now, and most at once, over all workers that have it."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Counted(next, self)


class _Counted(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, counted: Counted) -> None:
        super().__init__(next)
        self._counted = counted

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        name, counted = activity.info().activity_type, self._counted
        counted.now[name] += 1
        counted.most[name] = max(counted.most[name], counted.now[name])
        try:
            return await self.next.execute_activity(input)
        finally:
            counted.now[name] -= 1
            counted.ended[name] += 1


@contextmanager
def most_partials(system: System) -> Iterator[list[int]]:
    """Watch the LTS from outside: the greatest number of datablocks that were being written at one moment."""
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            most[0] = max(most[0], len(list(system.lts.glob("*/*/data/.*.tar.gz.*.partial"))))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


async def test_p12_two_copies_one_verification_and_one_waiter_at_a_time_also_through_a_restart(
    make_system: MakeSystem,
) -> None:
    system = await make_system(
        {
            "datablock": {"target_bytes": MIB},
            "archive": {"datasets_at_once": DATASETS, "datablocks_at_once": 2},
            "worker": {"graceful_shutdown_seconds": 0.2, "heartbeat_timeout_seconds": 5.0},
        }
    )
    files = [{"a.bin": noise(MIB, 2 * k), "b.bin": noise(MIB, 2 * k + 1)} for k in range(DATASETS)]
    pids = [await system.dataset(one) for one in files]
    counted = Counted()
    with gate_before_s3(system) as gate, most_partials(system) as partials:
        async with system.workers("workflows,catalogue,pack"):
            gate.slow(4 * MIB)
            async with system.workers("lts", staging_through(gate), interceptors=[counted]):
                job = await system.start_job(await system.job(*pids))
                await until(lambda: counted.ended["copy-to-lts"] >= DATASETS // 2 and counted.now["copy-to-lts"] == 2)
            gate.open()
            async with system.workers("lts", staging_through(gate), interceptors=[counted]):
                assert (await job.result()).counts == m.Counts(archived=DATASETS)
    assert {name: counted.most[name] for name in LTS_STEPS} == dict(zip(LTS_STEPS, (1, 2, 1), strict=True))
    assert partials == [2]
    assert counted.ended["verify-in-lts"] >= 2 * DATASETS
    for pid, one in zip(pids, files, strict=True):
        await assert_archived(system, pid, one)


async def test_p9_no_name_of_a_file_enters_a_history_and_histories_stay_small(make_system: MakeSystem) -> None:
    system = await make_system({"datablock": {"max_files": 10}})
    files = {f"scan/marked-name-{k:04}.dat": b"%d" % k for k in range(200)}
    pid = await system.dataset(files)
    async with system.workers():
        result = await system.archive(pid)
        assert result.counts == m.Counts(archived=1)
        assert len(system.datablocks(pid)) == 20
        await assert_archived(system, pid, files)
        seen = Counter[str]()
        async for listed in system.client.list_workflows():
            handle = system.client.get_workflow_handle(listed.id, run_id=listed.run_id)
            history = await handle.fetch_history()
            whole = "".join(str(event.SerializeToString()) for event in history.events)
            assert pid in whole
            assert "marked-name" not in whole
            assert len(history.events) < 4096
            assert (await handle.describe()).raw_description.workflow_execution_info.history_size_bytes < 4 * MIB
            seen[listed.workflow_type] += 1
    assert seen == {"ArchiveJob": 1, "ArchiveDataset": 1, "ArchiveDatablock": 20}


async def test_p10_packing_writes_nothing_to_disk_and_the_lts_is_written_once(make_system: MakeSystem) -> None:
    system = await make_system()
    files = {"a.bin": noise(24 * MIB, 1), "b.bin": noise(24 * MIB, 2)}
    async with system.workers("workflows,catalogue"):
        packer, writer = system.worker("pack", wait=False), system.worker("lts")
        await asyncio.to_thread(packer.wait_for_log, "serving ")
        before = [_written(worker.pid) for worker in (packer, writer)]
        pid = await system.dataset(files)
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
        packed, copied = (_written(worker.pid) - start for worker, start in zip((packer, writer), before, strict=True))
        await assert_archived(system, pid, files)
    size = sum(block["packedSize"] for block in system.datablocks(pid))
    assert packed < MIB
    assert size <= copied < size + MIB


def _written(pid: int) -> int:
    """Bytes that a process had written to a disk, by the kernel's account."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))
