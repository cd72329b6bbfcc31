"""The stand-in's HTTP edge: account, health, which path does what, and what befalls a call."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from archiver.catalogue.standin import blocks, datasets, jobs
from archiver.catalogue.standin.schema import Problem
from archiver.catalogue.standin.state import Account, Fault, StandIn, StandInSettings, Version, not_found
from archiver.catalogue.standin.store import Raw

__all__ = ["Account", "Fault", "StandIn", "StandInSettings", "Version", "create_app"]

MAX_BODY = 16 * 2**20
"""Bytes: 16.4 MB are taken, 19 MB are not (MAX_FILE_UPLOAD_SIZE is 16mb)."""
LARGE = 2**16
EXACT = 2**53
"""Integers above it lose their last digits, as all numbers are doubles there."""

Handler = Callable[[StandIn, Request, Any], Awaitable[tuple[int, Any]]]


async def login(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """By name and password, on each of three paths."""
    return app.login(body)


async def old_login(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """Answers 201 with an empty body."""
    return 201, None


async def whoami(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """200 and an empty body for the anonymous."""
    account = app.account(request)
    if account is None:
        return 200, None
    groups = [*account.groups, *(("admin", "archivemanager") if account.admin else ())]
    return 200, {"username": account.name, "currentGroups": groups}


async def health(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """Always well."""
    return 200, {
        "status": "ok",
        "info": {"mongodb": {"status": "up"}},
        "error": {},
        "details": {"mongodb": {"status": "up"}},
    }


_P = "/api/{version}"
_ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/api/v3/health", health),
    ("POST", "/api/v3/auth/login", login),
    ("POST", "/api/v3/auth/ldap", login),
    ("POST", "/api/v3/auth/msad", login),
    ("GET", "/api/v3/auth/whoami", whoami),
    ("POST", "/api/v3/users/login", old_login),
    ("POST", _P + "/jobs", jobs.create_job),
    ("GET", _P + "/jobs", jobs.list_jobs),
    ("GET", _P + "/jobs/{id}", jobs.get_job),
    ("PATCH", _P + "/jobs/{id}", jobs.patch_job),
    ("DELETE", _P + "/jobs/{id}", jobs.delete_job),
    ("POST", _P + "/datasets", datasets.create_dataset),
    ("GET", _P + "/datasets", datasets.list_datasets),
    ("GET", _P + "/datasets/{pid}", datasets.get_dataset),
    ("PATCH", _P + "/datasets/{pid}", datasets.patch_dataset),
    ("DELETE", _P + "/datasets/{pid}", datasets.delete_dataset),
    ("PATCH", _P + "/datasets/{pid}/datasetlifecycle", datasets.patch_lifecycle),
    ("GET", "/api/v3/datasets/{pid}/{blocks}/count", blocks.count_blocks),
    ("GET", "/api/v3/datasets/{pid}/{blocks}", blocks.nested_blocks),
    ("POST", "/api/v3/datasets/{pid}/{blocks}", blocks.create_nested_datablock),
    ("POST", _P + "/{blocks}", blocks.create_block),
    ("GET", _P + "/{blocks}", blocks.list_blocks),
    ("GET", _P + "/{blocks}/{id}", blocks.one_block),
    ("DELETE", _P + "/{blocks}/{id}", blocks.one_block),
]
_COMPILED = [
    (method, re.compile("(?i)" + re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern) + "/?$"), handler)
    for method, pattern, handler in _ROUTES
]


def create_app(settings: StandInSettings | None = None) -> Starlette:
    """The ASGI application; ``app.state.standin`` is its ``StandIn``."""
    standin = StandIn(settings or StandInSettings())

    async def serve(request: Request) -> Response:
        # Percent-encoded slashes must stay inside a segment, so the raw path is matched.
        path = request.scope.get("raw_path", b"").split(b"?")[0].decode("ascii", "replace") or request.url.path
        answer = await _answer(standin, request, path)
        standin.log.append((request.method, unquote(path), answer.status_code))
        return answer

    application = Starlette(routes=[Route("/{path:path}", serve, methods=["GET", "POST", "PATCH", "DELETE", "PUT"])])
    application.state.standin = standin
    return application


async def _answer(standin: StandIn, request: Request, path: str) -> Response:
    data = await request.body()
    fault = next(
        (one for one in standin.faults if one.method == request.method and re.search(one.path, unquote(path))), None
    )
    if fault is None:
        return await _do(standin, request, path, data)
    fault.times -= 1
    if fault.times <= 0:
        standin.faults.remove(fault)
    done = await _do(standin, request, path, data) if fault.execute else None
    await asyncio.sleep(fault.hang_seconds)
    if fault.raw is not None:
        return Response(fault.raw, status_code=fault.status, media_type="text/html")
    if fault.hang_seconds:
        return done or await _do(standin, request, path, data)
    return _response(fault.status, fault.body if fault.body is not None else "Internal server error")


async def _do(standin: StandIn, request: Request, path: str, data: bytes) -> Response:
    try:
        if len(data) > MAX_BODY:
            raise Problem(500, "Internal server error")
        # Beside the others: a body may be megabytes.
        body = await asyncio.to_thread(_parsed, data) if len(data) > LARGE else _parsed(data)
        for method, pattern, handler in _COMPILED:
            match = pattern.fullmatch(path)
            if method == request.method and match:
                found = {key: unquote(value) for key, value in match.groupdict().items()}
                found["version"] = found.get("version", "v3").lower()
                if "blocks" in found:
                    found["blocks"] = found["blocks"].lower()
                    if found["blocks"] not in ("datablocks", "origdatablocks"):
                        continue
                    if found["blocks"] == "datablocks" and found["version"] == "v4":
                        continue
                if found["version"] not in ("v3", "v4"):
                    continue
                request.scope["path_params"] = found
                return _response(*await handler(standin, request, body))
        raise not_found(request)
    except Problem as problem:
        return _response(problem.status, problem.body)
    except (ValueError, OverflowError, RecursionError):
        return _response(400, {"message": "Unexpected token in JSON", "error": "Bad Request", "statusCode": 400})
    except (TypeError, KeyError, AttributeError):
        logging.getLogger(__name__).exception("%s %s", request.method, path)
        return _response(500, "Internal server error")


def _parsed(data: bytes) -> Any:
    return json.loads(data, parse_int=_double, parse_constant=_no_json) if data else None


def _double(digits: str) -> int:
    value = int(digits)
    return value if abs(value) <= EXACT else int(float(value))


def _no_json(name: str) -> Any:
    raise ValueError(name)


def _response(status: int, body: Any) -> Response:
    if body is None:
        return PlainTextResponse("", status_code=status)
    text = body.text if isinstance(body, Raw) else json.dumps(body)
    return Response(text, status_code=status, media_type="application/json")
