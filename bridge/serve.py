"""``archiver bridge``: serves the application until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn
import uvloop

from archiver.errors import OwnFault
from archiver.log import configure_logging
from archiver.settings import Settings
from bridge.app import create_app
from bridge.connections import Connections

logger = logging.getLogger("archiver.bridge")

KEEP_ALIVE_SECONDS = 75
"""Longer than callers keep an idle connection: who closes first never loses a post."""
STOP_SECONDS = 15
BACKLOG = 1024


def serve(settings: Settings) -> None:
    """Until SIGTERM or Ctrl-C; posts under way are answered. Raises ``SettingsInvalid``, or ``OwnFault`` if it cannot listen."""
    # Of Temporal's client, before it makes them: it only waits for answers, and threads that hand work to each other cost.
    os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
    app = create_app(settings)
    configure_logging(settings.worker.log_format)
    bridge = settings.bridge
    config = uvicorn.Config(
        app,
        # uvicorn calls it, as it would call a class.
        http=Connections(bridge).protocol,  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    with (
        contextlib.closing(_listen(bridge.host, bridge.port)) as listening,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(_Server(config), listening))


async def _serve(server: uvicorn.Server, listening: socket.socket) -> None:
    serving = asyncio.create_task(server.serve([listening]))
    while not server.started and not serving.done():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    if server.started:
        host, port = listening.getsockname()[:2]
        logger.info("serving http://%s:%d", host, port)
    await serving


class _Server(uvicorn.Server):
    """One that ends after a signal, and not by it: a stop that was asked for is no failure."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal lets posts under way be answered, a second Ctrl-C does not."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.handle_exit, signum, None)
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OwnFault(
            f"the bridge cannot listen on {host}:{port}",
            expected="a free port, on an address of this machine",
            found=error.strerror or type(error).__name__,
            next_step="set bridge.host and bridge.port",
            retryable=False,
        ) from None
