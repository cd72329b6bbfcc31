"""The bridge's connection to Temporal: made when it is first needed, shared, and made anew until it is there."""

from __future__ import annotations

import asyncio

from temporalio.client import Client

from activities.connection import connect
from archiver.settings import Settings


class Connection:
    """``client`` once Temporal answered. A bridge starts without it: it then says 503, instead of being gone itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._connecting: asyncio.Task[Client] | None = None

    async def client(self) -> Client:
        """The client. Raises ``Unreachable``."""
        if self._client is None:
            # Shared by all who wait, and not ended with any one of them.
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.create_task(connect(self._settings))
            self._client = await asyncio.shield(self._connecting)
        return self._client
