"""What the sweep puts right in SciCat, on which evidence, and what it leaves as people wrote it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pipeline.conftest import MakeSystem
from tests.pipeline.system import System
from tests.sweep.sweeping import sweeping
from tests.sweep.test_jobs import patched, say

FILES = {"a.txt": b"text", "b.txt": b"more"}
YOUNG: dict[str, dict[str, Any]] = {"sweep": {"every_seconds": 0, "leftovers_every_seconds": 0}}
"""Leftovers must be a day old: what is put right at once is so by Temporal's word on the workflow that ended."""
LATE = {"archivable": False, "archiveStatusMessage": "started"}
FAILED = {"archivable": True, "archiveStatusMessage": "scheduleArchiveJobFailed"}


async def archived(system: System) -> tuple[str, str]:
    """A dataset that is archived, and its job."""
    pid = await system.dataset(FILES)
    job = await system.job(pid)
    async with system.workers():
        assert (await (await system.start_job(job)).result()).status_code == "finishedSuccessful"
    return pid, job


async def spoil(system: System, pid: str, job: str, late: dict[str, Any]) -> None:
    """As a step that stood still writes it."""
    message = {"summary": "Being archived.", "job": job, "since": "2026-01-01T00:00:00+00:00"}
    await patched(system, pid, **late, archiveReturnMessage=message)


@pytest.mark.parametrize("late", [LATE, FAILED], ids=["started", "failed"])
async def test_p3_a_dataset_with_a_complete_bag_and_its_records_is_archived_whatever_was_written_late(
    make_system: MakeSystem, late: dict[str, Any]
) -> None:
    system = await make_system(YOUNG)
    pid, job = await archived(system)
    before = await system.lifecycle(pid)
    await spoil(system, pid, job, late)
    async with sweeping(system) as sweeper:
        would = await sweeper.leftovers(dry_run=True)
        assert (would.found, would.cleared) == (1, 0)
        assert (await system.lifecycle(pid))["archiveStatusMessage"] == late["archiveStatusMessage"]
        swept = await sweeper.leftovers()
        assert any("datasetOnArchiveDisk again" in line for line in swept.lines), swept.lines
        after = await system.lifecycle(pid)
        changed = {"updatedAt"}
        assert {k: v for k, v in after.items() if k not in changed} == {
            k: v for k, v in before.items() if k not in changed
        }, "as it was told when it was archived"
        assert (await sweeper.leftovers()).found == 0


@pytest.mark.parametrize("lack", ["a record", "a file of the list", "the bag"])
async def test_p4_nothing_is_called_archived_where_bag_records_and_list_do_not_agree(
    make_system: MakeSystem, lack: str
) -> None:
    system = await make_system(YOUNG)
    pid, job = await archived(system)
    await spoil(system, pid, job, FAILED)
    store = system.standin.store
    if lack == "a record":
        store.delete("datablocks", store.all("datablocks", pid)[0]["_id"])
    elif lack == "the bag":
        (system.lts / pid / "tagmanifest-sha256.txt").unlink()
    else:
        block = store.all("origdatablocks", pid)[0]
        entries = [dict(entry) for entry in block["dataFileList"]]
        entries[0]["path"] = "c.txt"
        store.delete("origdatablocks", block["_id"])
        new = {**block, "_id": f"new-{pid}", "dataFileList": entries}
        assert store.insert("origdatablocks", new["_id"], new, parent=pid)
    async with sweeping(system) as sweeper:
        await sweeper.leftovers()
    assert (await system.lifecycle(pid))["archiveStatusMessage"] == "scheduleArchiveJobFailed"


async def test_a_jobs_status_in_the_words_of_a_person_stays(make_system: MakeSystem) -> None:
    system = await make_system(YOUNG | {"sweep": {**YOUNG["sweep"], "lost_after_seconds": 0}})
    _, job = await archived(system)
    async with sweeping(system) as sweeper:
        for code in ("inProgress", "finishedUnsuccessful"):
            await say(system, job, code, "Anna looks at it by hand.")
            swept, leftovers = await sweeper.jobs(), await sweeper.leftovers()
            assert (swept.corrected, swept.restarted, leftovers.corrected) == (0, 0, 0)
            record = await system.job_record(job)
            assert (record["statusCode"], record["statusMessage"]) == (code, "Anna looks at it by hand.")


async def test_a_job_that_a_late_step_put_in_progress_is_told_again_once_with_its_result(
    make_system: MakeSystem,
) -> None:
    system = await make_system(YOUNG)
    _, job = await archived(system)
    before = await system.job_record(job)
    await say(system, job, "inProgress", "Archiving 1 dataset.")
    async with sweeping(system) as sweeper:
        assert (await sweeper.jobs(dry_run=True)).corrected == 1
        assert (await system.job_record(job))["statusCode"] == "inProgress"
        assert [(await sweeper.jobs()).corrected for _ in range(2)] == [1, 0]
    after = await system.job_record(job)
    for name in ("statusCode", "statusMessage", "jobResultObject"):
        assert after[name] == before[name]


async def test_nothing_is_compared_where_the_settings_say_so(make_system: MakeSystem) -> None:
    system = await make_system({"sweep": {**YOUNG["sweep"], "compare_days": 0}})
    pid, job = await archived(system)
    await spoil(system, pid, job, FAILED)
    async with sweeping(system) as sweeper:
        assert (await sweeper.leftovers()).found == 0
