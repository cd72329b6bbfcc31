"""The stand-in SciCat shows every trap of the real one, and serves well."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from archiver.catalogue.standin import blocks
from archiver.catalogue.standin.app import Account, Fault, StandInSettings, create_app
from cli.servers import Child, clean_environment, free_port
from tests.catalogue.place import (
    ADMIN,
    BAD_LIST,
    MANAGER,
    PASSWORD,
    TIME,
    USER,
    Place,
    at,
    datablock,
    job,
    origdatablock,
    record,
)

# --- lists ------------------------------------------------------------------------------------------------------------


async def listed(place: Place, path: str, query: dict[str, Any] | None = None, *, name: str | None = ADMIN) -> Any:
    params = {} if query is None else {"filter": json.dumps(query)}
    answer = await place.ask("GET", path, name=name, params=params)
    return answer.json() if answer.status_code == 200 else answer.status_code


@pytest.fixture(scope="module")
async def large() -> tuple[Place, str]:
    """A dataset of 123 origdatablocks and as many datablocks."""
    place = Place()
    pid = await place.dataset(blocks=123, files=1)
    await place.datablocks(pid, 123)
    return place, pid


@pytest.mark.parametrize("collection", ["origdatablocks", "datablocks"])
async def test_a_nested_list_stops_at_100_without_paging_while_the_count_is_true(
    large: tuple[Place, str], collection: str
) -> None:
    place, pid = large
    path = at(pid, version="v3", more=f"/{collection}")
    assert len(await listed(place, path)) == 100
    limits = {"limits": {"limit": 200, "skip": 100}}
    assert len(await listed(place, path, limits)) == 100
    assert (await place.ask("GET", f"{path}/count")).json() == {"count": 123}


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/api/v3/origdatablocks", 100), ("/api/v3/datablocks", 100), ("/api/v4/origdatablocks", 10)],
)
async def test_a_top_level_list_stops_at_its_silent_limit(large: tuple[Place, str], path: str, limit: int) -> None:
    place, pid = large
    where = {"where": {"datasetId": pid}}
    assert len(await listed(place, path, where)) == limit
    assert len(await listed(place, path, {**where, "limits": {"limit": 200}})) == 123
    assert len(await listed(place, path, {**where, "limits": {"limit": 100, "skip": 100}})) == 23


async def test_v4_sorts_by_limits_sort_and_v3_by_limits_order_and_neither_by_the_others(
    large: tuple[Place, str],
) -> None:
    place, pid = large
    where = {"where": {"datasetId": pid}, "fields": ["_id"]}
    for path, ours, other in (
        ("/api/v4/origdatablocks", {"sort": {"_id": "desc"}}, {"order": "_id:desc"}),
        ("/api/v3/origdatablocks", {"order": "_id:desc"}, {"sort": {"_id": "desc"}}),
    ):
        made = await listed(place, path, {**where, "limits": {"limit": 123}})
        backwards = await listed(place, path, {**where, "limits": {"limit": 123, **ours}})
        assert [entry["_id"] for entry in backwards] == sorted((entry["_id"] for entry in made), reverse=True)
        answer = await listed(place, path, {**where, "limits": {"limit": 123, **other}})
        assert answer == (400 if "order" in other else made)


async def test_size_and_number_of_files_are_summed_over_the_first_100_blocks_only(large: tuple[Place, str]) -> None:
    place, pid = large
    dataset = (await place.ask("GET", at(pid))).json()
    assert (dataset["numberOfFiles"], dataset["size"]) == (100, 1000)
    assert (dataset["numberOfFilesArchived"], dataset["packedSize"]) == (246, 123 * 12)


async def test_a_list_of_ids_reads_no_list_of_files(large: tuple[Place, str]) -> None:
    place, pid = large
    said: list[str] = []
    place.standin.store._db.set_trace_callback(said.append)
    await listed(place, "/api/v4/origdatablocks", {"where": {"datasetId": pid}, "fields": ["_id"]})
    place.standin.store._db.set_trace_callback(None)
    assert said
    assert not [query for query in said if "files" in query]


async def test_getting_a_datablock_by_id_gives_the_first_of_all_instead(place: Place) -> None:
    pid = await place.dataset()
    await place.datablocks(pid, 2)
    first, second = place.standin.store.all("datablocks")
    assert (await place.ask("GET", f"/api/v3/datablocks/{second['_id']}")).json() == first
    assert (await place.ask("GET", "/api/v3/datablocks/unknown")).status_code == 404


async def test_there_are_no_datablocks_in_v4(place: Place) -> None:
    pid = await place.dataset()
    await place.datablocks(pid, 1)
    key = place.standin.store.all("datablocks")[0]["_id"]
    for method, path in (
        ("GET", "/api/v4/datablocks"),
        ("POST", "/api/v4/datablocks"),
        ("GET", f"/api/v4/datablocks/{key}"),
        ("DELETE", f"/api/v4/datablocks/{key}"),
        ("GET", at(pid, more="/datablocks")),
    ):
        answer = await place.ask(method, path, datablock(pid, 7) if method == "POST" else None)
        assert answer.status_code == 404, (method, path)
        assert answer.json()["message"].startswith("Cannot ")


@pytest.mark.parametrize(("version", "status"), [("v3", 500), ("v4", 400)])
async def test_a_malformed_filter_is_a_500_of_v3_origdatablocks_and_a_400_of_v4(
    place: Place, version: str, status: int
) -> None:
    for text in ("{", "[]", '{"where": 1}'):
        answer = await place.ask("GET", f"/api/{version}/origdatablocks", params={"filter": text})
        assert answer.status_code == status


# --- who --------------------------------------------------------------------------------------------------------------


async def test_a_login_is_a_201_with_token_and_lifetime(place: Place) -> None:
    for path in ("/api/v3/auth/login", "/api/v3/auth/ldap", "/api/v3/auth/msad"):
        answer = await place.ask("POST", path, {"username": USER, "password": PASSWORD}, name=None)
        assert answer.status_code == 201
        body = answer.json()
        assert body["access_token"] == body["id"]
        assert body["expires_in"] == body["ttl"] == 3600


@pytest.mark.parametrize("body", [{"username": USER, "password": "wrong"}, {"username": "nobody"}, {}, None, [], "a"])
async def test_a_wrong_login_is_a_401(place: Place, body: Any) -> None:
    assert (await place.ask("POST", "/api/v3/auth/login", body, name=None)).status_code == 401


async def test_the_old_login_is_a_201_without_a_body_and_v4_has_none(place: Place) -> None:
    account = {"username": USER, "password": PASSWORD}
    for path in ("/api/v3/users/login", "/api/v3/Users/login"):
        answer = await place.ask("POST", path, account, name=None)
        assert (answer.status_code, answer.content) == (201, b"")
    assert (await place.ask("POST", "/api/v4/auth/login", account, name=None)).status_code == 404


ANONYMOUS_403 = (
    ("GET", "/api/v4/jobs", None),
    ("GET", "/api/v4/jobs/x", None),
    ("POST", "/api/v4/jobs", job("a/b")),
    ("PATCH", "/api/v4/jobs/x", {"statusCode": "a", "statusMessage": "b"}),
    ("GET", at("a/b"), None),
    ("GET", "/api/v4/datasets", None),
    ("DELETE", at("a/b"), None),
    ("PATCH", at("a/b"), {"size": 1}),
    ("PATCH", at("a/b", more="/datasetlifecycle"), {"archivable": False}),
    ("GET", at("a/b", version="v3", more="/origdatablocks/count"), None),
    ("GET", at("a/b", version="v3", more="/datablocks"), None),
    ("GET", "/api/v4/origdatablocks", None),
    ("POST", "/api/v3/datablocks", datablock("a/b")),
    ("POST", "/api/v3/origdatablocks", origdatablock("a/b", 0)),
    ("DELETE", "/api/v3/datablocks/x", None),
)
V3_BLOCKS = ("/api/v3/origdatablocks", "/api/v3/datablocks")


@pytest.mark.parametrize("how", ["no token", "a bad token", "a token without Bearer", "an expired token"])
async def test_whoever_shows_no_good_token_is_anonymous_and_an_expired_one_is_a_401_from_5_2(
    place: Place, how: str
) -> None:
    place.standin.store.insert("datasets", "a/b", {**record(), "pid": "a/b", "_id": "a/b", "datasetlifecycle": {}})
    token = place.token()
    header = {
        "no token": {},
        "a bad token": {"Authorization": "Bearer nonsense"},
        "a token without Bearer": {"Authorization": token},
        "an expired token": {"Authorization": f"Bearer {token}"},
    }[how]
    place.standin.expire_tokens()

    async def ask(method: str, path: str, body: Any = None) -> httpx.Response:
        answer: httpx.Response = await place.ask(method, path, body, name=None, headers=header)
        return answer

    version = place.standin.settings.version
    if how == "an expired token" and version != "4.27":
        for call in (*ANONYMOUS_403, ("GET", "/api/v3/datasets"), ("GET", "/api/v3/auth/whoami")):
            answer = await ask(*call)
            assert (answer.status_code, answer.json()["message"]) == (401, "SESSION_EXPIRED"), call
        return
    for call in ANONYMOUS_403:
        assert (await ask(*call)).status_code == 403, call
    for path in V3_BLOCKS:
        answer = await ask("GET", path)
        assert (answer.status_code, answer.content == b"[]") == ((200, True) if version == "master" else (403, False))
    answer = await ask("GET", "/api/v3/datasets")
    assert (answer.status_code, answer.json()) == (200, [])
    whoami = await ask("GET", "/api/v3/auth/whoami")
    assert (whoami.status_code, whoami.content) == (200, b"")


async def test_the_classic_role_archivemanager_may_report_but_neither_register_nor_see_blocks(place: Place) -> None:
    pid = await place.dataset(blocks=1)
    await place.datablocks(pid, 1)
    job_id = await place.job(pid)
    key = place.standin.store.all("datablocks")[0]["_id"]

    async def status(method: str, path: str, body: Any = None) -> int:
        return int((await place.ask(method, path, body, name=MANAGER)).status_code)

    assert await status("PATCH", f"/api/v4/jobs/{job_id}", {"statusCode": "a", "statusMessage": "b"}) == 200
    assert await status("PATCH", at(pid, more="/datasetlifecycle"), {"archivable": False}) == 200
    assert await status("GET", at(pid)) == 200
    assert await status("PATCH", at(pid), {"size": 1}) == 403
    assert await status("POST", "/api/v3/datablocks", datablock(pid, 5)) == 403
    for what, path in (("datablocks", "/api/v3/datablocks"), ("origdatablocks", "/api/v4/origdatablocks")):
        assert await status("GET", at(pid, version="v3", more=f"/{what}")) == 403
        assert await status("GET", at(pid, version="v3", more=f"/{what}/count")) == 403
        assert await listed(place, path, {"where": {"datasetId": pid}}, name=MANAGER) == []
    assert await status("DELETE", f"/api/v3/datablocks/{key}") == 200


async def test_a_datasets_owner_may_patch_it_and_its_lifecycle_and_nobody_else_of_his_kind(place: Place) -> None:
    ours, theirs = await place.dataset(), await place.dataset(ownerGroup="p2")
    for more, body in (("", {"description": "x"}), ("/datasetlifecycle", {"archivable": False})):
        assert (await place.ask("PATCH", at(ours, more=more), body, name=USER)).status_code == 200
        assert (await place.ask("PATCH", at(theirs, more=more), body, name=USER)).status_code == 403


async def test_an_admin_outside_delete_groups_cannot_delete_a_datablock() -> None:
    place = Place(accounts=[Account(ADMIN, PASSWORD, admin=True, deletes=False)])
    pid = await place.dataset()
    await place.datablocks(pid, 1)
    key = place.standin.store.all("datablocks")[0]["_id"]
    assert (await place.ask("DELETE", f"/api/v3/datablocks/{key}")).status_code == 403


async def test_the_guards_look_at_the_caller_before_they_look_for_the_record(place: Place) -> None:
    """So a write of what does not exist tells a 403 from a 404 (read in the backend's controllers)."""
    place.standin.accounts["nobody"] = Account("nobody", PASSWORD)
    for path, body in (
        ("/api/v4/jobs/x", {"statusCode": "a", "statusMessage": "b"}),
        (at("no/such"), {"packedSize": 1}),
        (at("no/such", more="/datasetlifecycle"), {"archivable": False}),
    ):
        assert (await place.ask("PATCH", path, body, name="nobody")).status_code == 403, path
        assert (await place.ask("PATCH", path, body)).status_code in (400, 404), path


async def test_an_update_of_an_unknown_job_with_a_bad_body_is_answered_for_the_body(place: Place) -> None:
    answer = await place.ask("PATCH", "/api/v4/jobs/x", {"statusCode": "a"})
    assert (answer.status_code, "statusMessage" in str(answer.json()["message"])) == (400, True)
    answer = await place.ask("PATCH", "/api/v4/jobs/x", {"statusCode": "a", "statusMessage": "b"})
    assert answer.json()["message"] == "Invalid job id."


async def test_a_user_reads_only_what_is_of_his_groups(place: Place) -> None:
    ours, theirs = await place.dataset(blocks=1), await place.dataset(ownerGroup="p2", blocks=1)
    assert (await place.ask("GET", at(ours), name=USER)).status_code == 200
    assert (await place.ask("GET", at(theirs), name=USER)).status_code == 403
    assert (await place.ask("GET", f"/api/v4/jobs/{await place.job(theirs)}", name=USER)).status_code == 200
    answer = await place.ask("POST", "/api/v4/jobs", job(theirs, ownerGroup="p2"))
    assert (await place.ask("GET", f"/api/v4/jobs/{answer.json()['id']}", name=USER)).status_code == 403
    assert len(await listed(place, "/api/v4/jobs", name=USER)) == 1
    assert [one["pid"] for one in await listed(place, "/api/v4/datasets", name=USER)] == [ours]


# --- jobs -------------------------------------------------------------------------------------------------------------


async def test_an_unknown_job_is_a_400_and_not_a_404(place: Place) -> None:
    for method, body in (("GET", None), ("PATCH", {"statusCode": "a", "statusMessage": "b"})):
        answer = await place.ask(method, "/api/v4/jobs/3f1c2a52-8f0f-4a55-9d0c-0a8e1c5c7a11", body)
        assert (answer.status_code, answer.json()["message"]) == (400, "Invalid job id.")


@pytest.mark.parametrize(
    "change",
    [
        {"status": "x"},
        {"statusCode": "x"},
        {"type": "unknown"},
        {"jobParams": None},
        {"ownerGroup": None},
        {"contactEmail": "nobody at nowhere"},
        {"jobParams": {"datasetList": [{"pid": "PID", "files": ["run/000000.tif"]}]}},
    ],
)
async def test_a_job_that_is_not_as_the_dto_or_the_configuration_says_is_a_400_and_is_not_there(
    place: Place, change: dict[str, Any]
) -> None:
    pid = await place.dataset(blocks=1)
    body = json.loads(json.dumps({**job(pid), **change}).replace('"PID"', json.dumps(pid)))
    assert (await place.ask("POST", "/api/v4/jobs", body)).status_code == 400
    assert place.standin.store.all("jobs") == []


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "Invalid dataset list"),
        ({"datasetList": []}, "List of passed datasets is empty."),
        ({"datasetList": "PID"}, "Invalid dataset list"),
        ({"datasetList": [{"pid": "PID"}]}, "Dataset list is expected to contain sets of pid and files."),
        (
            {"datasetList": [{"pid": "PID", "files": [], "size": 1}]},
            "Dataset list is expected to contain sets of pid and files.",
        ),
        ({"datasetList": [{"pid": 1, "files": []}]}, "In datasetList each 'pid' field should be a string."),
        ({"datasetList": [{"pid": "un/known", "files": []}]}, "Datasets with pid un/known do not exist."),
        (
            {"datasetList": [{"pid": "PID", "files": ["no/such.tif"]}]},
            "At least one requested file could not be found.",
        ),
    ],
)
async def test_a_wrong_dataset_list_is_a_422_and_a_400_until_4_27(
    place: Place, params: dict[str, Any], message: str
) -> None:
    pid = await place.dataset(blocks=1)
    body = json.loads(json.dumps({**job(pid), "jobParams": params}).replace('"PID"', json.dumps(pid)))
    answer = await place.ask("POST", "/api/v4/jobs", body)
    assert (answer.status_code, answer.json()["message"]) == (BAD_LIST[place.standin.settings.version], message)
    assert place.standin.store.all("jobs") == []


async def test_a_job_of_more_than_100_datasets_is_refused_as_if_the_101st_did_not_exist(place: Place) -> None:
    pids = [await place.dataset() for _ in range(101)]
    answer = await place.ask("POST", "/api/v4/jobs", job(*pids))
    assert answer.status_code == BAD_LIST[place.standin.settings.version]
    assert answer.json()["message"] == f"Datasets with pid {pids[100]} do not exist."
    assert (await place.ask("POST", "/api/v4/jobs", job(*pids[:100]))).status_code == 201


async def test_a_user_names_a_group_of_his_own_and_everybody_each_dataset_once(place: Place) -> None:
    pid = await place.dataset()
    foreign = await place.dataset(ownerGroup="p2")
    for body, status in (
        (job(pid), 201),
        (job(pid, ownerGroup=None), 403),
        (job(pid, ownerGroup="p2"), 403),
        (job(foreign), 403),
        (job(pid, pid), 404),
    ):
        assert (await place.ask("POST", "/api/v4/jobs", body, name=USER)).status_code == status, body
    answer = await place.ask("POST", "/api/v4/jobs", job(pid, pid))
    assert (answer.status_code, answer.json()["message"]) == (404, f'Unable to get a dataset. (["{pid}","{pid}"])')


async def test_a_job_is_deleted_once_by_who_may(place: Place) -> None:
    path = f"/api/v4/jobs/{await place.job(await place.dataset())}"
    assert (await place.ask("DELETE", path, name=USER)).status_code == 403
    assert (await place.ask("DELETE", path)).status_code == 200
    assert (await place.ask("DELETE", path)).status_code == 400


async def test_a_new_job_is_submitted_and_its_times_end_with_z(place: Place) -> None:
    made = (await place.ask("POST", "/api/v4/jobs", job(await place.dataset()))).json()
    assert made["_id"] == made["id"]
    assert (made["statusCode"], made["statusMessage"], made["jobResultObject"]) == (
        "jobSubmitted",
        "Job submitted.",
        {},
    )
    assert made["createdAt"].endswith("Z")
    assert len(made["createdAt"]) == len("2026-01-01T12:00:00.000Z")


@pytest.fixture
async def three(place: Place) -> list[str]:
    """Three jobs, oldest first."""
    pid = await place.dataset()
    made = []
    for n in range(3):
        made.append(await place.job(pid))
        one = place.standin.store.get("jobs", made[-1])
        assert one is not None
        place.standin.store.put("jobs", made[-1], one | {"createdAt": f"2026-01-0{n + 1}T00:00:00.000Z"})
    return made


async def test_v4_job_lists_limit_before_they_skip_and_sort_as_their_version_does(
    place: Place, three: list[str]
) -> None:
    async def ids(**query: Any) -> list[str]:
        return [one["id"] for one in await listed(place, "/api/v4/jobs", query)]

    assert await ids() == three
    assert await ids(limits={"limit": 1}) == three[:1]
    assert await ids(limits={"limit": 1, "skip": 1}) == []
    assert await ids(limits={"limit": 2, "skip": 1}) == three[1:2]
    old = place.standin.settings.version == "4.27"
    backwards = three[::-1]
    for direction, order in (("asc", three), ("desc", backwards), (-1, backwards), (1, backwards)):
        assert await ids(limits={"sort": {"createdAt": direction}}) == (three if old else order), direction
    assert await ids(sort={"createdAt": -1}) == (backwards if old else three)
    assert await ids(sort={"id": 1}) == (sorted(three) if old else three)
    assert await ids(limits={"sort": {"id": "asc"}}) == (three if old else sorted(three))
    assert await ids(limits={"limit": 0}) == three
    assert await ids(where={"type": {"$in": ["archive", "x"]}, "statusCode": "jobSubmitted"}) == three
    assert await ids(where={"createdAt": {"$gt": "2025-01-01"}}) == []
    assert await ids(where={"id": {"$gt": sorted(three)[0], "$lte": sorted(three)[1]}}) == [sorted(three)[1]]


@pytest.mark.parametrize(
    ("path", "query", "named"),
    [
        ("/api/v4/jobs", {"where": {"_id": {"$gt": "a"}}}, "where._id.$gt"),
        ("/api/v4/jobs", {"where": {"_id": {"$in": ["a"]}}}, "where._id.$in"),
        ("/api/v4/jobs", {"sort": {"_id": 1}}, "sort._id"),
        ("/api/v4/jobs", {"limits": {"sort": {"_id": "asc"}}}, "limits.sort._id"),
        ("/api/v4/jobs", {"where": {"colour": 1}}, "where.colour"),
        ("/api/v4/jobs", {"order": "createdAt"}, "order"),
        ("/api/v4/datasets", {"where": {"colour": 1}}, "where.colour"),
        ("/api/v4/datasets", {"where": {"datasetlifecycle.colour": 1}}, "where.datasetlifecycle.colour"),
        ("/api/v4/datasets", {"colour": 1}, "colour"),
        ("/api/v4/datasets", {"limits": {"sort": {"_id": "asc"}}}, "limits.sort._id"),
        ("/api/v4/origdatablocks", {"where": {"archiveId": 1}}, "where.archiveId"),
        ("/api/v3/datablocks", {"where": {"colour": 1}}, "where.colour"),
    ],
)
async def test_a_filter_that_names_what_the_list_does_not_know_is_a_400_in_scicats_words(
    place: Place, path: str, query: dict[str, Any], named: str
) -> None:
    answer = await place.ask("GET", path, params={"filter": json.dumps(query)})
    assert answer.status_code == 400
    assert answer.json()["message"] == f"Property {named} should not exist in the filter object"


async def test_below_what_may_be_any_object_everything_may_be_asked_for(place: Place) -> None:
    pid = await place.dataset(scientificMetadata={"colour": {"value": "red"}})
    assert len(await listed(place, "/api/v4/datasets", {"where": {"scientificMetadata.colour.value": "red"}})) == 1
    await place.job(pid)
    assert await listed(place, "/api/v4/jobs", {"where": {"jobResultObject.colour": "red"}}) == []


async def test_of_named_fields_id_is_one_only_if_it_is_named(place: Place) -> None:
    pid = await place.dataset(blocks=1)
    job_id = await place.job(pid)
    for path, fields in (
        ("/api/v4/jobs", ["id"]),
        ("/api/v4/datasets", ["pid"]),
        ("/api/v4/origdatablocks", ["datasetId"]),
    ):
        (one,) = await listed(place, path, {"fields": fields})
        assert set(one) == set(fields)
        (both,) = await listed(place, path, {"fields": [*fields, "_id"]})
        assert set(both) == {*fields, "_id"}
    assert (await listed(place, "/api/v4/jobs", {"fields": ["id", "_id"]})) == [{"id": job_id, "_id": job_id}]


async def test_once_a_dataset_of_a_job_is_deleted_every_update_of_the_job_is_a_404(place: Place) -> None:
    pid, other = await place.dataset(), await place.dataset()
    path = f"/api/v4/jobs/{await place.job(pid, other)}"
    assert (await place.ask("DELETE", at(other))).status_code == 200
    assert (await place.ask("GET", at(other))).status_code == 404
    assert (await place.ask("GET", path)).json()["statusCode"] == "jobSubmitted"
    update = {"statusCode": "inProgress", "statusMessage": "m"}
    for _ in range(2):
        answer = await place.ask("PATCH", path, update)
        assert answer.status_code == 404
        assert answer.json()["message"] == f'Unable to get a dataset. (["{pid}","{other}"])'
    assert (await place.ask("PATCH", path, {"statusCode": "a"})).status_code == 400
    assert place.standin.mails == []
    assert (await place.ask("GET", path)).json()["statusCode"] == "jobSubmitted"


async def test_jobs_are_found_by_the_pid_in_their_list(place: Place, three: list[str]) -> None:
    other = await place.dataset()
    made = await place.job(other)
    found = await listed(place, "/api/v4/jobs", {"where": {"jobParams.datasetList.pid": other}})
    assert [one["id"] for one in found] == [made]


async def test_v3_job_lists_refuse_where_and_limits_and_have_the_v3_shape(place: Place, three: list[str]) -> None:
    assert await listed(place, "/api/v3/jobs", {"where": {"type": "archive"}}) == 400
    assert await listed(place, "/api/v3/jobs", {"limits": {"limit": 1}}) == 400
    shapes = await listed(place, "/api/v3/jobs")
    assert [one["id"] for one in shapes] == three
    assert {"statusCode", "statusMessage", "_id"}.isdisjoint(shapes[0])
    assert shapes[0]["jobStatusMessage"] == "jobSubmitted"


async def test_a_v3_job_maps_to_v4_and_back(place: Place) -> None:
    pid = await place.dataset()
    body = {
        "type": "archive",
        "emailJobInitiator": "person@example.org",
        "datasetList": [{"pid": pid, "files": []}],
        "jobParams": {"username": "someone", "tapeCopies": "one"},
        "executionTime": "2026-02-01T00:00:00Z",
        "jobStatusMessage": "jobSubmitted",
    }
    made = (await place.ask("POST", "/api/v3/jobs", body)).json()
    assert made["datasetList"] == body["datasetList"]
    assert made["jobParams"]["username"] == "someone"
    v4 = (await place.ask("GET", f"/api/v4/jobs/{made['id']}")).json()
    assert (v4["contactEmail"], v4["ownerUser"], v4["ownerGroup"]) == ("person@example.org", "someone", "p1")
    assert v4["jobParams"]["datasetList"] == body["datasetList"]
    assert (await place.ask("GET", f"/api/v3/jobs/{made['id']}")).json() == made


async def test_a_v3_status_writes_code_and_message_and_answers_in_v3_shape(place: Place) -> None:
    job_id = await place.job(await place.dataset())
    answer = await place.ask("PATCH", f"/api/v3/jobs/{job_id}", {"jobStatusMessage": "finishedSuccessful"})
    assert answer.json()["jobStatusMessage"] == "finishedSuccessful"
    assert "statusCode" not in answer.json()
    v4 = (await place.ask("GET", f"/api/v4/jobs/{job_id}")).json()
    assert (v4["statusCode"], v4["statusMessage"]) == ("finishedSuccessful", "finishedSuccessful")


@pytest.mark.parametrize(
    "body", [{}, {"statusCode": "a"}, {"statusMessage": "a"}, {"statusCode": 1, "statusMessage": "a"}]
)
async def test_an_update_needs_code_and_message(place: Place, body: dict[str, Any]) -> None:
    job_id = await place.job(await place.dataset())
    assert (await place.ask("PATCH", f"/api/v4/jobs/{job_id}", body)).status_code == 400
    assert place.standin.mails == []


async def test_any_transition_is_accepted_and_each_write_runs_the_update_actions_again(place: Place) -> None:
    job_id = await place.job(await place.dataset())
    for code in ("finishedSuccessful", "inProgress", "finishedSuccessful", "finishedSuccessful"):
        answer = await place.ask("PATCH", f"/api/v4/jobs/{job_id}", {"statusCode": code, "statusMessage": "m"})
        assert (answer.status_code, answer.json()["statusCode"]) == (200, code)
    assert [code for _, code in place.standin.mails].count("finishedSuccessful") == 3


async def test_a_result_object_replaces_the_old_one_and_none_keeps_it(place: Place) -> None:
    path = f"/api/v4/jobs/{await place.job(await place.dataset())}"

    async def patch(result: Any = None, **how: Any) -> Any:
        more = {} if result is None else {"jobResultObject": result}
        answer = await place.ask("PATCH", path, {"statusCode": "a", "statusMessage": "b", **more}, **how)
        return answer.json()["jobResultObject"]

    assert await patch({"a": 1}) == {"a": 1}
    assert await patch() == {"a": 1}
    assert await patch({"b": 2}) == {"b": 2}
    nulls = {"stoppedBy": None, "counts": {"failed": None}, "list": [None]}
    assert await patch(nulls) == nulls
    assert (
        await place.ask("PATCH", path, {"statusCode": "a", "statusMessage": "b", "jobResultObject": []})
    ).status_code == 400
    assert await patch() == nulls
    assert await patch({"b": 2}) == {"b": 2}
    assert await patch({"c": 3}, headers={"Content-Type": "application/merge-patch+json"}) == {"b": 2, "c": 3}


# --- webhook ----------------------------------------------------------------------------------------------------------

Answer = Callable[[dict[str, Any]], Awaitable[int]]


@asynccontextmanager
async def hook(answer: Answer) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server that hands each body to ``answer`` and says the status it returns; its URL and the bodies."""
    bodies: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        bodies.append({**json.loads(await reader.readexactly(length)), "head": head.decode()})
        writer.write(
            f"HTTP/1.1 {await answer(bodies[-1])} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api/v1/jobs", bodies


async def test_the_webhook_is_called_inside_the_request_when_the_job_can_be_read_already() -> None:
    seen: list[str] = []

    async def answer(body: dict[str, Any]) -> int:
        one = place.standin.store.get("jobs", body["id"])
        seen.append(one["statusCode"] if one else "not there")
        return 202

    async with hook(answer) as (url, bodies):
        place = Place(webhook_url=url, webhook_auth="Bearer hook-secret")
        made = await place.ask("POST", "/api/v4/jobs", job(await place.dataset()))
        assert made.status_code == 201
        assert seen == ["jobSubmitted"]
        assert {key: bodies[0][key] for key in ("id", "type")} == {"id": made.json()["id"], "type": "archive"}
        assert "Bearer hook-secret" in bodies[0]["head"]


@pytest.mark.parametrize("status", [503, 404])
async def test_whoever_submits_a_job_is_not_told_that_its_webhook_failed(status: int) -> None:
    async def answer(body: dict[str, Any]) -> int:
        return status

    async with hook(answer) as (url, bodies):
        place = Place(webhook_url=url)
        made = await place.ask("POST", "/api/v4/jobs", job(await place.dataset()))
        assert made.status_code == 201
        assert len(bodies) == 1
        assert [one["statusCode"] for one in place.standin.store.all("jobs")] == ["jobSubmitted"]


async def test_nor_that_nobody_serves_it() -> None:
    place = Place(webhook_url=f"http://127.0.0.1:{free_port()}/")
    assert (await place.ask("POST", "/api/v4/jobs", job(await place.dataset()))).status_code == 201
    assert len(place.standin.store.all("jobs")) == 1


async def test_callers_are_served_while_a_webhook_hangs() -> None:
    may_go = asyncio.Event()

    async def answer(body: dict[str, Any]) -> int:
        await may_go.wait()
        return 202

    async with hook(answer) as (url, bodies):
        place = Place(webhook_url=url)
        pid = await place.dataset()
        posting = asyncio.create_task(place.ask("POST", "/api/v4/jobs", job(pid)))
        while not bodies:
            await asyncio.sleep(0.01)
        assert (await place.ask("GET", at(pid))).status_code == 200
        assert not posting.done()
        may_go.set()
        assert (await posting).status_code == 201


# --- datasets ---------------------------------------------------------------------------------------------------------


async def test_an_unencoded_pid_is_a_404_of_the_route(place: Place) -> None:
    pid = await place.dataset()
    assert (await place.ask("GET", at(pid))).status_code == 200
    answer = await place.ask("GET", f"/api/v4/datasets/{pid}")
    assert answer.status_code == 404
    assert answer.json()["message"].startswith("Cannot GET /api/v4/datasets/")
    unknown = await place.ask("GET", at("un/known"))
    assert unknown.status_code == 404
    assert "Cannot" not in unknown.json()["message"]


async def test_paths_are_case_insensitive(place: Place) -> None:
    pid = await place.dataset()
    assert (await place.ask("GET", f"/API/v4/Datasets/{quote(pid, safe='')}")).status_code == 200


async def test_a_dataset_has_single_values_in_v3_and_lists_in_v4(place: Place) -> None:
    pid = await place.dataset(proposalId="p-7")
    v3, v4 = [(await place.ask("GET", at(pid, version=version))).json() for version in ("v3", "v4")]
    assert (v3["proposalId"], v3["principalInvestigator"]) == ("p-7", "A Person")
    assert (v4["proposalIds"], v4["principalInvestigators"]) == (["p-7"], ["A Person"])
    assert "proposalId" not in v4
    assert "proposalIds" not in v3


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"ownerGroup": None},
        {"contactEmail": None},
        {"type": None},
        {"numberOfFiles": "5"},
        {"accessGroups": "a"},
    ],
)
async def test_a_dataset_with_unknown_or_wrong_fields_is_a_400(place: Place, change: dict[str, Any]) -> None:
    assert (await place.ask("POST", "/api/v3/datasets", record(**change))).status_code == 400


async def test_a_pid_is_given_by_the_privileged_only_and_once(place: Place) -> None:
    assert (await place.ask("POST", "/api/v3/datasets", record(pid="a/b"), name=USER)).status_code == 403
    assert (await place.ask("POST", "/api/v3/datasets", record(pid="a/b"))).status_code == 201
    assert (await place.ask("POST", "/api/v3/datasets", record(pid="a/b"))).status_code == 409


@pytest.mark.parametrize("body", [{}, [], None, {"colour": 1}, {"archivable": "yes"}, {"archiveStatusMessage": 1}])
async def test_a_lifecycle_patch_that_is_empty_unknown_or_of_a_wrong_type_is_a_400(place: Place, body: Any) -> None:
    path = at(await place.dataset(), more="/datasetlifecycle")
    assert (await place.ask("PATCH", path, body)).status_code == 400


async def test_a_lifecycle_patch_merges_answers_the_whole_and_null_is_the_default(place: Place) -> None:
    path = at(await place.dataset(), more="/datasetlifecycle")
    first = (await place.ask("PATCH", path, {"retrievable": True, "storageLocation": "X"})).json()
    assert (first["retrievable"], first["archivable"], first["storageLocation"]) == (True, True, "X")
    second = (await place.ask("PATCH", path, {"retrievable": None, "storageLocation": None})).json()
    assert second["retrievable"] is False
    assert "storageLocation" not in second


@pytest.mark.parametrize("version", ["v3", "v4"])
async def test_a_lifecycle_patched_through_its_dataset_with_plain_json_is_reset(place: Place, version: str) -> None:
    pid = await place.dataset()
    before = {"retrievable": True, "archivable": False, "storageLocation": "X"}
    await place.ask("PATCH", at(pid, more="/datasetlifecycle"), before)
    body = {"datasetlifecycle": {"archiveStatusMessage": "started"}}
    patched = await place.ask("PATCH", at(pid, version=version), body)
    lifecycle = patched.json()["datasetlifecycle"]
    assert (lifecycle["retrievable"], lifecycle["archivable"]) == (False, True)
    assert "storageLocation" not in lifecycle


async def test_a_lifecycle_patched_through_its_dataset_as_a_merge_patch_is_merged_in_v4(place: Place) -> None:
    pid = await place.dataset()
    await place.ask("PATCH", at(pid, more="/datasetlifecycle"), {"retrievable": True})
    body = {"datasetlifecycle": {"archiveStatusMessage": "started"}}
    answer = await place.ask("PATCH", at(pid), body, headers={"Content-Type": "application/merge-patch+json"})
    assert answer.json()["datasetlifecycle"]["retrievable"] is True


@pytest.mark.parametrize("body", [{"pid": "x"}, {"createdAt": TIME}, {"packedSize": 1.5}, {"colour": "red"}])
async def test_a_dataset_patch_of_unknown_or_wrong_fields_is_a_400(place: Place, body: dict[str, Any]) -> None:
    assert (await place.ask("PATCH", at(await place.dataset()), body)).status_code == 400


@pytest.mark.parametrize("kind", ["application/json", "application/merge-patch+json"])
@pytest.mark.parametrize("body", [{}, {"description": "x"}, {"packedSize": 5}, {"size": 7, "numberOfFiles": 8}])
async def test_a_dataset_patch_sets_the_counters_that_it_does_not_name_to_0_until_5_2(
    place: Place, body: dict[str, Any], kind: str
) -> None:
    before = {"size": 1, "numberOfFiles": 2, "packedSize": 3, "numberOfFilesArchived": 4}
    pid = await place.dataset()
    await place.ask("PATCH", at(pid), before)
    answer = await place.ask("PATCH", at(pid), body, headers={"Content-Type": kind})
    kept = before if place.standin.settings.version == "master" else {"numberOfFilesArchived": 4}
    right = {"size": 0, "numberOfFiles": 0, "packedSize": 0} | kept | body
    assert answer.status_code == 200
    there = (await place.ask("GET", at(pid))).json()
    assert {name: there[name] for name in right if name != "description"} == {
        name: value for name, value in right.items() if name != "description"
    }


async def test_a_fresh_lifecycle_has_dates_and_no_return_messages(place: Place) -> None:
    pid = await place.dataset()
    lifecycle = (await place.ask("GET", at(pid))).json()["datasetlifecycle"]
    assert {"archiveReturnMessage", "retrieveReturnMessage"}.isdisjoint(lifecycle)
    assert set(lifecycle) > {"dateOfDiskPurging", "archiveRetentionTime", "dateOfPublishing", "publishedOn"}
    body = {"archiveReturnMessage": {"summary": "x"}}
    path = at(pid, more="/datasetlifecycle")
    assert (await place.ask("PATCH", path, body)).json()["archiveReturnMessage"] == {"summary": "x"}
    assert "archiveReturnMessage" not in (await place.ask("PATCH", path, {"archiveReturnMessage": None})).json()


async def test_an_archive_job_marks_no_dataset(place: Place) -> None:
    pid = await place.dataset()
    await place.job(pid)
    await place.job(pid)
    assert (await place.ask("GET", at(pid))).json()["datasetlifecycle"]["archivable"] is True


# --- datablocks -------------------------------------------------------------------------------------------------------


async def test_a_duplicate_archive_id_is_a_409_at_top_level_and_a_500_nested(place: Place) -> None:
    pid, other = await place.dataset(), await place.dataset()
    assert (await place.ask("POST", "/api/v3/datablocks", datablock(pid))).status_code == 201
    same_id = {**datablock(other), "archiveId": datablock(pid)["archiveId"]}
    assert (await place.ask("POST", "/api/v3/datablocks", same_id)).status_code == 409
    nested = {key: value for key, value in same_id.items() if key != "datasetId"}
    answer = await place.ask("POST", at(other, version="v3", more="/datablocks"), nested)
    assert (answer.status_code, answer.json()) == (500, "Internal server error")
    assert len(place.standin.store.all("datablocks")) == 1


async def test_a_nested_datablock_names_neither_its_dataset_nor_groups(place: Place) -> None:
    pid = await place.dataset()
    nested = {key: value for key, value in datablock(pid).items() if key != "datasetId"}
    path = at(pid, version="v3", more="/datablocks")
    for key in ("datasetId", "ownerGroup"):
        assert (await place.ask("POST", path, {**nested, key: "p1"})).status_code == 400
    assert (await place.ask("POST", path, nested)).status_code == 201


async def test_a_datablock_of_no_dataset_or_of_others_is_accepted_until_5_2(place: Place) -> None:
    ours, theirs = await place.dataset(), await place.dataset(ownerGroup="p2")
    master = place.standin.settings.version == "master"
    answer = await place.ask("POST", "/api/v3/datablocks", datablock("no/such"))
    assert answer.status_code == (404 if master else 201)
    for pid in (ours, theirs):
        answer = await place.ask("POST", "/api/v3/datablocks", datablock(pid), name=USER)
        assert answer.status_code == (403 if master else 201)


@pytest.mark.parametrize("change", [{"archiveId": ""}, {"dataFileList": [{"path": "", "size": 1, "time": TIME}]}])
async def test_a_datablock_without_a_name_or_of_a_file_without_one_is_a_500(
    place: Place, change: dict[str, Any]
) -> None:
    pid = await place.dataset()
    assert (await place.ask("POST", "/api/v3/datablocks", datablock(pid, **change))).status_code == 500


@pytest.mark.parametrize(
    "change",
    [
        {"size": 1.5},
        {"size": "1"},
        {"dataFileList": []},
        {"dataFileList": [{"path": "a", "size": 1, "time": "yesterday"}]},
        {"dataFileList": [{"path": "a", "size": 1, "time": TIME, "metadata": {}}]},
        {"dataFileList": [{"path": "a", "size": 1, "time": TIME, "colour": "red"}]},
        {"version": None},
        {"isPublished": True},
        {"checksum": "x"},
    ],
)
async def test_a_datablock_that_is_not_as_the_dto_says_is_a_400(place: Place, change: dict[str, Any]) -> None:
    pid = await place.dataset()
    assert (await place.ask("POST", "/api/v3/datablocks", datablock(pid, **change))).status_code == 400


async def test_a_body_over_16_mb_is_a_500_as_a_bare_string(place: Place) -> None:
    pid = await place.dataset()
    answer = await place.ask("POST", "/api/v3/datablocks", datablock(pid, version="v" * 19_000_000))
    assert (answer.status_code, answer.json()) == (500, "Internal server error")
    just_below = datablock(pid, version="v" * 16_400_000)
    assert (await place.ask("POST", "/api/v3/datablocks", just_below)).status_code == 201


async def test_a_size_above_2_to_the_53_loses_its_last_digits(place: Place) -> None:
    pid = await place.dataset()
    made = (await place.ask("POST", "/api/v3/datablocks", datablock(pid, size=2**53 + 1))).json()
    assert made["size"] == 2**53


async def test_counters_lose_updates_where_datablocks_come_at_once(place: Place) -> None:
    pid = await place.dataset()
    async with place.http() as http:
        posts = [http.post("/api/v3/datablocks", json=datablock(pid, n)) for n in range(16)]
        assert {answer.status_code for answer in await asyncio.gather(*posts)} == {201}
    assert (await place.ask("GET", at(pid))).json()["numberOfFilesArchived"] < 32


async def test_a_lifecycle_patch_beside_a_datablock_can_lose_the_counters(place: Place) -> None:
    pid = await place.dataset()
    async with place.http() as http:
        calls = [http.patch(at(pid, more="/datasetlifecycle"), json={"archivable": False}) for _ in range(8)]
        posts = [http.post("/api/v3/datablocks", json=datablock(pid, n)) for n in range(8)]
        await asyncio.gather(*(call for pair in zip(calls, posts, strict=True) for call in pair))
    assert (await place.ask("GET", at(pid))).json()["numberOfFilesArchived"] < 16


async def test_a_deleted_datablock_corrects_the_counters_and_is_then_a_404(place: Place) -> None:
    pid = await place.dataset()
    await place.datablocks(pid, 2)
    key = place.standin.store.all("datablocks")[0]["_id"]
    assert (await place.ask("DELETE", f"/api/v3/datablocks/{key}")).json()["_id"] == key
    assert (await place.ask("DELETE", f"/api/v3/datablocks/{key}")).status_code == 404
    dataset = (await place.ask("GET", at(pid))).json()
    assert (dataset["packedSize"], dataset["numberOfFilesArchived"]) == (12, 2)
    again = await place.ask("POST", "/api/v3/datablocks", datablock(pid, 0))
    assert again.status_code == 201


async def test_each_file_of_a_block_gets_an_id(place: Place) -> None:
    pid = await place.dataset(blocks=1)
    block = (await listed(place, "/api/v4/origdatablocks", {"where": {"datasetId": pid}}))[0]
    assert all(entry["_id"] == entry["id"] for entry in block["dataFileList"])


# --- a decent server --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"{", b'{"size": NaN}', b"[" * 5000, b"\xff", b'{"a": 1' + b"0" * 5000 + b"}"])
async def test_a_body_that_is_no_json_is_a_400(place: Place, data: bytes) -> None:
    async with place.http() as http:
        assert (await http.post("/api/v3/datablocks", content=data)).status_code == 400


async def test_callers_are_served_while_a_block_of_many_files_is_looked_at(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go, begun, checked = threading.Event(), threading.Event(), blocks._checked

    def wait(files: list[Any]) -> list[dict[str, Any]]:
        begun.set()
        assert may_go.wait(60)
        return checked(files)

    monkeypatch.setattr(blocks, "_checked", wait)
    pid = await place.dataset()
    body = origdatablock(pid, 0, blocks.MANY + 1)
    posting = asyncio.create_task(place.ask("POST", "/api/v3/origdatablocks", body))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    assert (await place.ask("GET", at(pid))).status_code == 200
    may_go.set()
    assert (await posting).status_code == 201
    assert (await place.ask("GET", at(pid))).json()["numberOfFiles"] == blocks.MANY + 1


async def test_a_fault_that_executes_does_the_call_once_and_loses_its_answer(place: Place) -> None:
    pid = await place.dataset()
    place.standin.faults.append(Fault("POST", "/datablocks", status=502, execute=True))
    assert (await place.ask("POST", "/api/v3/datablocks", datablock(pid))).status_code == 502
    assert len(place.standin.store.all("datablocks")) == 1
    place.standin.faults.append(Fault("POST", "/datablocks", execute=True, hang_seconds=0.01))
    assert (await place.ask("POST", "/api/v3/datablocks", datablock(pid, 2))).status_code == 201
    assert len(place.standin.store.all("datablocks")) == 2


async def test_a_store_in_a_file_survives_a_restart_and_tokens_do_not(tmp_path: Path) -> None:
    first = Place(db=str(tmp_path / "scicat.db"))
    pid = await first.dataset(blocks=2)
    await first.datablocks(pid, 1)
    job_id, token = await first.job(pid), first.token()
    second = Place(db=str(tmp_path / "scicat.db"))
    assert (await second.ask("GET", at(pid))).json() == (await first.ask("GET", at(pid))).json()
    assert second.standin.store.all("datablocks") == first.standin.store.all("datablocks")
    assert (await second.ask("GET", f"/api/v4/jobs/{job_id}")).status_code == 200
    assert (await second.ask("POST", "/api/v3/datablocks", datablock(pid, 0))).status_code == 409
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await second.ask("GET", at(pid), name=None, headers=bearer)).status_code == 403


async def test_the_program_keeps_what_it_answered_through_a_kill(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "archiver.catalogue.standin", "--port", str(port), "--db", str(tmp_path / "db")]
    environment = {**clean_environment(), "STANDIN_PASSWORD": PASSWORD}
    account = {"username": "archiver", "password": PASSWORD}

    def start() -> Child:
        child = Child("standin", command, tmp_path / "log", environment).start()
        child.wait_for_port(port)
        return child

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:

        async def log_in() -> None:
            token = (await http.post("/api/v3/auth/login", json=account)).json()["access_token"]
            http.headers["Authorization"] = f"Bearer {token}"

        child = start()
        try:
            await log_in()
            pids = [(await http.post("/api/v3/datasets", json=record())).json()["pid"] for _ in range(5)]
            child.kill()
            child = start()
            await log_in()
            answers = await asyncio.gather(*(http.get(at(pid)) for pid in pids))
            assert [answer.status_code for answer in answers] == [200] * 5
        finally:
            child.stop()


def test_an_application_of_ones_own_settings_has_its_own_state() -> None:
    one, other = create_app(StandInSettings()), create_app()
    one.state.standin.store.insert("datasets", "a", {"_id": "a"})
    assert other.state.standin.store.all("datasets") == []
