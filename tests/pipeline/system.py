"""The whole system on real parts: Temporal, S3 over HTTP, an LTS directory, our workers, and the stand-in SciCat.

The stand-in runs in a thread of the test, so that a test can look into it and let faults befall its callers. Every system
has a Temporal namespace, buckets and an LTS of its own. Datasets and jobs are made as users make them: plain S3 and HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import boto3
import httpx
import tomli_w
import uvicorn
from botocore.config import Config
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Interceptor

from activities.connection import connect
from activities.groups import parse_queues
from activities.starting import job_workflow_id
from archiver import model as m
from archiver.catalogue.standin.app import Account, StandIn, StandInSettings, Version, create_app
from archiver.catalogue.standin.state import now
from archiver.pids import workflow_id
from archiver.settings import S3Settings, Settings, load
from cli import jobs
from cli.programs import ROOT
from cli.servers import Child, clean_environment, free_port
from cli.setup import set_up
from tests.forking import ForkedChild
from worker import serving

USER, PASSWORD = "archiver", "pa55-" + secrets.token_hex(8)
TIME = "2026-01-01T12:00:00.000Z"

Overrides = Mapping[str, Mapping[str, Any]]


class StandInServer:
    """The stand-in SciCat over HTTP, in a thread of this process."""

    def __init__(self, port: int, settings: StandInSettings) -> None:
        self.url = f"http://127.0.0.1:{port}"
        application = create_app(settings)
        self.standin: StandIn = application.state.standin
        self._config = uvicorn.Config(
            application, host="127.0.0.1", port=port, log_level="warning", access_log=False, lifespan="off"
        )

    def start(self) -> StandInServer:
        """Until it answers. After ``stop`` it goes on with all it had."""
        self._server = uvicorn.Server(self._config)
        self._thread = threading.Thread(target=self._server.run, name="stand-in", daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the stand-in SciCat did not start"
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """Stop it; answers that a fault holds back are not waited for."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)


class System:
    """One system below ``folder``: ``start``, then datasets, jobs and workers; ``stop``.

    ``version``: of the stand-in SciCat.
    """

    def __init__(
        self,
        folder: Path,
        temporal_address: str,
        s3: S3Settings,
        overrides: Overrides | None = None,
        version: Version = "5.2",
    ) -> None:
        self.folder = folder
        self.namespace = "t-" + secrets.token_hex(4)
        self.lts = folder / "lts"
        self._s3 = s3
        self._address = temporal_address
        self._version: Version = version
        self._overrides: dict[str, Mapping[str, Any]] = dict(overrides or {})
        self.landing_bucket, self.staging_bucket = (f"{name}-{self.namespace}" for name in ("landing", "staging"))
        self.scicat_port = free_port()
        self.scicat: StandInServer | None = None
        self.children: list[Child] = []

    def override(self, overrides: Overrides) -> None:
        """Settings that need what is known only now: before ``start``."""
        self._overrides |= overrides

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> System:
        """Servers of its own, settings, namespace, buckets, LTS marker."""
        self.lts.mkdir(parents=True, exist_ok=True)
        await self.start_scicat()
        self.config = self.write_settings()
        self.settings = load(self.config)
        await set_up(self.settings, dry_run=False, say=lambda _: None)
        self.client: Client = await connect(self.settings)
        # Connections are left before the server, which closes idle ones after 5 s, does.
        patience = httpx.Limits(keepalive_expiry=2)
        self.http = httpx.AsyncClient(base_url=self.scicat_url, timeout=60, trust_env=False, limits=patience)
        await self.log_in()
        return self

    async def start_scicat(self) -> None:
        """The stand-in."""
        settings = StandInSettings(version=self._version, accounts=[Account(USER, PASSWORD, admin=True)])
        self.scicat = StandInServer(self.scicat_port, settings).start()

    async def stop(self) -> None:
        """Workers first."""
        for child in reversed(self.children):
            child.stop()
        await self.http.aclose()
        if self.scicat is not None:
            self.scicat.stop()

    @property
    def scicat_url(self) -> str:
        return f"http://127.0.0.1:{self.scicat_port}"

    @property
    def account(self) -> dict[str, str]:
        """Of the archiver at SciCat, as settings have it."""
        return {"username": USER, "password": PASSWORD}

    @property
    def standin(self) -> StandIn:
        """The inside of the stand-in SciCat: store, log, faults, mails."""
        assert self.scicat is not None
        return self.scicat.standin

    def write_settings(self, name: str = "archiver.toml", overrides: Overrides | None = None) -> Path:
        """A settings file; ``overrides`` over those of the system over the defaults for tests, table by table."""
        s3 = self._s3
        tables: dict[str, dict[str, Any]] = {
            "temporal": {"address": self._address, "namespace": self.namespace},
            "scicat": {"url": self.scicat_url, **self.account},
            "s3": {
                "endpoint": str(s3.endpoint),
                "access_key": s3.access_key,
                "secret_key": s3.secret_key.get_secret_value() if s3.secret_key else None,
            },
            "landing": {"url_template": f"s3://{self.landing_bucket}/{{pid}}/"},
            "staging": {"bucket": self.staging_bucket},
            "retrieval": {"bucket": f"retrieval-{self.namespace}"},
            "lts": {"root": str(self.lts), "identity": "test", "reserve": "1MiB", "space_poll_seconds": 0.5},
            "slots": {"pack": 2},
            # A test that is about sweeps asks for them: none may take up what another test holds back.
            "sweep": {"every_seconds": 0, "leftovers_every_seconds": 0, "retrieved_every_seconds": 0},
            "worker": {"graceful_shutdown_seconds": 5.0, "heartbeat_timeout_seconds": 5.0},
        }
        for more in (self._overrides, overrides or {}):
            for table, values in more.items():
                tables[table] = {**tables.get(table, {}), **values}
        path = self.folder / name
        path.write_text(tomli_w.dumps(tables))
        path.chmod(0o600)
        return path

    # --- workers ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def workers(
        self, queues: str = "all", overrides: Overrides | None = None, *, interceptors: Sequence[Interceptor] = ()
    ) -> AsyncIterator[Settings]:
        """Serve queues in this process while the context lasts; yields the settings in force."""
        settings = load(self.write_settings(f"in-{secrets.token_hex(4)}.toml", overrides))
        async with serving(self.client, settings, parse_queues(queues), interceptors=interceptors):
            yield settings

    def worker(self, queues: str = "all", overrides: Overrides | None = None, *, wait: bool = True) -> Child:
        """``worker.py`` as a process of its own, serving; ``child.kill()`` is a crash."""
        name = f"worker-{len(self.children)}"
        config = self.write_settings(f"{name}.toml", overrides)
        command = [sys.executable, str(ROOT / "worker.py"), "-c", str(config), "--queues", queues]
        log = self.folder / f"{name}.log"
        child = ForkedChild(name, command, log, clean_environment(), python="worker:main")
        self.children.append(child)
        child.start()
        if wait:
            child.wait_for_log("serving ")
        return child

    # --- datasets and jobs, as users make them ------------------------------------------------------------------------

    @cached_property
    def boto(self) -> Any:
        """A plain S3 client, nothing of ours."""
        s3 = self._s3
        return boto3.session.Session().client(
            "s3",
            endpoint_url=str(s3.endpoint),
            aws_access_key_id=s3.access_key,
            aws_secret_access_key=s3.secret_key.get_secret_value() if s3.secret_key else None,
            region_name=s3.region,
            config=Config(s3={"addressing_style": "path"}),
        )

    async def log_in(self) -> None:
        """A token for ``http``."""
        answer = await self.http.post("/api/v3/auth/login", json=self.account)
        self.http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def put(self, pid: str, files: Mapping[str, bytes]) -> None:
        """Files into the landing zone."""
        boto = self.boto
        for path, data in files.items():
            boto.put_object(Bucket=self.landing_bucket, Key=f"{pid}/{path}", Body=data)

    async def dataset(
        self,
        files: Mapping[str, bytes],
        *,
        listed: Sequence[Mapping[str, Any]] | None = None,
        pid: str | None = None,
        group: str = "p1",
        landed: bool = True,
        more: Mapping[str, Any] | None = None,
        files_per_block: int = 1000,
        algorithm: str = "sha256",
    ) -> str:
        """A dataset with its origdatablocks and its files in the landing zone; returns the pid.

        ``listed`` are the catalogue's entries, where they are not those of ``files``; ``landed=False`` puts no file;
        ``more`` are further fields of the dataset's record; ``algorithm`` is the origdatablocks' chkAlg.
        """
        record = {
            "type": "raw",
            "ownerGroup": group,
            "owner": "A Person",
            "contactEmail": "person@example.org",
            "sourceFolder": "/none",
            "creationTime": TIME,
            "creationLocation": "here",
            "principalInvestigator": "A Person",
            "datasetName": "test",
            **(more or {}),
        }
        if pid is not None:
            record["pid"] = pid
        pid = str(self.created(await self.http.post("/api/v3/datasets", json=record))["pid"])
        entries = [self.entry(path, data) for path, data in files.items()] if listed is None else list(listed)
        for start in range(0, len(entries), files_per_block):
            part = entries[start : start + files_per_block]
            block = {
                "datasetId": pid,
                "size": sum(int(entry["size"]) for entry in part),
                "chkAlg": algorithm,
                "dataFileList": part,
            }
            # ASCII, so that also a lone surrogate can be said.
            self.created(await self.http.post("/api/v3/origdatablocks", content=json.dumps(block)))
        if landed:
            self.put(pid, files)
        return pid

    @staticmethod
    def entry(path: str, data: bytes, **more: Any) -> dict[str, Any]:
        """An origdatablock's entry of a file, with its SHA-256."""
        return {"path": path, "size": len(data), "time": TIME, "chk": hashlib.sha256(data).hexdigest(), **more}

    async def job(self, *pids: str, **more: Any) -> str:
        """A SciCat job of type archive, in v4 shape; returns its id."""
        body = {**self.job_body(*pids), **more}
        return str(self.created(await self.http.post("/api/v4/jobs", json=body))["id"])

    @staticmethod
    def job_body(*pids: str) -> dict[str, Any]:
        """What is posted for an archive job."""
        listed = [{"pid": pid, "files": []} for pid in pids]
        return {"type": "archive", "ownerGroup": "p1", "jobParams": {"datasetList": listed}}

    def stored_job(self, **more: Any) -> str:
        """A job that SciCat's checks, or its job configuration, would not let through: put into its store."""
        job_id = str(uuid4())
        status = {"statusCode": "jobSubmitted", "statusMessage": "Job submitted.", "jobResultObject": {}}
        record = {
            **self.job_body(),
            "jobParams": {},
            "createdBy": USER,
            "createdAt": now(),
            "updatedAt": now(),
            **status,
        }
        self.standin.store.insert("jobs", job_id, {"id": job_id, "_id": job_id, **record, **more})
        return job_id

    async def start_job(self, job_id: str, pids: list[str] | None = None) -> WorkflowHandle[Any, m.ArchiveJobResult]:
        """Its workflow, as ``archiver start`` starts it."""
        return await jobs.start(self.client, job_id, pids)

    async def archive(self, *pids: str) -> m.ArchiveJobResult:
        """A job over these datasets, to its end."""
        return await (await self.start_job(await self.job(*pids))).result()

    async def pending(self, step: str, kind: str, *parts: str, attempt: int = 1) -> PendingActivityInfo:
        """Wait until this step of a workflow is scheduled, and has come to this attempt."""
        handle = self.client.get_workflow_handle(workflow_id(kind, *parts))
        for _ in range(1200):
            try:
                described = await handle.describe()
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
            else:
                for one in described.raw_description.pending_activities:
                    if one.activity_type.name == step and one.attempt >= attempt:
                        return one
            await asyncio.sleep(0.1)
        raise AssertionError(f"{step} of {'/'.join(parts)} did not come to attempt {attempt}")

    # --- what SciCat says -----------------------------------------------------------------------------------------------

    async def lifecycle(self, pid: str) -> dict[str, Any]:
        """The dataset's datasetlifecycle."""
        return dict((await self.record(pid))["datasetlifecycle"])

    async def record(self, pid: str) -> dict[str, Any]:
        """The dataset."""
        return dict((await self.http.get(f"/api/v4/datasets/{quote(pid, safe='')}")).raise_for_status().json())

    async def job_record(self, job_id: str) -> dict[str, Any]:
        """The job."""
        return dict((await self.http.get(f"/api/v4/jobs/{job_id}")).raise_for_status().json())

    async def outcomes(self, job_id: str, *, retrieve: bool = False) -> dict[str, m.DatasetOutcome]:
        """How each dataset of a job ended: SciCat's record of the job has room for a few of them only."""
        handle = self.client.get_workflow_handle(job_workflow_id(job_id, retrieve=retrieve))
        progress: m.JobProgress = await handle.query("progress", result_type=m.JobProgress)
        return {one.pid: one for one in progress.outcomes}

    def datablocks(self, pid: str) -> list[dict[str, Any]]:
        """All registered datablocks, from the stand-in's store: no limit hides any."""
        return self.standin.store.all("datablocks", pid)

    @staticmethod
    def created(answer: httpx.Response) -> dict[str, Any]:
        """The body of a 201."""
        assert answer.status_code == 201, f"{answer.status_code} {answer.text}"
        return dict(answer.json())
