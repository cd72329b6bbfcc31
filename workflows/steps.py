"""The one table of activities: name, task queue, time limits, retries and cancellation of every step.

Workflows call ``await PACK.run(request, summary="...", size_bytes=...)`` and know nothing else of an activity. Names are
registered names: renaming a function never breaks a history. Time limits that depend on sizes take the slowest
speed at which a step is still alive; a dead one is found by its heartbeat, not by its time limit.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError
from temporalio.workflow import ActivityCancellationType

with workflow.unsafe.imports_passed_through():
    from archiver import model as m
    from archiver import text
    from archiver.retrieval import wire as w

Request = TypeVar("Request", bound=m.Wire)
Result = TypeVar("Result", bound=m.Wire)

WORKFLOWS = "archiver"
CATALOGUE = "archiver-catalogue"
PACK_QUEUE = "archiver-pack"
LTS_SPACE = "archiver-lts-space"
LTS_COPY = "archiver-lts-copy"
LTS_VERIFY = "archiver-lts-verify"
LTS_BAG = "archiver-lts-bag"
LTS_READ = "archiver-lts-read"
DELETE = "archiver-delete"

MIB = 2**20
FOREVER = timedelta(days=3650)
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 120.0


@dataclass(frozen=True)
class Step(Generic[Request, Result]):
    """One activity as workflows see it."""

    name: str
    queue: str
    result: type[Result]
    base: timedelta
    """Time limit of one attempt for a payload of no bytes."""
    slowest_mib_per_second: float = 0
    """Adds ``size / speed`` to the limit; 0: the limit does not depend on sizes."""
    never_gives_up: bool = False
    """Retried without end: the truth must be told, however long that takes."""

    def retry(self, policy: m.Policy) -> RetryPolicy:
        """Back-off up to two minutes, for as many attempts as fill the time after which a system error is given up."""
        attempts = 0 if self.never_gives_up else _attempts(policy.give_up_seconds)
        return RetryPolicy(
            initial_interval=timedelta(seconds=FIRST_PAUSE_SECONDS),
            backoff_coefficient=2,
            maximum_interval=timedelta(seconds=LONGEST_PAUSE_SECONDS),
            maximum_attempts=attempts,
        )

    async def run(self, request: Request, *, policy: m.Policy, summary: str, size_bytes: int = 0) -> Result:
        """Run the activity to its end. Raises ``ActivityError`` when it failed for good or was cancelled.

        A cancel is waited out until the activity has stopped, or else the clean-up would race what it still writes. One
        that succeeded all the same does not make the cancel unheard: ``CancelledError`` is raised after it.
        """
        limit = self.base
        if self.slowest_mib_per_second:
            limit += timedelta(seconds=size_bytes / (self.slowest_mib_per_second * MIB))
        try:
            result: Result = await workflow.execute_activity(
                self.name,
                request,
                task_queue=self.queue,
                result_type=self.result,
                start_to_close_timeout=limit,
                heartbeat_timeout=timedelta(seconds=policy.heartbeat_seconds),
                retry_policy=self.retry(policy),
                cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                summary=text.summary(summary),
            )
        except ActivityError:
            # However it ended: one that hangs, and hears of no cancel, ends by its heartbeat's time limit.
            _raise_if_stopped(self.name)
            raise
        _raise_if_stopped(self.name)
        return result


def _raise_if_stopped(name: str) -> None:
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError(f"stopped after {name}")


def _attempts(seconds: float) -> int:
    """Attempts whose pauses together last at least ``seconds``."""
    attempts, pause = 1, FIRST_PAUSE_SECONDS
    while seconds > 0 and pause < LONGEST_PAUSE_SECONDS:
        attempts, seconds, pause = attempts + 1, seconds - pause, pause * 2
    return attempts + max(0, math.ceil(seconds / LONGEST_PAUSE_SECONDS))


HOUR = timedelta(hours=1)
CALL = timedelta(minutes=5)

# fmt: off
# --- catalogue: every SciCat call -------------------------------------------------------------------------------------
BEGIN_JOB = Step[m.BeginJobRequest, m.BeginJobResult]("begin-job", CATALOGUE, m.BeginJobResult, CALL)
READ_JOB_PAGE = Step[m.PageRequest, m.PageResult]("read-job-page", CATALOGUE, m.PageResult, CALL)
FINISH_JOB = Step[m.FinishJobRequest, m.FinishJobResult]("finish-job", CATALOGUE, m.FinishJobResult, CALL, never_gives_up=True)
BEGIN_DATASET = Step[m.BeginDatasetRequest, m.BeginDatasetResult]("begin-dataset", CATALOGUE, m.BeginDatasetResult, CALL)
READ_ORIGDATABLOCKS = Step[m.PidRequest, m.ListingResult]("read-origdatablocks", CATALOGUE, m.ListingResult, 6 * HOUR)
COMPARE = Step[m.CompareRequest, m.Done]("compare-with-catalogue", CATALOGUE, m.Done, 6 * HOUR)
REGISTER = Step[m.DatasetRef, m.RegisterResult]("register-datablocks", CATALOGUE, m.RegisterResult, 24 * HOUR)
FINISH_DATASET = Step[m.FinishDatasetRequest, m.Done]("finish-dataset", CATALOGUE, m.Done, CALL, never_gives_up=True)
FAIL_DATASET = Step[m.FailDatasetRequest, m.Done]("fail-dataset", CATALOGUE, m.Done, CALL, never_gives_up=True)

# --- pack: plan, pack, clean up ---------------------------------------------------------------------------------------
PLAN = Step[m.PlanRequest, m.PlanResult]("plan-dataset", PACK_QUEUE, m.PlanResult, 12 * HOUR)
PACK = Step[m.PackRequest, m.PackResult]("pack-datablock", PACK_QUEUE, m.PackResult, 2 * HOUR, 5)
CLEAN_STAGING = Step[m.PidRequest, m.Done]("clean-staging", PACK_QUEUE, m.Done, 2 * HOUR)

# --- the LTS: one process -----------------------------------------------------------------------------------------------
WAIT_FOR_SPACE = Step[m.SpaceRequest, m.SpaceResult]("wait-for-lts-space", LTS_SPACE, m.SpaceResult, FOREVER)
COPY = Step[m.CopyRequest, m.CopyResult]("copy-to-lts", LTS_COPY, m.CopyResult, 2 * HOUR, 5)
VERIFY = Step[m.VerifyRequest, m.VerifyResult]("verify-in-lts", LTS_VERIFY, m.VerifyResult, 24 * HOUR, 5)
SURVEY_LTS = Step[m.SurveyRequest, m.SurveyResult]("survey-lts", LTS_BAG, m.SurveyResult, HOUR)
PUBLISH_BAG = Step[m.DatasetRef, m.BagResult]("publish-bag", LTS_BAG, m.BagResult, 2 * HOUR)
RECORD_EVENTS = Step[m.DatasetRef, m.Done]("record-events", LTS_BAG, m.Done, HOUR)
ROLL_BACK_LTS = Step[m.DatasetRef, m.Done]("roll-back-lts", LTS_BAG, m.Done, HOUR)
QUARANTINE = Step[m.DatablockRef, m.Done]("quarantine-datablock", LTS_BAG, m.Done, HOUR)

# --- deletion: the only step that may remove source files ----------------------------------------------------------------
DELETE_SOURCES = Step[m.DatasetRef, m.DeleteResult]("delete-sources", DELETE, m.DeleteResult, 24 * HOUR, 5)

# --- retrieval: LTS -> verified -> retrieval bucket or directory -----------------------------------------------------------
BEGIN_RETRIEVE_JOB = Step[m.BeginJobRequest, w.BeginRetrieveJobResult]("begin-retrieve-job", CATALOGUE, w.BeginRetrieveJobResult, CALL)
READ_RETRIEVE_PAGE = Step[m.PageRequest, w.RetrievePage]("read-retrieve-page", CATALOGUE, w.RetrievePage, CALL)
FINISH_RETRIEVE_JOB = Step[w.FinishRetrieveJobRequest, m.FinishJobResult]("finish-retrieve-job", CATALOGUE, m.FinishJobResult, HOUR, never_gives_up=True)
BEGIN_RETRIEVE = Step[w.Selection, w.BeginRetrieveResult]("begin-retrieve-dataset", CATALOGUE, w.BeginRetrieveResult, 6 * HOUR)
FINISH_RETRIEVE = Step[w.FinishRetrieveRequest, m.Done]("finish-retrieve-dataset", CATALOGUE, m.Done, CALL, never_gives_up=True)
FAIL_RETRIEVE = Step[w.FailRetrieveRequest, m.Done]("fail-retrieve-dataset", CATALOGUE, m.Done, CALL, never_gives_up=True)
PLAN_RETRIEVE = Step[w.Selection, w.PlanRetrieveResult]("plan-retrieve", LTS_BAG, w.PlanRetrieveResult, 6 * HOUR)
RETRIEVE_DATABLOCK = Step[w.RetrieveDatablockRequest, w.RetrieveDatablockResult]("retrieve-datablock", LTS_READ, w.RetrieveDatablockResult, 24 * HOUR, 2)
RECALL = Step[w.RecallRequest, w.RecallResult]("recall-datablocks", LTS_BAG, w.RecallResult, 6 * HOUR)

# --- verification of what is archived: nothing is changed ---------------------------------------------------------------
FIND_HELD = Step[w.CheckDatasetRequest, w.HeldResult]("find-held", LTS_BAG, w.HeldResult, HOUR)
CHECK = Step[w.CheckRequest, w.CheckResult]("check-datablock", LTS_VERIFY, w.CheckResult, 24 * HOUR, 5)

# --- the sweeps (docs/sweep.md): they look; what is found is cleared by the steps above -----------------------------------
SWEEP_JOBS = Step[m.SweepRequest, m.SweepJobsResult]("sweep-jobs", CATALOGUE, m.SweepJobsResult, HOUR)
FIND_STARTED = Step[m.SweepRequest, m.FoundLeftovers]("find-started", CATALOGUE, m.FoundLeftovers, HOUR)
LOOK_AT_DATASET = Step[m.PidRequest, m.LookResult]("look-at-dataset", CATALOGUE, m.LookResult, CALL)
FIND_STAGED = Step[m.SweepRequest, m.FoundLeftovers]("find-staged", PACK_QUEUE, m.FoundLeftovers, 12 * HOUR)
FIND_SPOILED = Step[m.SweepRequest, m.FoundLeftovers]("find-spoiled", CATALOGUE, m.FoundLeftovers, HOUR)
COMPARE_ENDED = Step[m.SweepRequest, m.ComparedResult]("compare-ended", CATALOGUE, m.ComparedResult, HOUR)
RESTORE_DATASET = Step[m.RestoreRequest, m.RestoreResult]("restore-dataset", CATALOGUE, m.RestoreResult, HOUR)
FIND_BAG = Step[m.PidRequest, m.BagSummary]("find-bag", LTS_BAG, m.BagSummary, HOUR)
FIND_ON_LTS = Step[m.SweepRequest, m.FoundLeftovers]("find-on-lts", LTS_BAG, m.FoundLeftovers, 12 * HOUR)
EXPIRE = Step[m.SweepRequest, w.ExpireResult]("expire-retrieved", CATALOGUE, w.ExpireResult, 12 * HOUR)
# fmt: on

CHECKS: tuple[Step, ...] = (FIND_HELD, CHECK)  # type: ignore[type-arg]
"""Steps of verifications only."""
SWEEPS: tuple[Step, ...] = (  # type: ignore[type-arg]
    *(SWEEP_JOBS, FIND_STARTED, FIND_SPOILED, COMPARE_ENDED, LOOK_AT_DATASET),
    *(RESTORE_DATASET, FIND_BAG, FIND_STAGED, FIND_ON_LTS, EXPIRE),
)
"""Steps of the sweeps only."""
ALL: tuple[Step, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Step))  # type: ignore[type-arg]
"""Every step, for the worker's and the tests' check that each has exactly one activity."""
