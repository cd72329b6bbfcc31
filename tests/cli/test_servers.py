"""Ports for servers that are started side by side, in many processes at once; children that are forked."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.programs import ROOT
from cli.servers import clean_environment, free_port, is_free


def test_a_free_port_is_given_once_and_to_nobody_who_asks_for_any() -> None:
    ports = [free_port() for _ in range(300)]
    assert len(set(ports)) == len(ports)
    others = [socket.socket() for _ in range(3000)]
    try:
        for other in others:
            other.bind(("127.0.0.1", 0))
        assert {other.getsockname()[1] for other in others}.isdisjoint(ports)
    finally:
        for other in others:
            other.close()


def test_a_server_can_listen_on_a_free_port() -> None:
    port = free_port()
    assert is_free(port)
    with socket.create_server(("127.0.0.1", port)) as server:
        assert not is_free(port)
        with socket.create_connection(server.getsockname()):
            pass


# --- children that are forked ----------------------------------------------------------------------------------------------

PARENT = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, {folder!r})
import child
from cli.servers import Child

signal.signal(signal.SIGTERM, lambda *_: print("the parent's handler", flush=True))
held = open({folder!r} + "/held", "w")
thread = threading.Event()
if {threads!r}:
    threading.Thread(target=thread.wait, daemon=True).start()
started = Child("a name", [sys.executable, {folder!r} + "/child.py", *{arguments!r}], Path({folder!r}) / "log",
                {{"PATH": "/usr/bin", "MINE": "yes"}}, python="child:main").start()
print(started.pid, flush=True)
{then}
"""

CHILD = """
import json, os, signal, sys, time

IMPORTED_BY = os.getpid()

def main():
    print(json.dumps({
        "forked": IMPORTED_BY != os.getpid(),
        "arguments": sys.argv[1:],
        "environment": sorted(os.environ),
        "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
        "session": os.getsid(0) == os.getpid(),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "stdin": sys.stdin.read(),
    }), flush=True)
    print("to standard error", file=sys.stderr)
    if sys.argv[1] == "raises":
        raise RuntimeError("on purpose")
    if sys.argv[1] == "exits":
        sys.exit(7)
    time.sleep(float(sys.argv[1]))
    return 3

if __name__ == "__main__":
    sys.exit(main())
"""


def parent(folder: Path, *arguments: str, threads: bool = False, then: str = "print(started._process.wait(30))") -> str:
    """The file of a program that starts a child and then does something."""
    (folder / "child.py").write_text(CHILD)
    file = folder / "parent.py"
    file.write_text(PARENT.format(folder=str(folder), arguments=list(arguments), threads=threads, then=then))
    return str(file)


def run(file: str) -> tuple[list[str], dict[str, Any], str]:
    """What the parent printed, what the child told, and its whole log."""
    environment = clean_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    log = (Path(file).parent / "log").read_text()
    return done.stdout.splitlines(), json.loads(log.splitlines()[0]), log


@pytest.mark.parametrize("threads", [False, True], ids=["forked", "executed"])
def test_a_child_has_nothing_of_its_parents_forked_or_not(tmp_path: Path, threads: bool) -> None:
    said, told, log = run(parent(tmp_path, "0", "two words", threads=threads))
    assert said[1] == "3"
    assert told.pop("forked") is not threads
    listing = told.pop("descriptors")[-1]
    assert listing == 3  # the one that listed them
    assert set(told.pop("environment")) <= {"PATH", "MINE", "LC_CTYPE"}
    assert told == {"arguments": ["0", "two words"], "session": True, "blocked": [], "stdin": ""}
    assert "to standard error" in log


@pytest.mark.parametrize(("how", "code", "logged"), [("raises", "1", "RuntimeError: on purpose"), ("exits", "7", "")])
def test_how_a_forked_child_ends_is_its_exit_code(tmp_path: Path, how: str, code: str, logged: str) -> None:
    said, told, log = run(parent(tmp_path, how))
    assert told["forked"]
    assert said[1:] == [code]
    assert logged in log


def test_a_forked_child_ends_by_the_signals_that_end_any_process(tmp_path: Path) -> None:
    told = "while not (started.log.exists() and 'standard' in started.log.read_text()): time.sleep(0.01)\n"
    for signum, code in (("SIGTERM", "-15"), ("SIGKILL", "-9")):
        (tmp_path / "log").unlink(missing_ok=True)
        then = f"{told}started.stop(signal.{signum})\nprint(started.exit_code)"
        said, _, _ = run(parent(tmp_path, "60", then=then))
        assert said[1:] == [code]


def test_a_forked_child_is_listed_by_its_name_and_dies_with_its_parent(tmp_path: Path) -> None:
    file = parent(tmp_path, "60", then="time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, file], env=clean_environment(PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    try:
        until = time.monotonic() + 30
        while child.cmdline()[:2] != ["a name", "60"]:
            assert time.monotonic() < until, child.cmdline()
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running()
