"""What callers get when something is wrong: our four lines as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from archiver.errors import ArchiverError, SystemFault, UnknownJob
from archiver.log import scrub

RETRY_SECONDS = 30
"""``Retry-After`` of a 503; the sweep takes up every minute what nobody retries."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "error", "request_id"],
    "properties": {
        "type": {"type": "string", "description": "urn:archiver:NAME, where NAME is stable"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "error": {"type": "string", "description": "what went wrong"},
        "expected": {"type": "string"},
        "found": {"type": "string"},
        "next": {"type": "string", "description": "what to do"},
        "request_id": {"type": "string"},
        "name": {"type": "string", "description": "the workflow that tells SciCat of the refusal, if there is one"},
    },
}


class BadRequest(ArchiverError):
    """The request itself is wrong; ``status`` says in which way. What is left of its body is not read."""

    def __init__(self, status: int, what: str, *, expected: str = "", found: str = "", next_step: str = "") -> None:
        super().__init__(what, expected=expected or None, found=found or None, next_step=next_step or None)
        self.status = status

    @property
    def type_name(self) -> str:
        """By its status."""
        return HTTPStatus(self.status).name.title().replace("_", "")


def status_of(error: ArchiverError) -> int:
    """The status that tells whose turn it is: the caller's, or time's."""
    if isinstance(error, BadRequest):
        return error.status
    if isinstance(error, UnknownJob):
        return 404
    return 503 if isinstance(error, SystemFault) else 422


def problem(error: ArchiverError, request_id: str, **more: str) -> JSONResponse:
    """``error`` as an answer."""
    status = status_of(error)
    body: dict[str, Any] = {
        "type": f"urn:archiver:{error.type_name}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "error": scrub(error.what),
    }
    for key, value in (("expected", error.expected), ("found", error.found), ("next", error.next_step)):
        if value:
            body[key] = scrub(value)
    headers: dict[str, str] = {}
    if status == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="archiver", Basic realm="archiver"'
    if status in (401, 408, 413):
        headers["Connection"] = "close"
    return JSONResponse(
        {**body, "request_id": request_id, **more}, status, headers, media_type="application/problem+json"
    )
