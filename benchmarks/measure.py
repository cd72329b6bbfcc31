"""What a run costs: wall time, CPU and memory of processes with their children, bytes in a directory."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

LOOK_SECONDS = 0.05


@dataclass
class Cost:
    """One run. Seconds, and MiB of resident memory summed over the processes (shared pages count in each)."""

    wall: float
    cpu: float
    rss: float
    servers: dict[str, float] = field(default_factory=dict)


def median(costs: Iterable[Cost]) -> Cost:
    """The median of each figure."""
    runs = list(costs)
    names = runs[0].servers
    return Cost(
        statistics.median(run.wall for run in runs),
        statistics.median(run.cpu for run in runs),
        statistics.median(run.rss for run in runs),
        {name: statistics.median(run.servers[name] for run in runs) for name in names},
    )


def tree(pid: int) -> list[psutil.Process]:
    """The process and all beneath it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes, their living descendants, and those that ended and were waited for."""
    total = 0.0
    for pid in pids:
        for process in tree(pid):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def resident_mib(pids: Iterable[int]) -> float:
    """Resident memory of these processes and their descendants."""
    total = 0
    for pid in pids:
        for process in tree(pid):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total / 2**20


def reset_peak(pid: int) -> None:
    """Begin anew to note the process's largest resident memory (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mib(pid: int) -> float:
    """The process's own largest resident memory since then (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def written_bytes(pid: int) -> int:
    """Bytes that the process caused to be written to a disk."""
    return int(psutil.Process(pid).io_counters().write_bytes)


def bytes_below(folder: Path) -> int:
    """Bytes of all files below ``folder`` now."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


class Watch:
    """Looks every ``LOOK_SECONDS`` while the context lasts; ``most`` is the largest value seen."""

    def __init__(self, look: Callable[[], float]) -> None:
        self._look = look
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.most = 0.0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self.most = max(self.most, self._look())


class Meter:
    """Around a run of processes that live on: ``ours`` by pid, ``servers`` by name and pid."""

    def __init__(self, ours: list[int], servers: Mapping[str, int]) -> None:
        self._ours = ours
        self._servers = servers
        self._watch = Watch(lambda: resident_mib(ours))
        self._began = 0.0
        self._cpu = 0.0
        self._served: dict[str, float] = {}

    def __enter__(self) -> Meter:
        os.sync()  # what was uploaded before is not written out on the measured one's account
        self._cpu = cpu_seconds(self._ours)
        self._served = {name: cpu_seconds([pid]) for name, pid in self._servers.items()}
        self._watch.__enter__()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        wall = time.perf_counter() - self._began
        self._watch.__exit__()
        served = {name: cpu_seconds([pid]) - self._served[name] for name, pid in self._servers.items()}
        self.cost = Cost(wall, cpu_seconds(self._ours) - self._cpu, self._watch.most, served)


def run_command(command: list[str], env: Mapping[str, str], servers: Mapping[str, int]) -> Cost:
    """Run a program to its end and measure it with all its children. Raises ``RuntimeError`` if it failed."""
    os.sync()
    before = {name: cpu_seconds([pid]) for name, pid in servers.items()}
    began = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    with Watch(lambda: resident_mib([process.pid])) as watch:
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {said.decode(errors='replace')[-2000:]}")
    served = {name: cpu_seconds([pid]) - before[name] for name, pid in servers.items()}
    return Cost(wall, used.ru_utime + used.ru_stime, watch.most, served)


class Served:
    """A program that answers each line of its standard input with one of its standard output. A context manager.

    What it does once, before its first request (imports, clients), is not measured: a worker serves for weeks.
    """

    def __init__(self, command: list[str], env: Mapping[str, str], log: Path, servers: Mapping[str, int]) -> None:
        self._log = log
        self._servers = servers
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                command, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
            )
        self._answer()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def ask(self, **request: Any) -> tuple[dict[str, Any], Cost]:
        """Its answer, and what that cost. Raises ``RuntimeError`` if it ended instead."""
        assert self._process.stdin is not None
        with Meter([self.pid], self._servers) as meter:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._answer()
        return answer, meter.cost

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}: {said}")
        answer: dict[str, Any] = json.loads(line)
        return answer
