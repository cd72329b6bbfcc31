"""What the workflows do in which order, and how they end, whatever the steps do."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError

from archiver import model as m
from tests.workflows.conftest import Serve
from tests.workflows.scripted import Script, content_error
from workflows import steps, work


async def start(client: Client, *, pids: list[str] | None = None) -> WorkflowHandle[Any, Any]:
    job_id = str(uuid4())
    return await client.start_workflow(
        "ArchiveJob",
        m.ArchiveJobRequest(job_id=job_id, pids=pids),
        id=f"archive-job/{job_id}",
        task_queue=steps.WORKFLOWS,
        result_type=m.ArchiveJobResult,
    )


def unique(script: Script) -> Script:
    """Pids of this test only: the server is shared."""
    tag = uuid4().hex[:8]
    pids = [f"20.500.1/{tag}-{k}" for k in range(script.datasets)]
    script.pids = lambda: pids  # type: ignore[method-assign]
    return script


async def test_p2_a_dataset_is_registered_after_verification_and_reported_after_registration(serve: Serve) -> None:
    script = unique(Script())
    result = await (await start(await serve(script))).result()
    assert result.counts == m.Counts(archived=1)
    names = script.names()
    assert names[:4] == ["begin-job", "begin-dataset", "read-origdatablocks", "plan-dataset"]
    order = [names.index(name) for name in ("publish-bag", "register-datablocks", "finish-dataset")]
    assert order == sorted(order)
    assert names.index("clean-staging") > order[1]  # beside the report, when nothing needs what is staged any more
    assert max(i for i, name in enumerate(names) if name == "verify-in-lts") < order[0]
    assert names[-1] == "finish-job"
    for n in (1, 2):
        own = [name for name, request in script.calls if getattr(request, "n", None) == n]
        assert own == ["pack-datablock", "wait-for-lts-space", "copy-to-lts", "verify-in-lts"]
    assert "delete-sources" not in names


async def test_p1_sources_are_deleted_last_and_only_where_the_setting_says_so(serve: Serve) -> None:
    script = unique(Script(policy=m.Policy(delete_sources=True)))
    await (await start(await serve(script))).result()
    names = script.names()
    assert names.index("finish-dataset") < names.index("delete-sources") < names.index("clean-staging")


async def test_p7_one_failing_dataset_does_not_stop_the_others(serve: Serve) -> None:
    script = unique(Script(datasets=3))
    bad = script.pids()[1]

    async def plan(request: m.PlanRequest) -> m.PlanResult:
        if request.pid == bad:
            raise content_error("2 files are missing, first raw/a.h5")
        return m.PlanResult(plan_id="0" * 32, datablocks=1, files=1, size_bytes=1, largest_bytes=1)

    script.replaced["plan-dataset"] = plan
    result = await (await start(await serve(script))).result()
    assert result.counts == m.Counts(archived=2, content_errors=1)
    (finish,) = script.of("finish-job")
    failed = [outcome for outcome in finish.outcomes if outcome.outcome == "failed"]
    assert [(outcome.pid, outcome.error.kind) for outcome in failed] == [(bad, "content")]
    assert set(script.names(pid=bad)[-2:]) == {"clean-staging", "fail-dataset"}


async def test_the_datablocks_window_is_bounded_and_all_are_done(serve: Serve) -> None:
    script = unique(Script(datablocks=9, policy=m.Policy(datablocks_at_once=3)))
    await (await start(await serve(script))).result()
    assert sorted(request.n for request in script.of("verify-in-lts")) == list(range(1, 10))
    assert script.most_at_once["pack-datablock"] <= 3


async def test_a_system_error_that_lasts_fails_the_dataset_and_rolls_back(serve: Serve) -> None:
    script = unique(Script())

    async def pack(request: m.PackRequest) -> m.PackResult:
        info = m.ErrorInfo(type="StagingFault", kind="system", message="staging refuses us")
        raise ApplicationError("staging refuses us", info.model_dump(), type="StagingFault", non_retryable=True)

    script.replaced["pack-datablock"] = pack
    result = await (await start(await serve(script))).result()
    assert result.counts == m.Counts(system_errors=1)
    assert "register-datablocks" not in script.names()
    assert set(script.names()[-4:-1]) == {"roll-back-lts", "clean-staging", "fail-dataset"}
    assert script.names()[-1] == "finish-job"


async def test_p5_users_are_told_of_a_failure_while_lts_and_staging_are_out(serve: Serve) -> None:
    script = unique(Script(policy=m.Policy(give_up_seconds=0)))

    async def out(request: Any) -> Any:
        raise content_error("the LTS is out", "system", "LtsFault")

    script.replaced |= {"copy-to-lts": out, "roll-back-lts": out, "clean-staging": out}
    result = await (await start(await serve(script))).result()
    assert result.counts == m.Counts(system_errors=1)
    assert "fail-dataset" in script.names()
    (finish,) = script.of("finish-job")
    assert "left on the LTS" in finish.outcomes[0].message
    assert "staged objects are left" in finish.outcomes[0].message


@pytest.mark.parametrize("end", ["archived", "failed", "stopped"])
async def test_a_clean_up_that_lasts_delays_no_report_and_is_done_all_the_same(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(work, "TELL_AFTER", timedelta(seconds=1))
    script, go_on, cleaned = unique(Script(datablocks=1)), asyncio.Event(), []

    async def clean(request: Any) -> Any:
        await go_on.wait()
        cleaned.append(request)
        return m.Done(what="cleaned")

    async def plan(request: m.PlanRequest) -> m.PlanResult:
        if end == "stopped":
            await handle.signal("cancel", m.StopRequest(reason="test", who="test"))
            await asyncio.sleep(3600)
        raise content_error("2 files are missing")

    script.replaced["clean-staging"] = clean
    if end != "archived":
        script.replaced |= {"roll-back-lts": clean, "plan-dataset": plan}
    handle = await start(client := await serve(script, sandboxed=False))
    result = await asyncio.wait_for(handle.result(), 60)
    counts = {"archived": m.Counts(archived=1), "failed": m.Counts(content_errors=1), "stopped": m.Counts(cancelled=1)}
    assert (result.counts, cleaned) == (counts[end], [])
    dataset = client.get_workflow_handle(f"archive-dataset/{script.pids()[0]}", result_type=m.DatasetOutcome)
    assert (await dataset.describe()).status == WorkflowExecutionStatus.RUNNING
    go_on.set()
    # The job is closed, and asked it to stop: what is under way is cleared all the same.
    if end == "stopped":
        with pytest.raises(WorkflowFailureError) as failure:
            await asyncio.wait_for(dataset.result(), 60)
        assert isinstance(failure.value.cause, CancelledError)
    else:
        assert (await asyncio.wait_for(dataset.result(), 60)).outcome == end
    assert cleaned


async def test_a_job_that_comes_while_a_failed_run_still_clears_gets_a_run_of_its_own(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "TELL_AFTER", timedelta(seconds=1))
    script, go_on = unique(Script(datablocks=1)), asyncio.Event()

    async def clean(request: Any) -> Any:
        await go_on.wait()
        return m.Done(what="cleaned")

    async def plan(request: m.PlanRequest) -> m.PlanResult:
        del script.replaced["plan-dataset"]
        raise content_error("2 files are missing")

    script.replaced |= {"clean-staging": clean, "plan-dataset": plan}
    first = await start(client := await serve(script, sandboxed=False))
    assert (await asyncio.wait_for(first.result(), 60)).counts == m.Counts(content_errors=1)
    second = await start(client)
    await asyncio.sleep(2)
    assert (await second.describe()).status == WorkflowExecutionStatus.RUNNING
    go_on.set()
    assert (await asyncio.wait_for(second.result(), 60)).counts == m.Counts(archived=1)


async def test_bytes_that_do_not_verify_go_into_quarantine_and_are_made_anew_from_the_source(serve: Serve) -> None:
    script = unique(Script(datablocks=1))
    results = iter([content_error("differs", "system", "IntegrityMismatch"), None])

    async def verify(request: m.VerifyRequest) -> m.VerifyResult:
        if error := next(results):
            raise error
        return m.VerifyResult(level="host", how_read="", size_bytes=1, packed_bytes=1, files=1, sha256="")

    script.replaced["verify-in-lts"] = verify
    result = await (await start(await serve(script))).result()
    assert result.counts.archived == 1
    assert [request.fresh for request in script.of("pack-datablock")] == [False, True]
    names = script.names()
    assert names.count("quarantine-datablock") == 1


async def test_verified_datablocks_of_an_earlier_try_are_read_again_and_not_packed(serve: Serve) -> None:
    script = unique(Script(datablocks=3))

    async def survey(request: m.SurveyRequest) -> m.SurveyResult:
        return m.SurveyResult(reusable=[1, 3])

    script.replaced["survey-lts"] = survey
    await (await start(await serve(script))).result()
    assert [request.n for request in script.of("pack-datablock")] == [2]
    assert sorted(request.n for request in script.of("verify-in-lts")) == [1, 2, 3]


async def test_p3_two_jobs_at_once_on_one_dataset_share_one_work_and_its_outcome(serve: Serve) -> None:
    script = unique(Script())
    packing, go_on = asyncio.Event(), asyncio.Event()
    usual = script.answer

    async def pack(request: m.PackRequest) -> m.PackResult:
        packing.set()
        await go_on.wait()
        del script.replaced["pack-datablock"]
        return await usual("pack-datablock", request)  # type: ignore[no-any-return]

    script.replaced["pack-datablock"] = pack
    script.datablocks = 1
    client = await serve(script)
    first = await start(client)
    await packing.wait()
    second = await start(client)
    while not (await second.query("progress", result_type=m.JobProgress)).waiting_for_others:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    go_on.set()
    results = await asyncio.gather(first.result(), second.result())
    assert [result.counts.archived for result in results] == [1, 1]
    assert script.names().count("begin-dataset") == 1
    assert script.names().count("register-datablocks") == 1


@pytest.mark.parametrize("way", ["signal", "temporal"])
async def test_a_stopped_job_rolls_back_and_says_who_and_why(serve: Serve, way: str) -> None:
    script = unique(Script())
    packing = asyncio.Event()

    async def pack(request: m.PackRequest) -> m.PackResult:
        packing.set()
        await asyncio.sleep(3600)
        raise AssertionError

    script.replaced["pack-datablock"] = pack
    handle = await start(await serve(script))
    await packing.wait()
    if way == "signal":
        await handle.signal("cancel", m.StopRequest(reason="beam time over", who="anna"))
        await handle.signal("cancel", m.StopRequest(reason="again", who="ben"))
        result = await handle.result()
        assert result.counts.cancelled == 1
    else:
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        assert isinstance(failed.value.cause, CancelledError)
    assert set(script.names()[-4:-1]) == {"roll-back-lts", "clean-staging", "fail-dataset"}
    assert script.names()[-1] == "finish-job"
    (finish,) = script.of("finish-job")
    assert finish.stopped.who == ("anna" if way == "signal" else "Temporal (Web UI or CLI)")
    (fail,) = script.of("fail-dataset")
    assert fail.stopped == finish.stopped, "each dataset is told who stopped its job, and why"
    assert "register-datablocks" not in script.names()


async def test_a_cancel_is_heard_also_by_a_step_that_succeeds_all_the_same(serve: Serve) -> None:
    script = unique(Script(datablocks=1))
    packing = asyncio.Event()

    async def pack(request: m.PackRequest) -> m.PackResult:
        packing.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
        return m.PackResult(size_bytes=1, packed_bytes=1, files=1, sha256="", manifest_sha256="b")

    script.replaced["pack-datablock"] = pack
    handle = await start(await serve(script))
    await packing.wait()
    await handle.signal("cancel", m.StopRequest(reason="enough", who="anna"))
    assert (await handle.result()).counts.cancelled == 1
    assert "wait-for-lts-space" not in script.names()


async def test_p5_a_dataset_stopped_while_it_is_being_marked_is_put_right(serve: Serve) -> None:
    script = unique(Script())
    marking, marked = asyncio.Event(), asyncio.Event()

    async def begin(request: m.BeginDatasetRequest) -> m.BeginDatasetResult:
        marking.set()
        try:
            await marked.wait()
        except asyncio.CancelledError:
            await marked.wait()  # as a call to SciCat that is on its way is waited for
            raise
        return m.BeginDatasetResult(state="go")

    script.replaced["begin-dataset"] = begin
    handle = await start(await serve(script))
    await marking.wait()
    await handle.signal("cancel", m.StopRequest(reason="enough", who="anna"))
    await asyncio.sleep(0.3)
    assert "fail-dataset" not in script.names(), "it could still be overwritten by the step that marks"
    marked.set()
    assert (await handle.result()).counts.cancelled == 1
    assert set(script.names()[-3:-1]) == {"clean-staging", "fail-dataset"}
    assert "read-origdatablocks" not in script.names()


async def test_stopping_one_dataset_lets_the_others_of_its_job_go_on(serve: Serve) -> None:
    script = unique(Script(datasets=2))
    stopped = script.pids()[0]
    packing = asyncio.Event()
    usual = script.answer

    async def pack(request: m.PackRequest) -> Any:
        if request.pid == stopped:
            packing.set()
            await asyncio.sleep(3600)
        return m.PackResult(size_bytes=1, packed_bytes=1, files=1, sha256="", manifest_sha256="b")

    del usual
    script.replaced["pack-datablock"] = pack
    client = await serve(script)
    handle = await start(client)
    await packing.wait()
    dataset = client.get_workflow_handle(f"archive-dataset/{stopped}")
    await dataset.signal("cancel", m.StopRequest(reason="wrong one", who="anna"))
    result = await handle.result()
    assert result.counts == m.Counts(archived=1, cancelled=1)
    (fail,) = script.of("fail-dataset")
    assert (fail.pid, fail.stopped.reason) == (stopped, "wrong one")


async def test_a_cancel_in_the_instant_of_registration_ends_archived(serve: Serve) -> None:
    script = unique(Script())
    registering, go_on = asyncio.Event(), asyncio.Event()

    async def register(request: m.DatasetRef) -> m.RegisterResult:
        registering.set()
        await go_on.wait()
        return m.RegisterResult(datablocks=2, files=10, size_bytes=1, packed_bytes=1, created=2)

    script.replaced["register-datablocks"] = register
    client = await serve(script)
    handle = await start(client)
    await registering.wait()
    await client.get_workflow_handle(f"archive-dataset/{script.pids()[0]}").cancel()
    await asyncio.sleep(0.3)
    go_on.set()
    result = await handle.result()
    assert result.counts.archived == 1
    assert "fail-dataset" not in script.names()


async def test_an_unknown_or_refused_dataset_is_left_as_it_is(serve: Serve) -> None:
    script = unique(Script())

    async def begin(request: m.BeginDatasetRequest) -> m.BeginDatasetResult:
        raise content_error("belongs to another archive", "refused", "Refused")

    script.replaced["begin-dataset"] = begin
    result = await (await start(await serve(script))).result()
    assert result.counts.content_errors == 1
    assert not {"fail-dataset", "clean-staging", "roll-back-lts"} & set(script.names())


async def test_a_job_that_is_refused_says_so_and_starts_nothing(serve: Serve) -> None:
    script = unique(Script())

    async def begin(request: m.BeginJobRequest) -> m.BeginJobResult:
        raise content_error("job names no dataset", "refused", "Refused")

    script.replaced["begin-job"] = begin
    handle = await start(await serve(script))
    with pytest.raises(WorkflowFailureError, match="failed") as failed:
        await handle.result()
    assert "names no dataset" in str(failed.value.cause)
    assert script.names() == ["begin-job", "finish-job"]
    assert script.of("finish-job")[0].problem.kind == "refused"


async def test_p9_a_job_of_many_datasets_goes_on_in_a_second_run_and_keeps_its_histories_small(serve: Serve) -> None:
    script = unique(Script(datasets=450, datablocks=1, policy=m.Policy(datasets_at_once=40)))

    async def begin(request: m.BeginDatasetRequest) -> m.BeginDatasetResult:
        return m.BeginDatasetResult(state="already", message="was archived before")

    script.replaced["begin-dataset"] = begin
    client = await serve(script, sandboxed=False)
    last = await start(client)
    result = await last.result()
    assert result.counts == m.Counts(already_archived=450)
    (finish,) = script.of("finish-job")
    assert len(finish.outcomes) == m.MAX_OUTCOMES
    first = client.get_workflow_handle(last.id, run_id=last.first_execution_run_id)
    runs = [await handle.describe() for handle in (first, last)]
    assert runs[0].status == WorkflowExecutionStatus.CONTINUED_AS_NEW
    assert runs[1].status == WorkflowExecutionStatus.COMPLETED
    for run in runs:
        info = run.raw_description.workflow_execution_info
        assert info.history_length < 4096
        assert info.history_size_bytes < 4 * 2**20
