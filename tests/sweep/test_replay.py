"""The sweeps' workflows replay what they did, and what they keep of it is small."""

from __future__ import annotations

import pytest
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from archiver.model import MAX_FOUND
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import until
from tests.pipeline.system import System
from tests.sandbox import SANDBOX
from tests.sweep.sweeping import sweeping
from tests.sweep.test_leftovers import ANY_AGE, SMALL, leave
from worker import SWEEPS
from workflows.sweep import FINDERS

pytestmark = pytest.mark.one_version


async def test_p9_sweeps_replay_and_their_histories_grow_by_few_events_for_each_dataset(
    make_system: MakeSystem,
) -> None:
    system = await make_system()
    pids = [await system.dataset(SMALL) for _ in range(3)]
    for number, pid in enumerate(pids):
        leave(system, pid, promise=number)
    async with sweeping(system, overrides=ANY_AGE) as sweeper:
        await sweeper.jobs()
        assert (await sweeper.leftovers(dry_run=True)).found == 3
        assert (await sweeper.leftovers()).cleared == 3
    await until(lambda: _ended(system, 1 + 2 + 3), "all are listed")
    replayer = Replayer(workflows=SWEEPS, workflow_runner=SANDBOX, data_converter=pydantic_data_converter)
    events: dict[str, list[int]] = {}
    async for one in system.client.list_workflows("ExecutionStatus = 'Completed'"):
        history = await system.client.get_workflow_handle(one.id, run_id=one.run_id).fetch_history()
        await replayer.replay_workflow(history)
        events.setdefault(one.workflow_type, []).append(len(history.events))
    assert {kind: len(runs) for kind, runs in events.items()} == {"Sweep": 1, "SweepLeftovers": 2, "SweepDataset": 3}
    without, with_three = sorted(events["SweepLeftovers"])
    most = len(FINDERS) * MAX_FOUND
    assert without + most * (with_three - without) / 3 < 4096


async def _ended(system: System, workflows: int) -> bool:
    return (await system.client.count_workflows("ExecutionStatus = 'Completed'")).count >= workflows
