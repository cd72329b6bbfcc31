"""Whether jobs that come in would be done: Temporal, SciCat, and somebody who polls each queue, as the server sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client

from activities.connection import answering
from activities.polled import asking, described
from archiver.catalogue.client import SciCat
from archiver.errors import ArchiverError
from bridge.temporal import Connection
from workflows import steps

CHECK_SECONDS = 4.0
KEPT_SECONDS = 2.0
"""Anybody may ask; the servers behind are asked no more often than this."""

QUEUES = tuple(dict.fromkeys([steps.WORKFLOWS, *(step.queue for step in steps.ALL)]))


@dataclass(frozen=True, slots=True)
class Readiness:
    """``checks``: each part and what it says; ``missing``: a sentence for each that is not as it must be."""

    checks: dict[str, str]
    missing: list[str]


class Health:
    """Looks at all parts at once. What it saw is kept for a moment."""

    def __init__(self, temporal: Connection, scicat: SciCat) -> None:
        self._temporal = temporal
        self._scicat = scicat
        self._lock = asyncio.Lock()
        self._seen: Readiness | None = None
        self._seen_at = float("-inf")

    async def ready(self) -> Readiness:
        """What is missing, if anything."""
        async with self._lock:
            if self._seen is None or time.monotonic() - self._seen_at > KEPT_SECONDS:
                self._seen = await self._look()
                self._seen_at = time.monotonic()
            return self._seen

    async def _look(self) -> Readiness:
        checks: dict[str, str] = {}
        checks["temporal"], checks["scicat"] = await asyncio.gather(
            _said(self._namespace()), _said(self._scicat_answers())
        )
        if checks["temporal"] == "ok":
            client = await self._temporal.client()
            said = await asyncio.gather(*(_said(_polled(client, queue)) for queue in QUEUES))
        else:
            said = ["not known: Temporal does not answer"] * len(QUEUES)
        checks |= {f"queue {queue}": text for queue, text in zip(QUEUES, said, strict=True)}
        return Readiness(checks, [f"{part}: {text}" for part, text in checks.items() if text != "ok"])

    async def _namespace(self) -> str:
        client = await self._temporal.client()
        with answering():
            await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
        return "ok"

    async def _scicat_answers(self) -> str:
        if not await self._scicat.healthy():
            return "does not say that it is well"
        await self._scicat.whoami()
        return "ok"


async def _polled(client: Client, queue: str) -> str:
    with answering():
        return "ok" if asking(await described(client, queue)) else "nobody polls it"


async def _said(check: Awaitable[str]) -> str:
    try:
        return await asyncio.wait_for(check, CHECK_SECONDS)
    except ArchiverError as error:
        return error.one_line()
    except TimeoutError:
        return f"no answer in {CHECK_SECONDS:.0f} s"
