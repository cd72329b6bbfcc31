"""Names are data: what stands in pids, groups, names and reasons steers no terminal, forges no line, ends no workflow."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from archiver.settings import S3Settings
from tests.cli.running import command, environment
from tests.operators.conftest import Run
from tests.operators.test_status import SMALL
from tests.pipeline.moments import full_lts, until
from tests.pipeline.oracle import assert_archived
from tests.pipeline.system import System

STEER = "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\n[red]x"
"""Sets a terminal's title, rings, clears it, colours it, begins a line."""
HOSTILE = "20.500.12345/\x1b]0;owned\x07\x1b[2J\x1b[31m[red]x"
SHOWN = "20.500.12345/\\x1b]0;owned\\x07\\x1b[2J\\x1b[31m[red]x"
GROUP = "g" * 2990 + "\x1b[2J\u00fc'\\"


@pytest.fixture(scope="module")
async def served(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    """A landing zone by source folders: a pid of control characters could be no prefix in a bucket."""
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3)
    made.override({"landing": {"url_template": f"s3://{made.landing_bucket}/{{source_folder}}/"}})
    try:
        await made.start()
        async with made.workers():
            yield made
    finally:
        await made.stop()


async def dataset(system: System, folder: str, **how: Any) -> str:
    """A dataset whose files lie in its source folder."""
    pid = await system.dataset(SMALL, landed=False, more={"sourceFolder": f"/{folder}"}, **how)
    system.put(folder, SMALL)
    return pid


@pytest.fixture(scope="module")
async def archived(served: System) -> str:
    """A dataset of a hostile pid, archived; its job's id."""
    await dataset(served, "one", pid=HOSTILE)
    job = await served.job(HOSTILE)
    await (await served.start_job(job)).result()
    return job


def harmless(said: str) -> bool:
    """Whether it holds nothing but printable characters and the ends of our own lines."""
    return all(line.isprintable() for line in said.split("\n"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("ls", HOSTILE, "--files"),
        ("ls", HOSTILE, "--json"),
        ("verify", HOSTILE),
        ("status", HOSTILE),
        ("status", "JOB"),
        ("watch", HOSTILE),
        ("watch", "JOB"),
        ("receipt", HOSTILE),
        ("rebuild", "--from-lts"),
        ("rebuild", HOSTILE, "--from-lts"),
        ("cancel", HOSTILE, "--reason", STEER),
        ("abandon", HOSTILE, "--reason", STEER, "--who", STEER),
        ("retry", HOSTILE, "--reason", STEER, "--who", STEER),
        ("jobs",),
        ("archive", HOSTILE + "none"),
        ("status", HOSTILE + "none"),
        ("ls", HOSTILE + "none"),
        ("pause", "--show"),
    ],
    ids=lambda arguments: "-".join(arguments[:1]),
)
async def test_no_command_lets_a_name_through_to_the_terminal(
    served: System, archived: str, run: Run, arguments: tuple[str, ...]
) -> None:
    ended = await run(served, *(archived if one == "JOB" else one for one in arguments))
    assert harmless(ended.stdout), ended.stdout
    assert harmless(ended.stderr), ended.stderr
    assert "unexpected" not in ended.stderr
    assert ended.stdout or ended.stderr


async def test_the_name_is_shown_escaped_and_given_whole_to_programs(served: System, archived: str, run: Run) -> None:
    assert SHOWN in (await run(served, "ls", HOSTILE)).stdout
    assert SHOWN in (await run(served, "rebuild", "--from-lts")).stdout
    assert json.loads((await run(served, "--json", "ls", HOSTILE)).stdout)["pid"] == HOSTILE


async def test_a_paused_queue_and_a_stop_tell_hostile_reasons_harmlessly(served: System, run: Run) -> None:
    pid = HOSTILE + "2"
    await dataset(served, "two", pid=pid)
    with full_lts(served):
        job = await served.job(pid)
        handle = await served.start_job(job)
        await served.pending("wait-for-lts-space", "archive-datablock", pid, "1")
        seen = [
            await run(served, *one)
            for one in (("status", job), ("jobs", "--running"), ("watch", pid, "--timeout", "0"))
        ]
        seen.append(await run(served, "cancel", pid, "--reason", STEER, "--who", STEER))
        assert seen[-1].returncode == 0, seen[-1].stderr
        await handle.result()
    seen.append(await run(served, "status", job))
    assert all(harmless(one.stdout + one.stderr) for one in seen)
    assert (await served.job_record(job))["statusMessage"].isprintable()


async def test_watch_on_a_terminal_shows_markup_and_escapes_as_they_are(served: System) -> None:
    pid = HOSTILE + "3"
    await dataset(served, "three", pid=pid)
    with full_lts(served):
        job = await served.job(pid)
        handle = await served.start_job(job)
        await served.pending("wait-for-lts-space", "archive-datablock", pid, "1")
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            command("-c", served.config, "watch", job, "--timeout", "0"),
            env=environment(TERM="xterm-256color", COLUMNS="240", LINES="40"),
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)
        data = b""
        until_ = time.monotonic() + 60
        while time.monotonic() < until_:
            try:
                part = await asyncio.to_thread(os.read, ours, 65536)
            except OSError:
                break
            if not part:
                break
            data += part
        os.close(ours)
        assert await asyncio.to_thread(process.wait, 60) == 124
    await handle.result()
    text = data.decode(errors="replace")
    assert "\x1b]0;owned" not in text
    assert "\x07" not in text
    assert "\\x1b]0;owned\\x07" in text
    assert "[red]x" in text


async def test_an_owner_group_of_any_length_is_archived_and_found(served: System, run: Run) -> None:
    pid = await dataset(served, "four", group=GROUP)
    job = await served.job(pid, ownerGroup=GROUP)
    result = await (await served.start_job(job)).result()
    assert result.counts.archived == 1, result.message
    await assert_archived(served, pid, SMALL)
    (block,) = served.datablocks(pid)
    assert block["ownerGroup"] == GROUP, "SciCat is told the group as it is"

    async def listed() -> bool:
        return job in (await run(served, "jobs", "--group", GROUP)).stdout

    await until(listed, "the list is not behind")
