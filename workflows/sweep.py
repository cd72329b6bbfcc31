"""The sweeps: ``Sweep`` for jobs that nobody started, ``SweepLeftovers`` for what terminated runs left (docs/sweep.md)."""

from __future__ import annotations

import asyncio

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import ActivityError, ChildWorkflowError, WorkflowAlreadyStartedError, is_cancelled_exception
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from archiver import model as m
    from archiver import text
    from archiver.pids import workflow_id
    from archiver.retrieval import wire as w

from workflows import steps
from workflows.tasks import windowed
from workflows.visible import FAILED, MESSAGE, OPERATION, PID, SINCE, STAGE, WAS_GOOD, details, explain

STEPS_PER_SWEEP = 50
"""Of ``sweep-jobs``, each with minutes of time: what is left then is the next sweep's."""
DATASETS_AT_ONCE = 4
POLICY = m.Policy(give_up_seconds=60)
"""A sweep that cannot do its work ends soon: the next one comes by itself."""
FINDERS = (steps.FIND_STARTED, steps.FIND_SPOILED, steps.FIND_STAGED, steps.FIND_ON_LTS)


class Record:
    """How the looks of one run went: counted for Prometheus, and left in Temporal's list for ``archiver health`` and ``jobs``."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._failed = 0
        self._since = ""
        self._was_good = False

    def look(self, problem: str = "") -> None:
        """A look ended: it did all its work, or met this problem."""
        outcome = {"part": self._part, "outcome": "failed" if problem else "ok"}
        meter = workflow.metric_meter()
        meter.create_counter("archiver_sweeps", "Looks of the sweeps, by part and outcome").add(1, outcome)
        if problem:
            self._failed += 1
            self._since = self._since or workflow.now().isoformat(timespec="seconds")
            memo = {MESSAGE: text.one_line(problem, m.MAX_OUTCOME_MESSAGE), FAILED: self._failed, SINCE: self._since}
            workflow.upsert_memo({**memo, WAS_GOOD: self._was_good})
            return
        told = "When a sweep last did all its work, in seconds since 1970, by part"
        meter.create_gauge_float("archiver_sweep_last_good_seconds", told).set(workflow.time(), {"part": self._part})
        # Told once, and after failures: a memo costs an event.
        if self._failed or not self._was_good:
            workflow.upsert_memo({MESSAGE: None, FAILED: 0, SINCE: None, WAS_GOOD: True})
        self._failed, self._since, self._was_good = 0, "", True


@workflow.defn(name="Sweep")
class Sweep:
    """Starts submitted jobs that nobody started, and takes up or reports those that nobody works on any more."""

    def __init__(self) -> None:
        self.record = Record("jobs")

    @workflow.run
    async def run(self, request: m.SweepRequest) -> m.SweepJobsResult:
        """Fails where SciCat or Temporal cannot be asked at the last look; the next sweep comes by itself."""
        done = m.SweepJobsResult()
        for left in reversed(range(request.looks)):
            try:
                done = await self.look(request, done)
            except ActivityError as error:
                if not left or is_cancelled_exception(error):
                    raise
                workflow.logger.warning("sweep: %s", explain(error).message)
                details("jobs could not be swept", [("PROBLEM", explain(error).message)])
            if not left or workflow.info().is_continue_as_new_suggested():
                break
            await workflow.sleep(request.every_seconds, summary="until the next look")
        return done

    async def look(self, request: m.SweepRequest, done: m.SweepJobsResult) -> m.SweepJobsResult:
        """One look at all of SciCat's jobs; ``done`` and what it did."""
        for _ in range(1 if request.dry_run else STEPS_PER_SWEEP):
            try:
                step = await steps.SWEEP_JOBS.run(
                    request, policy=POLICY, summary="start what SciCat has and nobody started"
                )
            except ActivityError as error:
                if not is_cancelled_exception(error):
                    self.record.look(explain(error).message)
                raise
            done = done.plus(step)
            said = done.model_dump(exclude={"lines", "more"})
            details("jobs swept", [*said.items(), *((line, "") for line in done.lines)])
            if not done.more:
                break
        if not request.dry_run:
            self.record.look(f"SciCat did not answer for {done.failed} jobs: {done.lines[-1:]}" if done.failed else "")
        return done


@workflow.defn(name="ExpireRetrieved")
class ExpireRetrieved:
    """Removes retrieved data from the retrieval bucket once nobody wants it any more. Not every S3 has lifecycle rules."""

    @workflow.run
    async def run(self, request: m.SweepRequest) -> w.ExpireResult:
        """Fails where the bucket cannot be looked at; the next one comes by itself."""
        try:
            done = await steps.EXPIRE.run(request, policy=POLICY, summary="remove retrieved data past its days")
        except ActivityError as error:
            if not is_cancelled_exception(error):
                Record("retrieved").look(explain(error).message)
            raise
        Record("retrieved").look()
        details("retrieved data expired", done.model_dump().items())
        return done


@workflow.defn(name="SweepLeftovers")
class SweepLeftovers:
    """Finds what terminated runs left in SciCat, in staging and on the LTS, and has it cleared, dataset by dataset."""

    @workflow.init
    def __init__(self, request: m.SweepRequest) -> None:
        self.done = m.SweepLeftoversResult()
        self.why: dict[str, list[str]] = {}

    @workflow.run
    async def run(self, request: m.SweepRequest) -> m.SweepLeftoversResult:
        """Ends with what was done; a place that cannot be looked at is a problem in words, and the others are swept."""
        await asyncio.gather(*(self.find(finder, request) for finder in FINDERS), self.compare(request))
        pids = sorted(self.why)
        self.done = self.done.model_copy(update={"found": len(pids)})
        if request.dry_run:
            for pid in pids:
                self.say(f"{pid}: would be cleared ({'; '.join(self.why[pid])})")
        else:
            await windowed(pids, self.clear, DATASETS_AT_ONCE)
            Record("leftovers").look(self.done.problems[0] if self.done.problems else "")
        self.show()
        return self.done

    async def find(self, finder: steps.Step[m.SweepRequest, m.FoundLeftovers], request: m.SweepRequest) -> None:
        """One place."""
        try:
            found = await finder.run(request, policy=POLICY, summary=f"look for leftovers: {finder.name}")
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            self.problem(explain(error).message)
            return
        for pid, what in zip(found.pids, found.what, strict=True):
            self.why.setdefault(pid, []).append(what)
        self.done = self.done.model_copy(
            update={name: getattr(self.done, name) + getattr(found, name) for name in ("running", "young", "more")}
        )

    async def compare(self, request: m.SweepRequest) -> None:
        """Jobs and retrievals that ended, with what SciCat says of them."""
        try:
            compared = await steps.COMPARE_ENDED.run(
                request, policy=POLICY, summary="compare what ended with what SciCat says"
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            self.problem(explain(error).message)
            return
        self.done = self.done.model_copy(update={"corrected": compared.corrected})
        for line in compared.lines:
            self.say(line)

    async def clear(self, pid: str) -> None:
        """One dataset, under the workflow id of its runs: none can start meanwhile, and none that runs is cleared."""
        why = "; ".join(self.why[pid])
        try:
            outcome = await workflow.execute_child_workflow(
                SweepDataset.run,
                m.SweepDatasetRequest(pid=pid),
                id=workflow_id("archive-dataset", pid),
                parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(OPERATION, "sweep"),
                        SearchAttributePair(PID, text.keyword(pid)),
                        SearchAttributePair(STAGE, "clearing leftovers"),
                    ]
                ),
                static_summary=text.summary(f"clear what a terminated run left of {pid}"),
            )
        except WorkflowAlreadyStartedError:
            self.done = self.done.model_copy(update={"running": self.done.running + 1})
            return
        except ChildWorkflowError as error:
            if workflow.cancellation_reason() is not None:
                raise
            self.problem(f"{pid}: {explain(error).message}")
            return
        if outcome.outcome == "cancelled":
            self.done = self.done.model_copy(update={"running": self.done.running + 1})
            self.say(f"{pid}: left alone ({outcome.message})")
            return
        self.done = self.done.model_copy(update={"cleared": self.done.cleared + 1})
        self.say(f"{pid}: {outcome.message} ({why})")
        self.show()

    def problem(self, said: str) -> None:
        """Say what could not be done."""
        workflow.logger.warning("sweep: %s", said)
        if len(self.done.problems) < m.MAX_SWEPT:
            told = text.cut(said, m.MAX_OUTCOME_MESSAGE)
            self.done = self.done.model_copy(update={"problems": [*self.done.problems, told]})

    def say(self, said: str) -> None:
        """Say what was done."""
        workflow.logger.info("sweep: %s", said)
        if len(self.done.lines) < m.MAX_SWEPT:
            self.done = self.done.model_copy(
                update={"lines": [*self.done.lines, text.cut(said, m.MAX_OUTCOME_MESSAGE)]}
            )

    def show(self) -> None:
        """The table of current details."""
        counts = self.done.model_dump(exclude={"lines", "problems"})
        lines = [*(("PROBLEM", said) for said in self.done.problems), *(("", said) for said in self.done.lines)]
        details("leftovers swept", [*counts.items(), *lines])


@workflow.defn(name="SweepDataset")
class SweepDataset:
    """Clears what a terminated run left of one dataset. Its id is that of the dataset's runs: Temporal holds one at a time."""

    @workflow.init
    def __init__(self, request: m.SweepDatasetRequest) -> None:
        self.pid = request.pid
        self.stage = "clearing leftovers"
        self.message = ""

    @workflow.query(description="Stage, and what was cleared")
    def progress(self) -> m.DatasetProgress:
        """As ``ArchiveDataset`` answers it: who asks for the dataset's workflow meets this one, if it was the last."""
        return m.DatasetProgress(pid=self.pid, job_id="", stage=self.stage, message=self.message)

    @workflow.signal(description="A job that waits for the dataset: it looks again by itself")
    def subscribe(self, *given: object) -> None:
        """No outcome is told to it: nothing was archived here. What it carries is not looked at, and so can stall nothing."""

    @workflow.run
    async def run(self, request: m.SweepDatasetRequest) -> m.DatasetOutcome:
        """Outcome ``cancelled``: something of the dataset runs, nothing was touched."""
        pid = request.pid
        ref = m.PidRequest(pid=pid)
        look = await steps.LOOK_AT_DATASET.run(ref, policy=POLICY, summary=f"see that nobody works on {pid}")
        if not look.idle:
            return self.end("in work", "cancelled", look.why)
        restored = m.RestoreResult()
        if look.unarchived:
            restored = await self.restore(look)
        did = [
            *([restored.what] if restored.what else []),
            (await steps.CLEAN_STAGING.run(ref, policy=POLICY, summary=f"remove staged objects of {pid}")).what,
            (
                await steps.ROLL_BACK_LTS.run(
                    m.DatasetRef(pid=pid), policy=POLICY, summary="remove what did not verify from the LTS"
                )
            ).what,
        ]
        if look.started and not restored.restored:
            told = await steps.FAIL_DATASET.run(
                look.told or self.lost(look), policy=POLICY, summary=f"tell SciCat that nobody works on {pid}"
            )
            did.append(f"SciCat told: {told.what}")
        archived = look.archived or restored.restored
        return self.end("leftovers cleared", "already_archived" if archived else "failed", "; ".join(did))

    async def restore(self, look: m.LookResult) -> m.RestoreResult:
        """Have SciCat call the dataset archived again, if the LTS holds its complete bag, and SciCat the bag's records."""
        pid = self.pid
        try:
            bag = await steps.FIND_BAG.run(m.PidRequest(pid=pid), policy=POLICY, summary=f"look for a bag of {pid}")
        except ActivityError as error:
            info = explain(error)
            if info.type != "IntegrityMismatch":
                raise
            return m.RestoreResult(what=info.message)
        if not bag.complete:
            return m.RestoreResult()
        request = m.RestoreRequest(
            pid=pid,
            job_id=bag.job_id or look.job_id,
            datablocks=bag.datablocks,
            files=bag.files,
            size_bytes=bag.size_bytes,
            packed_bytes=bag.packed_bytes,
            level=bag.level,
            records=bag.records,
            contents=bag.contents,
        )
        return await steps.RESTORE_DATASET.run(request, policy=POLICY, summary=f"compare the bag of {pid} with SciCat")

    def lost(self, look: m.LookResult) -> m.FailDatasetRequest:
        """What SciCat is told where nothing else is known."""
        text = (
            f"The run of job {look.job_id} ended without reporting (its workflow was terminated, or its Temporal "
            "was lost); what it left was cleared, and what verified stays; next: submit the dataset again"
        )
        error = m.ErrorInfo(type="Lost", kind="system", message=text, where="sweep")
        return m.FailDatasetRequest(pid=self.pid, job_id=look.job_id, error=error)

    def end(self, stage: str, outcome: m.Outcome, message: str) -> m.DatasetOutcome:
        """Say how it ended."""
        self.stage, self.message = stage, message
        details(stage, [("dataset", self.pid), ("message", message)])
        return m.DatasetOutcome(pid=self.pid, outcome=outcome, message=message)
