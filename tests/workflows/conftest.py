"""A real Temporal server, and workers that serve the real workflows with scripted activities."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from tests.workflows.scripted import Script
from worker import SANDBOX, WORKFLOWS
from workflows import steps

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
                    workflow_runner=SANDBOX,
                )
            )
            return temporal_client

        yield start
