"""A real Temporal server, and workers that serve the real workflows with scripted activities."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from tests.workflows.scripted import Script
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from workflows.dataset import ArchiveDataset
from workflows.datablock import ArchiveDatablock
from workflows.job import ArchiveJob
SANDBOX = SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules('archiver.model','archiver.pids'))
WORKFLOWS=[ArchiveJob,ArchiveDataset,ArchiveDatablock]
from workflows import steps
from archiver import model as m

Serve = Callable[[Script], Awaitable[Client]]


@pytest.fixture
async def serve(temporal_client: Client) -> AsyncIterator[Serve]:
    """Serve a script on all queues until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(script: Script) -> Client:
            for queue in sorted({step.queue for step in steps.ALL}):
                await stack.enter_async_context(
                    Worker(
                        temporal_client,
                        task_queue=queue,
                        activities=script.activities(queue),
                        max_concurrent_activities=50,
                        max_heartbeat_throttle_interval=timedelta(milliseconds=200),
                        default_heartbeat_throttle_interval=timedelta(milliseconds=200),
                    )
                )
            await stack.enter_async_context(
                Worker(
                    temporal_client,
                    task_queue=steps.WORKFLOWS,
                    workflows=WORKFLOWS,
                    workflow_runner=SANDBOX,
                )
            )
            return temporal_client

        yield start


@pytest.fixture(scope="session")
async def temporal_client():
    from temporalio.testing import WorkflowEnvironment
    from temporalio.contrib.pydantic import pydantic_data_converter
    from temporalio.common import SearchAttributeKey
    import os
    keys = [SearchAttributeKey.for_int(n) if t == "Int" else SearchAttributeKey.for_keyword(n) for n, t in m.SEARCH_ATTRIBUTES.items()]
    async with await WorkflowEnvironment.start_local(data_converter=pydantic_data_converter, search_attributes=keys, dev_server_existing_path=os.path.expanduser("~/.cache/scicat-archiver/bin/temporal-v1.5.1")) as env:
        yield env.client
