"""What the bridge needs is not there: it says so, to callers and to whoever asks how it is, and goes on when it is back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from archiver.catalogue.standin.app import Fault
from bridge.health import QUEUES
from cli import servers
from tests.bridge.edge import Bridge, is_problem
from tests.cli.running import archiver
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.system import System

FILES = {"a.txt": b"hello"}


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    for _ in range(600):
        if await holds():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"never: {what}")


async def test_a_bridge_without_temporal_serves_503s_that_say_when_to_come_back_and_goes_on_when_it_is_there(
    system: System, tmp_path: Path
) -> None:
    port = servers.free_port()
    temporal = servers.temporal_dev_server(tmp_path, port=port)
    bridge = Bridge(system, {"temporal": {"address": f"127.0.0.1:{port}", "namespace": "default"}}, answer_seconds=5.0)
    job = await system.job(await system.dataset(FILES, landed=False))

    async def posted(status: int) -> httpx.Response:
        answers = []

        async def comes() -> bool:
            answers.append(await bridge.post({"id": job}))
            return answers[-1].status_code == status

        await until(comes, f"a {status}")
        return answers[-1]

    try:
        bridge.start()
        for _ in range(2):
            answer = await posted(503)
            told = is_problem(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
            assert "Temporal" in answer.text
            assert told["next"]
            assert (await bridge.http.get("/health/live")).status_code == 200
            ready = await bridge.http.get("/health/ready")
            assert ready.status_code == 503
            assert any(text.startswith("temporal: ") for text in ready.json()["missing"])
            temporal.start().wait_for_port(port)
            assert (await posted(201)).json()["uuid"] == job
            temporal.kill()
    finally:
        await bridge.stop()
        temporal.stop()


async def test_scicat_gone_or_ill_or_silent_is_a_503_and_its_return_is_noticed(make_system: MakeSystem) -> None:
    system = await make_system()
    bridge = Bridge(system, answer_seconds=3.0)
    job = await system.job(await system.dataset(FILES, landed=False))
    assert system.scicat is not None
    try:
        bridge.start()
        system.scicat.stop()
        is_problem(await bridge.post({"id": job}), 503, "SciCat does not answer")
        missing = (await bridge.http.get("/health/ready")).json()["missing"]
        assert "scicat: does not say that it is well" in missing
        system.scicat.start()
        system.standin.faults.append(Fault("GET", job, times=3, status=500))
        is_problem(await bridge.post({"id": job}), 503, "status 500")
        system.standin.faults.append(Fault("GET", job, hang_seconds=20))
        answer = await bridge.post({"id": job})
        is_problem(answer, 503, "within 3 s", "the sweep takes it up")
        assert answer.headers["retry-after"]
        assert await bridge.workflow(job) is None
        await bridge.taken(job)
    finally:
        await bridge.stop()


async def test_ready_names_every_queue_that_nobody_polls_and_is_200_once_all_are_served(
    make_system: MakeSystem,
) -> None:
    system = await make_system()
    bridge = Bridge(system)
    try:
        bridge.start()
        async with httpx.AsyncClient(base_url=bridge.url, trust_env=False, timeout=60) as anybody:
            assert (await anybody.get("/health/live")).json() == {"status": "ok"}
            answer = await anybody.get("/health/ready")
            assert answer.status_code == 503
            assert answer.json()["missing"] == [f"queue {queue}: nobody polls it" for queue in QUEUES]
            assert "archiver" in QUEUES
            assert "archiver-lts-copy" in QUEUES
            async with system.workers("workflows,catalogue,pack"):

                async def only_the_lts_is_missing() -> bool:
                    missing = (await anybody.get("/health/ready")).json()["missing"]
                    return all("lts" in text or "delete" in text for text in missing) and len(missing) > 0

                await until(only_the_lts_is_missing, "pollers are seen")
                async with system.workers("lts"):

                    async def ready() -> bool:
                        return (await anybody.get("/health/ready")).status_code == 200

                    await until(ready, "all queues are polled")
                    answer = await anybody.get("/health/ready")
                    assert answer.json()["status"] == "ready"
                    assert answer.json()["missing"] == []
    finally:
        await bridge.stop()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "the bridge has no credentials"),
        ({"ARCHIVER_BRIDGE__TOKEN": "short"}, "bridge.token: must have 16 characters or more"),
        ({"ARCHIVER_BRIDGE__USERNAME": "scicat"}, "username and password belong together"),
        ({"ARCHIVER_BRIDGE__TOKEN": ""}, "bridge.token: must have 16 characters or more"),
    ],
)
def test_a_bridge_without_credentials_does_not_start_and_says_what_to_set(
    tmp_path: Path, more: dict[str, str], said: str
) -> None:
    done = archiver("bridge", cwd=tmp_path, **more)
    assert done.returncode == 2
    assert done.stderr.startswith("error    ")
    assert said in done.stderr
    assert "\nnext     " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bridge_whose_port_is_taken_says_so(tmp_path: Path, bridge: Bridge) -> None:
    more = {"ARCHIVER_BRIDGE__TOKEN": "0123456789abcdef", "ARCHIVER_BRIDGE__PORT": str(bridge.port)}
    done = archiver("bridge", cwd=tmp_path, **more)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{bridge.port}" in done.stderr


async def test_a_bridge_told_to_stop_answers_what_is_under_way_first(system: System) -> None:
    bridge = Bridge(system)
    job = await system.job(await system.dataset(FILES, landed=False))
    try:
        bridge.start()
        system.standin.faults.append(Fault("GET", job, hang_seconds=2))
        asked = asyncio.create_task(bridge.post({"id": job}))
        await until(lambda: _true(not any(fault.path == job for fault in system.standin.faults)), "SciCat was asked")
        os.kill(bridge.child.pid, signal.SIGTERM)
        assert (await asked).status_code == 201
        await until(lambda: _true(bridge.child.exit_code is not None), "it ended")
        assert bridge.child.exit_code == 0
    finally:
        await bridge.stop()


async def _true(value: bool) -> bool:
    return value
