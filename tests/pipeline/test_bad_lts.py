"""An LTS that is full, read-only or not there: a small real file system, on which jobs wait in sight and go on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from archiver import model as m
from archiver.settings import S3Settings
from tests.needs import run
from tests.pipeline.oracle import assert_archived, assert_clean
from tests.pipeline.system import System
from tests.storage.conftest import Disk, disk  # noqa: F401  a fixture

FILES = {"raw/a.h5": os.urandom(4 * 2**20)}
ALL_BUT_COPY = "workflows,catalogue,pack,lts-space,lts-verify,lts-bag"


class OnDisk(System):
    """A system whose LTS is a small disk of its own; the workers' locks lie elsewhere."""

    lts_disk: Disk

    @property
    def filler(self) -> Path:
        """Another program's file on the LTS."""
        return self.lts / "filler"

    def fill(self) -> None:
        """Leave 2 MiB."""
        space = os.statvfs(self.lts)
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 2 * 2**20)


@pytest.fixture
async def system(
    tmp_path_factory: pytest.TempPathFactory,
    temporal_address: str,
    s3: S3Settings,
    disk: Callable[..., Disk],  # noqa: F811
) -> AsyncIterator[OnDisk]:
    """A system on a disk of 32 MiB."""
    folder = tmp_path_factory.mktemp("system")
    made = OnDisk(
        folder, temporal_address, s3, {"worker": {"lock_dir": str(folder / "locks"), "heartbeat_timeout_seconds": 30.0}}
    )
    made.lts_disk = disk()
    made.lts = made.lts_disk.folder
    try:
        yield await made.start()  # type: ignore[misc]
    finally:
        await made.stop()


async def test_p12_a_full_lts_is_a_wait_that_anybody_can_see_and_the_job_goes_on_when_space_is_freed(
    system: OnDisk,
) -> None:
    pid = await system.dataset(FILES)
    system.fill()
    async with system.workers():
        handle = await system.start_job(await system.job(pid))
        said = ""
        while "LTS space: needs" not in said:
            waiting = await system.pending("wait-for-lts-space", "archive-datablock", pid, "1")
            beats = waiting.heartbeat_details.payloads
            said = str(json.loads(beats[0].data)["note"]) if beats else ""
            await asyncio.sleep(0.1)
        assert waiting.attempt == 1, "a wait is no failure"
        assert (await system.lifecycle(pid))["archiveStatusMessage"] == "started"
        system.filler.unlink()
        assert (await handle.result()).counts == m.Counts(archived=1)
        await assert_archived(system, pid, FILES)


async def test_an_lts_that_fills_up_after_space_was_promised_is_tried_again_until_there_is_some(system: OnDisk) -> None:
    pid = await system.dataset(FILES)
    async with system.workers(ALL_BUT_COPY):
        handle = await system.start_job(await system.job(pid))
        await system.pending("copy-to-lts", "archive-datablock", pid, "1")
        system.fill()
        async with system.workers("lts-copy"):
            failed = (await system.pending("copy-to-lts", "archive-datablock", pid, "1", attempt=2)).last_failure
            assert failed.application_failure_info.type == "LtsFull"
            for word in (pid, "datablock 1", "No space left", "free space on the LTS"):
                assert word in failed.message
            assert [path.name for path in (system.lts / pid / "data").iterdir()] == []
            system.filler.unlink()
            assert (await handle.result()).counts == m.Counts(archived=1)
            await assert_archived(system, pid, FILES)


async def test_a_read_only_lts_is_tried_again_until_it_is_writable(system: OnDisk) -> None:
    pid = await system.dataset(FILES)
    async with system.workers():
        run("mount", "-o", "remount,ro", str(system.lts))
        handle = await system.start_job(await system.job(pid))
        failed = (await system.pending("wait-for-lts-space", "archive-datablock", pid, "1", attempt=2)).last_failure
        for word in (pid, "datablock 1", "Read-only file system", "mount the LTS read-write"):
            assert word in failed.message
        run("mount", "-o", "remount,rw", str(system.lts))
        assert (await handle.result()).counts == m.Counts(archived=1)
        await assert_archived(system, pid, FILES)


async def test_a_read_only_lts_that_stays_so_is_a_system_error_that_leaves_nothing(system: OnDisk) -> None:
    pid = await system.dataset(FILES)
    async with system.workers(overrides={"archive": {"give_up_after_hours": 1 / 3600}}):
        run("mount", "-o", "remount,ro", str(system.lts))
        result = await system.archive(pid)
        assert result.counts == m.Counts(system_errors=1)
        message = await assert_clean(system, pid, "scheduleArchiveJobFailed", files=FILES)
        for word in (pid, "datablock 1", "Read-only file system", "mount the LTS read-write"):
            assert word in message
        run("mount", "-o", "remount,rw", str(system.lts))


async def test_p3_an_lts_that_vanishes_in_the_middle_gets_not_one_byte_beside_it_and_the_job_goes_on_when_it_is_back(
    system: OnDisk,
) -> None:
    pid = await system.dataset(FILES)
    system.fill()
    async with system.workers():
        handle = await system.start_job(await system.job(pid))
        await system.pending("wait-for-lts-space", "archive-datablock", pid, "1")
        await asyncio.to_thread(system.lts_disk.unmount)
        failed = (await system.pending("wait-for-lts-space", "archive-datablock", pid, "1", attempt=2)).last_failure
        assert failed.application_failure_info.type == "LtsMarkerMissing"
        for word in (pid, "datablock 1", "is not the LTS 'test'", "found no marker", "mount the LTS"):
            assert word in failed.message
        assert list(system.lts.iterdir()) == []
        system.lts_disk.mount()
        system.filler.unlink()
        assert (await handle.result()).counts == m.Counts(archived=1)
        await assert_archived(system, pid, FILES)
