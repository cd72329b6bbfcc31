"""How many jobs the bridge takes, and how long a caller waits: posts over HTTP, each read from SciCat and started in Temporal."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import psutil

from benchmarks.bench import TINY, Bench
from benchmarks.table import Row
from cli import devdir
from cli.programs import ROOT
from cli.servers import Child, clean_environment

PER_SECOND = 200
P99_MS = 50
AT_ONCE = 8
"""Callers that wait for an answer each before they post again, for the rate."""


async def posts(bench: Bench, count: int) -> list[Row]:
    """Jobs through a bridge bound to one core: as it takes them, then at half of that rate and at the target's, for the waits.

    Nobody serves the queue of workflows meanwhile: what a job does later is not the bridge's.
    """
    bench.system.stop_workers()
    pid = await bench.dataset(TINY)
    jobs = [await bench.facility.job([pid]) for _ in range(2 * count + count // 2 + 1)]
    first = jobs.pop()
    folder = bench.system.folder
    command = [sys.executable, "-m", "cli.main", "-c", str(folder / devdir.CONFIG), "bridge"]
    bridge = Child("bridge", command, folder / "logs" / "bridge.log", clean_environment(PYTHONPATH=str(ROOT)))
    try:
        port = int(bench.system.info["bridge_url"].rpartition(":")[2])
        bridge.start().wait_for_port(port)
        os.sched_setaffinity(bridge.pid, {min(os.sched_getaffinity(0))})
        for thread in psutil.Process(bridge.pid).threads():
            os.sched_setaffinity(thread.id, {min(os.sched_getaffinity(0))})
        token = bench.system.info["bridge_token"]
        callers = await _connected(AT_ONCE, port, token)
        await asyncio.gather(*(caller.post(first) for caller in callers))  # connections and login are made once
        processes = {"bridge": bridge.pid, **bench.servers}
        started, before = time.monotonic(), _cpu(processes)
        todo = iter(jobs[:count])

        async def keep_posting(caller: _Caller) -> None:
            for job in todo:
                await caller.post(job)

        await asyncio.gather(*(keep_posting(caller) for caller in callers))
        took, after = time.monotonic() - started, _cpu(processes)
        half = count / took / 2
        # Connections anew: what lies idle through a slow phase is closed.
        callers = await _connected(4 * AT_ONCE, port, token)
        at_half = await _at_rate(callers, jobs[2 * count :], half)
        callers = await _connected(4 * AT_ONCE, port, token)
        at_target = await _at_rate(callers, jobs[count : 2 * count], PER_SECOND)
        waits = [(f"half of that, {half:.0f}/s", None, at_half), (f"{PER_SECOND}/s", P99_MS, at_target)]
    finally:
        bridge.stop()
    rows = [
        Row(
            f"bridge: {count} job posts, {AT_ONCE} callers, bridge on one core",
            count / took,
            "/s",
            PER_SECOND,
            ours="cpu-ms each: "
            + ", ".join(f"{name} {1000 * (after[name] - before[name]) / count:.1f}" for name in processes),
        ),
    ]
    for rate, target, each in waits:
        p50, p99 = (1000 * sorted(each)[int(len(each) * share)] for share in (0.5, 0.99))
        what = f"bridge: wait of a caller at {rate}, p99"
        rows.append(Row(what, p99, " ms", target, False, ours=f"p50 {p50:.1f} ms"))
    return rows


def _cpu(processes: dict[str, int]) -> dict[str, float]:
    """User and system seconds so far, by name."""
    return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in processes.items()}


async def _connected(count: int, port: int, token: str) -> list[_Caller]:
    return [await _Caller.connect(port, token) for _ in range(count)]


async def _at_rate(callers: list[_Caller], jobs: list[str], per_second: float) -> list[float]:
    """Seconds from when each post was due to its answer: one that has to queue for a caller is not made better by that."""
    free: asyncio.Queue[_Caller] = asyncio.Queue()
    for caller in callers:
        free.put_nowait(caller)
    start = time.monotonic()

    async def post(k: int, job: str) -> float:
        due = start + k / per_second
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        caller = await free.get()
        await caller.post(job)
        free.put_nowait(caller)
        return time.monotonic() - due

    return list(await asyncio.gather(*(post(k, job) for k, job in enumerate(jobs))))


class _Caller:
    """One connection that posts, with as little work of its own as can be: it shares the machine with what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader, self._writer, self._token = reader, writer, token

    @classmethod
    async def connect(cls, port: int, token: str) -> _Caller:
        return cls(*await asyncio.open_connection("127.0.0.1", port), token)

    async def post(self, job: str) -> None:
        """Post one job. Raises ``RuntimeError`` if it is not taken."""
        body = json.dumps({"id": job, "type": "archive"}).encode()
        lines = ["POST /api/v1/jobs HTTP/1.1", "Host: b", f"Authorization: Bearer {self._token}"]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        self._writer.write(head.encode() + body)
        said = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(said.partition("content-length: ")[2].partition("\r\n")[0])
        answer = await self._reader.readexactly(length)
        if " 201 " not in said.partition("\r\n")[0]:
            raise RuntimeError(answer.decode())
