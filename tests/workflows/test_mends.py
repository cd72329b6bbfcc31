"""What is lost in staging is made again by the dataset's workflow: what must be, no more, and not for ever."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from archiver import model as m
from tests.workflows.conftest import Serve
from tests.workflows.scripted import PLAN_ID, Script
from tests.workflows.test_orchestration import start, unique
from workflows.dataset import MENDS


def lost(what: str, datablock: int = 0) -> ApplicationError:
    """The failure of a step that finds a staged object gone."""
    info = m.ErrorInfo(type="StagedLost", kind="system", message=f"{what} is gone", lost=what, datablock=datablock)
    return ApplicationError(info.message, info.model_dump(), type=info.type, non_retryable=True)


def replace(script: Script, name: str, *errors: ApplicationError | None, n: int | None = None) -> None:
    """The step fails so, once each (of datablock ``n`` only); then it does as usual."""
    coming, usual = list(errors), script.answer

    async def answer(request: Any) -> Any:
        if coming and n in (None, getattr(request, "n", None)) and (error := coming.pop(0)) is not None:
            raise error
        del script.replaced[name]
        try:
            return await usual(name, request)
        finally:
            script.replaced[name] = answer

    script.replaced[name] = answer


def packed(script: Script) -> Counter[int]:
    return Counter(request.n for request in script.of("pack-datablock"))


async def test_a_lost_plan_is_made_again_and_only_the_datablock_that_needs_it_is_begun_again(serve: Serve) -> None:
    script = unique(Script(datablocks=3, policy=m.Policy(datablocks_at_once=1)))
    replace(script, "pack-datablock", lost("plan"), n=2)
    assert (await (await start(await serve(script))).result()).counts == m.Counts(archived=1)
    names = Counter(script.names())
    assert (names["read-origdatablocks"], names["plan-dataset"], names["survey-lts"]) == (2, 2, 1)
    assert packed(script) == {1: 1, 2: 2, 3: 1}


async def test_datablocks_that_lose_the_plan_at_once_have_it_made_again_once(serve: Serve) -> None:
    script = unique(Script(datablocks=4, policy=m.Policy(datablocks_at_once=4)))
    all_there, there = asyncio.Event(), 0

    async def pack(request: m.PackRequest) -> Any:
        nonlocal there
        there += 1
        if there > 4:
            return m.PackResult(size_bytes=1, packed_bytes=1, files=1, sha256="", manifest_sha256="b")
        if there == 4:
            all_there.set()
        await all_there.wait()
        raise lost("plan")

    script.replaced["pack-datablock"] = pack
    assert (await (await start(await serve(script))).result()).counts == m.Counts(archived=1)
    assert script.names().count("plan-dataset") == 2
    assert packed(script) == dict.fromkeys(range(1, 5), 2)


async def test_another_plan_makes_all_datablocks_anew_and_nothing_of_the_old_one_counts(serve: Serve) -> None:
    script = unique(Script(datablocks=2, policy=m.Policy(datablocks_at_once=1)))
    replace(script, "pack-datablock", lost("plan"), n=2)
    ids = iter([PLAN_ID, "1" * 32])

    async def plan(request: m.PlanRequest) -> m.PlanResult:
        return m.PlanResult(plan_id=next(ids), datablocks=2, files=10, size_bytes=1000, largest_bytes=500)

    async def verify(request: m.VerifyRequest) -> m.VerifyResult:
        digest = f"{request.n if request.plan_id == PLAN_ID else 100 * request.n:064x}"
        return m.VerifyResult(
            level="host", how_read="", files=1, size_bytes=2, packed_bytes=1, sha256="", digest=digest
        )

    script.replaced |= {"plan-dataset": plan, "verify-in-lts": verify}
    assert (await (await start(await serve(script))).result()).counts == m.Counts(archived=1)
    assert script.names().count("survey-lts") == 2
    assert [(one.plan_id[0], one.n) for one in script.of("pack-datablock")] == [
        *(("0", 1), ("0", 2)),
        *(("1", 1), ("1", 2)),
    ]
    (compared,) = script.of("compare-with-catalogue")
    assert compared.verified == m.Contents(files=2, size_bytes=4, digest=f"{300:064x}")
    (registered,) = script.of("register-datablocks")
    assert (registered.plan_id, registered.verified) == ("1" * 32, compared.verified)


async def test_what_the_bag_and_registration_miss_is_made_again_by_what_made_it(serve: Serve) -> None:
    script = unique(Script(datablocks=2))
    replace(script, "publish-bag", lost("record"), lost("verification", 2))
    replace(script, "register-datablocks", lost("bag"))
    assert (await (await start(await serve(script))).result()).counts == m.Counts(archived=1)
    names = Counter(script.names())
    assert names["begin-dataset"] == 2
    assert packed(script) == {1: 1, 2: 1}
    verified = [(one.n, bool(one.manifest_sha256)) for one in script.of("verify-in-lts")]
    assert sorted(verified) == [(1, True), (2, False), (2, True)], "what lies on the LTS is verified again, not packed"
    assert [one.restage for one in script.of("publish-bag")] == [False, True, True, True]
    (compared,) = script.of("compare-with-catalogue")
    assert compared.verified.files == 10, "counted once"


@pytest.mark.parametrize(
    ("step", "what"), [("plan-dataset", "listing"), ("pack-datablock", "plan"), ("register-datablocks", "bag")]
)
async def test_what_is_lost_again_and_again_is_a_failure_that_rolls_back(serve: Serve, step: str, what: str) -> None:
    script = unique(Script(datablocks=1))
    replace(script, step, *[lost(what)] * 100)
    result = await (await start(await serve(script))).result()
    assert result.counts == m.Counts(system_errors=1)
    assert script.names().count(step) == MENDS + 1
    assert "fail-dataset" in script.names()
    assert "finish-dataset" not in script.names()


async def test_a_catalogue_that_changed_is_told_before_the_bag_is_begun(serve: Serve) -> None:
    script = unique(Script())

    async def compare(request: m.CompareRequest) -> Any:
        info = m.ErrorInfo(type="CatalogueChanged", kind="content", message="lists other files")
        raise ApplicationError(info.message, info.model_dump(), type=info.type, non_retryable=True)

    script.replaced["compare-with-catalogue"] = compare
    result = await (await start(await serve(script))).result()
    assert result.counts == m.Counts(content_errors=1)
    assert not {"publish-bag", "register-datablocks", "finish-dataset"} & set(script.names())
