"""Whole datasets back as files, LTS -> checked -> S3: our reading process and the many-pass way take turns on one datablock."""

from __future__ import annotations

import gzip
import os
import shutil
import time
from pathlib import Path

from archiver.retrieval import wire as w
from archiver.retrieval.keys import selection_of
from benchmarks import delivered
from benchmarks.bench import TINY, Bench
from benchmarks.measure import Cost, median
from benchmarks.table import Row
from benchmarks.workloads import GIB, Workload

TARGETS = {"detector": 4, "random": 2.5, "small": 10}
"""Wall against the many-pass way."""
REFERENCE = "reference"
"""Where the reference's objects go, in the same bucket."""
FEW = 100


class Ways:
    """Ours and the reference, both running, each of them with one tiny dataset behind it. A context manager."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._aside = bench.system.folder / "aside"
        self._ours, self._reference = bench.reading(), bench.reference_back()

    def __enter__(self) -> Ways:
        self._aside.mkdir()
        return self

    def __exit__(self, *error: object) -> None:
        self._ours.__exit__()
        self._reference.__exit__()
        shutil.rmtree(self._aside)

    async def warm_up(self) -> None:
        """What they do once is not measured."""
        pid = await self._bench.dataset(TINY)
        await self._bench.archive([pid])
        block = datablock(self._bench, pid)
        self.ours(pid)
        self.reference(pid, block)
        self._bench.forget(pid)

    def ours(self, pid: str) -> Cost:
        """The dataset's only datablock by the reading process; what it delivered is compared, then removed."""
        _, cost = self._ours.ask(retrieve=request(pid, 1).model_dump())
        return self._delivered(cost, pid, pid)

    def reference(self, pid: str, block: Path) -> Cost:
        """The many-pass way with this datablock of the dataset, compared likewise."""
        bench, prefix = self._bench, f"{REFERENCE}/{pid}"
        scratch = bench.system.folder / "scratch"
        scratch.mkdir()
        try:
            asked = {
                "block": str(block),
                "scratch": str(scratch),
                "bucket": bench.retrieval.name,
                "prefix": f"{prefix}/",
            }
            _, cost = self._reference.ask(**asked)
        finally:
            self._remove(scratch)
        return self._delivered(cost, pid, prefix)

    def _delivered(self, cost: Cost, pid: str, prefix: str) -> Cost:
        bench = self._bench
        delivered.check(bench.retrieval, f"{prefix}/", delivered.of_manifest(manifest(bench, pid)))
        self._remove(bench.objects("retrieval") / prefix)
        return cost

    def _remove(self, folder: Path) -> None:
        """Large files are removed. Many small ones are moved away, to be removed at the end: for minutes after it gave up
        an inode ext4 makes a new one only after a search that doubles what the S3 server spends on a small object."""
        if sum(len(names) for _, _, names in os.walk(folder)) < FEW:
            shutil.rmtree(folder)
        else:
            folder.rename(self._aside / str(time.monotonic_ns()))


async def retrieved(bench: Bench, workload: Workload, rounds: int) -> list[Row]:
    """Rows of one workload."""
    costs: dict[str, list[Cost]] = {"ours": [], "reference": [], "reference, plain tar": []}
    pid = await bench.dataset(workload)
    await bench.archive([pid])
    block = datablock(bench, pid)
    plain = bench.system.folder / "plain.tar"
    with gzip.open(block) as packed, plain.open("wb") as tar:
        shutil.copyfileobj(packed, tar, 2**20)
    with Ways(bench) as ways:
        await ways.warm_up()
        turns = [
            ("ours", lambda: ways.ours(pid)),
            ("reference", lambda: ways.reference(pid, block)),
            ("reference, plain tar", lambda: ways.reference(pid, plain)),
        ]
        for k in range(rounds):
            for name, turn in turns[k % 3 :] + turns[: k % 3]:
                costs[name].append(turn())
            last = ", ".join(f"{name} {of[-1].wall:.2f} s, {of[-1].cpu:.2f} cpu-s" for name, of in costs.items())
            bench.say(f"retrieving {workload.name}, round {k + 1}: {last}")
    plain.unlink()
    bench.forget(pid)
    return _rows(workload, *(median(of) for of in costs.values()))


def datablock(bench: Bench, pid: str) -> Path:
    """The first of the dataset."""
    return bench.system.lts / pid / "data" / "1.tar.gz"


def manifest(bench: Bench, pid: str) -> Path:
    """Its manifest."""
    return bench.system.lts / pid / "data" / "1.manifest.jsonl.gz"


def request(pid: str, n: int, files: list[str] | None = None) -> w.RetrieveDatablockRequest:
    """What ``RetrieveDatablock`` would ask of the reading process."""
    destination = w.Destination()
    selection = selection_of(destination, files or [])
    return w.RetrieveDatablockRequest(
        pid=pid, selection=selection, job_id="", destination=destination, n=n, of=1, largest_bytes=0
    )


def _rows(workload: Workload, ours: Cost, a: Cost, plain: Cost) -> list[Row]:
    kind = "small" if workload.files > 100 else workload.kind
    gib = workload.size_bytes / GIB
    name = f"retrieving {workload.name}"

    def s3(cost: Cost) -> str:
        return f"S3 {cost.servers['S3']:.2f}"

    return [
        Row(
            f"{name}: wall, times faster than the many-pass way",
            a.wall / ours.wall,
            "",
            TARGETS[kind],
            True,
            f"{ours.wall:.2f} s",
            f"{a.wall:.2f} s",
        ),
        Row(
            f"{name}: the same from a tar that is not compressed",
            plain.wall / ours.wall,
            "",
            None,
            True,
            f"{ours.wall:.2f} s",
            f"{plain.wall:.2f} s",
        ),
        Row(
            f"{name}: CPU of the reading process per GiB",
            ours.cpu / gib,
            " cpu-s",
            None,
            False,
            f"{ours.cpu:.2f} cpu-s in all",
            f"{a.cpu / gib:.2f} (plain tar {plain.cpu / gib:.2f})",
        ),
        Row(
            f"{name}: CPU, times less than the many-pass way",
            a.cpu / ours.cpu,
            "",
            None,
            True,
            f"{ours.cpu:.2f} cpu-s",
            f"{a.cpu:.2f} cpu-s",
        ),
        Row(
            f"{name}: servers' CPU, apart",
            sum(ours.servers.values()),
            " cpu-s",
            None,
            False,
            s3(ours),
            s3(a),
        ),
        Row(f"{name}: peak memory", ours.rss, " MiB", None, False, "", f"{a.rss:.0f} MiB"),
    ]
