"""``ArchiveDataset``: one dataset from its SciCat record to a registered, verified bag on the LTS, or rolled back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ChildWorkflowError, WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from archiver import model as m
    from archiver import text
    from archiver.pids import workflow_id

from workflows import priority, receipt, steps
from workflows.datablock import ArchiveDatablock
from workflows.tasks import protected, windowed
from workflows.visible import BYTES_TOTAL, DATABLOCK_COUNT, OWNER_GROUP, attributes, explain, show, size
from workflows.work import DatasetWork

DATABLOCKS_PER_RUN = 300
"""After so many child workflows the run continues as new, so that its history stays small (P9)."""
MENDS = 5
"""Times that something staged is made again because it was lost or damaged, before that is a failure of the dataset."""
FIRST_LOOK = timedelta(seconds=1)
LONGEST_LOOK = timedelta(minutes=5)


class PlannedAnew(Exception):
    """The plan was made again and is another one: the catalogue or the sources changed. Nothing of the old one counts."""


@workflow.defn(name="ArchiveDataset")
class ArchiveDataset(DatasetWork):
    """Archives one dataset; its workflow id carries the pid, so Temporal holds one at a time per dataset (P3)."""

    @workflow.init
    def __init__(self, request: m.ArchiveDatasetRequest) -> None:
        super().__init__(request.state.subscribers if request.state else [])
        self.request = request
        self.name = ""
        self.begun: m.BeginDatasetResult | None = None
        self.listing: m.ListingResult | None = None
        self.plan: m.PlanResult | None = None
        self.reusable: list[int] = []
        self.verified, self.level = m.Contents(), ""
        self.mended, self.mending = 0, asyncio.Lock()
        self.done: list[m.ArchiveDatablockResult] = []
        self.done_before = 0
        self.packed_before = 0
        self.bag: m.BagResult | None = None
        self.registered: m.RegisterResult | None = None
        self.running: list[int] = []
        self.events: list[m.Event] = list(request.state.events) if request.state else []

    # --- what others may ask or say ------------------------------------------------------------------------------

    @workflow.query(description="Stage, datablocks done and running, sizes")
    def progress(self) -> m.DatasetProgress:
        """Answer the ``progress`` query."""
        plan = self.plan
        return m.DatasetProgress(
            pid=self.request.pid,
            job_id=self.request.job_id,
            stage=self.stage,
            datablocks=plan.datablocks if plan else 0,
            datablocks_done=self.done_before + len(self.done),
            running=self.running,
            files=plan.files if plan else 0,
            size_bytes=plan.size_bytes if plan else 0,
            packed_bytes=self.packed_before + sum(block.packed_bytes for block in self.done),
            message=self.message,
        )

    # --- the run --------------------------------------------------------------------------------------------------

    @workflow.run
    async def run(self, request: m.ArchiveDatasetRequest) -> m.DatasetOutcome:
        """Always ends with an outcome; only Temporal's own cancel ends it as cancelled, after the same roll-back."""
        return await self.to_its_end()

    async def whole_way(self) -> m.DatasetOutcome:
        """The way of a dataset that nothing stops."""
        if (state := self.request.state) is not None:
            self.take_up(state)
        elif (outcome := await self.prepare()) is not None:
            return outcome
        while True:
            try:
                await self.datablocks()
                break
            except PlannedAnew:
                await self.survey()
        await steps.COMPARE.run(
            m.CompareRequest(pid=self.request.pid, verified=self.verified, listed=self.listed()),
            policy=self.request.policy,
            summary=f"count what verified against the origdatablocks of {self.request.pid}",
        )
        self.too_late = True
        return await protected(self.publish())

    async def prepare(self) -> m.DatasetOutcome | None:
        """Mark the dataset, read its files, compare, plan, and see what the LTS holds already. Or it is archived already."""
        r = self.request
        self.name = workflow.uuid4().hex
        self.begun = begun = await self.begin()
        if begun.state == "already":
            self.at("already archived")
            return m.DatasetOutcome(
                pid=r.pid,
                outcome="already_archived",
                message=begun.message,
                datablocks=begun.datablocks,
                files=begun.files,
                size_bytes=begun.size_bytes,
                packed_bytes=begun.packed_bytes,
            )
        self.note("ingestion start", "Archiving began; SciCat shows the dataset as started", agent=begun.agent)
        await self.mending_what_is_lost(self.list_and_plan)
        await self.survey()
        return None

    async def begin(self) -> m.BeginDatasetResult:
        """Mark the dataset, and store its record for the bag."""
        r = self.request
        return await steps.BEGIN_DATASET.run(
            m.BeginDatasetRequest(pid=r.pid, job_id=r.job_id, workflow_id=workflow.info().workflow_id, run=self.name),
            policy=r.policy,
            summary=f"mark {r.pid} as started",
        )

    async def list_and_plan(self) -> None:
        """Read the catalogue's files, compare them with the landing zone, cut datablocks."""
        assert self.begun is not None  # noqa: S101
        r = self.request
        self.listing = listing = await steps.READ_ORIGDATABLOCKS.run(
            m.PidRequest(pid=r.pid, job_id=r.job_id, run=self.name),
            policy=r.policy,
            summary=f"read origdatablocks of {r.pid}",
        )
        self.plan = plan = await steps.PLAN.run(
            m.PlanRequest(
                pid=r.pid, run=self.name, listing=listing.listing, source=self.begun.source, files=listing.files
            ),
            policy=r.policy,
            summary=f"compare {listing.files} files, {size(listing.size_bytes)}, with the landing zone and plan",
        )
        self.note(
            "validation",
            f"{plan.files} files, {size(plan.size_bytes)}, were looked up in the landing zone and compared with the catalogue's "
            f"list: all are there, with its sizes; they make {plan.datablocks} datablocks",
            agent=plan.agent,
            files=plan.files,
            bytes=plan.size_bytes,
            datablocks=plan.datablocks,
            origdatablocks=listing.origdatablocks,
            plan=plan.plan_id,
        )

    async def survey(self) -> None:
        """See what the LTS holds of this plan; nothing is done of it yet."""
        assert self.plan is not None  # noqa: S101
        r, plan = self.request, self.plan
        self.done, self.done_before, self.packed_before = [], 0, 0
        self.verified, self.level = m.Contents(), ""
        survey = await steps.SURVEY_LTS.run(
            m.SurveyRequest(pid=r.pid, plan_id=plan.plan_id, format=plan.format, datablocks=plan.datablocks),
            policy=r.policy,
            summary=f"see what the LTS holds of {r.pid}",
        )
        if survey.superseded:
            self.note(
                "quarantine",
                f"{survey.superseded} datablocks of an earlier state of the files went into quarantine on the LTS, unchanged",
                agent=survey.agent,
            )
        self.reusable = survey.reusable

    def take_up(self, state: m.DatasetState) -> None:
        """Go on where the run before this one stood."""
        self.name, self.begun, self.listing, self.plan = state.run, state.begun, state.listing, state.plan
        self.reusable, self.verified, self.level = state.reusable, state.verified, state.level
        self.done_before, self.packed_before = state.next_datablock - 1, state.packed_bytes
        self.mended = state.mended

    async def datablocks(self) -> None:
        """One child per datablock, a bounded number at a time; the first that fails stops the others."""
        assert self.plan is not None  # noqa: S101
        assert self.begun is not None  # noqa: S101
        assert self.listing is not None  # noqa: S101
        r, plan = self.request, self.plan
        self.at(
            "datablocks",
            OWNER_GROUP.value_set(text.keyword(self.begun.owner_group or "-")),
            BYTES_TOTAL.value_set(plan.size_bytes),
            DATABLOCK_COUNT.value_set(plan.datablocks),
        )
        reusable = set(self.reusable)
        last = min(plan.datablocks, self.done_before + DATABLOCKS_PER_RUN)

        async def one(n: int) -> None:
            self.running.append(n)
            try:
                block = await self.whole_datablock(n, reuse=n in reusable)
                self.done.append(block)
                self.verified = self.verified.plus(block)
                self.level = weaker(self.level, block.level)
            finally:
                self.running.remove(n)

        await windowed(range(self.done_before + 1, last + 1), one, r.policy.datablocks_at_once)
        if last < self.plan.datablocks:
            following = m.DatasetState(
                run=self.name,
                begun=self.begun,
                listing=self.listing,
                plan=self.plan,
                reusable=self.reusable,
                next_datablock=last + 1,
                packed_bytes=self.packed_before + sum(block.packed_bytes for block in self.done),
                verified=self.verified,
                level=self.level,
                mended=self.mended,
                subscribers=self.subscribers,
                events=self.events,
            )
            await workflow.wait_condition(workflow.all_handlers_finished)
            workflow.continue_as_new(r.model_copy(update={"state": following}))

    # --- what is lost in staging ------------------------------------------------------------------------------------

    async def whole_datablock(self, n: int, *, reuse: bool) -> m.ArchiveDatablockResult:
        """Datablock ``n``; a plan that it cannot read any more is made again. Raises ``PlannedAnew`` if it is another then."""
        while True:
            mended, plan = self.mended, self.plan
            try:
                return await self.datablock(n, reuse=reuse)
            except ChildWorkflowError as error:
                if (info := explain(error)).lost != "plan":
                    raise
                async with self.mending:
                    if self.mended == mended:
                        self.count_mend(info, error)
                        await self.mending_what_is_lost(self.list_and_plan)
                    if plan is None or self.plan is None or plan.plan_id != self.plan.plan_id:
                        raise PlannedAnew from None

    async def mending_what_is_lost(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work``, again and again where something of staging that it needs is lost and can be made again."""
        while True:
            try:
                await work()
                return
            except ActivityError as error:
                info = explain(error)
                if not info.lost:
                    raise
                self.count_mend(info, error)
                if info.lost == "record":
                    begun = await self.begin()
                    if begun.state != "go":
                        raise
                    self.begun = begun
                elif info.lost == "verification":
                    await self.datablock(info.datablock, reuse=True)

    def count_mend(self, info: m.ErrorInfo, error: BaseException) -> None:
        """Note that something is made again; raises ``error`` if that was done often enough."""
        if self.mended >= MENDS:
            raise error
        self.mended += 1
        self.note("fixity check", f"Staged objects were lost, and are made again: {info.message}", failed=True)

    # --- datablocks ---------------------------------------------------------------------------------------------------

    async def datablock(self, n: int, *, reuse: bool) -> m.ArchiveDatablockResult:
        """Run the child of datablock ``n``, once that of an earlier run, whose dataset was terminated, has stopped."""
        pause = FIRST_LOOK
        while True:
            try:
                return await self.child(n, reuse=reuse)
            except WorkflowAlreadyStartedError:
                await workflow.sleep(pause, summary=f"datablock {n} of an earlier run is stopping")
                pause = min(pause * 2, LONGEST_LOOK)

    async def child(self, n: int, *, reuse: bool) -> m.ArchiveDatablockResult:
        """Start the child of datablock ``n`` and wait for it."""
        assert self.plan is not None  # noqa: S101
        assert self.begun is not None  # noqa: S101
        r, plan, begun, own = self.request, self.plan, self.begun, workflow.info().priority
        return await workflow.execute_child_workflow(
            ArchiveDatablock.run,
            m.ArchiveDatablockRequest(
                pid=r.pid,
                job_id=r.job_id,
                run=self.name,
                plan_id=plan.plan_id,
                plan_index=plan.index,
                format=plan.format,
                n=n,
                of=plan.datablocks,
                largest_bytes=plan.largest_bytes,
                reuse=reuse,
                source=begun.source,
                owner_group=begun.owner_group,
                policy=r.policy,
            ),
            id=workflow_id("archive-datablock", r.pid, str(n)),
            parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
            search_attributes=attributes(job_id=r.job_id, pid=r.pid, owner_group=begun.owner_group, stage="datablock"),
            static_summary=text.summary(f"datablock {n}/{plan.datablocks} of {r.pid}"),
            static_details="Packed, copied to the LTS and verified here; its dataset registers it.",
            priority=priority.of_datablock(own.priority_key, plan.size_bytes, begun.owner_group),
        )

    async def publish(self) -> m.DatasetOutcome:
        """Bag, registration, status: in this order, and not to be stopped half-way (P2)."""
        r, policy = self.request, self.request.policy
        self.at("publishing")
        await self.mending_what_is_lost(self.bag_and_registration)
        assert self.bag is not None  # noqa: S101
        assert self.registered is not None  # noqa: S101
        ref, bag, registered = self.ref(), self.bag, self.registered
        finish = m.FinishDatasetRequest(
            pid=r.pid,
            job_id=r.job_id,
            datablocks=registered.datablocks,
            files=registered.files,
            size_bytes=registered.size_bytes,
            packed_bytes=registered.packed_bytes,
            level=bag.level,
        )
        finishing = steps.FINISH_DATASET.run(finish, policy=policy, summary="report datasetOnArchiveDisk")
        if policy.delete_sources:
            self.note_end((await finishing).agent)
            self.at("archived")
            kept = await self.delete_sources(ref)
            cleaning = asyncio.create_task(self.clean_staging())
        else:
            kept = ""
            # What is staged served the bag and the registration: it goes beside the report.
            cleaning = asyncio.create_task(self.clean_staging())
            try:
                self.note_end((await finishing).agent)
            except ActivityError:
                await cleaning
                raise
        outcome = m.DatasetOutcome(
            pid=r.pid,
            outcome="archived",
            message=f"{registered.files} files in {registered.datablocks} datablocks, verified ({bag.level}){kept}",
            datablocks=registered.datablocks,
            files=registered.files,
            size_bytes=registered.size_bytes,
            packed_bytes=registered.packed_bytes,
            level=bag.level,
        )
        # The receipt not before the report is true (P2); most of it passes while staging is cleaned.
        left = await self.clearing(outcome, self.record_events(ref), cleaning)
        self.at("archived")
        return outcome.model_copy(update={"message": outcome.message + left})

    async def bag_and_registration(self) -> None:
        """The bag's files, then the records in SciCat. May be repeated: each finds what it did before."""
        r, policy = self.request, self.request.policy
        first = self.bag is None
        so_far = self.ref().model_copy(update={"events": self.events, "restage": self.mended > 0})
        self.bag = bag = await steps.PUBLISH_BAG.run(so_far, policy=policy, summary=f"write the bag files of {r.pid}")
        self.events = []
        ref = self.ref()
        if first:
            self.note(
                "information package creation",
                f"The bag was completed: {ref.datablocks} datablocks, each with its manifest, verified at level {bag.level!r}",
                agent=bag.agent,
                datablocks=ref.datablocks,
                level=bag.level,
                plan=ref.plan_id,
            )
        self.registered = registered = await steps.REGISTER.run(
            ref, policy=policy, summary=f"register {ref.datablocks} verified datablocks in SciCat"
        )
        self.note(
            "metadata modification",
            f"All {registered.datablocks} datablocks, with {registered.files} files, are registered in SciCat",
            agent=registered.agent,
            datablocks=registered.datablocks,
            files=registered.files,
            bytes=registered.size_bytes,
            packed_bytes=registered.packed_bytes,
        )

    def ref(self) -> m.DatasetRef:
        """What the steps after the datablocks need to know of them."""
        assert self.plan is not None  # noqa: S101
        assert self.begun is not None  # noqa: S101
        r, plan = self.request, self.plan
        return m.DatasetRef(
            pid=r.pid,
            job_id=r.job_id,
            run=self.name,
            plan_id=plan.plan_id,
            plan_index=plan.index,
            format=plan.format,
            datablocks=plan.datablocks,
            source=self.begun.source,
            record=self.begun.record,
            bag=self.bag.index if self.bag else "",
            listed=self.listed(),
            verified=self.verified,
            level=self.level,
        )

    def listed(self) -> m.Contents:
        """The catalogue's files when this run read them."""
        listing = self.listing
        return m.Contents.model_validate(listing.model_dump()) if listing else m.Contents()

    async def delete_sources(self, ref: m.DatasetRef) -> str:
        """Remove the source files that the settings do not keep. One that stays changes no outcome; it is said in words."""
        try:
            deleted = await steps.DELETE_SOURCES.run(
                ref,
                policy=self.request.policy,
                summary="remove the archived source files on a fresh proof",
                # Each is read again right before.
                size_bytes=ref.listed.size_bytes,
            )
        except ActivityError as error:
            why = explain(error).message
            self.note("deletion", f"The source files were kept: {why}", failed=True)
            return f"; source files kept: {why}"
        self.note(
            "deletion",
            "The source files were removed from the landing zone, on a fresh proof that the archive holds them"
            + (f"; {deleted.kept} that had changed, or were gone, were left as they were" if deleted.kept else ""),
            agent=deleted.agent,
            files=deleted.files,
            kept=deleted.kept,
        )
        return f"; {deleted.files} source files removed" + (f", {deleted.kept} kept" if deleted.kept else "")

    async def record_events(self, ref: m.DatasetRef) -> str:
        """Add to the receipt what came after the bag. What cannot be written changes no outcome; it is said in words."""
        try:
            await steps.RECORD_EVENTS.run(
                ref.model_copy(update={"events": self.events}),
                policy=self.request.policy,
                summary="add registration and report to the receipt beside the bag",
            )
        except ActivityError as error:
            return f"; the receipt beside the bag ends before registration: {explain(error).message}"
        return ""

    async def clean_staging(self) -> str:
        """Remove what is staged. What cannot be removed changes no outcome; it is said in words."""
        r = self.request
        try:
            await steps.CLEAN_STAGING.run(
                m.PidRequest(pid=r.pid, job_id=r.job_id),
                policy=self.clearing_policy(r.policy),
                summary="remove staged objects",
            )
        except ActivityError as error:
            return f"; staged objects are left: {explain(error).message}"
        return ""

    async def roll_back(self, info: m.ErrorInfo | None) -> m.DatasetOutcome:
        """Put LTS, staging and SciCat right after a failure or a stop. Verified datablocks stay.

        SciCat is told beside the tidying, not after it: an LTS that is out for days must not leave a dataset ``started``.
        """
        self.at("rolling back")
        if info is None:
            assert self.stop is not None  # noqa: S101
            self.message = f"stopped by {self.stop.who}: {self.stop.reason}"
        else:
            self.message = info.message
        # A dataset that is unknown, foreign or refused at its beginning was never marked: its record is not ours to write.
        # Any other may have been, also when the step that marks it was stopped.
        if info is None or self.begun is not None or (info.kind != "refused" and info.type != "UnknownDataset"):
            cleaning = [asyncio.create_task(self.clean_lts()), asyncio.create_task(self.clean_staging())]
            self.message += await self.tell_scicat(info)
            self.message += await self.clearing(self.ended(info), *cleaning)
        self.at("stopped" if info is None else "failed")
        return self.ended(info)

    def ended(self, info: m.ErrorInfo | None) -> m.DatasetOutcome:
        """The outcome of a dataset that failed, or was stopped (None)."""
        outcome: m.Outcome = "cancelled" if info is None else "failed"
        return m.DatasetOutcome(pid=self.request.pid, outcome=outcome, message=self.message, error=info)

    async def tell_scicat(self, info: m.ErrorInfo | None) -> str:
        """Say in the dataset's record why it was not archived."""
        r = self.request
        try:
            await steps.FAIL_DATASET.run(
                m.FailDatasetRequest(pid=r.pid, job_id=r.job_id, error=info, stopped=self.stop),
                policy=r.policy,
                summary="tell SciCat why the dataset was not archived",
            )
        except ActivityError as error:
            return f"; SciCat could not be told: {explain(error).message}"
        return ""

    async def clean_lts(self) -> str:
        """Remove from the LTS what did not verify. The next run of the dataset finds what cannot be removed now."""
        r, plan = self.request, self.plan
        if plan is None:
            return ""
        try:
            await steps.ROLL_BACK_LTS.run(
                m.DatasetRef(
                    pid=r.pid,
                    plan_id=plan.plan_id,
                    format=plan.format,
                    datablocks=plan.datablocks,
                    events=[
                        *self.events,
                        *(event for block in self.done for event in block.events),
                        self.event("ingestion end", f"The dataset was not archived: {self.message}", failed=True),
                    ],
                ),
                policy=self.clearing_policy(r.policy),
                summary="remove what did not verify from the LTS",
            )
        except ActivityError as error:
            return f"; unverified files are left on the LTS: {explain(error).message}"
        return ""

    def note(self, type: str, text: str, *, agent: str = "", failed: bool = False, **detail: int | float | str) -> None:
        """Remember what happened, for the receipt."""
        self.events.append(self.event(type, text, agent=agent, failed=failed, detail=detail))

    def note_end(self, agent: str) -> None:
        """That all is done: SciCat says so."""
        text = "SciCat shows the dataset as datasetOnArchiveDisk: archived, and retrievable"
        self.note("ingestion end", text, agent=agent)

    def event(
        self, type: str, text: str, *, agent: str = "", failed: bool = False, detail: receipt.Detail | None = None
    ) -> m.Event:
        """What has just happened to this dataset."""
        r = self.request
        return receipt.event(type, text, pid=r.pid, job=r.job_id, agent=agent, failed=failed, detail=detail)

    def at(self, stage: str, *more: object) -> None:
        """Enter a stage, and let people see it."""
        self.stage = stage
        r, plan = self.request, self.plan
        rows: list[tuple[str, object]] = [("dataset", r.pid), ("job", r.job_id)]
        if plan:
            rows.append(("content", f"{plan.files} files, {size(plan.size_bytes)}, {plan.datablocks} datablocks"))
            rows.append(("plan", plan.plan_id))
        if self.done or self.done_before:
            rows.append(("verified", f"{self.done_before + len(self.done)} datablocks"))
        if self.message:
            rows.append(("message", self.message))
        show(stage, rows, *more)  # type: ignore[arg-type]


def weaker(level: str, other: str) -> str:
    """The weaker of two levels; what is empty is not known and does not count."""
    return min(filter(None, (level, other)), key=m.LEVELS.index, default="")
