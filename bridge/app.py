"""The bridge's HTTP edge: what a SciCat webhook posts, and whether the system is well.

SciCat calls us inside its user's ``POST /jobs``, once and never again: answers are quick, the same post may come
any number of times, and what could not be started is the sweep's to find.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from archiver.catalogue.client import SciCat
from archiver.catalogue.line import Line
from archiver.errors import (
    ArchiverError,
    CatalogueFault,
    OwnFault,
    SystemFault,
)
from archiver.settings import Settings
from bridge import problems
from bridge.auth import Guard
from bridge.body import PostedJob, discard, read_job_id
from bridge.connections import RequestLimit
from bridge.health import Health
from bridge.intake import Intake
from bridge.problems import BadRequest, problem
from bridge.rabbitmq import consume, require_client
from bridge.requests import RequestIds, request_id
from bridge.temporal import Connection

logger = logging.getLogger("archiver.bridge")


class JobTaken(BaseModel):
    """The job's workflow runs, or waits for its time, or has ended. The same for every post of a job."""

    uuid: str = Field(description="the job's id")
    name: str = Field(description="id of its workflow in Temporal: archive-job/<uuid> or retrieve-job/<uuid>")


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application. Raises ``SettingsInvalid`` if it has no credentials of its own.

    Where ``rabbitmq.url`` is set it takes jobs from there too, as long as it serves.
    """
    guard, bridge = Guard(settings.bridge), settings.bridge
    if settings.rabbitmq.url is not None:
        require_client()
    temporal = Connection(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with SciCat(settings.scicat, transport=Line(settings.scicat)) as scicat:
            app.state.intake = intake = Intake(settings, scicat, temporal)
            app.state.health = Health(temporal, scicat)
            beside = [asyncio.create_task(_warm_up(temporal, scicat))]
            if settings.rabbitmq.url is not None:
                beside.append(asyncio.create_task(consume(settings, app.state.intake.take)))
            yield
            await intake.finish()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    app = FastAPI(
        title="SciCat archiver: bridge",
        description="Takes SciCat's archive jobs. Each job's workflow is started once, however often it is posted.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(RequestLimit, settings=bridge)
    app.add_middleware(RequestIds)
    _answer_errors(app)
    _describe(app)

    @app.post(
        "/api/v1/jobs",
        status_code=201,
        response_model=JobTaken,
        summary="Start the workflow of a SciCat job",
        responses={code: {"description": text} for code, text in _ANSWERS.items()},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}}},
    )
    async def create_job(request: Request) -> JSONResponse:
        """Takes `{id, type}`, or a whole job in v4 or v3 shape; only the id is believed."""
        if not guard.admits(request.headers.get("authorization")):
            await discard(request.stream())
            raise BadRequest(
                401,
                "who calls is not known",
                expected="Authorization: Bearer TOKEN, or Basic with user and password",
                found="another" if "authorization" in request.headers else "none",
                next_step="give what bridge.token, or bridge.username and bridge.password, say",
            )
        job_id = request.state.job_id = await read_job_id(request, bridge)
        try:
            async with asyncio.timeout(bridge.answer_seconds):
                taken = await request.app.state.intake.take(job_id, wait=False)
        except TimeoutError:
            raise CatalogueFault(
                f"job {job_id} could not be started in time",
                expected=f"SciCat and Temporal to answer within {bridge.answer_seconds:g} s",
                found="no answer",
                next_step="nothing need be done: the sweep takes it up; GET /health/ready says what is slow",
            ) from None
        if taken.queued:
            logger.info("job %s is being started request=%s", job_id, request_id.get())
            return JSONResponse({"uuid": job_id, "name": taken.workflow_id}, 202)
        when = "ended before" if taken.ended else f"starts at {taken.not_before}" if taken.not_before else "started"
        logger.info("job %s %s request=%s", job_id, when, request_id.get())
        return JSONResponse({"uuid": job_id, "name": taken.workflow_id}, 201)

    @app.get("/health/live", summary="Whether this process answers")
    async def live() -> JSONResponse:
        """Nothing else is looked at."""
        return JSONResponse({"status": "ok"})

    @app.get(
        "/health/ready", summary="Whether jobs would be done", responses={503: {"description": "`missing` says why"}}
    )
    async def ready(request: Request) -> JSONResponse:
        """Temporal, SciCat, and pollers on every task queue as Temporal's server sees them."""
        seen = await request.app.state.health.ready()
        body = {"status": "not ready" if seen.missing else "ready", "missing": seen.missing, "checks": seen.checks}
        return JSONResponse(body, 503 if seen.missing else 200)

    return app


_BODY = PostedJob.model_json_schema(by_alias=False) | {"additionalProperties": True}
_ANSWERS: dict[int | str, str] = {
    202: "many jobs came at once: this one was read and is being started; the body is that of a 201",
    400: "the body is no JSON",
    401: "no credentials, or wrong ones",
    404: "SciCat knows no such job",
    408: "the body came too slowly",
    413: "the body is too large",
    422: "the body names no job, or the job is not ours, or it asks for what is not done here",
    503: "SciCat or Temporal does not answer; the sweep takes the job up, or post it again",
}


async def _warm_up(temporal: Connection, scicat: SciCat) -> None:
    """The first job need not wait for the connection and the login."""
    for answers in (temporal.client, scicat.whoami):
        try:
            await answers()
        except ArchiverError as error:
            logger.warning("serving without it, until it answers: %s", error.one_line())


def _answer_errors(app: FastAPI) -> None:
    """Every error is a problem document with its request's id, whoever raised it."""

    @app.exception_handler(ArchiverError)
    async def ours(request: Request, error: ArchiverError) -> JSONResponse:
        said = {"name": error.workflow} if error.workflow else {}
        level = logging.WARNING if isinstance(error, SystemFault) else logging.INFO
        logger.log(level, "%s request=%s", error.one_line(), request_id.get())
        return problem(error, request_id.get(), **said)

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> JSONResponse:
        answer = problem(BadRequest(error.status_code, str(error.detail)), request_id.get())
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        fault = OwnFault(f"unexpected {type(error).__name__}", next_step="see the bridge's log for this request_id")
        answer = problem(fault, request_id.get())
        answer.status_code = 500
        return answer


def _describe(app: FastAPI) -> None:
    """The OpenAPI document with the two ways to say who calls, and the one shape of all errors."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            parts = document.setdefault("components", {})
            parts["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            }
            parts["schemas"]["Problem"] = problems.SCHEMA
            post = document["paths"]["/api/v1/jobs"]["post"]
            post["security"] = [{"bearer": []}, {"basic": []}]
            for code in _ANSWERS.keys() - {202}:
                content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
                post["responses"][str(code)]["content"] = content
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
