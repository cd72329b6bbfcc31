"""Two patterns of asyncio in workflows: a bounded window over numbered work, and work that a cancel must not cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from temporalio import workflow

T = TypeVar("T")
Item = TypeVar("Item")


async def protected(work: Awaitable[T]) -> T:
    """Await ``work`` to its end, whatever cancels come meanwhile: they are absorbed. Raises what ``work`` raises."""
    task = asyncio.ensure_future(work)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                raise


async def windowed(items: Iterable[Item], one: Callable[[Item], Awaitable[None]], at_once: int) -> None:
    """Run ``one(item)`` for all items, ``at_once`` at a time. The first error stops the rest, which is awaited.

    The message of a cancel goes on to the work that it stops: children read there who asked, and why.
    """
    # A list, in the order of creation: commands must not depend on the order of a set.
    pending: list[asyncio.Task[None]] = []
    waiting = iter(items)
    exhausted = False
    try:
        while True:
            while not exhausted and len(pending) < at_once:
                try:
                    item = next(waiting)
                except StopIteration:
                    exhausted = True
                else:
                    pending.append(asyncio.create_task(_run(one, item)))
            if not pending:
                return
            await workflow.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            finished = [task for task in pending if task.done()]
            pending = [task for task in pending if not task.done()]
            for task in finished:
                task.result()
    except (Exception, asyncio.CancelledError) as error:
        # Not GeneratorExit: a workflow that leaves the worker's cache stops nothing.
        why = error.args[0] if isinstance(error, asyncio.CancelledError) and error.args else None
        for task in pending:
            task.cancel(why)
        await protected(_settle(pending))
        raise


async def _run(one: Callable[[Item], Awaitable[None]], item: Item) -> None:
    await one(item)


async def _settle(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
