"""The schedules of the sweeps, and the command that sweeps at once."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, ScheduleActionStartWorkflow, ScheduleOverlapPolicy
from temporalio.service import RPCError

from archiver import model as m
from archiver.settings import S3Settings
from cli import servers
from cli.schedules import JOBS, LEFTOVERS, RETRIEVED
from cli.setup import set_up
from tests.conftest import until_answers
from tests.operators.inside import inside
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import until
from tests.pipeline.oracle import nothing_left
from tests.pipeline.system import System
from tests.sweep.sweeping import runs
from tests.sweep.test_leftovers import SMALL, leave

pytestmark = pytest.mark.one_version

ON = {"sweep": {"every_seconds": 60, "leftovers_every_seconds": 3600, "retrieved_every_seconds": 1800}}


async def schedules(client: Client) -> dict[str, Any]:
    """Period and policy of each schedule there is."""
    found = {}
    for name in (JOBS, LEFTOVERS, RETRIEVED):
        try:
            schedule = (await client.get_schedule_handle(name).describe()).schedule
        except RPCError:
            continue
        found[name] = (schedule.spec.intervals[0].every, schedule.policy.overlap, schedule.state.paused)
    return found


async def made(system: System) -> int:
    """What ``archiver setup`` has to do now."""
    return await set_up(system.settings, dry_run=False, say=lambda _: None)


async def test_setup_makes_the_schedules_once_and_leaves_one_that_somebody_paused_paused(
    make_system: MakeSystem,
) -> None:
    system = await make_system(ON)
    skip = ScheduleOverlapPolicy.SKIP
    usual = {
        JOBS: (timedelta(minutes=1), skip, False),
        LEFTOVERS: (timedelta(hours=1), skip, False),
        RETRIEVED: (timedelta(minutes=30), skip, False),
    }
    assert await schedules(system.client) == usual
    assert await made(system) == 0
    description = await system.client.get_schedule_handle(JOBS).describe()
    action = description.schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    (request,) = await description.data_converter.decode([action.args[0]], [m.SweepRequest])
    assert (request.looks, request.every_seconds) == (30, 60), "half an hour: two rows an hour in the Web UI's list"
    await system.client.get_schedule_handle(JOBS).pause(note="beam time")
    assert await made(system) == 0
    assert await schedules(system.client) == usual | {JOBS: (timedelta(minutes=1), skip, True)}


async def test_setup_changes_a_period_and_removes_a_schedule_that_is_not_wanted(make_system: MakeSystem) -> None:
    system = await make_system(ON)
    await system.client.get_schedule_handle(JOBS).pause(note="beam time")
    system.settings = system.settings.model_copy(
        update={
            "sweep": system.settings.sweep.model_copy(
                update={"every_seconds": 5, "leftovers_every_seconds": 0, "retrieved_every_seconds": 0}
            )
        }
    )
    assert await set_up(system.settings, dry_run=True, say=lambda _: None) == 3
    assert (await schedules(system.client)).keys() == {JOBS, LEFTOVERS, RETRIEVED}
    assert await made(system) == 3
    assert await schedules(system.client) == {JOBS: (timedelta(seconds=5), ScheduleOverlapPolicy.SKIP, True)}
    assert await made(system) == 0


async def test_p5_the_sweep_goes_on_by_itself_after_a_restart_of_temporal(tmp_path: Path, s3: S3Settings) -> None:
    port = servers.free_port()
    folder = tmp_path / "temporal"
    folder.mkdir()
    server = servers.temporal_dev_server(folder, port=port).start()
    system = System(tmp_path / "system", f"127.0.0.1:{port}", s3, {"sweep": {"every_seconds": 1}})
    system.folder.mkdir()
    try:
        server.wait_for_port(port)
        await until_answers(f"127.0.0.1:{port}")
        await system.start()
        server.kill()
        server.start()
        server.wait_for_port(port)
        pid = await system.dataset(SMALL)
        job = await system.job(pid)
        await until(lambda: _answers(system))
        async with system.workers():
            await until(lambda: _finished(system, job))
        assert len(await runs(system, job)) == 1
        assert (await system.job_record(job))["statusCode"] == "finishedSuccessful"
    finally:
        await system.stop()
        server.stop()


async def test_archiver_sweep_does_both_sweeps_at_once_and_says_what_it_did(make_system: MakeSystem) -> None:
    system = await make_system(
        {"sweep": {"every_seconds": 0, "leftovers_every_seconds": 0, "leftovers_after_hours": 0}}
    )
    left = await system.dataset(SMALL)
    leave(system, left)
    job = await system.job(await system.dataset(SMALL))
    async with system.workers():
        dry = json.loads((await archiver(system, "--json", "sweep", "--dry-run"))[0])
        assert (dry["version"], dry["jobs"]["started"], dry["leftovers"]["found"]) == (1, 1, 1)
        assert dry["jobs"]["dry_run"] is True
        assert await runs(system, job) == []
        text, code = await archiver(system, "sweep")
        assert code == 0
        assert f"{job}: started" in text
        assert f"{left}: " in text
        await until(lambda: _finished(system, job))
        nothing_left(system, left)
        told = (await archiver(system, "status", left))[0]
        assert "leftovers cleared" in told, "who asks for the dataset learns what happened last"
        text, code = await archiver(system, "sweep", "jobs")
        assert "leftovers" not in text


async def test_archiver_sweep_refuses_another_word(make_system: MakeSystem) -> None:
    system = await make_system()
    assert (await archiver(system, "sweep", "everything"))[1] == 2


async def archiver(system: System, *arguments: str) -> tuple[str, int]:
    """The command: what it says, and its exit code."""
    ended = await inside(system.config, *arguments)
    print(ended.err)
    return ended.out, ended.code


async def _answers(system: System) -> bool:
    try:
        await system.client.count_workflows()
    except RPCError:
        return False
    return True


async def _finished(system: System, job_id: str) -> bool:
    return str((await system.job_record(job_id))["statusCode"]).startswith("finished")
