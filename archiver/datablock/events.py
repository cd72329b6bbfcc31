"""A dataset's receipt, ``events.jsonl`` beside its bag: what happened to it, in order (docs/receipt.md). Pure."""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from archiver import model as m
from archiver.datablock.bag import AGENT

EVENTS = "events.jsonl"
VERSION = 1
MAX_BYTES = 32 * 2**20
"""Beyond it, events of single datablocks are counted, not listed: a receipt is read and written as a whole."""


@functools.cache
def agent() -> str:
    """Who does it: our name and version, and the host."""
    try:
        version = metadata.version(AGENT)
    except metadata.PackageNotFoundError:
        version = "(version unknown)"
    return f"{AGENT} {version} on {socket.gethostname()}"


def stamp(now: datetime | None = None) -> str:
    """A time as receipts have it: ISO 8601, UTC, to the millisecond."""
    return (now or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def line(event: m.Event) -> bytes:
    """The event's line: ASCII, whatever a pid or a message holds. What is empty is left out."""
    fields = {name: value for name, value in event.model_dump().items() if value not in ("", {})}
    return json.dumps({"version": VERSION, **fields}).encode() + b"\n"


def in_order(events: Iterable[m.Event]) -> list[m.Event]:
    """By time; events of one object stay in their order, also where the clocks of two hosts differ."""
    latest: dict[str, str] = {}
    keyed: list[tuple[str, m.Event]] = []
    for event in events:
        latest[event.object] = max(event.time, latest.get(event.object, ""))
        keyed.append((latest[event.object], event))
    return [event for _, event in sorted(keyed, key=lambda each: each[0])]


def added(before: bytes, events: list[m.Event]) -> bytes:
    """The receipt ``before``, byte for byte, and behind it the events that it does not hold yet."""
    there = set(before.splitlines())
    new = [made for event in events if (made := line(event)).rstrip() not in there]
    if len(before) + sum(map(len, new)) > MAX_BYTES:
        new = [made for event in _counted(events) if (made := line(event)).rstrip() not in there]
    if new and before and not before.endswith(b"\n"):
        before += b"\n"
    return before + b"".join(dict.fromkeys(new))


def _counted(events: list[m.Event]) -> list[m.Event]:
    """Without those of single datablocks; one says how many they were."""
    of_datablocks = [event for event in events if event.object.rpartition("/")[0].endswith("/data")]
    others = [event for event in events if event not in of_datablocks]
    if of_datablocks:
        text = f"{len(of_datablocks)} events of single datablocks are not listed: this receipt is full"
        last = of_datablocks[-1]
        others.append(last.model_copy(update={"event": text, "object": "", "detail": {}}))
    return others


def read(data: bytes) -> list[dict[str, Any]]:
    """The events of a receipt, of whatever version. A line that is none is told as one, and never hides the others."""
    events: list[dict[str, Any]] = []
    for number, text in enumerate(data.splitlines(), 1):
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            event = {"event": f"line {number} of the receipt cannot be read", "outcome": "failure"}
        events.append(event)
    return events
