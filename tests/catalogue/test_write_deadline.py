"""A request that was prepared before the process stood still is never sent, however late the stop came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from archiver.catalogue.session import Session
from archiver.errors import Stopped
from archiver.settings import SciCatSettings
from archiver.write_deadline import WriteDeadline, boot_time, may_write, writing_until


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_outside_of_a_step_anything_may_be_written() -> None:
    may_write()


def test_p6_what_is_heard_of_may_write_and_what_stood_still_never_again() -> None:
    clock = Clock()
    with writing_until(WriteDeadline(10, clock)) as deadline:
        clock.now += 9
        may_write()
        deadline.renew()
        clock.now += 9
        may_write()
        clock.now += 2
        deadline.renew()
        with pytest.raises(Stopped, match="stood still for 11 s"):
            may_write()
        deadline.renew()
        with pytest.raises(Stopped):
            may_write()
    may_write()


async def test_it_holds_in_the_tasks_and_threads_of_a_step() -> None:
    clock = Clock()
    with writing_until(WriteDeadline(10, clock)):
        task = asyncio.create_task(asyncio.to_thread(may_write))
        clock.now += 11
        with pytest.raises(Stopped):
            await task
        with pytest.raises(Stopped):
            await asyncio.create_task(_later())


async def _later() -> None:
    may_write()


def test_the_clock_goes_on() -> None:
    before = boot_time()
    assert boot_time() >= before


class Server:
    """Accepts connections, remembers what came, and answers ``{}``."""

    def __init__(self) -> None:
        self.came: list[bytes] = []
        self.clock = Clock()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(2**16)
        self.came.append(data)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield made


def session_to(port: int) -> Session:
    return Session(SciCatSettings.model_validate({"url": f"http://127.0.0.1:{port}", "token": "t" * 20}))


async def test_p6_a_write_that_waited_for_its_connection_is_not_sent_when_the_process_stood_still_meanwhile(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, connect = session_to(server.port), asyncio.get_running_loop().create_connection

    async def slow(*given: object, **how: object) -> object:
        made = await connect(*given, **how)  # type: ignore[arg-type]
        server.clock.now += 60
        return made

    try:
        with writing_until(WriteDeadline(10, server.clock)):
            assert (await session.call("PATCH", "/api/v4/jobs/1", json_body={}))[0] == 200
            assert len(server.came) == 1
            monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", slow)
            with pytest.raises(Stopped):
                await session.call("PATCH", "/api/v4/jobs/1", json_body={})
        await asyncio.sleep(0.1)
        assert [data for data in server.came[1:] if data] == [], "not one byte"
    finally:
        await session.close()


async def test_p6_what_only_reads_is_sent_at_any_time(server: Server) -> None:
    session = session_to(server.port)
    try:
        with writing_until(WriteDeadline(10, server.clock)):
            server.clock.now += 60
            assert (await session.call("GET", "/api/v4/jobs/1"))[0] == 200
            with pytest.raises(Stopped):
                await session.call("PATCH", "/api/v4/jobs/1", json_body={})
    finally:
        await session.close()
