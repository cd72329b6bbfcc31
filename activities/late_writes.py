"""What a late writer spoiled in SciCat is found and put right: jobs, retrievals and datasets that ended in the last days.

A step that stood still after its request was on the way cannot be kept from writing: SciCat takes it minutes later, over
what a second attempt or another job wrote. So the sweep compares what SciCat says with what Temporal knows of the end,
and, for archived datasets, with the bag on the LTS. It writes only what differs: SciCat mails at every update of a job.
What people wrote by hand is left alone.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution as Execution
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus

from activities.catalogue import OUR_WORDS, CatalogueActivities, catalogue_contents
from activities.connection import answering
from activities.retrieve_catalogue import RetrieveCatalogue, retrieved_now
from activities.running import beating, told_async
from archiver import model as m
from archiver.catalogue import payloads
from archiver.catalogue.admission import is_foreign
from archiver.catalogue.client import SciCat
from archiver.catalogue.queries import PAGE
from archiver.catalogue.records import Dataset, Job, Lifecycle
from archiver.errors import CatalogueFault, JobNotWritable, UnknownDataset, UnknownJob
from archiver.retrieval import wire as w
from archiver.settings import Settings
from workflows import steps
from workflows.visible import JOB_ID, MESSAGE, PID, STAGE

ENDED = (WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.FAILED, WorkflowExecutionStatus.CANCELED)
"""A workflow that ended so has told SciCat, or knows why it could not. One that was terminated has not."""
TERMINAL = ("finishedSuccessful", "finishedWithDatasetErrors", "finishedUnsuccessful")
JOB_TOLD: Mapping[str, type[m.FinishJobRequest]] = {
    steps.FINISH_JOB.name: m.FinishJobRequest,
    steps.FINISH_RETRIEVE_JOB.name: w.FinishRetrieveJobRequest,
}
"""Steps that tell SciCat the end of a job, with what they were asked."""
RETRIEVAL_TOLD: Mapping[str, type[w.FinishRetrieveRequest | w.FailRetrieveRequest]] = {
    steps.FINISH_RETRIEVE.name: w.FinishRetrieveRequest,
    steps.FAIL_RETRIEVE.name: w.FailRetrieveRequest,
}
DATASET_TOLD: Mapping[str, type[m.FailDatasetRequest | m.FinishDatasetRequest]] = {
    steps.FAIL_DATASET.name: m.FailDatasetRequest,
    steps.FINISH_DATASET.name: m.FinishDatasetRequest,
}
RETRIEVE_STATUS = {
    "retrieved": payloads.RETRIEVED,
    "failed": payloads.NOT_RETRIEVED,
    "stopped": payloads.NOTHING_RETRIEVED,
}
"""What SciCat is told of a retrieval, by the last stage of its workflow."""
NOT_ARCHIVED = (payloads.STARTED, payloads.FAILED, payloads.CONTENT, payloads.STOPPED)
"""What we write of a dataset that is not archived."""
ARCHIVED_STAGES = ("archived", "already archived")
RUNNING = WorkflowExecutionStatus.RUNNING
MOST = 20_000
"""Workflows of a kind that one sweep compares, those that ended last."""
EVENTS, PAGES = 50, 10
"""Of a history, from its end: what was told last is among its last events."""
SHOWN = 100
"""Characters of a status message that are compared with what the job's workflow left in Temporal's list."""
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")

logger = logging.getLogger("archiver.sweep")


@dataclass(frozen=True, slots=True)
class Run:
    """What is remembered of a workflow of Temporal's list; the list's own rows are large (P10)."""

    id: str
    run_id: str
    status: WorkflowExecutionStatus | None
    started: datetime
    stage: str
    job_id: str
    pid: str
    message: str

    @classmethod
    async def of(cls, row: WorkflowExecution) -> Run:
        """From a row of the list."""
        found = row.typed_search_attributes
        return cls(
            row.id,
            row.run_id,
            row.status,
            row.start_time,
            found.get(STAGE, ""),
            found.get(JOB_ID, ""),
            found.get(PID, ""),
            str((await row.memo()).get(MESSAGE, ""))[:SHOWN],
        )


class LateWrites:
    """On the catalogue queue. Every method may be repeated (P6)."""

    def __init__(
        self, settings: Settings, scicat: SciCat, archive: CatalogueActivities, retrieve: RetrieveCatalogue
    ) -> None:
        self._settings = settings
        self._scicat = scicat
        self._archive = archive
        self._retrieve = retrieve

    def all(self) -> list[Callable[..., Any]]:
        """The activities."""
        return [self.compare_ended, self.find_spoiled, self.restore_dataset]

    # --- jobs and retrievals ------------------------------------------------------------------------------------------

    @activity.defn(name="compare-ended")
    @told_async
    async def compare_ended(self, request: m.SweepRequest) -> m.ComparedResult:
        """Compare jobs and retrievals that ended in the last days with what SciCat says of them, and put that right."""
        done = _Done(dry_run=request.dry_run)
        async with beating("comparing jobs that ended") as say:
            for some in _pages(await self._ended("'ArchiveJob', 'RetrieveJob'", lambda run: run.id)):
                jobs = await self._scicat.some_jobs([run.job_id for run in some])
                for run in some:
                    done.compared += 1
                    say(files=done.compared)
                    job = jobs.get(run.job_id)
                    if job is not None and _differs(run, job):
                        await self._job(run, done)
            say(note="comparing retrievals that ended")
            for some in _pages(await self._ended("'RetrieveDataset'", lambda run: run.pid)):
                found = await self._scicat.lifecycles([run.pid for run in some])
                for run in some:
                    done.compared += 1
                    say(files=done.compared)
                    lifecycle = found.get(run.pid)
                    if lifecycle is not None and _other_retrieval(run, lifecycle):
                        await self._retrieval(run, done)
        return m.ComparedResult(compared=done.compared, corrected=done.corrected, lines=done.lines[: m.MAX_SWEPT])

    async def _job(self, run: Run, done: _Done) -> None:
        with answering():
            now = await activity.client().get_workflow_handle(run.id).describe()
        if now.run_id != run.run_id:
            return  # it was started again meanwhile
        try:
            wrote = await self.tell_again(run.id, run.run_id, dry_run=done.dry_run)
        except (UnknownJob, JobNotWritable):
            return
        except CatalogueFault as fault:
            done.say(f"{run.job_id}: {fault.one_line()}")
            return
        if wrote:
            done.corrected += 1
            done.say(f"job {run.job_id}: {done.would}told again that it ended as {run.stage}")

    async def tell_again(self, workflow_id: str, run_id: str, *, dry_run: bool) -> bool:
        """Write a job's end once more, as its workflow told it, if SciCat says something else by now in words of ours.

        Returns whether there was anything to write. Raises ``JobNotWritable``, ``UnknownJob``, ``CatalogueFault``.
        """
        told = await last_request(activity.client(), workflow_id, run_id, JOB_TOLD)
        if told is None:
            return False
        job = await self._scicat.job(told.job_id, lists=False)
        finish = self._retrieve if isinstance(told, w.FinishRetrieveJobRequest) else self._archive
        code, message = finish.verdict(told)
        update = payloads.job_update(code, message)
        if payloads.job_says(job, update) or not OUR_WORDS.match(job.status_message):
            return False
        if not dry_run:
            if isinstance(told, w.FinishRetrieveJobRequest):
                await self._retrieve.tell_end(told, run=run_id)
            else:
                await self._archive.tell_end(told)
        return True

    async def _retrieval(self, run: Run, done: _Done) -> None:
        pid = run.pid
        told = await last_request(activity.client(), run.id, run.run_id, RETRIEVAL_TOLD)
        if told is None or pid in await retrieved_now(activity.client()):
            return
        if isinstance(told, w.FinishRetrieveRequest):
            fields = payloads.lifecycle_retrieved(told)
        else:
            fields = payloads.lifecycle_retrieve_failed(told)
        try:
            if not done.dry_run:
                await self._scicat.patch_lifecycle(pid, fields)
        except UnknownDataset:
            return
        done.corrected += 1
        done.say(f"{pid}: {done.would}told again: {fields['retrieveStatusMessage']}")

    # --- datasets -----------------------------------------------------------------------------------------------------

    @activity.defn(name="find-spoiled")
    @told_async
    async def find_spoiled(self, request: m.SweepRequest) -> m.FoundLeftovers:
        """Datasets whose workflow ended in the last days, while SciCat calls them started, or one that was archived not so."""
        pids: list[str] = []
        what: list[str] = []
        async with beating("comparing datasets that ended") as say:
            ended = await self._ended("'ArchiveDataset'", lambda run: run.pid)
            for number, some in enumerate(_pages(ended)):
                say(files=number * PAGE)
                found = await self._scicat.lifecycles([run.pid for run in some])
                for run in some:
                    lifecycle = found.get(run.pid)
                    if lifecycle is not None and _is_spoiled(run, lifecycle, self._settings):
                        pids.append(run.pid)
                        said = lifecycle.archive_status_message
                        what.append(f"SciCat says {said!r}, its workflow ended as {run.stage}")
        first = m.MAX_FOUND
        return m.FoundLeftovers(pids=pids[:first], what=what[:first], more=max(0, len(pids) - first))

    @activity.defn(name="restore-dataset")
    @told_async
    async def restore_dataset(self, request: m.RestoreRequest) -> m.RestoreResult:
        """Report a dataset as archived again, if its complete bag, its records and its list of files agree.

        For the sweep, which keeps others from working on the dataset meanwhile. Anything else is left as it is.
        """
        async with beating("comparing the bag with SciCat") as say:
            dataset = await self._scicat.dataset(request.pid)
            if dataset is None:
                return m.RestoreResult(what="the dataset is gone")
            if (why := self._not_to_restore(dataset)) is not None:
                return m.RestoreResult(what=why)
            blocks = await self._scicat.datablocks(request.pid)
            if digest_of((one.archive_id, one.packed_size, _sha256(one.version)) for one in blocks) != request.records:
                return m.RestoreResult(what="SciCat's datablocks are not those of its bag: its status stays")
            now = await catalogue_contents(self._scicat, request.pid, say)
            if not request.contents.same(now):
                return m.RestoreResult(
                    what=f"SciCat lists {now.in_words()}, its bag holds {request.contents.in_words()}: its status stays"
                )
            said = dataset.lifecycle.archive_status_message
            location = self._settings.archive.storage_location
            try:
                await self._scicat.patch_lifecycle(request.pid, payloads.lifecycle_archived(request, location))
            except UnknownDataset:
                return m.RestoreResult(what="the dataset is gone")
        return m.RestoreResult(restored=True, what=f"{payloads.ARCHIVED} again, SciCat said {said!r}")

    def _not_to_restore(self, dataset: Dataset) -> str | None:
        lifecycle = dataset.lifecycle
        if is_foreign(lifecycle.storage_location, self._settings.archive):
            return "the dataset belongs to another archive"
        if lifecycle.is_archived:
            return "SciCat calls it archived"
        if lifecycle.archive_status_message not in NOT_ARCHIVED:
            return f"its status {lifecycle.archive_status_message!r} is not ours"
        return None

    # --- what ended ---------------------------------------------------------------------------------------------------

    async def _ended(self, kinds: str, key: Callable[[Run], str]) -> list[Run]:
        """Of each ``key`` the workflow that ended last, if it ended in the last days, told SciCat, and none runs now.

        At most the ``MOST`` that ended last: Temporal lists what runs first, then the newest end.
        """
        days = self._settings.sweep.compare_days
        if not days:
            return []
        latest: dict[str, Run] = {}
        ended = 0
        async for row in _listed(ended_query(kinds, datetime.now(UTC) - timedelta(days=days))):
            run = await Run.of(row)
            ended += run.status != RUNNING
            if ended > MOST:
                break
            there = latest.get(key(run))
            if there is None or (run.status == RUNNING, run.started) > (there.status == RUNNING, there.started):
                latest[key(run)] = run
        return [run for name, run in latest.items() if name and run.status in ENDED]


class _Done:
    """What was compared and put right."""

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.would = "would be " if dry_run else ""
        self.compared = 0
        self.corrected = 0
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        logger.info("%s", line)
        self.lines.append(line[: m.MAX_OUTCOME_MESSAGE])


async def last_request(client: Client, workflow_id: str, run_id: str, kinds: Mapping[str, type[Any]]) -> Any:
    """What the last of these steps was asked in a workflow that ended, read from the end of its history; None: there is none."""
    token = b""
    for _ in range(PAGES):
        with answering():
            answer = await client.workflow_service.get_workflow_execution_history_reverse(
                GetWorkflowExecutionHistoryReverseRequest(
                    namespace=client.namespace,
                    execution=Execution(workflow_id=workflow_id, run_id=run_id),
                    maximum_page_size=EVENTS,
                    next_page_token=token,
                )
            )
        for event in answer.history.events:
            if event.HasField("activity_task_scheduled_event_attributes"):
                scheduled = event.activity_task_scheduled_event_attributes
                if (kind := kinds.get(scheduled.activity_type.name)) is not None:
                    (request,) = await client.data_converter.decode(list(scheduled.input.payloads), [kind])
                    return request
        token = answer.next_page_token
        if not token:
            break
    return None


def ended_query(kinds: str, since: datetime) -> str:
    """The visibility query for workflows that run, or ended since then."""
    return f"WorkflowType IN ({kinds}) AND (ExecutionStatus = 'Running' OR CloseTime > '{since:%Y-%m-%dT%H:%M:%SZ}')"


def digest_of(blocks: Iterable[tuple[str, int, str]]) -> str:
    """One digest over all datablocks of a dataset: archiveId, packed bytes and SHA-256 of each."""
    rows = sorted(f"{archive_id}\t{packed}\t{sha256}\n" for archive_id, packed, sha256 in blocks)
    return hashlib.sha256("".join(rows).encode("utf-8", "surrogatepass")).hexdigest()


def _differs(run: Run, job: Job) -> bool:
    """Whether SciCat says something else of a job than its workflow left in Temporal's list. Read again before it is written."""
    if run.stage not in TERMINAL or not OUR_WORDS.match(job.status_message):
        return False
    return job.status_code != run.stage or not job.status_message.startswith(run.message)


def _other_retrieval(run: Run, lifecycle: Lifecycle) -> bool:
    if run.stage not in RETRIEVE_STATUS or not lifecycle.retrieved_by_us:
        return False
    return lifecycle.retrieve_status_message != RETRIEVE_STATUS[run.stage]


def _is_spoiled(run: Run, lifecycle: Lifecycle, settings: Settings) -> bool:
    if lifecycle.is_archived or is_foreign(lifecycle.storage_location, settings.archive):
        return False
    said = lifecycle.archive_status_message
    if said not in NOT_ARCHIVED:
        return False
    # What is not retrievable was never archived: then only a mark of ours that nobody took back is wrong.
    archived = run.stage in ARCHIVED_STAGES or lifecycle.retrievable
    return archived or (said == payloads.STARTED and lifecycle.archive_job == run.job_id)


def _sha256(version: str) -> str:
    match = _SHA256.search(version)
    return match[1] if match else ""


def _pages(runs: list[Run]) -> Iterable[list[Run]]:
    return (runs[start : start + PAGE] for start in range(0, len(runs), PAGE))


async def _listed(query: str) -> AsyncIterator[WorkflowExecution]:
    with answering():
        async for row in activity.client().list_workflows(query, page_size=1000):
            yield row
