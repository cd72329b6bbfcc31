"""The three workloads: A, B and ours take turns on the same files; medians, ratios first."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.measure import Cost, median
from benchmarks.table import NOT_RUN, Row
from benchmarks.workloads import GIB, Workload

TARGETS = {"detector": (5, 2, 4), "random": (2.5, 2, 3.5), "small": (12, 2.5, 15)}
"""Wall against A, wall against B, CPU against A."""


async def compared(bench: Bench, workload: Workload, rounds: int) -> list[Row]:
    """Rows of one workload."""
    ours: list[Cost] = []
    a: list[Cost] = []
    b: list[Cost] = []
    for k in range(rounds):
        pid = await bench.dataset(workload)
        turns = [lambda pid=pid: a.append(bench.reference_a(pid)), lambda pid=pid: _b(bench, pid, b), None]
        for turn in turns[k % 3 :] + turns[: k % 3]:
            if turn is None:
                ours.append(await bench.archive([pid]))
            else:
                turn()
        bench.forget(pid)
        bench.say(
            f"{workload.name}, round {k + 1}: "
            + ", ".join(
                f"{n} {c[-1].wall:.2f} s, {c[-1].cpu:.2f} cpu-s" for n, c in (("A", a), ("B", b), ("ours", ours)) if c
            )
        )
    return _rows(workload, median(ours), median(a), median(b) if b else None, bench.b_lacks)


def _b(bench: Bench, pid: str, costs: list[Cost]) -> None:
    cost = bench.reference_b(pid)
    if cost is not None:
        costs.append(cost)


def _rows(workload: Workload, ours: Cost, a: Cost, b: Cost | None, lacks: list[str]) -> list[Row]:
    kind = "small" if workload.files > 100 else workload.kind
    against_a, against_b, cpu = TARGETS[kind]
    gib = workload.size_bytes / GIB
    missing = f"{NOT_RUN} (no {', '.join(lacks)})"
    name = workload.name

    def servers(cost: Cost) -> str:
        return ", ".join(f"{server} {used:.2f}" for server, used in cost.servers.items() if used >= 0.005)

    return [
        Row(
            f"{name}: wall, times faster than A",
            a.wall / ours.wall,
            "",
            against_a,
            True,
            f"{ours.wall:.2f} s",
            f"{a.wall:.2f} s",
        ),
        Row(
            f"{name}: wall, times faster than B",
            b.wall / ours.wall if b else None,
            "",
            against_b,
            True,
            f"{ours.wall:.2f} s",
            "",
            f"{b.wall:.2f} s" if b else missing,
        ),
        Row(
            f"{name}: client CPU, times less than A",
            a.cpu / ours.cpu,
            "",
            cpu,
            True,
            f"{ours.cpu:.2f} cpu-s",
            f"{a.cpu:.2f} cpu-s",
            f"{b.cpu:.2f} cpu-s" if b else missing,
        ),
        Row(
            f"{name}: client CPU per GiB",
            ours.cpu / gib,
            " cpu-s",
            None,
            False,
            "",
            f"{a.cpu / gib:.2f}",
            f"{b.cpu / gib:.2f}" if b else missing,
        ),
        Row(
            f"{name}: servers' CPU, apart",
            sum(ours.servers.values()),
            " cpu-s",
            None,
            False,
            servers(ours),
            servers(a),
            servers(b) if b else missing,
        ),
        Row(
            f"{name}: peak memory, all client processes",
            ours.rss,
            " MiB",
            None,
            False,
            "",
            f"{a.rss:.0f} MiB",
            f"{b.rss:.0f} MiB" if b else missing,
        ),
    ]
