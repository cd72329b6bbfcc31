"""A retrieval is stopped, job or dataset, in any step: it ends as stopped and says by whom, or it is too late and says so.

Either way nothing half is to be seen, archive states stay, and the same can be asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import CancelledError

from archiver import model as m
from archiver.retrieval import wire as w
from archiver.retrieval.keys import selection_of
from archiver.settings import S3Settings
from cli import jobs
from tests.pipeline import holds as at
from tests.pipeline.holds import Holds, holding, s3_through
from tests.pipeline.moments import MIB, noise, until
from tests.pipeline.retrieving import (
    assert_not_retrieved,
    assert_retrieved,
    ended,
    fetched_of_all,
    nothing_wrong,
    retrieve,
    retrieve_job,
    start_retrieve,
    still_archived,
)
from tests.pipeline.system import System

SMALL = {"a.txt": b"text", "raw/b.bin": noise(100_000, 1)}
LARGE = {"a.txt": b"text", "big.bin": noise(20 * MIB, 2)}
"""One of its files comes in three parts."""
OTHER = {"b.txt": b"other text"}


@dataclass(frozen=True)
class Stop:
    """What is stopped, and how, while its retrieval is held at this request."""

    what: str
    way: str
    at: tuple[str, str]
    files: dict[str, bytes]

    async def ask(self, system: System, pid: str, job: WorkflowHandle[Any, Any]) -> None:
        """Stop it, twice: the second changes nothing."""
        handle = job if self.what == "job" else dataset_of(system, pid)
        if self.way == "signal":
            await handle.signal("cancel", m.StopRequest(reason="wrong beam line", who="anna"))
            await handle.signal("cancel", m.StopRequest(reason="again", who="ben"))
        else:
            await handle.cancel()
            await handle.cancel()

    @property
    def said(self) -> tuple[str, str]:
        """Who stopped it, and why, as SciCat is told."""
        if self.way == "signal":
            return "anna", "wrong beam line"
        return "Temporal (Web UI or CLI)", "cancelled in Temporal"


SCICAT = ("GET", "/datasets/{pid}/datablocks/count$")
IN_TIME = {
    "begin-retrieve-dataset, dataset": Stop("dataset", "signal", SCICAT, SMALL),
    "begin-retrieve-dataset, job": Stop("job", "temporal", SCICAT, SMALL),
    "a small file is put": Stop("dataset", "signal", at.PUT_FILE, SMALL),
    "a part of a large file is put": Stop("job", "temporal", at.PUT_PART, LARGE),
    "a large file is completed": Stop("job", "signal", at.COMPLETE_FILE, LARGE),
    "all of a datablock was put": Stop("dataset", "temporal", at.TELL, SMALL),
}
DEAF = {
    "plan-retrieve, job": Stop("job", "signal", at.PLAN, SMALL),
    "plan-retrieve, dataset": Stop("dataset", "temporal", at.PLAN, SMALL),
}
"""A request that hangs in a step which says nothing meanwhile: it hears of no stop, and ends by its heartbeat's time limit."""
TOO_LATE = {
    "the dataset is reported, dataset": Stop("dataset", "signal", at.FINISH, SMALL),
    "the dataset is reported, by Temporal": Stop("dataset", "temporal", at.FINISH, SMALL),
    "the dataset is reported, job": Stop("job", "signal", at.FINISH, SMALL),
    "the links are made": Stop("job", "signal", at.LINK, SMALL),
    "the links are made, by Temporal": Stop("job", "temporal", at.LINK, SMALL),
}


@dataclass
class Stoppable:
    """A system whose retrievals can be held in a step."""

    system: System
    holds: Holds

    async def archived(self, files: Iterable[dict[str, bytes]]) -> list[str]:
        """Datasets that are archived."""
        pids = [await self.system.dataset(one) for one in files]
        assert (await self.system.archive(*pids)).counts == m.Counts(archived=len(pids))
        return pids

    async def held(self, stop: Stop, pid: str) -> Callable[[], Awaitable[None]]:
        """Hold this dataset's retrieval there; returns how to wait for that."""
        if stop.at is SCICAT:
            call = self.holds.scicat(stop.at[0], stop.at[1].format(pid=pid))
            return lambda: self.holds.in_call(call)
        return self.holds.s3(stop.at, pid).here


@pytest.fixture(scope="module")
async def stoppable(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[Stoppable]:
    # A slot for each that hangs: a thread that waits for a server is not stopped.
    slots = {"slots": {"pack": 2, "lts_read": 8, "lts_bag": 8}}
    system = System(tmp_path_factory.mktemp("system"), temporal_address, s3, slots)
    try:
        await system.start()
        with holding(system, scicat_seconds=60) as holds:
            async with system.workers(overrides=s3_through(holds)):
                yield Stoppable(system, holds)
                holds.let_all_go()
    finally:
        await system.stop()


def dataset_of(system: System, pid: str) -> WorkflowHandle[Any, Any]:
    """The workflow that retrieves all of a dataset."""
    return system.client.get_workflow_handle(f"retrieve-dataset/{pid}/{selection_of(w.Destination(), ())}")


T = TypeVar("T")


async def each(cases: dict[str, Stop], one: Callable[[Stop, int], Awaitable[T]]) -> list[T]:
    """All of them at once; what fails says which."""

    async def run(n: int, name: str) -> T:
        try:
            return await one(cases[name], n)
        except BaseException as error:
            error.add_note(f"case: {name}")
            raise

    return await asyncio.gather(*(run(n, name) for n, name in enumerate(cases)))


@pytest.mark.parametrize("stops", [IN_TIME, DEAF], ids=["in each step", "in a step that hangs"])
async def test_p3_a_stop_ends_what_is_under_way_and_leaves_nothing_half(
    stoppable: Stoppable, stops: dict[str, Stop]
) -> None:
    system = stoppable.system
    pids = await stoppable.archived(stop.files for stop in stops.values())
    others = await stoppable.archived(OTHER for _ in stops)

    async def one(stop: Stop, n: int) -> None:
        pid, other = pids[n], others[n]
        here = await stoppable.held(stop, pid)
        job, handle = await start_retrieve(system, other, pid)
        await here()
        await retrieved_already(other)
        await stop.ask(system, pid, handle)
        if (stop.what, stop.way) == ("job", "temporal"):
            with pytest.raises(WorkflowFailureError) as failed:
                await ended(handle)
            assert isinstance(failed.value.cause, CancelledError)
        else:
            assert (await ended(handle)).counts == m.Counts(retrieved=1, cancelled=1)
        # The server still holds its answer: it was not waited for.
        who, why = stop.said
        await assert_not_retrieved(system, job, pid, f"Retrieving was stopped by {who}: {why}", files=stop.files)
        told = await system.job_record(job)
        outcomes = {one["pid"]: one["outcome"] for one in told["jobResultObject"]["datasets"]}
        assert outcomes == {pid: "cancelled", other: "retrieved"}
        assert await fetched_of_all(system, job) == {(other, "b.txt"): OTHER["b.txt"]}
        if stop.what == "job":
            assert told["statusCode"] == "finishedUnsuccessful"
            assert told["statusMessage"].startswith(f"Stopped by {who} ({why}): ")
        else:
            assert told["statusCode"] == "finishedWithDatasetErrors"

    async def retrieved_already(pid: str) -> None:
        await until(lambda: _said(system, pid, "datasetRetrieved"))

    async def again(stop: Stop, n: int) -> None:
        # What the server now does of all that was asked of it before brings nothing half either.
        nothing_wrong(system, pids[n], stop.files)
        job, result = await retrieve(system, pids[n])
        assert result.counts == m.Counts(retrieved=1)
        await assert_retrieved(system, job, pids[n], stop.files)

    try:
        await each(stops, one)
    finally:
        stoppable.holds.let_all_go()
    await each(stops, again)


async def _said(system: System, pid: str, status: str) -> bool:
    return (await system.lifecycle(pid))["retrieveStatusMessage"] == status


async def test_p2_a_stop_while_the_end_is_reported_is_too_late_and_told_so(stoppable: Stoppable) -> None:
    system = stoppable.system
    pids = await stoppable.archived(stop.files for stop in TOO_LATE.values())

    async def one(stop: Stop, n: int) -> tuple[str, WorkflowHandle[Any, m.ArchiveJobResult]]:
        here = await stoppable.held(stop, pids[n])
        job, handle = await start_retrieve(system, pids[n])
        await here()
        await stop.ask(system, pids[n], handle)
        return job, handle

    async def ends(stop: Stop, n: int) -> None:
        job, handle = started[n]
        assert (await ended(handle)).counts == m.Counts(retrieved=1)
        assert await fetched_of_all(system, job) == {(pids[n], name): data for name, data in stop.files.items()}
        life = await still_archived(system, pids[n])
        assert (life["retrieveStatusMessage"], life["retrieveIntegrityCheck"]) == ("datasetRetrieved", True)
        nothing_wrong(system, pids[n], stop.files)
        told = await system.job_record(job)
        assert [one["outcome"] for one in told["jobResultObject"]["datasets"]] == ["retrieved"]
        stopped = stop.what == "job" and stop.at is at.FINISH
        # Its dataset was too far to be stopped, and the job says both.
        assert told["statusCode"] == ("finishedUnsuccessful" if stopped else "finishedSuccessful")
        assert told["statusMessage"].startswith("Stopped by anna") == stopped
        assert "1 retrieved" in told["statusMessage"]

    try:
        started = await each(TOO_LATE, one)
    finally:
        stoppable.holds.let_all_go()
    await each(TOO_LATE, ends)


async def test_a_stop_before_the_job_was_read_is_told_and_no_dataset_was_touched(stoppable: Stoppable) -> None:
    system, holds = stoppable.system, stoppable.holds
    stops = {way: Stop("job", way, SCICAT, OTHER) for way in ("signal", "temporal")}
    pids = await stoppable.archived(OTHER for _ in stops)

    async def one(stop: Stop, n: int) -> None:
        before = await system.lifecycle(pids[n])
        job = await retrieve_job(system, pids[n])
        call = holds.scicat("GET", f"/jobs/{job}$")
        handle = await jobs.start(system.client, job, None, retrieve=True)
        await holds.in_call(call)
        await stop.ask(system, pids[n], handle)
        if stop.way == "signal":
            assert (await ended(handle)).counts == m.Counts()
        else:
            with pytest.raises(WorkflowFailureError):
                await ended(handle)
        told = await system.job_record(job)
        who, why = stop.said
        assert told["statusCode"] == "finishedUnsuccessful"
        assert told["statusMessage"].startswith(f"Stopped by {who} ({why})")
        assert await still_archived(system, pids[n]) == before
        nothing_wrong(system, pids[n], {})

    try:
        await each(stops, one)
    finally:
        holds.let_all_go()
