"""``archiver watch``: a job or a dataset to its end, live: bars per datablock on a terminal, a line per change elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from temporalio.client import Client
from temporalio.service import RPCError

from archiver import model as m
from cli import exits, jobs
from cli.look import Data, look, moved, spell
from cli.refs import describe, resolve
from cli.status import head_of

TIMED_OUT = 124
LOOK_SECONDS = 0.5
PLAIN_LOOK_SECONDS = 1.0
GONE_SECONDS = 60.0
"""So long Temporal may be away, for a restart; then watching ends."""
BAR_WIDTH = 24
LEAST_ROWS = 4

Say = Callable[[str], None]


class TimeIsUp(Exception):
    """``--timeout`` has passed; what was watched goes on."""


async def watch(client: Client, ref: str, *, console: Console, say: Say, timeout: float | None = None) -> Data:
    """Show it until it has ended; what was seen last. Raises ``NotFound``, ``TimeIsUp``, ``RPCError``."""
    workflow = (await resolve(client, ref)).id
    until = time.monotonic() + timeout if timeout is not None else None
    said: dict[str, str] = {}
    with Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else _Nothing() as live:
        while True:
            found = await _look(client, workflow, say)
            if isinstance(live, Live):
                live.update(picture(found, rows=console.height), refresh=True)
            else:
                for line in changes(said, found):
                    say(line)
            if found["state"] != "RUNNING":
                return found
            if until is not None and time.monotonic() >= until:
                raise TimeIsUp
            await asyncio.sleep(LOOK_SECONDS if isinstance(live, Live) else PLAIN_LOOK_SECONDS)


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


async def _look(client: Client, workflow: str, say: Say) -> Data:
    """One look; a Temporal that restarts is waited for."""
    until, told = time.monotonic() + GONE_SECONDS, False
    while True:
        try:
            description = await describe(client, workflow)
            if description is None:
                raise exits.NotFound(f"{workflow} is known no more", found="its history was removed")
            return await look(client, description)
        except RPCError:
            if time.monotonic() > until:
                raise
            if not told:
                say("Temporal does not answer: trying again")
                told = True
            await asyncio.sleep(PLAIN_LOOK_SECONDS)


def code_of(found: Data) -> int:
    """The exit code of how it ended."""
    if found.get("problem_type") in ("UnknownJob", "UnknownDataset"):
        return exits.NOT_FOUND
    result: dict[str, Any] | None = found.get("result")
    if found["kind"] == "job":
        return jobs.code_of(m.ArchiveJobResult.model_validate(result) if result else None)
    if found["kind"] == "datablock":
        return 0 if found["state"] == "COMPLETED" else exits.FAILED
    outcome = m.DatasetOutcome.model_validate(result) if result else None
    if outcome is not None and outcome.outcome in ("archived", "already_archived"):
        return 0
    error = outcome.error if outcome is not None else None
    if error is not None and error.kind == "content":
        return exits.NOT_FOUND if error.type == "UnknownDataset" else exits.CONTENT
    return exits.MISMATCH if error is not None and error.type == "IntegrityMismatch" else exits.FAILED


# --- on a terminal -----------------------------------------------------------------------------------------------------


def picture(found: Data, *, rows: int) -> RenderableType:
    """A line for the whole, and below it a line per dataset and a bar per datablock under way; at most ``rows`` lines."""
    table = Table.grid(padding=(0, 1))
    for justify in ("left", "left", "left", "left"):
        table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
    datasets = found.get("datasets", [found] if found["kind"] == "dataset" else [])
    shown = 0
    room = max(LEAST_ROWS, rows - 3)
    blocks = [(one, block) for one in datasets for block in one["datablocks"]]
    before = None
    for one, block in blocks[:room]:
        name = "" if one is before else _name(one)
        before = one
        table.add_row(name, f"{block['n'] or '?'}/{one['of'] or '?'}", _bar(block), _said(block))
        shown += 1
    for one in [each for each in datasets if not each["datablocks"]][: max(0, room - shown)]:
        waits = f"waits for {one['waits_for']}" if one["waits_for"] else ""
        table.add_row(_name(one), "", Text(one["stage"], style="cyan"), Text(waits, style="yellow"))
        shown += 1
    parts: list[RenderableType] = [Text(head_of(found), style="bold", no_wrap=True, overflow="ellipsis"), table]
    hidden = found.get("children_under_way", 0) - len(datasets if found["kind"] == "job" else [])
    if (more := max(0, hidden) + max(0, len(blocks) - room)) and found["kind"] == "job":
        parts.append(Text(f"and {more} more under way", style="dim"))
    return Group(*parts)


def _name(dataset: Data) -> str:
    name = str(dataset["name"])
    return name if len(name) <= 30 else name[:14] + "…" + name[-15:]


def _bar(block: Data) -> RenderableType:
    if block["waits_for"]:
        return Text("waiting", style="yellow")
    return ProgressBar(total=1.0, completed=block["share"], width=BAR_WIDTH)


def _said(block: Data) -> Text:
    if block["waits_for"]:
        return Text(f"{block['stage']}: {block['waits_for']}", style="yellow")
    return Text(f"{block['stage']}  {moved(block)}".rstrip())


# --- elsewhere ---------------------------------------------------------------------------------------------------------


def changes(said: dict[str, str], found: Data) -> list[str]:
    """A line for everything that is another than it was; ``said`` is what was said of each before."""
    now: dict[str, tuple[str, str]] = {}
    _gather(found, now)
    lines = [line for key, (state, line) in now.items() if said.get(key) != state]
    said.update({key: state for key, (state, _) in now.items()})
    return lines


def _gather(found: Data, now: dict[str, tuple[str, str]]) -> None:
    waits = found["waits_for"]
    # Numbers that change at every look are no news.
    why = waits.partition(",")[0].partition(":")[0]
    count = f"{found['done']} of {found['of']}" if found.get("of") and found.get("done") is not None else ""
    name = found["workflow"]
    line = "  ".join(filter(None, [name, found["stage"], count, f"waits for {waits}" if waits else ""]))
    now[name] = (f"{found['stage']} {count} {why}", line)
    for step in found["steps"]:
        if error := step["last_error"]:
            key = f"{name} {step['step']}"
            now[key] = (
                str(error["attempt"]),
                f"{name}  step {step['step']} failed (try {error['attempt']}): {error['message']}",
            )
    for one in [*found.get("datasets", []), *found.get("datablocks", [])]:
        _gather(one, now)


def goes_on(ref: str, found_for: float) -> str:
    """What is said where watching ends before what is watched."""
    return f"{ref} goes on (watched for {spell(found_for)}); archiver watch {ref} looks again, archiver cancel {ref} stops it"
