"""SciCat's records as we read them: both shapes of a job, numbers and texts of other types, fields that are missing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.catalogue.records import MAX_SAFE_INTEGER, Datablock, Dataset, Job, OrigDatablock
from archiver.errors import CatalogueRecordInvalid

LISTED = [{"pid": "a/b", "files": []}, {"pid": "c/d", "files": ["x"]}]
V4 = {
    "_id": "j",
    "id": "j",
    "type": "archive",
    "statusCode": "jobSubmitted",
    "statusMessage": "Job submitted.",
    "jobParams": {"datasetList": LISTED, "tapeCopies": "one"},
    "jobResultObject": {"a": 1},
    "__v": 0,
}
V3 = {
    "id": "j",
    "type": "archive",
    "creationTime": "2026-01-01T12:00:00.000Z",
    "jobStatusMessage": "jobSubmitted",
    "emailJobInitiator": None,
    "datasetList": LISTED,
    "jobParams": {"username": "someone", "tapeCopies": "one"},
    "jobResultObject": {"a": 1},
}


@pytest.mark.parametrize("shape", [V4, V3], ids=["v4", "v3"])
def test_a_job_reads_the_same_in_both_shapes(shape: dict[str, Any]) -> None:
    job = Job.read(shape)
    assert (job.id, job.type, job.status_code, job.result) == ("j", "archive", "jobSubmitted", {"a": 1})
    assert [(one.pid, one.files) for one in job.datasets] == [("a/b", []), ("c/d", ["x"])]
    assert job.params["tapeCopies"] == "one"
    assert job.has_list


@pytest.mark.parametrize(
    ("change", "has_list"),
    [
        ({"jobParams": {}}, False),
        ({"jobParams": None}, False),
        ({"jobParams": "text"}, False),
        ({"jobParams": {"datasetList": None}}, False),
        ({"jobParams": {"datasetList": []}}, True),
    ],
)
def test_a_job_without_datasets_knows_whether_it_had_a_list(change: dict[str, Any], has_list: bool) -> None:
    job = Job.read({**V4, **change})
    assert (job.datasets, job.has_list) == ([], has_list)


@pytest.mark.parametrize("missing", ["statusCode", "statusMessage", "jobParams", "jobResultObject", "_id"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_a_job_needs_only_its_id_and_type(missing: str, how: str) -> None:
    document = {**V4, missing: None} if how == "null" else {key: value for key, value in V4.items() if key != missing}
    assert Job.read(document).id == "j"


@pytest.mark.parametrize(
    "change",
    [
        {"type": 7},
        {"id": ["j"]},
        {"jobResultObject": "text"},
        {"statusCode": {"a": 1}},
        {"jobParams": {"datasetList": "a/b"}},
        {"jobParams": {"datasetList": ["a/b"]}},
        {"jobParams": {"datasetList": [{"files": []}]}},
        {"jobParams": {"datasetList": [{"pid": 7, "files": []}]}},
        {"jobParams": {"datasetList": [{"pid": "\ud800", "files": []}]}},
    ],
)
def test_a_job_of_wrong_types_is_an_invalid_record_that_names_the_field(change: dict[str, Any]) -> None:
    with pytest.raises(CatalogueRecordInvalid, match="field ") as caught:
        Job.read({**V4, **change})
    caught.value.lines().encode()


def test_an_invalid_record_names_the_field_as_scicat_does() -> None:
    with pytest.raises(CatalogueRecordInvalid, match=r"field datasetList\.1\.pid"):
        Job.read({**V4, "jobParams": {"datasetList": [{"pid": "a/b"}, {"files": []}]}})
    with pytest.raises(CatalogueRecordInvalid, match="field jobResultObject"):
        Job.read({**V4, "jobResultObject": "text"})


def test_a_job_whose_list_cannot_be_read_can_still_be_told_so() -> None:
    job = Job.read({**V4, "jobParams": {"datasetList": [7]}}, lists=False)
    assert (job.datasets, job.has_list, job.status_code) == ([], True, "jobSubmitted")


DATASET = {"pid": "a/b", "ownerGroup": "p1", "datasetlifecycle": {"archivable": False, "storageLocation": "X"}}


def test_a_dataset_keeps_its_whole_document_and_ignores_what_it_does_not_know() -> None:
    dataset = Dataset.read({**DATASET, "colour": "red"})
    assert dataset.raw["colour"] == "red"
    assert (dataset.lifecycle.archivable, dataset.lifecycle.storage_location) == (False, "X")


@pytest.mark.parametrize("how", [{}, None], ids=["absent", "null"])
def test_a_dataset_needs_only_its_pid(how: Any) -> None:
    names = ("ownerGroup", "accessGroups", "sourceFolder", "numberOfFiles", "size", "packedSize", "datasetlifecycle")
    dataset = Dataset.read({"pid": "a/b", **(dict.fromkeys(names) if how is None else {})})
    assert dataset.access_groups == []
    assert dataset.number_of_files is None
    assert (dataset.lifecycle.archivable, dataset.lifecycle.retrievable) == (True, False)
    assert dataset.lifecycle.archive_status_message == ""


def test_nulls_in_a_lifecycle_are_the_defaults() -> None:
    names = ("archivable", "retrievable", "archiveStatusMessage", "archiveReturnMessage", "storageLocation")
    lifecycle = Dataset.read({"pid": "a/b", "datasetlifecycle": dict.fromkeys(names)}).lifecycle
    assert (lifecycle.archivable, lifecycle.retrievable, lifecycle.archive_status_message) == (True, False, "")


@pytest.mark.parametrize(
    ("fields", "proposal"),
    [
        ({"proposalIds": ["p-7", "p-8"]}, "p-7"),
        ({"proposalId": "p-7"}, "p-7"),
        ({"proposalIds": [], "proposalId": "p-7"}, "p-7"),
        ({"proposalIds": None}, ""),
        ({"proposalIds": [7]}, ""),
        ({"proposalIds": {"a": 1}}, ""),
        ({}, ""),
    ],
)
def test_the_proposal_is_the_first_of_v4s_list_or_v3s_one(fields: dict[str, Any], proposal: str) -> None:
    assert Dataset.read({"pid": "a/b", **fields}).proposal_id == proposal


@pytest.mark.parametrize(
    "change", [{"pid": None}, {"numberOfFiles": 1.5}, {"accessGroups": "a"}, {"datasetlifecycle": []}]
)
def test_a_dataset_of_wrong_types_is_an_invalid_record(change: dict[str, Any]) -> None:
    with pytest.raises(CatalogueRecordInvalid, match="dataset"):
        Dataset.read({**DATASET, **change})


def test_a_whole_number_written_as_a_float_is_a_number() -> None:
    block = Datablock.read({"_id": "x", "archiveId": "a", "size": 20.0, "packedSize": 12.0, "dataFileList": [1, 2]})
    assert (block.size, block.packed_size, block.files) == (20, 12, 2)
    assert Dataset.read({"pid": "a/b", "numberOfFiles": 2.0}).number_of_files == 2


@pytest.mark.parametrize(
    "change", [{"size": 1.5}, {"size": None}, {"archiveId": None}, {"_id": 1}, {"packedSize": "x"}]
)
def test_a_datablock_of_wrong_types_is_an_invalid_record(change: dict[str, Any]) -> None:
    with pytest.raises(CatalogueRecordInvalid, match="datablock"):
        Datablock.read({"_id": "x", "archiveId": "a", "size": 20, "packedSize": 12, **change})


def test_the_name_of_an_invalid_record_is_bounded_and_printable() -> None:
    with pytest.raises(CatalogueRecordInvalid) as caught:
        Dataset.read({"pid": ["\ud800" * 10_000]})
    assert len(caught.value.what) < 300
    caught.value.what.encode()


# --- files of an origdatablock ----------------------------------------------------------------------------------------


def only_file(alg: Any = "sha256", **fields: Any) -> Any:
    """The one file of an origdatablock that lists it so."""
    entry = {"path": "a", "size": 1, "time": "2026-01-01T12:00:00.000Z", **fields}
    block = OrigDatablock.read({"_id": "x", "datasetId": "a/b", "chkAlg": alg, "dataFileList": [entry]})
    (file,) = block.catalogue_files("a/b")
    return file


@pytest.mark.parametrize(("size", "bytes_"), [(0, 0), (5, 5), (5.0, 5), (MAX_SAFE_INTEGER, MAX_SAFE_INTEGER)])
def test_a_size_is_whole_bytes_also_as_a_float(size: Any, bytes_: int) -> None:
    found = only_file(size=size).size
    assert (found, type(found)) == (bytes_, int)


@pytest.mark.parametrize(
    "size", [-1, 1.5, None, "5", True, [], MAX_SAFE_INTEGER + 1, 1e300, float("inf"), float("nan"), -0.5]
)
def test_a_size_that_cannot_be_is_an_invalid_record_that_names_the_file(size: Any) -> None:
    with pytest.raises(CatalogueRecordInvalid, match="size of whole bytes for 'a'") as caught:
        only_file(size=size)
    assert caught.value.dataset == "a/b"


@pytest.mark.parametrize(
    "entry", [None, 7, "a", [], {}, {"size": 1}, {"path": None, "size": 1}, {"path": 7, "size": 1}]
)
def test_an_entry_without_a_path_is_an_invalid_record(entry: Any) -> None:
    block = OrigDatablock.read({"_id": "x", "dataFileList": [entry]})
    with pytest.raises(CatalogueRecordInvalid, match="a path"):
        list(block.catalogue_files("a/b"))


def test_a_perm_is_the_files_mode_where_it_is_one() -> None:
    assert only_file(perm="33188").mode == 0o644
    assert only_file(perm="no mode").mode is None
    assert only_file().mode is None


@pytest.mark.parametrize(
    ("fields", "alg", "chk", "chk_alg"),
    [
        ({"chk": "abc"}, "sha256", "abc", "sha256"),
        ({"chk": "abc"}, None, "abc", None),
        ({}, "sha256", None, None),
        ({"chk": ""}, "sha256", None, None),
        ({"chk": None}, "sha256", None, None),
    ],
)
def test_a_checksum_may_be_absent(fields: dict[str, Any], alg: Any, chk: str | None, chk_alg: str | None) -> None:
    file = only_file(alg, **fields)
    assert (file.chk, file.chk_alg) == (chk, chk_alg)


def test_time_owner_and_group_may_be_absent_or_numbers() -> None:
    file = only_file(time=None, uid=1000, gid="staff")
    assert (file.time, file.uid, file.gid) == ("", "1000", "staff")


@pytest.mark.parametrize("change", [{"_id": None}, {"dataFileList": "x"}, {"dataFileList": {}}, {"chkAlg": 7}])
def test_an_origdatablock_of_wrong_types_is_an_invalid_record(change: dict[str, Any]) -> None:
    with pytest.raises(CatalogueRecordInvalid, match="origdatablock"):
        OrigDatablock.read({"_id": "x", "dataFileList": [], **change})


def test_an_origdatablock_without_a_list_has_no_file() -> None:
    assert list(OrigDatablock.read({"_id": "x", "dataFileList": None}).catalogue_files("a/b")) == []


@given(
    st.dictionaries(
        st.sampled_from(["path", "size", "time", "chk", "perm", "uid", "gid"]),
        st.none() | st.integers() | st.floats() | st.text(),
    )
)
def test_a_file_of_any_fields_is_read_or_is_an_invalid_record(entry: dict[str, Any]) -> None:
    block = OrigDatablock.read({"_id": "x", "dataFileList": [entry]})
    try:
        (file,) = block.catalogue_files("a/b")
    except CatalogueRecordInvalid as error:
        error.lines().encode()
    else:
        assert 0 <= file.size <= MAX_SAFE_INTEGER
        file.to_line()
