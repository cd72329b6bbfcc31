"""One healthy ``archiver dev`` for all tests of the doctor, looked at with settings that are wrong in one thing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import httpx
import tomli_w
from botocore.config import Config
from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    PollActivityTaskQueueRequest,
    PollWorkflowTaskQueueRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError

from archiver.settings import Settings, load
from cli.doctor import CHECKS, examine
from cli.doctor.check import Outcome, Result
from cli.doctor.temporal import QUEUES
from tests.cli.dev import Dev
from tests.cli.running import archiver
from tests.pipeline.system import StandInServer

Tables = Mapping[str, Mapping[str, Any]]
NEVER = frozenset({"scicat delete datablock"})
"""Checks that are never tried, on any system."""
FILES = {"raw/a.h5": b"a" * 1000, "raw/b c.h5": b"b"}


@dataclass
class Seen:
    """What the doctor found."""

    results: list[Result]

    def __getitem__(self, name: str) -> Result:
        return next(result for result in self.results if result.check.name == name)

    def named(self, *outcomes: Outcome) -> set[str]:
        """The checks that ended so."""
        return {result.check.name for result in self.results if result.finding.outcome in outcomes}

    @property
    def problems(self) -> set[str]:
        """What it complains of."""
        return self.named(Outcome.FAIL, Outcome.WARN)

    def only(self, name: str, outcome: Outcome, remedy: str, found: str = "") -> None:
        """It names exactly this one, with its remedy; all else is well, or stands on it and was not tried."""
        text = "\n".join(f"{one.finding.outcome} {one.check.name}: {one.finding.found}" for one in self.results)
        assert self.problems == {name}, text
        result = self[name]
        assert result.finding.outcome == outcome, text
        assert remedy in result.remedy, result.remedy
        assert found in result.finding.found, result.finding.found
        assert self.named(Outcome.NOT_CHECKED) <= NEVER | standing_on(name), text


def standing_on(name: str) -> frozenset[str]:
    """The checks that need this one, or use what it finds, directly or through others."""
    found = {name}
    for check in CHECKS:  # each comes after those it needs
        if found & {*check.needs, *check.after}:
            found.add(check.name)
    return frozenset(found - {name})


class Ward:
    """The system, and the doctor."""

    def __init__(self, dev: Dev, folder: Path) -> None:
        self.dev = dev
        self.folder = folder
        self.pid = dev.dataset(FILES)
        self._files = 0
        self.healthy = self.state()

    def file(self, tables: Tables | None = None) -> Path:
        """The dev system's settings with other values, in a file."""
        told = tomllib.loads((self.dev.data / "archiver.toml").read_text())
        told["doctor"]["check_seconds"] = 60.0  # a busy machine is no fault
        for table, values in (tables or {}).items():
            merged = {**told.get(table, {}), **values}
            told[table] = {key: value for key, value in merged.items() if value is not None}
        self._files += 1
        path = self.folder / f"{self._files}.toml"
        path.write_text(tomli_w.dumps(told))
        return path

    def settings(self, **tables: Mapping[str, Any]) -> Settings:
        """The same, read."""
        return load(self.file(tables))

    async def cli(self, *arguments: str, **tables: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
        """``archiver ... doctor ...`` as another process."""
        at = arguments.index("doctor")
        given = (*arguments[:at], "-c", self.file(tables), *arguments[at:])
        return await asyncio.to_thread(archiver, *given, cwd=self.folder)

    async def look(self, *, dataset: str | None = None, deep: bool = False, **tables: Mapping[str, Any]) -> Seen:
        """The doctor, in this process."""
        return Seen(await examine(self.settings(**tables), dataset=dataset, deep=deep))

    def elsewhere(self, namespace: str) -> Mapping[str, Any]:
        """``[temporal]`` for another namespace of the same server."""
        return {"config_file": None, "address": self.dev.info["temporal_address"], "namespace": namespace}

    @cached_property
    def s3(self) -> Any:
        """A plain S3 client."""
        info = self.dev.info
        return boto3.session.Session().client(
            "s3",
            endpoint_url=info["s3_endpoint"],
            aws_access_key_id=info["s3_access_key"],
            aws_secret_access_key=info["s3_secret_key"],
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    @property
    def lts(self) -> Path:
        """The root of the LTS."""
        return Path(self.dev.info["lts_root"])

    def state(self) -> dict[str, Any]:
        """All that the doctor could change: objects, uploads, the LTS, and every record of SciCat."""
        state: dict[str, Any] = {}
        for bucket in ("landing", "staging", "retrieval"):
            listed = self.s3.list_objects_v2(Bucket=bucket).get("Contents", [])
            state[f"objects in {bucket}"] = {entry["Key"]: entry["ETag"] for entry in listed}
            uploads = self.s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
            state[f"uploads in {bucket}"] = sorted(upload["UploadId"] for upload in uploads)
        state["lts"] = tree(self.lts)
        for what in ("v4/datasets", "v4/jobs", "v3/datablocks", "v4/origdatablocks"):
            query = {"limits": {"limit": 1000}}
            answer = self.scicat.get(f"/api/{what}", params={"filter": json.dumps(query)})
            state[what] = answer.raise_for_status().json()
        return state

    @cached_property
    def scicat(self) -> httpx.Client:
        """Plain HTTP, logged in."""
        return self.dev.scicat()


def tree(root: Path) -> dict[str, int]:
    """Every file and folder, with its size; of folders 0."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in files:
            found[os.path.relpath(os.path.join(folder, name), root)] = os.stat(os.path.join(folder, name)).st_size
        for name in folders:
            found[os.path.relpath(os.path.join(folder, name), root)] = 0
    return found


def populate(server: StandInServer, account: tuple[str, str], *, group: str = "g1") -> str:
    """A dataset with an origdatablock in another SciCat; returns its pid."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60, verify=False) as http:
        login = {"username": account[0], "password": account[1]}
        token = http.post("/api/v3/auth/login", json=login).raise_for_status().json()["access_token"]
        http.headers["Authorization"] = f"Bearer {token}"
        record = {
            "type": "raw",
            "ownerGroup": group,
            "owner": "A Person",
            "contactEmail": "person@example.org",
            "sourceFolder": "/data",
            "creationTime": "2026-01-01T12:00:00.000Z",
            "creationLocation": "here",
            "principalInvestigator": "A Person",
            "datasetName": "test",
        }
        pid = str(http.post("/api/v3/datasets", json=record).raise_for_status().json()["pid"])
        listing = [{"path": "raw/a.h5", "size": 1, "time": "2026-01-01T00:00:00.000Z"}]
        block = {"datasetId": pid, "size": 1, "dataFileList": listing}
        http.post("/api/v3/origdatablocks", json=block).raise_for_status()
    return pid


@asynccontextmanager
async def polling(client: Client, *polls: tuple[str, str]) -> AsyncIterator[None]:
    """As if worker processes served these queues: ``(queue, identity)``, seen by the server before this goes on."""

    async def poll(queue: str, identity: str) -> None:
        name = "archiver" if queue == "workflows" else f"archiver-{queue}"
        common: dict[str, Any] = {
            "namespace": client.namespace,
            "task_queue": TaskQueue(name=name, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL),
            "identity": identity,
        }
        service, limit = client.workflow_service, timedelta(seconds=70)
        while True:
            try:
                if queue == "workflows":
                    await service.poll_workflow_task_queue(PollWorkflowTaskQueueRequest(**common), timeout=limit)
                else:
                    await service.poll_activity_task_queue(PollActivityTaskQueueRequest(**common), timeout=limit)
            except RPCError:  # a namespace that is not known everywhere yet
                await asyncio.sleep(0.1)

    async def seen(queue: str, identity: str) -> bool:
        name = "archiver" if queue == "workflows" else f"archiver-{queue}"
        request = DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=name),
            task_queue_type=1 if queue == "workflows" else 2,
        )
        try:
            answer = await client.workflow_service.describe_task_queue(request)
        except RPCError:
            return False
        return any(poller.identity == identity for poller in answer.pollers)

    tasks = [asyncio.create_task(poll(*one)) for one in polls]
    try:
        for _ in range(1200):
            if all([await seen(*one) for one in polls]):
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("the server does not list the pollers")
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def everybody(but: str = "") -> list[tuple[str, str]]:
    """One process on every queue, with one exception."""
    return [(queue, f"host:1:{queue}") for queue in QUEUES if queue != but]
