"""What becomes of a retrieve job: which files go where, or a refusal in words that says what to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from archiver.catalogue.admission import admit, refuse_foreign_type
from archiver.catalogue.records import Job
from archiver.catalogue.retrieve import ALWAYS_SENT, RetrieveAdmission, admit_retrieve, refuse_hostile_names
from archiver.errors import ForeignJob, HostilePath, Refused
from archiver.retrieval.wire import Destination
from archiver.settings import ArchiveSettings, RetrievalSettings, Settings

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LISTED = [{"pid": "p/1", "files": []}, {"pid": "p/2", "files": ["b", "a/x.h5", "b"]}]
LINKS, BLOCKS = Destination(kind="files"), Destination(kind="datablocks")
RETRIEVAL = RetrievalSettings(
    roots=(Path("/shared/out"), Path("/shared/out/inner"), Path("/das")),
    destinations={"URLs": "files", "Tape files": "datablocks", "Cluster": "/das/work/"},
)
SETTINGS = Settings(retrieval=RETRIEVAL)


def v4(listed: Any = LISTED, **params: Any) -> Job:
    return Job.read({"id": "j", "type": "retrieve", "jobParams": {"datasetList": listed, **params}})


def v3(listed: Any = LISTED, **params: Any) -> Job:
    return Job.read({"id": "j", "type": "retrieve", "jobParams": params, "datasetList": listed})


def admitted(job: Job, settings: Settings = SETTINGS, **how: Any) -> RetrieveAdmission:
    return admit_retrieve(job, settings, now=NOW, **how)


# --- what --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [v4, v3])
def test_both_shapes_of_a_job_name_whole_datasets_and_single_files(make: Any) -> None:
    found = admitted(make())
    assert found.entries == [("p/1", ()), ("p/2", ("b", "a/x.h5"))]
    assert (found.pids, found.destination, found.delay(NOW)) == (["p/1", "p/2"], LINKS, None)


@pytest.mark.parametrize(
    ("listed", "entries"),
    [
        (
            [{"pid": "p", "files": ["a"]}, {"pid": "q"}, {"pid": "p", "files": ["b", "a"]}],
            [("p", ("a", "b")), ("q", ())],
        ),
        ([{"pid": "p", "files": ["a"]}, {"pid": "p", "files": []}], [("p", ())]),
        ([{"pid": "p", "files": []}, {"pid": "p", "files": ["a"]}], [("p", ())]),
    ],
)
def test_a_dataset_listed_twice_is_wanted_once_and_whole_if_one_entry_says_so(listed: Any, entries: Any) -> None:
    assert admitted(v4(listed)).entries == entries


def test_datasets_that_an_operator_names_keep_the_files_that_the_job_wants_of_them() -> None:
    assert admitted(v4(), pids=["p/2", "p/3", "p/2"]).entries == [("p/2", ("b", "a/x.h5")), ("p/3", ())]


@pytest.mark.parametrize("listed", [None, []])
def test_a_job_without_a_dataset_is_refused(listed: Any) -> None:
    with pytest.raises(Refused, match="names no dataset"):
        admitted(v4(listed))


HOSTILE = [
    "/a",
    "/data/p1/run/1",
    "../a",
    "a/../b",
    "a/./b",
    "a//b",
    "a/",
    "",
    "a\0b",
    "x" * 256,
    "/".join(["y" * 200] * 30),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_p4_a_name_that_no_file_can_have_is_a_content_error_that_tells_it(name: str) -> None:
    with pytest.raises(HostilePath, match="lists 1 name that no file") as error:
        refuse_hostile_names("job", "p/2", ["good", name])
    assert ascii(name[:60]) in str(error.value)
    assert "p/2" in str(error.value)
    assert "good" not in str(error.value.found)


def test_p4_of_many_such_names_the_first_ten_are_told_and_their_number() -> None:
    with pytest.raises(HostilePath, match="lists 25 names") as error:
        refuse_hostile_names("job", "p", [f"/{n:02}" + "\n" * 100 for n in range(25)])
    assert error.value.found is not None
    assert [f"/{n:02}" in error.value.found for n in range(25)] == [True] * 10 + [False] * 15
    assert error.value.found.endswith("and 15 more")
    assert str(error.value).endswith("list of files")


def test_p7_a_job_is_not_refused_for_the_names_of_one_of_its_datasets() -> None:
    listed = [{"pid": "p/1", "files": []}, {"pid": "p/2", "files": ["good", "../bad"]}]
    assert admitted(v4(listed)).entries == [("p/1", ()), ("p/2", ("good", "../bad"))]


def test_strange_names_that_a_file_can_have_are_taken_as_they_are() -> None:
    names = (" ", "a\nb", "-rf", "$(x)", "'\"", "ä/漢", "\\", "...", "x" * 255, "run 1/-")
    refuse_hostile_names("job", "p", names)
    assert admitted(v4([{"pid": "p", "files": list(names)}])).entries == [("p", names)]


def test_a_hundred_thousand_names_are_taken() -> None:
    names = [f"run/{n:06}.tif" for n in range(100_000)]
    assert len(admitted(v4([{"pid": "p", "files": names}])).entries[0][1]) == 100_000


# --- where to ----------------------------------------------------------------------------------------------------------------


def directory(root: str, path: str = "") -> Destination:
    return Destination(kind="directory", root=root, path=path)


@pytest.mark.parametrize("make", [v4, v3])
@pytest.mark.parametrize(
    ("params", "destination"),
    [
        ({}, LINKS),
        ({"option": "", "retrieveDestination": None, "destinationPath": "", "location": ""}, LINKS),
        ({"option": "URLs"}, LINKS),
        ({"retrieveDestination": "Tape files"}, BLOCKS),
        ({"destinationPath": "Tape files"}, BLOCKS),
        ({"destinationPath": "/shared/out/p1/run 7/"}, directory("/shared/out", "p1/run 7")),
        ({"destinationPath": "/shared/out"}, directory("/shared/out")),
        ({"destinationPath": "/shared/out/inner/x"}, directory("/shared/out/inner", "x")),
        ({"location": "/shared/out/x"}, directory("/shared/out", "x")),
        ({"option": "Cluster"}, directory("/das", "work")),
        ({"option": "Cluster", "location": "p1/x"}, directory("/das", "work/p1/x")),
        ({"option": "Cluster", "location": "/das/work/p1"}, directory("/das", "work/p1")),
        ({"option": "/das/x", "location": "y"}, directory("/das", "x/y")),
        # The web UI and scicat-cli send this path whatever was chosen.
        ({"destinationPath": ALWAYS_SENT}, LINKS),
        ({"destinationPath": ALWAYS_SENT, "option": "Tape files"}, BLOCKS),
        ({"destinationPath": ALWAYS_SENT, "retrieveDestination": "Cluster"}, directory("/das", "work")),
        ({"option": "Tape files", "retrieveDestination": "Tape files"}, BLOCKS),
    ],
)
def test_each_spelling_of_the_destination_is_read(make: Any, params: Any, destination: Destination) -> None:
    assert admitted(make(**params)).destination == destination


@pytest.mark.parametrize("path", [ALWAYS_SENT, ALWAYS_SENT + "/"])
@pytest.mark.parametrize(
    "more",
    [{"default_destination": "datablocks"}, {"destinations": {ALWAYS_SENT: "datablocks"}}, {"roots": ("/archive",)}],
)
def test_the_path_that_is_always_sent_means_what_the_settings_say(path: str, more: dict[str, Any]) -> None:
    settings = Settings(retrieval=RetrievalSettings(**more))
    expected = LINKS if "roots" in more else BLOCKS
    assert admitted(v4(destinationPath=path), settings).destination == expected


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"option": "Mars"}, "'Mars'"),
        ({"retrieveDestination": "urls"}, "'urls'"),
        ({"destinationPath": "/etc"}, "'/etc'"),
        ({"destinationPath": "/shared/outside"}, "'/shared/outside'"),
        ({"destinationPath": "shared/out"}, "'shared/out'"),
        ({"destinationPath": "/shared/out/../etc"}, "no plain path"),
        ({"destinationPath": "/shared/out/inner/../../../etc"}, "no plain path"),
        ({"destinationPath": "/shared/out/a//b"}, "no plain path"),
        ({"destinationPath": "/shared/out/a\0b"}, "no plain path"),
        ({"option": "Cluster", "location": "../other"}, "no plain path"),
        ({"option": "Cluster", "location": "/das/other"}, "outside of destination 'Cluster'"),
        ({"option": "Cluster", "location": "/das/workshop"}, "outside of destination 'Cluster'"),
        ({"option": "URLs", "location": "/das/x"}, "links only"),
        ({"option": "URLs", "destinationPath": "Tape files"}, "more than one destination"),
        ({"option": "URLs", "retrieveDestination": "Cluster"}, "more than one destination"),
        ({"option": 7}, "no text"),
        ({"destinationPath": ["a"]}, "no text"),
        ({"location": "\ud800"}, "no text"),
    ],
)
def test_a_destination_that_is_not_to_be_had_is_refused_in_words(params: Any, says: str) -> None:
    with pytest.raises(Refused) as refused:
        admitted(v4(**params))
    assert says in str(refused.value)
    assert "; next: submit the job with" in str(refused.value)
    str(refused.value).encode()


def test_a_site_without_roots_gives_links_only() -> None:
    with pytest.raises(Refused, match="given as links"):
        admitted(v4(destinationPath="/shared/out"), Settings())


@pytest.mark.parametrize(
    "wrong",
    [
        {"destinations": {"a": "links"}},
        {"destinations": {"a": "/not/below"}},
        {"destinations": {" ": "files"}},
        {"default_destination": "/x"},
        {"roots": ["relative"]},
        {"roots": ["/"]},
        {"roots": ["/a/../b"]},
        {"url_life_seconds": 7 * 86400 + 1},
        {"unknown_files": "ignore"},
    ],
)
def test_settings_that_cannot_be_kept_are_refused_at_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetrievalSettings(**wrong)


# --- whose, and when -----------------------------------------------------------------------------------------------------------


def test_an_execution_time_to_come_is_a_delay_as_for_archive_jobs() -> None:
    assert admitted(v4(executionTime="2026-11-24T13:30:00Z")).delay(NOW) == timedelta(minutes=90)
    with pytest.raises(Refused, match="executionTime that cannot be kept"):
        admitted(v4(executionTime="tomorrow"))


@pytest.mark.parametrize(
    ("params", "says"), [({"tapeCopies": "two"}, "tapeCopies"), ({"landingZone": "/x"}, "landingZone")]
)
def test_what_is_not_honoured_is_refused_and_not_ignored(params: Any, says: str) -> None:
    with pytest.raises(Refused, match=says):
        admitted(v4(**params))


def test_each_type_of_job_is_decided_on_by_its_own_function_and_both_are_ours() -> None:
    archive = ArchiveSettings(job_type="put", retrieve_job_type="get")
    settings = Settings(archive=archive)
    put, get = (
        Job.read({"id": "j", "type": kind, "jobParams": {"datasetList": LISTED[:1]}}) for kind in ("put", "get")
    )
    for job in (put, get):
        refuse_foreign_type(job, archive)
    assert admit(put, archive, now=NOW).pids == admitted(get, settings).pids == ["p/1"]
    with pytest.raises(ForeignJob, match="expected type 'put', found type 'get'"):
        admit(get, archive, now=NOW)
    with pytest.raises(ForeignJob, match="expected type 'get', found type 'put'"):
        admitted(put, settings)
    with pytest.raises(ForeignJob, match="expected type 'put' or 'get', found type 'public'"):
        refuse_foreign_type(Job.read({"id": "j", "type": "public"}), archive)
    with pytest.raises(ValidationError):
        ArchiveSettings(job_type="same", retrieve_job_type="same")


def test_a_retrieve_job_for_another_archive_is_foreign() -> None:
    with pytest.raises(ForeignJob, match="another archive"):
        admitted(v4(storageLocation="elsewhere"))
