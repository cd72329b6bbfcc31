"""The servers that dev, demo and tests run: how they are started, waited for and stopped."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from archiver.errors import OwnFault
from archiver.model import SEARCH_ATTRIBUTES
from cli.programs import obtain

START_SECONDS = 60.0
STOP_SECONDS = 15.0
CALLERS = ("TEMPORAL_", "ARCHIVER_", "AWS_")
"""Variables that steer Temporal's clients, us and S3 clients: an embedded system must not follow them elsewhere."""

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a child before exec: SIGTERM when the parent dies, however it dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now, and that the system gives to nobody else for a minute.

    A connection on it is opened and closed from its own side: it then lingers (TIME_WAIT), and only who asks for this very
    port, as servers do, gets it. Temporal's dev server finds its own ports in the same way.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port: int = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as caller:
            listening.accept()[0].close()
            caller.recv(1)  # its end was seen: ours is the second
    return port


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no hindrance
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def clean_environment(**more: str) -> dict[str, str]:
    """Our environment without the caller's Temporal and archiver settings."""
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(CALLERS)}
    return {**kept, **more}


def forget_callers_settings() -> None:
    """The same for this very process, which then works on the embedded system and no other."""
    for key in [key for key in os.environ if key.upper().startswith(CALLERS)]:
        del os.environ[key]


class Forked:
    """A child that was forked, with what ``Child`` uses of ``subprocess.Popen``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Until it ended. Raises ``subprocess.TimeoutExpired``."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if timeout is not None and until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, signum: int) -> None:
        """Nothing if it has ended: its pid may be another's by then."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def can_fork(python: str) -> bool:
    """Whether this process has imported it, and no thread that a fork would leave behind half-way through something."""
    return python.partition(":")[0] in sys.modules and len(os.listdir("/proc/self/task")) == 1


def fork(
    python: str,
    arguments: Sequence[str],
    log: int,
    environment: Mapping[str, str],
    *,
    errors: int | None = None,
    folder: str = "",
) -> Forked:
    """Run ``module:function`` in a child of its own session, as if it had been started with these arguments.

    ``log``: the file descriptor that takes its output; ``errors``: the one for standard error, if that is another;
    ``folder``: its working directory, if not ours. The child has no other descriptor of ours, and our signals' handlers
    neither. ``function`` is called without arguments and returns the exit code, or None.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # memory that no collection touches stays shared
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    try:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                die_with_parent()
                if os.getppid() == parent:
                    if folder:
                        os.chdir(folder)
                    _become(arguments, log, log if errors is None else errors, environment)
                    code = _run(python)
            finally:
                os._exit(code)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        gc.unfreeze()
    return Forked(pid)


def _become(arguments: Sequence[str], out: int, errors: int, environment: Mapping[str, str]) -> None:
    """In a forked child: leave what is the parent's."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (errors, 2)):
        os.dup2(source, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(arguments)
    _be_listed_as(arguments)
    signal.set_wakeup_fd(-1)
    for signum in signal.Signals:
        if callable(signal.getsignal(signum)):  # what is ignored stays so, as with any child
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _be_listed_as(arguments: Sequence[str]) -> None:
    """Let ``ps`` show these words instead of the parent's, as far as there is room for them."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc_pid_stat(5)
    room = end - start - 1
    text = "\0".join(arguments).encode("utf-8", "surrogateescape")[:room]
    ctypes.memmove(start, text.ljust(room, b"\0"), room)


def _run(python: str) -> int:
    module, _, function = python.partition(":")
    try:
        code = getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  the last frame of a process
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


class Child:
    """A child process with its log file; started and stopped by pid.

    ``python`` is what ``command`` runs, as ``module:function``, where that is a program of ours. A process that has no
    threads and has imported it starts the child by a fork, which saves the imports: most of what a start costs.
    """

    def __init__(
        self, name: str, command: list[str], log: Path, env: Mapping[str, str] | None = None, *, python: str = ""
    ) -> None:
        self.name = name
        self.command = command
        self.log = log
        self._env = dict(env or clean_environment())
        self._python = python
        self.started = 0.0
        """When, by the monotonic clock."""
        self._process: subprocess.Popen[bytes] | Forked | None = None

    def start(self) -> Child:
        """Start it (again)."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        with self.log.open("ab") as log:
            if self._python and can_fork(self._python):
                arguments = self.command[3:] if self.command[1] == "-m" else self.command[2:]
                self._process = fork(self._python, [self.name, *arguments], log.fileno(), self._env)
                return self
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


DYNAMIC_CONFIG = (
    "matching.useNewMatcher=true",
    "matching.enableFairness=true",
    # The dev server has one history shard, and a shard looks for tasks 20 times a second: every step of a workflow would
    # wait for two such looks of 50 ms each. Servers with many shards do not feel that limit.
    "history.transferProcessorMaxPollRPS=1000",
    # A queue in one piece (docs/decisions.md): who goes first is kept within a piece only, and a worker of one slot asks at
    # one of four at a time.
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
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
        # A write-ahead log: a killed server loses nothing, and a step costs less than half of the time. What a power cut
        # takes from its end, the activities do again (P6).
        command += ["--sqlite-pragma", "journal_mode=wal", "--sqlite-pragma", "synchronous=normal"]
    for name, kind in SEARCH_ATTRIBUTES.items():
        command += ["--search-attribute", f"{name}={kind}"]
    for value in DYNAMIC_CONFIG:
        command += ["--dynamic-config-value", value]
    # Go's collector runs a quarter as often, for 100 MiB more: an eighth of the server's CPU.
    environment = clean_environment(GOGC=os.environ.get("GOGC", "400"))
    return Child("Temporal server", [*command, *(more or [])], folder / "logs" / "temporal.log", environment)


def s3_server(folder: Path, *, port: int, access_key: str, secret_key: str) -> Child:
    """A versitygw that keeps its buckets as folders below ``folder/s3``."""
    data = folder / "s3"
    data.mkdir(parents=True, exist_ok=True)
    environment = clean_environment(ROOT_ACCESS_KEY=access_key, ROOT_SECRET_KEY=secret_key)
    command = [str(obtain("versitygw")), "--port", f"127.0.0.1:{port}", "-q", "posix", str(data)]
    return Child("S3 server", command, folder / "logs" / "s3.log", environment)
