"""Every payload that we send, against the generated SDK of two SciCat releases and against the stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archiver import model as m
from archiver.catalogue import payloads
from archiver.catalogue.records import Dataset, Job
from archiver.datablock.manifest import ManifestFile
from archiver.datablock.record import DatablockRecord
from archiver.retrieval import wire as w
from tests.catalogue.place import Place, at, record

ORACLE = Path(__file__).with_name("oracle.py")
SDK = {"5.3.3": None, "4.27.0": Path(sys.prefix) / "sdk-4.27"}
PID = "20.500.12345/0e54a1c8"
JOB = "3f1c2a52-8f0f-4a55-9d0c-0a8e1c5c7a11"

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
sizes = st.integers(0, 2**53)
numbers = st.integers(0, 10**6)
times = st.sampled_from(
    ["2026-01-01T12:00:00.000Z", "2026-01-01T12:00:00+01:00", "2026-01-01", "", "yesterday", "1700000000", "2026-13-01"]
) | st.datetimes().map(lambda when: when.isoformat() + "Z")
files = st.builds(
    ManifestFile,
    path=text.filter(bool),
    size=sizes,
    sha256=st.just("ab" * 32),
    time=times,
    offset=numbers,
    member=numbers,
    mode=st.none() | st.integers(0, 0o7777),
    uid=st.none() | st.just("1000"),
    gid=st.none() | st.just("staff"),
)
records = st.builds(
    DatablockRecord,
    n=st.integers(1, 1000),
    plan_id=st.just("0" * 32),
    size_bytes=sizes,
    packed_bytes=sizes,
    files=numbers,
    sha256=st.just("cd" * 32),
    manifest_sha256=st.just("ef" * 32),
    manifest_bytes=numbers,
    level=st.sampled_from(["host", "cache", "store"]),
    how_read=text,
    verified_at=st.just("2026-01-01T12:00:00Z"),
)
datasets = st.builds(
    lambda **fields: Dataset.read(fields),
    pid=st.just(PID),
    ownerGroup=st.none() | st.just("p1"),
    accessGroups=st.none() | st.lists(st.just("readers"), max_size=2),
    instrumentGroup=st.none() | st.just("i1"),
)
errors = st.builds(
    m.ErrorInfo, type=text, kind=st.sampled_from(["content", "system", "refused"]), message=text, where=text
)
stops = st.builds(m.StopRequest, reason=st.text(max_size=3000).filter(str.isprintable), who=text)
outcomes = st.builds(
    m.DatasetOutcome,
    pid=st.just(PID),
    outcome=st.sampled_from(["archived", "already_archived", "retrieved", "failed", "cancelled"]),
    message=text,
    error=st.none() | errors,
    datablocks=numbers,
    files=numbers,
    size_bytes=sizes,
    packed_bytes=sizes,
    level=st.sampled_from(["", "host"]),
)
finished_jobs = st.builds(
    m.FinishJobRequest,
    job_id=st.just(JOB),
    total=numbers,
    counts=st.builds(m.Counts, archived=numbers, content_errors=numbers),
    outcomes=st.lists(outcomes, max_size=3),
    problem=st.none() | errors,
    stopped=st.none() | stops,
)
finished = st.builds(
    m.FinishDatasetRequest,
    pid=st.just(PID),
    job_id=st.just(JOB),
    datablocks=numbers,
    files=numbers,
    size_bytes=sizes,
    packed_bytes=sizes,
    level=st.just("host"),
)
failed = st.builds(
    m.FailDatasetRequest,
    pid=st.just(PID),
    job_id=st.just(JOB),
    error=st.none() | errors,
    stopped=st.none() | stops,
)
retrieved = st.builds(
    w.FinishRetrieveRequest,
    pid=st.just(PID),
    selection=st.just("s"),
    job_id=st.just(JOB),
    destination=st.builds(w.Destination, kind=st.sampled_from(["files", "datablocks", "directory"])),
    datablocks=st.lists(numbers, max_size=3),
    files=numbers,
    size_bytes=sizes,
)
not_retrieved = st.builds(
    w.FailRetrieveRequest,
    pid=st.just(PID),
    selection=st.just("s"),
    job_id=st.just(JOB),
    error=st.none() | errors,
    stopped=st.none() | stops,
)
given_links = st.fixed_dictionaries(
    {
        "result": st.lists(
            st.fixed_dictionaries(
                {"datasetId": st.just(PID), "name": text, "size": sizes, "archiveId": text, "url": text}
            ),
            max_size=3,
        ),
        "downloadScript": text,
        "run": text,
        "validUntil": text,
    }
)
LIFECYCLE, DATABLOCK, UPDATE, CREATE, PATCH = (
    "PartialUpdateDatasetLifecycleDto",
    "CreateDatablockDto",
    "UpdateJobDto",
    "CreateJobDto",
    "PartialUpdateDatasetDto",
)
sent = st.one_of(
    st.tuples(
        st.just(CREATE),
        st.builds(
            payloads.create_job,
            st.just("archive"),
            st.lists(st.just(PID), min_size=1, max_size=1),
            st.just("p1"),
        ),
    ),
    st.tuples(st.just(UPDATE), st.builds(payloads.job_update, st.just("inProgress"), text)),
    st.tuples(
        st.just(UPDATE),
        st.builds(
            lambda message, request: payloads.job_update("finishedX", message, payloads.job_result(message, request)),
            st.text(max_size=3000),
            finished_jobs,
        ),
    ),
    st.tuples(
        st.just(UPDATE),
        st.builds(
            lambda message, request, links: payloads.job_update(
                "finishedX", message, payloads.job_result(message, request) | links
            ),
            st.text(max_size=3000),
            finished_jobs,
            given_links,
        ),
    ),
    st.tuples(st.just(LIFECYCLE), st.builds(payloads.lifecycle_started, st.just(JOB))),
    st.tuples(st.just(LIFECYCLE), st.builds(payloads.lifecycle_retrieve_started, st.just(JOB))),
    st.tuples(st.just(LIFECYCLE), st.builds(payloads.lifecycle_retrieved, retrieved)),
    st.tuples(st.just(LIFECYCLE), st.builds(payloads.lifecycle_retrieve_failed, not_retrieved)),
    st.tuples(st.just(LIFECYCLE), st.builds(payloads.lifecycle_archived, finished, st.just("ARCHIVE"))),
    st.tuples(st.just(LIFECYCLE), st.builds(payloads.lifecycle_failed, failed, archivable=st.booleans())),
    st.tuples(
        st.just(PATCH), st.builds(payloads.Counters, sizes, numbers, sizes, numbers).map(payloads.Counters.payload)
    ),
    st.tuples(
        st.just(DATABLOCK),
        st.builds(
            payloads.datablock,
            datasets,
            records,
            st.lists(files, min_size=1, max_size=4),
            archive_id=st.uuids().map(str),
            format=st.just("tar.gz"),
        ),
    ),
)


@cache
def samples() -> list[tuple[str, Any]]:
    """Payloads of every kind, made by the product's own functions; the same ones for every test."""
    made: list[tuple[str, Any]] = []

    @settings(max_examples=200, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(sent)
    def make(one: tuple[str, Any]) -> None:
        made.append(one)

    make()
    return made


def ask(payloads_sent: list[tuple[str, Any]], version: str) -> list[list[str]]:
    """What the SDK of this version says of them."""
    folder = SDK[version]
    environment = {**os.environ, "PYTHONPATH": str(folder) if folder else ""}
    answer = subprocess.run(
        [sys.executable, str(ORACLE)],
        input=json.dumps(payloads_sent),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    assert said["version"] == version
    return list(said["complaints"])


WRONG = {
    "a missing field": (UPDATE, {"statusCode": "inProgress"}),
    "an unknown field": (UPDATE, {"statusCode": "a", "statusMessage": "b", "status": "c"}),
    "a wrong type": (LIFECYCLE, {"archivable": "maybe"}),
    "a size with a fraction": (PATCH, {"packedSize": 1.5}),
    "a file without its time": (
        DATABLOCK,
        {
            "datasetId": PID,
            "archiveId": "a",
            "size": 1,
            "packedSize": 1,
            "version": "v",
            "dataFileList": [{"path": "a", "size": 1}],
        },
    ),
    "a third key in a dataset list": (
        CREATE,
        {"type": "archive", "jobParams": {"datasetList": [{"pid": PID, "files": [], "size": 1}]}},
    ),
}


@pytest.fixture(scope="module")
async def complaints() -> dict[str, list[list[str]]]:
    """What both versions say, asked at the same time: importing the SDK takes seconds."""
    asked = [*samples(), *WRONG.values()]
    said = await asyncio.gather(*(asyncio.to_thread(ask, asked, version) for version in SDK))
    return dict(zip(SDK, said, strict=True))


@pytest.mark.parametrize("version", SDK)
def test_every_payload_fits_the_generated_models_of_this_scicat_release(
    version: str, complaints: dict[str, list[list[str]]]
) -> None:
    said = complaints[version]
    kinds = {name for name, _ in samples()}
    assert kinds == {CREATE, UPDATE, LIFECYCLE, PATCH, DATABLOCK}
    assert [what for what in said[: len(samples())] if what] == []
    caught = dict(zip(WRONG, said[len(samples()) :], strict=True))
    assert [name for name, why in caught.items() if not why] == []


async def test_every_payload_is_accepted_by_the_stand_in(place: Place) -> None:
    pid = await place.dataset(pid=PID)
    job_id = await place.job(pid)
    where = {
        CREATE: ("POST", "/api/v4/jobs"),
        UPDATE: ("PATCH", f"/api/v4/jobs/{job_id}"),
        LIFECYCLE: ("PATCH", at(pid, more="/datasetlifecycle")),
        PATCH: ("PATCH", at(pid)),
        DATABLOCK: ("POST", "/api/v3/datablocks"),
    }
    async with place.http() as http:
        for n, (name, payload) in enumerate(samples()):
            method, path = where[name]
            unique = {"archiveId": f"a/{n}"} if name == DATABLOCK else {}
            answer = await http.request(method, path, json=payload | unique)
            assert answer.status_code in (200, 201), (name, payload, answer.text)


@pytest.mark.parametrize(("name", "payload"), WRONG.values(), ids=WRONG.keys())
async def test_the_stand_in_refuses_what_the_models_refuse(place: Place, name: str, payload: Any) -> None:
    pid = await place.dataset(pid=PID)
    where = {
        CREATE: ("POST", "/api/v4/jobs"),
        UPDATE: ("PATCH", f"/api/v4/jobs/{await place.job(pid)}"),
        LIFECYCLE: ("PATCH", at(pid, more="/datasetlifecycle")),
        PATCH: ("PATCH", at(pid)),
        DATABLOCK: ("POST", "/api/v3/datablocks"),
    }
    assert (await place.ask(*where[name], payload)).status_code in (400, 422)


@given(sent)
@settings(max_examples=200, deadline=None, database=None)
def test_texts_are_bounded_and_no_payload_holds_a_list_of_everything(one: tuple[str, Any]) -> None:
    name, payload = one
    if name == UPDATE:
        assert len(payload["statusMessage"]) <= 1000
    if name == LIFECYCLE:
        (message,) = (value for key, value in payload.items() if key.endswith("ReturnMessage"))
        assert isinstance(message, dict)
        assert len(message["summary"]) <= 1000


@given(failed, st.booleans())
@settings(max_examples=100, deadline=None, database=None)
def test_a_lifecycle_never_says_archivable_and_retrievable_at_once(request: m.FailDatasetRequest, flag: bool) -> None:
    begun = payloads.lifecycle_started(JOB)
    archived = payloads.lifecycle_archived(
        m.FinishDatasetRequest(pid=PID, job_id=JOB, datablocks=1, files=1, size_bytes=1, packed_bytes=1, level="host"),
        "ARCHIVE",
    )
    for fields in (begun, archived, payloads.lifecycle_failed(request, archivable=flag)):
        assert not (fields["archivable"] and fields.get("retrievable", False))


@pytest.mark.parametrize(("kind", "status"), [("content", "missingFilesError"), ("system", "scheduleArchiveJobFailed")])
def test_a_failure_uses_the_exact_strings_that_scicats_tabs_are_made_of(kind: Any, status: str) -> None:
    error = m.ErrorInfo(type="MissingFiles", kind=kind, message="two files are missing", where="plan-dataset")
    request = m.FailDatasetRequest(pid=PID, job_id=JOB, error=error)
    fields = payloads.lifecycle_failed(request, archivable=False)
    assert fields["archiveStatusMessage"] == status
    assert fields["archiveReturnMessage"]["summary"] == "two files are missing"


def test_the_result_object_begins_with_a_sentence_and_counts_what_it_does_not_show() -> None:
    outcome = m.DatasetOutcome(pid=PID, outcome="archived", message="fine", datablocks=1, files=2)
    request = m.FinishJobRequest(
        job_id=JOB, total=300, counts=m.Counts(archived=300), outcomes=[outcome] * m.MAX_OUTCOMES
    )
    result = payloads.job_result("300 datasets: 300 archived.", request)
    assert next(iter(result.items())) == ("summary", "300 datasets: 300 archived.")
    assert result["notShown"] == 300 - len(result["datasets"])
    assert len(result["datasets"]) > 10
    assert len(json.dumps(result)) <= payloads.MAX_RESULT_BYTES


@given(finished_jobs)
@settings(max_examples=100, deadline=None, database=None)
def test_a_job_that_scicat_stored_as_we_sent_it_says_so(request: m.FinishJobRequest) -> None:
    payload = payloads.job_update("finishedSuccessful", "all", payloads.job_result("all", request))
    stored = Job.read({"id": JOB, "type": "archive", **json.loads(json.dumps(payload))})
    assert payloads.job_says(stored, payload)
    kept = {key: value for key, value in payload["jobResultObject"].items() if value is not None}
    assert payloads.job_says(stored.model_copy(update={"result": kept}), payload)
    assert not payloads.job_says(stored.model_copy(update={"result": {**kept, "summary": "other"}}), payload)
    assert not payloads.job_says(stored, {**payload, "statusCode": "inProgress"})


FILE = ManifestFile(path="a", size=1, sha256="ab" * 32, time="2026-01-01T12:00:00.000Z", offset=0, member=0)
RECORD = DatablockRecord(1, "0" * 32, 1, 1, 1, "cd" * 32, "ef" * 32, 1, "host", "direct", "2026-01-01T12:00:00Z")


def made(**changes: Any) -> dict[str, Any]:
    """A datablock's payload whose one file is changed."""
    dataset = Dataset.read(record(pid=PID))
    return payloads.datablock(dataset, RECORD, [replace(FILE, **changes)], archive_id="a/1.tar.gz", format="tar.gz")


@pytest.mark.parametrize("change", [{"path": "b"}, {"size": 2}, {"sha256": "00" * 32}])
def test_two_datablocks_differ_if_one_file_differs(change: dict[str, Any]) -> None:
    assert payloads.same_datablock(made(), made())
    assert not payloads.same_datablock(made(**change), made())


@pytest.mark.parametrize(
    "listed", [None, 1, [], [None], [1], [{"path": ["a"], "size": {}, "chk": []}], [{}], "a", [{"path": "a"}, 2]]
)
def test_a_registered_list_of_wrong_types_is_another_datablock_and_no_crash(listed: Any) -> None:
    assert not payloads.same_datablock({**made(), "dataFileList": listed}, made())


def test_a_file_keeps_its_time_and_a_time_that_scicat_would_refuse_becomes_that_of_the_tar() -> None:
    def time_of(text: str) -> str:
        return str(made(time=text)["dataFileList"][0]["time"])

    assert time_of("2026-01-01T12:00:00.123+01:00") == "2026-01-01T12:00:00.123+01:00"
    assert time_of("yesterday") == time_of("") == time_of("2026-02-30T12:00:00Z") == "1970-01-01T00:00:00.000Z"
    assert time_of("2026-01-01") == "2026-01-01T00:00:00.000Z"


def test_a_files_mode_is_written_in_octal_digits_as_that_of_a_regular_file() -> None:
    entry = made(mode=0o644, uid="1000", gid="staff")["dataFileList"][0]
    assert (entry["perm"], entry["uid"], entry["gid"]) == ("100644", "1000", "staff")
