"""What the orchestration costs: one tiny dataset, there and back, and a hundred of them in one job."""

from __future__ import annotations

import os

from benchmarks import delivered
from benchmarks.bench import TINY, Bench
from benchmarks.measure import median
from benchmarks.retrieved import manifest
from benchmarks.table import Row

WITHIN_SECONDS = 1
BACK_WITHIN_SECONDS = 2
PER_MINUTE_AND_CORE = 200


async def tiny(bench: Bench, rounds: int) -> list[Row]:
    """One tiny dataset, job by job."""
    costs = []
    for _ in range(rounds):
        costs.append(await bench.archive([await bench.dataset(TINY)]))
    cost = median(costs)
    worst = max(run.wall for run in costs)
    return [
        Row(
            f"one tiny dataset ({TINY.files} x {TINY.size} B): job's start to final status",
            cost.wall,
            " s",
            WITHIN_SECONDS,
            False,
            f"median of {rounds}, slowest {worst:.2f} s; {cost.cpu:.2f} cpu-s, servers {sum(cost.servers.values()):.2f}",
        )
    ]


async def tiny_back(bench: Bench, rounds: int) -> list[Row]:
    """One tiny dataset retrieved, job by job, another each time: what lies in the bucket already is not delivered again."""
    costs = []
    for _ in range(rounds + 1):  # the first warms up
        pid = await bench.dataset(TINY)
        await bench.archive([pid])
        costs.append(await bench.retrieve(pid))
        delivered.check(bench.retrieval, f"{pid}/", delivered.of_manifest(manifest(bench, pid)))
        delivered.clear(bench.retrieval, f"{pid}/")
        bench.forget(pid)
    costs = costs[1:]
    cost, worst = median(costs), max(run.wall for run in costs)
    return [
        Row(
            f"one tiny dataset ({TINY.files} x {TINY.size} B) retrieved: job's submission to final status",
            cost.wall,
            " s",
            BACK_WITHIN_SECONDS,
            False,
            f"median of {rounds}, slowest {worst:.2f} s; {cost.cpu:.2f} cpu-s, servers {sum(cost.servers.values()):.2f}",
        )
    ]


async def hundred(bench: Bench, datasets: int, rounds: int) -> list[Row]:
    """Many tiny datasets in one job."""
    costs = []
    for k in range(rounds):
        pids = [await bench.dataset(TINY) for _ in range(datasets)]
        costs.append(await bench.archive(pids))
        bench.say(f"{datasets} tiny datasets, round {k + 1}: {costs[-1]}")
    cost, cores = median(costs), os.cpu_count() or 1
    per_minute = datasets / cost.wall * 60
    used = cost.cpu + sum(cost.servers.values())
    servers = ", ".join(f"{name} {seconds:.1f}" for name, seconds in cost.servers.items())
    return [
        Row(
            f"{datasets} tiny datasets in one job: datasets per minute and core",
            per_minute / cores,
            "",
            PER_MINUTE_AND_CORE,
            True,
            f"{cost.wall:.1f} s on {cores} cores, {per_minute:.0f} a minute; cpu-s: ours {cost.cpu:.1f}, {servers}",
        ),
        Row(f"{datasets} tiny datasets in one job: CPU per dataset, all processes", 1000 * used / datasets, " ms"),
    ]
