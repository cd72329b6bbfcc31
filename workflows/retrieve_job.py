"""``RetrieveJob``: reads a SciCat job of type retrieve, runs one ``RetrieveDataset`` per dataset, and reports the end."""

from __future__ import annotations

from typing import NoReturn

from temporalio import workflow
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from archiver import model as m
    from archiver import text
    from archiver.pids import workflow_id
    from archiver.retrieval import wire as w

from workflows import priority, steps
from workflows.job import FIRST_HEARTBEAT_SECONDS, PAGE, DatasetsJob
from workflows.retrieve_dataset import RetrieveDataset
from workflows.visible import attributes


@workflow.defn(name="RetrieveJob")
class RetrieveJob(DatasetsJob):
    """One SciCat job of type retrieve."""

    @workflow.init
    def __init__(self, request: w.RetrieveJobRequest) -> None:
        super().__init__(request.job_id, request.state.job if request.state else None)
        self.request = request
        self.destination = request.state.destination if request.state else w.Destination()
        self.wanted: dict[str, w.Wanted] = {}

    @workflow.run
    async def run(self, request: w.RetrieveJobRequest) -> m.ArchiveJobResult:
        """Ends with what stands in SciCat; fails if the job as a whole could not be done."""
        return await self.to_its_end()

    async def begin(self) -> tuple[m.JobState, list[str]]:
        """As ``DatasetsJob``."""
        r = self.request
        begun = await steps.BEGIN_RETRIEVE_JOB.run(
            m.BeginJobRequest(job_id=r.job_id, pids=r.pids, workflow_id=workflow.info().workflow_id, limit=PAGE),
            policy=m.Policy(heartbeat_seconds=FIRST_HEARTBEAT_SECONDS),
            summary=f"read job {r.job_id} and set it in progress",
        )
        self.destination, self.message = begun.destination, begun.note
        state = m.JobState(total=begun.total, policy=begun.policy, owner_group=begun.owner_group)
        return state, self.take(begun.wanted)

    async def page(self) -> list[str]:
        """As ``DatasetsJob``."""
        r, offset = self.request, self.state.offset
        result = await steps.READ_RETRIEVE_PAGE.run(
            m.PageRequest(job_id=r.job_id, pids=r.pids, offset=offset, limit=PAGE),
            policy=self.state.policy,
            summary=f"datasets {offset + 1} to {min(offset + PAGE, self.state.total)}",
        )
        return self.take(result.wanted)

    def take(self, wanted: list[w.Wanted]) -> list[str]:
        """Remember what is wanted of the datasets of a page."""
        self.wanted = {one.pid: one for one in wanted}
        return list(self.wanted)

    def child_id(self, pid: str) -> str:
        """As ``DatasetsJob``: one at a time per pid and selection; another selection is another work."""
        return workflow_id("retrieve-dataset", pid, self.wanted[pid].selection)

    async def child(self, pid: str) -> m.DatasetOutcome:
        """As ``DatasetsJob``."""
        r, wanted = self.request, self.wanted[pid]
        what = f"{wanted.files} files of {pid}" if wanted.files else pid
        return await workflow.execute_child_workflow(
            RetrieveDataset.run,
            w.RetrieveDatasetRequest(
                pid=pid,
                selection=wanted.selection,
                job_id=r.job_id,
                destination=self.destination,
                policy=self.state.policy,
            ),
            id=self.child_id(pid),
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            search_attributes=attributes(
                job_id=r.job_id, pid=pid, owner_group=self.state.owner_group, operation="retrieve"
            ),
            static_summary=text.summary(f"retrieve {what} for job {r.job_id}"),
            static_details="One dataset. Stop it alone with the signal 'cancel' {reason, who}; its job goes on.",
            priority=priority.of_retrieval(self.state.total, self.state.owner_group),
        )

    async def report(self, problem: m.ErrorInfo | None) -> m.FinishJobResult:
        """As ``DatasetsJob``; the links are made and written by the step itself, and by nothing else (P8)."""
        return await steps.FINISH_RETRIEVE_JOB.run(
            w.FinishRetrieveJobRequest(
                **dict(self.finish_request(problem)), pids=self.request.pids, destination=self.destination
            ),
            policy=self.state.policy,
            summary="report the end of the job, with its links",
        )

    def go_on_as_new(self) -> NoReturn:
        """As ``DatasetsJob``."""
        state = w.RetrieveState(job=self.state, destination=self.destination)
        workflow.continue_as_new(self.request.model_copy(update={"state": state}))

    def good(self, counts: m.Counts) -> list[tuple[str, object]]:
        """As ``DatasetsJob``."""
        return [("retrieved", counts.retrieved), ("to", self.destination.path or self.destination.kind)]
