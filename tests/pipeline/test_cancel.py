"""A job or a dataset is stopped, in any stage: transfers end, nothing is left, what verified stays and is used again.

``make cancel-table`` runs this module and writes what it saw to docs/cancellation.md.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import CancelledError

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from archiver.settings import S3Settings
from tests.pipeline.gate import Gate, gate_before_s3, landing_through, staging_through
from tests.pipeline.moments import (
    MIB,
    children,
    dataset_workflow,
    full_lts,
    noise,
    on_lts,
    partials,
    stage,
    this_process,
    until,
    uploads,
)
from tests.pipeline.oracle import assert_archived, assert_clean
from tests.pipeline.system import System

FILES = {"a.bin": noise(MIB, 1), "b.bin": noise(16 * MIB, 2)}
"""Two datablocks: the first verifies, the second is stopped."""
SMALL = {"a.txt": b"text"}
SLOW = 2 * MIB
VERIFIED = {"1.tar.gz", "1.manifest.jsonl.gz"}
ASKED = m.StopRequest(reason="beam time over", who="anna")
TABLE = "CANCEL_TABLE"
"""Environment variable with the file in which the table of what was stopped is replaced."""


class Stoppable:
    """A system whose transfers can be slowed down, so that a dataset can be brought to a stage and kept there."""

    def __init__(self, system: System, landing: Gate, staging: Gate) -> None:
        self.system = system
        self._landing = landing
        self._staging = staging
        self._open = AsyncExitStack()

    async def bring(self, pid: str, where: str, other: str) -> None:
        """Until datablock 2 is in this stage. ``other`` is the other dataset under way."""
        system = self.system
        if where == "pack":
            self._landing.slow(4 * SLOW)
            await until(lambda: uploads(system, pid))
            self._landing.slow(SLOW)
            await until(lambda: on_lts(system, pid).keys() == VERIFIED)
        elif where == "copy to LTS":
            self._staging.slow(SLOW)
            await until(lambda: [path for path in partials(system, pid) if path.name.startswith(".2.tar.gz")])
        else:
            # What else is under way has passed, and datablock 2 is still being packed.
            self._landing.slow(SLOW)
            await until(lambda: on_lts(system, pid).keys() == VERIFIED)
            await until(lambda: _archived(system, other))
            if where == "wait for LTS space":
                self._open.enter_context(full_lts(system))
            for verifier in children(this_process(), "archiver.datablock.verify") if where == "verify in LTS" else []:
                os.kill(verifier, signal.SIGSTOP)
            self._landing.open()
        await until(lambda: self._at(pid, where))
        assert on_lts(system, pid).keys() >= VERIFIED

    async def hang_in_copy(self, pid: str) -> None:
        """Until a datablock is half on the LTS, and nothing more comes from staging."""
        self._staging.shut(after_bytes=8 * MIB)
        await until(lambda: self._staging.holding and partials(self.system, pid))

    def hang_the_landing_zone(self) -> None:
        """From now on it answers nothing."""
        self._landing.shut()

    @property
    def landing_zone_hangs(self) -> bool:
        """Whether it holds an answer back, and whoever asked still waits for it."""
        return self._landing.holding and not self._landing.given_up

    async def _at(self, pid: str, where: str) -> bool:
        return await stage(self.system, pid, 2) == where

    async def let_go(self) -> None:
        """Everything runs as it does."""
        self._landing.open()
        self._staging.open()
        await self._open.aclose()


@pytest.fixture(scope="module")
async def stoppable(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[Stoppable]:
    overrides = {"datablock": {"target_bytes": MIB, "fetch_objects": 1}, "archive": {"datablocks_at_once": 1}}
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


class Table:
    """What was stopped where, how, how long it took and what was left; a line per stop."""

    HEAD = ("| stage | what was stopped | by | seconds until all had ended | what was left |", "|---|---|---|---:|---|")

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, where: str, what: str, way: str, seconds: float, left: str) -> None:
        how = "signal `cancel`" if way == "signal" else "`temporal workflow cancel`"
        self.lines.append(f"| {where} | {what} | {how} | {seconds:.1f} | {left} |")

    def write(self, path: Path) -> None:
        """In place of the table that the page has."""
        page = path.read_text()
        start = page.index(self.HEAD[0])
        end = page.find("\n\n", start)
        path.write_text(page[:start] + "\n".join((*self.HEAD, *self.lines)) + (page[end:] if end >= 0 else "\n"))


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    table = Table()
    yield table
    if os.environ.get(TABLE):
        table.write(Path(os.environ[TABLE]))


async def ask(handle: WorkflowHandle[Any, Any], way: str) -> None:
    """Stop it, twice: the second changes nothing."""
    if way == "signal":
        await handle.signal("cancel", ASKED)
        await handle.signal("cancel", m.StopRequest(reason="again", who="ben"))
    else:
        await handle.cancel()
        await handle.cancel()


@pytest.mark.parametrize(
    ("where", "what", "way"),
    [
        ("pack", "dataset", "signal"),
        ("pack", "job", "temporal"),
        ("wait for LTS space", "dataset", "temporal"),
        ("wait for LTS space", "job", "signal"),
        ("copy to LTS", "job", "signal"),
        ("copy to LTS", "dataset", "temporal"),
        ("verify in LTS", "job", "temporal"),
        ("verify in LTS", "dataset", "signal"),
    ],
)
async def test_p3_a_stop_ends_transfers_leaves_nothing_behind_and_keeps_what_verified(
    stoppable: Stoppable, table: Table, where: str, what: str, way: str
) -> None:
    system = stoppable.system
    pid, other = await system.dataset(FILES), await system.dataset(SMALL)
    job_id = await system.job(pid, other)
    job = await system.start_job(job_id)
    try:
        await stoppable.bring(pid, where, other)
        if what == "job":
            await until(lambda: _archived(system, other))
        kept = {name: inode for name, inode in on_lts(system, pid).items() if name in VERIFIED}
        start = time.monotonic()
        await ask(job if what == "job" else dataset_workflow(system, pid), way)
        if (what, way) == ("job", "temporal"):
            with pytest.raises(WorkflowFailureError) as failed:
                await job.result()
            assert isinstance(failed.value.cause, CancelledError)
        else:
            result = await job.result()
            assert result.counts == m.Counts(archived=1, cancelled=1)
        seconds = time.monotonic() - start
        assert on_lts(system, pid) == kept, "what verified stays, and nothing else"
        who, why = (
            ("anna", "beam time over") if way == "signal" else ("Temporal (Web UI or CLI)", "cancelled in Temporal")
        )
        assert (
            await assert_clean(system, pid, "datasetCreated", files=FILES) == f"Archiving was stopped by {who}: {why}"
        )
        assert (await system.lifecycle(pid))["archivable"] is True
        await assert_archived(system, other, SMALL)
        told = await system.job_record(job_id)
        outcomes = {one["pid"]: one["outcome"] for one in told["jobResultObject"]["datasets"]}
        assert outcomes == {pid: "cancelled", other: "archived"}
        if what == "job":
            assert told["statusCode"] == "finishedUnsuccessful"
            assert told["statusMessage"].startswith(f"Stopped by {who} ({why}): ")
        else:
            assert told["statusCode"] == "finishedWithDatasetErrors"
        table.add(where, what, way, seconds, "nothing; datablock 1, verified, stays and is used again")
    finally:
        await stoppable.let_go()
    # Submitted again, it uses what verified.
    assert (await (await system.start_job(job_id)).result()).counts == m.Counts(archived=1, already_archived=1)
    await assert_archived(system, pid, FILES)
    assert on_lts(system, pid).items() > kept.items()


@pytest.mark.parametrize(("what", "way"), [("dataset", "temporal"), ("job", "signal")])
async def test_p3_a_stop_while_scicat_is_read_leaves_nothing_behind(
    stoppable: Stoppable, table: Table, what: str, way: str
) -> None:
    system = stoppable.system
    pid = await system.dataset(SMALL)
    system.standin.faults.append(Fault("GET", f"/datasets/{pid}/origdatablocks/count", hang_seconds=60))
    job = await system.start_job(await system.job(pid))
    await until(lambda: not system.standin.faults, "the hanging call")
    start = time.monotonic()
    await ask(job if what == "job" else dataset_workflow(system, pid), way)
    assert (await job.result()).counts == m.Counts(cancelled=1)
    seconds = time.monotonic() - start
    await assert_clean(system, pid, "datasetCreated", files=SMALL)
    table.add("reading origdatablocks (SciCat hangs)", what, way, seconds, "nothing")


@pytest.mark.parametrize(("what", "way"), [("dataset", "signal"), ("job", "temporal")])
async def test_p3_a_stop_while_the_landing_zone_is_listed_leaves_nothing_behind(
    stoppable: Stoppable, table: Table, what: str, way: str
) -> None:
    system = stoppable.system
    pid = await system.dataset(SMALL)
    stoppable.hang_the_landing_zone()
    try:
        job = await system.start_job(await system.job(pid))
        await system.pending("plan-dataset", "archive-dataset", pid)
        await until(lambda: stoppable.landing_zone_hangs)
        start = time.monotonic()
        await ask(job if what == "job" else dataset_workflow(system, pid), way)
        if (what, way) == ("job", "temporal"):
            with pytest.raises(WorkflowFailureError):
                await job.result()
        else:
            assert (await job.result()).counts == m.Counts(cancelled=1)
        seconds = time.monotonic() - start
        assert stoppable.landing_zone_hangs, "before the listing's own time limit had come"
    finally:
        await stoppable.let_go()
    await assert_clean(system, pid, "datasetCreated", files=SMALL)
    table.add("comparing with the landing zone (S3 hangs)", what, way, seconds, "nothing")


@pytest.mark.parametrize(("what", "way"), [("dataset", "signal"), ("dataset", "temporal"), ("job", "signal")])
async def test_p3_a_stop_in_the_midst_of_registration_is_too_late_and_told_so(
    stoppable: Stoppable, table: Table, what: str, way: str
) -> None:
    system = stoppable.system
    pid = await system.dataset(SMALL)
    system.standin.faults.append(Fault("GET", f"/datasets/{pid}/datablocks/count$", hang_seconds=2))
    job_id = await system.job(pid)
    job = await system.start_job(job_id)
    await until(lambda: not system.standin.faults and system.datablocks(pid), "registering")
    start = time.monotonic()
    await ask(job if what == "job" else dataset_workflow(system, pid), way)
    result = await job.result()
    table.add("registration", what, way, time.monotonic() - start, "too late: archived, and told so")
    assert result.counts == m.Counts(archived=1)
    await assert_archived(system, pid, SMALL)
    told = (await system.job_record(job_id))["jobResultObject"]["datasets"]
    assert [(one["pid"], one["outcome"]) for one in told] == [(pid, "archived")]


async def test_p5_what_a_terminated_dataset_left_is_cleared_by_its_next_run(stoppable: Stoppable) -> None:
    """Nobody rolls back what is terminated; and the next run comes while a copy of the old one still hangs."""
    system = stoppable.system
    files = {"b.bin": FILES["b.bin"]}
    pid = await system.dataset(files)
    job = await system.start_job(await system.job(pid))
    try:
        await stoppable.hang_in_copy(pid)
        left = partials(system, pid)
        await dataset_workflow(system, pid).terminate("for the test")
        assert (await job.result()).counts == m.Counts(system_errors=1)
        assert (await system.lifecycle(pid))["archiveStatusMessage"] == "started", "nobody could tell"
        again = await system.start_job(await system.job(pid))
        await until(lambda: not set(partials(system, pid)) & set(left), "the next run has seen what is there")
        await until(lambda: _in_stage(system, pid, "datablocks"))
    finally:
        await stoppable.let_go()
    assert (await again.result()).counts == m.Counts(archived=1)
    await assert_archived(system, pid, files)


async def _archived(system: System, pid: str) -> bool:
    return bool((await system.lifecycle(pid))["retrievable"])


async def _in_stage(system: System, pid: str, name: str) -> bool:
    return bool((await dataset_workflow(system, pid).query("progress"))["stage"] == name)
