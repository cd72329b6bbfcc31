"""The packing process, one slot, apart from all else: peak memory by size and by number of files; and no scratch disk."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.measure import Watch, bytes_below, peak_mib, reset_peak, written_bytes
from benchmarks.system import PACK_APART
from benchmarks.table import Row
from benchmarks.workloads import GIB, KIB, MIB, Workload

LIMIT_MIB = 320
WITHIN = 1.1


async def memory(bench: Bench, *, small: bool, large: bool) -> list[Row]:
    """Each in a new process: what one run took must not help the next.

    The large datasets are detector counts, one file many times over: what is packed is measured here, not the disk.
    """
    files = [1_000, 5_000] if small else [1_000, 100_000]
    sizes = [64 * MIB, 256 * MIB] if small else [GIB, 16 * GIB] if large else [GIB]
    total = files[-1] * 10 * KIB  # the same bytes in few and in many files: only their number differs
    rows, scratch, written = [], 0.0, 0
    groups = {
        "size": [Workload(_size(size), max(4, size // GIB), size // max(4, size // GIB), "detector") for size in sizes],
        "files": [
            Workload(f"{total // MIB} MiB in {count:,} files", count, total // count, "random") for count in files
        ],
    }
    for of, group in groups.items():
        peaks = []
        for workload in group:
            bench.say(f"packing process: {workload.name}")
            pid = await (bench.one_file_many_times if of == "size" else bench.dataset)(workload)
            bench.system.stop_workers()
            bench.system.start_workers(PACK_APART, slots={"pack": 1})
            packer = bench.system.worker("pack").pid
            before = written_bytes(packer)
            reset_peak(packer)
            with Watch(lambda: bytes_below(bench.system.temporary)) as watch:
                await bench.archive([pid])
            scratch = max(scratch, watch.most)
            written = max(written, written_bytes(packer) - before)
            peaks.append(peak_mib(packer))
            bench.say(f"packing process: {workload.name}: {peaks[-1]:.0f} MiB")
            rows.append(
                Row(f"packing process, one slot, peak memory: {workload.name}", peaks[-1], " MiB", LIMIT_MIB, False)
            )
            bench.forget(pid)
        if len(peaks) > 1:
            names = " and ".join(workload.name for workload in group)
            rows.append(
                Row(f"packing process: largest over smallest, {names}", max(peaks) / min(peaks), "", WITHIN, False)
            )
        elif of == "size":
            rows.append(Row("packing process: 16 GiB against 1 GiB (--large)", None, "", WITHIN, False))
    rows.append(Row("scratch: bytes in the workers' temporary directory, most seen", scratch, " B", 0, False))
    rows.append(Row("scratch: bytes the packing process wrote to any disk, most", written / MIB, " MiB"))
    bench.system.stop_workers()
    bench.system.start_workers()
    return rows


def _size(size: int) -> str:
    return f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB"
