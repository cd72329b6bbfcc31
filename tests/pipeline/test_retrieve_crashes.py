"""Any process may die in any step of a retrieval: the job ends right by itself, and nothing half is ever to be seen."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHandle

from archiver import model as m
from archiver.settings import S3Settings
from cli import jobs, servers
from tests.conftest import until_answers
from tests.pipeline import holds as at
from tests.pipeline.holds import Holds, holding, s3_through
from tests.pipeline.moments import MIB, noise, until
from tests.pipeline.retrieving import (
    assert_retrieved,
    delivered,
    ended,
    nothing_wrong,
    open_uploads,
    retrieve_job,
    start_retrieve,
)
from tests.pipeline.system import System

SMALL = {"a.txt": b"text", "raw/b.bin": noise(100_000, 1)}
LARGE = {"a.txt": b"text", "big.bin": noise(20 * MIB, 2)}
"""One of its files comes in three parts."""
SLOTS = {"slots": {"pack": 2, "lts_read": 8}}


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    """A system that also delivers to a directory."""
    retrieval = {"roots": [str(tmp_path_factory.mktemp("shared"))]}
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, {"retrieval": retrieval, **SLOTS})
    try:
        yield await made.start()
    finally:
        await made.stop()


class Retrieving:
    """Jobs over new datasets, each known with its files."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.started: list[tuple[str, str, dict[str, bytes], WorkflowHandle[Any, m.ArchiveJobResult]]] = []

    async def archived(self, *files: dict[str, bytes]) -> list[str]:
        """Datasets to be retrieved."""
        pids = [await self.system.dataset(one) for one in files]
        assert (await self.system.archive(*pids)).counts == m.Counts(archived=len(pids))
        return pids

    async def start(self, pid: str, files: dict[str, bytes], job: str = "") -> str:
        """Begin."""
        job = job or await retrieve_job(self.system, pid)
        handle = await jobs.start(self.system.client, job, None, retrieve=True)
        self.started.append((pid, job, files, handle))
        return job

    async def end_right(self) -> None:
        """Every job ends well, by itself, once, and its links give every byte."""
        for pid, job, files, handle in self.started:
            result = await ended(handle)
            assert (result.status_code, result.counts) == ("finishedSuccessful", m.Counts(retrieved=1))
            await assert_retrieved(self.system, job, pid, files, uploads=True)
            told = [code for one, code in self.system.standin.mails if one == job and code != "inProgress"]
            assert told == ["finishedSuccessful"], "told once"

    def nothing_half(self) -> None:
        """Now."""
        for pid, _, files, _ in self.started:
            nothing_wrong(self.system, pid, files, uploads=True)


async def held_in_each_step(retrieving: Retrieving, holds: Holds, pids: list[str]) -> list[str]:
    """A job in each step; returns the pids of those with a file that is half given."""
    take = iter(pids)
    # The job is read, and set in progress.
    for method in ("GET", "PATCH"):
        pid = next(take)
        job = await retrieve_job(retrieving.system, pid)
        holds.scicat(method, f"/jobs/{job}$")
        await retrieving.start(pid, SMALL, job)
    # The dataset is read and marked, its datablocks are read, what was read is stored.
    for method, path in (
        ("GET", "/datasets/{pid}$"),
        ("PATCH", "/datasets/{pid}/datasetlifecycle$"),
        ("GET", "/datasets/{pid}/datablocks/count$"),
    ):
        pid = next(take)
        holds.scicat(method, path.format(pid=pid))
        await retrieving.start(pid, SMALL)
    # Catalogue and LTS are compared; a file is given, all of them are told of; the dataset is reported; links are made.
    for step in (at.BEGIN, at.PLAN, at.PUT_FILE, at.TELL, at.FINISH, at.LINK):
        pid = next(take)
        holds.s3(step, pid)
        await retrieving.start(pid, SMALL)
    # The last writes of a dataset and of its job are like the first: they are caught after those. Of the last one only the
    # answer is lost.
    for step, path, done in (
        (at.TELL, "/datasets/{pid}/datasetlifecycle$", False),
        (at.LINK, "/jobs/{job}$", False),
        (at.LINK, "/jobs/{job}$", True),
    ):
        pid = next(take)
        held = holds.s3(step, pid)
        job = await retrieving.start(pid, SMALL)
        await held.here()
        call = holds.scicat("PATCH", path.format(pid=pid, job=job), done=done)
        held.let_go()
        await holds.in_call(call)
    large = [next(take), next(take)]
    for step, pid in zip((at.PUT_PART, at.COMPLETE_FILE), large, strict=True):
        holds.s3(step, pid)
        await retrieving.start(pid, LARGE)
    await holds.all_here()
    return large


IN_ALL_STEPS = [*[SMALL] * 14, LARGE, LARGE]


async def test_p5_one_kill_of_a_worker_while_each_of_many_retrievals_is_in_another_step(system: System) -> None:
    retrieving = Retrieving(system)
    with holding(system) as holds:
        async with system.workers():
            pids = await retrieving.archived(*IN_ALL_STEPS)
        worker = system.worker(overrides=s3_through(holds))
        large = await held_in_each_step(retrieving, holds, pids)
        worker.kill()
        assert all(open_uploads(system, pid) for pid in large), "killed in the middle"
        assert all("big.bin" not in delivered(system, pid) for pid in large), "what is not whole is not to be seen"
        retrieving.nothing_half()
        # What was on its way to the S3 server comes there after its sender's death.
        holds.let_all_go()
        retrieving.nothing_half()
        async with system.workers():
            await retrieving.end_right()


async def test_p5_the_temporal_server_is_killed_while_each_of_many_retrievals_is_in_another_step(
    tmp_path_factory: pytest.TempPathFactory, s3: S3Settings
) -> None:
    folder, port = tmp_path_factory.mktemp("own-temporal"), servers.free_port()
    server = servers.temporal_dev_server(folder, port=port)
    system = System(folder / "system", f"127.0.0.1:{port}", s3, SLOTS)
    try:
        server.start().wait_for_port(port)
        await until_answers(f"127.0.0.1:{port}")
        await system.start()
        retrieving = Retrieving(system)
        with holding(system, scicat_seconds=8) as holds:
            async with system.workers():
                pids = await retrieving.archived(*IN_ALL_STEPS)
            async with system.workers(overrides=s3_through(holds)):
                await held_in_each_step(retrieving, holds, pids)
                server.kill()
                retrieving.nothing_half()
                server.start().wait_for_port(port)
                holds.let_all_go()
                await retrieving.end_right()
    finally:
        await system.stop()
        server.stop()


async def test_p5_a_reader_killed_with_a_file_half_in_a_directory_leaves_nothing_under_its_name(system: System) -> None:
    retrieving = Retrieving(system)
    (root,) = system.settings.retrieval.roots
    files = {"sub/big.bin": noise(48 * MIB, 3)}
    async with system.workers("workflows,catalogue"):
        async with system.workers("pack,lts"):
            (pid,) = await retrieving.archived(files)
        folder = root / "mine" / pid / "sub"
        reader = system.worker("lts")
        job, handle = await start_retrieve(system, pid, destinationPath=f"{root}/mine")
        half = await until(lambda: _half(folder))
        os.kill(reader.pid, signal.SIGSTOP)
        reader.kill()
        assert [one.name for one in folder.iterdir()] == [half], "a temporary name, and nothing else"
        system.worker("lts")
        assert (await ended(handle)).counts == m.Counts(retrieved=1)
        assert {one.name: one.read_bytes() for one in folder.iterdir()} == {"big.bin": files["sub/big.bin"]}
        assert (await system.job_record(job))["statusCode"] == "finishedSuccessful"


def _half(folder: Path) -> str:
    names = [one.name for one in folder.iterdir()] if folder.is_dir() else []
    return next((name for name in names if name.startswith(".archiver.")), "")
