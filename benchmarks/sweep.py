"""The sweep for jobs: many submitted jobs that nobody started, all found and started, each once."""

from __future__ import annotations

import secrets
import time
from uuid import uuid4

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from archiver import model as m
from archiver.catalogue.standin.store import Store
from benchmarks.bench import TINY, Bench
from benchmarks.table import Row
from worker import SWEEPS


async def sweep(bench: Bench, jobs: int) -> list[Row]:
    """Only the catalogue's queue and the sweeps' workflows are served: the started jobs stay as they were started."""
    bench.system.stop_workers()
    ids = _submit(bench, await bench.facility.job([await bench.dataset(TINY)]), jobs)
    bench.system.start_workers(("catalogue",))
    queue = f"sweeps-{secrets.token_hex(4)}"
    async with Worker(bench.client, task_queue=queue, workflows=SWEEPS, workflow_runner=UnsandboxedWorkflowRunner()):
        seconds, swept = await _sweep(bench.client, queue)
        bench.say(f"sweep of {jobs} submitted jobs: {swept.started} started in {seconds:.1f} s")
        found = sorted([one.id async for one in bench.client.list_workflows("WorkflowType = 'ArchiveJob'")])
        missing = {f"archive-job/{job}" for job in ids} - set(found)
        if swept.started != jobs or missing or len(found) != len(set(found)):
            raise RuntimeError(f"{swept.started} of {jobs} jobs started, {len(missing)} missing, {len(found)} runs")
        again, nothing = await _sweep(bench.client, queue)
        if nothing.started:
            raise RuntimeError(f"a second sweep started {nothing.started} jobs once more")
    return [
        Row(
            f"sweep of {jobs:,} submitted jobs: all found and started, each once",
            seconds,
            " s",
            ours=f"{jobs / seconds:.0f} starts a second; the next sweep, which finds them all at work: {again:.1f} s",
        )
    ]


async def _sweep(client: Client, queue: str) -> tuple[float, m.SweepJobsResult]:
    began = time.monotonic()
    swept = await client.execute_workflow(
        "Sweep",
        m.SweepRequest(),
        id=f"bench-{secrets.token_hex(4)}",
        task_queue=queue,
        result_type=m.SweepJobsResult,
    )
    return time.monotonic() - began, swept


def _submit(bench: Bench, job_id: str, jobs: int) -> list[str]:
    """So many jobs like this one, written where the stand-in keeps them: submitting them is not what is measured."""
    store = Store(str(bench.system.folder / "scicat.db"))
    record = store.get("jobs", job_id)
    assert record is not None
    ids = [job_id]
    for k in range(1, jobs):
        made = {"id": str(uuid4()), "createdAt": f"2099-01-01T{k // 3600:02}:{k // 60 % 60:02}:{k % 60:02}.000Z"}
        store.insert("jobs", made["id"], {**record, **made, "_id": made["id"]})
        ids.append(made["id"])
    return ids
