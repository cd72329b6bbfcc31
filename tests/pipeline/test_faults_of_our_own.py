"""Errors in our own code, signals that carry nonsense, and pids of any length: jobs reach their end all the same."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus

from archiver import model as m
from archiver.catalogue import payloads
from archiver.pids import workflow_id
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import until
from tests.pipeline.oracle import assert_archived
from tests.pipeline.system import System
from tests.sweep.sweeping import sweeping
from workflows import steps
from workflows.visible import PID

FILES = {"a.txt": b"text"}


@pytest.mark.parametrize("of", ["job_result", "lifecycle_archived"])
async def test_p5_a_type_error_while_scicat_is_told_leaves_no_job_in_progress(
    served: System, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    real, times = getattr(payloads, of), [2]

    def broken(*given: Any, **how: Any) -> Any:
        if times[0]:
            times[0] -= 1
            raise TypeError("unsupported operand")
        return real(*given, **how)

    monkeypatch.setattr(payloads, of, broken)
    pid = await served.dataset(FILES)
    job = await served.job(pid)
    assert (await (await served.start_job(job)).result()).status_code == "finishedSuccessful"
    assert times == [0]
    assert (await served.job_record(job))["statusCode"] == "finishedSuccessful"
    await assert_archived(served, pid, FILES)


@pytest.mark.parametrize("carried", [[], [None], ["nonsense"], [{"a": 1}, 2, 3], [{"workflow_id": ["x"]}]])
async def test_a_subscribe_signal_that_carries_nonsense_stalls_no_sweep(
    make_system: MakeSystem, carried: list[Any]
) -> None:
    system = await make_system()
    pid = await system.dataset(FILES)
    async with system.workers("catalogue,pack,lts"):
        # Not served yet: the signal is there when it begins.
        handle = await system.client.start_workflow(
            "SweepDataset",
            m.SweepDatasetRequest(pid=pid),
            id=workflow_id("archive-dataset", pid),
            task_queue=steps.WORKFLOWS,
        )
        await handle.signal("subscribe", args=carried)
        async with system.workers("workflows"):
            done = m.DatasetOutcome.model_validate(await handle.result())
    assert "0 staged objects removed" in done.message


@pytest.mark.parametrize("length", [255, 256, 600, 2000])
async def test_a_pid_of_any_length_ends_in_words(served: System, length: int) -> None:
    pid = "20.500.12345/" + "é" * (length - 13)
    await served.dataset(FILES, pid=pid, landed=False)
    other = await served.dataset(FILES)
    job = await served.job(pid, other)
    done = await (await served.start_job(job)).result()
    assert (done.status_code, done.counts.archived, done.counts.content_errors) == ("finishedWithDatasetErrors", 1, 1)
    assert "cannot have a directory on the LTS" in (await served.job_record(job))["statusMessage"]
    described = await served.client.get_workflow_handle(workflow_id("archive-dataset", pid)).describe()
    assert described.status == WorkflowExecutionStatus.COMPLETED
    assert len(described.typed_search_attributes.get(PID) or "") <= 250


async def test_a_pid_of_any_length_is_swept(make_system: MakeSystem) -> None:
    system = await make_system({"sweep": {"every_seconds": 0, "leftovers_after_hours": 0}})
    pid = "20.500.12345/" + "x" * 187
    await system.dataset(FILES, pid=pid)
    async with system.workers("workflows,catalogue,pack"):
        handle = await system.start_job(await system.job(pid))
        await until(lambda: _started(system, pid), "it is marked")
        await handle.terminate()
        dataset = system.client.get_workflow_handle(workflow_id("archive-dataset", pid))
        await dataset.terminate()
    async with sweeping(system) as sweeper:
        swept = await sweeper.leftovers()
    assert (swept.cleared, swept.problems) == (1, [])
    assert (await system.lifecycle(pid))["archiveStatusMessage"] == "scheduleArchiveJobFailed"


async def _started(system: System, pid: str) -> bool:
    return bool((await system.lifecycle(pid)).get("archiveStatusMessage") == "started")
