"""``archiver watch``: lines where nobody looks at a terminal, bars where somebody does; the job's exit code; Ctrl-C."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import signal
import subprocess

import pytest
from rich.console import Console

from cli import watch as watching
from cli.look import look
from cli.refs import resolve
from tests.cli.running import command, environment
from tests.operators.conftest import Run
from tests.operators.picture import saved
from tests.operators.test_status import FILES, SMALL, waiting_for_space
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.gate import gate_before_s3, landing_through
from tests.pipeline.moments import MIB, dataset_workflow, full_lts, noise, until
from tests.pipeline.system import System

WAITS = "waits for LTS space: needs"


async def test_watch_says_a_line_per_change_and_ends_as_the_job_does(served: System) -> None:
    bad = await served.dataset(SMALL, listed=[System.entry("a.txt", b"text"), System.entry("gone.txt", b"x")])
    good = await served.dataset(FILES)
    with full_lts(served):
        job = await served.job(good, bad)
        await served.start_job(job)
        await waiting_for_space(served, good)
        process = subprocess.Popen(
            command("-c", served.config, "watch", job),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        lines: list[str] = []
        while not any(WAITS in line for line in lines):
            lines.append((await asyncio.to_thread(process.stderr.readline)).rstrip("\n"))
            assert lines[-1], lines
    out, rest = await asyncio.to_thread(process.communicate, None, 120)
    assert process.returncode == 3, rest
    lines += rest.splitlines()
    assert any(line.startswith(f"archive-datablock/{good}/1  wait for LTS space  {WAITS}") for line in lines)
    assert f"archive-job/{job}  finishedWithDatasetErrors  2 of 2" in lines
    assert len(set(lines)) == len(lines), "each change is said once"
    assert "\x1b" not in out + rest
    assert out.startswith(f"archive-job/{job}  COMPLETED")
    assert "gone.txt" in out


@pytest.mark.parametrize(("listed", "code"), [(True, 0), (False, 4)])
async def test_a_watched_datasets_end_is_the_exit_code(served: System, run: Run, listed: bool, code: int) -> None:
    more = [] if listed else [System.entry("gone.txt", b"x")]
    pid = await served.dataset(SMALL, listed=[System.entry("a.txt", b"text"), *more])
    await served.archive(pid)
    assert (await run(served, "watch", pid)).returncode == code


async def test_ctrl_c_leaves_the_job_running_and_says_so(served: System) -> None:
    pid = await served.dataset(FILES)
    with full_lts(served):
        job = await served.job(pid)
        handle = await served.start_job(job)
        await waiting_for_space(served, pid)
        process = subprocess.Popen(
            command("-c", served.config, "watch", job),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        first = await asyncio.to_thread(process.stderr.readline)
        process.send_signal(signal.SIGINT)
        _, rest = await asyncio.to_thread(process.communicate, None, 120)
        running = await handle.describe()
    assert first.startswith(f"archive-job/{job}  datasets")
    assert process.returncode == 130
    assert f"{job} goes on " in rest
    assert f"archiver cancel {job} stops it" in rest
    assert running.close_time is None
    await handle.result()


async def test_watching_ends_after_its_timeout_with_124(served: System, run: Run) -> None:
    pid = await served.dataset(FILES)
    with full_lts(served):
        handle = await served.start_job(await served.job(pid))
        await waiting_for_space(served, pid)
        ended = await run(served, "watch", pid, "--timeout", "0")
    await handle.result()
    assert ended.returncode == 124
    assert f"{pid} goes on " in ended.stderr


@pytest.mark.parametrize("no_color", [False, True])
async def test_on_a_terminal_there_are_bars_and_no_colour_where_it_is_not_wanted(
    served: System, no_color: bool
) -> None:
    pid = await served.dataset(FILES)
    with full_lts(served):
        handle = await served.start_job(await served.job(pid))
        await waiting_for_space(served, pid)
        ours, theirs = pty.openpty()
        more = {"NO_COLOR": "1"} if no_color else {}
        process = subprocess.Popen(
            command("-c", served.config, "watch", pid, "--timeout", "0"),
            env=environment(TERM="xterm-256color", COLUMNS="120", **more),
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)
        shown = await asyncio.to_thread(_all_of, ours)
        assert await asyncio.to_thread(process.wait, 120) == 124
    await handle.result()
    assert "wait for LTS space: LTS space: needs" in shown
    assert ("\x1b[33m" in shown) is not no_color


def _all_of(descriptor: int) -> str:
    data = b""
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        data += part
    os.close(descriptor)
    return data.decode(errors="replace")


async def test_the_picture_in_the_docs_is_of_a_real_run(make_system: MakeSystem) -> None:
    """Datablocks are packed while another waits for space; kept for the docs where picture.py is told to."""
    system = await make_system({"datablock": {"target_bytes": 8 * MIB}, "slots": {"pack": 2}})
    pid = await system.dataset({f"{n}.bin": noise(8 * MIB, n) for n in range(1, 5)})
    with gate_before_s3(system) as landing:
        async with system.workers("workflows,catalogue,lts"), system.workers("pack", landing_through(system, landing)):
            with full_lts(system):
                landing.slow(4 * MIB)
                handle = await system.start_job(await system.job(pid))

                async def mixed() -> dict | None:
                    found = await look(system.client, await resolve(system.client, handle.id))
                    blocks = found["datasets"][0]["datablocks"] if found["datasets"] else []
                    moves = [block for block in blocks if block["bytes_per_second"]]
                    waits = [block for block in blocks if block["waits_for"].startswith("LTS space: needs")]
                    return found if moves and waits else None

                found = await until(mixed, "one packs and one waits")
                console = Console(record=True, width=120, file=io.StringIO(), force_terminal=True)
                console.print(watching.picture(found, rows=30))
                text = saved(console)
                landing.open()
            await handle.result()
    assert "pack  " in text
    assert "MiB/s" in text
    assert "wait for LTS space: LTS space: needs" in text
    assert dataset_workflow(system, pid).id.removeprefix("archive-dataset/")[:14] in text
