"""``archiver health``: an exit code for probes, and who is missing in words."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueResponse, PollActivityTaskQueueRequest
from temporalio.client import Client

from activities.polled import partitions
from cli import queues, servers
from cli.servers import free_port
from tests.conftest import until_answers
from tests.operators.inside import inside
from tests.pipeline.moments import until
from tests.pipeline.system import System

ALL = [queues.WORKFLOWS, *queues.ACTIVITY_QUEUES]


async def test_health_is_0_only_where_a_worker_serves_every_queue(system: System) -> None:
    """From nobody to all: the server remembers for a while who has served."""
    ended = await inside(system.config, "health")
    assert ended.code == 1
    assert [line.split()[:2] for line in ended.out.splitlines()] == [["FAIL", name] for name in ALL]
    async with system.workers("workflows,catalogue,pack"):
        for name in ("workflows", "catalogue", "pack"):
            await until_served(system, name)
        ended = await inside(system.config, "health")
        assert ended.code == 1
        assert (
            "FAIL  archiver-lts-copy    nobody serves it   next: start  archiver worker --queues lts-copy" in ended.out
        )
        assert "ok    archiver-pack        1 asking" in ended.out
        told = json.loads((await inside(system.config, "--json", "health")).out)
        assert (told["version"], told["healthy"]) == (1, False)
        assert told["unserved"] == [name for name in ALL if name.startswith("archiver-lts") or name.endswith("delete")]
        assert (await inside(system.config, "health", "--queue", "pack", "--queue", "archiver-catalogue")).code == 0
        assert (await inside(system.config, "health", "--queue", "pack", "--queue", "lts")).code == 1
        async with system.workers("lts,delete"):
            for name in ("lts", "delete"):
                await until_served(system, name)
            told = json.loads((await inside(system.config, "--json", "health")).out)
            assert (told["healthy"], told["unserved"]) == (True, [])
            assert [one["name"] for one in told["queues"] if one["served"]] == ALL
            assert (await inside(system.config, "health")).code == 0


async def until_served(system: System, name: str) -> None:
    async def ok() -> bool:
        return (await inside(system.config, "health", "--queue", name)).code == 0

    await until(ok, f"{name} is served")


async def test_health_of_a_temporal_that_is_down_is_7_and_json_where_it_is_asked_for(system: System) -> None:
    config = system.write_settings("down.toml", {"temporal": {"address": f"127.0.0.1:{free_port()}"}})
    ended = await inside(config, "--json", "health")
    assert ended.code == 7
    assert json.loads(ended.out)["error"]["type"] == "Unreachable"


@pytest.mark.parametrize("name", ["nonsense", "", "pack lts"])
async def test_health_of_a_queue_that_is_none_is_2_in_words(system: System, name: str) -> None:
    ended = await inside(system.config, "health", "--queue", name)
    assert ended.code == 2
    assert ended.in_lines(3), ended


async def test_what_a_pause_says_is_what_was_set_though_reads_are_behind(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def behind(*_: object, **__: object) -> DescribeTaskQueueResponse:
        return DescribeTaskQueueResponse()

    monkeypatch.setattr(system.client.workflow_service, "describe_task_queue", behind)
    for paused in (True, False):
        (state,) = await queues.set_paused(system.client, ["archiver-pack"], paused, reason="new disks", who="anna")
        assert (state.paused, state.reason, state.who) == (paused, "new disks", "anna")


async def test_each_worker_that_asks_on_a_paused_queue_is_seen(tmp_path: Path) -> None:
    # A server as it comes divides them among four partitions of the queue, and shows those of one.
    port = servers.free_port()
    as_it_comes = [f"matching.numTaskqueue{kind}Partitions=4" for kind in ("Read", "Write")]
    more = [part for value in as_it_comes for part in ("--dynamic-config-value", value)]
    server = servers.temporal_dev_server(tmp_path, port=port, in_memory=True, more=more).start()
    try:
        client = await until_answers(f"127.0.0.1:{port}")
        queue, workers = "archiver-pack", [f"worker-{k}" for k in range(8)]
        await queues.set_paused(client, [queue], True, reason="new disks", who="anna")
        polls = [asyncio.create_task(_ask(client, queue, worker)) for worker in workers]
        try:
            await until(lambda: _asking(client, queue, len(workers)), "all are seen")
            assert len(set(await partitions(client, queue))) >= 4, (
                "the server did not divide the queue, so this shows nothing"
            )
        finally:
            for poll in polls:
                poll.cancel()
            await asyncio.wait(polls)
    finally:
        server.stop()


async def _ask(client: Client, queue: str, worker: str) -> None:
    request = PollActivityTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=queue), identity=worker
    )
    while True:
        await client.workflow_service.poll_activity_task_queue(request, timeout=timedelta(seconds=70))


async def _asking(client: Client, queue: str, workers: int) -> bool:
    return (await queues.read(client, [queue]))[queue].asking == workers
