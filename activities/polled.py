"""Who asks a task queue for work, as Temporal's server sees it, in all of the parts in which it keeps the queue."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue, TaskQueueConfig
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListTaskQueuePartitionsRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError

from workflows import steps

RPC = timedelta(seconds=5)
"""A server that runs answers in milliseconds."""
ASKED_WITHIN = timedelta(seconds=90)
"""A worker with a free slot asks for work without end, each time for at most 60 s; the server remembers a gone one for 5 min."""


async def described(client: Client, name: str, *, config: TaskQueueConfig | None = None) -> DescribeTaskQueueResponse:
    """The queue with its statistics and configuration, and all who ask. ``config``: instead of what the server says of it.

    Raises ``RPCError``.
    """
    kind = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW if name == steps.WORKFLOWS else TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=name),
        task_queue_type=kind,
        report_stats=True,
        report_config=True,
    )
    service = client.workflow_service
    told = await service.describe_task_queue(request, timeout=RPC)
    if config is not None:
        told.config.CopyFrom(config)
    if asking(told) and not is_paused(told):
        return told
    # While a queue is paused the server does not tell its first partition, which it shows, of those that ask at another: a
    # worker with few slots would seem to be gone.
    names = await partitions(client, name)
    requests = [
        DescribeTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=one), task_queue_type=kind)
        for one in names[1:]
    ]
    for part in await asyncio.gather(*(service.describe_task_queue(one, timeout=RPC) for one in requests)):
        told.pollers.extend(part.pollers)
    return told


def asking(told: DescribeTaskQueueResponse) -> set[str]:
    """The workers that asked lately, by identity."""
    since = datetime.now(UTC) - ASKED_WITHIN
    return {
        poller.identity
        for poller in told.pollers
        if not poller.HasField("last_access_time") or poller.last_access_time.ToDatetime(tzinfo=UTC) > since
    }


def is_paused(told: DescribeTaskQueueResponse) -> bool:
    """Whether an operator paused it: a rate limit of 0."""
    limit = told.config.queue_rate_limit
    return limit.HasField("rate_limit") and limit.rate_limit.requests_per_second == 0


async def partitions(client: Client, name: str) -> list[str]:
    """The names under which the server keeps a queue's parts, its own first."""
    names = {name: None}
    with contextlib.suppress(RPCError):  # an older server, or a caller that may not: then the first partition alone
        request = ListTaskQueuePartitionsRequest(namespace=client.namespace, task_queue=TaskQueue(name=name))
        told = await client.workflow_service.list_task_queue_partitions(request, timeout=RPC)
        for part in (*told.activity_task_queue_partitions, *told.workflow_task_queue_partitions):
            names[part.key] = None
    return list(names)
