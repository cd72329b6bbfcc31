"""What SciCat is told of a retrieval: archive states stay, nothing is called checked before it is, users are told once."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from archiver import model as m
from archiver.catalogue import payloads
from archiver.catalogue.records import Job
from archiver.errors import CatalogueFault
from archiver.retrieval import wire as w
from tests.catalogue.place import BAD_LIST, Place, answering, at, job

PID = "20.500.12345/0e54a1c8"
OF = {"pid": PID, "selection": "s", "job_id": "j"}
DONE = w.FinishRetrieveRequest(**OF, datablocks=[1, 2], files=7, size_bytes=1000)
BROKEN = w.FailRetrieveRequest(
    **OF, error=m.ErrorInfo(type="LtsFault", kind="system", message="the LTS is away", where="x")
)
STOPPED = w.FailRetrieveRequest(**OF, stopped=m.StopRequest(reason="too large", who="op"))
WRITES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "started": (payloads.lifecycle_retrieve_started("j"), "started", False),
    "retrieved": (payloads.lifecycle_retrieved(DONE), "datasetRetrieved", True),
    "broken": (payloads.lifecycle_retrieve_failed(BROKEN), "scheduleRetrieveJobFailed", False),
    "stopped": (payloads.lifecycle_retrieve_failed(STOPPED), "", False),
}


@pytest.fixture
async def archived(place: Place) -> str:
    """The pid of an archived dataset."""
    pid = await place.dataset(pid=PID, blocks=1)
    fields = {
        "archivable": False,
        "retrievable": True,
        "archiveStatusMessage": "datasetOnArchiveDisk",
        "archiveReturnMessage": {"summary": "Archived."},
        "storageLocation": "archive",
    }
    assert (await place.ask("PATCH", at(pid, more="/datasetlifecycle"), fields)).status_code == 200
    return pid


async def lifecycle(place: Place, pid: str) -> dict[str, Any]:
    return dict((await place.ask("GET", at(pid))).json()["datasetlifecycle"])


@pytest.mark.parametrize("name", WRITES)
async def test_p3_what_is_told_of_a_retrieval_leaves_the_archive_states_as_they_are(
    place: Place, archived: str, name: str
) -> None:
    fields, status, checked = WRITES[name]
    before = await lifecycle(place, archived)
    async with place.scicat() as client:
        await client.patch_lifecycle(archived, fields)
    after = await lifecycle(place, archived)
    ours = ("retrieveStatusMessage", "retrieveIntegrityCheck", "retrieveReturnMessage")
    assert {key: value for key, value in after.items() if key not in ours} == {
        key: value for key, value in before.items() if key not in ours
    }
    assert (after["retrieveStatusMessage"], after["retrieveIntegrityCheck"]) == (status, checked)
    assert next(iter(after["retrieveReturnMessage"])) == "summary"
    assert set(fields) == set(ours)


async def test_p2_a_new_retrieval_takes_back_what_was_checked_at_the_one_before(place: Place, archived: str) -> None:
    async with place.scicat() as client:
        for name in ("retrieved", "started"):
            await client.patch_lifecycle(archived, WRITES[name][0])
    after = await lifecycle(place, archived)
    assert (after["retrieveIntegrityCheck"], after["retrieveStatusMessage"]) == (False, "started")
    assert "destination" not in after["retrieveReturnMessage"]


def test_a_failure_says_why_and_a_stop_says_who() -> None:
    broken, stopped = (WRITES[name][0]["retrieveReturnMessage"] for name in ("broken", "stopped"))
    assert broken["summary"] == "the LTS is away"
    assert broken["error"] == {"type": "LtsFault", "kind": "system", "step": "x"}
    assert stopped["summary"] == "Retrieving was stopped by op: too large"
    assert (
        payloads.lifecycle_retrieve_failed(w.FailRetrieveRequest(**OF))["retrieveStatusMessage"]
        == "scheduleRetrieveJobFailed"
    )


def test_a_dataset_that_was_retrieved_is_no_failure_in_the_list_of_outcomes() -> None:
    outcomes = [
        m.DatasetOutcome(pid="good", outcome="retrieved", message="x"),
        m.DatasetOutcome(pid="bad", outcome="failed", message="x"),
    ]
    request = m.FinishJobRequest(job_id="j", total=2, counts=m.Counts(retrieved=1, system_errors=1), outcomes=outcomes)
    assert [one["pid"] for one in payloads.job_result("s", request)["datasets"]] == ["bad", "good"]


# --- once -------------------------------------------------------------------------------------------------------------------


def said(run: str, signature: str, **more: Any) -> dict[str, Any]:
    """The end of a retrieve job with links that were signed at one try."""
    links = {
        "result": [
            {
                "datasetId": PID,
                "name": "a",
                "size": 1,
                "archiveId": "",
                "url": f"http://h/a?X-Amz-Signature={signature}",
            }
        ],
        "downloadScript": f"get a {signature}",
        "run": run,
        "validUntil": f"2026-12-01T00:00:0{len(signature)}Z",
    }
    return payloads.job_update(
        "finishedSuccessful", "all", {"summary": "all", "counts": {"retrieved": 1}, **links, **more}
    )


async def test_p6_a_second_try_with_links_signed_anew_writes_nothing_since_users_would_get_a_second_mail(
    place: Place, archived: str
) -> None:
    made = (await place.ask("POST", "/api/v4/jobs", job(archived, type="retrieve"))).json()["id"]
    async with place.scicat() as client:
        assert await client.update_job(made, said("run-1", "one"))
        assert not await client.update_job(made, said("run-1", "another"))
        assert len(place.standin.mails) == 1
        assert (await client.job(made)).result["downloadScript"] == "get a one"
        assert await client.update_job(made, said("run-2", "another")), (
            "whoever asks for it again needs links that work"
        )
        assert (await client.job(made)).result["downloadScript"] == "get a another"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (said("run-1", "x"), said("run-1", "x", summary="other")),
        (said("run-1", "x"), said("run-1", "x", counts={"retrieved": 2})),
        (said("", "x"), said("", "y")),
        (said("run-1", "x"), said("", "x")),
    ],
)
def test_another_end_is_another_end(one: dict[str, Any], other: dict[str, Any]) -> None:
    stored = Job.read({"id": "j", "type": "retrieve", **one})
    assert payloads.job_says(stored, one)
    assert not payloads.job_says(stored, other)


def test_a_summary_speaks_of_no_place_that_would_be_a_link() -> None:
    for kind in get_args(w.Kind):
        request = DONE.model_copy(update={"destination": w.Destination(kind=kind, root="/shared", path="canary")})
        assert "canary" not in str(payloads.lifecycle_retrieved(request)["retrieveReturnMessage"]["summary"])


# --- the stand-in takes retrieve jobs as SciCat does --------------------------------------------------------------------------


async def test_a_retrieve_job_may_list_single_files_that_the_dataset_has(place: Place, archived: str) -> None:
    body = job(archived, type="retrieve", files=["run/000000.tif"])
    answer = await place.ask("POST", "/api/v4/jobs", body)
    assert (answer.status_code, answer.json()["type"]) == (201, "retrieve")
    for wrong in ("run/9.tif", "/run/000000.tif", "/data/p1/run/000000.tif", "run"):
        answer = await place.ask("POST", "/api/v4/jobs", job(archived, type="retrieve", files=[wrong]))
        assert answer.status_code == BAD_LIST[place.standin.settings.version]
        assert json.loads(answer.json()["error"]) == [{"pid": archived, "nonExistFiles": [wrong]}]


async def test_scicats_check_of_single_files_does_not_see_the_101st_block(place: Place) -> None:
    pid = await place.dataset(blocks=101, files=1)
    statuses = {
        n: (await place.ask("POST", "/api/v4/jobs", job(pid, type="retrieve", files=[f"run/{n:06}.tif"]))).status_code
        for n in (99, 100)
    }
    assert statuses == {99: 201, 100: BAD_LIST[place.standin.settings.version]}


async def test_where_the_job_configuration_validates_a_retrieve_job_needs_retrievable_datasets(
    place: Place, archived: str
) -> None:
    place.standin.settings.only_retrievable = True
    other = await place.dataset()
    for pids, status in (([archived], 201), ([other], 400), ([archived, other], 400)):
        answer = await place.ask("POST", "/api/v4/jobs", job(*pids, type="retrieve"))
        assert answer.status_code == status
    assert "datasetlifecycle.retrievable" in answer.json()["message"]
    assert len(place.standin.store.all("jobs")) == 1, "it is refused before it is saved"
    assert (await place.ask("POST", "/api/v4/jobs", job(other))).status_code == 201


async def test_p8_a_scicat_that_refuses_a_result_and_repeats_it_gets_no_link_into_our_messages() -> None:
    url = "http://h/a?X-Amz-Credential=AKIAcanary%2F1&X-Amz-Signature=canary&x=1"
    refusal = json.dumps({"message": [f"downloadScript: get 'a' 1 '{url}'\\n is too long", url], "statusCode": 400})
    stored = json.dumps({"id": "j", "type": "retrieve", "statusCode": "inProgress"})
    client = answering((200, stored.encode()), (400, refusal.encode()), (200, stored.encode()))
    async with client:
        with pytest.raises(CatalogueFault) as error:
            await client.update_job("j", said("r", "x"))
    assert "canary" not in f"{error.value}{error.value!r}{error.value.lines()}"
    assert "too long" in str(error.value)
