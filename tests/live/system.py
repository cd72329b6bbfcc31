"""A whole system, with its own Temporal namespace, buckets and LTS, beside a SciCat that somebody has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from archiver.settings import S3Settings
from tests.live.backend import Backend
from tests.pipeline.system import System


class LiveSystem(System):
    """Works at ``backend``; what it makes there is removed with what the backend made."""

    def __init__(self, folder: Path, temporal_address: str, s3: S3Settings, backend: Backend) -> None:
        super().__init__(folder, temporal_address, s3)
        self._backend = backend

    async def start_scicat(self) -> None:
        """It runs already."""

    @property
    def scicat_url(self) -> str:
        return self._backend.url

    @property
    def account(self) -> dict[str, str]:
        return self._backend.account

    async def log_in(self) -> None:
        self.http.headers.update(await self._backend.header("admin"))

    async def dataset(self, *args: Any, **more: Any) -> str:
        pid = await super().dataset(
            *args, group=self._backend.group, more={"datasetName": self._backend.prefix}, **more
        )
        self._backend.keep_dataset(pid)
        return pid

    async def job(self, *pids: str, **more: Any) -> str:
        job_id = await super().job(*pids, **{"ownerGroup": self._backend.group, **more})
        self._backend.keep_job(job_id)
        return job_id

    def datablocks(self, pid: str) -> list[dict[str, Any]]:
        """All registered datablocks, as SciCat lists them."""
        with httpx.Client(base_url=self.scicat_url, headers=dict(self.http.headers), trust_env=False) as http:
            params = {"filter": f'{{"where": {{"datasetId": "{pid}"}}, "limits": {{"limit": 100}}}}'}
            found: list[dict[str, Any]] = http.get("/api/v3/datablocks", params=params).raise_for_status().json()
        return found
