"""P8 of retrieval: links are credentials. They stand in SciCat's job, in what it links to, and nowhere else."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from archiver.settings import S3Settings
from cli.servers import free_port
from tests.pipeline import holds as at
from tests.pipeline.canaries import CANARY, PRESIGNED, histories, hits
from tests.pipeline.faulty_s3 import EVER, S3Fault
from tests.pipeline.holds import Holds, holding, s3_through
from tests.pipeline.moments import MIB, noise, until
from tests.pipeline.retrieving import assert_not_retrieved, assert_retrieved, ended, retrieve, start_retrieve
from tests.pipeline.system import PASSWORD, System

SIGNATURE = re.compile(rb"X-Amz-Signature=([0-9a-f]{64})")
FEW = {"raw/a.h5": b"detector " * 9, "big.bin": noise(17 * MIB, 1)}
MANY = {f"{n}.txt": b"%d" % n for n in range(5)}
"""More than a job's result lists: it links to a list, and to a script, that hold the links."""


@dataclass(frozen=True)
class Seen:
    """What there was to be kept, and what was seen while it ran."""

    secrets: list[bytes]
    jobs: list[str]
    heartbeats: list[bytes]


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    overrides = {"archive": {"give_up_after_hours": 1 / 3600}}
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, overrides)
    try:
        yield await made.start()
    finally:
        await made.stop()


@pytest.fixture(scope="module")
async def holds(system: System) -> AsyncIterator[Holds]:
    """Two worker processes, one with log lines for people, one with log lines for machines, and metrics."""
    with holding(system) as held:
        # The one that calls SciCat last, so that the newest token is its own.
        for queues, log_format in (("pack,lts", "json"), ("workflows,catalogue", "text")):
            more = {"worker": {"log_format": log_format, "metrics_address": f"127.0.0.1:{free_port()}"}}
            system.worker(queues, s3_through(held, **more))
        yield held


async def beats(system: System, step: str, kind: str, *parts: str) -> bytes:
    """What a step that is under way says of itself."""

    async def said() -> bytes:
        one = await system.pending(step, kind, *parts)
        return b"".join(payload.data for payload in one.heartbeat_details.payloads)

    return bytes(await until(said, f"a heartbeat of {step}"))


def signatures(system: System, pid: str) -> set[str]:
    """Those of the links in the lists and scripts that lie beside a dataset's files."""
    bucket = system.settings.retrieval.bucket
    found = set()
    for entry in system.boto.list_objects_v2(Bucket=bucket, Prefix=f"{pid}/")["Contents"]:
        data = system.boto.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        found |= {match.decode() for match in SIGNATURE.findall(data)}
    return found


@pytest.fixture(scope="module")
async def seen(system: System, holds: Holds, s3: S3Settings) -> Seen:
    """All of it, after retrievals that went well and some that failed at servers which echo secrets."""
    assert s3.secret_key is not None
    bucket = system.settings.retrieval.bucket
    faults, s3_faults = system.standin.faults, holds.proxy.faults
    token = max(system.standin.tokens, key=lambda one: system.standin.tokens[one][1])
    found = {CANARY, PASSWORD, s3.secret_key.get_secret_value(), *system.standin.tokens}
    few, many = await system.dataset(FEW), await system.dataset(MANY)
    assert (await system.archive(few, many)).counts == m.Counts(archived=2)

    # While it reads, and while links are made, which is said again when SciCat refuses them once and echoes.
    heartbeats = []
    part, link = holds.s3(at.PUT_PART, few), holds.s3(at.LINK, few)
    job, handle = await start_retrieve(system, few)
    await part.here()
    reading = [one async for one in system.client.list_workflows("WorkflowType = 'RetrieveDatablock'")]
    (running,) = [one.id for one in reading if one.id.startswith(f"retrieve-datablock/{few}/")]
    heartbeats.append(await beats(system, "retrieve-datablock", *running.split("/", 1)))
    part.let_go()
    await link.here()
    heartbeats.append(await beats(system, "finish-retrieve-job", "retrieve-job", job))
    body = {"message": f"refused: Bearer {token} {PRESIGNED}", "statusCode": 500}
    faults.append(Fault("PATCH", f"/jobs/{job}$", times=4, body=body))
    link.let_go()
    await ended(handle)
    await assert_retrieved(system, job, few, FEW)
    jobs = [job]

    job, result = await retrieve(system, many)
    assert result.counts == m.Counts(retrieved=1)
    jobs.append(job)
    listed = signatures(system, many)

    # S3 echoes a link, to each step that asks it.
    for method, pattern in (at.PLAN, at.PUT_FILE, at.TELL):
        message = PRESIGNED.replace("&", "&amp;")
        s3_faults.append(S3Fault(method, pattern.replace("{pid}", many), times=EVER, status=403, message=message))
        # What is there already is neither read nor put again.
        for entry in system.boto.list_objects_v2(Bucket=bucket, Prefix=f"{many}/").get("Contents", []):
            system.boto.delete_object(Bucket=bucket, Key=entry["Key"])
        job, result = await retrieve(system, many)
        s3_faults.clear()
        assert result.counts == m.Counts(system_errors=1)
        error = "StagingFault" if (method, pattern) == at.PLAN else "TargetFault"
        await assert_not_retrieved(system, job, many, "does not do as asked", files=MANY, error=error)
    s3_faults.append(S3Fault(at.LINK[0], at.LINK[1].replace("{pid}", many), times=2, status=403, message=PRESIGNED))
    # SciCat echoes the password to the worker, which logs in anew.
    system.standin.expire_tokens()
    await system.log_in()
    faults.append(Fault("POST", r"/auth/login$", times=2, body={"message": f"no user archiver of password {PASSWORD}"}))
    job, result = await retrieve(system, many)
    assert result.counts == m.Counts(retrieved=1)
    jobs.append(job)

    told = b"".join([json.dumps(await system.job_record(one)).encode() for one in jobs])
    links = {match.decode() for match in SIGNATURE.findall(told)}
    assert len(links) >= len(FEW) + 3, "links to files, and to three scripts"
    links |= listed | signatures(system, many)
    assert len(links) >= len(FEW) + 3 + 2 * len(MANY)
    all_of_it = sorted(found | links | set(system.standin.tokens))
    return Seen([one.encode() for one in all_of_it], jobs, heartbeats)


async def test_p8_no_event_of_a_retrievals_history_holds_a_link_or_another_secret(seen: Seen, system: System) -> None:
    events = [event async for event in histories(system.client)]
    assert len(events) > 200
    assert [where for where, data in events if hits(seen.secrets, data)] == []
    assert [where for where, data in events if re.search(rb"X-Amz-Signature=(?!\*\*\*)", data)] == []
    assert any(b"***" in data for _, data in events), "what was echoed was struck out"


async def test_p8_no_heartbeat_of_a_retrieval_holds_a_secret(seen: Seen) -> None:
    assert len(seen.heartbeats) == 2
    assert any(b"making links" in data for data in seen.heartbeats)
    assert [found for data in seen.heartbeats if (found := hits([*seen.secrets, b"X-Amz-Signature"], data))] == []


async def test_p8_no_log_line_of_a_retrieval_holds_a_secret(seen: Seen, system: System) -> None:
    logs = {child.name: child.log.read_bytes() for child in system.children}
    assert all(b", try " in log for log in logs.values()), "failures are in the logs"
    assert {name: found for name, log in logs.items() if (found := hits(seen.secrets, log))} == {}


async def test_p8_no_metric_of_a_retrieval_holds_a_secret(seen: Seen, system: System) -> None:
    async with httpx.AsyncClient(trust_env=False) as plain:
        for n in range(len(system.children)):
            address = re.search(r'metrics_address = "(.*)"', (system.folder / f"worker-{n}.toml").read_text())
            assert address is not None
            metrics = (await plain.get(f"http://{address[1]}/metrics")).raise_for_status().content
            assert b"temporal_" in metrics
            assert hits(seen.secrets, metrics) == []


async def test_p8_only_the_job_that_the_requester_reads_holds_its_links(seen: Seen, system: System) -> None:
    store = system.standin.store
    for collection in ("jobs", "datasets", "datablocks", "origdatablocks"):
        for document in store.all(collection):
            if collection == "jobs" and document["id"] in seen.jobs:
                document["jobResultObject"].pop("result")
                document["jobResultObject"].pop("downloadScript", None)
            assert hits(seen.secrets, json.dumps(document).encode()) == [], collection


async def test_p8_neither_staging_nor_the_lts_holds_a_secret(seen: Seen, system: System) -> None:
    for path in (path for path in system.lts.rglob("*") if path.is_file()):
        data = path.read_bytes()
        packed = path.name.endswith(".manifest.jsonl.gz")
        assert hits(seen.secrets, gzip.decompress(data) if packed else data) == [], path
    for entry in system.boto.list_objects_v2(Bucket=system.staging_bucket).get("Contents", []):
        data = system.boto.get_object(Bucket=system.staging_bucket, Key=entry["Key"])["Body"].read()
        assert hits(seen.secrets, data) == [], entry["Key"]
