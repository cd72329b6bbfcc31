"""A dataset on the LTS as archiving leaves it, straight from memory: what is to be read is measured, not what wrote it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from archiver.datablock.bag import bag_files
from archiver.datablock.files import PlannedFile
from archiver.datablock.pack import pack
from archiver.datablock.plan import Plan
from archiver.datablock.record import DatablockRecord
from archiver.pids import pid_path
from archiver.progress import Silent
from benchmarks.workloads import MIB, TIME, Workload


def shelve(root: Path, pid: str, workload: Workload) -> None:
    """One datablock with its manifest and bag. Nothing of it stays in the page cache."""
    plan_id, data = "0" * 32, root / pid_path(pid) / "data"
    data.mkdir(parents=True)
    plan = Plan(plan_id, pid, "tar.gz", 1, 4 * MIB, 1, workload.files, workload.size_bytes, workload.size_bytes)
    files = ((PlannedFile(path, len(of), TIME, "v"), [of]) for path, of in workload.contents())
    packed = pack(files, plan=plan, n=1, progress=Silent())
    with (data / "1.tar.gz").open("wb") as out:
        for chunk in packed:
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    (data / "1.manifest.jsonl.gz").write_bytes(packed.manifest)
    done = packed.result
    record = DatablockRecord(
        n=1,
        plan_id=plan_id,
        size_bytes=done.size_bytes,
        packed_bytes=done.packed_bytes,
        files=done.files,
        sha256=done.sha256,
        manifest_sha256=hashlib.sha256(packed.manifest).hexdigest(),
        manifest_bytes=len(packed.manifest),
        level="host",
        how_read="O_DIRECT",
        verified_at=TIME,
    )
    bag = bag_files(
        pid=pid, plan_id=plan_id, format="tar.gz", records=[record], dataset={"pid": pid}, bagging_date=TIME[:10]
    )
    for name, content in bag.items():
        (data.parent / name).write_bytes(content)
