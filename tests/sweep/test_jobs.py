"""The sweep for jobs: what SciCat's webhook lost is started, once; what nobody works on any more is taken up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError

from archiver.catalogue.standin.app import Fault
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import until
from tests.pipeline.oracle import assert_archived
from tests.pipeline.system import System
from tests.sweep.sweeping import runs, sweeping

FILES = {"a.txt": b"text"}
EVERY_SECOND = {"sweep": {"every_seconds": 1}}
AT_ONCE = {"sweep": {"lost_after_seconds": 0}}


async def open_job(system: System, job_id: str) -> bool:
    """Whether the job's workflow runs."""
    described = await system.client.get_workflow_handle(f"archive-job/{job_id}").describe()
    return described.status == WorkflowExecutionStatus.RUNNING


def told(system: System, job_id: str) -> list[str]:
    """Status codes of the updates of a job: at each of them SciCat mails."""
    return [code for job, code in system.standin.mails if job == job_id]


async def test_p5_a_job_whose_webhook_was_lost_is_started_within_the_sweeps_period_and_once(
    make_system: MakeSystem,
) -> None:
    system = await make_system(EVERY_SECOND)
    system.standin.settings.webhook_url = "http://127.0.0.1:9/"  # nobody listens: the bridge is down
    pid = await system.dataset(FILES)
    body = {"type": "archive", "ownerGroup": "p1", "jobParams": {"datasetList": [{"pid": pid, "files": []}]}}
    answer = await system.http.post("/api/v4/jobs", json=body)
    assert answer.status_code == 201, "SciCat tells its user nothing of the webhook"
    (job,) = [one["id"] for one in system.standin.store.all("jobs")]
    async with system.workers():
        await until(lambda: _finished(system, job))
        await assert_archived(system, pid, FILES)
        first = await swept(system)
        await until(lambda: _swept_since(system, first), "sweeps go on")
    assert len(await runs(system, job)) == 1
    assert told(system, job) == ["inProgress", "finishedSuccessful"]


async def test_two_sweeps_at_once_start_a_job_once(system: System) -> None:
    jobs = [await system.job(await system.dataset(FILES, landed=False)) for _ in range(5)]
    async with sweeping(system, "catalogue") as sweeper:
        await asyncio.gather(sweeper.jobs(), sweeper.jobs())
    for job in jobs:
        assert len(await until(lambda job=job: runs(system, job))) == 1
        assert await open_job(system, job)


@pytest.mark.one_version
async def test_more_submitted_jobs_than_a_list_of_scicat_shows_are_all_started_and_the_oldest_first(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = await make_system()
    pid = await system.dataset(FILES, landed=False)
    jobs = submitted(system, await system.job(pid), 1230)
    # Of the page that is asked for, no more than a hundred come, without a word.
    monkeypatch.setattr("archiver.catalogue.standin.jobs.number", lambda limits, key, default: min(100, default))
    started: list[str] = []
    system.standin.log.clear()
    async with sweeping(system, "catalogue") as sweeper:
        swept = await sweeper.jobs()
        assert (swept.submitted, swept.started, swept.more) == (1230, 1230, False)
        started = [path.rpartition("/")[2] for method, path, _ in system.standin.log if "/jobs/" in path]
        await until(lambda: _listed(system, 1230), "all are listed")  # a sweep of so many is no way to wait for it
        again = await until(lambda: _all_run(sweeper, 1230))
        assert again.started == 0
    assert sorted(started) == sorted(jobs)
    assert all(abs(started.index(job) - number) < 100 for number, job in enumerate(jobs)), "the oldest first"
    found = {one.id async for one in system.client.list_workflows("WorkflowType = 'ArchiveJob'")}
    assert found == {f"archive-job/{job}" for job in jobs}


async def test_jobs_of_others_and_jobs_that_ended_are_left_alone(make_system: MakeSystem) -> None:
    system = await make_system(AT_ONCE)
    pid = await system.dataset(FILES)
    elsewhere = await system.dataset(FILES)
    await patched(system, elsewhere, storageLocation="another")
    others = [
        await system.job(pid, type="public"),
        await system.job(elsewhere),
        await system.job(pid, jobParams={"datasetList": [{"pid": pid, "files": []}], "storageLocation": "another"}),
    ]
    in_progress = await system.job(pid)
    await say(system, in_progress, "inProgress", "Another archive is at it.")
    ended = await system.job(pid)
    await say(system, ended, "finishedUnsuccessful", "It did not work.")
    before = [await system.job_record(job) for job in (*others, in_progress, ended)]
    async with sweeping(system, "catalogue") as sweeper:
        swept = await sweeper.jobs()
    assert (swept.started, swept.restarted, swept.reported, swept.foreign) == (0, 0, 0, 3)
    assert [await system.job_record(job) for job in (*others, in_progress, ended)] == before
    assert [one async for one in system.client.list_workflows("WorkflowType = 'ArchiveJob'")] == []


async def test_a_job_for_later_is_started_and_held_back_until_then(system: System) -> None:
    pid = await system.dataset(FILES)
    when = (datetime.now(UTC) + timedelta(hours=3)).isoformat()
    job = await system.job(jobParams={"datasetList": [{"pid": pid, "files": []}], "executionTime": when})
    async with sweeping(system, "catalogue") as sweeper:
        swept = await sweeper.jobs()
        assert (swept.started, swept.delayed) == (1, 1)
        # It counts as running: no sweep looks at it again before its time.
        assert (await until(lambda: _all_run(sweeper, swept.submitted))).started == 0
    described = await system.client.get_workflow_handle(f"archive-job/{job}").describe()
    assert described.execution_time is not None
    assert described.execution_time - datetime.now(UTC) > timedelta(hours=2)


async def test_a_job_that_is_refused_is_told_so_by_the_workflow_that_the_sweep_starts(make_system: MakeSystem) -> None:
    system = await make_system(EVERY_SECOND)
    pid = await system.dataset(FILES)
    job = system.stored_job(jobParams={"datasetList": [{"pid": pid, "files": ["a.txt"]}]})
    async with system.workers():
        record = await until(lambda: _finished(system, job))
    assert record["statusCode"] == "finishedUnsuccessful"
    assert "lists single files" in record["statusMessage"]


@pytest.mark.parametrize("lost", ["terminated", "forgotten"])
async def test_p5_a_job_in_progress_that_no_workflow_works_on_is_started_again(
    make_system: MakeSystem, lost: str
) -> None:
    system = await make_system(EVERY_SECOND | {"sweep": {"every_seconds": 0, "lost_after_seconds": 0}})
    pid = await system.dataset(FILES)
    job = await lose(system, pid, lost)
    async with sweeping(system, "catalogue") as sweeper:
        assert (await sweeper.jobs()).restarted == 1
    async with system.workers():
        record = await until(lambda: _finished(system, job))
    assert record["statusCode"] == "finishedSuccessful"
    await assert_archived(system, pid, FILES)


@pytest.mark.parametrize("lost", ["terminated", "forgotten"])
async def test_p5_a_lost_job_is_reported_where_the_settings_say_so_and_once(make_system: MakeSystem, lost: str) -> None:
    system = await make_system({"sweep": {"every_seconds": 0, "lost_after_seconds": 0, "lost_jobs": "report"}})
    job = await lose(system, await system.dataset(FILES), lost)
    async with sweeping(system, "catalogue") as sweeper:
        assert [(await sweeper.jobs()).reported for _ in range(2)] == [1, 0]
    record = await system.job_record(job)
    assert record["statusCode"] == "finishedUnsuccessful"
    assert record["statusMessage"].startswith("The archiver lost this job")
    assert next(iter(record["jobResultObject"])) == "summary"
    assert told(system, job)[-2:] == ["inProgress", "finishedUnsuccessful"]


async def test_a_job_that_is_lost_for_a_short_time_only_or_whose_workflow_runs_is_left_alone(
    make_system: MakeSystem,
) -> None:
    system = await make_system({"sweep": {"every_seconds": 0, "lost_after_seconds": 3600}})
    for lost in ("terminated", "forgotten"):
        await lose(system, await system.dataset(FILES), lost)
    running = await system.job(await system.dataset(FILES))
    handle = await system.start_job(running)
    async with system.workers("workflows,catalogue"):
        await until(lambda: told(system, running) == ["inProgress"])
    async with sweeping(system, "catalogue") as sweeper:
        swept = await sweeper.jobs()
        assert (swept.waiting, swept.running, swept.restarted) == (2, 1, 0)
    async with sweeping(system, "catalogue", AT_ONCE) as sweeper:
        assert (await sweeper.jobs()).restarted == 2
    assert len(await runs(system, running)) == 1
    await handle.terminate()


async def test_a_submitted_job_whose_workflow_was_terminated_before_it_began_is_taken_up(
    make_system: MakeSystem,
) -> None:
    system = await make_system(AT_ONCE)
    job = await system.job(await system.dataset(FILES))
    await (await system.start_job(job)).terminate()
    async with sweeping(system, "catalogue") as sweeper:
        swept = await sweeper.jobs()
    assert (swept.started, swept.restarted) == (0, 1)
    assert await open_job(system, job)


async def test_a_dry_run_tells_what_it_would_do_and_changes_nothing(make_system: MakeSystem) -> None:
    system = await make_system(AT_ONCE)
    lost = await lose(system, await system.dataset(FILES), "terminated")
    submitted = await system.job(await system.dataset(FILES))
    async with sweeping(system, "catalogue") as sweeper:
        mails, before = list(system.standin.mails), [await system.job_record(job) for job in (lost, submitted)]
        swept = await sweeper.jobs(dry_run=True)
        assert (swept.started, swept.restarted) == (1, 1)
        assert sorted(swept.lines) == sorted(
            [
                f"{submitted}: would be started",
                f"{lost}: would be restarted (no workflow works on it any more)",
            ]
        )
        assert [await system.job_record(job) for job in (lost, submitted)] == before
        assert system.standin.mails == mails
        assert not await open_job(system, lost)
        assert await runs(system, submitted) == []
        really = await sweeper.jobs()
    assert (really.started, really.restarted) == (1, 1)


async def test_p6_a_sweep_done_twice_does_nothing_the_second_time(make_system: MakeSystem) -> None:
    system = await make_system(AT_ONCE)
    jobs = [
        await lose(system, await system.dataset(FILES), "terminated"),
        await system.job(await system.dataset(FILES)),
    ]
    async with sweeping(system, "catalogue") as sweeper:
        first = await sweeper.jobs()
        second = await sweeper.jobs()
    assert (first.started, first.restarted) == (1, 1)
    assert second.restarted == 0
    for job, times in zip(jobs, (2, 1), strict=True):
        await until(lambda job=job, times=times: _has_runs(system, job, times))


async def test_a_sweep_that_scicat_does_not_answer_fails_and_the_next_one_does_its_work(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = await make_system()
    job = await system.job(await system.dataset(FILES))
    system.standin.faults.append(Fault("GET", "/jobs$", times=10_000, status=400))
    async with sweeping(system, "catalogue") as sweeper:
        with pytest.raises(WorkflowFailureError):
            await sweeper.jobs()
        system.standin.faults.clear()
        assert (await sweeper.jobs()).started == 1
    assert await open_job(system, job)


@pytest.mark.one_version
async def test_one_run_looks_again_and_again_also_after_a_look_that_scicat_did_not_answer(
    make_system: MakeSystem,
) -> None:
    system = await make_system()
    first = await system.job(await system.dataset(FILES))
    system.standin.faults.append(Fault("GET", "/jobs$", times=1, status=400))
    async with sweeping(system, "catalogue") as sweeper:
        sweep = asyncio.create_task(sweeper.jobs(looks=3, every_seconds=3))
        await until(lambda: runs(system, first), "the second look starts it")
        second = await system.job(await system.dataset(FILES))
        done = await sweep
    assert len(await runs(system, second)) == 1
    assert (done.started, [line.partition(":")[0] for line in done.lines]) == (2, [first, second])
    assert await swept(system) == 2


@pytest.mark.one_version
async def test_a_run_whose_last_look_is_not_answered_fails(make_system: MakeSystem) -> None:
    system = await make_system()
    system.standin.faults.append(Fault("GET", "/jobs$", times=10_000, status=400))
    async with sweeping(system, "catalogue") as sweeper:
        with pytest.raises(WorkflowFailureError):
            await sweeper.jobs(looks=2, every_seconds=0.1)


async def test_a_job_that_scicat_chokes_on_keeps_no_other_waiting(make_system: MakeSystem) -> None:
    system = await make_system()
    first, second = [await system.job(await system.dataset(FILES)) for _ in range(2)]
    system.standin.faults.append(Fault("GET", f"/jobs/{first}$", times=10_000, status=500))
    async with sweeping(system, "catalogue") as sweeper:
        swept = await sweeper.jobs()
    assert (swept.started, swept.failed) == (1, 1)
    assert await open_job(system, second)
    assert any(line.startswith(f"{first}: failed") for line in swept.lines)


# --- how a job comes to be lost -----------------------------------------------------------------------------------------


async def lose(system: System, pid: str, how: str) -> str:
    """A job in progress whose workflow was terminated, or is not known to this Temporal at all."""
    job = await system.job(pid)
    if how == "terminated":
        handle = await system.start_job(job)
        async with system.workers():
            await until(lambda: told(system, job) == ["inProgress"])
            await handle.terminate("for the test")
            await until(lambda: _idle(system), "its datasets have stopped")
        return job
    # As begin-job leaves it.
    async with system.workers():
        twin = await system.start_job(other := await system.job(await system.dataset(FILES, landed=False)))
        await until(lambda: told(system, other) == ["inProgress"])
        words = (await system.job_record(other))["statusMessage"]
        await twin.terminate("for the test")
        await until(lambda: _idle(system), "its datasets have stopped")
    await say(system, other, "finishedUnsuccessful", "for the test")
    await say(system, job, "inProgress", words)
    return job


def submitted(system: System, job_id: str, number: int) -> list[str]:
    """So many jobs like this one, submitted one after another; returns the ids of all."""
    record = system.standin.store.get("jobs", job_id)
    assert record is not None
    ids = [job_id]
    for k in range(1, number):
        made = {"id": str(uuid4()), "createdAt": f"2099-01-01T00:{k // 60:02}:{k % 60:02}.000Z"}
        system.standin.store.insert("jobs", made["id"], {**record, **made, "_id": made["id"]})
        ids.append(made["id"])
    return ids


async def say(system: System, job_id: str, code: str, message: str) -> None:
    """Write a job's status."""
    body = {"statusCode": code, "statusMessage": message}
    (await system.http.patch(f"/api/v4/jobs/{job_id}", json=body)).raise_for_status()


async def patched(system: System, pid: str, **fields: Any) -> None:
    """Write a dataset's lifecycle."""
    answer: httpx.Response = await system.http.patch(
        f"/api/v4/datasets/{pid.replace('/', '%2F')}/datasetlifecycle", json=fields
    )
    answer.raise_for_status()


async def _idle(system: System) -> bool:
    return (await system.client.count_workflows("ExecutionStatus = 'Running'")).count == 0


async def _has_runs(system: System, job_id: str, times: int) -> bool:
    return len(await runs(system, job_id)) == times


async def _finished(system: System, job_id: str) -> dict[str, Any] | None:
    record = await system.job_record(job_id)
    return record if record["statusCode"].startswith("finished") else None


async def _listed(system: System, jobs: int) -> bool:
    return (await system.client.count_workflows("WorkflowType = 'ArchiveJob'")).count == jobs


async def _all_run(sweeper: Any, jobs: int) -> Any:
    swept = await sweeper.jobs()
    return swept if swept.running == jobs else None


async def swept(system: System) -> int:
    """How often sweeps have looked: one run looks many times."""
    looks = 0
    async for one in system.client.list_workflows("WorkflowType = 'Sweep'"):
        history = await system.client.get_workflow_handle(one.id, run_id=one.run_id).fetch_history()
        looks += sum(event.HasField("activity_task_completed_event_attributes") for event in history.events)
    return looks


async def _swept_since(system: System, before: int) -> bool:
    return await swept(system) > before + 1
