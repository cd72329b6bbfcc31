"""Any process may die at any instant, and be told to stop, and stand still: the job reaches the right end by itself."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import WorkflowHandle

from activities.awake import Awake
from archiver import model as m
from archiver.catalogue.standin.app import Fault
from archiver.settings import S3Settings
from archiver.storage.lts_directory import FileSystemLts
from cli import servers
from tests.conftest import until_answers
from tests.pipeline.gate import gate_before_s3, landing_through, staging_through
from tests.pipeline.moments import (
    MIB,
    alive,
    full_lts,
    miscounted,
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
async def archiving(system: System) -> Archiving:
    """Starts jobs and sees them to their right end."""
    return Archiving(system)


class Archiving:
    """Jobs over new datasets, each known with its files."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.started: list[tuple[str, str, dict[str, bytes], WorkflowHandle[Any, m.ArchiveJobResult]]] = []

    async def start(self, files: dict[str, bytes], before: Callable[[str, str], Any] = lambda pid, job: None) -> str:
        """A job over a new dataset; returns its pid. ``before`` is called when both are made and nothing runs."""
        pid = await self.system.dataset(files)
        job_id = await self.system.job(pid)
        before(pid, job_id)
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


async def test_p5_the_lts_worker_is_killed_with_datablocks_in_verify_copy_and_space_wait(
    system: System, archiving: Archiving
) -> None:
    with gate_before_s3(system) as gate:
        async with system.workers("workflows,catalogue,pack"):
            worker = system.worker("lts", staging_through(gate))
            in_verify = await archiving.start(FILES)
            verifier = await verifier_of(worker.pid)
            os.kill(verifier, signal.SIGSTOP)
            gate.shut(after_bytes=8 * MIB)
            in_copy = await archiving.start(FILES)
            await until(lambda: gate.holding and partials(system, in_copy), "copy is half-way")
            with full_lts(system):
                waiting = await archiving.start(SMALL)
                await until(lambda: at(system, waiting, "wait for LTS space"))
                assert await at(system, in_verify, "verify in LTS")
                worker.kill()
            assert partials(system, in_copy), "a crash leaves a partial file"
            assert on_lts(system, in_verify).keys() == {"1.tar.gz"}, "not verified yet"
            os.kill(verifier, signal.SIGCONT)
            await until(lambda: not alive(verifier), "the orphaned verifier ends")
            async with system.workers("lts"):
                await archiving.ends_right()


async def test_p5_the_verifier_process_alone_is_killed(system: System, archiving: Archiving) -> None:
    async with system.workers():
        pid = await archiving.start(FILES)
        verifier = await verifier_of(this_process())
        os.kill(verifier, signal.SIGKILL)
        await archiving.ends_right()
    assert on_lts(system, pid).keys() == {"1.tar.gz", "1.manifest.jsonl.gz"}


async def test_p5_one_kill_while_each_of_many_jobs_is_in_another_call_of_scicat(
    system: System, archiving: Archiving
) -> None:
    """Before, between and after the steps: in the first call of each SciCat activity, and in those that write."""
    worker = system.worker()
    held = []

    def hold(method: str, path: str, seconds: float = FOREVER) -> Fault:
        held.append(Fault(method, path, hang_seconds=seconds))
        system.standin.faults.append(held[-1])
        return held[-1]

    async def held_in(*faults: Fault) -> None:
        await until(lambda: not set(map(id, faults)) & set(map(id, system.standin.faults)), f"in {faults}")

    for method, path in (
        ("GET", "/datasets/{pid}$"),
        ("PATCH", "/datasets/{pid}/datasetlifecycle$"),
        ("GET", "/datasets/{pid}/origdatablocks/count$"),
        ("GET", "/datasets/{pid}/datablocks/count$"),
        ("GET", "/jobs/{job}$"),
        ("PATCH", "/jobs/{job}$"),
    ):

        def before(pid: str, job: str, method: str = method, path: str = path) -> None:
            # Counters are written only where SciCat's own sums are wrong.
            miscounted(system, pid)
            hold(method, path.format(pid=pid, job=job))

        await archiving.start(SMALL, before=before)
    # The last writes of a dataset and of its job are like the first: they are caught after those.
    pauses = []
    for _ in range(2):
        await archiving.start(
            SMALL, before=lambda pid, _: pauses.append(hold("GET", f"/datasets/{pid}/datablocks/count$", seconds=2))
        )
    for pause, path in zip(pauses, ("/datasets/{pid}/datasetlifecycle$", "/jobs/{job}$"), strict=True):
        await held_in(pause)
        pid, job_id, _, _ = archiving.started[len(archiving.started) - 2 + pauses.index(pause)]
        hold("PATCH", path.format(pid=pid, job=job_id))
    await held_in(*held)
    # Its answer alone is lost: SciCat has the datablock when the next worker registers it.
    await archiving.start(SMALL, before=lambda *_: hold("POST", "^/api/v3/datablocks$", seconds=3))
    await held_in(*held)
    worker.kill()
    async with system.workers():
        await archiving.ends_right()


async def test_p5_the_temporal_server_is_killed_with_datablocks_in_pack_and_copy(
    tmp_path_factory: pytest.TempPathFactory, s3: S3Settings
) -> None:
    folder, port = tmp_path_factory.mktemp("own-temporal"), servers.free_port()
    server = servers.temporal_dev_server(folder, port=port)
    system = System(folder / "system", f"127.0.0.1:{port}", s3)
    try:
        server.start().wait_for_port(port)
        await until_answers(f"127.0.0.1:{port}")
        await system.start()
        archiving = Archiving(system)
        with gate_before_s3(system) as before_landing, gate_before_s3(system) as before_staging:
            async with (
                system.workers("workflows,catalogue,pack", landing_through(system, before_landing)),
                system.workers("lts", staging_through(before_staging)),
            ):
                before_staging.shut(after_bytes=8 * MIB)
                in_copy = await archiving.start(FILES)
                await until(lambda: before_staging.holding and partials(system, in_copy), "copy is half-way")
                before_landing.shut(after_bytes=PART)
                in_pack = await archiving.start(FILES)
                await until(lambda: before_landing.holding and uploads(system, in_pack), "pack is half-way")
                server.kill()
                server.start().wait_for_port(port)
                before_landing.open()
                before_staging.open()
                await archiving.ends_right()
    finally:
        await system.stop()
        server.stop()


async def test_a_worker_told_to_end_takes_nothing_new_and_what_it_stops_is_taken_up_by_the_next(
    system: System, archiving: Archiving
) -> None:
    with gate_before_s3(system) as before_landing, gate_before_s3(system) as before_staging:
        async with system.workers("workflows,pack", landing_through(system, before_landing)):
            overrides = {
                **staging_through(before_staging),
                "worker": {"graceful_shutdown_seconds": 4.0, "heartbeat_timeout_seconds": 60.0},
            }
            worker = system.worker("catalogue,lts", overrides)
            before_staging.slow(1.5 * MIB)
            in_copy = await archiving.start(FILES)
            await until(lambda: partials(system, in_copy), "copying")
            before_landing.shut(after_bytes=PART)
            in_pack = await archiving.start(FILES)
            await until(lambda: uploads(system, in_pack), "packing")
            system.standin.faults.append(call := Fault("GET", "/datasets/", hang_seconds=FOREVER))
            in_call = await archiving.start(SMALL)
            await until(lambda: call not in system.standin.faults, "in a call of SciCat that hangs")
            os.kill(worker.pid, signal.SIGTERM)
            worker.wait_for_log("stopping: running activities have 4 s")
            before_landing.open()
            space_wait = f"archive-datablock/{in_pack}/1"
            await until(lambda: scheduled(system, space_wait, "wait-for-lts-space"), "packed, nobody waits for space")
            await until(lambda: worker.exit_code is not None, "the worker ends")
            assert worker.exit_code == 0
            assert await scheduled(system, space_wait, "wait-for-lts-space"), "a draining worker takes nothing new"
            assert not partials(system, in_copy), "what was told to stop tidied up"
            assert await last_failure(system, f"archive-datablock/{in_copy}/1") == ("copy-to-lts", "Stopped")
            assert await last_failure(system, f"archive-dataset/{in_call}") == ("begin-dataset", "Stopped")
            async with system.workers("catalogue,lts"):
                await archiving.ends_right()


async def test_a_second_sigterm_ends_a_worker_at_once(system: System, archiving: Archiving) -> None:
    async with system.workers("workflows,pack,lts"):
        worker = system.worker("catalogue", {"worker": {"graceful_shutdown_seconds": 600.0}})
        await archiving.start(
            SMALL, before=lambda pid, _: system.standin.faults.append(Fault("GET", pid, hang_seconds=FOREVER))
        )
        await until(lambda: not system.standin.faults, "in a call of SciCat that hangs")
        os.kill(worker.pid, signal.SIGTERM)
        worker.wait_for_log("stopping: running activities have 600 s")
        os.kill(worker.pid, signal.SIGTERM)
        await until(lambda: worker.exit_code is not None, "the worker ends")
        assert worker.exit_code == 128 + signal.SIGTERM
        async with system.workers("catalogue"):
            await archiving.ends_right()


async def test_p12_a_second_lts_worker_is_refused_while_the_first_lives(system: System) -> None:
    first = system.worker("lts")
    second = system.worker("lts-copy", wait=False)
    await until(lambda: second.exit_code is not None, "the second worker ends")
    assert second.exit_code == 6
    said = second.log.read_text()
    assert "queue lts-copy is served by another process" in said
    assert f'"pid": {first.pid}' in said
    first.kill()
    async with system.workers("lts"):
        pass


async def test_p5_workers_that_stood_still_harm_nothing_when_they_go_on(
    system: System, archiving: Archiving, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As on two hosts: the locks do not meet, and Temporal has given the stopped workers up."""
    with (
        gate_before_s3(system) as old_landing,
        gate_before_s3(system) as old_staging,
        gate_before_s3(system) as landing,
        gate_before_s3(system) as staging,
    ):
        async with system.workers("workflows,catalogue"):
            packer = system.worker("pack", landing_through(system, old_landing), wait=False)
            copier = system.worker("lts", staging_through(old_staging))
            old_staging.shut(after_bytes=8 * MIB)
            in_copy = await archiving.start(FILES)
            await until(lambda: old_staging.holding and partials(system, in_copy), "copy is half-way")
            old_landing.shut(after_bytes=PART)
            in_pack = await archiving.start(FILES)
            await until(lambda: old_landing.holding and uploads(system, in_pack), "pack is half-way")
            old_uploads, old_partials = uploads(system, in_pack), partials(system, in_copy)
            for worker in (packer, copier):
                os.kill(worker.pid, signal.SIGSTOP)
            landing.slow(1.5 * MIB)
            staging.slow(1.5 * MIB)
            locks = {"worker": {"lock_dir": str(tmp_path_factory.mktemp("locks"))}}
            async with (
                system.workers("pack", landing_through(system, landing)),
                system.workers("lts", {**staging_through(staging), **locks}),
            ):
                new_uploads = await until(lambda: set(uploads(system, in_pack)) - set(old_uploads), "packed again")
                new_partials = await until(lambda: set(partials(system, in_copy)) - set(old_partials), "copied again")
                old_landing.open()
                old_staging.open()
                for worker in (packer, copier):
                    os.kill(worker.pid, signal.SIGCONT)
                    await until(lambda log=worker.log: "another attempt has taken over" in log.read_text())
                assert set(uploads(system, in_pack)) == new_uploads, "the other's upload goes on"
                assert set(partials(system, in_copy)) == new_partials, "the other's file goes on"
                assert not on_lts(system, in_copy).keys() & {"1.tar.gz"}, "nothing published"
                landing.open()
                staging.open()
                await archiving.ends_right()


def test_p5_a_process_that_stood_still_begins_nothing_of_what_it_was_given_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("activities.awake.boot_time", lambda: clock[0])
    awake, may_begin = Awake(limit_seconds=5), []
    for seconds in (1, 5, 5.1, 1, 1.1):
        clock[0] += seconds
        may_begin.append(awake.look())
    assert may_begin == [True, True, False, False, True]


class Seeing:
    """A progress that looks at something with every step."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self._look = look
        self.seen: list[Any] = []

    def advance(self, size_bytes: int = 0, files: int = 0) -> None:
        self.seen.append(self._look())

    def note(self, text: str) -> None:
        self.advance()


def test_p5_a_copy_first_frees_the_space_that_its_dead_predecessor_held(system: System) -> None:
    folder = system.lts / "20.500.1" / "dead" / "data"
    folder.mkdir(parents=True)
    for name in (".1.tar.gz.run-1-1.partial", ".1.tar.gz.run-1-3.partial", ".2.tar.gz.run-1-1.partial"):
        (folder / name).write_bytes(b"half")
    progress = Seeing(lambda: sorted(path.name for path in folder.iterdir()))
    data = b"x" * 1000
    FileSystemLts(system.settings.lts).copy_in(
        "20.500.1/dead",
        "data/1.tar.gz",
        [data],
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        attempt="run-1-2",
        promise="20.500.1/dead/1",
        progress=progress,
    )
    others = [".1.tar.gz.run-1-3.partial", ".2.tar.gz.run-1-1.partial"]
    assert progress.seen[0] == [".1.tar.gz.run-1-2.partial", *others], "only what came before it"


def test_p5_a_survey_gives_back_what_a_dead_run_had_promised_to_itself(system: System) -> None:
    lts, progress = FileSystemLts(system.settings.lts), Seeing(lambda: None)
    lts.wait_for_space("20.500.1/dead/7", 1000, progress)
    lts.wait_for_space("20.500.1/dead-not/7", 10, progress)
    lts.survey("20.500.1/dead", "plan", 1)
    assert lts.space().promised == 10
    lts.release("20.500.1/dead-not/7")


# --- seen from outside ------------------------------------------------------------------------------------------------------


async def at(system: System, pid: str, name: str) -> bool:
    return await stage(system, pid) == name


async def pending(system: System, workflow_id: str) -> list[Any]:
    described = await system.client.get_workflow_handle(workflow_id).describe()
    return list(described.raw_description.pending_activities)


async def scheduled(system: System, workflow_id: str, name: str) -> bool:
    """Whether this activity waits for a worker, and none has it."""
    states = [one.state for one in await pending(system, workflow_id) if one.activity_type.name == name]
    return states == [PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED]


async def last_failure(system: System, workflow_id: str) -> tuple[str, str]:
    """The activity that waits to be tried again, and why its last attempt failed."""
    (one,) = await pending(system, workflow_id)
    return one.activity_type.name, one.last_failure.application_failure_info.type
