"""Signals with a wrong payload, sent with the real ``temporal``: dropped or taken as they can be, never a stuck workflow."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from archiver import model as m
from cli.programs import obtain
from cli.servers import clean_environment
from tests.operators.test_status import FILES, waiting_for_space
from tests.pipeline.moments import full_lts
from tests.pipeline.system import System

WRONG = ['"x"', "5", "[]", '{"reason": 5}', '{"reason": {"a": 1}, "who": []}', '{"reason": null}', '"\\ud800"']
JOB_SIGNALS = ("cancel", "dataset_done", "no_such_signal")
DATASET_SIGNALS = ("cancel", "subscribe", "no_such_signal")


async def signal(system: System, workflow: str, name: str, payload: str | None, *more: str) -> None:
    """As a person would."""
    command = [str(obtain("temporal")), "workflow", "signal", "--workflow-id", workflow, "--name", name, *more]
    command += ["--input", payload] if payload is not None else []
    environment = clean_environment(
        TEMPORAL_ADDRESS=system.settings.temporal.address, TEMPORAL_NAMESPACE=system.namespace
    )
    ended = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("kind", ["job", "dataset"])
async def test_wrong_signals_leave_a_workflow_answering_and_a_right_one_stops_it(served: System, kind: str) -> None:
    pid = await served.dataset(FILES)
    with full_lts(served):
        job = await served.job(pid)
        handle = await served.start_job(job)
        await waiting_for_space(served, pid)
        workflow = f"archive-job/{job}" if kind == "job" else f"archive-dataset/{pid}"
        asked = served.client.get_workflow_handle(workflow)
        for name in JOB_SIGNALS if kind == "job" else DATASET_SIGNALS:
            for payload in WRONG:
                await signal(served, workflow, name, payload)
            await signal(served, workflow, name, '{"reason": 5}', "--input", "5")
            if name != "cancel":
                await signal(served, workflow, name, None)
                await signal(served, workflow, name, "null")
                await signal(served, workflow, name, '{"workflow_id": null, "pid": 5}')
                await signal(served, workflow, name, "{}", "--input-meta", "encoding=binary/null")
            await signal(served, workflow, name, "{}", "--input-meta", "encoding=from/nowhere")
        progress = await asked.query("progress")
        assert progress["stage"] in ("datasets", "datablocks"), "no wrong signal stopped it, nor stands in its way"
        told = await asked.describe()
        assert told.raw_description.pending_workflow_task.attempt <= 1
        await signal(served, workflow, "cancel", '{"reason": "right", "who": "anna"}')
        await handle.result()
    message = (await served.lifecycle(pid))["archiveReturnMessage"]
    assert (message["stoppedBy"], message["reason"]) == ("anna", "right")


@pytest.mark.parametrize("kind", ["job", "dataset"])
@pytest.mark.parametrize("payload", [None, "null", "{}"])
async def test_a_cancel_that_says_nothing_stops_all_the_same(served: System, kind: str, payload: str | None) -> None:
    """Without a handler's argument the SDK fails the workflow's task, for ever."""
    pid = await served.dataset(FILES)
    with full_lts(served):
        job = await served.job(pid)
        handle = await served.start_job(job)
        await waiting_for_space(served, pid)
        await signal(served, f"archive-job/{job}" if kind == "job" else f"archive-dataset/{pid}", "cancel", payload)
        assert (await handle.result()).counts == m.Counts(cancelled=1)
    message = (await served.lifecycle(pid))["archiveReturnMessage"]
    assert (message["stoppedBy"], message["reason"]) == ("unknown", "no reason given")


async def test_a_datablock_takes_no_signal_and_goes_on(served: System) -> None:
    pid = await served.dataset(FILES)
    with full_lts(served):
        handle = await served.start_job(await served.job(pid))
        await waiting_for_space(served, pid)
        await signal(served, f"archive-datablock/{pid}/1", "cancel", '"x"')
    assert (await handle.result()).counts == m.Counts(archived=1)
