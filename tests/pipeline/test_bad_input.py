"""Bad input and what it gets: each line has a clear end, words for the user, and nothing lost or left behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import WorkflowFailureError

from archiver import model as m
from tests.pipeline.oracle import assert_archived, assert_clean, nothing_left, nothing_runs
from tests.pipeline.system import System

A, B = b"detector " * 9, b"\0" * 500
FILES = {"raw/a.h5": A, "raw/b.h5": B}
A_LISTED, B_LISTED = System.entry("raw/a.h5", A), System.entry("raw/b.h5", B)
BOTH = [A_LISTED, B_LISTED]
SHA256_OF_OTHER = hashlib.sha256(b"other").hexdigest()


@dataclass(frozen=True)
class Case:
    """A dataset whose catalogue and files cannot both be true."""

    error: str
    says: Sequence[str]
    listed: Sequence[Mapping[str, Any]] = field(default_factory=lambda: BOTH)
    files: Mapping[str, bytes] = field(default_factory=lambda: FILES)
    step: str = "plan-dataset"
    files_per_block: int = 1000
    algorithm: str = "sha256"


def listed_too(path: str, size: Any = 3) -> list[dict[str, Any]]:
    """The catalogue lists this one as well."""
    return [A_LISTED, {**B_LISTED, "path": path, "size": size}]


CASES = {
    "a file is missing": Case(
        "MissingFiles", ["'raw/c.h5'", "expected 3 B, found nothing", "1 files missing"], [*BOTH, *listed_too("raw/c.h5")[1:]]
    ),
    "a file is short": Case("FileDiffers", ["'raw/b.h5'", "expected 500 B, found 4 B"], files={**FILES, "raw/b.h5": B[:4]}),
    "a file is long": Case("FileDiffers", ["'raw/b.h5'", "expected 500 B, found 501 B"], files={**FILES, "raw/b.h5": B + b"\0"}),
    "a surplus file lies there": Case(
        "SurplusFiles", ["'raw/c.h5'", "3 B, not in the catalogue"], files={**FILES, "raw/c.h5": b"ccc"}
    ),
    "bytes are not of the catalogue's SHA-256": Case(
        "ChecksumDiffers",
        ["datablock 1", "'raw/b.h5'", f"expected sha256 {SHA256_OF_OTHER}", f"found sha256 {B_LISTED['chk']}"],
        [A_LISTED, {**B_LISTED, "chk": SHA256_OF_OTHER}],
        step="pack-datablock",
    ),
    "bytes are not of the catalogue's MD5": Case(
        "ChecksumDiffers",
        ["datablock 1", "'raw/b.h5'", f"expected md5 {'0' * 32}", f"found md5 {hashlib.md5(B).hexdigest()}"],
        [{**A_LISTED, "chk": hashlib.md5(A).hexdigest()}, {**B_LISTED, "chk": "0" * 32}],
        step="pack-datablock",
        algorithm="md5",
    ),
    "a path is listed twice in one block": Case("DuplicatePath", ["'raw/a.h5'", "twice", "each path once"], [*BOTH, A_LISTED]),
    "a path is listed twice across blocks": Case(
        "DuplicatePath", ["'raw/a.h5'", "twice"], [*BOTH, A_LISTED], files_per_block=1
    ),
    "a path is file and folder": Case(
        "PathCollision", ["'raw'", "as a file and as a folder", "also 'raw/a.h5'"], [*BOTH, *listed_too("raw")[1:]]
    ),
    "a path is absolute": Case("HostilePath", ["is absolute", "'/etc/passwd'"], listed_too("/etc/passwd")),
    "a path climbs": Case("HostilePath", ["segment '..'", "'raw/../../x'"], listed_too("raw/../../x")),
    "a path stands still": Case("HostilePath", ["segment '.'", "'./raw'"], listed_too("./raw")),
    "a path has an empty segment": Case("HostilePath", ["segment ''", "'raw//c'"], listed_too("raw//c")),
    "a path ends in a slash": Case("HostilePath", ["segment ''", "'raw/c/'"], listed_too("raw/c/")),
    "a path is empty": Case("HostilePath", ["is empty"], listed_too("")),
    "a path holds NUL": Case("HostilePath", ["NUL", r"'raw/\x00'"], listed_too("raw/\0")),
    "a path is no Unicode": Case("HostilePath", ["not valid Unicode", r"'raw/\ud800'"], listed_too("raw/\ud800")),
    "a segment has 300 bytes": Case("HostilePath", ["longer than 255 bytes", "'nnn"], listed_too("n" * 300)),
    "a path has 5,000 bytes": Case("HostilePath", ["longer than 4096 bytes", "'d/d/"], listed_too("d/" * 2500 + "f")),
    "a size is no whole number": Case(
        "CatalogueRecordInvalid", ["whole bytes", "'raw/c'", "found 1.5"], listed_too("raw/c", 1.5), step="read-origdatablocks"
    ),
    "a size is negative": Case(
        "CatalogueRecordInvalid", ["whole bytes", "'raw/c'", "found -1"], listed_too("raw/c", -1), step="read-origdatablocks"
    ),
    "a size is beyond what SciCat can say": Case(
        "CatalogueRecordInvalid",
        ["'raw/c'", f"found {2**53 + 2}"],
        listed_too("raw/c", 2**53 + 2),
        step="read-origdatablocks",
    ),
    "the dataset is empty": Case("EmptyDataset", ["no files", "0 origdatablocks"], [], {}, step="read-origdatablocks"),
}  # fmt: skip


@dataclass(frozen=True)
class Told:
    """One job over datasets that each have a name here, and what SciCat says of it."""

    pids: Mapping[str, str]
    job: Mapping[str, Any]
    counts: m.Counts
    outcomes: Mapping[str, m.DatasetOutcome]

    def outcome(self, name: str) -> m.DatasetOutcome:
        """This dataset's outcome."""
        return self.outcomes[self.pids[name]]


async def tell(system: System, pids: Mapping[str, str]) -> Told:
    """Archive them all in one job."""
    result = await system.archive(*pids.values())
    outcomes = await system.outcomes(result.job_id)
    return Told(pids, await system.job_record(result.job_id), result.counts, outcomes)


@pytest.fixture(scope="module")
async def bad(served: System) -> Told:
    """A job of all datasets that cannot be true."""
    pids = {
        name: await served.dataset(
            case.files, listed=case.listed, files_per_block=case.files_per_block, algorithm=case.algorithm
        )
        for name, case in CASES.items()
    }
    return await tell(served, pids)


async def test_a_job_of_bad_datasets_ends_once_and_says_so(bad: Told, served: System) -> None:
    assert bad.counts == m.Counts(content_errors=len(CASES))
    assert finished(served, bad.job["id"]) == [bad.job["statusCode"]] == ["finishedWithDatasetErrors"]
    said = f"{len(CASES)} datasets: {len(CASES)} not archived because of their files or records; not archived: "
    assert bad.job["statusMessage"].startswith(said)
    assert f" and {len(CASES) - 5} more; first: " in bad.job["statusMessage"]
    assert bad.job["statusMessage"].endswith("submit the job again")
    result = bad.job["jobResultObject"]
    assert len(json.dumps(result)) < 4096
    assert len(result["datasets"]) + result["notShown"] == len(CASES)


@pytest.mark.parametrize("name", CASES)
async def test_p4_the_dataset_fails_as_a_content_error_in_words_if(name: str, bad: Told, served: System) -> None:
    case, pid = CASES[name], bad.pids[name]
    message = await assert_clean(served, pid, "missingFilesError", files=case.files)
    for word in (pid, *case.says, "expected", "found", "; next: ", "submit the job again"):
        assert word in message, f"{word!r} is not said in: {message}"
    life = await served.lifecycle(pid)
    assert life["archiveReturnMessage"]["error"] == {"type": case.error, "kind": "content", "step": case.step}
    assert life["archivable"], "a new job can be submitted"
    assert not (served.lts / pid).exists()
    outcome = bad.outcome(name)
    assert outcome.error is not None
    assert (outcome.outcome, outcome.error.type) == ("failed", case.error)
    assert message == outcome.message or (message[:100], message[-50:]) == (
        outcome.message[:100],
        outcome.message[-50:],
    )


async def test_a_message_of_many_long_names_still_ends_with_what_to_do(served: System) -> None:
    names = [f"{n:02}-{'n' * 200}" for n in range(30)]
    pid = await served.dataset(FILES, listed=[*BOTH, *(System.entry(name, b"") for name in names)])
    await served.archive(pid)
    message = await assert_clean(served, pid, "missingFilesError", files=FILES)
    assert "30 files missing" in message
    assert names[0] in message
    assert message.endswith("submit the job again")
    assert len(message) <= 1000


async def test_p7_one_dataset_with_a_missing_file_does_not_stop_the_others_of_its_job(served: System) -> None:
    good = [await served.dataset(FILES) for _ in range(2)]
    bad = await served.dataset(FILES, listed=[*BOTH, System.entry("raw/c.h5", b"ccc")])
    result = await served.archive(good[0], bad, good[1])
    assert result.counts == m.Counts(archived=2, content_errors=1)
    for pid in good:
        await assert_archived(served, pid, FILES)
    assert "'raw/c.h5'" in await assert_clean(served, bad, "missingFilesError", files=FILES)
    job = await served.job_record(result.job_id)
    assert job["statusCode"] == "finishedWithDatasetErrors"
    outcomes = {entry["pid"]: entry["outcome"] for entry in job["jobResultObject"]["datasets"]}
    assert outcomes == {good[0]: "archived", bad: "failed", good[1]: "archived"}


# --- what looks bad and is archived all the same ------------------------------------------------------------------------


# Other control characters than these cannot be listed by the S3 server of the tests (they come as U+FFFD in its XML).
NAMES = [
    "tab\there", "two\nlines", "delete\x7f", " leading", "trailing ", "trailing.", "-rf", "a:b", "{curly}", "...", "..x",
    "a b/c d ", "ends#1", "per%41cent", "plus+plus", "amp&<xml>\"'", "question?x=1", "back\\slash", "star*", "~tilde",
    "NFC-\u00e9", "NFD-e\u0301", "\u65e5\u672c\u8a9e", "\U0001f40b", "n" * 255, "case", "CASE",
]  # fmt: skip

GOOD: dict[str, dict[str, Any]] = {
    "a checksum of an algorithm that nobody has": {
        "files": FILES, "listed": [{**A_LISTED, "chk": "1c291ca3"}, B_LISTED], "algorithm": "crc-of-our-own"
    },
    "an algorithm in another spelling": {
        "files": {"raw/a.h5": A}, "listed": [{**A_LISTED, "chk": hashlib.sha512(A).hexdigest().upper()}], "algorithm": "SHA-512"
    },
    "no checksum": {"files": {"raw/a.h5": A}, "listed": [{key: A_LISTED[key] for key in ("path", "size", "time")}]},
    "a whole size with a point": {"files": {"raw/a.h5": A}, "listed": [{**A_LISTED, "size": float(len(A))}]},
    "more origdatablocks than any list shows": {
        "files": {f"run/{n:03}.dat": f"{n}".encode() for n in range(123)}, "files_per_block": 1
    },
    "names that a library cannot say": {"files": {name: f"file {n}".encode() for n, name in enumerate(NAMES)}},
    **{
        f"a pid {what}": {"files": FILES, "pid": pid}
        for what, pid in {
            "with two spaces": "with two spaces",
            "with an umlaut": "20.500.12345/Übersicht",
            "of three parts": "a/b/c",
            "of 180 characters": "n" * 180,
            "with quotes": "quo'te\"s",
            "with a percent sign": "50%25",
            "with a prefix and a space": "20.500.12345/x y",
        }.items()
    },
}  # fmt: skip


@pytest.fixture(scope="module")
async def good(served: System) -> Told:
    """A job of all datasets that only look bad."""
    return await tell(served, {name: await served.dataset(**dataset) for name, dataset in GOOD.items()})


@pytest.mark.parametrize("name", GOOD)
async def test_p4_a_dataset_is_archived_byte_for_byte_with(name: str, good: Told, served: System) -> None:
    pid = good.pids[name]
    assert good.outcome(name).outcome == "archived", good.outcome(name).message
    line = f"External-Identifier: {pid}\n"
    (bag,) = [info.parent for info in served.lts.rglob("bag-info.txt") if line in info.read_text()]
    await assert_archived(served, pid, GOOD[name]["files"], bag=str(bag.relative_to(served.lts)))


async def test_a_pid_that_no_directory_can_be_named_after_is_refused_in_words(served: System) -> None:
    pid = "Ü" * 180
    await served.dataset(FILES, pid=pid, landed=False)
    before = await served.record(pid)
    result = await served.archive(pid)
    await refused(served, result, "cannot have a directory on the LTS", "found 1080 bytes", "shorter pid")
    assert await served.record(pid) == before


# --- jobs ---------------------------------------------------------------------------------------------------------------


def finished(system: System, job_id: str) -> list[str]:
    """The terminal codes written to a job: SciCat mails at each."""
    return [code for job, code in system.standin.mails if job == job_id and code.startswith("finished")]


async def refused(system: System, result: m.ArchiveJobResult, *says: str) -> None:
    """The only dataset of this job was refused: told in the job, with these words."""
    assert result.counts == m.Counts(content_errors=1)
    job = await system.job_record(result.job_id)
    assert job["statusCode"] == "finishedWithDatasetErrors"
    (outcome,) = job["jobResultObject"]["datasets"]
    assert outcome["outcome"] == "failed"
    for word in says:
        assert word in job["statusMessage"], f"{word!r} is not said in: {job['statusMessage']}"


@pytest.mark.parametrize(
    ("params", "says"),
    [
        pytest.param({}, "expected jobParams.datasetList or datasetList, found none", id="without a dataset list"),
        pytest.param({"datasetList": []}, "found an empty list", id="with an empty list"),
        pytest.param(
            {"datasetList": [{"pid": "p/1", "files": ["raw/a.h5"]}]},
            "lists single files of dataset p/1",
            id="with single files",
        ),
        pytest.param({"datasetList": "all"}, "is not as expected", id="with a list that is none"),
        pytest.param({"datasetList": [{"files": []}]}, "datasetList.0.pid", id="with an entry without pid"),
    ],
)  # fmt: skip
async def test_a_job_fails_in_words(params: dict[str, Any], says: str, served: System) -> None:
    served.standin.store.insert("datasets", "p/1", {"pid": "p/1", "_id": "p/1", "datasetlifecycle": {}})
    job_id = served.stored_job(jobParams=params)
    with pytest.raises(WorkflowFailureError) as failed:
        await (await served.start_job(job_id)).result()
    assert job_id in str(failed.value.cause)
    job = await served.job_record(job_id)
    assert job["statusCode"] == "finishedUnsuccessful"
    assert says in job["statusMessage"]
    assert "; next: " in job["statusMessage"]
    assert job["jobResultObject"]["counts"]["archived"] == 0
    assert finished(served, job_id) == ["finishedUnsuccessful"]


async def test_a_job_of_another_type_is_left_alone(served: System) -> None:
    pid = await served.dataset(FILES)
    job_id = await served.job(pid, type="retrieve")
    before = await served.job_record(job_id), await served.record(pid)
    with pytest.raises(WorkflowFailureError) as failed:
        await (await served.start_job(job_id)).result()
    for word in (job_id, "expected type 'archive'", "found type 'retrieve'"):
        assert word in str(failed.value.cause)
    assert (await served.job_record(job_id), await served.record(pid)) == before


async def test_a_job_that_scicat_does_not_know_fails_in_words(served: System) -> None:
    job_id = str(uuid4())
    with pytest.raises(WorkflowFailureError) as failed:
        await (await served.start_job(job_id)).result()
    for word in (f"SciCat knows no job {job_id}", "Invalid job id"):
        assert word in str(failed.value.cause)


async def test_a_job_of_the_old_shape_is_archived(served: System) -> None:
    pid = await served.dataset(FILES)
    body = {"type": "archive", "datasetList": [{"pid": pid, "files": []}], "emailJobInitiator": "a@b.ch"}
    job_id = str(served.created(await served.http.post("/api/v3/jobs", json=body))["id"])
    assert (await (await served.start_job(job_id)).result()).counts == m.Counts(archived=1)
    await assert_archived(served, pid, FILES)


async def test_p3_a_dataset_that_is_archived_already_is_a_success_that_changes_nothing(served: System) -> None:
    pid = await served.dataset(FILES)
    first = await served.archive(pid)
    before = await served.record(pid), served.datablocks(pid), tree(served, pid)
    again = await (await served.start_job(first.job_id)).result()
    other = await served.archive(pid)
    assert again.counts == other.counts == m.Counts(already_archived=1)
    assert (await served.record(pid), served.datablocks(pid), tree(served, pid)) == before
    await assert_archived(served, pid, FILES)
    job = await served.job_record(other.job_id)
    assert job["statusCode"] == "finishedSuccessful"
    assert job["jobResultObject"]["datasets"][0]["outcome"] == "already_archived"
    assert "nothing changed" in job["jobResultObject"]["datasets"][0]["message"]


def tree(system: System, pid: str) -> dict[str, tuple[int, int]]:
    """Inode and time of change of each file in the dataset's bag."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted((system.lts / pid).rglob("*"))}


@pytest.mark.parametrize(
    ("lifecycle", "says"),
    [
        pytest.param(
            {"storageLocation": "elsewhere"}, ["belongs to another archive", "'archive'", "found 'elsewhere'"], id="foreign"
        ),
        *(
            pytest.param(
                {"archiveStatusMessage": status, "archivable": False},
                ["not ready", f"found archiveStatusMessage '{status}'"],
                id=status,
            )
            for status in ("origDatablocksNotYetCreated", "filesNotYetAvailable", "filesNotReadyYet")
        ),
    ],
)  # fmt: skip
async def test_a_dataset_that_is_not_ours_to_archive_is_refused_and_its_record_stays(
    lifecycle: dict[str, Any], says: list[str], served: System
) -> None:
    pid = await served.dataset(FILES, more={"datasetlifecycle": lifecycle})
    before = await served.record(pid)
    await refused(served, await served.archive(pid), pid, *says)
    assert await served.record(pid) == before
    nothing_left(served, pid)
    await nothing_runs(served, pid)
    assert not (served.lts / pid).exists()


async def test_a_dataset_whose_origdatablocks_are_gone_is_a_system_error_and_no_empty_dataset(served: System) -> None:
    pid = await served.dataset(FILES)
    for block in served.standin.store.all("origdatablocks", pid):
        served.standin.store.delete("origdatablocks", block["_id"])
    result = await served.archive(pid)
    assert result.counts == m.Counts(system_errors=1)
    message = await assert_clean(served, pid, "scheduleArchiveJobFailed", files=FILES)
    assert "counts files" in message
    assert "origdatablocks with 2 files, found 0 origdatablocks" in message
    error = (await served.lifecycle(pid))["archiveReturnMessage"]["error"]
    assert error == {"type": "CatalogueFault", "kind": "system", "step": "read-origdatablocks"}
    assert (await served.job_record(result.job_id))["statusCode"] == "finishedUnsuccessful"


async def test_p2_scicat_that_calls_a_dataset_archived_and_has_no_datablock_is_told_and_left_as_it_is(
    served: System,
) -> None:
    archived = {"archiveStatusMessage": "datasetOnArchiveDisk", "retrievable": True, "archivable": False}
    pid = await served.dataset(FILES, more={"datasetlifecycle": archived})
    before = json.dumps(await served.record(pid))
    result = await served.archive(pid)
    assert result.counts == m.Counts(system_errors=1)
    assert "has no datablock of it" in (await served.job_record(result.job_id))["statusMessage"]
    assert json.dumps(await served.record(pid)) == before
    nothing_left(served, pid)
