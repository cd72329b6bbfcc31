"""The services of docker-compose.yml as local processes: each one's command with that service's environment.

What Compose does for a container is done here for a process: host names and ports become those of this machine, mounts and
secrets become paths. What cannot be had without an engine is put in its place: PostgreSQL of this machine, versitygw and
Temporal's server built from the same versions as the images, and the stand-in for SciCat.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.programs import ROOT, obtain
from cli.servers import Child, die_with_parent, free_port

Model = Mapping[str, Any]

PORTS = {"temporal": "7233", "s3": "7070", "scicat": "3000", "postgresql": "5432", "bridge": "8000"}
"""The services that others reach, by the port they have in their containers."""

INNER_PORTS = (
    "FRONTEND_HTTP_PORT",
    "FRONTEND_MEMBERSHIP_PORT",
    "MATCHING_GRPC_PORT",
    "MATCHING_MEMBERSHIP_PORT",
    "HISTORY_GRPC_PORT",
    "HISTORY_MEMBERSHIP_PORT",
    "WORKER_GRPC_PORT",
    "WORKER_MEMBERSHIP_PORT",
)
"""Of Temporal's server: free in a container of its own, to be chosen on a shared machine."""


class Topology:
    """All services on this machine, below ``folder``. ``start`` once, ``stop`` in any case."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.services: Mapping[str, Any] = model["services"]
        self.folder = folder
        ports = _low_ports(len(PORTS) + len(INNER_PORTS))
        self.ports = dict(zip(PORTS, ports, strict=False))
        self._inner_ports = dict(zip(INNER_PORTS, map(str, ports[len(PORTS) :]), strict=True))
        self.children: dict[str, Child] = {}
        self._secrets: dict[str, Path] = {}
        (folder / "logs").mkdir()
        (folder / "bin").mkdir()
        (folder / "bin" / "temporal-sql-tool").symlink_to(obtain("temporal-sql"))
        for name, secret in model["secrets"].items():
            path = folder / f"secret-{name}"
            path.write_text(secret["x-#value"])  # the loader's key for the value that it found in the environment
            path.chmod(0o600)
            self._secrets[name] = path
        self._metrics = {name: free_port() for name in self.services}

    # --- what a container would see -------------------------------------------------------------------------------------

    def address(self, name: str) -> str:
        """host:port of a service here."""
        return f"127.0.0.1:{self.ports[name]}"

    def volume(self, name: str) -> Path:
        """The directory of a named volume."""
        path = self.folder / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _paths(self, service: Model) -> dict[str, str]:
        paths = {"/opt/archiver/healthcheck.py": str(ROOT / "deploy" / "healthcheck.py")}  # as the Dockerfile copies it
        for mount in service.get("volumes", []):
            source = mount["source"] if mount["type"] == "bind" else str(self.volume(mount["source"]))
            paths[mount["target"]] = source
        for secret in service.get("secrets", []):
            paths[secret["target"]] = str(self._secrets[secret["source"]])
        return paths

    def _here(self, name: str, text: str, variable: str = "") -> str:
        """A word of a service's command, or the value of its ``variable``, as it must read on this machine."""
        paths = self._paths(self.services[name])
        if text in paths:
            return paths[text]
        if variable.endswith(("_HOST", "_SEEDS")):
            return "127.0.0.1"
        for host, port in PORTS.items():
            text = text.replace(f"localhost:{port}", self.address(host))
            text = text.replace(f"{host}:{port}", self.address(host))
            if variable.endswith("_PORT") and text == port:
                return str(self.ports[host])
        return text.replace("0.0.0.0:9464", f"127.0.0.1:{self._metrics[name]}").replace("0.0.0.0", "127.0.0.1")

    def environment(self, name: str) -> dict[str, str]:
        """The service's environment and nothing of ours but what the image would give: a PATH and a locale."""
        variables = self.services[name].get("environment") or {}
        given = {key: self._here(name, str(value), key) for key, value in variables.items()}
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), "/usr/bin", "/bin"])
        return {"PATH": path, "LANG": "C.UTF-8", **given}

    def command(self, name: str) -> list[str]:
        """The service's command."""
        return [self._here(name, part) for part in self.services[name]["command"]]

    def run(
        self, name: str, *command: str, seconds: float = 120, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What ``docker compose run -e MORE NAME COMMAND`` would do; without a command, the service's own."""
        done = [self._here(name, part) for part in command] or self.command(name)
        return subprocess.run(
            done,
            env={**self.environment(name), **(more or {})},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            preexec_fn=die_with_parent,
        )

    def healthy(self, name: str) -> subprocess.CompletedProcess[str]:
        """One run of a service's health check."""
        return self.run(name, *self.services[name]["healthcheck"]["test"][1:], seconds=30)

    # --- the servers ----------------------------------------------------------------------------------------------------

    def _child(self, name: str, command: list[str], environment: Mapping[str, str]) -> Child:
        child = Child(name, command, self.folder / "logs" / f"{name}.log", environment)
        self.children[name] = child
        return child.start()

    def start_servers(self) -> None:
        """PostgreSQL, S3, SciCat's stand-in; then the schema, as its service does it; then Temporal's server."""
        self._start_postgresql()
        s3 = [str(obtain("versitygw")), *self.command("s3")]
        s3[s3.index(":7070")] = self.address("s3")
        self._child("s3", s3, self.environment("s3")).wait_for_port(self.ports["s3"])
        scicat = self.services["scicat"]["environment"]
        account = self.services["worker-lts"]["environment"]["ARCHIVER_SCICAT__USERNAME"]
        standin = [sys.executable, "-m", "archiver.catalogue.standin", "--port", str(self.ports["scicat"])]
        standin += ["--username", account, "--pid-prefix", scicat["PID_PREFIX"]]
        # What jobConfig.yaml's url action does, with the variables that SciCat's service has for it.
        standin += ["--webhook-url", f"{self._here('scicat', scicat['ARCHIVER_BRIDGE_URL'])}/api/v1/jobs"]
        given = {
            "STANDIN_PASSWORD": self._secrets["scicat_password"].read_text(),
            "STANDIN_WEBHOOK_AUTH": f"Bearer {scicat['ARCHIVER_BRIDGE_TOKEN']}",
        }
        self._child("scicat", standin, {"PATH": os.environ["PATH"], **given})
        self.children["scicat"].wait_for_port(self.ports["scicat"])

    def start_temporal(self) -> None:
        """The server with its service's environment. Its image's entry point adds the addresses, as here."""
        environment = {
            **self.environment("temporal"),
            "TEMPORAL_BROADCAST_ADDRESS": "127.0.0.1",
            "FRONTEND_GRPC_PORT": str(self.ports["temporal"]),
            **self._inner_ports,
        }
        server = self._child("temporal", [str(obtain("temporal-server")), "start"], environment)
        server.wait_for_port(self.ports["temporal"])

    def start(self, name: str) -> Child:
        """One of our services."""
        return self._child(name, self.command(name), self.environment(name))

    def _start_postgresql(self) -> None:
        service = self.services["postgresql"]["environment"]
        # PostgreSQL refuses to run as root, and another user cannot enter pytest's directories.
        data = Path(tempfile.mkdtemp(prefix="archiver-postgresql-"))
        self._postgresql_data = data
        password = data / "password"
        password.touch(mode=0o600)
        password.write_text(service["POSTGRES_PASSWORD"])
        as_user: list[str] = []
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            for path in (data, password):
                os.chown(path, user.pw_uid, user.pw_gid)
            as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        make = [*as_user, _postgresql_program("initdb"), "-D", str(data / "db"), "-U", service["POSTGRES_USER"]]
        made = subprocess.run(
            [*make, "-A", "scram-sha-256", "--no-sync", f"--pwfile={password}"],
            env=environment,
            cwd=data,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert made.returncode == 0, made.stderr
        serve = [*as_user, _postgresql_program("postgres"), "-D", str(data / "db"), "-p", str(self.ports["postgresql"])]
        serve += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        self._child("postgresql", serve, environment).wait_for_port(self.ports["postgresql"])

    def stop(self) -> None:
        """End everything, what depends on others first; PostgreSQL by its fast shutdown."""
        for name in ("bridge", "worker-catalogue-pack", "worker-lts", "temporal", "s3", "scicat", "postgresql"):
            if child := self.children.get(name):
                child.stop(signal.SIGINT if name == "postgresql" else signal.SIGTERM, seconds=30)
        if hasattr(self, "_postgresql_data"):
            shutil.rmtree(self._postgresql_data)


def _low_ports(count: int) -> list[int]:
    """Free ports below the ephemeral ones: Temporal's schema keeps its members' ports in PostgreSQL's ``smallint``."""
    candidates = random.sample(range(20_000, 32_000), 20 * count)
    free = [port for port in candidates if _refuses(port)]
    return free[:count]


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _postgresql_program(name: str) -> str:
    """From the PATH or where Debian puts it; the newest."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    program = shutil.which(name) or (str(found[-1]) if found else None)
    assert program, f"no {name} on this machine: install PostgreSQL (Debian: postgresql)"
    return program
