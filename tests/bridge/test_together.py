"""Reads of callers at the same time share requests, and nobody notices but SciCat."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from archiver.catalogue.standin.app import Fault
from archiver.errors import CatalogueFault
from bridge.together import Together
from tests.bridge.edge import Bridge, is_problem
from tests.pipeline.system import System

FILES = {"a.txt": b"hello"}


class Source:
    """Answers with the number of the reading; ``open`` lets requests end."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.broken = False
        self.lacks: set[str] = set()

    async def one(self, key: str) -> int:
        n = await self._answer([key])
        if key in self.lacks:
            raise CatalogueFault(f"no {key}")
        return n

    async def many(self, keys: list[str]) -> dict[str, int]:
        n = await self._answer(keys)
        if self.broken:
            raise RuntimeError("ill")
        return {key: n for key in keys if key not in self.lacks}

    async def _answer(self, keys: list[str]) -> int:
        self.requests.append(keys)
        number = len(self.requests)
        await self.open.wait()
        return number

    def shared(self, most: int = 100) -> Together[str, int]:
        return Together(self.one, self.many, most=most)


async def begun(source: Source, requests: int) -> None:
    async with asyncio.timeout(30):
        while len(source.requests) < requests:
            await asyncio.sleep(0)


async def test_who_asks_alone_is_served_alone_and_every_time_anew() -> None:
    source = Source()
    together = source.shared()
    assert [await together.read("a"), await together.read("a")] == [1, 2]
    assert source.requests == [["a"], ["a"]]


async def test_who_asks_at_the_same_time_shares_a_request_and_each_gets_its_own() -> None:
    source = Source()
    together = source.shared(most=2)
    assert await asyncio.gather(*map(together.read, "abac")) == [1, 1, 1, 2]
    assert source.requests == [["a", "b"], ["c"]]


async def test_who_asks_while_a_request_is_under_way_gets_nothing_that_was_read_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.together.PATIENCE_SECONDS", 3600)
    source = Source()
    together = source.shared()
    source.open.clear()
    first = asyncio.create_task(together.read("a"))
    await begun(source, 1)
    later = [asyncio.create_task(together.read(key)) for key in "ab"]
    await asyncio.sleep(0)
    source.open.set()
    assert await first == 1
    assert await asyncio.gather(*later) == [2, 2]


async def test_who_asks_just_after_a_request_began_shares_the_next_with_those_who_come_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.together.SPACING_SECONDS", 2)
    source = Source()
    together = source.shared()
    await together.read("a")
    later = asyncio.create_task(together.read("b"))
    await asyncio.sleep(0.02)
    assert await asyncio.gather(later, together.read("c")) == [2, 2]


async def test_a_request_that_hangs_holds_up_nobody_else() -> None:
    source = Source()
    together = source.shared()
    source.open.clear()
    hanging = asyncio.create_task(together.read("a"))
    await begun(source, 1)
    other = asyncio.create_task(together.read("b"))
    await begun(source, 2)
    assert source.requests == [["a"], ["b"]]
    source.open.set()
    assert [await hanging, await other] == [1, 2]


async def test_what_a_shared_request_lacks_or_spoils_each_is_told_by_its_own() -> None:
    source = Source()
    together = source.shared()
    source.lacks = {"b"}
    a, b = await asyncio.gather(*map(together.read, "ab"), return_exceptions=True)
    assert a == 1
    assert isinstance(b, CatalogueFault)
    source.broken = True
    assert await asyncio.gather(*map(together.read, "ac")) == [4, 5]


async def test_an_asker_who_goes_takes_nobody_along() -> None:
    source = Source()
    together = source.shared()
    source.open.clear()
    gone, stays = (asyncio.create_task(together.read("a")) for _ in range(2))
    await begun(source, 1)
    gone.cancel()
    source.open.set()
    assert await stays == 1
    assert gone.cancelled()


async def test_jobs_posted_at_the_same_time_each_get_their_own_answer_by_few_reads_of_scicat(
    system: System, bridge: Bridge
) -> None:
    def listed(pid: str) -> list[dict[str, Any]]:
        return [{"pid": pid, "files": []}]

    pid, theirs = [await system.dataset(FILES, landed=False) for _ in range(2)]
    await system.http.patch(
        f"/api/v4/datasets/{theirs.replace('/', '%2F')}/datasetlifecycle", json={"storageLocation": "elsewhere"}
    )
    good = [await system.job(pid) for _ in range(20)]
    foreign = await system.job(jobParams={"datasetList": listed(pid), "storageLocation": "elsewhere"})
    stored_elsewhere = await system.job(theirs)
    unknown = str(uuid4())
    await bridge.taken(await system.job(pid))
    calls = len(system.standin.log)
    # The first read is slow, so that the others come while it is under way, on however slow a machine.
    system.standin.faults.append(Fault("GET", "/jobs", hang_seconds=0.3))
    asked = [*good, foreign, stored_elsewhere, unknown]
    answers = dict(zip(asked, await asyncio.gather(*(bridge.post({"id": job}) for job in asked)), strict=True))
    reads = len(system.standin.log) - calls
    for job in good:
        assert answers[job].json() == {"uuid": job, "name": f"archive-job/{job}"}
        assert await bridge.runs(job) == 1
    is_problem(answers[foreign], 422, "another archive")
    is_problem(answers[stored_elsewhere], 422, "belong to another archive")
    is_problem(answers[unknown], 404, "knows no job")
    assert reads < len(asked)
