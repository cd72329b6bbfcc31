"""Jobs again, together, over datasets in all states: an archive that exists is never harmed, and datasets fail alone."""

from __future__ import annotations

import asyncio
from typing import Any

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import MIB, dataset_workflow, full_lts, noise, on_lts, stage, until
from tests.pipeline.oracle import assert_archived, assert_clean
from tests.pipeline.system import System

FILES = {"a.txt": b"text", "raw/b.bin": noise(70_000, 1)}
TWO_DATABLOCKS = {"a.bin": noise(MIB, 1), "b.bin": noise(MIB, 2)}
SMALL_DATABLOCKS = {"datablock": {"target_bytes": MIB}, "archive": {"datablocks_at_once": 1}}


async def archive_of(system: System, pid: str) -> tuple[Any, ...]:
    """All that an archive is: files with their inodes, SciCat's records with their ids and times."""
    record = await system.record(pid)
    bag = {path.name: path.read_bytes() for path in (system.lts / pid).iterdir() if path.is_file()}
    return on_lts(system, pid), bag, system.datablocks(pid), record


def told(system: System, job_id: str) -> list[str]:
    """Status codes of the updates of a job that its users got mails for."""
    return [code for job, code in system.standin.mails if job == job_id]


async def outcomes(system: System, job_id: str) -> dict[str, str]:
    """Each dataset's outcome, from the job's result object."""
    result = (await system.job_record(job_id))["jobResultObject"]
    return {one["pid"]: one["outcome"] for one in result["datasets"]}


async def test_p3_the_same_job_twice_changes_nothing(served: System) -> None:
    pid = await served.dataset(FILES)
    job_id = await served.job(pid)
    first = await (await served.start_job(job_id)).result()
    assert first.counts == m.Counts(archived=1)
    assert told(served, job_id) == ["inProgress", "finishedSuccessful"]
    before = await archive_of(served, pid)
    again = await (await served.start_job(job_id)).result()
    assert (again.status_code, again.counts) == ("finishedSuccessful", m.Counts(already_archived=1))
    assert await archive_of(served, pid) == before
    assert len(told(served, job_id)) <= 3
    await assert_archived(served, pid, FILES)


async def test_p3_a_job_started_twice_at_once_is_one(served: System) -> None:
    pid = await served.dataset(FILES)
    job_id = await served.job(pid)
    handles = [await served.start_job(job_id), await served.start_job(job_id)]
    results = await asyncio.gather(*(handle.result() for handle in handles))
    assert [result.counts for result in results] == [m.Counts(archived=1)] * 2
    assert told(served, job_id) == ["inProgress", "finishedSuccessful"]
    await assert_archived(served, pid, FILES)


async def test_p3_two_jobs_at_once_on_one_dataset_make_one_set_of_datablocks(served: System) -> None:
    pid = await served.dataset(FILES)
    served.standin.faults.append(Fault("GET", f"/datasets/{pid}/origdatablocks/count", hang_seconds=2))
    first, second = await served.job(pid), await served.job(pid)
    handles = [await served.start_job(first)]
    await until(lambda: _status(served, pid, "started"))
    handles.append(await served.start_job(second))
    results = await asyncio.gather(*(handle.result() for handle in handles))
    assert [(result.status_code, result.counts.good) for result in results] == [("finishedSuccessful", 1)] * 2
    for job_id in (first, second):
        assert told(served, job_id) == ["inProgress", "finishedSuccessful"]
        assert await outcomes(served, job_id) == {pid: "archived"}
    assert [entry for entry in served.standin.log if entry[:2] == ("POST", "/api/v3/datablocks")][-1:] == [
        ("POST", "/api/v3/datablocks", 201)
    ]
    await assert_archived(served, pid, FILES)


async def test_p3_a_job_over_datasets_of_which_some_are_archived_leaves_those_as_they_are(served: System) -> None:
    archived, new = await served.dataset(FILES), await served.dataset(TWO_DATABLOCKS)
    await served.archive(archived)
    before = await archive_of(served, archived)
    job_id = await served.job(archived, new)
    result = await (await served.start_job(job_id)).result()
    assert (result.status_code, result.counts) == ("finishedSuccessful", m.Counts(archived=1, already_archived=1))
    assert await outcomes(served, job_id) == {archived: "already_archived", new: "archived"}
    assert await archive_of(served, archived) == before
    await assert_archived(served, new, TWO_DATABLOCKS)


async def test_p3_a_second_job_years_later_when_the_source_is_another_changes_nothing_and_says_so(
    served: System,
) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    before = await archive_of(served, pid)
    served.put(pid, {"a.txt": b"another text", "new.txt": b"surplus"})
    served.boto.delete_object(Bucket=served.landing_bucket, Key=f"{pid}/raw/b.bin")
    job_id = await served.job(pid)
    result = await (await served.start_job(job_id)).result()
    assert (result.status_code, result.counts) == ("finishedSuccessful", m.Counts(already_archived=1))
    (said,) = (await served.job_record(job_id))["jobResultObject"]["datasets"]
    assert said["outcome"] == "already_archived"
    assert "was archived before" in said["message"]
    assert "nothing changed" in said["message"]
    assert await archive_of(served, pid) == before
    await assert_archived(served, pid, FILES)


async def test_p3_a_complete_bag_is_never_replaced_even_if_scicat_has_forgotten_the_archive(served: System) -> None:
    """SciCat's record was reset, and the source is another: the job fails and says what it found; the bag stays."""
    pid = await served.dataset(FILES)
    await served.archive(pid)
    before = on_lts(served, pid), {path: path.read_bytes() for path in (served.lts / pid).glob("*.txt")}
    body = {"archivable": True, "retrievable": False, "archiveStatusMessage": "datasetCreated"}
    await served.http.patch(f"/api/v4/datasets/{pid.replace('/', '%2F')}/datasetlifecycle", json=body)
    served.put(pid, {"a.txt": b"TEXT"})
    result = await served.archive(pid)
    assert result.counts.good == 0
    assert (on_lts(served, pid), {path: path.read_bytes() for path in (served.lts / pid).glob("*.txt")}) == before
    assert len(served.datablocks(pid)) == 1
    life = await served.lifecycle(pid)
    assert life["archiveStatusMessage"] in ("scheduleArchiveJobFailed", "missingFilesError")


async def test_p7_of_three_datasets_one_lacks_a_file_and_the_others_are_archived(served: System) -> None:
    good = [await served.dataset(FILES), await served.dataset(TWO_DATABLOCKS)]
    lacking = {"a.txt": FILES["a.txt"]}
    bad = await served.dataset(lacking, listed=[served.entry(path, data) for path, data in FILES.items()])
    job_id = await served.job(good[0], bad, good[1])
    result = await (await served.start_job(job_id)).result()
    assert result.status_code == "finishedWithDatasetErrors"
    assert result.counts == m.Counts(archived=2, content_errors=1)
    await assert_archived(served, good[0], FILES)
    await assert_archived(served, good[1], TWO_DATABLOCKS)
    assert "raw/b.bin" in await assert_clean(served, bad, "missingFilesError", files=lacking)
    job = await served.job_record(job_id)
    assert job["statusCode"] == "finishedWithDatasetErrors"
    assert "raw/b.bin" in job["statusMessage"]
    assert await outcomes(served, job_id) == {good[0]: "archived", bad: "failed", good[1]: "archived"}
    assert told(served, job_id) == ["inProgress", "finishedWithDatasetErrors"]
    # Mended, the same job archives what it left.
    served.put(bad, FILES)
    result = await (await served.start_job(job_id)).result()
    assert (result.status_code, result.counts) == (
        "finishedSuccessful",
        m.Counts(archived=1, already_archived=2),
    )
    await assert_archived(served, bad, FILES)
    assert told(served, job_id) == ["inProgress", "finishedWithDatasetErrors", "inProgress", "finishedSuccessful"]


async def test_p3_after_a_failure_verified_datablocks_of_the_same_plan_are_used_again(make_system: MakeSystem) -> None:
    system = await make_system(SMALL_DATABLOCKS)
    async with system.workers():
        pid = await _with_one_datablock_verified(system)
        kept = on_lts(system, pid)
        assert kept.keys() == {"1.tar.gz", "1.manifest.jsonl.gz"}
        job = await system.start_job(await system.job(pid))
        assert (await job.result()).counts == m.Counts(archived=1)
        assert on_lts(system, pid).items() > kept.items()
        history = await system.client.get_workflow_handle(f"archive-datablock/{pid}/1").fetch_history()
        assert _steps(history) == ["verify-in-lts"]
        await assert_archived(system, pid, TWO_DATABLOCKS)
        assert not list((system.lts / ".archiver" / "quarantine").iterdir())

        # The source is another now, so the plan is: what is verified of the old one is taken into quarantine, not lost.
        pid = await _with_one_datablock_verified(system)
        kept = on_lts(system, pid)
        files = {**TWO_DATABLOCKS, "a.bin": noise(MIB, 9)}
        _catalogue_says(system, pid, files)
        system.put(pid, files)
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
        await assert_archived(system, pid, files)
        assert not set(on_lts(system, pid).values()) & set(kept.values())
        taken = (system.lts / ".archiver" / "quarantine").rglob("*")
        quarantined = [path for path in taken if path.is_file() and path.suffix != ".json"]
        assert {path.stat().st_ino for path in quarantined} == set(kept.values())


async def test_a_job_in_the_shape_of_v3_is_archived(served: System) -> None:
    pid = await served.dataset(FILES)
    body = {
        "type": "archive",
        "emailJobInitiator": "anna@example.org",
        "jobParams": {"username": "anna"},
        "datasetList": [{"pid": pid, "files": []}],
    }
    job_id = str(served.created(await served.http.post("/api/v3/jobs", json=body))["id"])
    result = await (await served.start_job(job_id)).result()
    assert result.counts == m.Counts(archived=1)
    await assert_archived(served, pid, FILES)
    shown = (await served.http.get(f"/api/v3/jobs/{job_id}")).json()
    assert shown["jobStatusMessage"] == "finishedSuccessful"


async def test_pids_given_to_the_workflow_are_archived_and_no_other_of_its_job(served: System) -> None:
    asked, other = await served.dataset(FILES), await served.dataset(FILES)
    job_id = await served.job(asked, other)
    result = await (await served.start_job(job_id, [asked])).result()
    assert result.counts == m.Counts(archived=1)
    await assert_archived(served, asked, FILES)
    assert (await served.lifecycle(other))["archiveStatusMessage"] == "datasetCreated"
    assert on_lts(served, other) == {}


async def _status(system: System, pid: str, status: str) -> bool:
    return bool((await system.lifecycle(pid))["archiveStatusMessage"] == status)


async def _with_one_datablock_verified(system: System) -> str:
    """A dataset of two datablocks whose job was stopped when the first had verified and the second was packed."""
    pid = await system.dataset(TWO_DATABLOCKS)
    with full_lts(system, now=False) as fill:
        handle = await system.start_job(await system.job(pid))
        await until(lambda: _first_has_its_space(system, pid))
        fill()
        await until(lambda: _waits(system, pid))
        await dataset_workflow(system, pid).signal("cancel", m.StopRequest(reason="test", who="test"))
        assert (await handle.result()).counts == m.Counts(cancelled=1)
    return pid


async def _first_has_its_space(system: System, pid: str) -> bool:
    return await stage(system, pid, 1) in ("copy to LTS", "verify in LTS", "verified")


async def _waits(system: System, pid: str) -> bool:
    return await stage(system, pid, 2) == "wait for LTS space"


def _steps(history: Any) -> list[str]:
    scheduled = [event.activity_task_scheduled_event_attributes for event in history.events]
    return [one.activity_type.name for one in scheduled if one.activity_type.name]


def _catalogue_says(system: System, pid: str, files: dict[str, bytes]) -> None:
    """The dataset's origdatablock with these files."""
    (block,) = system.standin.store.all("origdatablocks", pid)
    block["dataFileList"] = [system.entry(path, data) for path, data in files.items()]
    system.standin.store.delete("origdatablocks", block["_id"])
    system.standin.store.insert("origdatablocks", block["_id"], block, parent=pid)
