"""``archiver watch``: lines where nobody looks at a terminal, bars where somebody does; the job's exit code; Ctrl-C."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import signal
import subprocess
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from cli import watch as watching
from cli.look import Data, look
from cli.refs import resolve
from tests.cli.running import command, environment
from tests.operators.conftest import Run
from tests.operators.picture import saved
from tests.operators.test_status import FILES, SMALL, waiting_for_space
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.gate import gate_before_s3, landing_through
from tests.pipeline.moments import MIB, dataset_workflow, full_lts, noise, until
from tests.pipeline.system import System
from tests.spawn import spawn

WAITS = "waits for LTS space: needs"


async def test_watch_says_a_line_per_change_and_ends_as_the_job_does(served: System) -> None:
    bad = await served.dataset(SMALL, listed=[System.entry("a.txt", b"text"), System.entry("gone.txt", b"x")])
    good = await served.dataset(FILES)
    with full_lts(served):
        job = await served.job(good, bad)
        await served.start_job(job)
        await waiting_for_space(served, good)
        process = spawn(
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
        process = spawn(
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
        process = spawn(
            command("-c", served.config, "watch", pid, "--timeout", "0"),
            env=environment(TERM="xterm-256color", COLUMNS="120", **more),
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)
        shown = await asyncio.to_thread(_all_of, ours)
        assert await asyncio.to_thread(process.wait, 120) == 124
    await handle.result()
    assert "waits: needs" in shown
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
                console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
                console.print(watching.picture(found, rows=30, width=100))
                text = saved(console)
                landing.open()
            await handle.result()
    assert re.search(r"^ +[1-4]/4 pack     ━+ +[\d.]+ \w+ of [\d.]+ MiB +[\d.]+ [KM]iB/s ", text, re.MULTILINE), text
    assert re.search(r"^ +[1-4]/4 space    waits: needs 8.0 MiB, ", text, re.MULTILINE), text
    assert "1024.0" not in text
    assert dataset_workflow(system, pid).id.removeprefix("archive-dataset/")[:8] in text


# --- what a terminal shows ------------------------------------------------------------------------------------------


def block(n: int, stage: str = "pack", waits: str = "", **more: Any) -> Data:
    """A datablock under way."""
    bytes_ = {
        "done_bytes": int(1023.9 * 2**30),
        "total_bytes": int(1.2 * 2**40),
        "bytes_per_second": int(1023.9 * 2**20),
    }
    return {"kind": "datablock", "n": n, "stage": stage, "waits_for": waits, "share": 0.3, **bytes_, **more}


def job_of(*datasets: Data) -> Data:
    """A job that has these datasets under way."""
    return {
        "kind": "job",
        "workflow": "archive-job/7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11",
        "state": "RUNNING",
        "seconds": 8040.0,
        "stage": "datasets",
        "of": 1200,
        "done": 1199,
        "size_bytes": None,
        "bytes_per_second": int(1023.9 * 2**20),
        "seconds_left": [86400 * 3, 86400 * 6],
        "children_under_way": len(datasets),
        "datasets": list(datasets),
    }


def dataset_of(name: str, *blocks: Data, of: int = 1234, stage: str = "datablocks") -> Data:
    """A dataset under way."""
    return {"kind": "dataset", "name": name, "of": of, "stage": stage, "waits_for": "", "datablocks": list(blocks)}


def shown(found: Data, rows: int, width: int) -> list[str]:
    """The lines of the picture on a terminal of this size."""
    console = Console(record=True, width=width, height=rows, file=io.StringIO(), force_terminal=True)
    console.print(watching.picture(found, rows=rows, width=width))
    return console.export_text().splitlines()


PID = "20.500.11935/0e54a1c8-7a1b-4c8e-9c1d-0123456789ab"


@pytest.mark.parametrize(("width", "rows"), [(100, 30), (80, 24), (200, 50)])
def test_numbers_bytes_rate_and_time_left_are_whole_and_in_one_place(width: int, rows: int) -> None:
    waits = "LTS space: needs 20.0 GiB, 3.1 GiB free, 1.0 GiB reserve, 120.0 GiB promised"
    blocks = [block(12, "verify in LTS"), block(3, "copy to LTS"), block(1234), block(7, "wait for LTS space", waits)]
    lines = shown(job_of(dataset_of(PID, *blocks), dataset_of(PID + "2", stage="planning")), rows, width)
    assert len(lines) <= rows
    assert all(cell_len(line) <= width for line in lines)
    assert "archive-job/7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11" in lines[0]
    assert "1199 of 1200 datasets" in lines[1]
    assert "about 3 d 0 h to 6 d 0 h left" in lines[1]
    assert [line.split()[0] for line in lines[2:6]] == ["3/1234", "7/1234", "12/1234", "1234/1234"]
    places = set()
    for line in (lines[2], lines[4], lines[5]):
        found = re.search(r"1023\.9 GiB of 1\.2 TiB +1023\.9 MiB/s", line)
        assert found, line
        places.add(found.span())
    assert len(places) == 1
    assert "waits: needs 20.0 GiB, 3.1 GiB free" in lines[3]
    assert lines[6].split()[0] == "planning"


def test_rows_keep_their_order_whatever_order_the_server_tells() -> None:
    one, other = [block(n) for n in (1, 2, 3)], [block(n) for n in (3, 1, 2)]
    assert shown(job_of(dataset_of(PID, *one)), 24, 80) == shown(job_of(dataset_of(PID, *other)), 24, 80)


def test_more_than_fits_is_counted() -> None:
    found = job_of(*(dataset_of(f"{PID}{k}", *(block(n) for n in range(1, 5))) for k in range(10)))
    lines = shown(found, 24, 80)
    assert len(lines) <= 23
    count = re.fullmatch(r"and (\d+) more under way", lines[-1].strip())
    assert count
    assert len(lines) - 3 + int(count[1]) == 40


def test_a_name_is_shown_as_it_is_and_steers_nothing() -> None:
    found = job_of(
        dataset_of("20.500/[red]x[/red]\x1b[2J", block(1, waits="queue x to be resumed: paused by [bold]me\x07: x"))
    )
    text = "\n".join(shown(found, 24, 200))
    assert "20.500/[red]x[/red]\\x1b[2J" in text
    assert "paused by [bold]me\\x07" in text
