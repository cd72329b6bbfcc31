"""Reads of many callers who each ask for one thing, made by as few requests as the moment allows.

Who asks in a quiet moment is served at once, by a request of its own. Those who ask while one is under way, or just after one
began, are served by one request after it. Nothing is kept: what an asker gets was always read after it asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

SPACING_SECONDS = 0.01
"""Between the beginnings of two requests: a post is made to wait no longer than this for company."""
PATIENCE_SECONDS = 0.05
"""Who asks waits no longer than this for a request that is under way: one that hangs must not hold up the others."""


class Together(Generic[Key, Value]):
    """``one`` reads one key; ``many`` several: it may leave some out, or raise, and ``one`` then says why.

    ``most`` is how many keys one request may carry. Safe for concurrent calls, within one event loop.
    """

    def __init__(
        self,
        one: Callable[[Key], Awaitable[Value]],
        many: Callable[[list[Key]], Awaitable[Mapping[Key, Value]]],
        *,
        most: int,
    ) -> None:
        self._one, self._many, self._most = one, many, most
        self._asked: dict[Key, asyncio.Future[Value]] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._going: asyncio.TimerHandle | None = None
        self._went = float("-inf")

    async def read(self, key: Key) -> Value:
        """What ``one`` would return or raise for this key."""
        future = self._asked.get(key)
        if future is None:
            loop = asyncio.get_running_loop()
            future = self._asked[key] = loop.create_future()
            future.add_done_callback(_seen)
            if self._going is None:
                self._go_at(loop.time() + PATIENCE_SECONDS if self._under_way else self._went + SPACING_SECONDS)
        # Others may wait for it too: it does not end with one of them.
        return await asyncio.shield(future)

    def _go_at(self, when: float) -> None:
        # Never in this instant: whoever else asks in it goes along.
        if self._going is not None:
            self._going.cancel()
        self._going = asyncio.get_running_loop().call_at(when, self._go)

    def _go(self) -> None:
        """Send for those who wait."""
        self._going, self._went = None, asyncio.get_running_loop().time()
        waiting, self._asked = list(self._asked.items()), {}
        for start in range(0, len(waiting), self._most):
            task = asyncio.create_task(self._serve(dict(waiting[start : start + self._most])))
            self._under_way.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._asked and not self._under_way:
            self._go_at(self._went + SPACING_SECONDS)

    async def _serve(self, asked: dict[Key, asyncio.Future[Value]]) -> None:
        if len(asked) > 1:
            # Whose fault it was, and in what words, each is told by its own reading.
            with contextlib.suppress(Exception):
                for key, value in (await self._many(list(asked))).items():
                    asked.pop(key).set_result(value)
        await asyncio.gather(*(self._alone(key, future) for key, future in asked.items()))

    async def _alone(self, key: Key, future: asyncio.Future[Value]) -> None:
        try:
            future.set_result(await self._one(key))
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            if not isinstance(error, Exception):
                raise


def _seen(future: asyncio.Future[Value]) -> None:
    """Its exception was looked at, also where those who asked have gone."""
    if not future.cancelled():
        future.exception()
