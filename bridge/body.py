"""The body of a post: read with limits of size and time, and of all that it says only the job's id is kept."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from archiver.settings import BridgeSettings
from bridge.problems import BadRequest

LINGER_SECONDS = 1.0

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _job_id(text: str) -> str:
    lower = text.lower()
    if not _UUID.fullmatch(lower):
        raise ValueError("is no UUID")
    return lower


class PostedJob(BaseModel):
    """``{id, type}``, or a whole job in v4 or v3 shape. Only the id is believed: the job is read from SciCat again."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"required": ["id"]})

    id: Annotated[str, AfterValidator(_job_id)] = Field(
        validation_alias=AliasChoices("id", "_id", "Id"), description="UUID of a job that SciCat has"
    )
    type: str | None = Field(None, description="SciCat's job type; what SciCat itself says counts")


async def read_job_id(request: Request, settings: BridgeSettings) -> str:
    """The id that a post names. Raises ``BadRequest``."""
    try:
        async with asyncio.timeout(settings.body_seconds):
            data = await _bounded(request, settings.max_body_bytes)
    except TimeoutError:
        raise BadRequest(
            408,
            "the body did not come in time",
            expected=f"all of it within {settings.body_seconds:g} s",
            found="a part of it",
            next_step="send it again",
        ) from None
    except ClientDisconnect:
        raise BadRequest(400, "the caller went away before its body was there") from None
    try:
        return PostedJob.model_validate_json(data).id
    except ValidationError as error:
        raise _wrong(error.errors(include_url=False, include_input=False)[0]) from None


async def _bounded(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    parts: list[bytes] = []
    size = int(announced) if announced.isascii() and announced.isdigit() and len(announced) < 20 else 0
    coming = request.stream()
    if size <= limit:
        size = 0
        async for part in coming:
            size += len(part)
            if size > limit:
                break
            parts.append(part)
    if size > limit:
        await discard(coming)
        raise BadRequest(
            413,
            "the body is too large",
            expected=f"at most {limit} B (bridge.max_body_bytes)",
            found="more",
            next_step="post {id, type} alone: nothing else is used",
        )
    return b"".join(parts)


async def discard(coming: AsyncIterator[bytes]) -> None:
    """Read on for a moment: closed before its bytes are read, a connection is reset, and the caller never sees our answer."""
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(LINGER_SECONDS):
            async for _ in coming:
                pass


def _wrong(first: Any) -> BadRequest:
    where = ".".join(str(part) for part in first["loc"])[:100] or "body"
    if first["type"] == "json_invalid":
        return BadRequest(
            400,
            "the body is no JSON",
            expected='a JSON object such as {"id": "...", "type": "archive"}',
            found=str(first["msg"])[:200],
            next_step="see the body template of SciCat's url action (deploy/scicat/jobConfig.yaml)",
        )
    return BadRequest(
        422,
        "the body names no job",
        expected='a JSON object with "id", the UUID of a job',
        found=f"{where}: {str(first['msg']).removeprefix('Value error, ')}"[:200],
        next_step="see the body template of SciCat's url action (deploy/scicat/jobConfig.yaml)",
    )
