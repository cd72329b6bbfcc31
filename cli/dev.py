"""``archiver dev``: everything one machine needs, embedded: Temporal with its Web UI, S3, SciCat's stand-in, workers, and
the bridge, which the stand-in calls at every job as SciCat's webhook does.

All state lies below one directory; a second start with it goes on where the first stopped. ``dev.json`` is there while the
system is ready, and only then.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote

from archiver.errors import ArchiverError, Refused
from cli import devdir, exits, servers
from cli.devdir import CONFIG, DEV_JSON
from cli.programs import ROOT
from cli.servers import Child

RESTART_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_SECONDS = 60.0
"""A child that ran for so long starts its back-off anew."""
WATCH_SECONDS = 0.2
SERVING = "serving "

STANDIN, WORKER, SETUP, BRIDGE = (
    "archiver.catalogue.standin.__main__:run",
    "worker:main",
    "cli.main:run",
    "cli.main:run",
)
"""Our own programs among the children, as ``Child`` starts them."""


@dataclass
class DevOptions:
    """What ``archiver dev`` is asked for; port 0: a free one, kept over restarts."""

    data_dir: Path
    temporal_port: int = 0
    ui_port: int = 0
    s3_port: int = 0
    scicat_port: int = 0
    bridge_port: int = 0
    scicat_version: str = "5.2"
    scicat_url: str = ""
    scicat_user: str = ""
    scicat_password: str = ""
    datablock_bytes: int = 0
    lose_webhook: bool = False
    """The stand-in tells nobody of a job: only the sweep finds it."""
    sweep_seconds: float = 0


def web_pages(info: dict[str, Any]) -> dict[str, str]:
    """Filtered lists of the Web UI: what one looks for first."""
    kinds = {
        "jobs": "WorkflowType IN ('ArchiveJob', 'RetrieveJob')",
        "datasets under way": "WorkflowType IN ('ArchiveDataset', 'RetrieveDataset') AND ExecutionStatus = 'Running'",
        "datasets that failed": "WorkflowType IN ('ArchiveDataset', 'RetrieveDataset') AND Stage IN ('failed', 'stopped')",
    }
    page = f"{info['temporal_ui']}/namespaces/{info['namespace']}/workflows?query="
    return {name: page + quote(query, safe="") for name, query in kinds.items()}


class DevSystem:
    """The running system. ``start`` returns when all is ready; ``watch`` restarts what dies; ``stop`` ends all."""

    def __init__(self, options: DevOptions, say: Callable[[str], None]) -> None:
        self.options = options
        self.folder = options.data_dir.resolve()
        self.config = self.folder / CONFIG
        self.info: dict[str, Any] = {}
        self._say = say
        self._stack = ExitStack()
        self._children: list[Child] = []
        self._restarts: dict[str, int] = {}
        self._restart_at: dict[str, float] = {}

    def start(self) -> None:
        """Start everything. Raises ``ArchiverError``; what was started is then stopped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        (self.folder / DEV_JSON).unlink(missing_ok=True)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _lock(self) -> None:
        from archiver.storage.lock import ExclusiveLock

        try:
            self._stack.enter_context(ExclusiveLock(self.folder / "dev.lock"))
        except ArchiverError as error:
            raise Refused(
                f"another archiver dev runs in {self.folder}",
                found=error.found,
                next_step="stop it, or give another --data-dir",
            ) from None

    def _start(self) -> None:
        options, state = self.options, devdir.read_state(self.folder)
        given = {
            "temporal": options.temporal_port,
            "ui": options.ui_port,
            "s3": options.s3_port,
            "scicat": options.scicat_port,
            "bridge": options.bridge_port,
        }
        ports = state.ports = devdir.choose_ports(given, state.ports)
        devdir.write_state(self.folder, state)
        info = devdir.addresses(
            self.folder,
            state,
            scicat_url=options.scicat_url,
            scicat_user=options.scicat_user,
            scicat_password=options.scicat_password,
        )
        devdir.write_settings(
            self.folder, info, datablock_bytes=options.datablock_bytes, sweep_seconds=options.sweep_seconds
        )
        Path(info["lts_root"]).mkdir(exist_ok=True)
        temporal = servers.temporal_dev_server(
            self.folder, port=ports["temporal"], ui_port=ports["ui"], namespace=devdir.NAMESPACE
        )
        s3 = servers.s3_server(
            self.folder, port=ports["s3"], access_key=state.s3_access_key, secret_key=state.s3_secret_key
        )
        self._run(temporal)
        self._run(s3)
        for program in (STANDIN, WORKER, SETUP, BRIDGE, "cli.setup", "bridge.serve"):
            importlib.import_module(program.partition(":")[0])  # once for all of them, while the servers start
        if not options.scicat_url:
            self._run(self._standin(state, info)).wait_for_port(ports["scicat"])
        s3.wait_for_port(ports["s3"])
        temporal.wait_for_port(ports["ui"])
        temporal.wait_for_port(ports["temporal"])
        self._set_up()
        workers = [self._run(self._worker(queues)) for queues in ("workflows,catalogue,pack", "lts")]
        bridge = self._run(self._bridge())
        for worker in workers:
            self._wait_for_worker(worker)
        bridge.wait_for_port(ports["bridge"])
        self.info = info
        devdir.write_private(self.folder / DEV_JSON, json.dumps(info, indent=1).encode())

    def _bridge(self) -> Child:
        command = [sys.executable, "-m", "cli.main", "-c", str(self.config), "bridge"]
        log = self.folder / "logs" / "bridge.log"
        return Child("bridge", command, log, servers.clean_environment(PYTHONPATH=str(ROOT)), python=BRIDGE)

    def _standin(self, state: devdir.State, info: dict[str, Any]) -> Child:
        command = [sys.executable, "-m", "archiver.catalogue.standin", "--port", str(state.ports["scicat"])]
        command += ["--version", self.options.scicat_version, "--username", state.scicat_user]
        command += ["--db", str(self.folder / "scicat.db")]
        if not self.options.lose_webhook:
            command += ["--webhook-url", f"{info['bridge_url']}/api/v1/jobs"]
        environment = servers.clean_environment(
            STANDIN_PASSWORD=state.scicat_password,
            STANDIN_WEBHOOK_AUTH=f"Bearer {state.bridge_token}",
            PYTHONPATH=str(ROOT),
        )
        return Child("SciCat stand-in", command, self.folder / "logs" / "scicat.log", environment, python=STANDIN)

    def _run(self, child: Child) -> Child:
        self._children.append(child)
        child.start()
        _heed()
        return child

    def _worker(self, queues: str) -> Child:
        log = self.folder / "logs" / f"worker-{queues.replace(',', '+')}.log"
        log.unlink(missing_ok=True)
        command = [sys.executable, str(ROOT / "worker.py"), "-c", str(self.config), "--queues", queues]
        return Child(f"worker {queues}", command, log, servers.clean_environment(), python=WORKER)

    def _wait_for_worker(self, child: Child) -> None:
        until = time.monotonic() + servers.STOP_SECONDS
        while True:
            try:
                return child.wait_for_log(SERVING)
            except ArchiverError:
                # The workers of a dev that was killed still drain, and hold the lock of the LTS queues until then.
                if child.exit_code != exits.REFUSED or time.monotonic() > until:
                    raise
                time.sleep(0.5)
                child.start()

    def _set_up(self) -> None:
        command = [sys.executable, "-m", "cli.main", "-c", str(self.config), "setup"]
        log = self.folder / "logs" / "setup.log"
        environment = servers.clean_environment(PYTHONPATH=str(ROOT))
        child = Child("archiver setup", command, log, environment, python=SETUP).start()
        until = time.monotonic() + servers.START_SECONDS
        while child.exit_code is None and time.monotonic() < until:
            time.sleep(0.05)
        if child.exit_code != 0:
            child.stop()
            raise child.failed("exit code 0")

    def watch(self) -> None:
        """One look: a child that died is started again, with back-off, and it is said."""
        now = time.monotonic()
        for child in self._children:
            if child.exit_code is None:
                continue
            if child.name not in self._restart_at:
                tries = self._restarts.get(child.name, 0) if now - child.started < STEADY_SECONDS else 0
                pause = RESTART_SECONDS[min(tries, len(RESTART_SECONDS) - 1)]
                self._restarts[child.name] = tries + 1
                self._restart_at[child.name] = now + pause
                how = f"{child.name} ended with {child.exit_code}"
                self._say(f"{how}: starting it again in {pause:.0f} s (its log: {child.log})")
            elif now >= self._restart_at[child.name]:
                del self._restart_at[child.name]
                child.start()

    def run(self) -> None:
        """Watch until Ctrl-C or SIGTERM (``interrupt_on_sigterm``), then stop all; a second one ends all at once."""
        try:
            while True:
                _heed()
                self.watch()
                time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            self._say("stopping")
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop all: workers first, so that they drain into servers that still answer. May be repeated."""
        (self.folder / DEV_JSON).unlink(missing_ok=True)
        try:
            for child in reversed(self._children):
                child.stop()
        except KeyboardInterrupt:
            for child in reversed(self._children):
                child.kill()
        self._children.clear()
        self._stack.close()


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, also while it starts or builds something."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        _told.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


_told = threading.Event()
"""Set by SIGTERM."""


def _heed() -> None:
    """Raise what a signal raised where Python swallows it: in the callbacks that run in the parent right after a fork."""
    if _told.is_set():
        raise KeyboardInterrupt
