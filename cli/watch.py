"""``archiver watch``: a job or a dataset to its end, live: bars per datablock on a terminal, a line per change elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text
from temporalio.client import Client
from temporalio.service import RPCError

from archiver import model as m
from archiver.text import cut, printable
from cli import exits, jobs
from cli.look import Data, look, spell
from cli.refs import describe, resolve
from cli.status import head_parts
from workflows.visible import size

TIMED_OUT = 124
LOOK_SECONDS = 0.5
PLAIN_LOOK_SECONDS = 1.0
GONE_SECONDS = 60.0
"""So long Temporal may be away, for a restart; then watching ends."""
NUMBER, STAGE, BYTES, RATE = 9, 8, 24, 12
"""Columns: 1234/1234, rollback, 1023.9 GiB of 1023.9 GiB, 1023.9 MiB/s."""
FIXED = NUMBER + STAGE + BYTES + RATE + 5
MIN_BAR, MAX_BAR = 8, 24
LEAST_ROWS = 4
SHORT = {
    "wait for LTS space": "space",
    "copy to LTS": "copy",
    "verify in LTS": "verify",
    "read from LTS": "read",
    "set aside": "aside",
    "datablocks": "blocks",
    "publishing": "publish",
    "rolling back": "rollback",
}
"""Stages of more letters than there is room for."""

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
                live.update(picture(found, rows=console.height, width=console.width), refresh=True)
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


def picture(found: Data, *, rows: int, width: int) -> RenderableType:
    """What is watched in two lines, and below them a line per datablock under way; at most ``rows`` lines of ``width``.

    Columns have fixed places, what matters most first: block, stage, bar, bytes, rate, then the dataset's name. Datasets stay
    in the order in which they began, datablocks in that of their numbers.
    """
    datasets = found.get("datasets", [found] if found["kind"] == "dataset" else [])
    named = found["kind"] == "job"
    room = max(LEAST_ROWS, rows - 4)
    lines: list[Text] = []
    for one in datasets:
        for block in sorted(one["datablocks"], key=lambda each: (each["n"] is None, each["n"])):
            lines.append(_row(f"{block['n'] or '?'}/{one['of'] or '?'}", block, one if named else None, width))
        if not one["datablocks"]:
            lines.append(_row("", one, one if named else None, width))
    extra = max(0, found.get("children_under_way", 0) - len(datasets)) if named else 0
    keep = len(lines) if len(lines) + bool(extra) <= room else room - 1
    more = len(lines) - keep + extra
    workflow, state, lasted, stage, *counts = head_parts(found)
    # What is cut on a narrow terminal is what is known without it.
    rest = [*counts, lasted, *([stage] if stage != "datasets" else [])]
    parts: list[RenderableType] = [
        _cell(f"{workflow}  {state}", width, "bold"),
        _cell("  ".join(rest), width, ""),
        *lines[:keep],
    ]
    if more:
        parts.append(Text(f"and {more} more under way", style="dim"))
    return Group(*parts)


def _row(number: str, one: Data, dataset: Data | None, width: int) -> Text:
    """A datablock, or a dataset that has none under way."""
    bar = min(MAX_BAR, max(MIN_BAR, (width - FIXED) // 4))
    row = _cell(number, NUMBER, "", right=True).append(" ")
    row.append_text(_cell(str(SHORT.get(one["stage"]) or one["stage"]), STAGE, "cyan")).append(" ")
    rest = width - row.cell_len
    name = printable(str(dataset["name"])) if dataset is not None else ""
    if one["waits_for"]:
        shown = min(len(name), rest // 3)
        reason = one["waits_for"].removeprefix("LTS space: ")
        row.append_text(_cell(f"waits: {printable(reason)}", rest - shown - bool(shown), "yellow"))
    elif "share" in one and one.get("kind") == "datablock":
        filled = round(bar * min(1.0, one["share"]))
        row.append("━" * filled, style="green").append("━" * (bar - filled), style="dim").append(" ")
        of = f" of {size(one['total_bytes'])}" if one["total_bytes"] else ""
        done = f"{size(one['done_bytes'])}{of}" if one["done_bytes"] else ""
        row.append_text(_cell(done, BYTES, "", right=True))
        rate = f"{size(one['bytes_per_second'])}/s" if one["bytes_per_second"] else ""
        row.append(" ").append_text(_cell(rate, RATE, "", right=True))
        shown = max(0, width - row.cell_len - 1)
    else:
        shown = max(0, rest - 1)
    if shown and name:
        row.append(" ").append_text(_cell(cut(name, shown), shown, "dim"))
    return row


def _cell(text: str, width: int, style: str, *, right: bool = False) -> Text:
    """A text of exactly so many columns. What users named is never markup."""
    cell = Text(printable(text), style=style, no_wrap=True)
    cell.truncate(width, overflow="ellipsis")
    if right:
        cell.pad_left(width - cell.cell_len)
    else:
        cell.pad_right(width - cell.cell_len)
    return cell


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
