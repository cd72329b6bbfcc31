"""Retrieve jobs as users make them, and what their links give."""

from __future__ import annotations

from typing import Any

import httpx

from archiver import model as m
from cli import jobs
from tests.pipeline.system import System


async def retrieve(
    system: System, *pids: str, files: list[str] | None = None, **params: Any
) -> tuple[str, m.ArchiveJobResult]:
    """A SciCat job of type retrieve, to its end."""
    listed = [{"pid": pid, "files": []} for pid in pids]
    job = await system.job(type="retrieve", jobParams={"datasetList": listed, **params})
    if files:
        # As if SciCat had not looked: of a dataset's blocks it sees a hundred, and the catalogue may change since.
        document = system.standin.store.get("jobs", job)
        assert document is not None
        document["jobParams"]["datasetList"] = [{"pid": pid, "files": files} for pid in pids]
        system.standin.store.put("jobs", job, document)
    handle = await jobs.start(system.client, job, None, retrieve=True)
    return job, await handle.result()


async def fetched(system: System, job: str) -> dict[str, bytes]:
    """What the job's links give, by name."""
    told = (await system.job_record(job))["jobResultObject"]
    async with httpx.AsyncClient(trust_env=False) as plain:
        return {one["name"]: (await plain.get(one["url"])).raise_for_status().content for one in told["result"]}
