"""``archiver bridge``: serves the application until a signal."""

from __future__ import annotations

import asyncio
import logging

import uvicorn

from archiver.errors import OwnFault
from archiver.log import configure_logging
from archiver.settings import Settings
from bridge.app import create_app

logger = logging.getLogger("archiver.bridge")

KEEP_ALIVE_SECONDS = 75
"""Longer than callers keep an idle connection: who closes first never loses a post."""
STOP_SECONDS = 15


def serve(settings: Settings) -> None:
    """Until SIGTERM or Ctrl-C; posts under way are answered. Raises ``SettingsInvalid``, or ``OwnFault`` if it cannot listen."""
    app = create_app(settings)
    configure_logging(settings.worker.log_format)
    bridge = settings.bridge
    config = uvicorn.Config(
        app,
        host=bridge.host,
        port=bridge.port,
        http="h11",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        limit_concurrency=bridge.connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    asyncio.run(_serve(uvicorn.Server(config), f"{bridge.host}:{bridge.port}"))


async def _serve(server: uvicorn.Server, where: str) -> None:
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    if server.started:
        logger.info("serving http://%s", where)
    try:
        await serving
    except SystemExit:
        raise OwnFault(
            f"the bridge cannot listen on {where}",
            expected="a free port of this machine",
            found="another program has it, or it is no address of this machine",
            next_step="set bridge.host and bridge.port",
            retryable=False,
        ) from None
