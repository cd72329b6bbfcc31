"""Every request has an id: the caller's, if it is sane, else one of ours. It stands in the answer and in the log."""

from __future__ import annotations

import logging
import re
import time
from contextvars import ContextVar
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,63}")

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""Of the request that is being answered."""

logger = logging.getLogger("archiver.bridge")


class RequestIds:
    """ASGI middleware: the id, and one log line for each answer but those of health checks that found nothing wrong."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER.lower().encode(), b"").decode("latin-1")
        this = given if _SANE.fullmatch(given) else uuid4().hex
        token = request_id.set(this)
        started, status = time.monotonic(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (HEADER.lower().encode(), this.encode())]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            path = scope["path"][:200].encode("unicode_escape").decode()
            quiet = status == 200 and path.startswith("/health/")
            level = logging.DEBUG if quiet else logging.WARNING if status >= 500 else logging.INFO
            took = (time.monotonic() - started) * 1000
            logger.log(level, "%s %s %d %.0f ms request=%s", scope["method"], path, status, took, this)
            request_id.reset(token)
