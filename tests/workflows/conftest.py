"""A real Temporal server, and workers that serve the real workflows with scripted activities."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from tests.sandbox import SANDBOX
from tests.workflows.scripted import Script
from worker import WORKFLOWS
from workflows import steps

Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve(temporal_client: Client) -> AsyncIterator[Serve]:
    """Serve a script on all queues until the test ends.

    ``sandboxed=False`` where hundreds of workflows run: each would import its own modules, which costs as much as the rest.
    """
    async with AsyncExitStack() as stack:

        async def start(script: Script, *, sandboxed: bool = True) -> Client:
            for queue in sorted({step.queue for step in steps.ALL}):
                await stack.enter_async_context(
                    Worker(
                        temporal_client,
                        task_queue=queue,
                        activities=script.activities(queue),
                        max_concurrent_activities=script.slots.get(queue, 50),
                        max_heartbeat_throttle_interval=timedelta(milliseconds=200),
                        default_heartbeat_throttle_interval=timedelta(milliseconds=200),
                    )
                )
            await stack.enter_async_context(
                Worker(
                    temporal_client,
                    task_queue=steps.WORKFLOWS,
                    workflows=WORKFLOWS,
                    workflow_runner=SANDBOX if sandboxed else UnsandboxedWorkflowRunner(),
                )
            )
            return temporal_client

        yield start
