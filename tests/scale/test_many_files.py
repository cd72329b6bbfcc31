"""Datasets of many files: how they are cut, and what they cost in history and memory."""

from __future__ import annotations

import pytest

from tests.pipeline.system import System
from tests.scale.conftest import Archived

pytestmark = [pytest.mark.scale, pytest.mark.timeout(3600)]

FEW, ONE_MORE, TWO_FULL, MANY = 1_000, 20_001, 40_000, 100_000
MAX_EVENTS, MAX_BYTES = 4_096, 4 * 2**20
A_TENTH = 1.1


async def test_a_dataset_of_20001_files_makes_two_datablocks(system: System, archived: Archived) -> None:
    run = await archived(ONE_MORE)
    blocks = sorted(system.datablocks(run.pid), key=lambda block: str(block["archiveId"]))
    assert [len(block["dataFileList"]) for block in blocks] == [20_000, 1]
    assert (await system.record(run.pid))["numberOfFilesArchived"] == ONE_MORE


async def test_100000_files_are_registered_each_once(system: System, archived: Archived) -> None:
    run = await archived(MANY)
    blocks = system.datablocks(run.pid)
    paths = [file["path"] for block in blocks for file in block["dataFileList"]]
    assert (len(blocks), len(paths), len(set(paths))) == (5, MANY, MANY)


async def test_p9_every_history_of_100000_files_stays_small(archived: Archived) -> None:
    run = await archived(MANY)
    kinds = {name.split("/")[0] for name in run.histories}
    assert kinds == {"archive-job", "archive-dataset", "archive-datablock"}
    assert len(run.histories) == 7
    too_long = {name: found for name, found in run.histories.items() if found[0] > MAX_EVENTS or found[1] > MAX_BYTES}
    assert too_long == {}


async def test_p9_no_history_grows_with_the_files_of_a_datablock(archived: Archived) -> None:
    few, many = await archived(FEW), await archived(MANY)

    def of_one_datablock(run: dict[str, tuple[int, int]]) -> int:
        return max(size for name, (_, size) in run.items() if name.startswith("archive-datablock/"))

    # Heartbeats leave no events; a retry under load may leave a few.
    assert of_one_datablock(many.histories) < 2 * of_one_datablock(few.histories)


async def test_p10_the_packing_process_takes_the_same_memory_for_1000_and_100000_files(archived: Archived) -> None:
    few, many = await archived(FEW), await archived(MANY)
    assert many.peaks["pack"] <= A_TENTH * few.peaks["pack"]


@pytest.mark.parametrize("queue", ["workflows", "catalogue", "lts"])
async def test_p10_no_worker_takes_more_memory_for_five_full_datablocks_than_for_two(
    archived: Archived, queue: str
) -> None:
    """Two, because SciCat's records of datablocks are read two at a time."""
    two, five = await archived(TWO_FULL), await archived(MANY)
    assert five.peaks[queue] <= A_TENTH * two.peaks[queue]
