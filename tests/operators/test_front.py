"""What the commands say where Temporal, its namespace, or what the namespace must have is not there; shells, colours."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from activities.connection import connect
from archiver import model as m
from archiver.settings import load
from cli.servers import free_port
from tests.cli.running import environment
from tests.operators.conftest import Run
from tests.operators.inside import inside
from tests.pipeline.moments import until
from tests.pipeline.system import System

JOB = "7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11"
ENDED = "7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a12"
PID = "20.500.12345/none"
COMMANDS = [
    ("jobs",),
    ("status", JOB),
    ("watch", JOB),
    ("cancel", JOB, "--reason", "x"),
    ("retry", JOB),
    ("abandon", JOB, "--reason", "x"),
    ("pause", "pack"),
    ("resume",),
    ("receipt", PID),
    ("sweep",),
    ("health",),
]
ids = pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])


@ids
async def test_a_temporal_that_is_down_is_7_in_four_lines(system: System, command: tuple[str, ...]) -> None:
    address = f"127.0.0.1:{free_port()}"
    ended = await inside(system.write_settings("down.toml", {"temporal": {"address": address}}), *command)
    assert ended.code == 7
    assert ended.in_lines(), ended
    assert ended.err.startswith(f"error    Temporal does not answer at {address}\n")


@ids
async def test_a_namespace_that_is_not_there_is_7_and_setup_makes_it(system: System, command: tuple[str, ...]) -> None:
    ended = await inside(system.write_settings("none.toml", {"temporal": {"namespace": "elsewhere"}}), *command)
    assert ended.code == 7
    assert ended.in_lines(), ended
    assert "has no namespace 'elsewhere'" in ended.err
    assert "next     archiver setup  makes it" in ended.err


@pytest.fixture(scope="module")
async def bare(system: System) -> Path:
    """Settings for a namespace without search attributes, in which one job runs and another was stopped."""
    name = f"{system.namespace}-bare"
    request = RegisterNamespaceRequest(namespace=name)
    request.workflow_execution_retention_period.FromTimedelta(timedelta(days=1))
    await system.client.workflow_service.register_namespace(request)
    config = system.write_settings("bare.toml", {"temporal": {"namespace": name}})
    settings = load(config)
    client = await Client.connect(
        settings.temporal.address, namespace=name, data_converter=pydantic_data_converter, lazy=True
    )

    async def there() -> bool:
        try:
            await (await connect(settings)).count_workflows()
        except Exception:
            return False
        return True

    await until(there, "the namespace answers")
    system.standin.store.insert("jobs", JOB, {"id": JOB, "_id": JOB, "type": "archive", "jobParams": {}})
    for job in (JOB, ENDED):
        await client.start_workflow(
            "ArchiveJob", m.ArchiveJobRequest(job_id=job), id=f"archive-job/{job}", task_queue="archiver"
        )
    await client.get_workflow_handle(f"archive-job/{ENDED}").terminate()

    async def listed() -> bool:
        counts = [await client.count_workflows(query) for query in ("", "ExecutionStatus = 'Running'")]
        return [one.count for one in counts] == [2, 1]

    await until(listed, "the list is not behind")
    return config


@pytest.mark.parametrize(
    "command",
    [
        ("jobs", "--failed"),
        ("jobs", "--group", "p1"),
        ("start", JOB),
        ("retry", ENDED),
        ("sweep",),
        ("sweep", "jobs", "--dry-run"),
        ("sweep", "leftovers"),
    ],
    ids=" ".join,
)
async def test_search_attributes_that_are_missing_are_named_and_setup_makes_them(
    bare: Path, command: tuple[str, ...]
) -> None:
    ended = await inside(bare, *command)
    assert ended.code == 7
    assert ended.in_lines(), ended
    assert ended.err.startswith("error    Temporal's namespace lacks search attributes of ours\n")
    assert "next     archiver setup  makes them" in ended.err


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("jobs",), 0, JOB),
        (("jobs", "--running"), 0, JOB),
        (("status", JOB), 0, "RUNNING"),
        (("watch", JOB, "--timeout", "0"), 124, "goes on"),
        (("watch", ENDED), 1, "TERMINATED"),
        (("retry", JOB), 6, "still runs"),
        (("pause", "pack"), 0, "paused   archiver-pack"),
        (("resume", "pack"), 0, "running  archiver-pack"),
        (("health",), 1, "nobody serves it"),
        (("receipt", PID), 5, "nothing is known of dataset"),
        (("cancel", JOB, "--reason", "x"), 0, "was asked to stop"),
    ],
)
async def test_what_needs_no_search_attributes_works_without_them(
    bare: Path, command: tuple[str, ...], code: int, said: str
) -> None:
    ended = await inside(bare, *command)
    assert ended.code == code, ended
    assert said in ended.out + ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("pid", [JOB, PID, "no such thing", "x" * 2000, "../..", "'; drop", "ü\x1b[31m", ""])
async def test_a_receipt_of_what_is_not_known_is_5_and_one_message(system: System, pid: str) -> None:
    ended = await inside(system.config, "receipt", "--", pid)
    assert ended.code == 5, ended
    assert ended.in_lines(), ended
    assert "\x1b" not in ended.err


async def test_a_scicat_that_is_down_is_one_message_too(system: System) -> None:
    """Its tries are not among the error's lines."""
    config = system.write_settings("no-scicat.toml", {"scicat": {"url": f"http://127.0.0.1:{free_port()}"}})
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "cli.main", "-c", str(config), "receipt", PID],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 7
    assert [line.split()[0] for line in ended.stderr.splitlines()] == ["error", "expected", "found", "next"]


async def test_no_command_colours_what_is_not_read_at_a_terminal(system: System, run: Run) -> None:
    job = await system.job(await system.dataset({"a.txt": b"text"}))
    await (await system.start_job(job)).terminate()
    async with system.workers("workflows"):  # to answer queries
        seen = await asyncio.gather(
            run(system, "status", job, TERM="xterm-256color"),
            run(system, "jobs", TERM="xterm-256color", NO_COLOR="1"),
            run(system, "watch", job, TERM="xterm-256color"),
        )
    for ended in seen:
        assert job in ended.stdout
        assert "\x1b" not in ended.stdout + ended.stderr


async def test_bash_completes_a_command_with_the_script_that_is_shown(tmp_path: Path) -> None:
    program = tmp_path / "archiver"
    program.write_text(f"#!{sys.executable}\nfrom cli.main import main\n\nmain()\n")
    program.chmod(0o755)
    script = """
        archiver --show-completion > shown || exit 1
        . ./shown || exit 1
        COMP_WORDS=(archiver can) COMP_CWORD=1
        _archiver_completion archiver
        echo "${COMPREPLY[@]}"
    """
    ended = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(PATH=f"{tmp_path}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout == "cancel\n", ended.stderr
