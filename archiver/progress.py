"""How long-running domain code reports progress and learns that it must stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Called by streaming code after every chunk, from any thread.

    ``advance`` may raise ``errors.Stopped``: the caller then cleans up what this attempt wrote and lets it through.
    """

    def advance(self, size_bytes: int = 0, files: int = 0) -> None:
        """Report work done since the last call: payload bytes and whole files. Raises ``errors.Stopped``."""

    def note(self, text: str) -> None:
        """Say in a few words what is being waited for or done now; also an occasion to stop."""


async def uncut(work: Awaitable[T]) -> T:
    """Await ``work`` to its end also when cancelled, and be cancelled then: what it writes must not come after a clean-up."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class Silent:
    """A ``Progress`` that reports nothing and never stops."""

    def advance(self, size_bytes: int = 0, files: int = 0) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


SILENT = Silent()
