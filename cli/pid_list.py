"""The pids that ``archive`` and ``retrieve`` are given: as arguments, in a file, or on standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from archiver.errors import SettingsInvalid
from archiver.text import name

SHOWN = 10
"""Bad pids that the error itself names; each is told on a line of its own."""
MAX_BYTES = 64 * 2**20
"""Of a file of pids: more is some other file."""

Say = Callable[[str], None]


def wanted(arguments: Iterable[str], source: str | None, say: Say) -> list[str]:
    """Each pid once, in the order given: arguments first, then the lines of ``source`` (``-``: standard input).

    Blank lines are skipped, and comments: a line that begins with ``#``, or what follows a blank and ``#``. Each duplicate is
    told, and taken once. Raises ``SettingsInvalid`` (usage) for pids that no dataset can have, after telling each of them, for
    a file that cannot be read, and where nothing is left.
    """
    places: dict[str, str] = {}
    bad: list[str] = []
    for pid, place in [*((pid, "argument") for pid in arguments), *_lines(source)]:
        if why := _fault(pid):
            say(f"{place}: {name(pid)}: {why}")
            bad.append(pid)
        elif pid in places:
            say(f"{place}: {name(pid)} was given before ({places[pid]}): taken once")
        else:
            places[pid] = place
    if bad:
        raise SettingsInvalid(
            f"{len(bad)} of the pids given cannot be pids",
            expected="one pid a line, such as 20.500.12345/1234, printable and without blanks at its ends",
            found=named(bad),
            next_step="correct them; nothing was started",
        )
    if not places:
        raise SettingsInvalid(
            "no dataset is named",
            expected="pids as arguments, or --from FILE with a pid a line",
            found="none" if source is None else f"none in {_called(source)}",
            next_step="name at least one",
        )
    return list(places)


def named(pids: list[str]) -> str:
    """The first of them in a message."""
    return ", ".join(name(pid) for pid in pids[:SHOWN]) + (
        f" and {len(pids) - SHOWN} more" if len(pids) > SHOWN else ""
    )


def _called(source: str) -> str:
    return "standard input" if source == "-" else name(source)


def _lines(source: str | None) -> Iterable[tuple[str, str]]:
    """The pids of a file, each with its place."""
    if source is None:
        return []
    called = _called(source)
    try:
        if source == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} B")
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise SettingsInvalid(
            f"the pids of {called} cannot be read",
            expected="a text file in UTF-8, one pid a line",
            found=reason[:200],
            next_step="give another file, or - for standard input",
        ) from None
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        pid = line.strip()
        if pid.startswith("#"):
            continue
        for mark in (" #", "\t#"):
            pid = pid.partition(mark)[0].rstrip()
        if pid:
            found.append((pid, f"{called}, line {number}"))
    return found


def _fault(pid: str) -> str:
    """Why no dataset can have this pid; empty: it can."""
    if not pid.strip():
        return "is empty"
    if pid != pid.strip():
        return "has blanks at its ends"
    if not pid.isprintable():
        return "holds control characters"
    return ""
