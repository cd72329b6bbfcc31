"""Any process may die at any instant, and be told to stop, and stand still: the job reaches the right end by itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from temporalio.client import WorkflowHandle

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from archiver.settings import S3Settings
from cli import servers
from tests.pipeline.gate import Gate, gate_before_s3, landing_through, staging_through
from tests.pipeline.moments import (
    MIB,
    activities,
    alive,
    children,
    noise,
    on_lts,
    partials,
    stage,
    this_process,
    until,
    uploads,
    verifier_of,
)
from tests.pipeline.oracle import assert_archived
from tests.pipeline.system import System

FILES = {"raw/a.bin": noise(13 * MIB, 1), "raw/b.bin": noise(11 * MIB, 2), "log.txt": b"text " * 1000}
"""Larger than one part of an upload and than what is fetched ahead: a gate can stop it half-way."""
SMALL = {"a.txt": b"text", "b.bin": noise(70_000, 3)}
PART = 16 * MIB
FOREVER = 3600.0


@pytest.fixture
async def archiving(system: System) -> AsyncIterator[Archiving]:
    """Starts jobs and sees them to their right end."""
    yield Archiving(system)


class Archiving:
    """Jobs over new datasets, each known with its files."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.started: list[tuple[str, str, dict[str, bytes], WorkflowHandle[Any, m.ArchiveJobResult]]] = []

    async def start(self, files: dict[str, bytes], **more: Any) -> str:
        """A job over a new dataset; returns its pid."""
        pid = await self.system.dataset(files, **more)
        job_id = await self.system.job(pid)
        self.started.append((pid, job_id, files, await self.system.start_job(job_id)))
        return pid

    async def ends_right(self) -> None:
        """Every job ends well, by itself, and every dataset is archived: the oracle's word."""
        for pid, job_id, files, handle in self.started:
            async with asyncio.timeout(120):
                result = await handle.result()
            assert (result.status_code, result.counts) == ("finishedSuccessful", m.Counts(archived=1))
            await assert_archived(self.system, pid, files)
            assert (await self.system.job_record(job_id))["statusCode"] == "finishedSuccessful"
            ended = [code for told, code in self.system.standin.mails if told == job_id and code != "inProgress"]
            assert ended == ["finishedSuccessful"], "told once"


async def test_p5_the_pack_worker_is_killed_in_pack(system: System, archiving: Archiving) -> None:
    with gate_before_s3(system) as gate:
        gate.shut(after_bytes=PART)
        async with system.workers("workflows,catalogue,lts"):
            packer = system.worker("pack", landing_through(system, gate))
            pid = await archiving.start(FILES)
            await until(lambda: gate.holding and uploads(system, pid), "pack is half-way")
            packer.kill()
            assert uploads(system, pid), "a crash leaves an upload open"
            async with system.workers("pack"):
                await archiving.ends_right()


async def test_p5_the_lts_worker_is_killed_in_copy(system: System, archiving: Archiving) -> None:
    with gate_before_s3(system) as gate:
        gate.shut(after_bytes=PART)
        async with system.workers("workflows,catalogue,pack"):
            copier = system.worker("lts", staging_through(gate))
            pid = await archiving.start(FILES)
            await until(lambda: gate.holding and partials(system, pid), "copy is half-way")
            copier.kill()
            assert partials(system, pid), "a crash leaves a partial file"
            async with system.workers("lts"):
                await archiving.ends_right()


async def test_p5_the_lts_worker_is_killed_in_verify_and_its_verifier_ends_with_it(
    system: System, archiving: Archiving
) -> None:
    async with system.workers("workflows,catalogue,pack"):
        reader = system.worker("lts")
        pid = await archiving.start(FILES)
        verifier = await verifier_of(reader.pid)
        os.kill(verifier, signal.SIGSTOP)
        await until(lambda: on_lts(system, pid), "the datablock is on the LTS")
        await asyncio.sleep(0)
        assert "1.manifest.jsonl.gz" not in on_lts(system, pid), "not verified yet"
        reader.kill()
        os.kill(verifier, signal.SIGCONT)
        await until(lambda: not alive(verifier), "the orphaned verifier ends")
        async with system.workers("lts"):
            await archiving.ends_right()
