"""Many jobs posted at once: each is read and answered, and nobody waits for the others' starts."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus

from activities.connection import Unreachable
from archiver.settings import Settings
from bridge import intake as module
from bridge.intake import MANY_STARTS, STARTS_AT_ONCE, Intake
from tests.bridge.edge import Bridge
from tests.pipeline.system import System

JOBS = [f"7b7e4bd2-1c39-4f3d-9a58-{k:012x}" for k in range(300)]


class Temporal:
    """Starts as many as it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.most_at_once = self.at_once = 0
        self.lets = asyncio.Semaphore(0)
        self.gone = False

    async def client(self) -> Temporal:
        return self

    async def start(self, client: object, job_id: str, **more: object) -> None:
        self.asked.append(job_id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.lets.acquire()
            if self.gone:
                raise Unreachable("Temporal does not answer")
        finally:
            self.at_once -= 1


@pytest.fixture
def temporal(monkeypatch: pytest.MonkeyPatch) -> Temporal:
    made = Temporal()
    monkeypatch.setattr(module, "start_job", made.start)
    monkeypatch.setattr(module, "refuse_foreign_type", lambda job, archive: None)
    monkeypatch.setattr(module, "refuse_foreign_datasets", lambda *args: None)
    admission = SimpleNamespace(not_before=None, delay=lambda now: None)
    monkeypatch.setattr(module, "admit_any", lambda job, settings, now: admission)
    return made


def taking(temporal: Temporal) -> Intake:
    async def job(job_id: str, **more: object) -> Any:
        return SimpleNamespace(id=job_id, type="archive", status_code="jobSubmitted", datasets=[])

    async def some_jobs(job_ids: list[str]) -> dict[str, Any]:
        return {one: await job(one) for one in job_ids}

    scicat: Any = SimpleNamespace(job=job, some_jobs=some_jobs)
    return Intake(Settings(), scicat, temporal)  # type: ignore[arg-type]


async def test_of_many_at_once_nobody_waits_for_the_others_starts_and_all_are_started(temporal: Temporal) -> None:
    intake = taking(temporal)
    posts = [asyncio.create_task(intake.take(job, wait=False)) for job in JOBS]
    # Nothing is answered before Temporal is seen to start anything.
    done, _ = await asyncio.wait(posts, timeout=0.5)
    assert not done
    temporal.lets.release()
    done, waiting = await asyncio.wait(posts, timeout=2)
    assert not waiting
    assert sum(task.result().queued for task in done) == len(JOBS) - 1
    for _ in JOBS:
        temporal.lets.release()
    await asyncio.gather(*posts)
    await intake.finish()
    assert sorted(temporal.asked) == sorted(JOBS)
    assert temporal.most_at_once <= STARTS_AT_ONCE


async def test_a_few_at_once_wait_for_their_start(temporal: Temporal) -> None:
    intake = taking(temporal)
    posts = [asyncio.create_task(intake.take(job, wait=False)) for job in JOBS[:MANY_STARTS]]
    for _ in posts:
        await asyncio.sleep(0.01)
        temporal.lets.release()
    assert not any(taken.queued for taken in await asyncio.gather(*posts))


async def test_while_temporal_starts_nothing_everybody_waits_and_is_told_so(temporal: Temporal) -> None:
    intake, temporal.gone = taking(temporal), True
    posts = [asyncio.create_task(intake.take(job, wait=False)) for job in JOBS]
    for _ in JOBS:
        temporal.lets.release()
    results = await asyncio.gather(*posts, return_exceptions=True)
    assert all(isinstance(result, Unreachable) for result in results)


async def test_who_acknowledges_a_message_waits_for_its_start(temporal: Temporal) -> None:
    intake = taking(temporal)
    posts = [asyncio.create_task(intake.take(job)) for job in JOBS]
    temporal.lets.release()
    done, waiting = await asyncio.wait(posts, timeout=1)
    assert (len(done), len(waiting)) == (1, len(JOBS) - 1)
    for _ in JOBS:
        temporal.lets.release()
    assert not any(taken.queued for taken in await asyncio.gather(*posts))


async def test_300_jobs_posted_at_once_are_all_taken_and_started(system: System) -> None:
    bridge = Bridge(system, answer_seconds=60.0)
    pid = await system.dataset({"a.txt": b"1"}, landed=False)
    jobs = [await system.job(pid) for _ in range(300)]
    try:
        bridge.start()
        answers = await asyncio.gather(*(bridge.post({"id": job, "type": "archive"}) for job in jobs))
        assert {answer.status_code for answer in answers} <= {201, 202}
        assert [answer.json()["name"] for answer in answers] == [f"archive-job/{job}" for job in jobs]
        for job in jobs:
            async with asyncio.timeout(90):
                while (described := await bridge.workflow(job)) is None:
                    await asyncio.sleep(0.1)
            assert described.status == WorkflowExecutionStatus.RUNNING
            await system.client.get_workflow_handle(described.id).terminate("test")
    finally:
        await bridge.stop()
