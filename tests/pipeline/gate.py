"""A gate before a server: what the server sends passes freely, slowly, or waits. It stops a transfer at a chosen place."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from cli.servers import free_port
from tests.pipeline.system import Overrides, System


class Gate:
    """A TCP server on a port of its own, in a thread of its own, that passes everything on to ``target``."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname, parts.port
        self._own = free_port()
        self.url = f"http://127.0.0.1:{self._own}"
        self._limit: int | None = None
        self._rate: float | None = None
        self._since = 0.0
        self._passed = 0
        self.holding = False
        """Whether something waits now, or did since the gate was last set."""
        self.given_up = False
        """Whether somebody went away whose answer waited, since the gate was last set."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gate", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._pass, "127.0.0.1", self._own), self._loop
        ).result()

    def shut(self, after_bytes: int = 0) -> None:
        """Let so many bytes pass and no more."""
        self._set(after_bytes, None)

    def slow(self, bytes_per_second: float) -> None:
        """Let bytes pass at this rate."""
        self._set(None, bytes_per_second)

    def open(self) -> None:
        """Let everything pass."""
        self._set(None, None)

    def _set(self, limit: int | None, rate: float | None) -> None:
        self.holding = self.given_up = False
        self._limit, self._rate, self._passed, self._since = limit, rate, 0, time.monotonic()

    def _may_pass(self, size: int) -> bool:
        room = self._limit
        if self._rate is not None:
            room = int((time.monotonic() - self._since) * self._rate)
        if room is not None and self._passed + size > room:
            self.holding = True
            return False
        self._passed += size
        return True

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server: asyncio.StreamWriter | None = None
        try:
            from_server, to_server = await asyncio.open_connection(self._host, self._port)
            await asyncio.gather(self._pump(reader, to_server), self._pump(from_server, writer, asker=reader))
        except (OSError, asyncio.CancelledError):
            pass  # either side may go at any time, and the gate too
        finally:
            for end in (writer, to_server):
                if end is not None:
                    end.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asker: asyncio.StreamReader | None = None
    ) -> None:
        while data := await reader.read(2**15):
            while asker is not None and not self._may_pass(len(data)):
                self.given_up |= asker.at_eof()
                await asyncio.sleep(0.01)
            writer.write(data)
            await writer.drain()
        writer.close()

    def stop(self) -> None:
        """Cut every connection."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def gate_before_s3(system: System) -> Iterator[Gate]:
    """A gate before the system's S3 server."""
    gate = Gate(str(system.settings.s3.endpoint))
    try:
        yield gate
    finally:
        gate.open()
        gate.stop()


def landing_through(system: System, gate: Gate) -> Overrides:
    """Settings of a worker that reads the landing zone through the gate: it stops in pack."""
    s3 = system.settings.s3
    assert s3.secret_key is not None
    keys = {"access_key": s3.access_key, "secret_key": s3.secret_key.get_secret_value()}
    # One request at a time: so many bytes through the gate are so many bytes packed.
    return {"landing": {"s3": {"endpoint": gate.url, **keys}}, "datablock": {"fetch_objects": 1}}


def staging_through(gate: Gate) -> Overrides:
    """Settings of a worker that reaches all of S3 through the gate: an LTS worker stops in copy."""
    return {"s3": {"endpoint": gate.url}}
