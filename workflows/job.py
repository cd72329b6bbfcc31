"""A SciCat job: read, one child workflow per dataset, a bounded number at a time, and the end reported.

``DatasetsJob`` is what every kind of job does; ``ArchiveJob`` says which steps and which child are an archive job's.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import NoReturn

from temporalio import workflow
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    FailureError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from archiver import model as m
    from archiver import text
    from archiver.pids import workflow_id

from workflows import priority, steps
from workflows.dataset import ArchiveDataset
from workflows.tasks import protected, windowed
from workflows.visible import (
    BYTES_TOTAL,
    MESSAGE,
    UNTOLD,
    WELL,
    as_failure,
    attributes,
    details,
    explain,
    heard,
    show,
    size,
)

PAGE = 200
"""Datasets per page; a run drains its window and may continue as new between pages (P9)."""
DATASETS_PER_RUN = 400
FIRST_HEARTBEAT_SECONDS = 15.0
"""Of the first step, before the settings are known: a call of SciCat that beats every 5 s."""
FIRST_LOOK = timedelta(seconds=30)
LONGEST_LOOK = timedelta(minutes=15)


class DatasetsJob:
    """A job over datasets. A subclass names its steps and its child, and has ``@workflow.init`` and ``@workflow.run``."""

    def __init__(self, job_id: str, state: m.JobState | None) -> None:
        self.job_id = job_id
        self.first = state is None
        self.stage = "started"
        self.state = state or m.JobState()
        self.running: list[str] = []
        self.others: dict[str, m.DatasetOutcome | None] = {}
        self.early: dict[str, m.DatasetOutcome | None] = {}
        """Of our own datasets: what they tell while they still clear up."""
        self.stop: m.StopRequest | None = None
        self.work: asyncio.Task[None] | None = None
        self.message = ""

    # --- what others may ask or say ------------------------------------------------------------------------------

    @workflow.query(description="Stage, counts, running datasets and outcomes of this job")
    def progress(self) -> m.JobProgress:
        """Answer the ``progress`` query."""
        return m.JobProgress(
            job_id=self.job_id,
            stage=self.stage,
            total=self.state.total,
            counts=self.state.counts,
            running=self.running,
            waiting_for_others=[pid for pid, outcome in self.others.items() if outcome is None],
            outcomes=self.state.outcomes,
            message=self.message,
        )

    @workflow.signal(description="Stop this job and its datasets: {reason, who}")
    def cancel(self, *given: object) -> None:
        """Stop as a cancel would, with a reason and a name, or none. A second one changes nothing."""
        request = heard(m.StopRequest, given or ({},))
        if self.stop is None and request is not None:
            self.stop = request
            if self.work is not None:
                self.work.cancel(self.stop.as_text())

    @workflow.signal(description="A dataset that another job has in work tells its outcome")
    def dataset_done(self, *given: object) -> None:
        """Take the outcome of a dataset that this job waits for."""
        outcome = heard(m.DatasetOutcome, given)
        for waiting in (self.others, self.early):
            if outcome is not None and outcome.pid in waiting:
                waiting[outcome.pid] = outcome

    # --- the run --------------------------------------------------------------------------------------------------

    async def to_its_end(self) -> m.ArchiveJobResult:
        """Ends with what stands in SciCat; fails if the job as a whole could not be done."""
        problem: m.ErrorInfo | None = None
        self.work = asyncio.create_task(self.all_datasets())
        if self.stop is not None:
            self.work.cancel()
        try:
            await self.work
        except (asyncio.CancelledError, ActivityError, ChildWorkflowError, ApplicationError) as error:
            if is_cancelled_exception(error) or self.stop is not None:
                self.stop = self.stop or m.StopRequest.from_text(workflow.cancellation_reason())
            else:
                problem = explain(error)
        return await protected(self.finish(problem))

    async def all_datasets(self) -> None:
        """Pages of datasets, each through the window."""
        page: list[str] = []
        if self.first:
            self.state, page = await self.begin()
        started = 0
        while self.state.offset < self.state.total:
            if started >= DATASETS_PER_RUN or workflow.info().is_continue_as_new_suggested():
                await workflow.wait_condition(workflow.all_handlers_finished)
                self.go_on_as_new()
            page = page or await self.page()
            self.at("datasets")
            await windowed(page, self.dataset, self.state.policy.datasets_at_once)
            started += len(page)
            self.state = self.state.model_copy(update={"offset": self.state.offset + len(page)})
            if not page:
                raise ApplicationError(
                    f"job {self.job_id} lists fewer datasets than the {self.state.total} it had at the start",
                    type="CatalogueFault",
                    non_retryable=True,
                )
            page = []

    async def dataset(self, pid: str) -> None:
        """One dataset to its outcome; never raises for a failure of the dataset (P7)."""
        self.running.append(pid)
        try:
            outcome = await self.outcome_of(pid)
        except ChildWorkflowError as error:
            if is_cancelled_exception(error):
                if self.stop is not None or workflow.cancellation_reason() is not None:
                    self.note(m.DatasetOutcome(pid=pid, outcome="cancelled", message="stopped with its job"))
                    raise
                outcome = m.DatasetOutcome(pid=pid, outcome="cancelled", message="cancelled in Temporal")
            else:
                info = explain(error)
                outcome = m.DatasetOutcome(pid=pid, outcome="failed", message=info.message, error=info)
        finally:
            self.running.remove(pid)
        self.note(outcome)

    async def outcome_of(self, pid: str) -> m.DatasetOutcome:
        """Run the dataset's workflow, or wait for the one that has it in work already and share its outcome (P3)."""
        look = FIRST_LOOK
        while True:
            try:
                return await self.own_outcome(pid)
            except WorkflowAlreadyStartedError:
                self.others[pid] = None
                try:
                    handle = workflow.get_external_workflow_handle(self.child_id(pid))
                    await handle.signal("subscribe", m.Subscribe(workflow_id=workflow.info().workflow_id))
                    await workflow.wait_condition(
                        lambda: self.others[pid] is not None,
                        timeout=look,
                        timeout_summary=text.summary(f"another job has {pid} in work"),
                    )
                except asyncio.TimeoutError:  # noqa: UP041  what wait_condition raises
                    look = min(look * 2, LONGEST_LOOK)
                except FailureError as error:
                    # It ended between our start and our signal: start it ourselves.
                    if is_cancelled_exception(error):
                        raise
                finally:
                    shared = self.others.pop(pid, None)
                if shared is not None:
                    return shared

    async def own_outcome(self, pid: str) -> m.DatasetOutcome:
        """Run the dataset's workflow; what it still has to clear when it tells its outcome is not waited for."""
        self.early[pid] = None
        child = asyncio.create_task(self.child(pid))
        told = asyncio.create_task(workflow.wait_condition(lambda: self.early.get(pid) is not None))
        try:
            try:
                await workflow.wait([child, told], return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as stopped:
                # Who asked, and why, is read there.
                child.cancel(*stopped.args)
                await workflow.wait([child, told], return_when=asyncio.FIRST_COMPLETED)
            return child.result() if child.done() else self.early[pid] or await child
        finally:
            told.cancel()
            del self.early[pid]

    def note(self, outcome: m.DatasetOutcome) -> None:
        """Count an outcome and keep it, failures before successes, at most ``MAX_OUTCOMES``."""
        short = outcome.model_copy(update={"message": text.cut(outcome.message, m.MAX_OUTCOME_MESSAGE)})
        if short.error is not None:
            told = text.cut(short.error.message, m.MAX_OUTCOME_MESSAGE)
            short = short.model_copy(update={"error": short.error.model_copy(update={"message": told})})
        outcomes = [*self.state.outcomes, short]
        if len(outcomes) > m.MAX_OUTCOMES:
            good = next((i for i, kept in enumerate(outcomes) if kept.outcome in m.GOOD), -1)
            outcomes.pop(good)
        self.state = self.state.model_copy(
            update={
                "outcomes": outcomes,
                "counts": self.state.counts.plus(outcome),
                "size_bytes": self.state.size_bytes + outcome.size_bytes,
            }
        )
        self.details()

    async def finish(self, problem: m.ErrorInfo | None) -> m.ArchiveJobResult:
        """Write the terminal status; end the workflow the way the job ended."""
        self.at("reporting", BYTES_TOTAL.value_set(self.state.size_bytes))
        if problem is not None and problem.type in ("UnknownJob", "ForeignJob"):
            self.failed(problem.message)
            raise as_failure(problem)
        try:
            finished = await self.report(problem)
        except ActivityError as error:
            info = explain(error)
            self.failed(info.message)
            self.at(UNTOLD)
            raise as_failure(info) from None
        self.message = finished.message
        if finished.status_code != WELL:
            self.failed(finished.message)
        self.at(finished.status_code)
        if problem is not None:
            raise as_failure(problem)
        if self.stop is not None and workflow.cancellation_reason() is not None:
            raise asyncio.CancelledError(finished.message)
        return m.ArchiveJobResult(
            job_id=self.job_id,
            status_code=finished.status_code,
            message=finished.message,
            counts=self.state.counts,
        )

    def failed(self, message: str) -> None:
        """Keep what ``archiver jobs`` says of a job that did not end well."""
        self.message = message
        workflow.upsert_memo({MESSAGE: text.one_line(message, m.MAX_OUTCOME_MESSAGE * 2)})

    def finish_request(self, problem: m.ErrorInfo | None) -> m.FinishJobRequest:
        """What SciCat is to be told of the end."""
        return m.FinishJobRequest(
            job_id=self.job_id,
            total=self.state.total,
            counts=self.state.counts,
            outcomes=self.state.outcomes,
            problem=problem,
            stopped=self.stop,
        )

    def at(self, stage: str, *more: object) -> None:
        """Enter a stage, and let people see it."""
        self.stage = stage
        show(stage, self.rows(), *more)  # type: ignore[arg-type]

    def details(self) -> None:
        """Refresh the table without an event."""
        details(self.stage, self.rows())

    def rows(self) -> list[tuple[str, object]]:
        """The table of current details."""
        counts = self.state.counts
        rows: list[tuple[str, object]] = [
            ("job", self.job_id),
            ("datasets", f"{counts.total} of {self.state.total} done"),
            *self.good(counts),
            ("failed", f"{counts.content_errors} content, {counts.system_errors} system"),
            ("cancelled", counts.cancelled),
            ("bytes", size(self.state.size_bytes)),
        ]
        if self.message:
            rows.append(("message", self.message))
        return rows

    # --- what a kind of job says ------------------------------------------------------------------------------------

    async def begin(self) -> tuple[m.JobState, list[str]]:
        """Read the job and set it in progress; its first page of pids."""
        raise NotImplementedError

    async def page(self) -> list[str]:
        """The next page of pids."""
        raise NotImplementedError

    def child_id(self, pid: str) -> str:
        """The workflow id of a dataset's work."""
        raise NotImplementedError

    async def child(self, pid: str) -> m.DatasetOutcome:
        """Run a dataset's workflow. Raises ``WorkflowAlreadyStartedError`` if another job has it in work."""
        raise NotImplementedError

    async def report(self, problem: m.ErrorInfo | None) -> m.FinishJobResult:
        """Tell SciCat."""
        raise NotImplementedError

    def go_on_as_new(self) -> NoReturn:
        """Continue as new with ``state``."""
        raise NotImplementedError

    def good(self, counts: m.Counts) -> list[tuple[str, object]]:
        """The rows of current details on datasets that ended well."""
        raise NotImplementedError


@workflow.defn(name="ArchiveJob")
class ArchiveJob(DatasetsJob):
    """One SciCat job of type archive."""

    @workflow.init
    def __init__(self, request: m.ArchiveJobRequest) -> None:
        super().__init__(request.job_id, request.state)
        self.request = request

    @workflow.run
    async def run(self, request: m.ArchiveJobRequest) -> m.ArchiveJobResult:
        """Ends with what stands in SciCat; fails if the job as a whole could not be done."""
        return await self.to_its_end()

    async def begin(self) -> tuple[m.JobState, list[str]]:
        """As ``DatasetsJob``."""
        r = self.request
        begun = await steps.BEGIN_JOB.run(
            m.BeginJobRequest(job_id=r.job_id, pids=r.pids, workflow_id=workflow.info().workflow_id, limit=PAGE),
            policy=m.Policy(heartbeat_seconds=FIRST_HEARTBEAT_SECONDS),
            summary=f"read job {r.job_id} and set it in progress",
        )
        self.message = begun.note
        return m.JobState(total=begun.total, policy=begun.policy, owner_group=begun.owner_group), begun.pids

    async def page(self) -> list[str]:
        """As ``DatasetsJob``."""
        r, offset = self.request, self.state.offset
        result = await steps.READ_JOB_PAGE.run(
            m.PageRequest(job_id=r.job_id, pids=r.pids, offset=offset, limit=PAGE),
            policy=self.state.policy,
            summary=f"datasets {offset + 1} to {min(offset + PAGE, self.state.total)}",
        )
        return result.pids

    def child_id(self, pid: str) -> str:
        """As ``DatasetsJob``: one at a time per pid."""
        return workflow_id("archive-dataset", pid)

    async def child(self, pid: str) -> m.DatasetOutcome:
        """As ``DatasetsJob``."""
        r = self.request
        return await workflow.execute_child_workflow(
            ArchiveDataset.run,
            m.ArchiveDatasetRequest(pid=pid, job_id=r.job_id, policy=self.state.policy),
            id=self.child_id(pid),
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            search_attributes=attributes(job_id=r.job_id, pid=pid, owner_group=self.state.owner_group),
            static_summary=text.summary(f"archive {pid} for job {r.job_id}"),
            static_details="One dataset. Stop it alone with the signal 'cancel' {reason, who}; its job goes on.",
            priority=priority.of_dataset(self.state.total, self.state.owner_group),
        )

    async def report(self, problem: m.ErrorInfo | None) -> m.FinishJobResult:
        """As ``DatasetsJob``."""
        return await steps.FINISH_JOB.run(
            self.finish_request(problem), policy=self.state.policy, summary="report the end of the job"
        )

    def go_on_as_new(self) -> NoReturn:
        """As ``DatasetsJob``."""
        workflow.continue_as_new(self.request.model_copy(update={"state": self.state}))

    def good(self, counts: m.Counts) -> list[tuple[str, object]]:
        """As ``DatasetsJob``."""
        return [("archived", counts.archived), ("already archived", counts.already_archived)]
