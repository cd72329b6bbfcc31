"""Record the histories that every later version must replay: ``make record-histories``, and only by that.

A change of a workflow that no longer replays them needs a patch (``workflow.patched``), not new recordings, so what is recorded
stays; only scenarios that have no history yet are recorded: the ways that workflows gain. Steps are scripted, so no history
holds anything of a real site.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowHandle
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError
from temporalio.worker import Worker

from archiver import model as m
from cli import servers
from tests.replay import retrievals
from tests.replay.wire import SNAPSHOT, snapshot
from tests.sandbox import SANDBOX
from tests.workflows.scripted import Script, content_error
from worker import WORKFLOWS
from workflows import steps
from workflows.visible import attributes

HISTORIES = Path(__file__).parent / "histories"
SUGGEST_AFTER = 600
"""Events after which the recording server suggests to continue as new: a long job without many hours of work."""
DATABLOCKS_KEPT = 4
"""Histories of datablocks kept of a scenario: further ones are alike."""

Scenario = Callable[["Recorder"], Awaitable[None]]


class Recorder:
    """One scenario: a script, the job under way, and the workflows to be written down."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name
        self.jobs: list[WorkflowHandle[Any, Any]] = []
        self._stack = AsyncExitStack()

    async def serve(self, script: Script) -> None:
        """Serve a script until the scenario ends."""
        pids = [f"20.500.12345/{self.name}-{k}" for k in range(script.datasets)]
        script.pids = lambda: pids  # type: ignore[method-assign]
        for queue in sorted({step.queue for step in steps.ALL}):
            await self._stack.enter_async_context(
                Worker(self.client, task_queue=queue, activities=script.activities(queue), identity="recorder")
            )
        await self._stack.enter_async_context(
            Worker(
                self.client,
                task_queue=steps.WORKFLOWS,
                workflows=WORKFLOWS,
                workflow_runner=SANDBOX,
                identity="recorder",
            )
        )

    async def start(self, number: int = 1) -> WorkflowHandle[Any, m.ArchiveJobResult]:
        """A job over the script's datasets."""
        job_id = f"{self.name}-{number}"
        handle = await self.client.start_workflow(
            "ArchiveJob",
            m.ArchiveJobRequest(job_id=job_id),
            id=f"archive-job/{job_id}",
            task_queue=steps.WORKFLOWS,
            result_type=m.ArchiveJobResult,
            search_attributes=attributes(job_id=job_id),
        )
        self.jobs.append(handle)
        return handle

    async def end(self) -> None:
        """Wait for the jobs, whichever way they end, and write down every run of every workflow of the scenario."""
        await asyncio.gather(*(job.result() for job in self.jobs), return_exceptions=True)
        await self._stack.aclose()
        left = {"ArchiveDatablock": DATABLOCKS_KEPT, "RetrieveDatablock": DATABLOCKS_KEPT}
        number = 0
        found = [one async for one in self.client.list_workflows() if f"/{self.name}-" in f"{one.id}/"]
        for one in sorted(found, key=lambda one: (one.workflow_type, one.start_time)):
            left.setdefault(one.workflow_type, 4)
            if left[one.workflow_type] == 0:
                continue
            left[one.workflow_type] -= 1
            number += 1
            history = await self.client.get_workflow_handle(one.id, run_id=one.run_id).fetch_history()
            record = {"workflow_id": one.id, "type": one.workflow_type, "history": history.to_json_dict()}
            path = HISTORIES / f"{self.name}.{number}.{one.workflow_type}.json.gz"
            path.write_bytes(gzip.compress(json.dumps(record, sort_keys=True).encode(), mtime=0))
        print(f"{self.name}: {number} histories", file=sys.stderr)


async def good(r: Recorder) -> None:
    """Two datasets of two datablocks; sources deleted."""
    await r.serve(Script(datasets=2, policy=m.Policy(delete_sources=True)))
    await r.start()


async def again(r: Recorder) -> None:
    """Archived before, refused, and unknown."""
    script = Script(datasets=3)

    async def begin(request: m.BeginDatasetRequest) -> m.BeginDatasetResult:
        match request.pid[-1]:
            case "0":
                return m.BeginDatasetResult(state="already", message="was archived before", datablocks=1)
            case "1":
                raise content_error("belongs to another archive", "refused", "Refused")
        raise content_error("SciCat knows none", "content", "UnknownDataset")

    script.replaced["begin-dataset"] = begin
    await r.serve(script)
    await r.start()


async def failing(r: Recorder) -> None:
    """A content error before, a system error in, and a mismatch that lasts after the copy."""
    script = Script(datasets=3, datablocks=1)

    async def plan(request: m.PlanRequest) -> m.PlanResult:
        if request.pid.endswith("0"):
            raise content_error("a file is missing")
        return m.PlanResult(plan_id="0" * 32, datablocks=1, files=1, size_bytes=1, largest_bytes=1)

    async def pack(request: m.PackRequest) -> m.PackResult:
        if request.pid.endswith("1"):
            raise content_error("staging refuses us", "system", "StagingFault")
        return m.PackResult(size_bytes=1, packed_bytes=1, files=1, sha256="a", manifest_sha256="b")

    async def verify(request: m.VerifyRequest) -> m.VerifyResult:
        raise content_error("differs", "system", "IntegrityMismatch")

    script.replaced |= {"plan-dataset": plan, "pack-datablock": pack, "verify-in-lts": verify}
    await r.serve(script)
    await r.start()


async def mended(r: Recorder) -> None:
    """A datablock that is there already does not verify and is made anew; its neighbour is read again and is good."""
    script = Script(datablocks=2)
    seen: list[int] = []

    async def survey(request: m.SurveyRequest) -> m.SurveyResult:
        return m.SurveyResult(reusable=[1, 2])

    async def verify(request: m.VerifyRequest) -> m.VerifyResult:
        seen.append(request.n)
        if request.n == 1 and seen.count(1) == 1:
            raise content_error("differs", "system", "IntegrityMismatch")
        return m.VerifyResult(level="host", how_read="O_DIRECT", size_bytes=1, packed_bytes=1, files=1, sha256="a")

    script.replaced |= {"survey-lts": survey, "verify-in-lts": verify}
    await r.serve(script)
    await r.start()


async def _stopped(r: Recorder, step: str, stop: Callable[[], Awaitable[None]]) -> None:
    """Stop while ``step`` runs; where it succeeds all the same it does so a moment later."""
    script = Script(datasets=2, datablocks=2)
    reached = asyncio.Event()
    usual = Script(datablocks=2)

    async def wait(request: Any) -> Any:
        if step == "publish-bag":
            reached.set()
            await asyncio.sleep(1.5)
            return await usual.answer(step, request)
        if request.pid.endswith("1"):
            return await usual.answer(step, request)
        reached.set()
        await asyncio.sleep(3600)

    script.replaced[step] = wait
    await r.serve(script)
    await r.start()
    await reached.wait()
    await stop()


async def stopped_by_signal(r: Recorder) -> None:
    """The job is stopped by a signal while it packs."""
    stop = m.StopRequest(reason="beam time over", who="anna")
    await _stopped(r, "pack-datablock", lambda: r.jobs[0].signal("cancel", stop))


async def stopped_dataset(r: Recorder) -> None:
    """One of its datasets is stopped by a signal while it is copied."""
    stop = m.StopRequest(reason="wrong one", who="ben")
    dataset = r.client.get_workflow_handle(f"archive-dataset/20.500.12345/{r.name}-0")
    await _stopped(r, "copy-to-lts", lambda: dataset.signal("cancel", stop))


async def stopped_in_temporal(r: Recorder) -> None:
    """The job is cancelled in Temporal while it verifies."""
    await _stopped(r, "verify-in-lts", lambda: r.jobs[0].cancel())


async def stopped_too_late(r: Recorder) -> None:
    """The job is cancelled in Temporal in the instant of publication."""
    await _stopped(r, "publish-bag", lambda: r.jobs[0].cancel())


async def shared(r: Recorder) -> None:
    """A second job on a dataset that a first one has in work."""
    script = Script(datablocks=1)
    second = asyncio.Event()

    async def pack(request: m.PackRequest) -> m.PackResult:
        await second.wait()
        return m.PackResult(size_bytes=1, packed_bytes=1, files=1, sha256="a", manifest_sha256="b")

    script.replaced["pack-datablock"] = pack
    await r.serve(script)
    await r.start(1)
    while "pack-datablock" not in script.names():
        await asyncio.sleep(0.05)
    await r.start(2)
    while script.names().count("begin-job") < 2:
        await asyncio.sleep(0.05)
    await asyncio.sleep(2)
    second.set()


async def refused(r: Recorder) -> None:
    """A job that is not ours."""
    script = Script()

    async def begin(request: m.BeginJobRequest) -> m.BeginJobResult:
        raise content_error("is not an archive job", "refused", "ForeignJob")

    script.replaced["begin-job"] = begin
    await r.serve(script)
    await r.start()


async def long_job(r: Recorder) -> None:
    """A job that continues as new between its pages."""
    script = Script(datasets=230, policy=m.Policy(datasets_at_once=30))

    async def begin(request: m.BeginDatasetRequest) -> m.BeginDatasetResult:
        return m.BeginDatasetResult(state="already", message="was archived before")

    script.replaced["begin-dataset"] = begin
    await r.serve(script)
    await r.start()


async def long_dataset(r: Recorder) -> None:
    """A dataset that continues as new between its datablocks."""
    await r.serve(Script(datablocks=302, policy=m.Policy(datablocks_at_once=20)))
    await r.start()


async def receipted(r: Recorder) -> None:
    """What comes after the bag is added to the receipt: registration, the report, and the deletion of sources."""
    await r.serve(Script(datasets=1, policy=m.Policy(delete_sources=True)))
    await r.start()


async def receipt_left(r: Recorder) -> None:
    """The receipt cannot be written."""
    script = Script(datablocks=1)

    async def record(request: m.DatasetRef) -> m.Done:
        raise content_error("the LTS is read-only", "system", "LtsFault")

    script.replaced["record-events"] = record
    await r.serve(script)
    await r.start()


SCENARIOS: tuple[Scenario, ...] = (
    good,
    again,
    failing,
    mended,
    stopped_by_signal,
    stopped_dataset,
    stopped_in_temporal,
    stopped_too_late,
    shared,
    refused,
    long_job,
    long_dataset,
    receipted,
    receipt_left,
    *retrievals.SCENARIOS,
)


async def main(folder: Path) -> None:
    """Record the scenarios that have no history, and what the wire models look like."""
    recorded = {path.name.split(".")[0] for path in HISTORIES.glob("*.json.gz")}
    port = servers.free_port()
    more = ["--dynamic-config-value", f"limit.historyCount.suggestContinueAsNew={SUGGEST_AFTER}"]
    child = servers.temporal_dev_server(folder, port=port, in_memory=True, more=more).start()
    try:
        child.wait_for_port(port)
        client = await Client.connect(f"127.0.0.1:{port}", data_converter=pydantic_data_converter, identity="recorder")
        while True:
            try:
                await client.count_workflows()
                break
            except RPCError:
                await asyncio.sleep(0.1)
        HISTORIES.mkdir(exist_ok=True)
        for scenario in SCENARIOS:
            if scenario.__name__ in recorded:
                continue
            recorder = Recorder(client, scenario.__name__)
            await scenario(recorder)
            await recorder.end()
    finally:
        child.stop()
    SNAPSHOT.write_text(json.dumps(snapshot(), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(Path(scratch)))
