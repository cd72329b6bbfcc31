"""``archiver status``: what a job, a dataset, a datablock does, what it waits for, how it ended."""

from __future__ import annotations

import json

from tests.operators.conftest import Run
from tests.pipeline.moments import full_lts, noise, until
from tests.pipeline.system import System

FILES = {"a.bin": noise(2**20, 1)}
WAITS = "LTS space: needs"


async def told(run: Run, system: System, ref: str) -> dict:
    ended = await run(system, "--json", "status", ref)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


async def test_status_shows_the_tree_and_what_each_datablock_waits_for(served: System, run: Run) -> None:
    first, second = await served.dataset(FILES), await served.dataset(FILES)
    with full_lts(served):
        job = await served.job(first, second)
        handle = await served.start_job(job)
        for pid in (first, second):
            await served.pending("wait-for-lts-space", "archive-datablock", pid, "1")
        await until(lambda: said_by(served, first, second), "one of the two waits in its slot, and says so")
        text = (await run(served, "status", job)).stdout
        print(text)
        seen = await told(run, served, job)
        print(json.dumps(seen, indent=1))
    await handle.result()


async def said_by(system: System, *pids: str) -> bool:
    steps = [await system.pending("wait-for-lts-space", "archive-datablock", pid, "1") for pid in pids]
    return any(step.HasField("heartbeat_details") for step in steps)
