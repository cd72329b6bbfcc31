"""Jobs and datasets are listed completely, whatever order and limit SciCat of each version, or a proxy, applies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from random import Random
from typing import Any
from uuid import UUID

import httpx
import pytest

from archiver.catalogue import payloads
from archiver.catalogue.client import SciCat
from archiver.catalogue.queries import JOBS_AT_ONCE
from archiver.catalogue.standin.store import matches
from archiver.errors import CatalogueFault
from tests.catalogue.place import Place, at, job, scicat_settings

Order = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


async def test_jobs_are_listed_by_type_and_status_the_oldest_first_in_each_version(place: Place) -> None:
    pid = await place.dataset()
    made = [await place.job(pid) for _ in range(5)]
    for number, job_id in enumerate(made):
        record = place.standin.store.get("jobs", job_id)
        assert record is not None
        place.standin.store.put("jobs", job_id, record | {"createdAt": f"2026-01-0{number + 1}T00:00:00.000Z"})
    await place.ask("POST", "/api/v4/jobs", job(pid, type="retrieve"))
    async with place.scicat() as scicat:
        found = await scicat.jobs("archive", "jobSubmitted")
        assert [head.id for head in found] == made
        assert await scicat.jobs("archive", "inProgress") == []
        assert set(await scicat.some_jobs(made[:2])) == set(made[:2])


async def test_datasets_are_listed_by_their_archive_status_in_each_version(place: Place) -> None:
    made = [await place.dataset() for _ in range(3)]
    for pid in made[:2]:
        await place.ask("PATCH", at(pid, more="/datasetlifecycle"), {"archiveStatusMessage": payloads.STARTED})
    async with place.scicat() as scicat:
        assert await scicat.pids(payloads.STARTED) == sorted(made[:2])
        assert await scicat.storage_locations(made) == dict.fromkeys(made)


def server(jobs: list[dict[str, Any]], order: Order, limit: int) -> tuple[SciCat, list[dict[str, Any]]]:
    """Our client of a SciCat that lists these jobs in this order and never more than ``limit``; what it was asked."""
    asked: list[dict[str, Any]] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        query = json.loads(request.url.params["filter"])
        asked.append(query)
        found = order([one for one in jobs if matches(one, query["where"])])
        return httpx.Response(200, json=found[: min(limit, query["limits"]["limit"])])

    return SciCat(scicat_settings(token="t"), transport=httpx.MockTransport(answer)), asked


def heads(count: int) -> list[dict[str, Any]]:
    draw = Random(7)
    ids = [str(UUID(int=draw.getrandbits(128))) for _ in range(count)]
    times = [f"2026-01-01T00:{n // 60:02}:{n % 60:02}.000Z" for n in range(count)]
    return [
        {"id": one, "_id": one, "type": "archive", "statusCode": "s", "createdAt": time}
        for one, time in zip(ids, times, strict=True)
    ]


ORDERS: dict[str, Order] = {
    "by id": lambda jobs: sorted(jobs, key=lambda one: str(one["id"])),
    "by id downwards": lambda jobs: sorted(jobs, key=lambda one: str(one["id"]), reverse=True),
    "by creation": lambda jobs: jobs,
    "anyhow": lambda jobs: sorted(jobs, key=lambda one: hashlib.sha256(str(one["id"]).encode()).digest()),
}


@pytest.mark.parametrize("limit", [7, 50, 10_000])
@pytest.mark.parametrize("order", ORDERS)
async def test_every_job_is_found_once_whatever_the_order_and_the_silent_limit(order: str, limit: int) -> None:
    jobs = heads(120)
    scicat, asked = server(jobs, ORDERS[order], limit)
    async with scicat:
        found = await scicat.jobs("archive", "s")
    assert [head.id for head in found] == [one["id"] for one in jobs]
    if order == "by id":
        assert len(asked) == -(-120 // limit) + 1
    elif limit > 120:
        assert len(asked) == 3, "the whole, and its halves, which show nothing more"


async def test_a_list_that_is_longer_than_a_page_is_read_to_its_end() -> None:
    jobs = heads(JOBS_AT_ONCE + 10)
    scicat, asked = server(jobs, ORDERS["by id"], 10_000)
    async with scicat:
        assert len(await scicat.jobs("archive", "s")) == JOBS_AT_ONCE + 10
    assert len(asked) == 3


async def test_a_list_that_does_not_heed_where_is_a_fault_and_no_endless_loop() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=jobs)

    jobs = heads(3)
    async with SciCat(scicat_settings(token="t"), transport=httpx.MockTransport(answer)) as scicat:
        with pytest.raises(CatalogueFault, match="does not go on"):
            await scicat.jobs("archive", "s")
