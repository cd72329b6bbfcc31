"""Sweeps as a test asks for them: the workflows of the sweeps alone, so that the jobs that they start stay as started."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio.worker import Worker

from archiver import model as m
from tests.pipeline.system import Overrides, System
from tests.sandbox import SANDBOX
from worker import SWEEPS


class Sweeper:
    """Starts sweeps on a queue of its own: nobody serves the workflows of jobs and datasets meanwhile."""

    def __init__(self, system: System, queue: str) -> None:
        self._system = system
        self.queue = queue

    async def jobs(self, *, dry_run: bool = False, looks: int = 1, every_seconds: float = 60) -> m.SweepJobsResult:
        """One sweep for jobs, to its end."""
        request = m.SweepRequest(dry_run=dry_run, looks=looks, every_seconds=every_seconds)
        return m.SweepJobsResult.model_validate(await self._run("Sweep", request))

    async def leftovers(self, *, dry_run: bool = False) -> m.SweepLeftoversResult:
        """One sweep for leftovers, to its end."""
        return m.SweepLeftoversResult.model_validate(await self._run("SweepLeftovers", m.SweepRequest(dry_run=dry_run)))

    async def _run(self, kind: str, request: m.SweepRequest) -> object:
        return await self._system.client.execute_workflow(
            kind, request, id=f"test-{secrets.token_hex(4)}", task_queue=self.queue
        )


@asynccontextmanager
async def sweeping(
    system: System, queues: str = "catalogue,pack,lts", overrides: Overrides | None = None
) -> AsyncIterator[Sweeper]:
    """The sweeps' workflows and these queues are served while the context lasts."""
    queue = f"sweeps-{secrets.token_hex(4)}"
    worker = Worker(system.client, task_queue=queue, workflows=SWEEPS, workflow_runner=SANDBOX)
    async with system.workers(queues, overrides), worker:
        yield Sweeper(system, queue)


async def runs(system: System, job_id: str) -> list[str]:
    """Run ids of a job's workflow, of all there ever were."""
    query = f"WorkflowId = 'archive-job/{job_id}'"
    return [one.run_id async for one in system.client.list_workflows(query) if one.run_id]
