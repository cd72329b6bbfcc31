"""``archiver bridge`` as another process, and whoever posts to it by plain HTTP."""

from __future__ import annotations

import base64
import secrets
import sys
from collections.abc import Mapping
from typing import Any

import httpx
from temporalio.client import WorkflowExecutionDescription
from temporalio.service import RPCError, RPCStatusCode

from archiver.pids import workflow_id
from cli.programs import ROOT
from cli.servers import clean_environment, free_port
from tests.forking import ForkedChild
from tests.pipeline.system import System

TOKEN, USER, PASSWORD = secrets.token_urlsafe(24), "scicat", "pass-" + secrets.token_hex(12)
BEARER = f"Bearer {TOKEN}"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class Bridge:
    """The bridge of a system. ``start`` returns when it listens."""

    def __init__(self, system: System, overrides: Mapping[str, Mapping[str, Any]] | None = None, **more: Any) -> None:
        self.system = system
        self.port = free_port()
        tables = {name: dict(values) for name, values in (overrides or {}).items()}
        own = {"port": self.port, "token": TOKEN, "username": USER, "password": PASSWORD, "unknown_job_seconds": 0.5}
        tables["bridge"] = {**own, **more}
        name = f"bridge-{secrets.token_hex(4)}"
        config = system.write_settings(f"{name}.toml", tables)
        command = [sys.executable, "-m", "cli.main", "-c", str(config), "bridge"]
        environment = clean_environment(PYTHONPATH=str(ROOT))
        self.child = ForkedChild("bridge", command, system.folder / f"{name}.log", environment, python="cli.main:run")
        self.url = f"http://127.0.0.1:{self.port}"
        # Connections are left before the server, which closes idle ones after 5 s, does.
        patience = httpx.Limits(keepalive_expiry=2)
        self.http = httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": BEARER}, timeout=60, trust_env=False, limits=patience
        )

    def start(self) -> Bridge:
        """Until it listens."""
        self.child.start().wait_for_port(self.port)
        return self

    async def stop(self) -> None:
        """As an orchestrator stops it."""
        await self.http.aclose()
        self.child.stop()

    async def post(self, body: Any) -> httpx.Response:
        """A post with our token."""
        return await self.http.post("/api/v1/jobs", json=body)

    async def taken(self, job_id: str) -> str:
        """Post a job as SciCat's webhook does; the id of its workflow."""
        answer = await self.post({"id": job_id, "type": "archive"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["name"])

    @property
    def log(self) -> str:
        """What it logged."""
        return self.child.log.read_text("utf-8", "replace")

    async def workflow(self, job_id: str) -> WorkflowExecutionDescription | None:
        """The newest run of the job's workflow, as Temporal describes it; None if it was never started."""
        try:
            return await self.system.client.get_workflow_handle(workflow_id("archive-job", job_id)).describe()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return None

    async def runs(self, job_id: str) -> int:
        """How often the job's workflow was started."""
        query = f"WorkflowId = '{workflow_id('archive-job', job_id)}'"
        return len([run async for run in self.system.client.list_workflows(query)])


def is_problem(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """The answer is a problem document of this status that says these words; returns it."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = answer.json()
    assert told["status"] == status
    assert told["error"]
    assert told["request_id"] == answer.headers["x-request-id"]
    for word in words:
        assert word in answer.text, word
    return told
