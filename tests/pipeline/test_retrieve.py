"""Bringing back: SciCat job -> LTS -> checked -> bucket or directory -> links in SciCat, on real parts."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.testing import ActivityEnvironment

from activities.retrieve_catalogue import RetrieveCatalogue
from archiver import model as m
from archiver.catalogue.client import SciCat
from archiver.errors import StagingFault, TargetFault
from archiver.retrieval import wire as w
from archiver.retrieval.keys import selection_of
from archiver.settings import S3Settings
from archiver.storage.objects import Bucket
from cli import jobs
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import noise, until
from tests.pipeline.retrieving import fetched, retrieve
from tests.pipeline.system import System
from workflows import steps

FILES = {
    "a.txt": b"text",
    "raw/b.bin": noise(3 * 2**20, 1),
    "raw/c and d.bin": noise(2**20, 2),
    "empty": b"",
    "names/\u00e4'$(touch gotcha)\n.txt": b"a hostile name",
}


@pytest.fixture(scope="module")
async def served(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    """A system that also delivers to a directory."""
    retrieval = {"roots": [str(tmp_path_factory.mktemp("shared"))], "destinations": {"packed": "datablocks"}}
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, {"retrieval": retrieval})
    try:
        await made.start()
        async with made.workers():
            yield made
    finally:
        await made.stop()


async def test_p2_a_dataset_comes_back_byte_for_byte_by_its_links(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    before = await served.lifecycle(pid)
    job, result = await retrieve(served, pid)
    assert (result.status_code, result.counts) == ("finishedSuccessful", m.Counts(retrieved=1))
    assert await fetched(served, job) == FILES
    after = await served.lifecycle(pid)
    assert after["retrieveStatusMessage"] == "datasetRetrieved"
    assert after["retrieveIntegrityCheck"] is True
    untouched = ("archivable", "retrievable", "archiveStatusMessage", "archiveReturnMessage", "storageLocation")
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}
    told = (await served.job_record(job))["jobResultObject"]
    assert next(iter(told)) == "summary"
    assert {one["datasetId"] for one in told["result"]} == {pid}
    left = served.boto.list_objects_v2(Bucket=served.staging_bucket).get("Contents", [])
    assert not [entry["Key"] for entry in left if "retrievals/" in entry["Key"]]


async def test_single_files_come_back_and_no_others(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    wanted = ["raw/c and d.bin", "a.txt"]
    job, result = await retrieve(served, pid, files=wanted)
    assert result.counts == m.Counts(retrieved=1)
    assert await fetched(served, job) == {name: FILES[name] for name in wanted}


async def test_p4_files_that_the_dataset_does_not_have_are_named_and_nothing_is_delivered_half(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    job, result = await retrieve(served, pid, files=["a.txt", "not/there.txt"])
    assert result.counts == m.Counts(content_errors=1)
    told = await served.job_record(job)
    assert "not/there.txt" in told["statusMessage"]
    assert "result" not in told["jobResultObject"]
    assert (await served.lifecycle(pid))["retrieveStatusMessage"] == "scheduleRetrieveJobFailed"


async def test_p7_names_that_no_file_can_have_fail_their_dataset_and_no_other(served: System) -> None:
    good, bad = await served.dataset(FILES), await served.dataset(FILES)
    await served.archive(good, bad)
    job = await served.job(
        type="retrieve", jobParams={"datasetList": [{"pid": good, "files": []}, {"pid": bad, "files": []}]}
    )
    document = served.standin.store.get("jobs", job)
    assert document is not None
    document["jobParams"]["datasetList"][1]["files"] = ["a.txt", "../../etc/passwd"]
    served.standin.store.put("jobs", job, document)
    result = await (await jobs.start(served.client, job, None, retrieve=True)).result()
    assert (result.status_code, result.counts) == (
        "finishedWithDatasetErrors",
        m.Counts(retrieved=1, content_errors=1),
    )
    assert await fetched(served, job) == FILES
    told = (await served.job_record(job))["jobResultObject"]
    assert {one["datasetId"] for one in told["result"]} == {good}
    (failed,) = (one for one in told["datasets"] if one["pid"] == bad)
    assert failed["error"]["type"] == "HostilePath"
    assert "'../../etc/passwd'" in failed["message"]
    assert (await served.lifecycle(bad))["retrieveStatusMessage"] == "scheduleRetrieveJobFailed"


async def test_a_dataset_that_is_not_archived_is_refused_in_words(served: System) -> None:
    pid = await served.dataset(FILES)
    job, result = await retrieve(served, pid)
    assert result.counts == m.Counts(content_errors=1)
    assert "not archived" in (await served.job_record(job))["statusMessage"]
    assert (await served.lifecycle(pid))["retrieveStatusMessage"] == ""


async def test_datablocks_come_back_as_they_are(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    job, result = await retrieve(served, pid, option="packed")
    assert result.counts == m.Counts(retrieved=1)
    (data,) = (await fetched(served, job)).values()
    assert data == (served.lts / pid / "data" / "1.tar.gz").read_bytes()


async def test_a_directory_gets_the_files_with_their_times(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    (root,) = served.settings.retrieval.roots
    job, result = await retrieve(served, pid, destinationPath=f"{root}/mine")
    assert result.counts == m.Counts(retrieved=1)
    folder = root / "mine" / pid
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == FILES
    assert os.stat(folder / "a.txt").st_mtime == 1767268800  # 2026-01-01T12:00:00Z, the catalogue's
    (told,) = (await served.job_record(job))["jobResultObject"]["result"]
    assert (told["datasetId"], told["name"]) == (pid, str(folder))


async def test_p3_a_flipped_bit_on_the_lts_is_found_and_never_delivered(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    path = served.lts / pid / "data" / "1.tar.gz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    job, result = await retrieve(served, pid)
    assert result.counts == m.Counts(system_errors=1)
    told = await served.job_record(job)
    assert told["statusCode"] == "finishedUnsuccessful"
    assert "result" not in told["jobResultObject"]
    assert (await served.lifecycle(pid))["retrieveStatusMessage"] == "scheduleRetrieveJobFailed"


async def test_two_jobs_for_one_dataset_read_the_lts_once_and_both_are_told(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    listed = {"datasetList": [{"pid": pid, "files": []}]}
    ids = [await served.job(type="retrieve", jobParams=listed) for _ in range(2)]
    handles = [await jobs.start(served.client, job, None, retrieve=True) for job in ids]
    assert [(await handle.result()).counts for handle in handles] == [m.Counts(retrieved=1)] * 2
    for job in ids:
        assert await fetched(served, job) == FILES


async def test_the_download_script_brings_everything(served: System, tmp_path: Path) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    job, _ = await retrieve(served, pid)
    script = (await served.job_record(job))["jobResultObject"]["downloadScript"]
    ended = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    got = {
        str(path.relative_to(tmp_path / pid)): path.read_bytes()
        for path in (tmp_path / pid).rglob("*")
        if path.is_file()
    }
    assert got == FILES


async def test_retrieved_data_is_removed_after_its_days_and_what_is_wanted_stays(served: System) -> None:
    bucket = served.settings.retrieval.bucket
    old, new = await served.dataset(FILES), await served.dataset(FILES)
    await served.archive(old, new)
    await retrieve(served, old)
    job, _ = await retrieve(served, new)
    listed = served.boto.list_objects_v2(Bucket=bucket, Prefix=".archiver/")["Contents"]
    for key in (entry["Key"] for entry in listed):
        mark = json.loads(served.boto.get_object(Bucket=bucket, Key=key)["Body"].read())
        if mark["pid"] == old:
            assert mark["until"] > time.time() + served.settings.retrieval.url_life_seconds
            served.boto.put_object(Bucket=bucket, Key=key, Body=json.dumps({**mark, "until": time.time() - 1}).encode())
    done = await served.client.execute_workflow(
        "ExpireRetrieved", m.SweepRequest(), id="expire", task_queue=steps.WORKFLOWS, result_type=w.ExpireResult
    )
    assert done.datasets == 1
    assert "Contents" not in served.boto.list_objects_v2(Bucket=bucket, Prefix=f"{old}/")
    assert await fetched(served, job) == FILES


BIG = {"big.bin": noise(96 * 2**20, 3)}


def uploads(system: System) -> list[str]:
    """Ids of the open multipart uploads of the retrieval bucket."""
    answer = system.boto.list_multipart_uploads(Bucket=system.settings.retrieval.bucket)
    return [upload["UploadId"] for upload in answer.get("Uploads", [])]


def there(system: System, pid: str) -> list[str]:
    """Names of the dataset's files in the retrieval bucket."""
    answer = system.boto.list_objects_v2(Bucket=system.settings.retrieval.bucket, Prefix=f"{pid}/")
    keys = [entry["Key"].removeprefix(f"{pid}/") for entry in answer.get("Contents", [])]
    return [key for key in keys if not key.startswith(".scicat-archiver/")]


async def begun(system: System, pid: str) -> tuple[str, WorkflowHandle[Any, m.ArchiveJobResult]]:
    """A retrieve job whose large file is being delivered."""
    job = await system.job(type="retrieve", jobParams={"datasetList": [{"pid": pid, "files": []}]})
    handle = await jobs.start(system.client, job, None, retrieve=True)
    await until(lambda: uploads(system))
    return job, handle


async def test_p5_a_killed_reader_leaves_nothing_half_and_the_job_ends_right_by_itself(make_system: MakeSystem) -> None:
    system = await make_system()
    async with system.workers("workflows,catalogue,pack"):
        reader = system.worker("lts")
        pid = await system.dataset(BIG)
        await system.archive(pid)
        job, handle = await begun(system, pid)
        reader.kill()
        assert uploads(system), "it was killed in the middle"
        assert there(system, pid) == []
        system.worker("lts")
        assert (await handle.result()).counts == m.Counts(retrieved=1)
    assert await fetched(system, job) == BIG


@pytest.mark.parametrize("way", ["signal", "temporal"])
async def test_a_stop_in_the_midst_of_reading_leaves_nothing_and_is_told(served: System, way: str) -> None:
    pid = await served.dataset(BIG)
    await served.archive(pid)
    before = await served.lifecycle(pid)
    job, handle = await begun(served, pid)
    if way == "signal":
        await handle.signal("cancel", m.StopRequest(reason="wrong beam line", who="anna"))
        assert (await handle.result()).counts == m.Counts(cancelled=1)
    else:
        await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    assert uploads(served) == []
    for name in there(served, pid):
        # Nothing half: what came whole before the stop was heard stays until it expires, and nobody is given a link to it.
        key = f"{pid}/{name}"
        assert served.boto.get_object(Bucket=served.settings.retrieval.bucket, Key=key)["Body"].read() == BIG[name]
    told = await served.job_record(job)
    assert told["statusCode"] == "finishedUnsuccessful"
    assert told["statusMessage"].startswith("Stopped by ")
    assert "result" not in told["jobResultObject"]
    after = await served.lifecycle(pid)
    assert after["retrieveStatusMessage"] == ""
    assert (after["archiveStatusMessage"], after["retrievable"]) == (before["archiveStatusMessage"], True)


async def test_p2_links_leave_nothing_out(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    job, _ = await retrieve(served, pid)
    bucket = served.settings.retrieval.bucket
    wanted = w.Wanted(pid=pid, selection=selection_of(w.Destination(), ()))
    staging = Bucket(served.staging_bucket, served.settings.s3, StagingFault)
    async with SciCat(served.settings.scicat) as scicat:
        catalogue = RetrieveCatalogue(served.settings, staging, scicat)

        def names() -> set[str]:
            return {one.name for one in catalogue._delivered(wanted, True)}

        # Another job begins to want the same while the first is still to report.
        selection = w.Selection(pid=pid, selection=wanted.selection, job_id=job)
        await ActivityEnvironment().run(catalogue.begin_retrieve_dataset, selection)
        assert names() == set(FILES)
        for name in ("1.jsonl.gz", "complete.json"):
            key = f"{pid}/.scicat-archiver/{wanted.selection}/{name}"
            served.boto.delete_object(Bucket=bucket, Key=key)
            with pytest.raises(TargetFault, match=name):
                names()
