"""One file out of a large datablock, by the manifest's index, against reading all of the datablock."""

from __future__ import annotations

import gzip
import json
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
from benchmarks.retrieved import datablock, manifest, request
from benchmarks.table import Row
from benchmarks.workloads import GIB, MIB, Workload

MOST_PERCENT = 1
TIMES = 50
DIFFERENT = 64
"""Files that differ; the others have their bytes, in turns, and lie further apart than any compressor looks back."""


async def single(bench: Bench, rounds: int, *, small: bool) -> list[Row]:
    """Another file each round, so that none is in the page cache; the reading process, without Temporal around it."""
    files = 512 if small else 8192
    workload = Workload(f"{files * MIB // GIB or 0.5:g} GiB in {files:,} random files of 1 MiB", files, MIB, "random")
    pid = await bench.one_file_many_times(workload, different=DIFFERENT)
    await bench.archive([pid])
    block, all_files = datablock(bench, pid), delivered.of_manifest(manifest(bench, pid))
    packed = block.stat().st_size
    names = sorted(all_files)
    staging = Bucket(bench.settings.staging.bucket, bench.settings.s3, StagingFault)
    singles, read_bytes, wholes, tars = [], [], [], []
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
        for _ in range(max(1, rounds // 2)):
            _, cost = reading.ask(look_through=str(block))
            wholes.append(cost)
            tars.append(_tar(block))
            bench.say(f"all of it: {cost.wall:.1f} s, {cost.cpu:.1f} cpu-s; tar {tars[-1]:.1f} s")
    bench.forget(pid)
    one, whole, tar = median(singles), median(wholes), statistics.median(tars)
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
            f"{what}: times faster than reading, decoding and checking all of it to nowhere",
            whole.wall / one.wall,
            "",
            TIMES,
            True,
            f"{one.wall:.3f} s into the bucket, {one.cpu:.2f} cpu-s; all of it {whole.wall:.1f} s, {whole.cpu:.1f} cpu-s",
            f"{tar:.1f} s (tar -xzOf, to nowhere)",
        ),
    ]


def _tar(block: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["tar", "-xzOf", str(block)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
