"""``archiver dev``: everything one machine needs, embedded: Temporal with its Web UI, S3, SciCat's stand-in, workers.

All state lies below one directory; a second start with it goes on where the first stopped. ``dev.json`` is there while the
system is ready, and only then.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli_w

from archiver.errors import ArchiverError, Refused
from cli import servers
from cli.servers import ROOT, Child

NAMESPACE = "default"
DEV_JSON = "dev.json"
CONFIG = "archiver.toml"
STATE = "state.json"
RESTART_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_SECONDS = 60.0
"""A child that ran for so long starts its back-off anew."""
SERVING = "serving "


@dataclass
class DevOptions:
    """What ``archiver dev`` is asked for; port 0: a free one, kept over restarts."""

    data_dir: Path
    temporal_port: int = 0
    ui_port: int = 0
    s3_port: int = 0
    scicat_port: int = 0
    scicat_url: str = ""
    scicat_user: str = ""
    scicat_password: str = ""
    datablock_bytes: int = 0


@dataclass
class _State:
    """What must stay the same over restarts: secrets. Readable by the owner only."""

    s3_access_key: str
    s3_secret_key: str
    scicat_user: str
    scicat_password: str


class DevSystem:
    """The running system. ``start`` returns when all is ready; ``watch`` restarts what dies; ``stop`` ends all."""

    def __init__(self, options: DevOptions, say: Callable[[str], None]) -> None:
        self.options = options
        self.folder = options.data_dir.resolve()
        self.config = self.folder / CONFIG
        self.info: dict[str, object] = {}
        self._say = say
        self._stack = ExitStack()
        self._children: list[Child] = []
        self._deaths: dict[str, tuple[int, float]] = {}

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
        options, state = self.options, self._state()
        ports = {
            name: given or servers.free_port()
            for name, given in (
                ("temporal", options.temporal_port),
                ("ui", options.ui_port),
                ("s3", options.s3_port),
                ("scicat", options.scicat_port),
            )
        }
        temporal = servers.temporal_dev_server(
            self.folder, port=ports["temporal"], ui_port=ports["ui"], namespace=NAMESPACE
        )
        s3 = servers.s3_server(
            self.folder, port=ports["s3"], access_key=state.s3_access_key, secret_key=state.s3_secret_key
        )
        started = [self._run(temporal), self._run(s3)]
        scicat_url = options.scicat_url or f"http://127.0.0.1:{ports['scicat']}"
        if not options.scicat_url:
            command = [sys.executable, "-m", "archiver.catalogue.standin", "--port", str(ports["scicat"])]
            command += ["--db", str(self.folder / "scicat.db"), "--username", state.scicat_user]
            environment = servers.clean_environment(STANDIN_PASSWORD=state.scicat_password, PYTHONPATH=str(ROOT))
            standin = Child("SciCat stand-in", command, self.folder / "logs" / "scicat.log", environment)
            started.append(self._run(standin))
            standin.wait_for_port(ports["scicat"])
        temporal.wait_for_port(ports["temporal"])
        s3.wait_for_port(ports["s3"])
        lts = self.folder / "lts"
        lts.mkdir(exist_ok=True)
        self._write_config(ports, scicat_url, lts, state)
        self._set_up()
        for queues in ("workflows,catalogue,pack", "lts"):
            self._run_worker(queues)
        self.info = {
            "temporal_address": f"127.0.0.1:{ports['temporal']}",
            "temporal_ui": f"http://127.0.0.1:{ports['ui']}",
            "namespace": NAMESPACE,
            "s3_endpoint": f"http://127.0.0.1:{ports['s3']}",
            "s3_access_key": state.s3_access_key,
            "s3_secret_key": state.s3_secret_key,
            "buckets": {"landing": "landing", "staging": "staging", "retrieval": "retrieval"},
            "landing_url_template": "s3://landing/{pid}/",
            "lts_root": str(lts),
            "scicat_url": scicat_url,
            "scicat_user": state.scicat_user,
            "scicat_password": state.scicat_password,
        }
        draft = self.folder / f"{DEV_JSON}.partial"
        _write_private(draft, json.dumps(self.info, indent=1).encode())
        draft.replace(self.folder / DEV_JSON)

    def _run(self, child: Child) -> Child:
        child.start()
        self._children.append(child)
        return child

    def _run_worker(self, queues: str) -> None:
        name = f"worker {queues}"
        log = self.folder / "logs" / f"worker-{queues.replace(',', '+')}.log"
        log.unlink(missing_ok=True)
        command = [sys.executable, str(ROOT / "worker.py"), "-c", str(self.config), "--queues", queues]
        child = self._run(Child(name, command, log, servers.clean_environment()))
        child.wait_for_log(SERVING)

    def _state(self) -> _State:
        path = self.folder / STATE
        options = self.options
        if path.exists():
            state = _State(**json.loads(path.read_text()))
        else:
            state = _State(
                "dev" + secrets.token_hex(6), secrets.token_urlsafe(24), "archiver", secrets.token_urlsafe(18)
            )
            _write_private(path, json.dumps(asdict(state)).encode())
        if options.scicat_url:
            state.scicat_user, state.scicat_password = options.scicat_user, options.scicat_password
        return state

    def _write_config(self, ports: dict[str, int], scicat_url: str, lts: Path, state: _State) -> None:
        settings: dict[str, dict[str, object]] = {
            "temporal": {"address": f"127.0.0.1:{ports['temporal']}", "namespace": NAMESPACE},
            "scicat": {"url": scicat_url, "username": state.scicat_user, "password": state.scicat_password},
            "s3": {
                "endpoint": f"http://127.0.0.1:{ports['s3']}",
                "access_key": state.s3_access_key,
                "secret_key": state.s3_secret_key,
            },
            "landing": {"url_template": "s3://landing/{pid}/"},
            "staging": {"bucket": "staging"},
            "retrieval": {"bucket": "retrieval"},
            "lts": {"root": str(lts), "identity": "dev", "reserve": "64MiB", "space_poll_seconds": 1.0},
            "worker": {"graceful_shutdown_seconds": 5.0},
        }
        if self.options.datablock_bytes:
            settings["datablock"] = {"target_bytes": self.options.datablock_bytes}
        _write_private(self.config, tomli_w.dumps(settings).encode())

    def _set_up(self) -> None:
        command = [sys.executable, "-m", "cli.main", "-c", str(self.config), "setup"]
        log = self.folder / "logs" / "setup.log"
        child = Child("archiver setup", command, log, servers.clean_environment(PYTHONPATH=str(ROOT))).start()
        until = time.monotonic() + servers.START_SECONDS
        while child.exit_code is None and time.monotonic() < until:
            time.sleep(0.05)
        if child.exit_code != 0:
            child.stop()
            raise child.failed("exit code 0")

    def watch(self) -> None:
        """One look: a child that died is started again, with back-off."""
        for child in self._children:
            if child.exit_code is None:
                continue
            tries, not_before = self._deaths.get(child.name, (0, 0.0))
            now = time.monotonic()
            if not_before == 0.0 or now - not_before > STEADY_SECONDS:
                pause = RESTART_SECONDS[0]
                self._deaths[child.name] = (1, now + pause)
                self._say(
                    f"{child.name} ended with {child.exit_code}: starting it again in {pause:.0f} s, log {child.log}"
                )
            elif now >= not_before:
                child.start()
                pause = RESTART_SECONDS[min(tries, len(RESTART_SECONDS) - 1)]
                self._deaths[child.name] = (tries + 1, now + pause)

    def stop(self) -> None:
        """Stop all: workers first, so that they drain into servers that still answer."""
        (self.folder / DEV_JSON).unlink(missing_ok=True)
        for child in reversed(self._children):
            child.stop()
        self._children.clear()
        self._stack.close()


def _write_private(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
