"""Every command of docs/operators.md, run as it stands there with the real ``temporal``, in the state it is about."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path

import pytest

from archiver import model as m
from archiver.catalogue.standin.app import Fault
from cli.programs import ROOT, obtain
from cli.servers import clean_environment
from tests.operators.test_status import FILES, SMALL, waiting_for_space
from tests.pipeline.moments import dataset_workflow, full_lts, until
from tests.pipeline.system import System

PAGE = (ROOT / "docs" / "operators.md").read_text("utf-8")
COMMANDS = dict(re.findall(r"^### (.+?)\n```sh\n(.+?)```", PAGE, re.MULTILINE | re.DOTALL))


@dataclass
class Shell:
    """A shell with ``temporal`` on its PATH, that talks to one system."""

    system: System
    programs: Path

    async def ask(self, heading: str, **names: str) -> str:
        """The answer of the command below a heading of the page."""
        (command,) = [text for title, text in COMMANDS.items() if title.startswith(heading)]
        environment = clean_environment(
            PATH=f"{self.programs}:{os.environ['PATH']}",
            TEMPORAL_ADDRESS=self.system.settings.temporal.address,
            TEMPORAL_NAMESPACE=self.system.namespace,
            **names,
        )
        shell = ["bash", "-euo", "pipefail", "-c", f"{{ {command.rstrip()}\n}}"]
        ended = await asyncio.to_thread(
            subprocess.run, shell, env=environment, capture_output=True, text=True, timeout=120
        )
        warned = "WARNING: Setting queue rate limit to 0 will STOP ALL TRAFFIC" if heading == "Pause a queue" else ""
        assert ended.stderr.startswith(warned), ended.stderr
        assert warned or not ended.stderr, ended.stderr
        return str(ended.stdout)


@pytest.fixture
async def shell(served: System, tmp_path: Path) -> Shell:
    (tmp_path / "temporal").symlink_to(obtain("temporal"))
    return Shell(served, tmp_path)


async def test_the_page_has_ten_questions_each_with_its_command() -> None:
    assert [title.split(".")[0] for title in COMMANDS if title[0].isdigit()] == [str(n) for n in range(1, 11)]
    assert len(COMMANDS) == PAGE.count("```sh\n") == PAGE.count("\n### ")


async def test_while_datasets_wait_for_space(served: System, shell: Shell) -> None:
    """Questions 1 to 4, and the stop."""
    ours, other = await served.dataset(FILES, group="g7"), await served.dataset(FILES, group="g8")
    with full_lts(served):
        job = await served.job(ours, other)
        handle = await served.start_job(job)
        await waiting_for_space(served, ours, other)
        listed = await shell.ask("1.", GROUP="g7")
        assert ours in listed
        assert other not in listed
        assert f'"running":["{ours}","{other}"]' in (await shell.ask("2.", JOB=job)).replace(" ", "")
        waiting = (await shell.ask("3.")).split()
        assert sorted(waiting) == sorted(f"archive-datablock/{pid}/1" for pid in (ours, other))
        described = [json.loads(await shell.ask("4.", PID=pid)) for pid in (ours, other)]
        (notes,) = [
            one["pendingActivities"][0] for one in described if "heartbeatDetails" in one["pendingActivities"][0]
        ]
        assert notes["activityType"]["name"] == "wait-for-lts-space"
        assert "LTS space: needs" in json.dumps(notes["heartbeatDetails"])
        await shell.ask("Stop a dataset", PID=ours)
        assert (await dataset_workflow(served, ours).result())["outcome"] == "cancelled"
        assert "stopped by anna: wrong proposal" in await shell.ask("5.", PID=ours)
        answer = await shell.ask("6.", PID=ours)
        assert "wrong proposal" in answer
        assert "anna" in answer
        assert "identity: temporal-cli:" in answer
        await dataset_workflow(served, other).terminate(reason="by hand")
        assert "by hand" in await shell.ask("6.", PID=other)
        await handle.result()


async def test_after_a_dataset_failed(served: System, shell: Shell) -> None:
    """Questions 5, 7 and 10."""
    good = await served.dataset(SMALL)
    bad = await served.dataset(SMALL, listed=[System.entry("a.txt", b"text"), System.entry("gone.txt", b"x")])
    job = await served.job(good, bad)
    await (await served.start_job(job)).result()
    answer = await shell.ask("5.", PID=bad)
    assert "MissingFiles" in answer
    assert "gone.txt" in answer

    async def listed() -> str:
        text = await shell.ask("7.")
        return text if bad in text else ""

    assert good not in await until(listed, "the failed one is listed")
    (run,) = json.loads(await shell.ask("10.", PID=bad))
    assert json.loads(b64decode(run["searchAttributes"]["indexedFields"]["ScicatJobId"]["data"])) == job


async def test_while_scicat_is_down(served: System, shell: Shell) -> None:
    """Question 9."""
    pid = await served.dataset(SMALL)
    fault = Fault("GET", "/datasets/", status=503, body={"message": "down for repair"}, times=10**6)
    served.standin.faults.append(fault)
    try:
        handle = await served.start_job(await served.job(pid))
        await served.pending("begin-dataset", "archive-dataset", pid, attempt=2)
        (pending,) = json.loads(await shell.ask("9.", PID=pid))["pendingActivities"]
    finally:
        served.standin.faults.remove(fault)
    assert pending["attempt"] >= 2
    assert "503" in pending["lastFailure"]["message"]
    assert (await handle.result()).counts == m.Counts(archived=1)


async def test_what_waits_in_a_paused_queue(served: System, shell: Shell) -> None:
    """Question 8, and pausing."""
    pid = await served.dataset(SMALL)
    assert "Successfully updated" in await shell.ask("Pause a queue")
    try:
        handle = await served.start_job(await served.job(pid))
        await served.pending("plan-dataset", "archive-dataset", pid)
        answer = await shell.ask("8.")
        assert answer.count("Pollers:") == 8, answer
        told = json.loads(await shell.ask("See what is paused"))["queueRateLimit"]
        assert (told["rateLimit"], told["metadata"]["reason"]) == ({}, "new disks")
        assert "archiver-pack" in str(await served.pending("plan-dataset", "archive-dataset", pid))
    finally:
        await shell.ask("Let it go on")
    assert (await handle.result()).counts == m.Counts(archived=1)
