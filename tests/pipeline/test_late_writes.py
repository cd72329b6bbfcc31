"""A step that stood still writes to SciCat after its job, and a second job, have ended: nothing stays spoiled (P6)."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from temporalio.client import WorkflowHandle

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from cli import jobs
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.frozen import Freeze, Freezer, When
from tests.pipeline.moments import until
from tests.pipeline.oracle import assert_archived
from tests.pipeline.retrieving import fetched, retrieve, retrieve_job
from tests.pipeline.system import System
from workflows import steps

FILES = {"a.txt": b"text", "b.txt": b"more"}
SHORT: dict[str, dict[str, Any]] = {
    "worker": {"heartbeat_timeout_seconds": 5},
    "slots": {"catalogue": 200},
    "sweep": {
        "every_seconds": 0,
        "leftovers_every_seconds": 0,
        "lost_after_seconds": 0,
        "leftovers_after_hours": 0,
    },
}
GOOD = ("begin-job", "begin-dataset", "read-origdatablocks", "register-datablocks", "finish-dataset", "finish-job")
"""Steps of the catalogue on the way of a dataset that is archived."""
BAD = ("begin-job", "begin-dataset", "fail-dataset", "finish-job")
"""Those of one whose files are not there yet."""
OF_JOBS = ("begin-job", "finish-job")


@dataclass
class Case:
    """A job with one frozen attempt of a step."""

    freeze: Freeze
    pid: str
    job: str
    handle: WorkflowHandle[Any, m.ArchiveJobResult]
    good: bool
    second: str = ""
    first_code: str = ""

    def __str__(self) -> str:
        f = self.freeze
        return f"{'good' if self.good else 'bad'} {f.step} {f.when} request {f.n}, which {f.how or 'has not ended'}"


async def sweep(system: System) -> tuple[m.SweepJobsResult, m.SweepLeftoversResult]:
    """As ``archiver sweep`` does it."""
    results = []
    for kind, result in (("Sweep", m.SweepJobsResult), ("SweepLeftovers", m.SweepLeftoversResult)):
        done = await system.client.execute_workflow(
            kind, m.SweepRequest(), id=f"test-{secrets.token_hex(4)}", task_queue=steps.WORKFLOWS
        )
        results.append(result.model_validate(done))
    return results[0], results[1]  # type: ignore[return-value]


@asynccontextmanager
async def freezing(freezer: Freezer) -> AsyncIterator[None]:
    """Whatever happens within the context, nothing stays frozen."""
    try:
        yield
    finally:
        freezer.let_all_go()


async def idle(system: System) -> bool:
    return (await system.client.count_workflows("ExecutionStatus = 'Running'")).count == 0


async def methods_of_steps(system: System, freezer: Freezer) -> dict[str, list[str]]:
    """What each step of the catalogue sends, seen in one job that archives and one that cannot."""
    await system.archive(await system.dataset(FILES))
    await system.archive(await system.dataset(FILES, landed=False))
    return dict(freezer.methods)


async def begun(system: System, freezer: Freezer, step: str, n: int, when: When, *, good: bool) -> Case:
    """A job whose step is to be frozen."""
    pid = await system.dataset(FILES, landed=good)
    job = await system.job(pid)
    freeze = freezer.add(Freeze(step, job if step in OF_JOBS else pid, n, when))
    return Case(freeze, pid, job, await system.start_job(job), good)


async def test_p6_p2_p3_what_a_frozen_step_writes_to_scicat_after_all_ended_is_right_after_one_sweep(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    freezer = Freezer(monkeypatch)
    system = await make_system(SHORT)
    async with system.workers(interceptors=[freezer]), freezing(freezer):
        methods = await methods_of_steps(system, freezer)
        assert methods.keys() >= {*GOOD, *BAD}
        cases = [
            await begun(system, freezer, step, n, when, good=good)
            for good, names in ((True, GOOD), (False, BAD))
            for step in names
            for n, method in enumerate(methods[step])
            # A request that only reads changes nothing, however late it comes.
            for when in (("before", "after") if method != "GET" else ("before",))
        ]
        for case in cases:
            case.first_code = (await case.handle.result()).status_code
            assert case.freeze.held.is_set(), f"{case}: the step came to that request"
            assert not case.freeze.ended.is_set(), case
        for case in cases:
            if not case.good:
                system.put(case.pid, FILES)
        # A second job over the dataset, or, every other time, the same job once more.
        seconds = []
        for number, case in enumerate(cases):
            case.second = case.job if number % 2 and not case.good else await system.job(case.pid)
            seconds.append(await system.start_job(case.second))
        for case, second in zip(cases, seconds, strict=True):
            assert (await second.result()).status_code == "finishedSuccessful", case
        for case in cases:
            case.freeze.let_go()
        for case in cases:
            await asyncio.wait_for(case.freeze.ended.wait(), 60)
        for case in cases:
            if case.freeze.when == "before" and methods[case.freeze.step][case.freeze.n] != "GET":
                assert case.freeze.refused, f"{case}: nothing is sent that was prepared long ago"
        await until(lambda: idle(system), "nothing runs")
        spoiled = [str(case) for case in cases if not await right(system, case)]
        assert spoiled, "the test spoils something: requests that were on the way cannot be stopped"
        await sweep(system)
        wrong = [f"{case}: {await state(system, case)}" for case in cases if not await right(system, case)]
        assert wrong == []
        mails = len(system.standin.mails)
        swept, leftovers = await sweep(system)
        assert (swept.corrected, swept.restarted, leftovers.corrected, leftovers.problems) == (0, 0, 0, [])
        assert len(system.standin.mails) == mails, "SciCat mails at each update of a job: once is enough"
        await until(lambda: idle(system), "nothing runs")
        for case in cases[:: len(cases) // 4]:
            await assert_archived(system, case.pid, FILES)


async def state(system: System, case: Case) -> tuple[object, ...]:
    """What SciCat says."""
    lifecycle = await system.lifecycle(case.pid)
    codes = [(await system.job_record(job))["statusCode"] for job in (case.job, case.second)]
    return lifecycle["archiveStatusMessage"], lifecycle["retrievable"], lifecycle["archivable"], *codes


async def right(system: System, case: Case) -> bool:
    """Whether SciCat says what is true: the dataset is archived, and each job ended as its last run did."""
    first = case.first_code if case.second != case.job else "finishedSuccessful"
    return await state(system, case) == ("datasetOnArchiveDisk", True, False, first, "finishedSuccessful")


RETRIEVED = ("begin-retrieve-job", "begin-retrieve-dataset", "finish-retrieve-dataset", "finish-retrieve-job")
NOT_RETRIEVED = ("begin-retrieve-dataset", "fail-retrieve-dataset", "finish-retrieve-job")
BOTH: tuple[When, When] = ("before", "after")
OF_RETRIEVE_JOBS = ("begin-retrieve-job", "finish-retrieve-job")


async def test_p6_p2_what_a_frozen_step_of_a_retrieval_writes_to_scicat_is_right_after_one_sweep(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    freezer = Freezer(monkeypatch)
    system = await make_system(SHORT)
    async with system.workers(interceptors=[freezer]), freezing(freezer):
        pid = await system.dataset(FILES)
        await system.archive(pid)
        sent: dict[bool, dict[str, list[str]]] = {}
        for good in (True, False):
            freezer.methods.clear()
            await retrieve(system, pid, files=None if good else ["not there"])
            sent[good] = dict(freezer.methods)
        wanted: list[tuple[bool, str, int, When]] = [
            (good, step, n, when)
            for good, names in ((True, RETRIEVED), (False, NOT_RETRIEVED))
            for step in names
            for n, method in enumerate(sent[good][step])
            for when in (BOTH if method != "GET" else BOTH[:1])
        ]
        pids = [await system.dataset(FILES) for _ in wanted]
        await system.archive(*pids)
        cases = []
        for pid, (good, step, n, when) in zip(pids, wanted, strict=True):
            job = await retrieve_job(system, pid, files=None if good else ["not there"])
            freeze = freezer.add(Freeze(step, job if step in OF_RETRIEVE_JOBS else pid, n, when))
            handle = await jobs.start(system.client, job, None, retrieve=True)
            cases.append(Case(freeze, pid, job, handle, good))
        for case in cases:
            case.first_code = (await case.handle.result()).status_code
            assert case.freeze.held.is_set(), f"{case}: the step came to that request"
        seconds = await asyncio.gather(*(retrieve(system, case.pid) for case in cases))
        for case, (job, result) in zip(cases, seconds, strict=True):
            case.second = job
            assert result.status_code == "finishedSuccessful", case
        for case in cases:
            case.freeze.let_go()
        for case in cases:
            await asyncio.wait_for(case.freeze.ended.wait(), 60)
        await until(lambda: idle(system), "nothing runs")
        spoiled = [str(case) for case in cases if not await retrieved_right(system, case)]
        assert spoiled, "the test spoils something"
        await sweep(system)
        assert [str(case) for case in cases if not await retrieved_right(system, case)] == []
        mails = len(system.standin.mails)
        swept, leftovers = await sweep(system)
        assert (swept.corrected, leftovers.corrected, leftovers.problems) == (0, 0, [])
        assert len(system.standin.mails) == mails
        assert await fetched(system, cases[0].second) == FILES


async def retrieved_right(system: System, case: Case) -> bool:
    """Whether SciCat says what is true of a retrieval that was asked for twice, the second time well."""
    lifecycle = await system.lifecycle(case.pid)
    codes = [(await system.job_record(job))["statusCode"] for job in (case.job, case.second)]
    states = lifecycle["retrieveStatusMessage"], lifecycle["retrieveIntegrityCheck"], lifecycle["archiveStatusMessage"]
    return (*states, *codes) == (
        *("datasetRetrieved", True, "datasetOnArchiveDisk"),
        *(case.first_code, "finishedSuccessful"),
    )


async def test_p6_a_process_that_is_stopped_right_before_it_tells_a_jobs_end_tells_nothing_afterwards(
    make_system: MakeSystem,
) -> None:
    """The same with SIGSTOP, once: a request whose answer comes while the process stands still, and the next one."""
    system = await make_system(SHORT)
    pid = await system.dataset(FILES, landed=False)
    job = await system.job(pid)
    # The last thing before the job's end is written is a reading of the job: its answer waits for the stop.
    async with system.workers("workflows,pack,lts"):
        stopped = system.worker("catalogue")
        handle = await system.start_job(job)
        await until(lambda: "inProgress" in [code for one, code in system.standin.mails if one == job])
        reading = Fault("GET", f"/jobs/{job}$", hang_seconds=3, execute=True)
        system.standin.faults.append(reading)
        await until(lambda: reading not in system.standin.faults, "finish-job reads the job")
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            async with system.workers("catalogue"):
                assert (await handle.result()).status_code == "finishedWithDatasetErrors"
                system.put(pid, FILES)
                again = await system.start_job(job)
                assert (await again.result()).status_code == "finishedSuccessful"
                told = list(system.standin.mails)
                os.kill(stopped.pid, signal.SIGCONT)
                await until(lambda: "stood still" in stopped.log.read_text(), "it goes on, and stops")
                await asyncio.sleep(1)
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
        assert system.standin.mails == told, "nothing was written any more"
    assert (await system.job_record(job))["statusCode"] == "finishedSuccessful"
