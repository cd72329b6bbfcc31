"""What becomes of a job is decided in one place: what it carries is honoured or refused in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archiver.catalogue.admission import LATEST_START, admit, refuse_foreign_datasets
from archiver.catalogue.records import Job
from archiver.errors import ForeignJob, Refused
from archiver.settings import ArchiveSettings

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LISTED = [{"pid": "p/1", "files": []}, {"pid": "p/2", "files": []}, {"pid": "p/1", "files": []}]
OURS = ArchiveSettings()


def v4(**params: Any) -> Job:
    document = {"id": "j", "type": "archive", "jobParams": {"datasetList": LISTED, **params}}
    return Job.read(document)


def v3(**fields: Any) -> Job:
    return Job.read({"id": "j", "type": "archive", "jobParams": {}, "datasetList": LISTED, **fields})


@pytest.mark.parametrize("job", [v4(), v3(), v4(tapeCopies=""), v4(executionTime=None)])
def test_a_plain_job_of_either_shape_is_started_at_once_with_each_dataset_once(job: Job) -> None:
    admitted = admit(job, OURS, now=NOW)
    assert admitted.pids == ["p/1", "p/2"]
    assert admitted.delay(NOW) is None


@pytest.mark.parametrize("make", [v4, v3])
@pytest.mark.parametrize(
    "written", ["2026-11-24T13:30:00Z", "2026-11-24T13:30:00.000Z", "2026-11-24T14:30:00+01:00", "20261124T133000Z"]
)
def test_an_execution_time_to_come_is_a_delay(make: Any, written: str) -> None:
    assert admit(make(executionTime=written), OURS, now=NOW).delay(NOW) == timedelta(minutes=90)


def test_an_execution_time_that_has_passed_is_at_once() -> None:
    assert admit(v4(executionTime="2020-01-01T00:00:00Z"), OURS, now=NOW).delay(NOW) is None


@pytest.mark.parametrize(
    "written",
    [
        "tomorrow",
        "2026-11-24T13:30:00",
        17,
        ["2026"],
        (NOW + LATEST_START * 2).isoformat(),
        "0001-01-01T00:00:00+23:00",
    ],
)
def test_an_execution_time_that_cannot_be_kept_is_refused(written: Any) -> None:
    with pytest.raises(Refused, match="executionTime that cannot be kept"):
        admit(v4(executionTime=written), OURS, now=NOW)


@pytest.mark.parametrize("copies", ["one", "ONE", 1, "1"])
def test_as_many_tape_copies_as_the_lts_keeps_are_honoured(copies: Any) -> None:
    assert admit(v4(tapeCopies=copies), OURS, now=NOW).pids


@pytest.mark.parametrize("copies", ["two", 2, "three", True, {"n": 1}])
def test_another_number_of_tape_copies_is_refused(copies: Any) -> None:
    with pytest.raises(Refused, match="tapeCopies"):
        admit(v4(tapeCopies=copies), OURS, now=NOW)


def test_a_site_whose_lts_keeps_two_copies_says_so() -> None:
    assert admit(v4(tapeCopies="two"), ArchiveSettings(tape_copies=2), now=NOW).pids


@pytest.mark.parametrize(
    "job",
    [
        v4(landingZone="/data"),
        v4(landingZone={"p/1": "/data"}),
        v4(datasetList=[{"pid": "p/1", "files": [], "landingZone": "/data"}]),
    ],
)
def test_a_landing_zone_of_the_jobs_own_is_refused(job: Job) -> None:
    with pytest.raises(Refused, match="landingZone"):
        admit(job, OURS, now=NOW)


@pytest.mark.parametrize("listed", [[], None, [{"pid": "p/1", "files": ["a"]}]])
def test_no_list_or_single_files_are_refused(listed: Any) -> None:
    with pytest.raises(Refused, match="dataset"):
        admit(v4(datasetList=listed), OURS, now=NOW)


def test_datasets_that_an_operator_names_take_the_place_of_the_list() -> None:
    assert admit(v4(datasetList=[]), OURS, now=NOW, pids=["p/3", "p/3"]).pids == ["p/3"]


@pytest.mark.parametrize("job", [Job.read({"id": "j", "type": "retrieve"}), v4(storageLocation="elsewhere")])
def test_a_job_of_others_is_foreign_before_all_else(job: Job) -> None:
    with pytest.raises(ForeignJob):
        admit(job, OURS, now=NOW)


def test_datasets_that_all_lie_elsewhere_make_a_foreign_job_and_some_do_not() -> None:
    with pytest.raises(ForeignJob, match="another archive"):
        refuse_foreign_datasets(v4(), {"p/1": "X", "p/2": "Y"}, OURS)
    for locations in ({"p/1": "X", "p/2": "archive"}, {"p/1": "X", "p/2": ""}, {"p/1": "X"}, {}):
        refuse_foreign_datasets(v4(), locations, OURS)
