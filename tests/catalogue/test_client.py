"""The SciCat client: lists read completely or not at all, writes done once however the answer comes, records believed late."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archiver.catalogue import client, payloads
from archiver.catalogue.client import SciCat
from archiver.catalogue.payloads import Counters
from archiver.catalogue.queries import PAGE
from archiver.catalogue.session import QUICK_TRIES
from archiver.catalogue.standin.app import Account, Fault, StandInSettings
from archiver.errors import (
    ArchiverError,
    CatalogueFault,
    CatalogueRecordInvalid,
    JobNotWritable,
    UnknownDataset,
    UnknownJob,
)
from cli.servers import free_port
from tests.catalogue.place import (
    ADMIN,
    PASSWORD,
    Break,
    Place,
    answering,
    at,
    datablock,
    job,
    origdatablock,
    record,
    scicat_settings,
)
from tests.pipeline.system import StandInServer

BLOCKS = 123
Call = Callable[[SciCat], Awaitable[Any]]

# --- reading blocks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def large() -> tuple[Place, str]:
    """A dataset of more origdatablocks and datablocks than any list of SciCat shows."""
    place = Place()
    pid = await place.dataset(blocks=BLOCKS, files=2)
    await place.dataset(blocks=3)
    await place.datablocks(pid, BLOCKS)
    return place, pid


async def paths(scicat: SciCat, pid: str) -> list[str]:
    """All paths of all origdatablocks."""
    return [file.path async for block in scicat.origdatablocks(pid) for file in block.catalogue_files(pid)]


async def test_more_than_100_origdatablocks_are_read_completely_each_once(large: tuple[Place, str]) -> None:
    place, pid = large
    async with place.scicat() as scicat:
        assert sorted(await paths(scicat, pid)) == [f"run/{n:06}.tif" for n in range(2 * BLOCKS)]


async def test_more_than_100_datablocks_are_read_completely_each_once(large: tuple[Place, str]) -> None:
    place, pid = large
    async with place.scicat() as scicat:
        found = await scicat.datablocks(pid)
    assert sorted(block.archive_id for block in found) == sorted(f"{pid}/data/{n}.tar.gz" for n in range(BLOCKS))
    assert {(block.dataset, block.size, block.packed_size, block.files) for block in found} == {(pid, 20, 12, 2)}


async def test_few_blocks_are_held_at_a_time(large: tuple[Place, str]) -> None:
    place, pid = large
    place.line.sent.clear()
    async with place.scicat() as scicat:
        blocks = scicat.origdatablocks(pid)
        await anext(blocks)
        before = place.line.count("GET", "/origdatablocks$")
        await anext(blocks)
        assert place.line.count("GET", "/origdatablocks$") == before
        await anext(blocks)
        assert place.line.count("GET", "/origdatablocks$") == before + 1


@pytest.mark.parametrize("when", range(6))
async def test_a_token_that_expires_between_any_two_calls_hides_no_block(
    place: Place, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = await place.dataset(blocks=5)
    await place.datablocks(pid, 5)
    asked, onwards = 0, place.line.handle_async_request

    async def expire(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        if request.method == "GET" and request.url.path.endswith("datablocks"):
            asked += 1
            if asked == when:
                place.standin.expire_tokens()
        return await onwards(request)

    monkeypatch.setattr(place.line, "handle_async_request", expire)
    async with place.scicat() as scicat:
        assert len(await paths(scicat, pid)) == 10
        asked = 0
        assert len(await scicat.datablocks(pid)) == 5


EMPTY, SHORT = b"[]", b'[{"_id": "x", "archiveId": "a", "size": 1, "packedSize": 1}]'
READ: dict[str, Callable[[SciCat, str], Any]] = {
    "origdatablocks": paths,
    "datablocks": lambda scicat, pid: scicat.datablocks(pid),
}


@pytest.mark.parametrize("what", READ)
async def test_a_list_that_was_empty_once_is_read_again(place: Place, what: str) -> None:
    pid = await place.dataset(blocks=2)
    await place.datablocks(pid, 2)
    place.standin.faults.append(Fault("GET", f"/api/v./{what}", status=200, raw=EMPTY))
    async with place.scicat() as scicat:
        assert len(await READ[what](scicat, pid)) == (4 if what == "origdatablocks" else 2)


@pytest.mark.parametrize("what", READ)
@pytest.mark.parametrize(("body", "retryable"), [(EMPTY, False), (SHORT, True)])
async def test_a_list_shorter_than_scicats_count_is_a_fault_that_names_the_right(
    place: Place, what: str, body: bytes, retryable: bool
) -> None:
    pid = await place.dataset(blocks=2)
    await place.datablocks(pid, 2)
    place.standin.faults.append(Fault("GET", f"/api/v./{what}", status=200, raw=body, times=99))
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match=f"does not show all {what}") as caught:
            await READ[what](scicat, pid)
    assert "ADMIN_GROUPS" in str(caught.value.next_step)
    assert caught.value.expected == f"2 {what}"
    assert caught.value.retryable is retryable


async def test_a_server_that_ignores_skip_is_found_out_and_not_asked_for_ever(place: Place) -> None:
    pid = await place.dataset(blocks=2)
    body = json.dumps([{"_id": str(n)} for n in range(PAGE)]).encode()
    place.standin.faults.append(Fault("GET", "/count", status=200, body={"count": 10**9}, times=9))
    place.standin.faults.append(Fault("GET", "/api/v4/origdatablocks", status=200, raw=body, times=99))
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match="does not show all"):
            await paths(scicat, pid)


@pytest.mark.parametrize("count", [b"null", b"-1", b"1.5", b"true", b'"2"', b"[]"])
async def test_a_count_that_is_no_number_is_a_fault(place: Place, count: bytes) -> None:
    pid = await place.dataset(blocks=2)
    place.standin.faults.append(Fault("GET", "/count", status=200, raw=b'{"count": ' + count + b"}", times=9))
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match="count of origdatablocks"):
            await paths(scicat, pid)


async def test_origdatablocks_that_vanish_while_they_are_read_are_a_fault(place: Place) -> None:
    pid = await place.dataset(blocks=6)
    async with place.scicat() as scicat:
        blocks = scicat.origdatablocks(pid)
        first = await anext(blocks)
        others = [one["_id"] for one in place.standin.store.heads("origdatablocks", pid) if one["_id"] != first.id]
        for key in others:
            place.standin.store.delete("origdatablocks", key)
        with pytest.raises(CatalogueFault, match="vanished while they were read") as caught:
            async for _ in blocks:
                pass
    assert caught.value.retryable


async def test_an_origdatablock_that_comes_while_others_are_read_is_a_fault_to_be_retried(place: Place) -> None:
    pid = await place.dataset(blocks=3)
    async with place.scicat() as scicat:
        blocks = scicat.origdatablocks(pid)
        await anext(blocks)
        await place.ask("POST", "/api/v3/origdatablocks", origdatablock(pid, 9))
        with pytest.raises(CatalogueFault, match="changed while they were read") as caught:
            async for _ in blocks:
                pass
        assert caught.value.retryable
        assert len(await paths(scicat, pid)) == 8


async def test_no_origdatablock_where_scicat_counts_files_is_a_fault_and_no_empty_dataset(place: Place) -> None:
    pid = await place.dataset(numberOfFiles=5)
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match="counts files of dataset") as caught:
            await paths(scicat, pid)
    assert caught.value.expected == "origdatablocks with 5 files"
    assert not caught.value.retryable


async def test_no_origdatablock_where_scicat_counts_none_is_an_empty_dataset(place: Place) -> None:
    pid = await place.dataset()
    async with place.scicat() as scicat:
        assert await paths(scicat, pid) == []


# --- one record -------------------------------------------------------------------------------------------------------


async def test_a_dataset_that_scicat_does_not_know_is_none(place: Place) -> None:
    async with place.scicat() as scicat:
        assert await scicat.dataset("un/known") is None


@pytest.mark.parametrize(
    ("body", "retryable"),
    [(b"<html>no such host</html>", True), (b"", True), (b'{"message": "Cannot GET /api/v4/datasets/x"}', False)],
)
async def test_a_404_that_is_not_of_the_record_is_a_wrong_address(body: bytes, retryable: bool) -> None:
    calls: list[Call] = [lambda s: s.dataset("a/b"), lambda s: s.job("j"), lambda s: s.datablocks("a/b")]
    for call in calls:
        async with answering((404, body)) as scicat:
            with pytest.raises(CatalogueFault, match=r"check scicat\.url") as caught:
                await call(scicat)
        assert caught.value.retryable is retryable


async def test_a_job_that_scicat_does_not_know_is_refused(place: Place) -> None:
    async with place.scicat() as scicat:
        with pytest.raises(UnknownJob, match="Invalid job id"):
            await scicat.job("3f1c2a52-8f0f-4a55-9d0c-0a8e1c5c7a11")


async def test_an_answer_about_another_record_is_not_believed() -> None:
    async with answering((200, b'{"pid": "c/d", "id": "other", "type": "archive"}')) as scicat:
        with pytest.raises(CatalogueFault, match="not dataset a/b"):
            await scicat.dataset("a/b")
        with pytest.raises(CatalogueFault, match="not job j"):
            await scicat.job("j")


# --- a job, written once ----------------------------------------------------------------------------------------------

FINISHED = payloads.job_update("finishedSuccessful", "1 dataset: 1 archived.", {"summary": "1 dataset", "none": None})


def mails(place: Place) -> list[str]:
    """Status codes of the mails that a site would have sent at the end of a job."""
    return [code for _, code in place.standin.mails if code.startswith("finished")]


def reset_and_ill(place: Place) -> None:
    """The answer is lost, and SciCat is ill when it is asked what it has."""
    place.line.breaks.append(Break("PATCH", "/jobs/"))
    place.standin.faults.append(Fault("GET", "/jobs/", status=503, times=2))


BEFALLS: dict[str, Callable[[Place], None]] = {
    "nothing": lambda place: None,
    "done, then 502": lambda place: place.standin.faults.append(Fault("PATCH", "/jobs/", status=502, execute=True)),
    "done, then 500": lambda place: place.standin.faults.append(Fault("PATCH", "/jobs/", status=500, execute=True)),
    "done, then 400 of an update action": lambda place: place.standin.faults.append(
        Fault("PATCH", "/jobs/", status=400, body={"status": 400, "message": "mail failed"}, execute=True)
    ),
    "done, then html with 200": lambda place: place.standin.faults.append(
        Fault("PATCH", "/jobs/", status=200, raw=b"<html>", execute=True)
    ),
    "done, then a reset connection": lambda place: place.line.breaks.append(Break("PATCH", "/jobs/")),
    "done, then a timeout": lambda place: place.line.breaks.append(Break("PATCH", "/jobs/", httpx.ReadTimeout)),
    "500 and not done": lambda place: place.standin.faults.append(Fault("PATCH", "/jobs/", status=500)),
    "503 twice and not done": lambda place: place.standin.faults.append(Fault("PATCH", "/jobs/", status=503, times=2)),
    "no connection": lambda place: place.line.breaks.append(Break("PATCH", "/jobs/", httpx.ConnectError, done=False)),
    "an expired token": lambda place: place.standin.expire_tokens(),
    "done, then reset, then the reading fails twice": reset_and_ill,
}


@pytest.mark.parametrize("befalls", BEFALLS.values(), ids=BEFALLS.keys())
async def test_p2_a_terminal_status_is_written_exactly_once_whatever_befalls_the_call(
    place: Place, befalls: Callable[[Place], None]
) -> None:
    job_id = await place.job(await place.dataset())
    async with place.scicat() as scicat:
        await scicat.job(job_id)
        befalls(place)
        assert await scicat.update_job(job_id, FINISHED)
        assert mails(place) == ["finishedSuccessful"]
        assert not await scicat.update_job(job_id, FINISHED)
        found = await scicat.job(job_id)
    assert mails(place) == ["finishedSuccessful"]
    assert (found.status_code, found.result["summary"]) == ("finishedSuccessful", "1 dataset")


async def test_p6_a_job_whose_end_was_written_is_not_written_again_by_a_repeated_activity(place: Place) -> None:
    job_id = await place.job(await place.dataset())
    for _ in range(3):
        place.standin.faults.append(Fault("PATCH", "/jobs/", status=500, execute=True, times=QUICK_TRIES))
        async with place.scicat() as scicat:
            await scicat.update_job(job_id, FINISHED)
    assert mails(place) == ["finishedSuccessful"]


@pytest.mark.parametrize(
    "change", [{"statusCode": "inProgress"}, {"statusMessage": "x"}, {"jobResultObject": {"a": 1}}]
)
async def test_what_differs_is_written(place: Place, change: dict[str, Any]) -> None:
    job_id = await place.job(await place.dataset())
    async with place.scicat() as scicat:
        await scicat.update_job(job_id, FINISHED)
        assert await scicat.update_job(job_id, FINISHED | change)
    assert len(place.standin.mails) == 2


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_a_write_of_a_job_that_is_refused_is_not_repeated(place: Place, status: int) -> None:
    job_id = await place.job(await place.dataset())
    place.standin.faults.append(Fault("PATCH", "/jobs/", status=status, times=9))
    async with place.scicat(token=place.token()) as scicat:
        with pytest.raises(CatalogueFault, match=f"status {status}") as caught:
            await scicat.update_job(job_id, FINISHED)
    assert not caught.value.retryable
    assert place.line.count("PATCH", "/jobs/") == 1
    assert mails(place) == []


async def test_a_scicat_that_stays_ill_is_left_to_temporal_after_a_few_tries(place: Place) -> None:
    job_id = await place.job(await place.dataset())
    place.standin.faults.append(Fault("PATCH", "/jobs/", status=503, times=99))
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault) as caught:
            await scicat.update_job(job_id, FINISHED)
    assert caught.value.retryable
    assert place.line.count("PATCH", "/jobs/") == QUICK_TRIES


async def test_a_job_is_submitted_once_even_if_scicat_answers_with_an_error_of_its_webhook(place: Place) -> None:
    pid = await place.dataset()
    place.standin.faults.append(Fault("POST", "/jobs", status=503, execute=True))
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match="see in SciCat whether the job is there") as caught:
            await scicat.create_job("archive", [pid], owner_group="p1")
        assert not caught.value.retryable
        assert len(place.standin.store.all("jobs")) == 1
        made = await scicat.create_job("archive", [pid], owner_group="p1")
    assert made.datasets[0].pid == pid
    assert place.line.count("POST", "/jobs") == 2


# --- a dataset, written -----------------------------------------------------------------------------------------------


async def test_a_lifecycle_is_patched_in_these_fields_only_and_through_faults(place: Place) -> None:
    pid = await place.dataset()
    await place.ask(
        "PATCH", at(pid, more="/datasetlifecycle"), {"retrieveStatusMessage": "kept", "storageLocation": "X"}
    )
    place.standin.faults.append(Fault("PATCH", "/datasetlifecycle", status=502, execute=True))
    async with place.scicat() as scicat:
        await scicat.patch_lifecycle(pid, payloads.lifecycle_started("job"))
        dataset = await scicat.dataset(pid)
    assert dataset is not None
    lifecycle = dataset.raw["datasetlifecycle"]
    assert (lifecycle["archivable"], lifecycle["archiveStatusMessage"]) == (False, "started")
    assert (lifecycle["retrieveStatusMessage"], lifecycle["storageLocation"]) == ("kept", "X")
    assert place.line.count("PATCH", "/datasetlifecycle$") == 2


async def test_a_409_to_a_lifecycle_that_does_not_change_is_a_success_of_older_backends(place: Place) -> None:
    pid = await place.dataset()
    place.standin.faults.append(Fault("PATCH", "/datasetlifecycle", status=409, body={"message": "no change"}))
    async with place.scicat() as scicat:
        await scicat.patch_lifecycle(pid, {"archivable": True})
    assert place.line.count("PATCH", "/datasetlifecycle") == 1


ORIGINAL = {"size": 20, "numberOfFiles": 2}
"""Of the two files that a dataset of ``place`` has."""


async def counters(place: Place, pid: str) -> dict[str, Any]:
    """The dataset's counters as SciCat has them."""
    dataset = (await place.ask("GET", at(pid))).json()
    return {name: dataset[name] for name in payloads.COUNTERS}


async def test_counters_that_are_right_are_not_written(place: Place) -> None:
    pid = await place.dataset(blocks=1)
    await place.datablocks(pid, 1)
    async with place.scicat() as scicat:
        assert not await scicat.patch_counters(pid, Counters(20, 2, 12, 2))
    assert place.line.count("PATCH", "/datasets/") == 0


@pytest.mark.parametrize(
    "before",
    [
        {"size": 0, "numberOfFiles": 0, "packedSize": 12},
        {**ORIGINAL, "packedSize": 7},
        {**ORIGINAL, "packedSize": 12, "numberOfFilesArchived": 9},
    ],
)
async def test_whichever_counter_is_wrong_all_are_right_afterwards_and_none_is_0(
    place: Place, before: dict[str, Any]
) -> None:
    pid = await place.dataset(blocks=1)
    await place.datablocks(pid, 1)
    await place.ask("PATCH", at(pid), before)
    async with place.scicat() as scicat:
        assert await scicat.patch_counters(pid, Counters(20, 2, 12, 2))
    assert await counters(place, pid) == {**ORIGINAL, "packedSize": 12, "numberOfFilesArchived": 2}
    assert place.line.count("PATCH", "/datasets/") == 1


async def test_a_counter_that_another_writer_takes_back_is_set_again_and_a_stubborn_one_is_a_fault(
    place: Place,
) -> None:
    pid = await place.dataset(blocks=1)
    place.standin.faults.append(Fault("PATCH", "/datasets/", status=200, body={}))
    async with place.scicat() as scicat:
        assert await scicat.patch_counters(pid, Counters(20, 2, 12, 2))
        place.standin.faults.append(Fault("PATCH", "/datasets/", status=200, body={}, times=99))
        with pytest.raises(CatalogueFault, match="does not keep the counters") as caught:
            await scicat.patch_counters(pid, Counters(20, 2, 13, 2))
    assert caught.value.retryable


async def test_counters_of_a_dataset_that_is_gone_are_told_as_such_and_not_tried_again(place: Place) -> None:
    async with place.scicat() as scicat:
        with pytest.raises(UnknownDataset) as caught:
            await scicat.patch_counters("un/known", Counters(1, 1, 1, 1))
    assert not caught.value.retryable


async def test_zeroed_size_and_number_of_files_come_from_the_origdatablocks_or_the_datablocks(place: Place) -> None:
    archived = Counters(20, 2, 12, 2)
    zeroed = {"size": 0, "numberOfFiles": 0}
    many, none = await place.dataset(blocks=150, files=1), await place.dataset()
    kept = await place.dataset(blocks=150, files=1)
    async with place.scicat() as scicat:
        for pid, right in ((many, (1500, 150)), (none, (20, 2)), (kept, (1000, 100))):
            if pid != kept:
                await place.ask("PATCH", at(pid), zeroed)
            dataset = await scicat.dataset(pid)
            assert dataset is not None
            assert await scicat.right_counters(dataset, archived) == archived._replace(size=right[0], files=right[1])


async def test_counters_are_put_right_and_the_lifecycle_stays(place: Place) -> None:
    pid = await place.dataset()
    await place.ask("PATCH", at(pid, more="/datasetlifecycle"), {"retrievable": True})
    async with place.scicat() as scicat:
        assert await scicat.patch_counters(pid, Counters(20, 2, 12, 3))
        dataset = await scicat.dataset(pid)
    assert dataset is not None
    assert (dataset.packed_size, dataset.number_of_files_archived) == (12, 3)
    assert dataset.lifecycle.retrievable


# --- a datablock, registered once -------------------------------------------------------------------------------------

REGISTERED: dict[str, tuple[bool, Callable[[Place], None]]] = {
    "nothing": (True, lambda place: None),
    "done, then 502": (False, lambda place: place.standin.faults.append(Fault("POST", "k", status=502, execute=True))),
    "done, then 500": (False, lambda place: place.standin.faults.append(Fault("POST", "k", status=500, execute=True))),
    "done, then reset": (False, lambda place: place.line.breaks.append(Break("POST", "/datablocks"))),
    "done, then a timeout": (
        False,
        lambda place: place.line.breaks.append(Break("POST", "/datablocks", httpx.ReadTimeout)),
    ),
    "done, then html": (
        False,
        lambda place: place.standin.faults.append(Fault("POST", "k", status=200, raw=b"<html>", execute=True)),
    ),
    "an expired token": (True, lambda place: place.standin.expire_tokens()),
}


@pytest.mark.parametrize(("now", "befalls"), REGISTERED.values(), ids=REGISTERED.keys())
async def test_p6_a_datablock_is_registered_once_whatever_befalls_the_call(
    place: Place, now: bool, befalls: Callable[[Place], None]
) -> None:
    pid = await place.dataset()
    async with place.scicat() as scicat:
        await scicat.whoami()
        befalls(place)
        assert await scicat.create_datablock(datablock(pid)) is now
        assert not await scicat.create_datablock(datablock(pid))
    assert len(place.standin.store.all("datablocks", pid)) == 1


@pytest.mark.parametrize("fault", [Fault("POST", "/datablocks", status=500), Fault("POST", "/datablocks", status=503)])
async def test_a_datablock_that_was_not_registered_is_a_fault_to_be_retried(place: Place, fault: Fault) -> None:
    pid = await place.dataset()
    place.standin.faults.append(fault)
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match=f"status {fault.status}") as caught:
            await scicat.create_datablock(datablock(pid))
        assert caught.value.retryable
        assert await scicat.create_datablock(datablock(pid))


@pytest.mark.parametrize(
    "change",
    [{"size": 21}, {"packedSize": 13}, {"version": "other"}, {"dataFileList": datablock("a/b", 7)["dataFileList"]}],
)
@pytest.mark.parametrize("lost", [False, True])
async def test_p3_another_datablock_of_that_archive_id_is_a_fault_and_stays_as_it_is(
    place: Place, change: dict[str, Any], lost: bool
) -> None:
    pid = await place.dataset()
    await place.datablocks(pid, 2)
    before = place.standin.store.all("datablocks")
    if lost:
        place.standin.faults.append(Fault("POST", "/datablocks", status=502, execute=True))
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match="another datablock is registered") as caught:
            await scicat.create_datablock(datablock(pid, 1, **change))
    assert not caught.value.retryable
    assert place.standin.store.all("datablocks") == before


async def test_a_datablock_of_another_dataset_with_that_archive_id_is_another(place: Place) -> None:
    pid, other = await place.dataset(), await place.dataset()
    await place.datablocks(other, 2)
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match="another datablock is registered"):
            await scicat.create_datablock(datablock(pid, archiveId=datablock(other)["archiveId"]))


async def test_a_conflict_that_scicat_does_not_show_is_a_fault_to_be_retried(place: Place) -> None:
    pid = await place.dataset()
    place.standin.faults.append(Fault("POST", "/datablocks", status=409))
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match="exists, but does not show it") as caught:
            await scicat.create_datablock(datablock(pid))
    assert caught.value.retryable


async def test_a_datablock_that_scicat_would_refuse_for_its_size_is_not_even_sent(place: Place) -> None:
    pid = await place.dataset()
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match=r"datablock\.max_metadata_bytes") as caught:
            await scicat.create_datablock(datablock(pid, version="v" * client.MAX_BODY_BYTES))
    assert not caught.value.retryable
    assert place.line.sent == []


@pytest.mark.parametrize(("status", "retryable"), [(500, True), (413, False)])
async def test_a_large_datablock_that_is_refused_points_to_the_limits_of_scicat_and_its_proxies(
    place: Place, status: int, retryable: bool
) -> None:
    pid = await place.dataset()
    place.standin.faults.append(Fault("POST", "/datablocks", status=status))
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match="MAX_FILE_UPLOAD_SIZE") as caught:
            await scicat.create_datablock(datablock(pid, version="v" * 2_000_000))
    assert caught.value.retryable is retryable


# --- over a real connection -------------------------------------------------------------------------------------------


@pytest.fixture
async def served() -> AsyncIterator[tuple[StandInServer, SciCat, httpx.AsyncClient]]:
    """The stand-in over HTTP, our client with little patience, and a user."""
    accounts = [Account(ADMIN, PASSWORD, admin=True)]
    server = StandInServer(free_port(), StandInSettings(accounts=accounts)).start()
    _, login = server.standin.login({"username": ADMIN, "password": PASSWORD})
    headers = {"Authorization": f"Bearer {login['access_token']}"}
    settings = scicat_settings(url=server.url, read_timeout_seconds=0.5)
    try:
        async with (
            SciCat(settings) as scicat,
            httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False) as user,
        ):
            yield server, scicat, user
    finally:
        server.stop()


async def test_a_write_whose_answer_comes_too_late_is_read_back_and_not_repeated(
    served: tuple[StandInServer, SciCat, httpx.AsyncClient],
) -> None:
    server, scicat, user = served
    made = await user.post("/api/v3/datasets", json=record())
    pid = made.json()["pid"]
    job_id = (await user.post("/api/v4/jobs", json=job(pid))).json()["id"]
    server.standin.faults.append(Fault("POST", "/datablocks", execute=True, hang_seconds=1.5))
    assert not await scicat.create_datablock(datablock(pid))
    server.standin.faults.append(Fault("PATCH", "/jobs/", execute=True, hang_seconds=1.5))
    assert await scicat.update_job(job_id, FINISHED)
    assert len(server.standin.store.all("datablocks")) == 1
    assert [code for _, code in server.standin.mails] == ["finishedSuccessful"]
    lines = [(method, path.rsplit("/", 1)[-1]) for method, path, _ in server.standin.log]
    assert lines.count(("PATCH", job_id)) <= 1


async def test_a_server_that_is_gone_is_named_with_its_address_and_found_again_when_it_is_back() -> None:
    port = free_port()
    async with SciCat(scicat_settings(url=f"http://127.0.0.1:{port}")) as scicat:
        with pytest.raises(CatalogueFault, match=f"127.0.0.1:{port}") as caught:
            await scicat.whoami()
        assert caught.value.retryable
        server = StandInServer(port, StandInSettings(accounts=[Account(ADMIN, PASSWORD, admin=True)])).start()
        try:
            assert await scicat.whoami()
        finally:
            server.stop()


# --- a server that says anything --------------------------------------------------------------------------------------

KEYS = (
    *("_id", "id", "pid", "type", "count", "archiveId", "datasetId", "size", "packedSize", "version", "dataFileList"),
    *("path", "time", "chk", "message", "error", "files", "datasetlifecycle", "jobParams", "datasetList", "statusCode"),
    *("statusMessage", "jobResultObject", "accessGroups", "access_token", "expires_in"),
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "a/b", "j", "x", "\0", "\ud800", "1", "2026-01-01T12:00:00Z"])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=12,
)
likely = st.fixed_dictionaries(
    {},
    optional={
        "_id": st.sampled_from(["x", "y"]) | anything,
        "id": st.just("j") | anything,
        "pid": st.just("a/b") | anything,
        "type": st.just("archive") | anything,
        "count": st.integers(0, 3) | anything,
        "archiveId": st.just("a/b/data/1.tar.gz") | anything,
        "datasetId": st.just("a/b") | anything,
        "size": st.just(20) | anything,
        "packedSize": st.just(12) | anything,
        "numberOfFiles": anything,
        "dataFileList": st.lists(anything, max_size=2) | anything,
        "datasetlifecycle": anything,
        "access_token": st.just("t") | anything,
        "expires_in": anything,
        "jobParams": anything,
        "jobResultObject": anything,
        "proposalIds": anything,
    },
)
bodies = st.one_of(likely, likely.map(lambda one: [one]), st.lists(likely, max_size=3), anything)
answers = st.lists(
    st.tuples(
        st.sampled_from([200, 200, 200, 201, 204, 302, 400, 401, 403, 404, 409, 413, 429, 500, 503]),
        bodies.map(lambda body: json.dumps(body).encode()) | st.binary(max_size=20),
    ),
    min_size=1,
    max_size=6,
)


async def all_files(scicat: SciCat) -> None:
    async for block in scicat.origdatablocks("a/b"):
        list(block.catalogue_files("a/b"))


CALLS: list[Call] = [
    all_files,
    lambda s: s.job("j"),
    lambda s: s.jobs("archive", "x"),
    lambda s: s.some_jobs(["j"]),
    lambda s: s.pids("started"),
    lambda s: s.storage_locations(["a/b"]),
    lambda s: s.dataset("a/b"),
    lambda s: s.datablocks("a/b"),
    lambda s: s.create_datablock(datablock("a/b")),
    lambda s: s.update_job("j", FINISHED),
    lambda s: s.patch_lifecycle("a/b", {"archivable": False}),
    lambda s: s.patch_counters("a/b", Counters(1, 1, 1, 1)),
    lambda s: s.create_job("archive", ["a/b"], owner_group="p1"),
    lambda s: s.whoami(),
]


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(answers, st.sampled_from([{}, {"username": ADMIN, "password": PASSWORD}]))
def test_a_server_that_says_anything_at_all_gives_a_result_or_a_fault_in_words(
    said: list[tuple[int, bytes]], account: dict[str, Any]
) -> None:
    async def meet() -> None:
        for call in CALLS:
            async with answering(*said, **account) as scicat:
                try:
                    await call(scicat)
                except (CatalogueFault, CatalogueRecordInvalid, JobNotWritable, UnknownDataset, UnknownJob) as error:
                    told.append(error)

    told: list[ArchiverError] = []
    asyncio.run(meet())
    for error in told:
        error.lines().encode()
        error.one_line().encode()
