"""P1: sources go last, only on a proof made afresh, and exactly those that were archived."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from archiver import model as m
from archiver.settings import S3Settings
from tests.pipeline.oracle import assert_archived, landing, nothing_left
from tests.pipeline.system import System

FILES = {"raw/a.h5": b"detector " * 9, "raw/b.h5": b"\0" * 500}
"""Each in a datablock of its own."""
DELETING = {"landing": {"delete_after_archive": True, "surplus": "allow"}}


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    """One file per datablock; served but for the catalogue and the delete queue."""
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, {"datablock": {"max_files": 1}, **DELETING})
    try:
        await made.start()
        async with made.workers("workflows,pack,lts-space,lts-copy,lts-verify,lts-bag"):
            yield made
    finally:
        await made.stop()


async def test_p1_nothing_is_deleted_unless_a_setting_says_so(system: System) -> None:
    pid = await system.dataset(FILES)
    async with system.workers("catalogue,delete", {"landing": {"delete_after_archive": False}}):
        result = await system.archive(pid)
    assert result.counts == m.Counts(archived=1)
    await assert_archived(system, pid, FILES)
    assert landing(system, pid) == {path: len(data) for path, data in FILES.items()}


async def test_p1_exactly_the_archived_files_go_and_what_is_surplus_or_changed_stays(system: System) -> None:
    pid = await system.dataset(FILES)
    system.put(pid, {"raw/surplus.h5": b"surplus", "raw/a.h5.bak": b"too"})
    async with system.workers("catalogue"):
        handle = await system.start_job(job_id := await system.job(pid))
        await system.pending("delete-sources", "archive-dataset", pid)
        life = await system.lifecycle(pid)
        assert (life["archiveStatusMessage"], life["retrievable"]) == ("datasetOnArchiveDisk", True), "reported before"
        system.put(pid, {"raw/b.h5": b"\1" * 500})
        async with system.workers("delete"):
            assert (await handle.result()).counts == m.Counts(archived=1)
    assert landing(system, pid) == {"raw/b.h5": 500, "raw/surplus.h5": 7, "raw/a.h5.bak": 3}
    (outcome,) = (await system.job_record(job_id))["jobResultObject"]["datasets"]
    assert outcome["message"].endswith("; 1 source files removed, 1 kept")
    await assert_archived(system, pid, FILES)


async def test_p1_new_bytes_that_a_gateway_shows_under_the_old_etag_stay(system: System, s3_folder: Path) -> None:
    pid = await system.dataset(FILES)
    path = s3_folder / "s3" / system.landing_bucket / pid / "raw/b.h5"
    async with system.workers("catalogue"):
        handle = await system.start_job(await system.job(pid))
        await system.pending("delete-sources", "archive-dataset", pid)
        before = path.stat()
        with path.open("r+b") as file:
            file.write(b"\1" * 500)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        async with system.workers("delete"):
            assert (await handle.result()).counts == m.Counts(archived=1)
    assert path.read_bytes() == b"\1" * 500
    assert landing(system, pid) == {"raw/b.h5": 500}
    await assert_archived(system, pid, FILES)


# --- each leg of the proof, broken just before it is made -------------------------------------------------------------------


@dataclass(frozen=True)
class Break:
    """What is done to an archived dataset, and what the proof then says."""

    do: Callable[[System, str], None]
    says: str
    archived: bool = True
    """The dataset's record in SciCat is as it was."""


def bag(system: System, pid: str, name: str, old: bytes, new: bytes) -> None:
    """Change a file on the LTS."""
    path = system.lts / pid / name
    data = path.read_bytes()
    assert old in data
    path.chmod(0o644)
    path.write_bytes(data.replace(old, new, 1) if old else data + new)


def record(system: System, pid: str, **lifecycle: object) -> None:
    """Change the dataset in SciCat."""
    dataset = system.standin.store.get("datasets", pid)
    assert dataset is not None
    dataset["datasetlifecycle"] |= lifecycle
    system.standin.store.put("datasets", pid, dataset)


def staged(system: System, pid: str, n: int, change: Callable[[bytes], bytes] | None) -> None:
    """Change the staged list of datablock ``n``, or with 0 the plan itself, or remove it."""
    boto, bucket = system.boto, system.staging_bucket
    listed = boto.list_objects_v2(Bucket=bucket, Prefix=f"datasets/{pid}/")["Contents"]
    plans = {one["Key"]: boto.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in listed}
    (key,) = [key for key, data in plans.items() if "/plan/" in key and data.startswith(b"{")]
    if n:
        key = f"{key.rpartition('/')[0]}/{json.loads(plans[key])['lists'][n - 1]}"
    if change is None:
        boto.delete_object(Bucket=bucket, Key=key)
    else:
        data = change(plans[key])
        boto.put_object(Bucket=bucket, Key=key, Body=data, Metadata={"sha256": hashlib.sha256(data).hexdigest()})


def listed_more(system: System, pid: str) -> None:
    """SciCat lists one more file."""
    (block,) = system.standin.store.all("origdatablocks", pid)
    more = {**block, "_id": f"later-{pid}", "dataFileList": [System.entry("raw/c.h5", b"late")]}
    assert system.standin.store.insert("origdatablocks", more["_id"], more, parent=pid)


def unregister(system: System, pid: str) -> None:
    """SciCat loses the record of the second datablock."""
    (lost,) = [block for block in system.datablocks(pid) if block["archiveId"].endswith("/2.tar.gz")]
    system.standin.store.delete("datablocks", lost["_id"])


BREAKS = {
    "a datablock is gone from the LTS": Break(
        lambda system, pid: (system.lts / pid / "data/2.tar.gz").unlink(), "datablock 2 of"
    ),
    "a datablock is short": Break(
        lambda system, pid: bag(system, pid, "data/2.tar.gz", (system.lts / pid / "data/2.tar.gz").read_bytes()[-1:], b""),
        "datablock 2 of",
    ),
    "a manifest is gone": Break(
        lambda system, pid: (system.lts / pid / "data/2.manifest.jsonl.gz").unlink(), "data/2.manifest.jsonl.gz on the LTS"
    ),
    "a manifest is another": Break(
        lambda system, pid: bag(system, pid, "data/2.manifest.jsonl.gz", b"", b"\0"), "manifest 2 with the bag's SHA-256"
    ),
    "the bag's list is gone": Break(
        lambda system, pid: (system.lts / pid / "manifest-sha256.txt").unlink(), "manifest-sha256.txt on the LTS"
    ),
    "the level proved is too low": Break(
        lambda system, pid: bag(system, pid, "bag-info.txt", b"Verification-Level: host", b"Verification-Level: cache"),
        "expected verification level host or better, found cache",
    ),
    "the bag is of another plan": Break(
        lambda system, pid: bag(system, pid, "bag-info.txt", b"Archiver-Plan: ", b"Archiver-Plan: 0"), "a bag of plan"
    ),
    "SciCat has no record of a datablock": Break(unregister, "/data/2.tar.gz registered in SciCat, found no record"),
    "SciCat does not say archived": Break(
        lambda system, pid: record(system, pid, archiveStatusMessage="started"), "found started", archived=False
    ),
    "SciCat does not say retrievable": Break(
        lambda system, pid: record(system, pid, retrievable=False), "SciCat says datasetOnArchiveDisk", archived=False
    ),
    "staging holds another plan": Break(
        lambda system, pid: staged(
            system, pid, 0, lambda data: json.dumps({**json.loads(data), "plan_id": "0" * 32}).encode()
        ),
        "in staging, found",
    ),
    "the plan's list is gone": Break(
        lambda system, pid: staged(system, pid, 2, None), "the plan of datablock 2 in staging, found nothing"
    ),
    "the plan's list is another, and its metadata fits": Break(
        lambda system, pid: staged(system, pid, 2, lambda data: data[:-1]), "the plan of datablock 2 in staging, found"
    ),
    "SciCat lists another file by now": Break(listed_more, "manifests of the 3 files of 585 B"),
}  # fmt: skip


@pytest.fixture(scope="module")
async def broken(system: System) -> tuple[dict[str, str], dict[str, str]]:
    """The pid and the outcome's message of each dataset that was broken between its report and its deletion."""
    pids = {name: await system.dataset(FILES) for name in BREAKS}
    async with system.workers("catalogue", {"archive": {"datasets_at_once": len(BREAKS)}}):
        handle = await system.start_job(job_id := await system.job(*pids.values()))
        for name, pid in pids.items():
            await system.pending("delete-sources", "archive-dataset", pid)
            BREAKS[name].do(system, pid)
        async with system.workers("delete"):
            assert (await handle.result()).counts == m.Counts(archived=len(BREAKS))
        told = {pid: one.message for pid, one in (await system.outcomes(job_id)).items()}
    return pids, told


@pytest.mark.parametrize("name", BREAKS)
async def test_p1_not_one_source_file_is_deleted_if(
    name: str, broken: tuple[dict[str, str], dict[str, str]], system: System
) -> None:
    pids, told = broken
    pid = pids[name]
    assert landing(system, pid) == {path: len(data) for path, data in FILES.items()}
    for word in ("; source files kept: no proof that dataset", pid, BREAKS[name].says):
        assert word in told[pid], f"{word!r} is not said in: {told[pid]}"
    life = await system.lifecycle(pid)
    if BREAKS[name].archived:
        assert (life["archiveStatusMessage"], life["retrievable"]) == ("datasetOnArchiveDisk", True)
    nothing_left(system, pid)


async def test_p1_where_the_delete_queue_is_served_without_the_setting_nothing_is_deleted(system: System) -> None:
    pid = await system.dataset(FILES)
    async with (
        system.workers("catalogue"),
        system.workers("delete", {"landing": {"delete_after_archive": False}}),
    ):
        result = await system.archive(pid)
    assert result.counts == m.Counts(archived=1)
    (outcome,) = (await system.job_record(result.job_id))["jobResultObject"]["datasets"]
    assert "source files are not to be removed here" in outcome["message"]
    assert landing(system, pid) == {path: len(data) for path, data in FILES.items()}
    await assert_archived(system, pid, FILES)
