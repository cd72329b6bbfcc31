"""Limits on connections: a deadline for request heads, a share per caller, and health checks that are always answered.

uvicorn itself has no deadline for a request's head, and answers 503 to everybody once there are too many connections, however
little they say. Here a connection that says nothing makes room, and only requests that are really worked on are counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from archiver.errors import CatalogueFault
from archiver.settings import BridgeSettings
from bridge.problems import problem
from bridge.requests import request_id

SHARE = 0.8
"""Of the connections, and of the requests at a time, that one caller may have. A proxy is one caller."""
OPEN = 1.5
"""Connections for each request that may be under way: those kept for a next request cost little. Beyond, one makes room."""
FRESH_SECONDS = 1.0
"""A connection on which something passed so lately may have a request on its way: others make room first."""
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
HEALTH = "/health/"

logger = logging.getLogger("archiver.bridge")


class Connections:
    """All open connections of the bridge, the oldest first."""

    def __init__(self, settings: BridgeSettings) -> None:
        self.head_seconds = settings.head_seconds
        self._most = settings.connections
        self._open: dict[LimitedProtocol, str] = {}

    def protocol(self, *args: Any, **kwargs: Any) -> LimitedProtocol:
        """A new connection's protocol, as uvicorn makes it."""
        return LimitedProtocol(self, *args, **kwargs)

    def opened(self, connection: LimitedProtocol) -> None:
        """Keep account of one more. Where there are too many, one that is not worked on makes room, or else the new one."""
        caller = connection.client[0] if connection.client else ""
        self._open[connection] = caller
        most = OPEN * self._most
        if Counter(self._open.values())[caller] > SHARE * most:
            self._make_room(caller, connection)
        elif len(self._open) > most:
            waiting = Counter(who for one, who in self._open.items() if not one.busy)
            self._make_room(waiting.most_common(1)[0][0], connection)

    def _make_room(self, caller: str, new: LimitedProtocol) -> None:
        now = new.loop.time()
        waiting = [one for one, who in self._open.items() if who == caller and one is not new and not one.busy]
        # First who was silent longest without ever having asked anything.
        self._close(
            min(
                waiting,
                key=lambda one: (now - one.since < FRESH_SECONDS, one.cycle is not None, one.since),
                default=new,
            )
        )

    def _close(self, connection: LimitedProtocol) -> None:
        self._open.pop(connection, None)
        connection.transport.close()

    def closed(self, connection: LimitedProtocol) -> None:
        """It is gone."""
        self._open.pop(connection, None)


class LimitedProtocol(H11Protocol):
    """A connection whose request heads must come in time."""

    def __init__(self, connections: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections = connections
        self._deadline: asyncio.TimerHandle | None = None
        self.since = 0.0
        """When something last passed."""

    @property
    def busy(self) -> bool:
        """Whether a request is being answered; its body has a deadline of its own."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """From now on the first request's head is waited for."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self._connections.opened(self)
        self._watch(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._connections.closed(self)
        self._watch(False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a head does not move its deadline."""
        self.since = self.loop.time()
        super().data_received(data)
        self._watch(not self.busy)

    def on_response_complete(self) -> None:
        """The next request may begin at any time, but once it begins its head must come."""
        self.since = self.loop.time()
        super().on_response_complete()
        self._watch(not self.busy and bool(self.conn.trailing_data[0]))

    def _watch(self, waiting: bool) -> None:
        if waiting and self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self._connections.head_seconds, self._too_slow)
        elif not waiting and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if not self.busy and not self.transport.is_closing():
            if self.conn.trailing_data[0]:
                self.transport.write(TOO_SLOW)
            self.transport.close()


class RequestLimit:
    """ASGI middleware: so many requests at a time, and of one caller its share; health checks are not counted."""

    def __init__(self, app: ASGIApp, settings: BridgeSettings) -> None:
        self._app = app
        self._most = settings.connections
        self._callers: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or say 503."""
        if scope["type"] != "http" or scope["path"].startswith(HEALTH):
            await self._app(scope, receive, send)
            return
        caller = scope["client"][0] if scope.get("client") else ""
        if self._callers.total() >= self._most or self._callers[caller] >= SHARE * self._most:
            full = CatalogueFault(
                "too many requests at a time",
                expected=f"at most {self._most} (bridge.connections), of one caller {SHARE:.0%} of them",
                found=f"{self._callers.total()}, of this caller {self._callers[caller]}",
                next_step="nothing need be done: the sweep takes the job up; or post it again later",
            )
            answer = problem(full, request_id.get())
            answer.headers["Connection"] = "close"
            await answer(scope, receive, send)
            return
        self._callers[caller] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]
