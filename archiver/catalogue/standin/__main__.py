"""``python -m archiver.catalogue.standin``: serve the stand-in; prints ``ready URL`` when it answers."""

from __future__ import annotations

import argparse
import asyncio
import os

import uvicorn

from archiver.catalogue.standin.app import Account, StandInSettings, create_app
from archiver.catalogue.standin.state import VERSIONS


async def main() -> None:
    """Serve until a signal. The password comes from ``STANDIN_PASSWORD``, so that no process list shows it."""
    parser = argparse.ArgumentParser(description="stand-in for SciCat's backend")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--version", choices=VERSIONS, default="5.2", help="the backend that it behaves as")
    parser.add_argument("--db", default=":memory:")
    parser.add_argument("--username", default="archiver")
    parser.add_argument("--token-seconds", type=float, default=3600)
    parser.add_argument("--pid-prefix", default="20.500.12345")
    parser.add_argument("--webhook-url", default="")
    options = parser.parse_args()
    settings = StandInSettings(
        version=options.version,
        db=options.db,
        accounts=[Account(options.username, os.environ.get("STANDIN_PASSWORD", "archiver"), admin=True)],
        token_seconds=options.token_seconds,
        pid_prefix=options.pid_prefix,
        webhook_url=options.webhook_url,
        webhook_auth=os.environ.get("STANDIN_WEBHOOK_AUTH", ""),
    )
    config = uvicorn.Config(
        create_app(settings), host=options.host, port=options.port, log_level="warning", access_log=False
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    if server.started:
        print(f"ready http://{options.host}:{options.port}", flush=True)
    await serving


def run() -> None:
    """The command line."""
    asyncio.run(main())


if __name__ == "__main__":
    run()
