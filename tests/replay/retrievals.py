"""Scenarios of retrieval and verification, to be recorded (``record``)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from archiver import model as m
from archiver.retrieval import wire as w
from tests.workflows.scripted import Script, content_error
from workflows import steps
from workflows.visible import attributes

if TYPE_CHECKING:
    from tests.replay.record import Recorder

SELECTION = "0123456789abcdef"


class Retrieving(Script):
    """Every step of retrieval; ``recall``: the LTS must restore the datablocks first."""

    def __init__(self, datasets: int = 1, datablocks: int = 2, *, recall: bool = False) -> None:
        super().__init__(datasets, datablocks)
        self.recall = recall

    async def answer(self, name: str, request: Any) -> Any:
        if name in self.replaced:
            return await self.replaced[name](request)
        numbers = list(range(1, self.datablocks + 1))
        recall = numbers if self.recall else []
        match name:
            case "begin-retrieve-job":
                return w.BeginRetrieveJobResult(
                    wanted=self.wanted(), total=self.datasets, policy=self.policy, destination=w.Destination()
                )
            case "begin-retrieve-dataset":
                return w.BeginRetrieveResult(owner_group="p1", datablocks=self.datablocks)
            case "plan-retrieve":
                return w.PlanRetrieveResult(
                    datablocks=numbers,
                    files=5 * self.datablocks,
                    size_bytes=500 * self.datablocks,
                    packed_bytes=100 * self.datablocks,
                    largest_bytes=500,
                    recall=recall,
                )
            case "recall-datablocks":
                return w.RecallResult(pending=[])
            case "retrieve-datablock":
                return w.RetrieveDatablockResult(n=request.n, files=5, size_bytes=500)
            case "finish-retrieve-job":
                return m.FinishJobResult(status_code="told", message="told")
            case "find-held":
                return w.HeldResult(datablocks=numbers, packed_bytes=100, recall=recall)
            case "check-datablock":
                return w.CheckResult(files=5, size_bytes=500, packed_bytes=100, level="host")
        return await super().answer(name, request)

    def wanted(self) -> list[w.Wanted]:
        """What the scripted job wants."""
        return [w.Wanted(pid=pid, selection=SELECTION) for pid in self.pids()]


async def retrieve(r: Recorder, number: int = 1) -> None:
    """Start a retrieve job."""
    job_id = f"{r.name}-{number}"
    handle = await r.client.start_workflow(
        "RetrieveJob",
        w.RetrieveJobRequest(job_id=job_id),
        id=f"retrieve-job/{job_id}",
        task_queue=steps.WORKFLOWS,
        result_type=m.ArchiveJobResult,
        search_attributes=attributes(job_id=job_id, operation="retrieve"),
    )
    r.jobs.append(handle)


async def verify(r: Recorder) -> None:
    """Start a verification of the scenario's first dataset."""
    pid = f"20.500.12345/{r.name}-0"
    handle: Any = await r.client.start_workflow(
        "VerifyDataset", w.CheckDatasetRequest(pid=pid), id=f"verify-dataset/{pid}", task_queue=steps.WORKFLOWS
    )
    r.jobs.append(handle)


async def retrieved(r: Recorder) -> None:
    """Two datasets of two datablocks."""
    await r.serve(Retrieving(datasets=2))
    await retrieve(r)


async def retrieved_from_glacier(r: Recorder) -> None:
    """Restored after a while; one of the restored copies ends before it is read."""
    script = Retrieving(recall=True)
    asked: Counter[int] = Counter()
    reads: Counter[int] = Counter()

    async def recall(request: w.RecallRequest) -> w.RecallResult:
        asked.update(request.datablocks)
        return w.RecallResult(pending=[n for n in request.datablocks if asked[n] < 3])

    async def read(request: w.RetrieveDatablockRequest) -> w.RetrieveDatablockResult:
        reads[request.n] += 1
        if request.n == 2 and reads[2] == 1:
            raise content_error("its restored copy has ended", "system", "NotRecalled")
        return w.RetrieveDatablockResult(n=request.n, files=5, size_bytes=500)

    script.replaced |= {"recall-datablocks": recall, "retrieve-datablock": read}
    await r.serve(script)
    await retrieve(r)


async def retrieval_failing(r: Recorder) -> None:
    """Never archived, no bag on the LTS, other bytes than were archived; and SciCat that cannot be told of one."""
    script = Retrieving(datasets=4, datablocks=1)

    async def begin(request: w.Selection) -> w.BeginRetrieveResult:
        if request.pid.endswith("0"):
            raise content_error("was never archived", "refused", "Refused")
        return w.BeginRetrieveResult(owner_group="p1", datablocks=1)

    async def plan(request: w.Selection) -> w.PlanRetrieveResult:
        if request.pid.endswith("1"):
            raise content_error("no bag", "system", "NoBag")
        return w.PlanRetrieveResult(datablocks=[1], files=1, size_bytes=1, packed_bytes=1, largest_bytes=1)

    async def read(request: w.RetrieveDatablockRequest) -> w.RetrieveDatablockResult:
        raise content_error("differs", "system", "IntegrityMismatch")

    async def fail(request: w.FailRetrieveRequest) -> m.Done:
        if request.pid.endswith("3"):
            raise content_error("refuses our account", "system", "CatalogueFault")
        return m.Done(what="told")

    script.replaced |= {
        "begin-retrieve-dataset": begin,
        "plan-retrieve": plan,
        "retrieve-datablock": read,
        "fail-retrieve-dataset": fail,
    }
    await r.serve(script)
    await retrieve(r)


async def _stopped(r: Recorder, step: str, *, in_temporal: bool, recall: bool = False) -> None:
    script = Retrieving(datasets=2, recall=recall)
    reached = asyncio.Event()

    async def wait(request: Any) -> Any:
        reached.set()
        if step == "recall-datablocks":
            return w.RecallResult(pending=request.datablocks)
        await asyncio.sleep(3600)

    script.replaced[step] = wait
    await r.serve(script)
    await retrieve(r)
    await reached.wait()
    if step == "recall-datablocks":
        await asyncio.sleep(4)
    if in_temporal:
        await r.jobs[0].cancel()
    else:
        await r.jobs[0].signal("cancel", m.StopRequest(reason="not needed", who="anna"))


async def retrieval_stopped_by_signal(r: Recorder) -> None:
    """The job is stopped by a signal while it reads."""
    await _stopped(r, "retrieve-datablock", in_temporal=False)


async def retrieval_stopped_in_temporal(r: Recorder) -> None:
    """The job is cancelled in Temporal while it plans."""
    await _stopped(r, "plan-retrieve", in_temporal=True)


async def retrieval_stopped_while_restoring(r: Recorder) -> None:
    """The job is stopped by a signal while the LTS restores."""
    await _stopped(r, "recall-datablocks", in_temporal=False, recall=True)


async def retrieval_shared(r: Recorder) -> None:
    """A second job for what a first one has in work."""
    script = Retrieving(datablocks=1)
    second = asyncio.Event()

    async def read(request: w.RetrieveDatablockRequest) -> w.RetrieveDatablockResult:
        await second.wait()
        return w.RetrieveDatablockResult(n=1, files=5, size_bytes=500)

    script.replaced["retrieve-datablock"] = read
    await r.serve(script)
    await retrieve(r, 1)
    while "retrieve-datablock" not in script.names():
        await asyncio.sleep(0.05)
    await retrieve(r, 2)
    while script.names().count("begin-retrieve-job") < 2:
        await asyncio.sleep(0.05)
    await asyncio.sleep(2)
    second.set()


async def retrieval_refused(r: Recorder) -> None:
    """A job that is not ours."""
    script = Retrieving()

    async def begin(request: m.BeginJobRequest) -> w.BeginRetrieveJobResult:
        raise content_error("is no retrieve job", "refused", "ForeignJob")

    script.replaced["begin-retrieve-job"] = begin
    await r.serve(script)
    await retrieve(r)


async def long_retrieval(r: Recorder) -> None:
    """A dataset that continues as new between its datablocks."""
    script = Retrieving(datablocks=302)
    script.policy = m.Policy(datablocks_at_once=20)
    await r.serve(script)
    await retrieve(r)


async def verified(r: Recorder) -> None:
    """Three datablocks of Glacier: good, bad, and one that cannot be read."""
    script = Retrieving(datablocks=3, recall=True)

    async def check(request: w.CheckRequest) -> w.CheckResult:
        if request.n == 2:
            return w.CheckResult(bad="differs")
        if request.n == 3:
            raise content_error("cannot be read", "system", "LtsFault")
        return w.CheckResult(files=5, size_bytes=500, packed_bytes=100, level="host")

    script.replaced["check-datablock"] = check
    await r.serve(script)
    await verify(r)


async def not_verified(r: Recorder) -> None:
    """There is no bag."""
    script = Retrieving()

    async def find(request: w.CheckDatasetRequest) -> w.HeldResult:
        raise content_error("no complete bag", "system", "NoBag")

    script.replaced["find-held"] = find
    await r.serve(script)
    await verify(r)


async def long_verification(r: Recorder) -> None:
    """One that continues as new."""
    await r.serve(Retrieving(datablocks=302))
    await verify(r)


SCENARIOS = (
    retrieved,
    retrieved_from_glacier,
    retrieval_failing,
    retrieval_stopped_by_signal,
    retrieval_stopped_in_temporal,
    retrieval_stopped_while_restoring,
    retrieval_shared,
    retrieval_refused,
    long_retrieval,
    verified,
    not_verified,
    long_verification,
)
