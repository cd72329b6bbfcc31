"""A dataset that was deleted from SciCat: its job's other datasets are archived, and nothing goes on for ever.

SciCat answers every PATCH of such a job with 404, for everybody. So its workflow fails with a sentence that says so.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import ApplicationError

from archiver.catalogue.standin.app import Fault
from tests.operators.inside import inside
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import dataset_workflow, full_lts, stage, until
from tests.pipeline.oracle import assert_archived
from tests.pipeline.system import System
from tests.sweep.sweeping import runs, sweeping
from workflows.visible import STAGE

FILES = {"a.txt": b"text"}
SENTENCE = "SciCat refuses every status of job {job}, because its dataset {pid} was deleted"
AT_ONCE = {"sweep": {"every_seconds": 0, "lost_after_seconds": 0}}


async def delete(system: System, pid: str) -> None:
    """As a person does it in SciCat."""
    (await system.http.delete(f"/api/v3/datasets/{quote(pid, safe='')}")).raise_for_status()


async def failure(system: System, job: str) -> ApplicationError:
    """What the job's workflow failed with."""
    with pytest.raises(WorkflowFailureError) as failed:
        await system.client.get_workflow_handle(f"archive-job/{job}").result()
    cause = failed.value.cause
    assert isinstance(cause, ApplicationError)
    return cause


async def test_p7_the_other_datasets_of_a_job_whose_dataset_was_deleted_are_archived_and_the_end_says_so(
    served: System,
) -> None:
    deleted, other = await served.dataset(FILES), await served.dataset(FILES)
    job = await served.job(deleted, other)
    await delete(served, deleted)
    await served.start_job(job)
    cause = await failure(served, job)
    assert cause.type == "JobNotWritable"
    assert cause.message.startswith(SENTENCE.format(job=job, pid=deleted))
    assert "finishedWithDatasetErrors: 2 datasets: 1 archived, 1 not archived" in cause.message
    assert f"SciCat knows no dataset {deleted}" in cause.message
    await assert_archived(served, other, FILES)
    progress = await served.client.get_workflow_handle(f"archive-job/{job}").query("progress")
    outcomes = {one["pid"]: one for one in progress["outcomes"]}
    assert outcomes[other]["outcome"] == "archived"
    assert "it was deleted after the job was made" in outcomes[deleted]["message"]
    assert (await served.job_record(job))["statusCode"] == "jobSubmitted", "SciCat takes nothing"


async def test_jobs_failed_lists_it_with_that_sentence(served: System) -> None:
    pid = await served.dataset(FILES)
    job = await served.job(pid)
    await delete(served, pid)
    await served.start_job(job)
    await failure(served, job)

    async def listed() -> str:
        ended = await inside(served.config, "jobs", "--failed", "--limit", "50")
        return ended.out if job in ended.out else ""

    shown = await until(listed)
    after = shown.partition(job)[2].splitlines()
    assert "FAILED" in after[0]
    assert SENTENCE.format(job=job, pid=pid) in after[1]
    rows = json.loads((await inside(served.config, "--json", "jobs", "--failed", "--limit", "50")).out)["jobs"]
    (row,) = [one for one in rows if one["job"] == job]
    assert row["message"].startswith(SENTENCE.format(job=job, pid=pid))
    assert row["stage"] == "not told"


@pytest.mark.parametrize("when", ["finish-dataset", "register-datablocks"])
async def test_p5_a_dataset_that_is_deleted_while_it_is_archived_ends_too(make_system: MakeSystem, when: str) -> None:
    system = await make_system()
    pid, other = await system.dataset(FILES), await system.dataset(FILES)
    job = await system.job(pid, other)
    async with system.workers("workflows,catalogue,pack"):
        await system.start_job(job)
        await system.pending("survey-lts", "archive-dataset", pid)
        path = "/datasetlifecycle$" if when == "finish-dataset" else "/datablocks/count$"
        held = Fault("PATCH" if when == "finish-dataset" else "GET", f"{pid}{path}", times=1, hang_seconds=2)
        system.standin.faults.append(held)
        async with system.workers("lts"):
            await until(lambda: held not in system.standin.faults)
            await delete(system, pid)
            cause = await failure(system, job)
    assert cause.type == "JobNotWritable"
    assert "1 archived" in cause.message
    assert (await dataset_workflow(system, pid).describe()).status == WorkflowExecutionStatus.COMPLETED
    assert (await dataset_workflow(system, pid).result())["error"]["type"] == "UnknownDataset"
    await assert_archived(system, other, FILES)


async def test_a_404_to_a_job_whose_datasets_are_all_there_is_tried_again(served: System) -> None:
    pid = await served.dataset(FILES)
    job = await served.job(pid)
    body = {"message": f'Unable to get a dataset. (["{pid}"])', "statusCode": 404}
    served.standin.faults.append(Fault("PATCH", f"/jobs/{job}$", times=4, status=404, body=body))
    assert (await (await served.start_job(job)).result()).status_code == "finishedSuccessful"


async def test_cancel_ends_a_job_whose_dataset_was_deleted(served: System) -> None:
    deleted, other = await served.dataset(FILES), await served.dataset(FILES)
    job = await served.job(deleted, other)
    await delete(served, deleted)
    with full_lts(served):
        await served.start_job(job)
        await until(lambda: stage(served, other), "its datablock is begun")
        assert (await inside(served.config, "cancel", job, "--reason", "not wanted", "--who", "anna")).code == 0
        cause = await failure(served, job)
    assert "Stopped by anna (not wanted)" in cause.message
    assert SENTENCE.format(job=job, pid=deleted) in cause.message


async def test_abandon_says_that_scicat_lets_nobody_end_the_job_and_no_sweep_starts_it_again(
    make_system: MakeSystem,
) -> None:
    system = await make_system(AT_ONCE)
    deleted, other = await system.dataset(FILES), await system.dataset(FILES)
    job = await system.job(deleted, other)
    async with system.workers("workflows,catalogue,pack"):
        await system.start_job(job)
        await system.pending("survey-lts", "archive-dataset", other)
        await delete(system, deleted)
        ended = await inside(system.config, "abandon", job, "--reason", "no LTS", "--within", "0")
    assert ended.code == 0, ended.err
    assert SENTENCE.format(job=job, pid=deleted) in ended.out
    async with sweeping(system, "catalogue") as sweeper:
        for _ in range(2):
            swept = await sweeper.jobs()
            assert (swept.restarted, swept.reported, swept.failed, swept.untold) == (0, 0, 0, 1)
    assert len(await runs(system, job)) == 1


@pytest.mark.parametrize("code", ["jobSubmitted", "inProgress"])
async def test_the_sweep_starts_a_job_whose_dataset_was_deleted_once_and_never_again(
    make_system: MakeSystem, code: str
) -> None:
    system = await make_system(AT_ONCE)
    deleted, other = await system.dataset(FILES), await system.dataset(FILES)
    job = await system.job(deleted, other)
    if code == "inProgress":
        body = {"statusCode": code, "statusMessage": "Archiving 2 datasets."}
        (await system.http.patch(f"/api/v4/jobs/{job}", json=body)).raise_for_status()
    await delete(system, deleted)
    async with sweeping(system, "catalogue") as sweeper:
        swept = await sweeper.jobs()
        assert swept.started + swept.restarted == 1
    async with system.workers():
        await failure(system, job)
    await assert_archived(system, other, FILES)
    async with sweeping(system, "catalogue") as sweeper:
        for _ in range(3):
            swept = await sweeper.jobs()
            assert (swept.started, swept.restarted, swept.reported, swept.failed) == (0, 0, 0, 0)
    # As it is once Temporal has forgotten the workflow.
    old = (datetime.now(UTC) - timedelta(days=40)).isoformat()
    record = system.standin.store.get("jobs", job)
    assert record is not None
    system.standin.store.put("jobs", job, record | {"createdAt": old})
    await _forget(system, job)
    async with sweeping(system, "catalogue") as sweeper:
        swept = await sweeper.jobs()
        assert (swept.started, swept.restarted, swept.untold) == (0, 0, 1)


async def test_a_job_that_ended_well_has_no_message_in_the_list_and_stands_by_its_status(served: System) -> None:
    pid = await served.dataset(FILES)
    job = await served.job(pid)
    await (await served.start_job(job)).result()
    described = await served.client.get_workflow_handle(f"archive-job/{job}").describe()
    assert await described.memo() == {}
    assert described.typed_search_attributes.get(STAGE) == "finishedSuccessful"


async def _forget(system: System, job: str) -> None:
    """Temporal deletes the job's workflow, as at the end of its retention."""
    from temporalio.api.common.v1 import WorkflowExecution
    from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest

    handle = system.client.get_workflow_handle(f"archive-job/{job}")
    described = await handle.describe()
    await system.client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace=system.namespace,
            workflow_execution=WorkflowExecution(workflow_id=described.id, run_id=described.run_id),
        )
    )

    async def gone() -> bool:
        return not await runs(system, job)

    await until(gone, "Temporal has forgotten it")
