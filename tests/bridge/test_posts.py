"""Jobs that come in over HTTP: started once each, by whatever shape of post, or refused in words."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowExecutionStatus

from archiver.catalogue.standin.app import Fault
from archiver.pids import workflow_id
from tests.bridge.edge import BASIC, BEARER, Bridge, is_problem
from tests.pipeline.system import System

FILES = {"a.txt": b"hello"}
RUNNING = WorkflowExecutionStatus.RUNNING


async def a_job(system: System, **params: Any) -> str:
    """A job over one dataset without files, with these jobParams."""
    pid = await system.dataset(FILES, landed=False)
    return await system.job(jobParams={"datasetList": [{"pid": pid, "files": []}], **params})


async def test_the_references_post_with_basic_authentication_starts_the_workflow(
    system: System, bridge: Bridge
) -> None:
    job = await a_job(system)
    answer = await bridge.http.post(
        "/api/v1/jobs", json={"id": job, "type": "archive"}, headers={"Authorization": BASIC}
    )
    assert (answer.status_code, answer.json()) == (201, {"uuid": job, "name": f"archive-job/{job}"})
    described = await bridge.workflow(job)
    assert described is not None
    assert described.status == RUNNING


@pytest.mark.parametrize("shape", ["v4", "v3", "_id", "Id", "id alone", "upper case"])
async def test_every_shape_of_a_job_is_taken(system: System, bridge: Bridge, shape: str) -> None:
    job = await a_job(system)
    body = {
        "v4": await system.job_record(job),
        "v3": (await system.http.get(f"/api/v3/jobs/{job}")).json(),
        "_id": {"_id": job},
        "Id": {"Id": job, "Type": "archive"},
        "id alone": {"id": job},
        "upper case": {"id": job.upper(), "type": "archive"},
    }[shape]
    assert (await bridge.post(body)).json() == {"uuid": job, "name": f"archive-job/{job}"}
    assert await bridge.workflow(job) is not None


async def test_of_a_body_only_the_id_is_believed(system: System, bridge: Bridge) -> None:
    ours, theirs = await a_job(system), await a_job(system, storageLocation="elsewhere")
    lies = {"type": "retrieve", "statusCode": "finishedSuccessful", "jobParams": {"datasetList": []}}
    assert (await bridge.post({**await system.job_record(ours), **lies})).status_code == 201
    pretends = {**await system.job_record(theirs), "jobParams": {"storageLocation": "archive"}}
    is_problem(await bridge.post(pretends), 422, "another archive")
    assert await bridge.workflow(theirs) is None


async def test_scicats_webhook_starts_the_job_inside_of_the_users_post(system: System, bridge: Bridge) -> None:
    settings = system.standin.settings
    settings.webhook_url, settings.webhook_auth = f"{bridge.url}/api/v1/jobs", BEARER
    try:
        job = await a_job(system)
        assert await bridge.workflow(job) is not None
        listed = [{"pid": await system.dataset(FILES, landed=False), "files": []}]
        refused = await system.http.post(
            "/api/v4/jobs", json={"type": "public", "ownerGroup": "p1", "jobParams": {"datasetList": listed}}
        )
        assert refused.status_code == 201  # what the bridge answered is not handed on
    finally:
        settings.webhook_url = ""


# --- once ---------------------------------------------------------------------------------------------------------------


async def test_p6_a_job_posted_many_times_at_once_is_started_once_and_all_get_the_same_answer(
    system: System, bridge: Bridge
) -> None:
    job = await a_job(system)
    answers = await asyncio.gather(*(bridge.post({"id": job, "type": "archive"}) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.text for answer in answers} == {answers[0].text}
    first = await bridge.workflow(job)
    await bridge.taken(job)
    again = await bridge.workflow(job)
    assert first is not None
    assert again is not None
    assert first.run_id == again.run_id


async def test_p6_a_webhook_replayed_after_the_jobs_end_gets_the_same_answer_and_starts_nothing(
    system: System, bridge: Bridge
) -> None:
    pid = await system.dataset(FILES)
    job = await system.job(pid)
    name = await bridge.taken(job)
    async with system.workers():
        await system.client.get_workflow_handle(name).result()
    ended, mails = await bridge.workflow(job), len(system.standin.mails)
    assert await bridge.taken(job) == name
    after = await bridge.workflow(job)
    assert ended is not None
    assert after is not None
    assert (after.run_id, after.status) == (ended.run_id, WorkflowExecutionStatus.COMPLETED)
    assert len(system.standin.mails) == mails


async def test_a_job_that_ended_in_temporal_while_scicat_calls_it_submitted_is_started_again(
    system: System, bridge: Bridge
) -> None:
    job = await a_job(system)
    name = await bridge.taken(job)
    await system.client.get_workflow_handle(name).terminate("lost")
    await bridge.taken(job)
    described = await bridge.workflow(job)
    assert described is not None
    assert described.status == RUNNING


async def test_a_job_in_progress_whose_workflow_ended_is_the_sweeps_and_not_a_replayed_webhooks(
    system: System, bridge: Bridge
) -> None:
    job = await a_job(system)
    name = await bridge.taken(job)
    in_progress = {"statusCode": "inProgress", "statusMessage": "Archiving 1 dataset."}
    (await system.http.patch(f"/api/v4/jobs/{job}", json=in_progress)).raise_for_status()
    await system.client.get_workflow_handle(name).terminate("lost")
    assert await bridge.taken(job) == name
    described = await bridge.workflow(job)
    assert described is not None
    assert described.status == WorkflowExecutionStatus.TERMINATED


# --- not ours, or not there -----------------------------------------------------------------------------------------------


async def test_a_job_of_another_type_is_refused_and_left_alone(system: System, bridge: Bridge) -> None:
    job = await system.job(await system.dataset(FILES, landed=False), type="public")
    before = await system.job_record(job)
    told = is_problem(await bridge.post({"id": job, "type": "archive"}), 422, "'archive' or 'retrieve'", "'public'")
    assert told["type"] == "urn:archiver:ForeignJob"
    assert "name" not in told
    assert await bridge.workflow(job) is None
    assert await system.job_record(job) == before


async def test_a_job_whose_datasets_belong_to_another_archive_is_refused_and_left_alone(
    system: System, bridge: Bridge
) -> None:
    elsewhere = {"datasetlifecycle": {"storageLocation": "elsewhere"}}
    theirs = [await system.dataset(FILES, landed=False, more=elsewhere) for _ in range(2)]
    job = await system.job(
        *theirs, jobParams={"datasetList": [{"pid": pid, "files": []} for pid in theirs], "tapeCopies": "two"}
    )
    told = is_problem(await bridge.post({"id": job}), 422, "belong to another archive", "'elsewhere'")
    assert told["type"] == "urn:archiver:ForeignJob"
    assert await bridge.workflow(job) is None
    mixed = await system.job(theirs[0], await system.dataset(FILES, landed=False))
    await bridge.taken(mixed)


async def test_p7_a_dataset_whose_record_cannot_be_read_does_not_keep_its_job_out(
    system: System, bridge: Bridge
) -> None:
    pid = await system.dataset(FILES, landed=False)
    record = system.standin.store.get("datasets", pid)
    assert record is not None
    system.standin.store.put("datasets", pid, {**record, "datasetlifecycle": {"storageLocation": 7}})
    job = await system.job(pid)
    await bridge.taken(job)
    assert await bridge.workflow(job) is not None


async def test_an_unknown_job_is_a_404(system: System, bridge: Bridge) -> None:
    job = str(uuid4())
    is_problem(await bridge.post({"id": job, "type": "archive"}), 404, f"SciCat knows no job {job}")
    assert await bridge.workflow(job) is None


async def test_a_job_deleted_between_webhook_and_read_is_a_404_and_starts_nothing(
    system: System, bridge: Bridge
) -> None:
    job = await a_job(system)
    body = await system.job_record(job)
    system.standin.store.delete("jobs", job)
    is_problem(await bridge.post(body), 404, f"SciCat knows no job {job}")
    assert await bridge.workflow(job) is None


async def test_a_job_whose_webhook_is_ahead_of_scicats_database_is_asked_for_again(
    system: System, bridge: Bridge
) -> None:
    job = await a_job(system)
    unknown = {"status": 400, "message": "Invalid job id."}
    system.standin.faults.append(Fault("GET", job, times=2, status=400, body=unknown))
    await bridge.taken(job)


# --- what jobs carry --------------------------------------------------------------------------------------------------------

CARRIED = [
    pytest.param({"tapeCopies": "two"}, "tapeCopies", id="copies"),
    pytest.param({"landingZone": "/data/x"}, "landingZone", id="landing zone"),
    pytest.param({"executionTime": "soon"}, "executionTime", id="time"),
    pytest.param({"datasetList": []}, "names no dataset", id="no dataset"),
    pytest.param({"datasetList": [{"pid": 7, "files": []}]}, "is not as expected", id="list unreadable"),
]


@pytest.mark.parametrize(("params", "said"), CARRIED)
async def test_what_is_not_honoured_is_refused_in_words_and_scicat_is_told_so_once(
    system: System, bridge: Bridge, params: dict[str, Any], said: str
) -> None:
    job = await a_job(system)
    record = await system.job_record(job)
    # Straight into the store: SciCat itself refuses some of it today.
    system.standin.store.put("jobs", job, {**record, "jobParams": {**record["jobParams"], **params}})
    told = is_problem(await bridge.post({"id": job}), 422, said)
    assert told["name"] == workflow_id("archive-job", job)
    assert told["next"]
    async with system.workers("workflows,catalogue"):
        with pytest.raises(Exception, match="Workflow execution failed"):
            await system.client.get_workflow_handle(told["name"]).result()
    ended = await system.job_record(job)
    assert ended["statusCode"] == "finishedUnsuccessful"
    assert said in ended["statusMessage"]
    is_problem(await bridge.post({"id": job}), 422, said)
    assert [code for one, code in system.standin.mails if one == job] == ["finishedUnsuccessful"]


@pytest.mark.parametrize("by_hand", [False, True])
async def test_p5_an_execution_time_is_kept_over_a_kill_of_the_bridge_and_for_a_job_started_by_hand(
    system: System, by_hand: bool
) -> None:
    due = datetime.now(UTC) + timedelta(seconds=8)
    pid = await system.dataset(FILES)
    job = await system.job(jobParams={"datasetList": [{"pid": pid, "files": []}], "executionTime": due.isoformat()})
    if by_hand:
        handle = await system.start_job(job)
    else:
        first = Bridge(system)
        try:
            handle = system.client.get_workflow_handle(await first.start().taken(job))
            first.child.kill()
            first.start()
            await first.taken(job)
        finally:
            await first.stop()
    async with system.workers():
        assert (await handle.result()) is not None
    assert (await system.job_record(job))["statusCode"] == "finishedSuccessful"
    history = await system.client.get_workflow_handle(workflow_id("archive-job", job)).fetch_history()
    step = EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
    done = next(event.event_time.ToDatetime(UTC) for event in history.events if event.event_type == step)
    assert done >= due
