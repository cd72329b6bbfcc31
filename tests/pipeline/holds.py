"""Holding a retrieval in a chosen step: one request to S3, or one call of SciCat, that gets no answer until it is let go."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from archiver.catalogue.standin.app import Fault
from tests.pipeline.faulty_s3 import FaultyS3, S3Fault
from tests.pipeline.moments import until
from tests.pipeline.system import Overrides, System

FOREVER = 3600.0

PLAN = ("GET", r"/retrievals/{pid}/[0-9a-f]+/[0-9a-f]{64}$")
"""``plan-retrieve`` reads what the step before it stored."""
BEGIN = ("PUT", r"/retrievals/{pid}/[0-9a-f]+/[0-9a-f]{64}$")
"""``begin-retrieve-dataset`` stores what SciCat said."""
PUT_FILE = ("PUT", r"^/retrieval-[^/]+/{pid}/(?!\.scicat-archiver/)[^?]*$")
"""``retrieve-datablock`` puts a small file."""
PUT_PART = ("PUT", r"/{pid}/.*partNumber=2")
"""``retrieve-datablock`` is in the middle of a large file."""
COMPLETE_FILE = ("POST", r"/{pid}/.*uploadId=")
"""``retrieve-datablock`` has given all of a large file."""
TELL = ("PUT", r"/{pid}/\.scicat-archiver/[0-9a-f]+/1\.jsonl\.gz$")
"""``retrieve-datablock`` stores what it delivered."""
FINISH = ("PUT", r"/{pid}/\.scicat-archiver/[0-9a-f]+/complete\.json$")
"""``finish-retrieve-dataset`` stores that all of it is there."""
LINK = ("GET", r"/{pid}/\.scicat-archiver/[0-9a-f]+/complete\.json$")
"""``finish-retrieve-job`` reads what it is to link to."""


class Held:
    """One answer that is held back."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.reached = threading.Event()
        self._go = threading.Event()

    def wait(self) -> None:
        """In the server's thread."""
        self.reached.set()
        self._go.wait(FOREVER)

    def let_go(self) -> None:
        """It goes on."""
        self._go.set()

    async def here(self) -> None:
        """Wait until somebody waits for it."""
        await until(self.reached.is_set, f"somebody asks for {self._what}")


class Holds:
    """What is held of one system, whose workers take ``proxy`` for the S3 server.

    Requests to S3 wait until they are let go; calls of SciCat for ``seconds``, or until their caller is dead.
    """

    def __init__(self, system: System, proxy: FaultyS3, seconds: float) -> None:
        self.system = system
        self.proxy = proxy
        self._seconds = seconds
        self._held: list[Held] = []
        self._calls: list[Fault] = []

    def s3(self, step: tuple[str, str], pid: str) -> Held:
        """The next such request about this dataset is not passed on until it is let go."""
        method, pattern = step
        held = Held(f"{method} {pattern} of {pid}")
        self._held.append(held)
        self.proxy.faults.append(S3Fault(method, pattern.replace("{pid}", re.escape(pid)), before=held.wait))
        return held

    def scicat(self, method: str, path: str, *, done: bool = False) -> Fault:
        """The next such call gets no answer for a while; what it asks for is ``done`` first, or else when it is answered."""
        fault = Fault(method, path, hang_seconds=self._seconds, execute=done)
        self._calls.append(fault)
        self.system.standin.faults.append(fault)
        return fault

    async def in_call(self, fault: Fault) -> None:
        """Wait until this call of SciCat hangs."""
        await until(lambda: not any(one is fault for one in self.system.standin.faults), f"in {fault}")

    async def all_here(self) -> None:
        """Wait until each that was not let go holds somebody."""
        for held in self._held:
            await held.here()
        for fault in self._calls:
            await self.in_call(fault)

    def let_all_go(self) -> None:
        """Nothing more is held at S3. Calls of SciCat that hang are left to their callers."""
        for held in self._held:
            held.let_go()
        self._held.clear()
        self._calls.clear()
        self.proxy.faults.clear()
        self.system.standin.faults.clear()


@contextmanager
def holding(system: System, *, scicat_seconds: float = FOREVER) -> Iterator[Holds]:
    """A proxy before the system's S3 server that holds what it is told to."""
    proxy = FaultyS3(str(system.settings.s3.endpoint).rstrip("/")).start()
    holds = Holds(system, proxy, scicat_seconds)
    try:
        yield holds
    finally:
        holds.let_all_go()
        proxy.stop()


def s3_through(holds: Holds, **more: Any) -> Overrides:
    """Settings of a worker that reaches all of S3 through the proxy."""
    return {"s3": {"endpoint": holds.proxy.url}, **more}
