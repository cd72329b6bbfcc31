"""``archiver doctor``: tries every right and connection that the system needs; says what is missing, and what mends it.

Leaves nothing behind, and changes nothing that is not its own. docs/doctor.md lists all checks.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from archiver.errors import ArchiverError
from archiver.settings import Settings
from cli.doctor import buckets, catalogue, landing, lts, lts_bucket, machine, retrieval, temporal
from cli.doctor.check import Check, Outcome, Result, in_thread, look
from cli.doctor.ground import Ground, Say
from cli.setup import set_up

CHECKS: tuple[Check, ...] = (
    *machine.CHECKS,
    *temporal.CHECKS,
    *catalogue.CHECKS,
    *buckets.CHECKS,
    *retrieval.CHECKS,
    *landing.CHECKS,
    *lts.CHECKS,
    *lts_bucket.CHECKS,
)


async def examine(settings: Settings, *, dataset: str | None = None, deep: bool = False) -> list[Result]:
    """Run all checks; one result for each that this system needs."""
    ground = Ground(settings, dataset=dataset, deep=deep)
    try:
        return await look(CHECKS, ground, ground.seconds)
    finally:
        await in_thread(ground.sweep_scratch)
        await ground.close()


async def mend(settings: Settings, say: Say) -> None:
    """Make what ``archiver setup`` makes, but for the marker of the LTS. What cannot be made, the checks tell of."""
    try:
        await set_up(settings, dry_run=False, say=say, marker=False)
    except ArchiverError as error:
        say(f"not mended: {error.one_line()}")


def report(results: list[Result], *, problems: bool = False) -> tuple[str, dict[str, Any]]:
    """For people, and for ``--json``; with ``problems`` only what is not ok, but the counts of all."""
    counts = Counter(result.finding.outcome for result in results)
    results = [result for result in results if not problems or result.finding.outcome is not Outcome.OK]
    width = max((len(result.check.name) for result in results), default=0)
    lines = []
    for result in results:
        line = f"{result.finding.outcome:<11}  {result.check.name:<{width}}  {result.finding.found}"
        lines.append(line + (f"\n{'':<{width + 15}}next: {result.remedy}" if result.remedy else ""))
    parts = [
        f"{counts[Outcome.FAIL]} failed",
        f"{counts[Outcome.WARN]} warning{'' if counts[Outcome.WARN] == 1 else 's'}",
        f"{counts[Outcome.NOT_CHECKED]} not checked",
        f"{counts[Outcome.OK]} ok",
    ]
    data = {
        "ok": not counts[Outcome.FAIL],
        "counts": {
            "ok": counts[Outcome.OK],
            "warn": counts[Outcome.WARN],
            "fail": counts[Outcome.FAIL],
            "not_checked": counts[Outcome.NOT_CHECKED],
        },
        "checks": [
            {
                "check": result.check.name,
                "outcome": result.finding.outcome.name.lower(),
                "found": result.finding.found,
                "next": result.remedy,
                "seconds": round(result.seconds, 3),
            }
            for result in results
        ],
    }
    return "\n".join([*lines, ", ".join(parts)]), data


def table() -> str:
    """All checks as a table in Markdown: what docs/doctor.md holds."""
    rows = [f"| {check.name} | {check.tries} | {check.remedy} |" for check in CHECKS]
    return "\n".join(["| check | tries | what mends it |", "|---|---|---|", *rows])
