"""Verification against ``dd iflag=direct | openssl dgst -sha256`` on the same datablock, both past the page cache."""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import time
from pathlib import Path

from archiver.datablock.verifier import VerifierProcess
from archiver.progress import Silent
from benchmarks.bench import Bench
from benchmarks.table import Row
from benchmarks.workloads import MIB, Workload

NEEDED = 0.8


async def verified(bench: Bench, workload: Workload, rounds: int) -> list[Row]:
    """Archive it, then read its datablock back in turns."""
    pid = await bench.dataset(workload)
    await bench.archive([pid])
    block = bench.system.lts / pid / "data" / "1.tar.gz"
    manifest = (block.parent / "1.manifest.jsonl.gz").read_bytes()
    verifier = VerifierProcess()
    ours: list[float] = []
    theirs: list[float] = []
    try:
        verifier.verify(block, manifest, direct_io="auto", progress=Silent())
        for _ in range(rounds):
            theirs.append(_timed_openssl(block))
            started = time.perf_counter()
            result = verifier.verify(block, manifest, direct_io="auto", progress=Silent())
            ours.append(time.perf_counter() - started)
    finally:
        verifier.stop()
    size = block.stat().st_size / MIB
    bench.forget(pid)
    mine, other = statistics.median(ours), statistics.median(theirs)
    return [
        Row(
            f"verification, {workload.name}: share of openssl's speed on the packed bytes",
            other / mine,
            "",
            NEEDED,
            True,
            f"{size / mine:.0f} MiB/s packed, {workload.size_bytes / MIB / mine:.0f} MiB/s plain ({result.how_read})",
            "",
            f"{size / other:.0f} MiB/s (dd iflag=direct bs=4M | openssl dgst -sha256)",
        )
    ]


def _timed_openssl(block: Path) -> float:
    command = f"dd if={shlex.quote(os.fspath(block))} iflag=direct bs=4M status=none | openssl dgst -sha256"
    started = time.perf_counter()
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
