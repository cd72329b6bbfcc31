"""Measures the whole ArchiveJob beside two references on real servers, and prints one table: ``make benchmark``.

    python -m benchmarks.run [--small] [--large] [--rounds 3] [--only PART ...] [--markdown] [--dir DIR]

What each reference does, what is measured how, and figures: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine, table
from benchmarks.bench import Bench
from benchmarks.bridge import posts
from benchmarks.compared import compared
from benchmarks.memory import memory
from benchmarks.orchestrated import hundred, tiny, tiny_back
from benchmarks.reading_memory import reading_memory
from benchmarks.retrieved import retrieved
from benchmarks.single import single
from benchmarks.status import status
from benchmarks.sweep import sweep
from benchmarks.system import System
from benchmarks.verified import verified
from benchmarks.workloads import DETECTOR, RANDOM, SMALL_FILES
from cli.programs import ROOT
from cli.servers import forget_callers_settings

RETRIEVALS = {"retrieve-detector": DETECTOR, "retrieve-random": RANDOM, "retrieve-small-files": SMALL_FILES}
BACK = (*RETRIEVALS, "retrieve-one", "retrieve-tiny", "retrieve-memory")
PARTS = ("detector", "random", "small-files", "verify", "tiny", "hundred", *BACK, "memory", "bridge", "sweep", "status")
GROUPS = {"retrieve": BACK}


def main() -> int:
    """The command line; 0 also where a target is not reached: the table says it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a sixteenth of the data: to try it out; no figures")
    parser.add_argument("--large", action="store_true", help="the packing and reading processes also at 16 GiB")
    parser.add_argument("--rounds", type=int, default=3, help="of A, B and ours in turn")
    names = (*PARTS, *GROUPS)
    parser.add_argument("--only", nargs="+", choices=names, default=PARTS, metavar="PART", help=", ".join(names))
    parser.add_argument("--markdown", action="store_true", help="the table for benchmarks/README.md")
    parser.add_argument("--dir", type=Path, default=ROOT / "build", help="where everything lies: on a real disk")
    given = parser.parse_args()
    given.only = [part for name in given.only for part in GROUPS.get(name, (name,))]
    given.dir.mkdir(parents=True, exist_ok=True)
    if not machine.on_a_disk(given.dir):
        print(f"error    {given.dir} lies in memory\nnext     give --dir on a disk", file=sys.stderr)
        return 2
    forget_callers_settings()
    folder = Path(tempfile.mkdtemp(prefix="benchmark-", dir=given.dir))
    try:
        rows = asyncio.run(measure(folder, given))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lines = machine.describe(given.dir)
    lines += [
        f"when: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; command: python -m benchmarks.run {shlex.join(sys.argv[1:])}"
    ]
    if given.markdown:
        print("\n".join(f"- {line}" for line in lines) + "\n\n" + table.markdown(rows))
    else:
        print("\n".join(lines) + "\n\n" + table.plain(rows))
    return 0


async def measure(folder: Path, given: argparse.Namespace) -> list[table.Row]:
    """All parts that were asked for."""
    rows: list[table.Row] = []
    by = 16 if given.small else 1
    workloads = {"detector": DETECTOR, "random": RANDOM, "small-files": SMALL_FILES}
    with System(folder / "system") as system:
        bench = await Bench.start(system, say)
        system.start_workers()
        await bench.warm_up()
        for name, workload in workloads.items():
            if name in given.only:
                chosen = workload.smaller(by) if by > 1 else workload
                rows += await compared(bench, chosen, given.rounds)
        if "verify" in given.only:
            for workload in (DETECTOR, RANDOM):
                rows += await verified(bench, workload.smaller(by) if by > 1 else workload, given.rounds)
        if "tiny" in given.only:
            rows += await tiny(bench, max(given.rounds, 7))
        if "hundred" in given.only:
            rows += await hundred(bench, 20 if given.small else 100, given.rounds)
        for name, workload in RETRIEVALS.items():
            if name in given.only:
                rows += await retrieved(bench, workload.smaller(by) if by > 1 else workload, given.rounds)
        if "retrieve-one" in given.only:
            rows += single(bench, max(given.rounds, 5), small=given.small)
        if "retrieve-tiny" in given.only:
            rows += await tiny_back(bench, max(given.rounds, 7))
        if "retrieve-memory" in given.only:
            rows += await reading_memory(bench, small=given.small, large=given.large)
        if "memory" in given.only:
            rows += await memory(bench, small=given.small, large=given.large)
        if "status" in given.only:  # last: its workflows stay
            rows += await status(bench, 1000 if given.small else 10_000, given.rounds)
        if "bridge" in given.only:
            # What it starts would be run by the workers of another part: it stops them, and they stay stopped.
            rows += await posts(bench, 400 if given.small else 2000)
        if "sweep" in given.only:
            # The last: what it starts would be run by the workers of another part.
            rows += await sweep(bench, 500 if given.small else 10_000)
    return rows


def say(text: str) -> None:
    """What is being done, beside the table."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
