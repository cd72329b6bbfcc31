"""The system under measurement: servers and workers as ``archiver dev`` runs them, each a process whose CPU can be read."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tomli_w

from archiver.settings import Settings, load
from cli import devdir, servers
from cli.programs import ROOT
from cli.servers import Child

DEV_LAYOUT = ("workflows,catalogue,pack", "lts")
"""Worker processes as ``archiver dev`` has them."""
PACK_APART = ("workflows,catalogue", "pack", "lts")
"""Packing in a process of its own, as the compose file has it."""


class System:
    """Temporal, S3 and the stand-in SciCat below ``folder``; ``workers`` starts ours. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: dict[str, Child] = {}
        self.workers: list[Child] = []
        self.temporary = folder / "tmp"
        self._stack = ExitStack()

    def __enter__(self) -> System:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop_workers()
        for child in reversed(self.servers.values()):
            child.stop()

    def _start(self) -> None:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        self.temporary.mkdir()
        state = devdir.read_state(folder)
        state.ports = devdir.choose_ports({"temporal": 0, "ui": 0, "s3": 0, "scicat": 0, "bridge": 0}, {})
        self.info: dict[str, Any] = devdir.addresses(folder, state, scicat_url="", scicat_user="", scicat_password="")
        Path(self.info["lts_root"]).mkdir()
        devdir.write_settings(folder, self.info, datablock_bytes=0)
        # No sweep of the minute falls into a measurement.
        quiet = tomllib.loads((folder / devdir.CONFIG).read_text())
        quiet["sweep"] = {"every_seconds": 0, "leftovers_every_seconds": 0}
        devdir.write_private(folder / devdir.CONFIG, tomli_w.dumps(quiet).encode())
        self._server(
            "Temporal",
            servers.temporal_dev_server(folder, port=state.ports["temporal"], ui_port=state.ports["ui"]),
            state.ports["temporal"],
        )
        self._server(
            "S3",
            servers.s3_server(
                folder, port=state.ports["s3"], access_key=state.s3_access_key, secret_key=state.s3_secret_key
            ),
            state.ports["s3"],
        )
        command = [sys.executable, "-m", "archiver.catalogue.standin", "--port", str(state.ports["scicat"])]
        command += ["--db", str(folder / "scicat.db"), "--username", state.scicat_user]
        environment = servers.clean_environment(STANDIN_PASSWORD=state.scicat_password, PYTHONPATH=str(ROOT))
        self._server(
            "SciCat",
            Child("SciCat stand-in", command, folder / "logs" / "scicat.log", environment),
            state.ports["scicat"],
        )
        config = folder / devdir.CONFIG
        command = [sys.executable, "-m", "cli.main", "-c", str(config), "setup"]
        setup = Child("setup", command, folder / "logs" / "setup.log", servers.clean_environment(PYTHONPATH=str(ROOT)))
        setup.start()
        while setup.exit_code is None:
            time.sleep(0.05)
        if setup.exit_code != 0:
            raise setup.failed("exit code 0")

    def _server(self, name: str, child: Child, port: int) -> None:
        self.servers[name] = child.start()
        child.wait_for_port(port)

    def start_workers(self, layout: tuple[str, ...] = DEV_LAYOUT, **tables: dict[str, Any]) -> Settings:
        """Worker processes of these queues, with settings over those of ``archiver dev``; returns the settings."""
        config = self.write_settings("bench.toml", tables)
        for queues in layout:
            name = f"worker {queues}"
            log = self.folder / "logs" / f"worker-{queues.replace(',', '+')}.log"
            log.unlink(missing_ok=True)
            command = [sys.executable, str(ROOT / "worker.py"), "-c", str(config), "--queues", queues]
            child = Child(name, command, log, servers.clean_environment(TMPDIR=str(self.temporary)))
            self.workers.append(child.start())
        for child in self.workers:
            child.wait_for_log("serving ")
        return load(config)

    def write_settings(self, name: str, tables: Mapping[str, Mapping[str, Any]]) -> Path:
        """A settings file: these over those of ``archiver dev``."""
        config = self.folder / name
        settings = tomllib.loads((self.folder / devdir.CONFIG).read_text())
        for table, values in tables.items():
            settings[table] = {**settings.get(table, {}), **values}
        devdir.write_private(config, tomli_w.dumps(settings).encode())
        return config

    def stop_workers(self) -> None:
        """End them."""
        for child in reversed(self.workers):
            child.stop()
        self.workers.clear()

    def worker(self, queue: str) -> Child:
        """The process that serves ``queue``."""
        return next(child for child in self.workers if queue in child.name.removeprefix("worker ").split(","))

    @property
    def lts(self) -> Path:
        """The LTS directory."""
        return Path(self.info["lts_root"])

    def dump(self) -> str:
        """Its addresses, for people."""
        return json.dumps({key: value for key, value in self.info.items() if "secret" not in key})
