"""A restore that takes a day, or never ends, on a clock of the test: how often the LTS is asked, and when it is given up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from temporalio.exceptions import ActivityError, ApplicationError, RetryState

from archiver import model as m
from archiver.retrieval import wire as w
from workflows import recall, steps

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Clock:
    """The workflow's time, and an LTS that restores in ``takes``."""

    def __init__(self, takes: timedelta) -> None:
        self.now = START
        self.takes = takes
        self.pauses: list[timedelta] = []
        self.looks = 0

    async def sleep(self, pause: timedelta, *, summary: str) -> None:
        self.pauses.append(pause)
        self.now += pause

    async def look(self, request: w.RecallRequest, *, policy: m.Policy, summary: str) -> w.RecallResult:
        self.looks += 1
        return w.RecallResult(pending=[] if self.now - START >= self.takes else request.datablocks)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Clock:
    """The clock of the workflow."""
    made = Clock(request.param)
    monkeypatch.setattr(recall.workflow, "now", lambda: made.now)
    monkeypatch.setattr(recall.workflow, "sleep", made.sleep)
    monkeypatch.setattr(steps.Step, "run", lambda step, *given, **more: made.look(*given, **more))
    return made


@pytest.mark.parametrize("clock", [timedelta(0), timedelta(minutes=5), 12 * HOUR, 48 * HOUR], indirect=True)
async def test_a_restore_is_waited_for_with_growing_intervals(clock: Clock) -> None:
    await recall.readable("a/b", 1, m.Policy())
    assert clock.pauses == sorted(clock.pauses)
    assert max(clock.pauses, default=HOUR) <= HOUR
    # Never later than an hour, or than as long again as it took; a day costs three dozen looks.
    assert clock.now - START <= clock.takes + min(HOUR, clock.takes + timedelta(seconds=1))
    assert clock.looks <= 13 + clock.takes / HOUR


@pytest.mark.parametrize("clock", [timedelta(days=1000)], indirect=True)
async def test_a_restore_that_never_ends_is_given_up_in_words(clock: Clock) -> None:
    with pytest.raises(ApplicationError, match="has not restored datablock 7 of a/b in 7 days") as caught:
        await recall.readable("a/b", 7, m.Policy())
    assert caught.value.type == "LtsFault"
    assert timedelta(days=7) < clock.now - START <= timedelta(days=7, hours=1)


@pytest.mark.parametrize("clock", [timedelta(0)], indirect=True)
@pytest.mark.parametrize("recall_first", [True, False])
async def test_a_copy_that_ends_again_and_again_is_no_endless_work(clock: Clock, recall_first: bool) -> None:
    reads = 0

    def failed(type: str) -> ActivityError:
        error = ActivityError(
            "failed",
            scheduled_event_id=1,
            started_event_id=2,
            identity="",
            activity_type="retrieve-datablock",
            activity_id="1",
            retry_state=RetryState.NON_RETRYABLE_FAILURE,
        )
        error.__cause__ = ApplicationError("ended", type=type)
        return error

    async def ends() -> str:
        nonlocal reads
        reads += 1
        raise failed("NotRecalled")

    with pytest.raises(ActivityError):
        await recall.read("a/b", 1, m.Policy(), recall_first, ends)
    assert (reads, clock.looks) == (recall.TRIES, recall.TRIES if recall_first else recall.TRIES - 1)

    async def other() -> str:
        raise failed("IntegrityMismatch")

    looks = clock.looks
    with pytest.raises(ActivityError):
        await recall.read("a/b", 1, m.Policy(), False, other)
    assert clock.looks == looks
