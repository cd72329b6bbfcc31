"""Freezing an attempt of a step at one of its requests to SciCat, as SIGSTOP does it to a process: many at a time.

A frozen attempt sends no heartbeat, so that Temporal gives its step to another attempt. ``before``: the request is not sent
before the attempt is let go on. ``after``: its bytes are on the way, and reach SciCat only then.
"""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx
import pytest
from temporalio import activity
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)

from archiver.errors import Stopped
from archiver.write_deadline import WriteDeadline

When = Literal["before", "after"]


@dataclass
class Freeze:
    """The first attempt of ``step`` on ``key`` (a pid, or a job's id) is frozen at its request ``n``, counted from 0."""

    step: str
    key: str
    n: int
    when: When
    sent: int = 0
    frozen: bool = False
    held: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    refused: bool = False
    """Whether a request was not sent, because it came too late."""
    how: str = ""
    """How the attempt ended."""

    async def thawed(self) -> None:
        """Wait for ``let_go``. A process that stands still does not hear that the SDK cancels a step that says nothing."""
        while not self.go.is_set():
            with suppress(asyncio.CancelledError):
                await self.go.wait()

    def let_go(self) -> None:
        """As SIGCONT."""
        self.frozen = False
        self.go.set()


_current: contextvars.ContextVar[Freeze | None] = contextvars.ContextVar("freeze", default=None)
_requests: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("requests", default=None)


class Freezer(Interceptor):
    """An interceptor for workers of this process, whose requests to SciCat go through ``Through``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._waiting: dict[tuple[str, str], Freeze] = {}
        self._all: list[Freeze] = []
        self.methods: dict[str, list[str]] = {}
        """Of each step that ran, the methods of its requests: of the attempt that sent most."""
        real, renew = httpx.AsyncHTTPTransport, WriteDeadline.renew

        def renewed(deadline: WriteDeadline) -> None:
            freeze = _current.get()
            if freeze is None or not freeze.frozen:
                renew(deadline)

        monkeypatch.setattr("archiver.catalogue.session.httpx.AsyncHTTPTransport", lambda **how: Through(real(**how)))
        monkeypatch.setattr(WriteDeadline, "renew", renewed)

    def add(self, freeze: Freeze) -> Freeze:
        """Freeze this one."""
        self._waiting[freeze.step, freeze.key] = freeze
        self._all.append(freeze)
        return freeze

    def let_all_go(self) -> None:
        """Nothing stays frozen: a worker waits for its steps before it ends."""
        for freeze in self._all:
            freeze.let_go()

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """As Temporal asks for it."""
        return _Inbound(next, self)

    async def run(self, input: ExecuteActivityInput, run: Any) -> Any:
        """One attempt."""
        step, request = activity.info().activity_type, input.args[0] if input.args else None
        key = getattr(request, "pid", "") or getattr(request, "job_id", "")
        freeze = self._waiting.pop((step, key), None)
        requests: list[str] = []
        _requests.set(requests)
        _current.set(freeze)
        try:
            result = await run(input)
        except BaseException as error:
            if freeze is not None:
                freeze.how = f"{type(error).__name__}: {error}"
            raise
        else:
            if freeze is not None:
                freeze.how = "ended well"
            return result
        finally:
            if len(requests) > len(self.methods.get(step, [])):
                self.methods[step] = requests
            if freeze is not None:
                freeze.ended.set()


class _Inbound(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, freezer: Freezer) -> None:
        super().__init__(next)
        self._freezer = freezer

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        return await self._freezer.run(input, super().execute_activity)


class _Outbound(ActivityOutboundInterceptor):
    def heartbeat(self, *details: Any) -> None:
        freeze = _current.get()
        if freeze is None or not freeze.frozen:
            super().heartbeat(*details)


class Through(httpx.AsyncBaseTransport):
    """The product's own transport, behind the place where an attempt freezes."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx asks for it."""
        requests, freeze = _requests.get(), _current.get()
        if requests is not None:
            requests.append(request.method)
        if freeze is not None:
            n, freeze.sent = freeze.sent, freeze.sent + 1
            if n == freeze.n:
                freeze.frozen = True
                freeze.held.set()
                if freeze.when == "after":
                    # Nothing of the process looks at it any more.
                    request.extensions = {k: v for k, v in request.extensions.items() if k != "trace"}
                await freeze.thawed()
        try:
            return await self._inner.handle_async_request(request)
        except Stopped:
            if freeze is not None:
                freeze.refused = True
            raise

    async def aclose(self) -> None:
        """As httpx asks for it."""
        await self._inner.aclose()
