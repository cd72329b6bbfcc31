"""When the workflow has the receipt written, and what becomes of a dataset whose receipt cannot be."""

from __future__ import annotations

from archiver import model as m
from tests.receipt.conftest import Serve
from tests.workflows.scripted import Script, content_error
from tests.workflows.test_orchestration import start, unique


def types(request: m.DatasetRef) -> list[str]:
    return [event.type for event in request.events]


async def test_p2_registration_and_report_are_recorded_after_they_are_true(serve: Serve) -> None:
    script = unique(Script(datablocks=1))
    await (await start(await serve(script))).result()
    names = script.names()
    assert names.index("finish-dataset") < names.index("record-events")
    (bag,), (last,) = script.of("publish-bag"), script.of("record-events")
    assert types(bag) == ["ingestion start", "validation"]
    assert types(last) == ["information package creation", "metadata modification", "ingestion end"]
    (verify,) = script.of("verify-in-lts")
    assert [event.type for event in verify.events] == ["packing", "transfer"]


async def test_a_receipt_that_cannot_be_written_changes_no_outcome_and_is_said(serve: Serve) -> None:
    script = unique(Script(datablocks=1))

    async def record(request: m.DatasetRef) -> m.Done:
        raise content_error("the LTS is read-only", "system", "LtsFault")

    script.replaced["record-events"] = record
    result = await (await start(await serve(script))).result()
    assert result.counts == m.Counts(archived=1)
    (finish,) = script.of("finish-job")
    assert "; the receipt beside the bag ends before registration: the LTS is read-only" in finish.outcomes[0].message
    assert "clean-staging" in script.names()


async def test_what_fails_after_the_bag_is_told_behind_what_the_bag_says(serve: Serve) -> None:
    script = unique(Script(datablocks=1))

    async def register(request: m.DatasetRef) -> m.RegisterResult:
        raise content_error("SciCat refuses us", "system", "CatalogueFault")

    script.replaced["register-datablocks"] = register
    await (await start(await serve(script))).result()
    (left,) = script.of("roll-back-lts")
    assert types(left)[0] == "information package creation"
    assert (left.events[-1].type, left.events[-1].outcome) == ("ingestion end", "failure")
    assert left.events[-1].event == "The dataset was not archived: SciCat refuses us"
    assert "record-events" not in script.names()
