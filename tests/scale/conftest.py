"""Datasets of many files, each archived once by worker processes of their own: what the tests of this folder look at."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from archiver.errors import SourceFault
from archiver.storage.objects import Bucket
from tests.pipeline.conftest import make_system, system
from tests.pipeline.system import System

__all__ = ["make_system", "system"]

KIB = 2**10
TOTAL_BYTES = 100_000 * KIB
WORKERS = ("workflows", "catalogue", "pack", "lts")


@dataclass(frozen=True)
class Run:
    """How one dataset was archived. ``peaks``: largest resident MiB of each worker process; ``histories``: per run."""

    pid: str
    files: int
    peaks: dict[str, float]
    histories: dict[str, tuple[int, int]]
    """Workflow id and run, with its events and bytes."""

    def __str__(self) -> str:
        peaks = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in self.peaks.items())
        longest = max(events for events, _ in self.histories.values())
        largest = max(size for _, size in self.histories.values())
        return f"{self.files:,} files: {peaks}; longest history {longest} events, largest {largest / 2**10:.0f} KiB"


Archived = Callable[[int], Awaitable[Run]]


@pytest.fixture(scope="module")
async def archived(system: System) -> Archived:
    """Archives a dataset of so many files when first asked for; asked again, the same run.

    A thousand files hold as many bytes as a hundred thousand: what differs is their number alone.
    """
    runs: dict[int, Run] = {}

    async def run(count: int) -> Run:
        if count not in runs:
            runs[count] = await _archive(system, count, TOTAL_BYTES // 1000 if count == 1000 else KIB)
            print(runs[count])
        return runs[count]

    return run


async def _archive(system: System, count: int, size: int) -> Run:
    filling = random.Random(count).randbytes(size - 10)
    files = {f"run_{k // 1000:03}/frame_{k:06}.bin": b"%010d" % k + filling for k in range(count)}
    await system.log_in()
    pid = await system.dataset(files, landed=False)
    _upload(system, pid, files)
    workers = {name: system.worker(name, {"slots": {"pack": 1}}) for name in WORKERS}
    try:
        result = await system.archive(pid)
        peaks = {name: _peak_mib(child.pid) for name, child in workers.items()}
    finally:
        for child in workers.values():
            child.stop()
    assert result.counts.archived == 1, result.message
    return Run(pid, count, peaks, await histories(system, pid, result.job_id))


def _upload(system: System, pid: str, files: dict[str, bytes]) -> None:
    bucket = Bucket(system.landing_bucket, system.settings.s3, SourceFault)
    with ThreadPoolExecutor(16) as pool:
        for done in pool.map(lambda path: bucket.put(f"{pid}/{path}", files[path]), files):
            assert done is None


def _peak_mib(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


async def histories(system: System, *words: str) -> dict[str, tuple[int, int]]:
    """Events and bytes of the history of every run of every workflow whose id holds one of ``words``."""
    found = {}
    async for entry in system.client.list_workflows():
        if any(word in entry.id for word in words):
            handle = system.client.get_workflow_handle(entry.id, run_id=entry.run_id)
            info = (await handle.describe()).raw_description.workflow_execution_info
            found[f"{entry.id} {entry.run_id}"] = (info.history_length, info.history_size_bytes)
    return found
