"""A job goes in, verified and registered datablocks come out: the whole path on real parts."""

from __future__ import annotations

from archiver import model as m
from tests.pipeline.oracle import assert_archived
from tests.pipeline.system import System

FILES = {
    "raw/a.h5": b"detector " * 70_000,
    "raw/b.h5": b"\0" * 300_000,
    "Übersicht der Messung.txt": b"text",
    "notes/two\nlines.txt": b"x",
    "empty.log": b"",
    "n" * 200 + ".dat": b"long name",
}


async def test_p11_a_dataset_is_archived_and_proved_by_tools_that_are_not_ours(system: System) -> None:
    pid = await system.dataset(FILES)
    async with system.workers():
        result = await system.archive(pid)
    assert result.counts == m.Counts(archived=1)
    await assert_archived(system, pid, FILES)
    job = await system.job_record(result.job_id)
    assert job["statusCode"] == "finishedSuccessful"
    assert job["jobResultObject"]["datasets"][0]["outcome"] == "archived"
