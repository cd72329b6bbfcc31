"""What lies in staging rots: it is never believed, and made again by itself within the same job."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from archiver import model as m
from archiver.settings import S3Settings
from tests.pipeline.faulty_s3 import EVER, FaultyS3, S3Fault
from tests.pipeline.moments import noise, staged
from tests.pipeline.oracle import assert_archived, assert_clean
from tests.pipeline.retrieving import fetched, retrieve
from tests.pipeline.system import System

FILES = {f"raw/{k}.bin": noise(3000 + k, k) for k in range(6)}
"""Two datablocks of three files each."""
SETTINGS = {"datablock": {"max_files": 3}, "archive": {"datablocks_at_once": 1}}
REASON = "scheduleArchiveJobFailed"


@dataclass(frozen=True)
class Rotting:
    """A request that reads an object of staging: right before it the object is damaged."""

    method: str
    pattern: str
    skip: int = 0


ROTTING = {
    "the list of the lists of files, before planning": Rotting("GET", "/listing/[0-9a-f]{64}$"),
    "a list of files of the catalogue, before planning": Rotting("GET", "/listing/[0-9a-f]{64}$", skip=1),
    "the plan, before packing": Rotting("GET", "/plan/[0-9a-f]{64}$"),
    "a datablock's list of files, before packing": Rotting("GET", "/plan/[0-9a-f]{64}$", skip=1),
    "the plan, before the second datablock is packed": Rotting("GET", "/plan/[0-9a-f]{64}$", skip=2),
    "the last datablock's list of files": Rotting("GET", "/plan/[0-9a-f]{64}$", skip=3),
    "a datablock, before the copy": Rotting("HEAD", r"/1\.tar\.gz$"),
    "a manifest, before verification": Rotting("GET", r"/1\.manifest\.jsonl\.gz$", skip=1),
    "the last manifest, before verification": Rotting("GET", r"/2\.manifest\.jsonl\.gz$", skip=1),
    "a manifest, before registration": Rotting("GET", r"/1\.manifest\.jsonl\.gz$", skip=2),
    "a verification record, before the bag": Rotting("GET", r"/1\.record\.json$"),
    "the last verification record, before the bag": Rotting("GET", r"/2\.record\.json$"),
    "the catalogue's record, before the bag": Rotting("GET", "/record/[0-9a-f]{64}$"),
    "what the bag holds, before registration": Rotting("GET", "/bag/[0-9a-f]{64}$"),
}
"""A manifest is looked for once before its datablock is packed."""


def flipped(data: bytes, other: bytes) -> bytes:
    """One bit is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes, bytes], bytes | None]] = {
    "flipped": flipped,
    "cut": lambda data, other: data[: len(data) // 2],
    "gone": lambda data, other: None,
    "swapped": lambda data, other: other,
}


class Staging:
    """The staging bucket of a system, behind a proxy that says when an object is read."""

    def __init__(self, system: System, proxy: FaultyS3) -> None:
        self.system = system
        self.proxy = proxy

    def rot(
        self, pid: str, rotting: Rotting, damage: Callable[[bytes, bytes], bytes | None], times: int = 1
    ) -> S3Fault:
        """Damage the object of this dataset right before it is read; its own metadata is made to fit what is there then."""
        boto, bucket = self.system.boto, self.system.staging_bucket

        def spoil(path: str) -> None:
            key = urlsplit(path).path.split("/", 2)[2]
            data = boto.get_object(Bucket=bucket, Key=key)["Body"].read()
            like = sorted(staged(self.system, pid), key=lambda one: one.rpartition("/")[0] != key.rpartition("/")[0])
            others = [boto.get_object(Bucket=bucket, Key=one)["Body"].read() for one in like if one != key]
            spoiled = damage(data, (others or [b"other"])[0])
            if spoiled is None:
                boto.delete_object(Bucket=bucket, Key=key)
            else:
                fits = {"sha256": hashlib.sha256(spoiled).hexdigest()}
                boto.put_object(Bucket=bucket, Key=key, Body=spoiled, Metadata=fits)

        pattern = f"/(datasets|retrievals)/{pid}/.*{rotting.pattern}"
        fault = S3Fault(rotting.method, pattern, times=times, skip=rotting.skip, at=spoil)
        self.proxy.faults.append(fault)
        return fault


@pytest.fixture(scope="module")
async def staging(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[Staging]:
    """A system that is served, and reaches S3 through a proxy."""
    proxy = FaultyS3(str(s3.endpoint).rstrip("/")).start()
    system = System(tmp_path_factory.mktemp("system"), temporal_address, s3, SETTINGS)
    try:
        await system.start()
        async with system.workers(overrides={"s3": {"endpoint": proxy.url}}):
            yield Staging(system, proxy)
    finally:
        await system.stop()
        proxy.stop()


async def test_p5_what_rots_in_staging_is_made_again_in_the_same_job(staging: Staging) -> None:
    system = staging.system
    each = [(name, damage) for name in ROTTING for damage in DAMAGES]
    pids = {one: await system.dataset(FILES) for one in each}
    faults = {(name, damage): staging.rot(pids[name, damage], ROTTING[name], DAMAGES[damage]) for name, damage in each}
    handle = await system.start_job(job_id := await system.job(*pids.values()))
    result = await handle.result()
    assert {one: fault.befell for one, fault in faults.items()} == dict.fromkeys(each, 1), "each was damaged"
    outcomes = (await system.job_record(job_id))["jobResultObject"]
    assert result.counts == m.Counts(archived=len(pids)), outcomes
    for pid in pids.values():
        await assert_archived(system, pid, FILES)


async def test_p2_what_rots_again_and_again_ends_soon_and_nothing_is_registered(staging: Staging) -> None:
    system = staging.system
    kinds = [name for name in ROTTING if "last" not in name and "second" not in name]
    pids = {name: await system.dataset(FILES) for name in kinds}
    faults = [staging.rot(pid, ROTTING[name], DAMAGES["cut"], times=EVER) for name, pid in pids.items()]
    result = await system.archive(*pids.values())
    for fault in faults:
        staging.proxy.faults.remove(fault)
    assert result.counts == m.Counts(system_errors=len(pids))
    for pid, fault in zip(pids.values(), faults, strict=True):
        message = await assert_clean(system, pid, REASON, files=FILES)
        assert "is not what this run stored there" in message
        assert "next: " in message
        assert fault.befell < 60
    # It is well again: the next job archives them.
    assert (await system.archive(*pids.values())).counts == m.Counts(archived=len(pids))
    for pid in pids.values():
        await assert_archived(system, pid, FILES)


async def test_p4_a_plan_that_is_lost_is_made_anew_of_what_the_catalogue_lists_by_then(staging: Staging) -> None:
    system = staging.system
    pid = await system.dataset(FILES)
    more = {f"raw/late-{k}.bin": noise(500, 90 + k) for k in range(3)}

    def gone(data: bytes, other: bytes) -> None:
        """The catalogue gains three files in this moment."""
        system.put(pid, more)
        (block,) = system.standin.store.all("origdatablocks", pid)
        entries = [system.entry(path, content) for path, content in more.items()]
        late = {**block, "_id": f"late-{pid}", "dataFileList": entries}
        assert system.standin.store.insert("origdatablocks", late["_id"], late, parent=pid)

    # One of two datablocks is verified by then: it counts no more.
    fault = staging.rot(pid, ROTTING["the plan, before the second datablock is packed"], gone)
    assert (await system.archive(pid)).counts == m.Counts(archived=1)
    assert fault.befell == 1
    await assert_archived(system, pid, {**FILES, **more})


async def test_p4_a_catalogue_that_changed_meanwhile_is_told_and_the_next_job_archives_it(staging: Staging) -> None:
    system = staging.system
    pid = await system.dataset(FILES)
    more = {"raw/late.bin": noise(500, 90)}

    def listed_more(path: str) -> None:
        (block,) = system.standin.store.all("origdatablocks", pid)
        entries = [system.entry(path, content) for path, content in more.items()]
        late = {**block, "_id": f"late-{pid}", "dataFileList": entries}
        assert system.standin.store.insert("origdatablocks", late["_id"], late, parent=pid)

    fault = S3Fault("PUT", f"/datasets/{pid}/.*/1.record.json$", at=listed_more)
    staging.proxy.faults.append(fault)
    assert (await system.archive(pid)).counts == m.Counts(content_errors=1)
    message = await assert_clean(system, pid, "missingFilesError", files=FILES)
    assert "list other files than were archived" in message
    assert f"in SciCat 6 files of {sum(map(len, FILES.values()))} B" in message
    assert f"found 7 files of {sum(map(len, [*FILES.values(), *more.values()]))} B" in message
    system.put(pid, more)
    assert (await system.archive(pid)).counts == m.Counts(archived=1)
    await assert_archived(system, pid, {**FILES, **more})


async def test_p4_a_bit_that_flips_once_after_an_ordinary_retry_is_read_again_and_nobody_is_blamed(
    staging: Staging,
) -> None:
    system, faults = staging.system, staging.proxy.faults
    pid = await system.dataset({"raw/a.bin": noise(5000, 1)})
    packed: list[str] = []
    count = S3Fault("PUT", rf"/datasets/{pid}/.*\.tar\.gz$", times=EVER, at=packed.append)
    # The first attempt to pack fails for another reason, and so does the first to copy.
    refused = [
        S3Fault("PUT", rf"/datasets/{pid}/.*/1\.manifest\.jsonl\.gz$", status=403),
        S3Fault("HEAD", rf"/datasets/{pid}/.*/1\.tar\.gz$", status=403, skip=1),
        S3Fault("HEAD", rf"/datasets/{pid}/.*/1\.tar\.gz$", status=403),
        S3Fault("HEAD", rf"/datasets/{pid}/.*/1\.tar\.gz$", status=403),
    ]
    flips = [
        S3Fault("GET", f"/{pid}/raw/a.bin", skip=1, flip=True),
        S3Fault("GET", rf"/datasets/{pid}/.*/1\.tar\.gz$", flip=True),
        S3Fault("GET", rf"/datasets/{pid}/.*/1\.tar\.gz$", flip=True),
    ]
    faults += [count, *refused, *flips]
    assert (await system.archive(pid)).counts == m.Counts(archived=1)
    faults.remove(count)
    assert [fault.befell for fault in (*refused, *flips)] == [1] * 7
    assert len(packed) == 2, "by the two attempts; the one whose source flipped was not stored"
    await assert_archived(system, pid, {"raw/a.bin": noise(5000, 1)})


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "read", [0, 1, 2], ids=["the records", "the names, before planning", "the names, before reading"]
)
async def test_p5_what_a_retrieval_keeps_in_staging_is_stored_again_and_a_lost_list_of_names_never_means_all(
    staging: Staging, damage: str, read: int
) -> None:
    system = staging.system
    pid = await system.dataset(FILES)
    assert (await system.archive(pid)).counts == m.Counts(archived=1)
    fault = staging.rot(pid, Rotting("GET", "/[0-9a-f]{64}$", skip=read), DAMAGES[damage])
    job, result = await retrieve(system, pid, files=["raw/1.bin"])
    assert fault.befell == 1
    assert result.counts == m.Counts(retrieved=1)
    assert await fetched(system, job) == {"raw/1.bin": FILES["raw/1.bin"]}
