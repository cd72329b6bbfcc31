"""A job of more datasets than one run of its workflow takes."""

from __future__ import annotations

import pytest

from archiver import model as m
from tests.pipeline.oracle import assert_archived
from tests.pipeline.system import System
from tests.scale.conftest import histories
from workflows.job import DATASETS_PER_RUN

pytestmark = [pytest.mark.scale, pytest.mark.timeout(3600)]

FILES = {"a.bin": b"a", "b.bin": b"b" * 1000}


async def test_p9_a_job_that_continues_as_new_archives_what_stands_on_either_side(system: System) -> None:
    """Few real datasets, at both ends of many pids that SciCat does not know."""
    real = [await system.dataset(FILES) for _ in range(6)]
    unknown = [f"20.500.11935/none-{k:04}" for k in range(DATASETS_PER_RUN)]
    pids = [*real[:3], *unknown, *real[3:]]
    job_id = await system.job(*real)
    async with system.workers():
        handle = await system.start_job(job_id, pids)
        result = await handle.result()
    assert result.counts == m.Counts(archived=6, content_errors=len(unknown))
    assert result.status_code == "finishedWithDatasetErrors"
    for pid in real:
        await assert_archived(system, pid, FILES)
    runs = await histories(system, job_id)
    print(f"{len(pids)} datasets in {len(runs)} runs: {sorted(runs.values(), reverse=True)} events and bytes")
    assert len(runs) == 2
    assert all(events <= 4_096 and size <= 4 * 2**20 for events, size in runs.values())
