"""P8 with canaries: each credential is searched for wherever people or programs look, after good and failing jobs."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from archiver.settings import S3Settings
from tests.pipeline.canaries import CANARY, PRESIGNED, histories, hits
from tests.pipeline.faulty_s3 import EVER, FaultyS3, S3Fault
from tests.pipeline.oracle import assert_archived, assert_clean
from tests.pipeline.system import PASSWORD, System

FILES = {"raw/a.h5": b"detector " * 9}
SOON = {"give_up_after_hours": 1 / 3600}


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
    """A system with two worker processes, one with log lines for people, one with log lines for machines."""
    overrides = {"s3": {"endpoint": proxy.url}, "archive": SOON}
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, overrides)
    try:
        await made.start()
        # The one that calls SciCat last, so that the newest token is its own.
        for queues, log_format in (("pack,lts", "json"), ("workflows,catalogue", "text")):
            made.worker(queues, {"worker": {"log_format": log_format}})
        yield made
    finally:
        await made.stop()


@pytest.fixture(scope="module")
async def canaries(system: System, proxy: FaultyS3, s3: S3Settings) -> list[bytes]:
    """All secrets there were, after a job that went well and some that failed at servers which echo them."""
    assert s3.secret_key is not None
    found = {CANARY, PASSWORD, s3.secret_key.get_secret_value(), *system.standin.tokens}
    token = max(system.standin.tokens, key=lambda one: system.standin.tokens[one][1])
    faults = system.standin.faults

    good = await system.dataset(FILES)
    assert (await system.archive(good)).counts == m.Counts(archived=1)
    await assert_archived(system, good, FILES)

    # SciCat answers with what it was sent, so long that a cut goes through the token.
    for padding in (0, 190):
        echo = f"{'x' * padding} Authorization: Bearer {token} {token} {json.dumps({'password': PASSWORD})} {PRESIGNED}"
        faults.append(Fault("GET", r"/v4/origdatablocks$", times=EVER, body={"message": echo, "statusCode": 500}))
        pid = await system.dataset(FILES)
        assert (await system.archive(pid)).counts == m.Counts(system_errors=1)
        faults.clear()
        assert "status 500" in await assert_clean(system, pid, "scheduleArchiveJobFailed", files=FILES)

    for body in ({"message": f"no user archiver with password {PASSWORD}"}, f"<p>{PASSWORD} {token}</p>"):
        pid = await system.dataset(FILES)
        job_id = await system.job(pid)
        faults.append(Fault("POST", r"/auth/login$", times=2, status=500, body=body))
        system.standin.expire_tokens()
        await (await system.start_job(job_id)).result()
        found |= set(system.standin.tokens)
        await system.log_in()

    for method, pattern in (("GET", r"/raw/a\.h5"), ("PUT", r"/1\.tar\.gz"), ("GET", r"landing.*list-type")):
        proxy.faults.append(S3Fault(method, pattern, times=EVER, status=403, message=PRESIGNED.replace("&", "&amp;")))
        pid = await system.dataset(FILES)
        assert (await system.archive(pid)).counts == m.Counts(system_errors=1)
        proxy.faults.clear()
        await assert_clean(system, pid, "scheduleArchiveJobFailed", files=FILES)

    return [secret.encode() for secret in sorted(found | set(system.standin.tokens))]


async def test_p8_no_event_of_any_history_holds_a_secret(canaries: list[bytes], system: System) -> None:
    events = [event async for event in histories(system.client)]
    assert len(events) > 200
    assert [where for where, data in events if hits(canaries, data)] == []
    assert any(b"***" in data for _, data in events), "what was echoed was struck out"


async def test_p8_no_log_line_holds_a_secret(canaries: list[bytes], system: System) -> None:
    logs = {child.name: child.log.read_bytes() for child in system.children}
    assert all(b", try " in log for log in logs.values()), "failures are in the logs"
    assert {name: found for name, log in logs.items() if (found := hits(canaries, log))} == {}


async def test_p8_no_document_of_scicat_holds_a_secret(canaries: list[bytes], system: System) -> None:
    for collection in ("jobs", "datasets", "datablocks", "origdatablocks"):
        for document in system.standin.store.all(collection):
            assert hits(canaries, json.dumps(document).encode()) == [], collection


async def test_p8_no_file_on_the_lts_holds_a_secret(canaries: list[bytes], system: System) -> None:
    files = [path for path in system.lts.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        data = path.read_bytes()
        assert hits(canaries, gzip.decompress(data) if path.suffix == ".gz" else data) == [], path


async def test_p8_no_command_line_holds_a_secret(canaries: list[bytes], system: System) -> None:
    ours = [psutil.Process(child.pid) for child in system.children]
    lines = ["\0".join(one.cmdline()) for parent in ours for one in (parent, *parent.children(recursive=True))]
    assert len(lines) >= 2
    assert hits(canaries, "\n".join(lines).encode()) == []
