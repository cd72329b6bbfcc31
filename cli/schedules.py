"""The schedules of the sweeps in Temporal, made and kept as the settings say by ``archiver setup`` (docs/sweep.md)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleDescription,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from archiver import model as m
from archiver.settings import SweepSettings
from workflows import steps
from workflows.visible import OPERATION

JOBS, LEFTOVERS, RETRIEVED = "archiver-sweep", "archiver-sweep-leftovers", "archiver-expire-retrieved"
SUMMARIES = {
    JOBS: "what SciCat has and nobody started",
    LEFTOVERS: "what terminated runs left",
    RETRIEVED: "retrieved data that nobody wants any more",
}
CATCH_UP = timedelta(minutes=1)
"""Sweeps that a Temporal that was down missed are not made up for: the next one finds it all."""

RUN_SECONDS = 1800.0
"""One run of ``Sweep`` looks again and again for so long: the Web UI's list would be full of runs of one look each. So long, too,
until a schedule that somebody paused, or a changed period, takes effect."""
STUCK = timedelta(hours=2)
"""A run that cannot go on (its code was changed beneath it) keeps the next one away no longer."""

KNOWN_SECONDS = 60

Step = tuple[str, bool]
"""What was looked at, and whether it had to be made, changed or removed."""


def wanted(settings: SweepSettings) -> dict[str, Schedule | None]:
    """Each schedule by its id; None: there is to be none."""
    periods = {
        JOBS: ("Sweep", settings.every_seconds),
        LEFTOVERS: ("SweepLeftovers", settings.leftovers_every_seconds),
        RETRIEVED: ("ExpireRetrieved", settings.retrieved_every_seconds),
    }
    return {name: _schedule(name, kind, seconds) if seconds else None for name, (kind, seconds) in periods.items()}


def _schedule(name: str, workflow: str, seconds: float) -> Schedule:
    looks = max(1, int(RUN_SECONDS / seconds)) if name == JOBS else 1
    return Schedule(
        action=ScheduleActionStartWorkflow(
            workflow,
            m.SweepRequest(looks=looks, every_seconds=seconds),
            id=name,
            execution_timeout=STUCK if name == JOBS else None,
            task_queue=steps.WORKFLOWS,
            typed_search_attributes=TypedSearchAttributes([SearchAttributePair(OPERATION, "sweep")]),
            static_summary=SUMMARIES[name],
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=seconds))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=CATCH_UP),
    )


async def keep_schedules(client: Client, settings: SweepSettings, *, dry_run: bool) -> list[Step]:
    """Make, change or remove what is not as it should be. One that somebody paused stays paused. May be repeated."""
    return [
        (
            f"schedule {name}" if schedule else f"no schedule {name}",
            await _keep(client, name, schedule, dry_run=dry_run),
        )
        for name, schedule in wanted(settings).items()
    ]


async def _create(client: Client, name: str, schedule: Schedule) -> None:
    # Search attributes that were just made are not known to every part of the server at once.
    for attempt in range(KNOWN_SECONDS):
        try:
            await client.create_schedule(name, schedule)
            return
        except RPCError as error:
            if error.status != RPCStatusCode.INVALID_ARGUMENT or attempt == KNOWN_SECONDS - 1:
                raise
        await asyncio.sleep(1)


async def _keep(client: Client, name: str, schedule: Schedule | None, *, dry_run: bool) -> bool:
    """Whether there was, or dry: would be, something to do."""
    handle = client.get_schedule_handle(name)
    there = None
    try:
        there = await handle.describe()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
    if (there is None and schedule is None) or (there and schedule and _same(there, schedule)):
        return False
    if dry_run:
        return True
    if schedule is None:
        await handle.delete()
    elif there is None:
        await _create(client, name, schedule)
    else:

        def changed(now: ScheduleUpdateInput) -> ScheduleUpdate:
            schedule.state = now.description.schedule.state
            return ScheduleUpdate(schedule)

        await handle.update(changed)
    return True


def _same(there: ScheduleDescription, schedule: Schedule) -> bool:
    """Whether the server has what is wanted; it fills in defaults, so what we set is compared, not the whole."""

    def facts(one: Schedule) -> tuple[object, ...]:
        action = one.action
        run: tuple[object, ...] = ()
        if isinstance(action, ScheduleActionStartWorkflow):
            run = (action.workflow, action.id, action.task_queue, action.execution_timeout)
        every = [interval.every for interval in one.spec.intervals]
        return run, every, one.policy.overlap, one.policy.catchup_window

    return facts(there.schedule) == facts(schedule)
