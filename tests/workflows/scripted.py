"""Scripted activities: the real workflows on a real Temporal server, with steps that do as a test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from archiver import model as m
from archiver.retrieval import wire as w
from workflows import steps

PLAN_ID = "0" * 32


def content_error(message: str, kind: str = "content", type_name: str = "MissingFiles") -> ApplicationError:
    """The failure that an activity of ours makes of a content error."""
    info = m.ErrorInfo(type=type_name, kind=kind, message=message)  # type: ignore[arg-type]
    return ApplicationError(message, info.model_dump(), type=type_name, non_retryable=True)


class Script:
    """Answers for every step; a test replaces some. Counts calls and the greatest number at once, by step name.

    ``slots``: of a task queue, where a test is about waiting for one.
    """

    def __init__(self, datasets: int = 1, datablocks: int = 2, policy: m.Policy | None = None) -> None:
        self.datasets = datasets
        self.datablocks = datablocks
        self.policy = policy or m.Policy()
        self.calls: list[tuple[str, Any]] = []
        self.at_once: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        self.replaced: dict[str, Callable[[Any], Awaitable[Any]]] = {}
        self.slots: dict[str, int] = {}

    def names(self, *, pid: str | None = None) -> list[str]:
        """Names of the steps called, in order."""
        return [name for name, request in self.calls if pid is None or getattr(request, "pid", None) == pid]

    def of(self, name: str) -> list[Any]:
        """Requests of the calls of one step."""
        return [request for called, request in self.calls if called == name]

    async def answer(self, name: str, request: Any) -> Any:
        if name in self.replaced:
            return await self.replaced[name](request)
        usual: dict[str, Callable[[], Any]] = {
            "begin-job": lambda: m.BeginJobResult(
                total=len(request.pids or self.pids()),
                policy=self.policy,
                pids=(request.pids or self.pids())[: request.limit],
            ),
            "read-job-page": lambda: m.PageResult(
                pids=(request.pids or self.pids())[request.offset : request.offset + request.limit]
            ),
            "finish-job": lambda: m.FinishJobResult(status_code="told", message="told"),
            "begin-dataset": lambda: m.BeginDatasetResult(state="go", owner_group="p1", source={"pid": request.pid}),
            "read-origdatablocks": lambda: m.ListingResult(files=10, size_bytes=1000, origdatablocks=1),
            "plan-dataset": lambda: m.PlanResult(
                plan_id=PLAN_ID, datablocks=self.datablocks, files=10, size_bytes=1000, largest_bytes=500
            ),
            "survey-lts": lambda: m.SurveyResult(),
            "pack-datablock": lambda: m.PackResult(
                size_bytes=500, packed_bytes=100, files=5, sha256="a" * 64, manifest_sha256="b" * 64
            ),
            "wait-for-lts-space": lambda: m.SpaceResult(waited_seconds=0),
            "copy-to-lts": lambda: m.CopyResult(archive_id=f"{request.pid}/data/{request.n}.tar.gz"),
            "verify-in-lts": lambda: m.VerifyResult(
                level="host", how_read="O_DIRECT", size_bytes=500, packed_bytes=100, files=5, sha256="a" * 64
            ),
            "publish-bag": lambda: m.BagResult(files=2, level="host"),
            "register-datablocks": lambda: m.RegisterResult(
                datablocks=self.datablocks, files=10, size_bytes=1000, packed_bytes=200, created=self.datablocks
            ),
            "delete-sources": lambda: m.DeleteResult(files=10),
        }
        return usual.get(name, lambda: m.Done(what=name))()

    def pids(self) -> list[str]:
        """The datasets of the scripted job."""
        return [f"20.500.1/d{k}" for k in range(self.datasets)]

    def activities(self, queue: str) -> list[Callable[..., Any]]:
        """An activity for every step of ``queue``."""
        return [self._make(step) for step in steps.ALL if step.queue == queue]

    def _make(self, step: steps.Step) -> Callable[..., Any]:  # type: ignore[type-arg]
        # The request's type is the step's first type argument, which only its annotation knows.
        request_type = _request_type(step.name)

        async def run(request: Any) -> Any:
            name = step.name
            self.calls.append((name, request))
            self.at_once[name] += 1
            self.most_at_once[name] = max(self.most_at_once[name], self.at_once[name])
            beat = asyncio.create_task(_beat())
            try:
                return await self.answer(name, request)
            finally:
                beat.cancel()
                self.at_once[name] -= 1

        run.__annotations__ = {"request": request_type, "return": step.result}
        return activity.defn(name=step.name)(run)


def _request_type(name: str) -> type[m.Wire]:
    return {
        "begin-job": m.BeginJobRequest,
        "read-job-page": m.PageRequest,
        "finish-job": m.FinishJobRequest,
        "begin-dataset": m.BeginDatasetRequest,
        "read-origdatablocks": m.PidRequest,
        "plan-dataset": m.PlanRequest,
        "compare-with-catalogue": m.CompareRequest,
        "survey-lts": m.SurveyRequest,
        "pack-datablock": m.PackRequest,
        "wait-for-lts-space": m.SpaceRequest,
        "copy-to-lts": m.CopyRequest,
        "verify-in-lts": m.VerifyRequest,
        "quarantine-datablock": m.DatablockRef,
        "finish-dataset": m.FinishDatasetRequest,
        "fail-dataset": m.FailDatasetRequest,
        "clean-staging": m.PidRequest,
        "begin-retrieve-job": m.BeginJobRequest,
        "read-retrieve-page": m.PageRequest,
        "finish-retrieve-job": w.FinishRetrieveJobRequest,
        "begin-retrieve-dataset": w.Selection,
        "plan-retrieve": w.Selection,
        "recall-datablocks": w.RecallRequest,
        "retrieve-datablock": w.RetrieveDatablockRequest,
        "finish-retrieve-dataset": w.FinishRetrieveRequest,
        "fail-retrieve-dataset": w.FailRetrieveRequest,
        "find-held": w.CheckDatasetRequest,
        "check-datablock": w.CheckRequest,
    }.get(name, m.DatasetRef)


async def _beat() -> None:
    while True:
        activity.heartbeat()
        await asyncio.sleep(0.2)
