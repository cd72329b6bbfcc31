"""Slow, silent and many connections: nobody else notices, and health checks are always answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from bridge.connections import OPEN, SHARE
from tests.bridge.edge import BEARER, Bridge, is_problem
from tests.pipeline.system import System

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEAD = f"POST /api/v1/jobs HTTP/1.1\r\nHost: bridge\r\nAuthorization: {BEARER}\r\nContent-Length: 100\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(system: System, **settings: Any) -> AsyncIterator[Bridge]:
    bridge = Bridge(system, **settings)
    try:
        yield bridge.start()
    finally:
        await bridge.stop()


async def opened(bridge: Bridge, number: int, text: str = "", caller: str = "127.0.0.1") -> list[Streams]:
    """So many connections that say this and no more."""
    made = []
    for _ in range(number):
        streams = await asyncio.open_connection("127.0.0.1", bridge.port, local_addr=(caller, 0))
        streams[1].write(text.encode())
        await streams[1].drain()
        made.append(streams)
    return made


def close(connections: list[Streams]) -> None:
    for _, writer in connections:
        writer.close()


@pytest.mark.parametrize("text", ["", "POST /api/v1/jobs HTTP/1.1\r\nHost: bridge\r\nX-Slow: "], ids=["silent", "slow"])
async def test_more_connections_that_ask_nothing_than_there_may_be_keep_nobody_out(system: System, text: str) -> None:
    async with serving(system, connections=100, head_seconds=60.0) as bridge:
        connections = await opened(bridge, 520, text)
        assert (await bridge.http.get("/health/live")).status_code == 200
        assert (await bridge.http.get("/health/ready")).status_code == 503, "nobody serves the queues"
        job = await system.job(await system.dataset({"a.txt": b"1"}, landed=False))
        await bridge.taken(job)
        # Of one caller no more than its share is held.
        open_still = [one for one in connections if not one[0].at_eof()]
        assert len(open_still) <= SHARE * OPEN * 100
        close(connections)


async def test_heads_that_do_not_come_in_time_are_given_up_however_they_trickle(system: System) -> None:
    async with serving(system, head_seconds=1.0) as bridge:
        (silent,) = await opened(bridge, 1)
        (slow,) = await opened(bridge, 1, "GET /health/live HTTP/1.1\r\nX-Slow: ")

        async def trickle() -> None:
            with contextlib.suppress(OSError):
                for _ in range(100):
                    slow[1].write(b"x")
                    await slow[1].drain()
                    await asyncio.sleep(0.2)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(30):
            assert await silent[0].read() == b""
            assert (await slow[0].read()).startswith(b"HTTP/1.1 408 ")
        assert not trickling.done(), "it would have gone on"
        trickling.cancel()
        close([silent, slow])


async def test_a_connection_that_is_kept_for_the_next_request_is_not_given_up(system: System) -> None:
    async with serving(system, head_seconds=0.5) as bridge:
        ((reader, writer),) = await opened(bridge, 1)
        for _ in range(2):
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: bridge\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            assert (await reader.readuntil(b"}")).endswith(b'{"status":"ok"}')
            await asyncio.sleep(1.5)
        # A second head that begins and does not end is given up as the first one would be.
        writer.write(b"GET /health")
        async with asyncio.timeout(30):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_one_callers_requests_are_limited_to_its_share_and_health_checks_are_not(system: System) -> None:
    async with serving(system, connections=10, body_seconds=60.0) as bridge:
        slow = await opened(bridge, int(SHARE * 10), HEAD)
        job = await system.job(await system.dataset({"a.txt": b"1"}, landed=False))

        async def refused() -> httpx.Response:
            while (answer := await bridge.post({"id": job})).status_code != 503:
                await asyncio.sleep(0.05)
            return answer

        async with asyncio.timeout(60):
            is_problem(await refused(), 503, "too many requests", "bridge.connections", "sweep")
        assert (await bridge.http.get("/health/live")).status_code == 200
        # Another caller has what is left; together they have no more than all.
        other = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
        async with httpx.AsyncClient(base_url=bridge.url, transport=other, headers={"Authorization": BEARER}) as http:
            assert (await http.post("/api/v1/jobs", json={"id": job})).status_code == 201
            more: list[Streams] = []
            async with asyncio.timeout(60):
                while (answer := await http.post("/api/v1/jobs", json={"id": job})).status_code != 503:
                    more += await opened(bridge, 1, HEAD, caller="127.0.0.3")
            is_problem(answer, 503, "too many requests")
            assert (await http.get("/health/live")).status_code == 200
        close([*slow, *more])

        async def taken() -> int:
            return (await bridge.post({"id": job})).status_code

        async with asyncio.timeout(60):
            while await taken() != 201:
                await asyncio.sleep(0.05)
