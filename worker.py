"""Starts one Temporal worker per task queue, with its slots and its threads. ``python worker.py --queues all``.

SIGTERM and Ctrl-C drain: no new work is taken, running activities go on for ``worker.graceful_shutdown_seconds`` and
are then told to stop between two chunks, to be taken up by the next worker. A second signal ends at once.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.worker import Interceptor, UnsandboxedWorkflowRunner, Worker

from activities.awake import Awake
from activities.connection import connect
from activities.groups import GROUPS, parse_queues
from activities.queues import Service
from archiver.errors import ArchiverError
from archiver.log import configure_logging
from archiver.settings import Settings, find_file, load
from workflows import steps
from workflows.datablock import ArchiveDatablock
from workflows.dataset import ArchiveDataset
from workflows.job import ArchiveJob
from workflows.retrieve_dataset import RetrieveDatablock, RetrieveDataset
from workflows.retrieve_job import RetrieveJob
from workflows.sweep import ExpireRetrieved, Sweep, SweepDataset, SweepLeftovers
from workflows.verify import VerifyDataset

_M_ARENA_MAX = -8
"""malloc.h of glibc."""
HEARTBEAT_THROTTLE = timedelta(seconds=2)
"""A cancel reaches an activity with its next heartbeat; transfers must stop within 5 s."""

WORKFLOWS = [
    *(ArchiveJob, ArchiveDataset, ArchiveDatablock),
    *(RetrieveJob, RetrieveDataset, RetrieveDatablock, VerifyDataset),
]
SWEEPS = [Sweep, SweepLeftovers, SweepDataset, ExpireRetrieved]

logger = logging.getLogger("archiver.worker")


async def serve(settings: Settings, queues: list[str]) -> None:
    """Serve ``queues`` until a signal says to stop. Raises ``ArchiverError`` if it may not or cannot serve."""
    runtime = None
    if settings.worker.metrics_address:
        telemetry = TelemetryConfig(metrics=PrometheusConfig(bind_address=settings.worker.metrics_address))
        runtime = Runtime(telemetry=telemetry)
    client = await connect(settings, runtime=runtime)
    stop = asyncio.Event()
    _listen(stop)
    async with serving(client, settings, queues):
        await stop.wait()
        logger.info("stopping: running activities have %.0f s", settings.worker.graceful_shutdown_seconds)


@asynccontextmanager
async def serving(
    client: Client, settings: Settings, queues: list[str], *, interceptors: Sequence[Interceptor] = ()
) -> AsyncIterator[None]:
    """One Temporal worker per queue while the context lasts; leaving it drains. Raises ``ArchiverError``."""
    workers: list[Worker] = []
    async with AsyncExitStack() as stack:
        grace = timedelta(seconds=settings.worker.graceful_shutdown_seconds)
        identity = f"{socket.gethostname()}:{os.getpid()}:{'+'.join(queues)}"
        service = await stack.enter_async_context(Service(settings, queues))
        awake = await stack.enter_async_context(Awake(settings.worker.heartbeat_timeout_seconds).watching())
        for queue in service.activity_queues:
            worker = Worker(
                client,
                task_queue=queue.name,
                activities=queue.activities,
                activity_executor=queue.executor,
                max_concurrent_activities=queue.slots,
                graceful_shutdown_timeout=grace,
                max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
                default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
                identity=identity,
                interceptors=[awake, *interceptors],
            )
            workers.append(await stack.enter_async_context(worker))
        if "workflows" in queues:
            worker = Worker(
                client,
                task_queue=steps.WORKFLOWS,
                workflows=[*WORKFLOWS, *SWEEPS],
                workflow_runner=UnsandboxedWorkflowRunner(),  # the sandbox stays in the tests: tests/sandbox.py
                graceful_shutdown_timeout=timedelta(seconds=5),
                identity=identity,
                interceptors=interceptors,
            )
            workers.append(await stack.enter_async_context(worker))
        logger.info("serving %s as %s", ", ".join(queues), identity)
        try:
            yield
        finally:
            # All at once: while one queue drains, no other may take new work.
            await asyncio.gather(*(worker.shutdown() for worker in workers))


def keep_memory_together() -> None:
    """Two heaps of glibc instead of up to eight per core: what many short-lived threads free is otherwise held apart.

    Measured: 2 MiB more resident with every datablock of 4,000 files, and none with two heaps (P10).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def _listen(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def told(signum: int) -> None:
        if stop.is_set():
            logger.warning("second %s: ending at once", signal.Signals(signum).name)
            os._exit(128 + signum)
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, told, signum)


def main(arguments: list[str] | None = None) -> int:
    """The command line. 0: drained after a signal; 2: usage or settings; 6: refused (by a lock, LTS, SciCat); 7: unreachable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queues", default="all", help=f"comma-separated: {', '.join(GROUPS)}")
    parser.add_argument("-c", "--config", type=Path, help="settings file")
    options = parser.parse_args(arguments)
    try:
        keep_memory_together()
        queues = parse_queues(options.queues)
        settings = load(find_file(options.config))
        configure_logging(settings.worker.log_format)
        asyncio.run(serve(settings, queues))
    except ArchiverError as error:
        print(error.lines(), file=sys.stderr)
        return {"SettingsInvalid": 2, "Unreachable": 7}.get(error.type_name, 6)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Temporal's runtime threads may still run, and abort an interpreter that finalizes beneath them.
    os._exit(code)
