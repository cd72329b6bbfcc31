"""One file out of a large datablock, by the manifest's index, against retrieving all of it."""

from __future__ import annotations

import gzip
import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from archiver.errors import StagingFault
from archiver.retrieval.keys import RetrievalKeys
from archiver.storage.objects import Bucket
from benchmarks import delivered
from benchmarks.bench import Bench
from benchmarks.measure import median
from benchmarks.reading_memory import Behind
from benchmarks.retrieved import datablock, manifest, request
from benchmarks.shelved import shelve
from benchmarks.table import Row
from benchmarks.workloads import GIB, MIB, Workload

MOST_PERCENT = 1
TIMES = 50


def single(bench: Bench, rounds: int, *, small: bool) -> list[Row]:
    """Another file each round, so that none is in the page cache; the reading process, without Temporal around it."""
    files = 512 if small else 8192
    workload = Workload(f"{files * MIB // GIB or 0.5:g} GiB in {files:,} random files of 1 MiB", files, MIB, "random")
    pid = "20.500.12345/one-of-many"
    bench.say(f"packing {workload.name}")
    shelve(bench.system.lts, pid, workload)
    block, all_files = datablock(bench, pid), delivered.of_manifest(manifest(bench, pid))
    packed = block.stat().st_size
    names = sorted(all_files)
    staging = Bucket(bench.settings.staging.bucket, bench.settings.s3, StagingFault)
    singles, read_bytes, through, tars = [], [], [], []
    with bench.reading() as reading:
        for k in range(rounds + 1):  # the first warms up
            wanted = [names[(2 * k + 1) * len(names) // (2 * rounds + 3)]]
            asked = request(pid, 1, wanted)
            keys = RetrievalKeys(bench.settings.staging.prefix, pid, asked.selection)
            staging.put(keys.wanted, gzip.compress(json.dumps(wanted).encode(), mtime=0))
            done, cost = reading.ask(retrieve=asked.model_dump())
            delivered.check(bench.retrieval, f"{pid}/", {name: all_files[name] for name in wanted})
            delivered.clear(bench.retrieval, f"{pid}/")
            staging.delete([keys.wanted])
            if k:
                singles.append(cost)
                read_bytes.append(done["read_chars"])
                bench.say(f"one file: {cost.wall:.3f} s, {cost.cpu:.2f} cpu-s, {done['read_chars']:,} B read")
        bench.say(f"all of {workload.name}")
        with Behind(bench.objects("retrieval") / pid, all_files, hashed=16) as behind:
            _, whole = reading.ask(retrieve=request(pid, 1).model_dump())
        behind.check()
        delivered.clear(bench.retrieval, f"{pid}/")
        for _ in range(max(1, rounds // 2)):
            _, cost = reading.ask(look_through=str(block))
            through.append(cost)
            tars.append(_tar(block))
            bench.say(f"to nowhere: {cost.wall:.1f} s, {cost.cpu:.1f} cpu-s; tar {tars[-1]:.1f} s")
    shutil.rmtree(bench.system.lts / pid)
    one, nowhere, tar = median(singles), median(through), statistics.median(tars)
    what = f"one file of 1 MiB out of {workload.name}"
    return [
        Row(
            f"{what}: bytes read, share of the datablock's {packed:,}",
            100 * max(read_bytes) / packed,
            " %",
            MOST_PERCENT,
            False,
            f"{max(read_bytes):,} B by the reading process, manifest included, most of {rounds}",
        ),
        Row(
            f"{what}: times faster than all of it, retrieved as files",
            whole.wall / one.wall,
            "",
            TIMES,
            True,
            f"{one.wall:.3f} s, {one.cpu:.2f} cpu-s; all of it {whole.wall:.1f} s, {whole.cpu:.1f} cpu-s",
        ),
        Row(
            f"{what}: times faster than all of it read, decoded and checked, to nowhere",
            nowhere.wall / one.wall,
            "",
            None,
            True,
            f"{nowhere.wall:.1f} s, {nowhere.cpu:.1f} cpu-s",
            f"{tar:.1f} s (tar -xzOf, checks no SHA-256)",
        ),
    ]


def _tar(block: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["tar", "-xzOf", str(block)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
