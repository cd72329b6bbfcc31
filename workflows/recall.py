"""Waiting for datablocks that the LTS must restore before they can be read (Glacier): by durable timers, for days if need be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from archiver import model as m
    from archiver.retrieval import wire as w

from workflows import steps
from workflows.visible import as_failure, explain

T = TypeVar("T")

FIRST_LOOK = timedelta(seconds=1)
LONGEST_LOOK = timedelta(hours=1)
LONGEST_WAIT = timedelta(days=7)
"""The slowest restore that a store of today promises takes 2 days (S3: Deep Archive, Bulk)."""
TRIES = 3
"""Times a datablock is asked for whose restored copy ended before it was read."""


async def asked_for(pid: str, numbers: list[int], policy: m.Policy) -> None:
    """Ask for all of these datablocks at once, so that the store restores them together. Does not wait."""
    await steps.RECALL.run(
        w.RecallRequest(pid=pid, datablocks=numbers),
        policy=policy,
        summary=f"ask the LTS to restore {len(numbers)} datablocks of {pid}",
    )


async def readable(pid: str, n: int, policy: m.Policy) -> None:
    """Return when datablock ``n`` can be read. Raises ``ActivityError``, and ``ApplicationError`` after ``LONGEST_WAIT``."""
    since, pause = workflow.now(), FIRST_LOOK
    while True:
        result = await steps.RECALL.run(
            w.RecallRequest(pid=pid, datablocks=[n]),
            policy=policy,
            summary=f"see whether the LTS has restored datablock {n}",
        )
        if not result.pending:
            return
        if workflow.now() - since > LONGEST_WAIT:
            raise as_failure(
                m.ErrorInfo(
                    type="LtsFault",
                    kind="system",
                    message=f"the LTS has not restored datablock {n} of {pid} in {LONGEST_WAIT.days} days; next: see the "
                    "store's restore requests, then submit the job again: what is restored meanwhile is used",
                )
            )
        await workflow.sleep(pause, summary=f"the LTS is restoring datablock {n}")
        pause = min(pause * 2, LONGEST_LOOK)


async def read(pid: str, n: int, policy: m.Policy, recall: bool, work: Callable[[], Awaitable[T]]) -> T:
    """Do ``work``, which reads datablock ``n``, once it can be read; again if its restored copy has ended before.

    Raises as ``work`` and ``readable``.
    """
    for tries in range(1, TRIES + 1):
        if recall:
            await readable(pid, n, policy)
        try:
            return await work()
        except ActivityError as error:
            if explain(error).type != "NotRecalled" or tries == TRIES:
                raise
            recall = True
    raise AssertionError
