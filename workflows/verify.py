"""``VerifyDataset``: reads an archived dataset on the LTS again and compares. Only the receipt is written."""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from archiver import model as m
    from archiver.retrieval import wire as w

from workflows import recall, receipt, steps
from workflows.visible import details, explain, size

DATABLOCKS_PER_RUN = 300
"""After so many the run continues as new, so that its history stays small (P9)."""
RECORD_SECONDS = 15
"""So long the receipt is tried."""


@workflow.defn(name="VerifyDataset")
class VerifyDataset:
    """One dataset; three outcomes: good, bad, unknown (could not be checked, which is never good)."""

    @workflow.init
    def __init__(self, request: w.CheckDatasetRequest) -> None:
        self.done = request.done or w.CheckDatasetResult(pid=request.pid, outcome="good")

    @workflow.query(description="What was checked so far")
    def progress(self) -> w.CheckDatasetResult:
        """Answer the ``progress`` query."""
        return self.done

    @workflow.run
    async def run(self, request: w.CheckDatasetRequest) -> w.CheckDatasetResult:
        """Always ends with an outcome, unless it is cancelled."""
        try:
            held = await steps.FIND_HELD.run(request, policy=request.policy, summary=f"read the bag of {request.pid}")
            left = [n for n in held.datablocks if n > request.after]
            if later := [n for n in held.recall if n in left]:
                await recall.asked_for(request.pid, later, request.policy)
        except ActivityError as error:
            self.failed(error, None)
            if explain(error).type == "NoBag":
                self.done = self.done.model_copy(update={"nothing": True})
            return self.done
        if held.bad and held.bad not in self.done.messages:
            self.done = self.done.model_copy(update={"outcome": "bad", "messages": [*self.done.messages, held.bad]})
        for n in left[:DATABLOCKS_PER_RUN]:
            await self.check(request, n, held)
        if len(left) > DATABLOCKS_PER_RUN:
            following = {"done": self.done, "after": left[DATABLOCKS_PER_RUN - 1]}
            workflow.continue_as_new(request.model_copy(update=following))
        if self.done.outcome == "good":
            await self.compare(request)
        await self.record(request)
        return self.done

    async def record(self, request: w.CheckDatasetRequest) -> None:
        """Add the outcome to the receipt beside the bag. One that cannot be written changes no outcome; it is said in words."""
        done = self.done
        said = {
            "good": "every datablock matches its manifest and the bag",
            "bad": "it does not match",
            "unknown": "it could not be checked",
        }[done.outcome]
        event = receipt.event(
            "fixity check",
            f"The archived dataset was read again: {said}" + (f": {done.messages[0]}" if done.messages else ""),
            pid=request.pid,
            job="",
            failed=done.outcome != "good",
            detail={
                "outcome": done.outcome,
                "datablocks": done.datablocks,
                "files": done.files,
                "bytes": done.size_bytes,
                "level": done.level,
                "catalogue": done.catalogue,
            },
        )
        ref = m.DatasetRef(pid=request.pid, events=[event])
        # Whoever asks waits for the outcome, not for an LTS that takes no writes.
        brief = request.policy.model_copy(update={"give_up_seconds": RECORD_SECONDS})
        try:
            await steps.RECORD_EVENTS.run(ref, policy=brief, summary="add the outcome to the receipt beside the bag")
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            told = f"the receipt beside the bag does not say so: {explain(error).message}"
            self.done = done.model_copy(update={"messages": [*done.messages, told]})

    async def compare(self, request: w.CheckDatasetRequest) -> None:
        """All datablocks together hold the files that the catalogue lists, and no others."""
        done = self.done
        holds = m.Contents(files=done.files, size_bytes=done.size_bytes, digest=done.digest)
        try:
            await steps.COMPARE.run(
                m.CompareRequest(
                    pid=request.pid, verified=holds, datablocks=done.datablocks, packed_bytes=done.packed_bytes
                ),
                policy=request.policy,
                summary=f"compare the files of {request.pid} with its origdatablocks",
            )
        except ActivityError as error:
            self.failed(error, None)
            if self.done.outcome == "bad":
                self.done = self.done.model_copy(update={"catalogue": "differs"})
        else:
            self.done = done.model_copy(update={"catalogue": "same"})

    async def check(self, request: w.CheckDatasetRequest, n: int, held: w.HeldResult) -> None:
        """One datablock; one at a time, as verification of what is archived goes beside it."""

        async def read() -> w.CheckResult:
            return await steps.CHECK.run(
                w.CheckRequest(pid=request.pid, n=n),
                policy=request.policy,
                summary=f"read datablock {n} again and compare",
                size_bytes=held.packed_bytes,
            )

        try:
            result = await recall.read(request.pid, n, request.policy, n in held.recall, read)
        except (ActivityError, ApplicationError) as error:
            self.failed(error, n)
        else:
            self.add(n, result)
        details(
            self.done.outcome,
            [
                ("dataset", request.pid),
                ("checked", f"{self.done.datablocks} datablocks, {size(self.done.size_bytes)}"),
                *(("", message) for message in self.done.messages),
            ],
        )

    def add(self, n: int, result: w.CheckResult) -> None:
        """Count a datablock that was read."""
        done = self.done
        holds = m.Contents(files=done.files, size_bytes=done.size_bytes, digest=done.digest).plus(result)
        sums = {**holds.model_dump(), "packed_bytes": done.packed_bytes + result.packed_bytes}
        # The weakest level that was proved; only two are known here.
        level = "cache" if "cache" in (done.level, result.level) else result.level or done.level
        update = {**sums, "datablocks": done.datablocks + 1, "level": level}
        if result.bad:
            update |= {"outcome": "bad", "bad": [*done.bad, n]}
            update["messages"] = [*done.messages, result.bad][: w.MAX_CHECKED]
        self.done = done.model_copy(update=update)

    def failed(self, error: ActivityError | ApplicationError, n: int | None) -> None:
        """Count what could not be read; what is bad stays bad."""
        if is_cancelled_exception(error):
            raise error
        done, info = self.done, explain(error)
        bad = info.type in ("IntegrityMismatch", "CatalogueChanged", "UnknownDataset")
        numbers = [] if n is None else [n]
        self.done = done.model_copy(
            update={
                "outcome": "bad" if bad or done.outcome == "bad" else "unknown",
                "bad": [*done.bad, *numbers] if bad else done.bad,
                "unknown": done.unknown if bad else [*done.unknown, *numbers],
                "messages": [*done.messages, info.message][: w.MAX_CHECKED],
            }
        )
