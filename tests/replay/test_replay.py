"""Workflows of today replay the histories of yesterday, and histories stay small."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError, SandboxImportNotificationPolicy

from tests.replay.record import HISTORIES, SCENARIOS
from tests.replay.wire import SNAPSHOT, may_follow, snapshot
from tests.sandbox import SANDBOX
from worker import WORKFLOWS

RECORDED = sorted(HISTORIES.glob("*.json.gz"))


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress(path.read_bytes())))


async def replay(record: dict[str, Any]) -> None:
    """As production would, with its workflows and its converter; in the sandbox."""
    replayer = Replayer(workflows=WORKFLOWS, workflow_runner=SANDBOX, data_converter=pydantic_data_converter)
    await replayer.replay_workflow(WorkflowHistory.from_json(record["workflow_id"], record["history"]))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.removesuffix(".json.gz"))
async def test_a_recorded_history_replays(path: Path) -> None:
    await replay(read(path))


def test_every_scenario_is_recorded_and_every_workflow_is_among_them() -> None:
    assert {path.name.split(".")[0] for path in RECORDED} == {scenario.__name__ for scenario in SCENARIOS}
    assert {read(path)["type"] for path in RECORDED} == {one.__name__ for one in WORKFLOWS}


@pytest.mark.parametrize("change", ["another step", "a step less", "another child"])
async def test_a_history_of_other_commands_is_found_out(change: str) -> None:
    record = copy.deepcopy(read(HISTORIES / "good.1.ArchiveDatablock.json.gz"))
    events = record["history"]["events"]
    scheduled = [event for event in events if "activityTaskScheduledEventAttributes" in event]
    if change == "another step":
        scheduled[1]["activityTaskScheduledEventAttributes"]["activityType"]["name"] = "another-step"
    elif change == "a step less":
        cut = events.index(scheduled[1])
        ended = {**copy.deepcopy(events[-1]), "eventId": str(cut + 1)}
        record["history"]["events"] = [*events[:cut], ended]
    else:
        record = read(
            next(path for path in RECORDED if path.name.startswith("good.") and "ArchiveDataset" in path.name)
        )
        for event in record["history"]["events"]:
            if attributes := event.get("startChildWorkflowExecutionInitiatedEventAttributes"):
                attributes["workflowId"] += "-other"
                break
    with pytest.raises(NondeterminismError):
        await replay(record)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_p9_a_recorded_history_is_small(path: Path) -> None:
    history = read(path)["history"]
    assert len(history["events"]) < 4096
    assert len(json.dumps(history)) < 4 * 2**20


def test_workflows_bring_nothing_into_the_sandbox_that_is_not_meant_to_pass() -> None:
    strict = SANDBOX.restrictions.with_import_notification_policy(
        SandboxImportNotificationPolicy.RAISE_ON_UNINTENTIONAL_PASSTHROUGH
    )
    Replayer(
        workflows=WORKFLOWS,
        workflow_runner=SandboxedWorkflowRunner(restrictions=strict),
        data_converter=pydantic_data_converter,
    )


def test_wire_models_only_ever_gain_fields_that_may_be_absent() -> None:
    before: dict[str, dict[str, dict[str, object]]] = json.loads(SNAPSHOT.read_text())
    now = snapshot()
    for name, fields in before.items():
        assert name in now, f"{name} travels in histories and must stay"
        for field, facts in fields.items():
            assert may_follow(facts, now[name].get(field)), f"{name}.{field} must stay as it is, or allow more"
        for field in now[name].keys() - fields.keys():
            assert not now[name][field]["required"], f"{name}.{field} is new: old histories do not have it"
