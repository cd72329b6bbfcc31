"""How long an operator waits for an answer while Temporal holds thousands of workflows."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from statistics import median
from uuid import uuid4

from archiver import model as m
from archiver.pids import workflow_id
from benchmarks.bench import TINY, Bench
from benchmarks.table import Row
from cli import devdir, jobs
from cli.programs import ROOT
from cli.servers import clean_environment
from workflows.visible import attributes

WITHIN_SECONDS = 2
AT_ONCE = 50
IDLE = "benchmark-idle"
"""A queue that nobody serves: workflows that only lie there."""


async def status(bench: Bench, workflows: int, rounds: int) -> list[Row]:
    """``archiver jobs`` and ``archiver status`` as people run them: another process, Python's start included."""
    job = await bench.facility.job([await bench.dataset(TINY)])
    await (await jobs.start(bench.client, job, None)).result()
    await _fill(bench, workflows)
    rows = []
    for arguments in (["jobs"], ["jobs", "--running"], ["jobs", "--failed"], ["status", job]):
        seconds = [await _run(bench, arguments) for _ in range(rounds)]
        shown = " ".join(arguments).replace(job, "JOB")
        note = f"median of {rounds}, slowest {max(seconds):.2f} s"
        rows.append(
            Row(f"archiver {shown} over {workflows} workflows", median(seconds), " s", WITHIN_SECONDS, False, note)
        )
    return rows


async def _fill(bench: Bench, workflows: int) -> None:
    """So many jobs that wait, known to visibility when it returns."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        job_id = str(uuid4())
        async with slots:
            await bench.client.start_workflow(
                "ArchiveJob",
                m.ArchiveJobRequest(job_id=job_id),
                id=workflow_id("archive-job", job_id),
                task_queue=IDLE,
                search_attributes=attributes(job_id=job_id),
            )

    started = time.monotonic()
    await asyncio.gather(*(one() for _ in range(workflows)))
    while (await bench.client.count_workflows("WorkflowType = 'ArchiveJob'")).count < workflows:
        await asyncio.sleep(0.5)
    bench.say(f"{workflows} workflows started in {time.monotonic() - started:.0f} s")


async def _run(bench: Bench, arguments: list[str]) -> float:
    command = [sys.executable, "-m", "cli.main", "-c", str(bench.system.folder / devdir.CONFIG), *arguments]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    started = time.monotonic()
    ended = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if ended.returncode:
        raise RuntimeError(f"archiver {' '.join(arguments)} ended with {ended.returncode}: {ended.stderr[-500:]}")
    return seconds
