"""What cannot be retrieved, and what is asked for wrongly: each with its clear end, in words that name the thing."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from temporalio.client import WorkflowFailureError

from archiver import model as m
from archiver.settings import S3Settings
from cli import jobs
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import full_lts, noise, until
from tests.pipeline.oracle import assert_archived
from tests.pipeline.retrieving import (
    assert_not_retrieved,
    assert_retrieved,
    delivered,
    ended,
    fetched_of_all,
    retrieve,
    retrieve_job,
    start_retrieve,
)
from tests.pipeline.system import System

FILES = {"a.txt": b"text", "raw/b.bin": noise(2**20, 1), "raw/c.bin": noise(2**19, 2)}
MARKER = ".archiver-retrieval.json"
"""By which a directory for retrieved data is known."""
LIKE_THEM = {"a.txt": b"TEXT", "raw/b.bin": noise(2**20, 3), "raw/c.bin": noise(2**19, 4)}
"""Other files of the same names and sizes."""


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    """Datasets of two datablocks; links, or a directory."""
    overrides = {
        "datablock": {"target_bytes": 2**20 + 2**10},
        "retrieval": {"roots": [str(tmp_path_factory.mktemp("shared"))]},
    }
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, overrides)
    try:
        yield await made.start()
    finally:
        await made.stop()


@pytest.fixture(scope="module")
async def served(system: System) -> AsyncIterator[System]:
    async with system.workers():
        yield system


@pytest.fixture(scope="module")
async def some(served: System) -> str:
    """An archived dataset."""
    pid = await served.dataset(FILES)
    assert (await served.archive(pid)).counts == m.Counts(archived=1)
    return pid


@dataclass(frozen=True)
class Wrong:
    """What befalls an archived dataset, and what its requester is told."""

    error: str
    says: tuple[str, ...]
    befalls: Callable[[System, str, str], None]
    """Given the dataset, and another one like it."""


def bag(system: System, pid: str) -> Path:
    return system.lts / pid


def of(system: System, pid: str, n: int) -> dict[str, Any]:
    """SciCat's record of this datablock."""
    (block,) = [one for one in system.datablocks(pid) if one["archiveId"].endswith(f"/{n}.tar.gz")]
    return block


def cut_off(system: System, pid: str, other: str) -> None:
    path = bag(system, pid) / "data" / "2.tar.gz"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])


def put_in_its_place(system: System, pid: str, other: str) -> None:
    shutil.copy(bag(system, other) / "data" / "2.tar.gz", place := bag(system, pid) / "data" / "2.tar.gz")
    # SciCat says of it what would be said of the right one.
    block = of(system, pid, 2)
    system.standin.store.put("datablocks", block["_id"], {**block, "packedSize": place.stat().st_size})


def put_in_the_place_of_all(system: System, pid: str, other: str) -> None:
    shutil.rmtree(bag(system, pid))
    shutil.copytree(bag(system, other), bag(system, pid))
    for n in (1, 2):
        block = of(system, pid, n)
        size = (bag(system, pid) / "data" / f"{n}.tar.gz").stat().st_size
        system.standin.store.put("datablocks", block["_id"], {**block, "packedSize": size})


def swap(system: System, pid: str, other: str) -> None:
    one, two = (bag(system, pid) / "data" / f"{n}.tar.gz" for n in (1, 2))
    one.rename(between := one.with_name("between"))
    two.rename(one)
    between.rename(two)


def only_a_record(system: System, pid: str, other: str) -> None:
    block = of(system, pid, 2)
    more = {**block, "_id": f"{block['_id']}-3", "archiveId": block["archiveId"].replace("2.tar.gz", "3.tar.gz")}
    assert system.standin.store.insert("datablocks", more["_id"], more, parent=pid)


def no_record_of_any(system: System, pid: str, other: str) -> None:
    for block in system.datablocks(pid):
        system.standin.store.delete("datablocks", block["_id"])


WRONG = {
    "a datablock was cut off": Wrong("LtsFault", ("2.tar.gz", "in SciCat, and on the LTS"), cut_off),
    "another valid datablock lies in its place": Wrong(
        "IntegrityMismatch", ("datablock 2", "does not match"), put_in_its_place
    ),
    "another dataset's whole bag lies in its place": Wrong(
        "IntegrityMismatch", ("manifest of datablock 1", "of another datablock"), put_in_the_place_of_all
    ),
    "two of its datablocks changed places": Wrong("LtsFault", ("1.tar.gz", "2.tar.gz", "do not agree"), swap),
    "a manifest is gone": Wrong(
        "LtsFault",
        ("manifest of datablock 2", "is not on the LTS"),
        lambda system, pid, _: (bag(system, pid) / "data" / "2.manifest.jsonl.gz").unlink(),
    ),
    "a datablock is gone": Wrong(
        "LtsFault",
        ("2.tar.gz", "no such file"),
        lambda system, pid, _: (bag(system, pid) / "data" / "2.tar.gz").unlink(),
    ),
    "the bag is gone": Wrong("NoBag", ("no complete bag",), lambda system, pid, _: shutil.rmtree(bag(system, pid))),
    "SciCat has a record more": Wrong("LtsFault", ("3.tar.gz has a record in SciCat", "in no bag"), only_a_record),
    "SciCat has a record less": Wrong(
        "LtsFault",
        ("2.tar.gz lies on the LTS, without a record",),
        lambda system, pid, _: system.standin.store.delete("datablocks", of(system, pid, 2)["_id"]),
    ),
    "SciCat has no record": Wrong("CatalogueFault", ("has no datablock of it",), no_record_of_any),
}


async def test_p2_what_lies_there_is_not_what_was_archived_or_not_what_scicat_says(served: System) -> None:
    system = served
    pids = {name: await system.dataset(FILES) for name in WRONG}
    other = await system.dataset(LIKE_THEM)
    everything = [*pids.values(), other]
    assert (await system.archive(*everything)).counts == m.Counts(archived=len(everything))
    job = await retrieve_job(system, *everything)
    for name, pid in pids.items():
        WRONG[name].befalls(system, pid, other)
    handle = await jobs.start(system.client, job, None, retrieve=True)
    counts = m.Counts(retrieved=1, system_errors=len(WRONG))
    assert (await ended(handle)).counts == counts
    told = await system.job_record(job)
    assert told["statusCode"] == "finishedWithDatasetErrors"
    messages = {pid: one.message for pid, one in (await system.outcomes(job, retrieve=True)).items()}
    for name, pid in pids.items():
        wrong = WRONG[name]
        await assert_not_retrieved(system, job, pid, pid, *wrong.says, files=FILES, error=wrong.error)
        assert pid in messages[pid]
        # The first datablock may have come whole before the second was looked at; none of its files is linked to.
        assert set(delivered(system, pid)) <= ({"raw/b.bin", "a.txt"} if wrong.error == "IntegrityMismatch" else set())
    assert await fetched_of_all(system, job) == {(other, name): data for name, data in LIKE_THEM.items()}


async def test_p7_a_retrieve_job_whose_dataset_was_deleted_brings_the_others_back_and_ends(served: System) -> None:
    deleted, other = await served.dataset(FILES), await served.dataset(LIKE_THEM)
    await served.archive(deleted, other)
    job = await retrieve_job(served, deleted, other)
    (await served.http.delete(f"/api/v4/datasets/{quote(deleted, safe='')}")).raise_for_status()
    handle = await jobs.start(served.client, job, None, retrieve=True)
    with pytest.raises(WorkflowFailureError) as failed:
        await ended(handle)
    assert f"SciCat knows no dataset {deleted}" in str(failed.value.cause)
    assert "refuses every status of job" in str(failed.value.cause)
    assert (await served.lifecycle(other))["retrieveStatusMessage"] == "datasetRetrieved"
    assert delivered(served, other) == LIKE_THEM


HOSTILE = {
    "raw/../../x": "'raw/../../x'",
    "/etc/passwd": "'/etc/passwd'",
    "./a.txt": "'./a.txt'",
    "raw//b.bin": "'raw//b.bin'",
    "raw/\0": r"'raw/\x00'",
}


async def test_p7_names_that_no_file_can_have_fail_their_own_dataset_and_are_told(served: System, some: str) -> None:
    pids = {name: await served.dataset(FILES) for name in HOSTILE}
    assert (await served.archive(*pids.values())).counts == m.Counts(archived=len(pids))
    files = {pid: ["a.txt", name] for name, pid in pids.items()}
    job, result = await retrieve(served, some, *pids.values(), files=files)
    assert (result.status_code, result.counts) == (
        "finishedWithDatasetErrors",
        m.Counts(retrieved=1, content_errors=len(pids)),
    )
    for name, pid in pids.items():
        words = (pid, HOSTILE[name], "1 name that no file of a dataset can have")
        await assert_not_retrieved(served, job, pid, *words, files={}, error="HostilePath")
    assert await fetched_of_all(served, job) == {(some, name): data for name, data in FILES.items()}


async def test_p9_a_hundred_thousand_names_are_told_in_a_few_words_and_enter_no_history(
    served: System, some: str
) -> None:
    names = [f"not/there/{n}.h5" for n in range(99_998)]
    job, handle = await start_retrieve(served, some, files=["a.txt", *names, "raw/c.bin"])
    assert (await ended(handle)).counts == m.Counts(content_errors=1)
    words = ("99998 of the 100000 files", "'not/there/0.h5'", "and 99988 more")
    await assert_not_retrieved(served, job, some, some, *words, files=FILES, error="UnknownFiles")
    assert len((await served.job_record(job))["statusMessage"]) < 2_000
    await small_histories(served, job, some)


async def test_p9_of_a_hundred_thousand_names_those_that_are_known_are_delivered_where_the_setting_says_so(
    make_system: MakeSystem,
) -> None:
    system = await make_system({"retrieval": {"unknown_files": "deliver"}})
    names = [f"not/there/{n}.h5" for n in range(99_998)]
    async with system.workers():
        pid = await system.dataset(FILES)
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
        job, result = await retrieve(system, pid, files=[*names, "a.txt", "raw/c.bin"])
    assert result.counts == m.Counts(retrieved=1)
    await assert_retrieved(system, job, pid, {name: FILES[name] for name in ("a.txt", "raw/c.bin")}, of=FILES)
    await small_histories(system, job, pid)


async def small_histories(system: System, job: str, pid: str) -> None:
    """Of this job and its dataset: no list of names enters Temporal."""

    async def listed() -> list[str]:
        found = [one async for one in system.client.list_workflows(f"ScicatJobId = '{job}'")]
        return (
            [one.id for one in found] if {"RetrieveJob", "RetrieveDataset"} <= {o.workflow_type for o in found} else []
        )

    for workflow in await until(listed):
        history = [event async for event in system.client.get_workflow_handle(workflow).fetch_history_events()]
        assert sum(event.ByteSize() for event in history) < 100_000


async def test_a_dataset_that_is_being_archived_is_refused_and_its_archiving_goes_on(served: System) -> None:
    pid = await served.dataset(FILES)
    with full_lts(served):
        archiving = await served.start_job(await served.job(pid))
        await served.pending("wait-for-lts-space", "archive-datablock", pid, "1")
        before = await served.record(pid)
        assert before["datasetlifecycle"]["archiveStatusMessage"] == "started"
        job, result = await retrieve(served, pid)
        assert result.counts == m.Counts(content_errors=1)
        told = await served.job_record(job)
        for word in (pid, "being archived at this moment", "when it is archived"):
            assert word in told["statusMessage"]
        assert "result" not in told["jobResultObject"]
        assert await served.record(pid) == before, "a refusal writes nothing"
        assert delivered(served, pid) == {}
    assert (await ended(archiving)).counts == m.Counts(archived=1)
    await assert_archived(served, pid, FILES)
    job, result = await retrieve(served, pid)
    assert result.counts == m.Counts(retrieved=1)
    await assert_retrieved(served, job, pid, FILES)


@pytest.mark.parametrize("where", ["/etc", "{root}/../elsewhere", "{root}-not", "/archive/somewhere"])
async def test_a_destination_outside_of_the_roots_is_refused_before_anything_is_read(
    served: System, some: str, where: str
) -> None:
    (root,) = served.settings.retrieval.roots
    before = await served.record(some)
    job, handle = await start_retrieve(served, some, destinationPath=where.format(root=root))
    with pytest.raises(WorkflowFailureError):
        await ended(handle)
    told = await served.job_record(job)
    assert told["statusCode"] == "finishedUnsuccessful"
    assert "destination" in told["statusMessage"]
    assert "retrieval.roots" in told["statusMessage"]
    assert await served.record(some) == before
    assert [one.name for one in root.iterdir()] == [MARKER]
