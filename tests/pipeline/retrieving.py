"""Retrieve jobs as users make them, what their links give, and the judge of what became of them."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from typing import Any

import httpx
from temporalio.client import WorkflowHandle

from archiver import model as m
from cli import jobs
from tests.pipeline.oracle import nothing_runs
from tests.pipeline.system import System

TOLD = ".scicat-archiver/"


Files = list[str] | dict[str, list[str]] | None
"""Names of the wanted files: of each dataset, or by dataset; none: all."""


async def start_retrieve(
    system: System, *pids: str, files: Files = None, **params: Any
) -> tuple[str, WorkflowHandle[Any, m.ArchiveJobResult]]:
    """A SciCat job of type retrieve, and its workflow, begun."""
    job = await retrieve_job(system, *pids, files=files, **params)
    return job, await jobs.start(system.client, job, None, retrieve=True)


async def retrieve_job(system: System, *pids: str, files: Files = None, **params: Any) -> str:
    """A SciCat job of type retrieve, that nobody works on yet."""
    listed = [{"pid": pid, "files": []} for pid in pids]
    job = await system.job(type="retrieve", jobParams={"datasetList": listed, **params})
    if files:
        # As if SciCat had not looked: of a dataset's blocks it sees a hundred, and the catalogue may change since.
        document = system.standin.store.get("jobs", job)
        assert document is not None
        of_each = files if isinstance(files, dict) else dict.fromkeys(pids, files)
        document["jobParams"]["datasetList"] = [{"pid": pid, "files": of_each.get(pid, [])} for pid in pids]
        system.standin.store.put("jobs", job, document)
    return job


async def retrieve(system: System, *pids: str, files: Files = None, **params: Any) -> tuple[str, m.ArchiveJobResult]:
    """A SciCat job of type retrieve, to its end."""
    job, handle = await start_retrieve(system, *pids, files=files, **params)
    return job, await handle.result()


async def fetched(system: System, job: str) -> dict[str, bytes]:
    """What the job's links give, by name."""
    return {name: data for (_, name), data in (await fetched_of_all(system, job)).items()}


async def fetched_of_all(system: System, job: str) -> dict[tuple[str, str], bytes]:
    """What the job's links give, by dataset and name."""
    told = (await system.job_record(job))["jobResultObject"]
    links = [(one["datasetId"], one["name"], one["url"]) for one in told["result"]]
    async with httpx.AsyncClient(trust_env=False) as plain:
        if [name for _, name, _ in links] == ["download.sh"]:
            links = in_script((await plain.get(links[0][2])).raise_for_status().text)
        return {(pid, name): (await plain.get(url)).raise_for_status().content for pid, name, url in links}


def in_script(text: str) -> list[tuple[str, str, str]]:
    """Dataset, name and link of each file that a download script brings, as a shell reads it."""
    pid, found = "", []
    words = iter(shlex.split(text.partition("# --- the files\n")[2]))
    for word in words:
        if word.startswith("folder="):
            pid = word.removeprefix("folder=")
        elif word in ("get", "unpack"):
            name, _, _, url = (next(words) for _ in range(4))
            found.append((pid, name, url))
    return found


# --- the judge: shares no code with the product ---------------------------------------------------------------------------


def delivered(system: System, pid: str) -> dict[str, bytes]:
    """What lies in the retrieval bucket for requesters, by name, whether anybody was told of it or not."""
    bucket = system.settings.retrieval.bucket
    pages = system.boto.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{pid}/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {
        key.removeprefix(f"{pid}/"): system.boto.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in keys
        if not key.startswith(f"{pid}/{TOLD}")
    }


def open_uploads(system: System, pid: str) -> list[str]:
    """Ids of the open multipart uploads of this dataset in the retrieval bucket."""
    answer = system.boto.list_multipart_uploads(Bucket=system.settings.retrieval.bucket, Prefix=f"{pid}/")
    return [upload["UploadId"] for upload in answer.get("Uploads", [])]


def nothing_wrong(system: System, pid: str, files: Mapping[str, bytes], *, uploads: bool = False) -> None:
    """Whatever lies in the bucket is a whole file with its own bytes, and nothing is half there."""
    assert {name: data for name, data in delivered(system, pid).items() if files.get(name) != data} == {}
    assert uploads or open_uploads(system, pid) == []


async def still_archived(system: System, pid: str) -> dict[str, Any]:
    """Archive states are what they were; staging holds nothing of a retrieval, and none runs. Returns the lifecycle."""
    await nothing_runs(system, pid)
    life = await system.lifecycle(pid)
    assert (life["archiveStatusMessage"], life["retrievable"], life["archivable"]) == (
        "datasetOnArchiveDisk",
        True,
        False,
    )
    left = system.boto.list_objects_v2(Bucket=system.staging_bucket).get("Contents", [])
    assert [entry["Key"] for entry in left if "retrievals/" in entry["Key"] and pid in entry["Key"]] == []
    return life


async def assert_retrieved(
    system: System,
    job: str,
    pid: str,
    files: Mapping[str, bytes],
    *,
    of: Mapping[str, bytes] | None = None,
    uploads: bool = False,
) -> None:
    """RETRIEVED: the links of a job that ended well give the bytes of its one dataset, and SciCat says so.

    ``of``: all files of the dataset, where the job wanted some. ``uploads``: what a killed process left open, which nobody
    sees and the expiry takes, may be there.
    """
    told = await system.job_record(job)
    assert told["statusCode"] == "finishedSuccessful", told["statusMessage"]
    assert await fetched(system, job) == dict(files)
    life = await still_archived(system, pid)
    assert (life["retrieveStatusMessage"], life["retrieveIntegrityCheck"]) == ("datasetRetrieved", True)
    nothing_wrong(system, pid, files if of is None else of, uploads=uploads)


async def assert_not_retrieved(
    system: System, job: str, pid: str, *words: str, files: Mapping[str, bytes], error: str = ""
) -> None:
    """NOT RETRIEVED: SciCat names the thing with ``words``, no link was given out, nothing but intact files was delivered."""
    life = await still_archived(system, pid)
    assert (life["retrieveStatusMessage"], life["retrieveIntegrityCheck"]) == (
        "scheduleRetrieveJobFailed" if error else "",
        False,
    )
    message = life["retrieveReturnMessage"]
    assert [word for word in words if word not in message["summary"]] == [], message["summary"]
    assert message.get("error", {}).get("type", "") == error, message
    result = (await system.job_record(job))["jobResultObject"]
    assert [one for one in result.get("result", []) if one["datasetId"] == pid] == []
    nothing_wrong(system, pid, files)


async def ended(handle: WorkflowHandle[Any, m.ArchiveJobResult], seconds: float = 120) -> m.ArchiveJobResult:
    """The end of a job, which comes by itself."""
    async with asyncio.timeout(seconds):
        return await handle.result()
