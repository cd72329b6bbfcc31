"""Text that others wrote, made fit to be shown: printable, on one line, and bounded without losing the next step.

The one border for it: whatever goes to Temporal's search attributes and summaries, to terminals, logs, mails and pages passes
through here. Names are data: they are shown escaped, never interpreted.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

NEXT = "; next: "
"""What stands before the next step in a message of one line (``ArchiverError.one_line``)."""
MAX_NAME = 200
"""Characters of a name in a message."""
MAX_KEYWORD = 250
"""Characters of a search attribute: a Temporal server on SQL keeps 255, and ends a workflow that sets a longer one."""
MAX_SUMMARY_BYTES = 200
"""Of the one-line summary of a workflow, step or timer in Temporal's Web UI."""


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters. The middle goes: the beginning says what happened, the end says what to do next."""
    if len(text) <= limit:
        return text
    at = text.rfind(NEXT)
    end = text[at:] if at >= 0 else text[len(text) - limit // 3 :]
    most = limit * 3 // 4
    if len(end) > most:
        end = end[: most - 1] + "…"
    return text[: limit - len(end) - 1] + "…" + end


def printable(text: str) -> str:
    """Every character that could steer a terminal or begin a line is escaped; all others stay as they are."""
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def joined(rows: Iterable[str]) -> str:
    """Lines of ours as one text. What is in a line stays in it: a name cannot begin another."""
    return "\n".join(printable(row) for row in rows)


def lines(text: str) -> str:
    """As ``printable``, line by line."""
    return joined(text.split("\n"))


def one_line(text: str, limit: int) -> str:
    """A text that people wrote, such as a reason, as one bounded line: blanks of any kind become one."""
    return cut(printable(" ".join(text.split())), limit)


def name(text: str, limit: int = MAX_NAME) -> str:
    """A name for a message: escaped, and cut in its middle."""
    return cut(printable(text), limit)


def keyword(text: str) -> str:
    """A name as a search attribute, and as it is asked for. Without a backslash: servers on SQL find no value that holds one."""
    plain = text.isprintable() and "\\" not in text
    return cut(text if plain else "".join(map(_percent, text)), MAX_KEYWORD)


def _percent(one: str) -> str:
    return one if one.isprintable() and one != "\\" else quote(one, safe="", errors="replace")


def summary(text: str) -> str:
    """A text as the summary of a workflow, step or timer."""
    limit = MAX_SUMMARY_BYTES
    while len((text := name(text, limit)).encode("utf-8", "replace")) > MAX_SUMMARY_BYTES:
        limit = limit * 3 // 4
    return text


def table_cell(text: str, limit: int) -> str:
    """A text in a table of Markdown: shown as it is, no link, no HTML, no other cell."""
    escaped = name(text, limit)
    for mark in "&|<[`":
        escaped = escaped.replace(mark, f"&#{ord(mark)};")
    return escaped
