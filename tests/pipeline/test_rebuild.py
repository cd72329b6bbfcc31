"""Disaster: SciCat's datablocks are gone, the LTS is not. What is rebuilt is what was there, and data comes back by it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from archiver import model as m
from archiver.settings import S3Settings
from tests.operators.inside import inside
from tests.pipeline.moments import noise
from tests.pipeline.retrieving import fetched, retrieve
from tests.pipeline.system import System

FILES = {"a.txt": b"text", "raw/b.bin": noise(2**20, 1), "raw/\u00fc c.bin": noise(2**20, 2), "empty": b""}
OWN = {"_id", "id", "createdAt", "updatedAt"}
"""What SciCat itself gives a document when it is made."""


@pytest.fixture(scope="module")
async def served(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    """Datasets of two datablocks."""
    two = {"datablock": {"target_bytes": 2**20 + 2**10}}
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, two)
    try:
        await made.start()
        async with made.workers():
            yield made
    finally:
        await made.stop()


def plain(document: Any) -> Any:
    """A document without what SciCat gives it anew each time it is made."""
    if isinstance(document, dict):
        return {key: plain(value) for key, value in document.items() if key not in OWN}
    return [plain(one) for one in document] if isinstance(document, list) else document


def blocks(system: System, pid: str) -> list[Any]:
    """Every field of every record."""
    return [plain(block) for block in sorted(system.datablocks(pid), key=lambda block: str(block["archiveId"]))]


def lose(system: System, pid: str) -> None:
    """The dataset as it was when it was made: an old backup, or a new ingest."""
    store = system.standin.store
    for block in store.heads("datablocks", pid):
        store.delete("datablocks", block["_id"])
    dataset = store.get("datasets", pid)
    assert dataset is not None
    lifecycle = {"archivable": True, "retrievable": False, "archiveStatusMessage": "datasetCreated"}
    dataset |= {"packedSize": 0, "numberOfFilesArchived": 0, "datasetlifecycle": lifecycle}
    store.put("datasets", pid, dataset)


async def test_what_was_archived_is_rebuilt_field_by_field_and_can_be_retrieved(served: System) -> None:
    entries = [served.entry(path, data, uid="1000", gid="staff", perm="640") for path, data in FILES.items()]
    pid = await served.dataset(FILES, listed=entries, more={"accessGroups": ["readers"], "instrumentGroup": "i1"})
    other = await served.dataset({"x": b"not lost"})
    await served.archive(pid, other)
    before, untouched = blocks(served, pid), (await served.record(other), blocks(served, other))
    record = plain(await served.record(pid))
    assert len(before) == 2
    lose(served, pid)
    dry = await inside(served.config, "rebuild", "--from-lts")
    assert (dry.code, blocks(served, pid)) == (0, [])
    assert "1 as they are, 1 to rebuild (2 records)" in dry.out
    done = await inside(served.config, "rebuild", "--from-lts", "--apply")
    assert done.code == 0, done.err
    assert blocks(served, pid) == before
    after = plain(await served.record(pid))
    # Dates and flags that only SciCat's defaults know are not archiving's, and were lost with the old record.
    lifecycle, was = after.pop("datasetlifecycle"), record.pop("datasetlifecycle")
    assert after == record
    assert lifecycle == {name: was[name] for name in lifecycle}
    assert set(lifecycle) >= {"archivable", "retrievable", "archiveStatusMessage", "archiveReturnMessage"}
    assert (await served.record(other), blocks(served, other)) == untouched
    job, result = await retrieve(served, pid)
    assert result.counts == m.Counts(retrieved=1)
    assert await fetched(served, job) == FILES


async def test_p3_an_archive_job_after_a_rebuild_changes_nothing(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    lose(served, pid)
    await inside(served.config, "rebuild", "--from-lts", pid, "--apply")
    before = blocks(served, pid), await served.record(pid)
    assert (await served.archive(pid)).counts == m.Counts(already_archived=1)
    assert (blocks(served, pid), await served.record(pid)) == before


async def test_an_archive_job_that_comes_instead_registers_the_same(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    lose(served, pid)
    await inside(served.config, "rebuild", "--from-lts", pid, "--apply")
    rebuilt = blocks(served, pid)
    lose(served, pid)
    assert (await served.archive(pid)).counts == m.Counts(archived=1)
    assert blocks(served, pid) == rebuilt
