"""The process that reads the LTS, one slot: peak memory by size of the datablock, in a retrieve job through the whole system."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from benchmarks import delivered
from benchmarks.bench import Bench
from benchmarks.measure import peak_mib, reset_peak
from benchmarks.memory import LIMIT_MIB, WITHIN
from benchmarks.retrieved import manifest
from benchmarks.system import DEV_LAYOUT
from benchmarks.table import Row
from benchmarks.workloads import GIB, KIB, MIB, Workload


async def reading_memory(bench: Bench, *, small: bool, large: bool) -> list[Row]:
    """Each in a new process: what one run took must not help the next."""
    sizes = [64 * MIB, 256 * MIB] if small else [GIB, 16 * GIB] if large else [GIB]
    files = 1000 if small else 20_000
    workloads = [Workload(_size(size), max(4, size // GIB), size // max(4, size // GIB), "detector") for size in sizes]
    many = Workload(f"{files:,} files of 10 KiB", files, 10 * KIB, "random")
    rows, peaks = [], []
    for workload in [*workloads, many]:
        bench.say(f"reading process: {workload.name}")
        pid = await (bench.dataset if workload is many else bench.one_file_many_times)(workload)
        bench.system.stop_workers()
        bench.system.start_workers(slots={"lts_read": 1})
        await bench.archive([pid])
        bench.system.stop_workers()
        bench.system.start_workers(DEV_LAYOUT, slots={"lts_read": 1})
        reader = bench.system.worker("lts").pid
        reset_peak(reader)
        with Behind(bench.objects("retrieval") / pid, delivered.of_manifest(manifest(bench, pid))) as behind:
            cost = await bench.retrieve(pid)
        behind.check()
        peak = peak_mib(reader)
        bench.say(f"reading process: {workload.name}: {peak:.0f} MiB, {cost.wall:.1f} s")
        rows.append(Row(f"reading process, one slot, peak memory: {workload.name}", peak, " MiB", LIMIT_MIB, False))
        if workload is not many:
            peaks.append(peak)
        delivered.clear(bench.retrieval, f"{pid}/")
        bench.forget(pid)
    if len(peaks) > 1:
        names = " and ".join(workload.name for workload in workloads)
        rows.append(Row(f"reading process: largest over smallest, {names}", max(peaks) / min(peaks), "", WITHIN, False))
    else:
        rows.append(Row("reading process: 16 GiB against 1 GiB (--large)", None, "", WITHIN, False))
    bench.system.stop_workers()
    bench.system.start_workers()
    return rows


class Behind:
    """Walks behind a delivery: each object that is complete is looked at where the S3 server keeps it, and its bytes are freed.

    It keeps its name and size, as a hole: what is retrieved is measured, not the disk. One of ``hashed`` has its SHA-256
    compared, the others their size: where time is measured too, it must not be spent on that. A context manager.
    """

    def __init__(self, folder: Path, wanted: delivered.Wanted, *, hashed: int = 1) -> None:
        self._folder = folder
        self._wanted = wanted
        self._hashed = hashed
        self._found: delivered.Wanted = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Behind:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raises ``RuntimeError`` unless all were seen with the bytes of the manifest."""
        if self._found != self._wanted:
            wrong = sum(self._found.get(path) != of for path, of in self._wanted.items())
            raise RuntimeError(f"{wrong} of {len(self._wanted)} objects are not what was archived")

    def _run(self) -> None:
        while not self._ended.wait(0.2):
            self._look()
        self._look()

    def _look(self) -> None:
        for path in self._wanted.keys() - self._found.keys():
            there = self._folder / path
            if not there.is_file():
                continue
            with there.open("r+b") as file:
                size, (_, digest) = os.fstat(file.fileno()).st_size, self._wanted[path]
                if len(self._found) % self._hashed == 0:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                self._found[path] = (size, digest)
                file.truncate(0)
                file.truncate(size)


def _size(size: int) -> str:
    return f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB"
