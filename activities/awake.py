"""A process that stood still (SIGSTOP, a paused machine) begins nothing of what it was given meanwhile.

Temporal may have handed work to its open polls, given that up, and had it done elsewhere: begun late, it would tidy up
what another attempt, or a later run of the dataset, has under way. What was running then stops by itself (``Beat``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.running import stopped
from archiver.write_deadline import boot_time

LOOK_SECONDS = 1.0
REFUSE_SECONDS = 2.0
"""After it woke: work that was given to it before comes up within this time."""


class Awake(Interceptor):
    """Refuses activities of a process that has just stood still for longer than ``limit_seconds``; they are retried."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._seen = boot_time()
        self._refused_until = 0.0

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Awake]:
        """Notice that the process stands still, while the context lasts."""
        self._seen = boot_time()
        task = asyncio.create_task(self._watch())
        try:
            yield self
        finally:
            task.cancel()

    async def _watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> bool:
        """Whether activities may begin."""
        now = boot_time()
        if now - self._seen > self._limit:
            self._refused_until = now + REFUSE_SECONDS
        self._seen = now
        return now >= self._refused_until

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """As Temporal asks for it."""
        return _Awake(next, self)


class _Awake(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, awake: Awake) -> None:
        super().__init__(next)
        self._awake = awake

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        if not self._awake.look():
            raise stopped("not begun: this process stood still")
        return await super().execute_activity(input)
