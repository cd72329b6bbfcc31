"""The bridge's way to SciCat, over real sockets: what httpx's own transport would do and say."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from archiver.catalogue.client import SciCat
from archiver.catalogue.line import Line
from archiver.errors import CatalogueFault
from cli.servers import free_port
from tests.catalogue.place import scicat_settings

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
EMPTY_LIST = HEAD + b"Content-Length: 2\r\n\r\n[]"


class Server:
    """Says what it is told to, to each request on a connection in turn; None: nothing; an empty text: it hangs up."""

    def __init__(self) -> None:
        self.says: list[bytes | None] = []
        self.heads: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                said = self.says.pop(0)
                if said is None:
                    await reader.read()
                if not said:
                    break
                writer.write(said)
                if said.endswith(b"..."):
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    it = Server()
    listening = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.port = listening.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    yield it
    listening.close()


def client(port: int, **more: Any) -> SciCat:
    settings = scicat_settings(url=f"http://127.0.0.1:{port}", token="t" * 20, **more)
    return SciCat(settings, transport=Line(settings))


async def ask(server: Any, path: str = "/api/v4/jobs", **more: Any) -> Any:
    async with client(server.port, **more) as scicat:
        return await scicat._session.call("GET", path)


async def test_a_pid_stays_one_segment_and_the_token_is_sent(server: Server) -> None:
    server.says = [EMPTY_LIST]
    assert await ask(server, "/api/v4/datasets/20.500%2Fa%20b%3F") == (200, [])
    assert server.heads[0].startswith(b"GET /api/v4/datasets/20.500%2Fa%20b%3F HTTP/1.1\r\n")
    assert b"authorization: Bearer " + b"t" * 20 + b"\r\n" in server.heads[0]


async def test_connections_are_kept_for_the_next_call(server: Server) -> None:
    server.says = [EMPTY_LIST] * 3
    async with client(server.port) as scicat:
        for _ in range(3):
            assert await scicat._session.call("GET", "/api/v4/jobs") == (200, [])
    assert server.connections == 1


async def test_a_compressed_answer_is_read(server: Server) -> None:
    body = gzip.compress(b'["x"]')
    server.says = [HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body]
    assert await ask(server) == (200, ["x"])


async def test_a_redirect_is_not_followed(server: Server) -> None:
    server.says = [b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"]
    with pytest.raises(CatalogueFault, match=r"check scicat\.url"):
        await ask(server)
    assert len(server.heads) == 1


async def test_an_answer_larger_than_the_limit_is_refused(server: Server) -> None:
    server.says = [HEAD + b"Content-Length: 3000\r\n\r\n" + b" " * 3000]
    with pytest.raises(CatalogueFault, match="too large"):
        await ask(server, max_answer_bytes=1000)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (None, httpx.ReadTimeout),
        (b"", httpx.RemoteProtocolError),
        (b"HTTP/1.1 nonsense...", httpx.RemoteProtocolError),
        (HEAD + b"Content-Length: 99\r\n\r\n[...", httpx.RemoteProtocolError),
    ],
    ids=["silent", "hangs up", "no HTTP", "cut off"],
)
async def test_a_call_that_gets_no_whole_answer_may_be_tried_again(
    server: Server, said: bytes | None, error: type[httpx.TransportError]
) -> None:
    server.says = [said, said]
    with pytest.raises(CatalogueFault, match="does not answer") as caught:
        await ask(server, read_timeout_seconds=0.5)
    assert caught.value.retryable
    assert error.__name__ in str(caught.value.found)


async def test_a_server_that_is_not_there_is_said_so() -> None:
    async with client(free_port()) as scicat:
        with pytest.raises(CatalogueFault, match="does not answer") as caught:
            await scicat._session.call("GET", "/api/v4/jobs")
    assert "ConnectError" in str(caught.value.found)
    assert caught.value.retryable
