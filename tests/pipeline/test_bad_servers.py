"""SciCat and S3 that fail, lie, hang or go away: jobs go on by themselves, or end in words; nothing is told twice."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from temporalio.client import WorkflowFailureError

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from archiver.settings import S3Settings
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.faulty_s3 import EVER, FaultyS3, S3Fault
from tests.pipeline.moments import miscounted
from tests.pipeline.oracle import assert_archived, assert_clean, nothing_left
from tests.pipeline.system import Overrides, System

FILES = {"raw/a.h5": b"detector " * 70_000, "raw/b.h5": b"\0" * 500}
LARGE = {"raw/large.h5": bytes(range(256)) * 40_000, "raw/b.h5": b"\0" * 500}
"""10 MB: read in several parts, uploaded in several parts."""
SOON = {"archive": {"give_up_after_hours": 1 / 3600}}
"""System errors are given up after one second."""


@pytest.fixture(scope="module")
def proxy(s3: S3Settings) -> Iterator[FaultyS3]:
    """What our workers take for the S3 server."""
    proxy = FaultyS3(str(s3.endpoint).rstrip("/")).start()
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings, proxy: FaultyS3
) -> AsyncIterator[System]:
    """A system whose workers see S3 through the proxy, with its workflow and LTS queues served."""
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, {"s3": {"endpoint": proxy.url}})
    try:
        await made.start()
        async with made.workers("workflows,lts"):
            yield made
    finally:
        await made.stop()


@pytest.fixture
def faults(system: System, proxy: FaultyS3) -> Iterator[Callable[..., None]]:
    """Lets faults befall SciCat's and S3's callers; each must have befallen at the end of the test."""
    given: list[S3Fault] = []

    def add(*wanted: Fault | S3Fault) -> None:
        for one in wanted:
            if isinstance(one, S3Fault):
                given.append(one)
                proxy.faults.append(one)
            else:
                system.standin.faults.append(one)

    yield add
    left = [one for one in system.standin.faults if one.times < 1000]
    system.standin.faults.clear()
    proxy.faults.clear()
    assert left == [], "faults that befell nobody"
    assert [one for one in given if not one.befell] == [], "faults that befell nobody"


@asynccontextmanager
async def serving(system: System, overrides: Overrides | None = None) -> AsyncIterator[None]:
    """Serve the catalogue and pack queues with these settings."""
    async with system.workers("catalogue,pack", overrides):
        yield


async def assert_job_told_once(system: System, job_id: str, code: str = "finishedSuccessful") -> None:
    """Exactly one terminal update: SciCat mails at each."""
    assert [mail for job, mail in system.standin.mails if job == job_id] == ["inProgress", code]


# --- SciCat -------------------------------------------------------------------------------------------------------------

CALLS = {
    "reading the job": ("GET", r"/jobs/"),
    "writing the job": ("PATCH", r"/jobs/"),
    "reading the dataset": ("GET", r"/v4/datasets/[^/]+/[^/]+$"),
    "marking the dataset": ("PATCH", r"datasetlifecycle$"),
    "counting origdatablocks": ("GET", r"/origdatablocks/count$"),
    "reading origdatablocks": ("GET", r"/v4/origdatablocks$"),
    "registering": ("POST", r"/v3/datablocks$"),
    "reading datablocks": ("GET", r"/v3/datablocks$"),
    "writing counters": ("PATCH", r"/v4/datasets/[^/]+/[^/]+$"),
    "login": ("POST", r"/auth/login$"),
}
SHAPES: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "a page with 200": {"status": 200, "raw": b"<html>Please log in</html>"},
    "a while of silence": {"hang_seconds": 0.5},
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_p5_each_call_of_scicat_may_fail_once_with(
    shape: str, system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES)
    job_id = await system.job(pid)
    miscounted(system, pid)
    faults(*(Fault(method, path, **SHAPES[shape]) for method, path in CALLS.values()))
    async with serving(system):
        result = await (await system.start_job(job_id)).result()
        assert result.counts == m.Counts(archived=1)
        await assert_archived(system, pid, FILES)
    await assert_job_told_once(system, job_id)


@pytest.mark.parametrize(
    ("method", "path", "times"),
    [
        pytest.param("POST", r"/v3/datablocks$", 1, id="a registration"),
        pytest.param("PATCH", r"/jobs/", 2, id="the job's status, both times"),
        pytest.param("PATCH", r"datasetlifecycle$", 2, id="the dataset's status, both times"),
        pytest.param("PATCH", r"/v4/datasets/[^/]+/[^/]+$", 1, id="the counters"),
    ],
)
async def test_p6_what_scicat_did_without_saying_so_is_not_done_twice(
    method: str, path: str, times: int, system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES)
    job_id = await system.job(pid)
    miscounted(system, pid)
    faults(Fault(method, path, times=times, status=504, body="Gateway Timeout", execute=True))
    async with serving(system):
        assert (await (await system.start_job(job_id)).result()).counts == m.Counts(archived=1)
        await assert_archived(system, pid, FILES)
    assert len(system.datablocks(pid)) == 1
    await assert_job_told_once(system, job_id)


async def test_p2_scicat_is_told_in_this_order_and_nothing_before_it_is_true(
    system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES)
    job_id = await system.job(pid)
    miscounted(system, pid)
    seen: list[bool] = []
    manifest = system.lts / pid / "data" / "1.manifest.jsonl.gz"
    faults(S3Fault("PUT", r"\.record\.json$", before=lambda: seen.append(manifest.exists())))
    system.standin.log.clear()
    async with serving(system):
        await (await system.start_job(job_id)).result()
    writes = [(method, path.split("/")[-1]) for method, path, _ in system.standin.log if method in ("PATCH", "POST")]
    writes = [write for write in writes if write != ("POST", "login")]
    suffix = pid.split("/")[-1]
    assert writes == [
        ("PATCH", job_id),
        ("PATCH", "datasetlifecycle"),
        ("POST", "datablocks"),
        ("PATCH", suffix),
        ("PATCH", "datasetlifecycle"),
        ("PATCH", job_id),
    ]
    assert seen == [True], "verified, with its manifest on the LTS, before a record of it was made"


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        pytest.param("PUT", r"/record/[0-9a-f]{64}$", id="before the files are read"),
        pytest.param("PUT", r"\.record\.json$", id="before registration"),
    ],
)
async def test_p5_a_token_that_expires_in_the_middle_is_renewed(
    method: str, pattern: str, system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES, files_per_block=1)
    job_id = await system.job(pid)
    faults(S3Fault(method, pattern, before=system.standin.expire_tokens))
    async with serving(system):
        assert (await (await system.start_job(job_id)).result()).counts == m.Counts(archived=1)
    await system.log_in()
    await assert_archived(system, pid, FILES)
    await assert_job_told_once(system, job_id)


async def test_p5_an_outage_before_the_job_and_one_before_registration_are_waited_out(
    system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES)
    job_id = await system.job(pid)
    assert system.scicat is not None
    async with serving(system):
        await asyncio.to_thread(system.scicat.stop)
        handle = await system.start_job(job_id)
        waiting = await system.pending("begin-job", "archive-job", job_id, attempt=2)
        assert "SciCat does not answer" in waiting.last_failure.message, "a wait that anybody can see"
        faults(S3Fault("PUT", r"/bag/[0-9a-f]{64}$", before=system.scicat.stop))
        await asyncio.to_thread(system.scicat.start)
        await system.pending("register-datablocks", "archive-dataset", pid, attempt=2)
        await asyncio.to_thread(system.scicat.start)
        assert (await handle.result()).counts == m.Counts(archived=1)
    await assert_archived(system, pid, FILES)
    await assert_job_told_once(system, job_id)


async def test_scicat_ill_while_origdatablocks_are_read_is_a_system_error_of_that_step(
    system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES)
    job_id = await system.job(pid)
    faults(Fault("GET", r"/v4/origdatablocks$", times=EVER))
    async with serving(system, SOON):
        assert (await (await system.start_job(job_id)).result()).counts == m.Counts(system_errors=1)
    message = await assert_clean(system, pid, "scheduleArchiveJobFailed", files=FILES)
    for word in (pid, "SciCat refuses GET /api/v4/origdatablocks", "status 500", "; next: "):
        assert word in message
    error = (await system.lifecycle(pid))["archiveReturnMessage"]["error"]
    assert error == {"type": "CatalogueFault", "kind": "system", "step": "read-origdatablocks"}
    await assert_job_told_once(system, job_id, "finishedUnsuccessful")


async def test_p2_a_registration_that_scicat_refuses_leaves_no_record_and_the_verified_bag_for_the_next_job(
    system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES)
    job_id = await system.job(pid)
    system.standin.faults.append(
        Fault("POST", r"/v3/datablocks$", times=EVER, status=403, body={"message": "Forbidden"})
    )
    async with serving(system):
        assert (await (await system.start_job(job_id)).result()).counts == m.Counts(system_errors=1)
        message = await assert_clean(system, pid, "scheduleArchiveJobFailed", files=FILES)
        for word in (pid, "SciCat refuses POST /api/v3/datablocks", "ADMIN_GROUPS", "status 403: Forbidden"):
            assert word in message
        system.standin.faults.clear()
        written = (system.lts / pid / "data" / "1.tar.gz").stat()
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
    await assert_archived(system, pid, FILES)
    again = (system.lts / pid / "data" / "1.tar.gz").stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns), "used again as it was"


async def test_p5_a_password_that_scicat_takes_no_more_stops_no_end_from_being_told_once_it_is_right_again(
    system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES)
    job_id = await system.job(pid)
    refused = Fault("POST", r"/auth/login$", times=EVER, status=401, body={"message": "Unauthorized"})

    def revoke() -> None:
        system.standin.expire_tokens()
        system.standin.faults.append(refused)

    faults(S3Fault("PUT", r"\.record\.json$", before=revoke))
    async with serving(system):
        handle = await system.start_job(job_id)
        await system.pending("fail-dataset", "archive-dataset", pid, attempt=2)
        system.standin.faults.clear()
        assert (await handle.result()).counts == m.Counts(system_errors=1)
    await system.log_in()
    message = await assert_clean(system, pid, "scheduleArchiveJobFailed", files=FILES)
    assert "SciCat refuses the login of 'archiver'" in message
    await assert_job_told_once(system, job_id, "finishedUnsuccessful")


# --- S3 -----------------------------------------------------------------------------------------------------------------


async def test_an_s3_that_refuses_our_keys_is_a_system_error_that_names_the_bucket(
    system: System, s3: S3Settings
) -> None:
    pid = await system.dataset(FILES)
    landing = {"s3": {"endpoint": str(s3.endpoint), "access_key": s3.access_key, "secret_key": "wrong"}}
    async with serving(system, {**SOON, "landing": landing}):
        result = await system.archive(pid)
    assert result.counts == m.Counts(system_errors=1)
    message = await assert_clean(system, pid, "scheduleArchiveJobFailed", files=FILES)
    for word in (pid, system.landing_bucket, "SignatureDoesNotMatch", "; next: ", "our keys"):
        assert word in message
    error = (await system.lifecycle(pid))["archiveReturnMessage"]["error"]
    assert error == {"type": "SourceFault", "kind": "system", "step": "plan-dataset"}
    await assert_job_told_once(system, result.job_id, "finishedUnsuccessful")


async def test_p5_a_staging_bucket_that_refuses_leaves_no_dataset_in_progress(
    system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES)
    faults(S3Fault("PUT", r"/record/[0-9a-f]{64}$", times=EVER, status=403))
    async with serving(system, SOON):
        result = await system.archive(pid)
    assert result.counts == m.Counts(system_errors=1)
    message = await assert_clean(system, pid, "scheduleArchiveJobFailed", files=FILES)
    assert system.staging_bucket in message
    error = (await system.lifecycle(pid))["archiveReturnMessage"]["error"]
    assert error == {"type": "StagingFault", "kind": "system", "step": "begin-dataset"}


@dataclass(frozen=True)
class Trouble:
    """What befalls the requests for one dataset's objects, and how the dataset ends: ``error`` as SciCat has it."""

    faults: Sequence[S3Fault]
    """With patterns of what follows the pid in a request."""
    error: Mapping[str, str] | None = None
    says: Sequence[str] = ()
    source: bytes | None = LARGE["raw/large.h5"]
    """What lies in the landing zone in the end."""


def changed(data: bytes | None, found: str, skip: int) -> Trouble:
    """The large file is replaced, or removed, just before its first or third part is read."""
    error = {"type": "SourceChanged", "kind": "content", "step": "pack-datablock"}
    says = ["datablock 1", "'raw/large.h5'", "changed or vanished", f"found {found}", "; next: let the files rest"]
    return Trouble([S3Fault("GET", r"/raw/large\.h5$", skip=skip)], error, says, data)


SAME_SIZE = b"x" * len(LARGE["raw/large.h5"])
TROUBLES = {
    "source reads that are reset": Trouble([S3Fault("GET", r"/raw/large\.h5$", times=3, reset=True)]),
    "source reads that are answered with 503": Trouble([S3Fault("GET", r"/raw/large\.h5$", times=4, status=503)]),
    "a list of the landing zone that is answered with 503": Trouble([S3Fault("GET", r"/&", times=2, status=503)]),
    "an upload that is reset in the middle": Trouble([S3Fault("PUT", r".*partNumber=2", times=2, reset=True)]),
    "an upload that is answered with 503": Trouble([S3Fault("PUT", r".*partNumber=1", times=3, status=503)]),
    "an upload whose completion fails": Trouble([S3Fault("POST", r".*\.tar\?uploadId", times=2, status=500)]),
    "reads of staging that are reset": Trouble([S3Fault("GET", r".*/1\.tar$", times=2, reset=True)]),
    "one flipped bit in the source": Trouble([S3Fault("GET", r"/raw/large\.h5$", flip=True)]),
    "one flipped bit in the staged datablock": Trouble([S3Fault("GET", r".*/1\.tar$", flip=True)]),
    "one flipped bit in the staged manifest": Trouble([S3Fault("GET", r".*/1\.manifest\.jsonl\.gz$", flip=True)]),
    "a staged datablock that is other bytes at every read": Trouble(
        [S3Fault("GET", r".*/1\.tar$", times=EVER, flip=True)],
        {"type": "StagedLost", "kind": "system", "step": "copy-to-lts"},
        ["datablock 1", "is not what this run stored there", "expected 10", "SHA-256", "; next: "],
    ),
    "a source of other bytes and the same size, before it is read": changed(SAME_SIZE, "another version", 0),
    "a source of other bytes and the same size, while it is read": changed(SAME_SIZE, "another version", 2),
    "a source of another size, before it is read": changed(b"x", "another version", 0),
    "a source of another size, while it is read": changed(b"x", "another version", 2),
    "a source that vanishes before it is read": changed(None, "nothing", 0),
    "a source that vanishes while it is read": changed(None, "nothing", 2),
}


def replace_source(system: System, pid: str, data: bytes | None) -> None:
    """As the user would while the dataset is archived."""
    where = {"Bucket": system.landing_bucket, "Key": f"{pid}/raw/large.h5"}
    if data is None:
        system.boto.delete_object(**where)
    else:
        system.boto.put_object(**where, Body=data)


@pytest.fixture(scope="module")
async def troubled(system: System, proxy: FaultyS3) -> tuple[dict[str, str], m.Counts]:
    """One job over a dataset for each trouble; the pids, and what the job says."""
    pids = {}
    for name, trouble in TROUBLES.items():
        pids[name] = pid = await system.dataset(LARGE)
        for fault in trouble.faults:
            fault.pattern = re.escape(pid) + fault.pattern
            if trouble.source != LARGE["raw/large.h5"]:
                fault.before = partial(replace_source, system, pid, trouble.source)
            proxy.faults.append(fault)
    overrides = {"datablock": {"format": "tar"}, "archive": {"datasets_at_once": len(TROUBLES)}}
    async with serving(system, overrides):
        counts = (await system.archive(*pids.values())).counts
    proxy.faults.clear()
    return pids, counts


async def test_p7_troubles_of_some_datasets_are_not_those_of_the_others(
    troubled: tuple[dict[str, str], m.Counts],
) -> None:
    assert troubled[1] == m.Counts(archived=10, content_errors=6, system_errors=1)


@pytest.mark.parametrize("name", TROUBLES)
async def test_p4_a_dataset_ends_rightly_after(
    name: str, troubled: tuple[dict[str, str], m.Counts], system: System
) -> None:
    trouble, pid = TROUBLES[name], troubled[0][name]
    assert all(fault.befell for fault in trouble.faults)
    if trouble.error is None:
        await assert_archived(system, pid, LARGE)
        return
    left = {path: data for path, data in {**LARGE, "raw/large.h5": trouble.source}.items() if data is not None}
    status = "missingFilesError" if trouble.error["kind"] == "content" else "scheduleArchiveJobFailed"
    message = await assert_clean(system, pid, status, files=left)
    for word in (pid, *trouble.says):
        assert word in message, f"{word!r} is not said in: {message}"
    assert (await system.lifecycle(pid))["archiveReturnMessage"]["error"] == trouble.error
    assert not (system.lts / pid).exists()


async def test_p6_staging_that_answers_a_deletion_with_503_is_cleaned_all_the_same(
    system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES)
    faults(S3Fault("POST", r"staging.*delete", times=2, status=503))
    async with serving(system):
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
    await assert_archived(system, pid, FILES)


# --- workers that must not, or may, start -----------------------------------------------------------------------------------


async def test_a_worker_is_refused_at_start_in_four_lines_if(make_system: MakeSystem) -> None:
    system = await make_system()
    wrong = system.worker("catalogue", {"scicat": {"password": "wrong-secret"}}, wait=False)
    unmarked = system.folder / "unmarked"
    unmarked.mkdir()
    other = system.worker("lts", {"lts": {"root": str(unmarked)}}, wait=False)
    for child, says in ((wrong, "SciCat refuses the login of 'archiver'"), (other, "is not the LTS 'test'")):
        for _ in range(1200):
            if child.exit_code is not None:
                break
            await asyncio.sleep(0.1)
        assert child.exit_code == 6, child.log.read_text()
        lines = child.log.read_text().splitlines()
        assert [line[:9].strip() for line in lines] == ["error", "expected", "found", "next"]
        assert says in lines[0]
        assert "wrong-secret" not in child.log.read_text()
    assert list(unmarked.iterdir()) == []


async def test_p5_a_worker_starts_while_scicat_is_down_and_works_when_it_is_back(system: System) -> None:
    pid = await system.dataset(FILES)
    job_id = await system.job(pid)
    assert system.scicat is not None
    await asyncio.to_thread(system.scicat.stop)
    async with serving(system):
        handle = await system.start_job(job_id)
        await asyncio.to_thread(system.scicat.start)
        assert (await handle.result()).counts == m.Counts(archived=1)
    await assert_archived(system, pid, FILES)


async def test_a_job_that_scicat_stops_knowing_ends_in_words_and_leaves_nothing(
    system: System, faults: Callable[..., None]
) -> None:
    pid = await system.dataset(FILES)
    job_id = await system.job(pid)
    faults(S3Fault("PUT", r"\.record\.json$", before=lambda: system.standin.store.delete("jobs", job_id)))
    async with serving(system):
        with pytest.raises(WorkflowFailureError) as failed:
            await (await system.start_job(job_id)).result()
    assert f"SciCat knows no job {job_id}" in str(failed.value.cause)
    await assert_archived(system, pid, FILES)
    nothing_left(system, pid)
