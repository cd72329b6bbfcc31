"""``archiver status``: what a job, a dataset, a datablock does, what it waits for, how it ended."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from cli import queues
from tests.operators.conftest import Run
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import dataset_workflow, full_lts, noise, until
from tests.pipeline.retrieving import retrieve
from tests.pipeline.system import System

FILES = {"a.bin": noise(2**20, 1)}
SMALL = {"a.txt": b"text"}


async def told(run: Run, system: System, ref: str) -> dict[str, Any]:
    """``status --json``."""
    ended = await run(system, "--json", "status", ref)
    assert ended.returncode == 0, ended.stderr
    data: dict[str, Any] = json.loads(ended.stdout)
    assert data["version"] == 1
    return data


async def waiting_for_space(system: System, *pids: str) -> None:
    """Until all of them wait, and one of them has the slot and has said so."""

    async def said() -> bool:
        steps = [await system.pending("wait-for-lts-space", "archive-datablock", pid, "1") for pid in pids]
        return any(step.HasField("heartbeat_details") for step in steps)

    await until(said, "one of them waits in the slot and says so")


async def test_status_shows_the_tree_down_to_what_each_datablock_waits_for(served: System, run: Run) -> None:
    first, second = await served.dataset(FILES), await served.dataset(FILES)
    with full_lts(served):
        job = await served.job(first, second)
        handle = await served.start_job(job)
        await waiting_for_space(served, first, second)
        text = (await run(served, "status", job)).stdout
        seen = await told(run, served, job)
        short = await run(served, "status", job[:8])
    await handle.result()
    assert seen["state"] == "RUNNING"
    assert (seen["done"], seen["of"]) == (0, 2)
    assert {one["name"] for one in seen["datasets"]} == {first, second}
    blocks = [block for one in seen["datasets"] for block in one["datablocks"]]
    assert [block["stage"] for block in blocks] == ["wait for LTS space"] * 2
    served_now, behind = sorted(blocks, key=lambda block: not block["steps"][0]["runs"])
    assert served_now["waits_for"].startswith("LTS space: needs 1.0 MiB, ")
    assert behind["waits_for"].startswith("LTS space, behind another datablock, ")
    assert behind["steps"][0]["queue_place"] == {"waiting": 1, "longest": True, "before": 0}
    assert seen["seconds_left"] is None, "what waits has no end that could be told"
    assert seen["next"] == "make room on the LTS: what waits goes on by itself"
    for part in (f"archive-job/{job}  RUNNING", first, second, "waits for LTS space: needs", f"next: {seen['next']}"):
        assert part in text
    assert short.stdout.startswith(f"archive-job/{job}  "), "the beginning of a job's id is enough"


async def test_a_dataset_a_datablock_and_a_workflow_are_named_by_pid_or_id(served: System, run: Run) -> None:
    pid = await served.dataset(SMALL)
    await served.archive(pid)
    for ref, kind in (
        (pid, "dataset"),
        (f"archive-dataset/{pid}", "dataset"),
        (f"archive-datablock/{pid}/1", "datablock"),
    ):
        seen = await told(run, served, ref)
        assert (seen["kind"], seen["state"]) == (kind, "COMPLETED")
    text = (await run(served, "status", pid)).stdout
    assert text.startswith(f"archive-dataset/{pid}  COMPLETED")
    assert "1 files in 1 datablocks, verified" in text


async def test_a_datasets_runs_are_told_with_their_dates_also_retrievals(served: System, run: Run) -> None:
    pid = await served.dataset(SMALL)
    await served.archive(pid)
    await served.archive(pid)
    job, _ = await retrieve(served, pid)

    async def listed() -> bool:
        return (
            await served.client.count_workflows(f"DatasetPid = '{pid}' AND WorkflowType != 'ArchiveDatablock'")
        ).count >= 3

    await until(listed, "the list is not behind")
    text = (await run(served, "status", pid)).stdout
    seen = [line.split() for line in text.splitlines() if line.startswith(("  archive ", "  retrieve "))]
    kinds = [(words[0], words[1]) for words in seen]
    assert kinds == [("retrieve", "retrieved"), ("archive", "already"), ("archive", "archived")]
    assert seen[0][-1] == job
    assert all(re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d to \d{4}", " ".join(words)) for words in seen)
    listing = (await run(served, "jobs")).stdout.splitlines()
    assert listing[0].split()[:4] == ["job", "kind", "state", "stage"]
    assert any(line.split()[:2] == [job, "retrieve"] for line in listing)


async def test_where_nothing_is_stuck_it_is_said_so(served: System, run: Run) -> None:
    assert (await run(served, "jobs", "--stuck")).stdout == "no job is stuck\n"


async def test_a_destination_outside_the_roots_is_refused_with_its_reason_before_there_is_a_job(
    served: System, run: Run
) -> None:
    pid = await served.dataset(SMALL)
    before = len(served.standin.store.all("jobs"))
    ended = await run(served, "retrieve", pid, "--to", "/elsewhere")
    assert ended.returncode == 6
    assert "a destination that is not known here" in ended.stderr
    assert "found    '/elsewhere'" in ended.stderr
    assert "see retrieval.destinations and retrieval.roots" in ended.stderr
    assert len(served.standin.store.all("jobs")) == before


async def test_what_was_refused_is_not_to_be_tried_again(served: System, run: Run) -> None:
    pid = await served.dataset(SMALL)
    job = await served.job(
        type="retrieve", jobParams={"datasetList": [{"pid": pid, "files": []}], "destinationPath": "/x"}
    )
    ended = await run(served, "start", job, "--wait")
    assert ended.returncode == 1, ended.stderr
    text = (await run(served, "status", job)).stdout
    assert "a destination that is not known here" in text
    assert "archiver retry" not in text


async def test_a_paused_queue_is_the_reason_of_what_waits_in_it(served: System, run: Run) -> None:
    pid = await served.dataset(SMALL)
    ended = await run(served, "pause", "pack", "--reason", "new disks", "--who", "anna")
    assert ended.returncode == 0, ended.stderr
    try:
        job = await served.job(pid)
        handle = await served.start_job(job)
        await served.pending("plan-dataset", "archive-dataset", pid)
        seen = await told(run, served, job)
        shown = (await run(served, "pause", "--show")).stdout
        listed = (await run(served, "jobs", "--running")).stdout
    finally:
        assert (await run(served, "resume")).returncode == 0
    await handle.result()
    waits = seen["datasets"][0]["waits_for"]
    assert waits.startswith("queue archiver-pack to be resumed: paused by anna at ")
    assert waits.endswith(": new disks")
    assert seen["next"].startswith("archiver resume")
    assert "paused   archiver-pack        by anna since " in shown
    assert "running  archiver-lts-copy" in shown
    assert listed.startswith("paused  archiver-pack  by anna since ")


async def test_a_step_that_is_tried_again_shows_its_last_error_and_the_next_try(served: System, run: Run) -> None:
    pid = await served.dataset(SMALL)
    job = await served.job(pid)
    fault = Fault("GET", "/datasets/", status=503, body={"message": "down for repair"}, times=10**6)
    served.standin.faults.append(fault)
    try:
        handle = await served.start_job(job)
        await served.pending("begin-dataset", "archive-dataset", pid, attempt=3)
        seen = await told(run, served, pid)
        text = (await run(served, "status", job)).stdout
    finally:
        served.standin.faults.remove(fault)
    await handle.result()
    error = seen["steps"][0]["last_error"]
    assert error["attempt"] >= 2
    assert "503" in error["message"]
    assert "step begin-dataset, try " in text
    assert "last error at " in text


async def test_without_a_worker_status_still_answers_and_says_what_to_start(make_system: MakeSystem, run: Run) -> None:
    system = await make_system()
    pid = await system.dataset(SMALL)
    job = await system.job(pid)
    handle = await system.start_job(job)
    seen = await told(run, system, job)
    assert seen["waits_for"] == "a worker on queue archiver: no worker answers"
    assert seen["next"] == "start  archiver worker --queues workflows"
    async with system.workers("workflows,catalogue"):
        await system.pending("plan-dataset", "archive-dataset", pid)
        seen = await until(lambda: _answered(run, system, job), "a busy worker answers in time")
        assert seen["datasets"][0]["waits_for"].startswith("a worker on queue archiver-pack: none asks for work")
        assert seen["next"] == "start  archiver worker --queues pack"
        async with system.workers("pack,lts"):
            await handle.result()


async def _answered(run: Run, system: System, ref: str) -> dict[str, Any] | None:
    seen = await told(run, system, ref)
    return None if "no worker answers" in json.dumps(seen) else seen


async def test_how_a_job_ended_is_told_without_any_worker(make_system: MakeSystem, run: Run) -> None:
    system = await make_system()
    good = await system.dataset(SMALL)
    bad = await system.dataset(SMALL, listed=[System.entry("a.txt", b"text"), System.entry("gone.txt", b"x")])
    job = await system.job(good, bad)
    async with system.workers():
        await (await system.start_job(job)).result()
    seen = await told(run, system, job)
    assert seen["result"]["status_code"] == "finishedWithDatasetErrors"
    assert "gone.txt" in seen["message"]
    seen = await told(run, system, bad)
    assert seen["result"]["error"]["type"] == "MissingFiles"
    assert seen["next"] == f"put right what the message names, then  archiver retry {bad}"


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("signal", "stopped by anna: beam time over"),
        ("cancel", "stopped by "),
        ("terminate", "terminated by "),
    ],
)
async def test_who_stopped_a_dataset_and_why_is_told(served: System, run: Run, way: str, said: str) -> None:
    pid = await served.dataset(FILES)
    with full_lts(served):
        job = await served.start_job(await served.job(pid))
        await waiting_for_space(served, pid)
        handle = dataset_workflow(served, pid)
        if way == "signal":
            await handle.signal("cancel", m.StopRequest(reason="beam time over", who="anna"))
        elif way == "cancel":
            await handle.cancel()
        else:
            await handle.terminate(reason="wrong proposal")
        await job.result()
    seen = await told(run, served, pid)
    assert seen["message"].startswith(said)
    assert seen["next"].startswith(f"archiver retry {pid}")


def test_the_pace_so_far_gives_a_range_and_nothing_while_all_waits() -> None:
    from cli.look import _shares, left

    block = {"share": 0.5, "waits_for": "", "bytes_per_second": 10}
    found: dict[str, Any] = {
        "state": "RUNNING",
        "of": 4,
        "done": 1,
        "seconds": 300.0,
        "waits_for": "",
        "datablocks": [block],
    }
    _shares(found)
    assert found["share"] == 0.375
    assert found["seconds_left"] == [350, 750]
    assert left(found) == "about 5 min 50 s to 12 min 30 s left"
    assert found["bytes_per_second"] == 10
    waiting = found | {"datablocks": [block | {"waits_for": "LTS space"}]}
    _shares(waiting)
    assert waiting["seconds_left"] is None


def test_every_queue_that_a_worker_serves_can_be_named() -> None:
    assert queues.names_of(None) == queues.DATA
    assert queues.names_of("pack") == queues.names_of("archiver-pack") == ("archiver-pack",)
    assert queues.names_of("all") == queues.DATA
    assert set(queues.names_of("lts")) < set(queues.DATA)
    assert queues.names_of("catalogue") == ("archiver-catalogue",)
