"""``RetrieveDataset``: one dataset, or the wanted files of it, from the LTS to where the requester can fetch them.

``RetrieveDatablock`` is one of its datablocks. Nothing is called retrieved before every wanted byte was checked (P2).
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ChildWorkflowError, WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from archiver import model as m
    from archiver import text
    from archiver.pids import workflow_id
    from archiver.retrieval import wire as w

from workflows import recall, steps
from workflows.tasks import protected, windowed
from workflows.visible import (
    BYTES_TOTAL,
    DATABLOCK_COUNT,
    OWNER_GROUP,
    as_failure,
    attributes,
    details,
    explain,
    show,
    size,
)
from workflows.work import DatasetWork

FIRST_LOOK = timedelta(seconds=1)
LONGEST_LOOK = timedelta(minutes=5)
MENDS = 5
"""Times that what is staged is stored again because it was lost or damaged, before that is a failure of the retrieval."""
DATABLOCKS_PER_RUN = 300
"""After so many child workflows the run continues as new, so that its history stays small (P9)."""


@workflow.defn(name="RetrieveDatablock")
class RetrieveDatablock:
    """One datablock: read from the LTS once, every byte of it that is delivered checked against its manifest."""

    @workflow.init
    def __init__(self, request: w.RetrieveDatablockRequest) -> None:
        self.request = request
        self.stage = "queued"

    @workflow.query(description="Stage of this datablock; live bytes are in the pending activity's heartbeat")
    def progress(self) -> m.DatablockProgress:
        """Answer the ``progress`` query."""
        r = self.request
        return m.DatablockProgress(pid=r.pid, n=r.n, of=r.of, stage=self.stage)

    @workflow.run
    async def run(self, request: w.RetrieveDatablockRequest) -> w.RetrieveDatablockResult:
        """Raises the failed step's error. What was delivered of it is whole files, which the next run finds intact."""
        if request.recall:
            self.at("restored by the LTS")
        result = await recall.read(request.pid, request.n, request.policy, request.recall, self.deliver)
        self.at("delivered")
        return result

    async def deliver(self) -> w.RetrieveDatablockResult:
        """Read, check and deliver what is wanted of it."""
        request = self.request
        self.at("read from LTS")
        return await steps.RETRIEVE_DATABLOCK.run(
            request,
            policy=request.policy,
            summary=f"read datablock {request.n} of {request.pid}, check and deliver it",
            size_bytes=request.largest_bytes,
        )

    def at(self, stage: str) -> None:
        """Enter a stage."""
        self.stage = stage
        r = self.request
        details(stage, [("dataset", r.pid), ("datablock", f"{r.n} of {r.of}"), ("job", r.job_id)])


@workflow.defn(name="RetrieveDataset")
class RetrieveDataset(DatasetWork):
    """One dataset and selection; its workflow id carries both, so the LTS is read once for all who want the same."""

    @workflow.init
    def __init__(self, request: w.RetrieveDatasetRequest) -> None:
        state = request.state
        super().__init__(state.subscribers if state else [])
        self.request = request
        self.begun = state.begun if state else None
        self.plan = state.plan if state else None
        self.done = state.done if state else 0
        self.files = state.files if state else 0
        self.mended, self.mending = 0, asyncio.Lock()
        self.running: list[int] = []

    @workflow.query(description="Stage, datablocks done and running, sizes")
    def progress(self) -> m.DatasetProgress:
        """Answer the ``progress`` query."""
        plan = self.plan
        return m.DatasetProgress(
            pid=self.request.pid,
            job_id=self.request.job_id,
            stage=self.stage,
            datablocks=len(plan.datablocks) if plan else 0,
            datablocks_done=self.done,
            running=self.running,
            files=plan.files if plan else 0,
            size_bytes=plan.size_bytes if plan else 0,
            packed_bytes=plan.packed_bytes if plan else 0,
            message=self.message,
        )

    @workflow.run
    async def run(self, request: w.RetrieveDatasetRequest) -> m.DatasetOutcome:
        """Always ends with an outcome; only Temporal's own cancel ends it as cancelled."""
        return await self.to_its_end()

    async def whole_way(self) -> m.DatasetOutcome:
        """As ``DatasetWork``."""
        r = self.request
        plan = self.plan or await self.prepare()
        stage = "restoring" if plan.recall and not self.done else "reading"
        self.at(stage, BYTES_TOTAL.value_set(plan.size_bytes), DATABLOCK_COUNT.value_set(len(plan.datablocks)))
        start = self.done
        await windowed(plan.datablocks[start : start + DATABLOCKS_PER_RUN], self.datablock, r.policy.datablocks_at_once)
        if self.done < len(plan.datablocks):
            await workflow.wait_condition(workflow.all_handlers_finished)
            workflow.continue_as_new(r.model_copy(update={"state": self.state()}))
        if plan.refused:
            raise as_failure(
                m.ErrorInfo(
                    type="NameRefused",
                    kind="content",
                    message=f"{plan.refused} files of {r.pid} cannot lie at the destination by their names: "
                    f"{plan.refused_first}; next: retrieve these as datablocks, or to a directory; the other "
                    f"{self.files - plan.refused} files are there, checked: retrieve them by name",
                )
            )
        self.too_late = True
        return await protected(self.finish(plan))

    async def prepare(self) -> w.PlanRetrieveResult:
        """Mark the dataset; compare the catalogue's records with the LTS; see which datablocks hold what is wanted."""
        r, policy = self.request, self.request.policy
        self.begun = await self.begin()
        self.at("planning", OWNER_GROUP.value_set(text.keyword(self.begun.owner_group or "-")))
        while True:
            mended = self.mended
            try:
                self.plan = await steps.PLAN_RETRIEVE.run(
                    w.Selection(**self.selection()),
                    policy=policy,
                    summary=f"compare {self.begun.datablocks} records with the LTS, and see what is wanted of each",
                )
                break
            except ActivityError as error:
                await self.mend(error, mended)
        if self.plan.recall:
            await recall.asked_for(r.pid, self.plan.recall, policy)
        return self.plan

    async def begin(self) -> w.BeginRetrieveResult:
        """Mark the dataset; store the catalogue's records and the wanted names."""
        r = self.request
        return await steps.BEGIN_RETRIEVE.run(
            w.Selection(**self.selection()),
            policy=r.policy,
            summary=f"mark {r.pid} as being retrieved, read its datablocks' records",
        )

    async def mend(self, error: ActivityError | ChildWorkflowError, mended: int) -> None:
        """Store again what was lost in staging; raises ``error`` where it is another, or that was done often enough.

        ``mended``: how often it was done before the work that lost it began.
        """
        if explain(error).lost != "selection":
            raise error
        async with self.mending:
            if self.mended != mended:
                return
            if self.mended >= MENDS:
                raise error
            self.mended += 1
            self.begun = await self.begin()

    def state(self) -> w.RetrieveDatasetState:
        """For the next run."""
        assert self.begun is not None  # noqa: S101
        assert self.plan is not None  # noqa: S101
        return w.RetrieveDatasetState(
            begun=self.begun,
            plan=self.plan,
            done=self.done,
            files=self.files,
            subscribers=self.subscribers,
        )

    async def datablock(self, n: int) -> None:
        """Run the child of datablock ``n``, once that of an earlier run, whose dataset was terminated, has stopped."""
        r, plan, pause = self.request, self.plan, FIRST_LOOK
        assert plan is not None  # noqa: S101
        owner_group = self.begun.owner_group if self.begun else ""
        self.running.append(n)
        try:
            while True:
                mended = self.mended
                try:
                    result = await workflow.execute_child_workflow(
                        RetrieveDatablock.run,
                        w.RetrieveDatablockRequest(
                            **self.selection(),
                            n=n,
                            of=self.begun.datablocks if self.begun else 0,
                            largest_bytes=plan.largest_bytes,
                            policy=r.policy,
                            owner_group=owner_group,
                            recall=n in plan.recall,
                        ),
                        id=workflow_id("retrieve-datablock", r.pid, r.selection, str(n)),
                        parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
                        search_attributes=attributes(
                            job_id=r.job_id, pid=r.pid, owner_group=owner_group, stage="datablock", operation="retrieve"
                        ),
                        static_summary=text.summary(f"datablock {n} of {r.pid}, for retrieval"),
                        priority=workflow.info().priority,
                    )
                    break
                except WorkflowAlreadyStartedError:
                    await workflow.sleep(pause, summary=f"datablock {n} of an earlier run is stopping")
                    pause = min(pause * 2, LONGEST_LOOK)
                except ChildWorkflowError as error:
                    await self.mend(error, mended)
            self.done, self.files = self.done + 1, self.files + result.files
            if self.stage == "restoring":
                self.at("reading")
        finally:
            self.running.remove(n)

    async def finish(self, plan: w.PlanRetrieveResult) -> m.DatasetOutcome:
        """Tell SciCat: everything wanted lies there, checked."""
        r = self.request
        self.at("reporting")
        await steps.FINISH_RETRIEVE.run(
            w.FinishRetrieveRequest(
                **self.selection(), datablocks=plan.datablocks, files=self.files, size_bytes=plan.size_bytes
            ),
            policy=r.policy,
            summary="report datasetRetrieved",
        )
        self.at("retrieved")
        return m.DatasetOutcome(
            pid=r.pid,
            outcome="retrieved",
            message=f"{self.files} files from {len(plan.datablocks)} datablocks, each checked",
            datablocks=len(plan.datablocks),
            files=self.files,
            size_bytes=plan.size_bytes,
            packed_bytes=plan.packed_bytes,
        )

    async def roll_back(self, info: m.ErrorInfo | None) -> m.DatasetOutcome:
        """As ``DatasetWork``. Files that were delivered whole stay until they expire: no link to them is given out."""
        r = self.request
        self.at("rolling back")
        if info is None:
            assert self.stop is not None  # noqa: S101
            self.message = f"stopped by {self.stop.who}: {self.stop.reason}"
        else:
            self.message = info.message
        # A dataset that is unknown, foreign or refused was never marked: its record is not ours to write.
        if info is None or (info.kind != "refused" and info.type != "UnknownDataset"):
            try:
                await steps.FAIL_RETRIEVE.run(
                    w.FailRetrieveRequest(**self.selection(), error=info, stopped=self.stop),
                    policy=r.policy,
                    summary="tell SciCat why the dataset was not retrieved",
                )
            except ActivityError as error:
                self.message += f"; SciCat could not be told: {explain(error).message}"
        self.at("stopped" if info is None else "failed")
        return m.DatasetOutcome(
            pid=r.pid, outcome="cancelled" if info is None else "failed", message=self.message, error=info
        )

    def selection(self) -> dict[str, object]:
        """The fields of ``Selection``."""
        r = self.request
        begun = self.begun
        return {
            "pid": r.pid,
            "selection": r.selection,
            "job_id": r.job_id,
            "destination": r.destination,
            "records": begun.records if begun else "",
            "wanted": begun.wanted if begun else "",
        }

    def at(self, stage: str, *more: object) -> None:
        """Enter a stage, and let people see it."""
        self.stage = stage
        r, plan = self.request, self.plan
        rows: list[tuple[str, object]] = [
            ("dataset", r.pid),
            ("job", r.job_id),
            ("to", r.destination.path or r.destination.kind),
        ]
        if plan:
            rows.append(
                ("wanted", f"{plan.files} files, {size(plan.size_bytes)}, in {len(plan.datablocks)} datablocks")
            )
        if self.done:
            rows.append(("delivered", f"{self.done} datablocks"))
        if self.message:
            rows.append(("message", self.message))
        show(stage, rows, *more)  # type: ignore[arg-type]
