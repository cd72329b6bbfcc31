"""A sweep that fails again and again is seen: by ``health``, ``doctor``, ``jobs`` and in the worker's metrics."""

from __future__ import annotations

import json

import pytest
from temporalio.client import WorkflowFailureError

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from cli import sweep_state
from cli.doctor.check import Outcome
from cli.doctor.ground import Ground
from cli.doctor.temporal import sweeps
from tests.operators.inside import inside
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import until
from tests.pipeline.system import System
from tests.sweep.sweeping import Sweeper, sweeping

REFUSED = Fault("GET", "/jobs$", times=10_000, status=400, body={"message": "Property sort._id should not exist"})


async def fail(sweeper: Sweeper, times: int) -> None:
    for _ in range(times):
        with pytest.raises(WorkflowFailureError):
            await sweeper.jobs()


async def failing(system: System) -> list[str]:
    return [sweep_state.line(state) for state in await sweep_state.failing(system.client)]


async def test_a_sweep_that_failed_three_times_in_a_row_is_told_everywhere_until_one_does_its_work(
    make_system: MakeSystem,
) -> None:
    system = await make_system()
    system.standin.faults.append(REFUSED)
    async with sweeping(system) as sweeper:
        await fail(sweeper, 2)
        assert await failing(system) == [], "SciCat may have been started again"
        await fail(sweeper, 1)
        (line,) = await until(lambda: failing(system), "Temporal lists them")
        assert line.startswith("the sweep for jobs failed 3 times in a row since 20")
        assert "status 400: Property sort._id should not exist" in line

        said = await inside(system.config, "health")
        assert said.code == 1
        assert f"FAIL  {line}" in said.out
        told = json.loads((await inside(system.config, "--json", "health")).out)
        assert [one["part"] for one in told["failing_sweeps"]] == ["jobs"]
        assert "the sweep" not in (await inside(system.config, "health", "--queue", "catalogue")).out
        assert f"FAILS   {line}" in (await inside(system.config, "jobs")).out
        finding = await sweeps(Ground(system.settings, client=system.client))
        assert (finding.outcome, line in finding.found) == (Outcome.FAIL, True)

        system.standin.faults.clear()
        assert (await sweeper.jobs()).failed == 0

        async def well() -> bool:
            return await failing(system) == []

        await until(well, "the last one did its work")
    assert (await sweeps(Ground(system.settings, client=system.client))).outcome == Outcome.OK
    assert "the sweep" not in (await inside(system.config, "jobs")).out


async def test_a_sweep_that_ends_with_a_place_that_it_could_not_look_at_fails_too(make_system: MakeSystem) -> None:
    system = await make_system()
    async with sweeping(system) as sweeper:
        system.standin.faults.append(Fault("GET", "/datasets$", times=10_000, status=400))
        for _ in range(3):
            assert (await sweeper.leftovers()).problems
        (line,) = await until(lambda: failing(system), "Temporal lists them")
        assert line.startswith("the sweep for leftovers failed 3 times in a row")
        system.standin.faults.clear()
        assert (await sweeper.leftovers(dry_run=True)).problems == []
        assert await failing(system) == [line], "what would be done was not done"
        assert (await sweeper.leftovers()).problems == []

        async def well() -> bool:
            return await failing(system) == []

        await until(well, "the last one did its work")


async def test_looks_of_one_run_that_goes_on_are_counted_too(make_system: MakeSystem) -> None:
    system = await make_system()
    async with sweeping(system) as sweeper:
        request = m.SweepRequest(looks=30, every_seconds=1)
        handle = await system.client.start_workflow("Sweep", request, id="test-looks", task_queue=sweeper.queue)
        system.standin.faults.append(REFUSED)
        (line,) = await until(lambda: failing(system), "three looks failed")
        assert "Property sort._id should not exist" in line
        system.standin.faults.clear()

        async def well() -> bool:
            return await failing(system) == []

        await until(well, "a look did its work")
        await handle.terminate()
