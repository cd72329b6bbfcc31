"""The operator's hand: cancel, retry, abandon; who and why are kept, and SciCat's users read them."""

from __future__ import annotations

import getpass
import json

import pytest
from temporalio.client import WorkflowExecutionStatus

from archiver.catalogue.standin.app import Fault
from tests.operators.conftest import Run
from tests.operators.test_status import FILES, SMALL, waiting_for_space
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import dataset_workflow, full_lts, on_lts, until
from tests.pipeline.system import System

JOB = "7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11"


async def test_cancel_stops_a_job_and_scicat_says_who_and_why(served: System, run: Run) -> None:
    pid = await served.dataset(FILES)
    with full_lts(served):
        job = await served.job(pid)
        handle = await served.start_job(job)
        await waiting_for_space(served, pid)
        ended = await run(served, "cancel", job, "--reason", "beam time over", "--who", "anna")
        assert ended.returncode == 0, ended.stderr
        await handle.result()
    assert "Stopped by anna (beam time over)" in (await served.job_record(job))["statusMessage"]
    assert (await served.lifecycle(pid))["archiveReturnMessage"]["stoppedBy"] == "anna"
    again = await run(served, "cancel", job, "--reason", "again")
    assert again.returncode == 6
    assert "does not run: there is nothing to stop" in again.stderr


async def test_who_asks_is_the_user_on_this_host_where_nobody_says(served: System, run: Run) -> None:
    pid = await served.dataset(FILES)
    with full_lts(served):
        handle = await served.start_job(await served.job(pid))
        await waiting_for_space(served, pid)
        ended = await run(served, "--json", "cancel", pid, "--reason", "wrong dataset")
        await handle.result()
    assert json.loads(ended.stdout)["who"].startswith(f"{getpass.getuser()}@")


async def test_p3_retry_takes_a_cancelled_dataset_up_again_and_uses_what_was_verified(
    make_system: MakeSystem, run: Run
) -> None:
    system = await make_system({"datablock": {"target_bytes": 2**20}, "archive": {"datablocks_at_once": 1}})
    pid = await system.dataset({**FILES, "b.bin": bytes(2**20)})
    async with system.workers():
        with full_lts(system, now=False) as fill:
            job = await system.job(pid)
            handle = await system.start_job(job)
            await until(lambda: on_lts(system, pid).get("1.manifest.jsonl.gz"))
            fill()
            running = await run(system, "retry", job)
            assert (running.returncode, "still runs" in running.stderr) == (6, True)
            await dataset_workflow(system, pid).signal("cancel", {"reason": "later", "who": "ben"})
            await handle.result()
        before = on_lts(system, pid)
        ended = await run(system, "retry", pid)
        assert ended.returncode == 0, ended.stderr
        result = await system.client.get_workflow_handle(f"archive-job/{job}").result()
    assert result["status_code"] == "finishedSuccessful"
    assert on_lts(system, pid)["1.tar.gz"] == before["1.tar.gz"], "the verified datablock is the same file"


async def test_retry_of_a_job_over_some_datasets_is_over_the_same(served: System, run: Run) -> None:
    one, other = await served.dataset(SMALL), await served.dataset(SMALL)
    job = await served.job(one, other)
    await (await served.start_job(job, [one])).result()
    assert json.loads((await run(served, "--json", "retry", job)).stdout)["pids"] == [one]
    result = await served.client.get_workflow_handle(f"archive-job/{job}").result()
    assert result["counts"]["archived"] + result["counts"]["already_archived"] == 1


async def test_retry_of_a_dataset_is_that_datasets_and_says_who_and_why(served: System, run: Run) -> None:
    good, bad, other = [await served.dataset(SMALL, landed=landed) for landed in (True, False, False)]
    job = await served.job(good, bad, other)
    await (await served.start_job(job)).result()
    served.put(bad, SMALL)
    ended = await run(served, "--json", "retry", bad, "--reason", "files are there now", "--who", "anna")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["pids"] == [bad]
    handle = served.client.get_workflow_handle(f"archive-job/{job}")
    assert (await handle.result())["counts"]["archived"] == 1
    assert await (await handle.describe()).memo() == {"asked_by": "anna", "reason": "files are there now"}
    status = await run(served, "status", job)
    assert "taken up again by anna: files are there now" in status.stdout
    runs = [row async for row in served.client.list_workflows(f"WorkflowId = 'archive-dataset/{other}'")]
    assert len(runs) == 1, "the job's other failed dataset was not touched"


async def test_an_abandoned_dataset_is_not_run_again_by_a_retry_of_its_job(served: System, run: Run) -> None:
    left, bad = await served.dataset(FILES), await served.dataset(SMALL, landed=False)
    with full_lts(served):
        job = await served.job(left, bad)
        handle = await served.start_job(job)
        await waiting_for_space(served, left)
        ended = await run(served, "abandon", left, "--reason", "withdrawn", "--who", "anna")
        assert ended.returncode == 0, ended.stderr
        await handle.result()
    served.put(bad, SMALL)

    async def listed() -> bool:
        query = f"WorkflowId = 'archive-dataset/{left}' AND ExecutionStatus != 'Running' AND Stage = 'stopped'"
        return (await served.client.count_workflows(query)).count == 1

    await until(listed, "the list is not behind")
    again = await run(served, "--json", "retry", job)
    assert again.returncode == 0, again.stderr
    assert (json.loads(again.stdout)["pids"], json.loads(again.stdout)["abandoned"]) == ([bad], [left])
    assert f"{left} was abandoned: left alone" in again.stderr
    result = await served.client.get_workflow_handle(f"archive-job/{job}").result()
    assert result["counts"]["archived"] + result["counts"]["already_archived"] == 1
    assert (await served.lifecycle(left))["archiveStatusMessage"] != "datasetOnArchiveDisk"
    named = await run(served, "--json", "retry", left)
    assert named.returncode == 0, named.stderr
    await served.client.get_workflow_handle(f"archive-job/{job}").result()
    assert (await served.lifecycle(left))["archiveStatusMessage"] == "datasetOnArchiveDisk"


async def test_abandon_lets_clean_up_what_can(served: System, run: Run) -> None:
    pid = await served.dataset(FILES)
    with full_lts(served):
        job = await served.job(pid)
        handle = await served.start_job(job)
        await waiting_for_space(served, pid)
        ended = await run(served, "--json", "abandon", job, "--reason", "withdrawn", "--who", "anna")
        assert ended.returncode == 0, ended.stderr
        await handle.result()
    assert json.loads(ended.stdout)["terminated"] == []
    assert "Stopped by anna (abandoned: withdrawn)" in (await served.job_record(job))["statusMessage"]


async def test_abandon_ends_what_cannot_clean_up_and_tells_scicat(make_system: MakeSystem, run: Run) -> None:
    """The LTS workers are gone for good: a roll-back would wait for them for days."""
    system = await make_system()
    pid = await system.dataset(FILES)
    job = await system.job(pid)
    async with system.workers("workflows,catalogue,pack"):
        await system.start_job(job)
        await system.pending("survey-lts", "archive-dataset", pid)
        ended = await run(
            system, "--json", "abandon", job, "--reason", "no LTS any more", "--who", "anna", "--within", "1"
        )
        assert ended.returncode == 0, ended.stderr
    assert set(json.loads(ended.stdout)["terminated"]) == {f"archive-job/{job}", f"archive-dataset/{pid}"}
    for name in (f"archive-job/{job}", f"archive-dataset/{pid}"):
        described = await system.client.get_workflow_handle(name).describe()
        assert described.status == WorkflowExecutionStatus.TERMINATED
    record = await system.job_record(job)
    assert record["statusCode"] == "finishedUnsuccessful"
    assert "Stopped by anna (abandoned: no LTS any more)" in record["statusMessage"]
    lifecycle = await system.lifecycle(pid)
    assert lifecycle["archivable"] is True
    assert lifecycle["archiveReturnMessage"]["stoppedBy"] == "anna"
    status = await run(system, "status", job)
    assert "terminated by " in status.stdout
    assert "abandoned: no LTS any more [asked by anna]" in status.stdout


async def test_abandoned_is_said_also_where_scicat_cannot_be_told(make_system: MakeSystem, run: Run) -> None:
    system = await make_system()
    pid = await system.dataset(FILES)
    job = await system.job(pid)
    async with system.workers("workflows,catalogue,pack"):
        await system.start_job(job)
        await system.pending("survey-lts", "archive-dataset", pid)
        system.standin.faults.append(Fault("PATCH", "/", status=503, times=10**6))
        ended = await run(system, "abandon", job, "--reason", "no LTS any more", "--within", "0")
    assert ended.returncode == 7, ended.stdout
    assert "SciCat could not be told" in ended.stderr
    described = await system.client.get_workflow_handle(f"archive-job/{job}").describe()
    assert described.status == WorkflowExecutionStatus.TERMINATED


@pytest.mark.parametrize(
    "command", [["cancel", "--reason", "x"], ["abandon", "--reason", "x"], ["retry"], ["status"], ["watch"]]
)
@pytest.mark.parametrize("ref", [JOB, "20.500.12345/none", "no such thing", "x" * 2000, "archive-job/", "'; drop", ""])
async def test_what_is_not_known_is_5_and_one_message(served: System, run: Run, command: list[str], ref: str) -> None:
    ended = await run(served, command[0], "--", ref) if len(command) == 1 else await run(served, *command, "--", ref)
    assert ended.returncode == 5, ended.stderr
    assert ended.stdout == ""
    assert [row.split()[0] for row in ended.stderr.splitlines()] == ["error", "expected", "found", "next"]


async def test_a_datablock_is_not_stopped_alone(served: System, run: Run) -> None:
    pid = await served.dataset(SMALL)
    await served.archive(pid)
    ended = await run(served, "cancel", f"archive-datablock/{pid}/1", "--reason", "x")
    assert ended.returncode == 6
    assert f"archiver cancel {pid}" in ended.stderr
