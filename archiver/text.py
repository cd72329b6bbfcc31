"""Text that others wrote, made fit to be shown: printable, on one line, and bounded without losing the next step.

The one border for it: whatever goes to Temporal's search attributes and summaries, to terminals, logs, mails and pages passes
through here. Names are data: they are shown escaped, never interpreted.
"""

from __future__ import annotations

NEXT = "; next: "
"""What stands before the next step in a message of one line (``ArchiverError.one_line``)."""
MAX_NAME = 200
"""Characters of a name in a message."""
MAX_KEYWORD = 200
"""Characters of a search attribute, and of a summary: a Temporal server on SQL keeps no more than 255, 200 bytes of summary."""


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


def lines(text: str) -> str:
    """As ``printable``, but for the line breaks of a text that we composed of several lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def one_line(text: str, limit: int) -> str:
    """A text that people wrote, such as a reason, as one bounded line: blanks of any kind become one."""
    return cut(printable(" ".join(text.split())), limit)


def name(text: str, limit: int = MAX_NAME) -> str:
    """A name for a message: escaped, and cut in its middle."""
    return cut(printable(text), limit)
