"""What we rely on in SciCat, each as a request and the answer of each version. The next release's differences show here.

Run against any backend with ``make test-scicat``; against the stand-in, which must behave the same, in ``make test``.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from archiver.catalogue import payloads
from archiver.catalogue.payloads import COUNTERS, Counters
from archiver.errors import CatalogueFault
from cli.servers import free_port
from tests.catalogue.samples import SAMPLES
from tests.live.backend import MANAGER, USER, Backend, at, files

BAD_LIST = {"4.27": 400, "5.2": 422, "master": 422}
UPDATE = {"statusCode": "inProgress", "statusMessage": "Archiving 1 dataset."}


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
async def test_every_query_of_ours_is_accepted(backend: Backend, name: str) -> None:
    assert isinstance(await backend.found(SAMPLES[name]), list)


@pytest.mark.parametrize(
    ("path", "filter", "named"),
    [
        ("/api/v4/jobs", {"where": {"_id": {"$gt": "a"}}}, "where._id.$gt"),
        ("/api/v4/jobs", {"where": {"_id": {"$in": ["a"]}}}, "where._id.$in"),
        ("/api/v4/jobs", {"sort": {"_id": 1}}, "sort._id"),
        ("/api/v4/jobs", {"where": {"colour": 1}}, "where.colour"),
        ("/api/v4/datasets", {"where": {"colour": 1}}, "where.colour"),
        ("/api/v4/datasets", {"colour": 1}, "colour"),
    ],
)
async def test_a_filter_that_names_an_unknown_property_is_a_400(
    backend: Backend, path: str, filter: dict[str, Any], named: str
) -> None:
    answer = await backend.listed(path, filter)
    assert answer.status_code == 400, answer.text
    assert f"Property {named} should not exist in the filter object" in answer.text


async def test_jobs_are_found_by_id_and_beyond_an_id(backend: Backend) -> None:
    pid = await backend.dataset()
    made = sorted([await backend.job(pid) for _ in range(3)])
    for where, expected in (
        ({"$in": made[:2]}, made[:2]),
        ({"$in": made, "$gt": made[0]}, made[1:]),
        ({"$in": made, "$gt": made[0], "$lte": made[1]}, made[1:2]),
    ):
        answer = await backend.listed("/api/v4/jobs", {"where": {"id": where}})
        assert sorted(one["id"] for one in answer.json()) == expected, where


async def test_of_named_fields_id_is_one_only_if_it_is_named(backend: Backend) -> None:
    job_id = await backend.job(await backend.dataset())
    where = {"id": {"$in": [job_id]}}
    (one,) = (await backend.listed("/api/v4/jobs", {"where": where, "fields": ["id", "type"]})).json()
    assert set(one) == {"id", "type"}
    (one,) = (await backend.listed("/api/v4/jobs", {"where": where, "fields": ["id", "_id"]})).json()
    assert one == {"id": job_id, "_id": job_id}


async def test_which_of_the_two_sorts_of_jobs_counts(backend: Backend) -> None:
    pid = await backend.dataset()
    made = [await backend.job(pid) for _ in range(4)]
    old = backend.version == "4.27"

    async def ids(**more: Any) -> list[str]:
        answer = await backend.listed("/api/v4/jobs", {"where": {"id": {"$in": made}}, **more})
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()]

    assert (await ids(sort={"id": 1}) == sorted(made)) is (old or made == sorted(made))
    if not old:
        assert await ids(sort={"id": 1}) == made, "by creation"
        assert await ids(limits={"sort": {"id": "asc"}}) == sorted(made)
        assert await ids(limits={"sort": {"id": 1}}) == sorted(made, reverse=True)
    assert await ids(limits={"sort": {"id": "asc"}}, sort={"id": 1}) == sorted(made), "so both are sent"


async def test_jobs_are_limited_before_they_are_skipped(backend: Backend) -> None:
    pid = await backend.dataset()
    made = [await backend.job(pid) for _ in range(3)]
    where = {"id": {"$in": made}}
    answer = await backend.listed("/api/v4/jobs", {"where": where, "limits": {"limit": 2, "skip": 1}})
    assert len(answer.json()) == 1
    answer = await backend.listed("/api/v4/jobs", {"where": where, "limits": {"limit": 0}})
    assert len(answer.json()) == 3, "0 is the default"


async def test_a_list_of_origdatablocks_stops_at_10_without_a_word_while_the_count_is_true(backend: Backend) -> None:
    pid = await backend.dataset(blocks=12)
    assert len((await backend.listed("/api/v4/origdatablocks", {"where": {"datasetId": pid}})).json()) == 10
    count = await backend.ask("GET", at(pid, "/origdatablocks/count", version="v3"))
    assert count.json() == {"count": 12}
    async with backend.client() as scicat:
        assert len([block async for block in scicat.origdatablocks(pid)]) == 12


# --- who --------------------------------------------------------------------------------------------------------------


async def test_a_bad_token_is_a_403_and_an_expired_one_a_401_from_5_2(backend: Backend) -> None:
    bad = await backend.ask("GET", "/api/v4/jobs", role=None, headers={"Authorization": "Bearer nonsense"})
    assert bad.status_code == 403
    header = {"Authorization": f"Bearer {await backend.expired_token()}"}
    answer = await backend.ask("GET", "/api/v4/jobs", role=None, headers=header)
    if backend.version == "4.27":
        assert answer.status_code == 403
    else:
        assert (answer.status_code, "SESSION_EXPIRED" in answer.text) == (401, True)


async def test_what_nobody_in_particular_is_shown(backend: Backend) -> None:
    for path in ("/api/v4/origdatablocks", "/api/v4/jobs", "/api/v4/datasets"):
        assert (await backend.ask("GET", path, role=None)).status_code == 403, path
    for path in ("/api/v3/origdatablocks", "/api/v3/datablocks"):
        answer = await backend.ask("GET", path, role=None)
        if backend.version == "master":
            assert (answer.status_code, answer.json()) == (200, []), path
        else:
            assert answer.status_code == 403, path


async def test_who_only_manages_archives_is_shown_an_empty_list_of_datablocks(backend: Backend) -> None:
    pid = await backend.dataset()
    assert (await backend.datablock(pid)).status_code == 201
    count = await backend.ask("GET", at(pid, "/datablocks/count", version="v3"), role=MANAGER)
    assert count.status_code == 403
    answer = await backend.listed("/api/v3/datablocks", {"where": {"datasetId": pid}}, role=MANAGER)
    assert (answer.status_code, answer.json()) == (200, []), "an empty list is no evidence"


async def test_a_datasets_owner_may_patch_it_and_its_lifecycle(backend: Backend) -> None:
    pid = await backend.dataset(ownerGroup=await users_group(backend))
    assert (await backend.ask("PATCH", at(pid), {"description": "x"}, role=USER)).status_code == 200
    lifecycle = await backend.ask("PATCH", at(pid, "/datasetlifecycle"), {"archivable": False}, role=USER)
    assert lifecycle.status_code == 200


async def users_group(backend: Backend) -> str:
    account = (await backend.ask("GET", "/api/v3/auth/whoami", role=USER)).json()
    return str(account["currentGroups"][0])


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "listed",
    [
        None,
        [],
        [{"pid": "un/known", "files": []}],
        [{"pid": "PID", "files": ["no/such.tif"]}],
        [{"pid": "PID", "files": [], "size": 1}],
    ],
    ids=["none", "empty", "unknown pid", "unknown file", "a third key"],
)
async def test_a_wrong_dataset_list_is_refused(backend: Backend, listed: Any) -> None:
    pid = await backend.dataset(blocks=1)
    params = {} if listed is None else {"datasetList": json.loads(json.dumps(listed).replace('"PID"', json.dumps(pid)))}
    answer = await backend.post_job({**backend.job_body(pid), "jobParams": params})
    assert answer.status_code == BAD_LIST[backend.version], answer.text


async def test_what_else_is_refused_when_a_job_is_made(backend: Backend) -> None:
    pid = await backend.dataset(blocks=1)
    for body, status in (
        (backend.job_body(pid, wanted=["run/0000.tif"]), 400),
        (backend.job_body(pid, contactEmail="nobody at nowhere"), 400),
        (backend.job_body(pid, type="no-such-type"), 400),
        (backend.job_body(pid, pid), 404),
    ):
        answer = await backend.post_job(body)
        assert answer.status_code == status, (body, answer.text)


async def test_a_user_names_the_group_that_owns_the_job(backend: Backend) -> None:
    pid = await backend.dataset(ownerGroup=await users_group(backend))
    body = backend.job_body(pid)
    del body["ownerGroup"]
    assert (await backend.post_job(body, role=USER)).status_code == 403


async def test_a_job_of_more_than_100_datasets_is_refused(backend: Backend) -> None:
    pids = [await backend.dataset() for _ in range(101)]
    answer = await backend.post_job(backend.job_body(*pids))
    assert answer.status_code == BAD_LIST[backend.version]
    assert "do not exist" in answer.text
    assert (await backend.post_job(backend.job_body(*pids[:100]))).status_code == 201


async def test_a_job_is_taken_whether_anybody_hears_its_webhook_or_not(backend: Backend) -> None:
    pid = await backend.dataset()
    if backend.standin is not None:
        backend.standin.settings.webhook_url = f"http://127.0.0.1:{free_port()}/"
    try:
        answer = await backend.post_job(backend.job_body(pid))
    finally:
        if backend.standin is not None:
            backend.standin.settings.webhook_url = ""
    assert answer.status_code == 201
    assert answer.json()["statusCode"] == "jobSubmitted"


async def test_an_unknown_job_is_a_400_and_a_bad_body_comes_before_it(backend: Backend) -> None:
    path = f"/api/v4/jobs/{uuid4()}"
    assert (await backend.ask("GET", path)).status_code == 400
    answer = await backend.ask("PATCH", path, UPDATE)
    assert (answer.status_code, "Invalid job id" in answer.text) == (400, True)
    answer = await backend.ask("PATCH", path, {"statusCode": "a"})
    assert (answer.status_code, "statusMessage" in answer.text) == (400, True)


async def test_a_result_object_is_stored_as_it_is_replaced_as_a_whole_and_kept_if_absent(backend: Backend) -> None:
    path = f"/api/v4/jobs/{await backend.job(await backend.dataset())}"
    first = {"summary": "x", "stoppedBy": None, "counts": {"failed": None, "archived": 1}, "list": [None, {}]}
    for result, expected in ((first, first), (None, first), ({"b": 1}, {"b": 1})):
        body = UPDATE if result is None else {**UPDATE, "jobResultObject": result}
        answer = await backend.ask("PATCH", path, body)
        assert answer.status_code == 200, answer.text
        assert (await backend.ask("GET", path)).json()["jobResultObject"] == expected
    assert (await backend.ask("PATCH", path, {**UPDATE, "jobResultObject": []})).status_code == 400


async def test_once_a_dataset_of_a_job_is_deleted_no_update_of_the_job_goes(backend: Backend) -> None:
    pid, other = await backend.dataset(), await backend.dataset()
    path = f"/api/v4/jobs/{await backend.job(pid, other)}"
    await backend.delete_dataset(other)
    for _ in range(2):
        answer = await backend.ask("PATCH", path, UPDATE)
        assert (answer.status_code, "Unable to get a dataset." in answer.text) == (404, True), answer.text
    assert (await backend.ask("GET", path)).json()["statusCode"] == "jobSubmitted"


# --- datasets ---------------------------------------------------------------------------------------------------------


async def counters(backend: Backend, pid: str) -> dict[str, Any]:
    record = (await backend.ask("GET", at(pid))).json()
    return {name: record.get(name) for name in COUNTERS}


async def test_the_counters_are_right_after_a_datablock_was_registered(backend: Backend) -> None:
    pid = await backend.dataset(blocks=2)
    for number in (1, 2):
        assert (await backend.datablock(pid, number)).status_code == 201
    assert await counters(backend, pid) == Counters(40, 4, 24, 4).payload()


@pytest.mark.parametrize("kind", ["application/json", "application/merge-patch+json"])
async def test_a_patch_of_a_dataset_sets_the_counters_that_it_does_not_name_to_0_until_5_2(
    backend: Backend, kind: str
) -> None:
    pid = await backend.dataset(blocks=1)
    assert (await backend.datablock(pid)).status_code == 201
    right = await counters(backend, pid)
    patched = await backend.ask("PATCH", at(pid), {"description": "x"}, headers={"Content-Type": kind})
    assert patched.status_code == 200, patched.text
    there = await counters(backend, pid)
    zeroed = {"size": 0, "numberOfFiles": 0, "packedSize": 0}
    assert there == (right if backend.version == "master" else right | zeroed)
    async with backend.client() as scicat:
        await scicat.patch_counters(pid, Counters(20, 2, 12, 2))
        assert not await scicat.patch_counters(pid, Counters(20, 2, 12, 2)), "nothing differs any more"
    assert await counters(backend, pid) == right


async def test_an_empty_patch_of_a_dataset_is_a_200(backend: Backend) -> None:
    assert (await backend.ask("PATCH", at(await backend.dataset()), {})).status_code == 200


async def test_a_fresh_lifecycle_has_dates_and_no_return_messages(backend: Backend) -> None:
    pid = await backend.dataset()
    lifecycle = (await backend.ask("GET", at(pid))).json()["datasetlifecycle"]
    assert {"archiveReturnMessage", "retrieveReturnMessage"}.isdisjoint(lifecycle)
    assert {"archiveRetentionTime", "dateOfPublishing"} <= set(lifecycle)
    assert (lifecycle["archivable"], lifecycle["retrievable"]) == (True, False)


async def test_a_lifecycle_is_merged_by_its_own_address(backend: Backend) -> None:
    pid = await backend.dataset()
    path = at(pid, "/datasetlifecycle")
    for body in (payloads.lifecycle_started("job"), {"retrieveStatusMessage": "started"}):
        assert (await backend.ask("PATCH", path, body)).status_code == 200
    lifecycle = (await backend.ask("GET", at(pid))).json()["datasetlifecycle"]
    assert (lifecycle["archivable"], lifecycle["archiveStatusMessage"]) == (False, payloads.STARTED)
    assert lifecycle["retrieveStatusMessage"] == "started"


# --- datablocks -------------------------------------------------------------------------------------------------------


async def test_who_may_register_datablocks(backend: Backend) -> None:
    for group in (await users_group(backend), f"{backend.prefix}-foreign"):
        pid = await backend.dataset(ownerGroup=group)
        answer = await backend.datablock(pid, role=USER)
        assert answer.status_code == (403 if backend.version == "master" else 201), group


async def test_a_datablock_of_no_dataset_is_taken_until_5_2(backend: Backend) -> None:
    answer = await backend.datablock(f"{backend.prefix}/none")
    assert answer.status_code == (404 if backend.version == "master" else 201)


async def test_a_datablock_without_a_name_or_of_a_file_without_one_is_a_500(backend: Backend) -> None:
    pid = await backend.dataset()
    assert (await backend.datablock(pid, archiveId="")).status_code == 500
    assert (await backend.datablock(pid, dataFileList=[{**files(0)[0], "path": ""}])).status_code == 500


async def test_an_archive_id_is_given_once_and_an_unknown_datablock_is_a_404(backend: Backend) -> None:
    pid = await backend.dataset()
    assert (await backend.datablock(pid)).status_code == 201
    assert (await backend.datablock(pid)).status_code == 409
    assert (await backend.ask("GET", f"/api/v3/datablocks/{uuid4()}")).status_code == 404


async def test_bodies_of_16_4_mb_are_taken_and_of_19_mb_are_a_500(backend: Backend) -> None:
    pid = await backend.dataset()
    assert (await backend.datablock(pid, 1, version="v" * 16_400_000)).status_code == 201
    assert (await backend.datablock(pid, 2, version="v" * 19_000_000)).status_code == 500


# --- the client -------------------------------------------------------------------------------------------------------


async def test_the_client_lists_submitted_jobs_and_started_datasets(backend: Backend) -> None:
    pid = await backend.dataset()
    made = {await backend.job(pid) for _ in range(3)}
    await backend.ask("PATCH", at(pid, "/datasetlifecycle"), {"archiveStatusMessage": payloads.STARTED})
    async with backend.client() as scicat:
        assert made <= {head.id for head in await scicat.jobs("archive", "jobSubmitted")}
        assert set(await scicat.some_jobs(sorted(made))) == made
        assert pid in await scicat.pids(payloads.STARTED)
        assert await scicat.storage_locations([pid]) == {pid: None}


async def test_the_client_writes_a_status_once(backend: Backend) -> None:
    job_id = await backend.job(await backend.dataset())
    said = payloads.job_update("inProgress", "Archiving 1 dataset.", {"summary": "x", "stoppedBy": None})
    async with backend.client() as scicat:
        assert [await scicat.update_job(job_id, said) for _ in range(2)] == [True, False]


async def test_the_client_registers_a_datablock_once_and_knows_another_of_its_name(backend: Backend) -> None:
    pid = await backend.dataset()
    body = {
        "datasetId": pid,
        "archiveId": f"{backend.prefix}/{pid}/once",
        "size": 20,
        "packedSize": 12,
        "version": "tar.gz/1",
        "dataFileList": files(0),
    }
    async with backend.client() as scicat:
        assert [await scicat.create_datablock(body) for _ in range(2)] == [True, False]
        with pytest.raises(CatalogueFault, match="another datablock"):
            await scicat.create_datablock({**body, "packedSize": 13})
        assert [block.archive_id for block in await scicat.datablocks(pid)] == [body["archiveId"]]
