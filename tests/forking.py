"""Processes of ours for tests, forked from one that has imported everything: the imports are most of what each costs.

The fork server is started by the first test that needs it, one for each process of pytest, and ends with it.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.programs import ROOT
from cli.servers import Child, Forked, clean_environment, die_with_parent, fork

_lock = threading.Lock()


def _begin() -> None:
    """SIGINT as a terminal gives it, however the suite was started; and an end with ours."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent()


class Server:
    """The fork server, as its callers see it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forking", str(theirs.fileno())],
            env=clean_environment(PYTHONPATH=str(ROOT)),
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            preexec_fn=_begin,
        )
        theirs.close()
        self._lines = ours.makefile("rwb")

    def ask(self, **request: Any) -> Any:
        """Its answer to one request."""
        with _lock:
            self._lines.write(json.dumps(request).encode() + b"\n")
            self._lines.flush()
            return json.loads(self._lines.readline())


class Remote(Forked):
    """A child of the fork server."""

    def __init__(self, server: Server, pid: int) -> None:
        super().__init__(pid)
        self._server = server

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask(poll=self.pid)
        return self.returncode


_server: Server | None = None


def _get() -> Server | None:
    """None in a thread, whose end would be taken for the end of its process (PR_SET_PDEATHSIG)."""
    global _server
    if _server is None and threading.current_thread() is threading.main_thread():
        _server = Server()
    return _server


def _start(
    python: str, arguments: Sequence[str], out: Path, err: Path, env: Mapping[str, str], cwd: str
) -> Remote | None:
    server = _get()
    if server is None:
        return None
    fields = {"python": python, "arguments": list(arguments), "out": str(out), "err": str(err), "cwd": cwd}
    return Remote(server, server.ask(**fields, env=dict(env)))


class ForkedChild(Child):
    """A ``Child`` of one of our own programs."""

    def start(self) -> Child:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        arguments = self.command[3:] if self.command[1] == "-m" else self.command[2:]
        self._process = _start(self._python, [self.name, *arguments], self.log, self.log, self._env, "/")
        return self if self._process is not None else super().start()


def run(
    python: str, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], seconds: float
) -> subprocess.CompletedProcess[str] | None:
    """As ``subprocess.run`` with captured output; None where it cannot be forked."""
    with tempfile.TemporaryDirectory(prefix="forked-") as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = _start(python, ["archiver", *arguments], out, err, env, str(cwd))
        if process is None:
            return None
        try:
            code = process.wait(seconds)
        finally:
            process.kill()
        return subprocess.CompletedProcess(
            ["archiver", *arguments], code, out.read_text("utf-8", "replace"), err.read_text("utf-8", "replace")
        )


def main() -> None:
    """The fork server: one line of JSON for each request and each answer, until its caller is gone."""
    sys.modules["__main__"].__package__ = ""  # else click says "python -m tests.archiver" in its usage
    cli = importlib.import_module("cli")
    for name in ("worker", "bridge.serve", *(f"cli.{module.name}" for module in pkgutil.iter_modules(cli.__path__))):
        importlib.import_module(name)
    children: dict[int, Forked] = {}
    with socket.socket(fileno=int(sys.argv[1])) as caller, caller.makefile("rwb") as lines:
        for line in lines:
            request = json.loads(line)
            if "poll" in request:
                answer = children[request["poll"]].poll()
            else:
                with open(request["out"], "ab") as out, open(request["err"], "ab") as err:
                    child = fork(
                        request["python"],
                        request["arguments"],
                        out.fileno(),
                        request["env"],
                        errors=err.fileno(),
                        folder=request["cwd"],
                    )
                children[child.pid] = child
                answer = child.pid
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()


if __name__ == "__main__":
    main()
