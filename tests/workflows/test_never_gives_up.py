"""What ends an attempt: faults of our own are tried again where the truth must be told; a stop is no failure."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio import activity
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.testing import ActivityEnvironment

from activities.running import told, told_async
from archiver import model as m
from archiver.errors import ArchiverError, LtsFault, NotRecalled, Stopped
from workflows import steps


def failed_with(error: Exception, maximum_attempts: int) -> ApplicationError:
    """As Temporal gets it from a step with this policy."""

    @activity.defn(name="finish-job")
    @told
    def step() -> None:
        raise error

    environment = ActivityEnvironment()
    environment.info = replace(environment.info, retry_policy=RetryPolicy(maximum_attempts=maximum_attempts))
    with pytest.raises(ApplicationError) as caught:
        environment.run(step)
    return caught.value


@pytest.mark.parametrize("error", [TypeError("ours"), KeyError("etag"), RuntimeError("!"), OSError("disk")])
def test_p5_a_fault_of_our_own_is_tried_again_in_steps_that_never_give_up(error: Exception) -> None:
    assert not failed_with(error, maximum_attempts=0).non_retryable
    assert failed_with(error, maximum_attempts=2000).non_retryable is not isinstance(error, OSError)


def test_the_steps_that_tell_scicat_never_give_up() -> None:
    never = {step.name for step in steps.ALL if step.retry(m.Policy()).maximum_attempts == 0}
    told_by = {"finish-job", "finish-dataset", "fail-dataset"}
    told_by |= {"finish-retrieve-job", "finish-retrieve-dataset", "fail-retrieve-dataset"}
    assert never == told_by


@pytest.mark.parametrize(
    ("error", "benign"),
    [
        (Stopped("told to stop"), True),
        (NotRecalled("still on tape", retryable=False), True),
        (LtsFault("it broke"), False),
        (TypeError("ours"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_stops_and_not_yets_are_no_failures_to_metrics(error: ArchiverError, benign: bool) -> None:
    category = failed_with(error, maximum_attempts=5).category
    assert category == (ApplicationErrorCategory.BENIGN if benign else ApplicationErrorCategory.UNSPECIFIED)


async def test_a_stop_by_the_workers_shutdown_is_no_failure_to_metrics() -> None:
    @activity.defn(name="finish-job")
    @told_async
    async def step() -> None:
        raise Stopped("the worker leaves")

    environment = ActivityEnvironment()
    environment.info = replace(environment.info, heartbeat_timeout=timedelta(seconds=60))
    with pytest.raises(ApplicationError) as caught:
        await environment.run(step)
    assert (caught.value.category, caught.value.non_retryable) == (ApplicationErrorCategory.BENIGN, False)
