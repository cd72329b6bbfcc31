"""Taking a file out of the way on a file system where others are at work too, late ones among them.

To look at a file and then to remove it by its name is never safe: between the two another run may have put its own there.
So it is first moved to a name that nobody else has or will have (``take``), looked at under it, and moved back without
clobbering (``back``) if it is not the one that was meant. Only such names are ever unlinked. Whoever dies in between leaves
a file whose name says where it was (``home``): the next one puts it back, or removes it.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from archiver.storage.direct_write import publish

_OWN = re.compile(r"\.(.+)\.[A-Za-z0-9_-]*\.[0-9a-f]{16}\.quarantine")
_UNPLAIN = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class Seen:
    """A file as it was looked at. Neither its inode number, which some network file systems make up anew at each look, nor
    its change time, which a move changes, says whether it is the same.
    """

    path: Path
    size: int
    mtime_ns: int

    def same(self, other: Seen | None) -> bool:
        """Whether the other is this file, wherever it lies."""
        return other is not None and (self.size, self.mtime_ns) == (other.size, other.mtime_ns)


def look(path: Path) -> Seen | None:
    """The file, or None if there is none. Raises ``OSError``."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return Seen(path, found.st_size, found.st_mtime_ns)


def home(path: Path) -> Path | None:
    """Where a file that was taken had lain; None for any other name."""
    match = _OWN.fullmatch(path.name)
    return path.with_name(match[1]) if match else None


def take(seen: Seen, to: Path, attempt: str, ours: Callable[[Path], bool]) -> Path | None:
    """Move a file to a name of this attempt's own beside ``to``, where it is at home, and look at it there.

    Returns that name; or None if the file is gone, is another by now, or ``ours`` says that it is not to be taken: then it
    lies at its home again, unless another has taken that place. Raises ``OSError``, and what ``ours`` raises.
    """
    own = to.with_name(f".{to.name}.{_UNPLAIN.sub('-', attempt)}.{secrets.token_hex(8)}.quarantine")
    try:
        # The new name is nobody else's, so that nothing can be clobbered, also where there is no RENAME_NOREPLACE.
        os.rename(seen.path, own)
    except FileNotFoundError:
        return None
    try:
        if (now := look(own)) is None:
            return None  # another has put it back
        if seen.same(now) and ours(own):
            return own
    except BaseException:
        with suppress(OSError):
            back(own, to)
        raise
    back(own, to)
    return None


def back(own: Path, to: Path) -> bool:
    """Move what was taken to its home, without clobbering; returns whether it lies there. Raises ``OSError``."""
    try:
        publish(own, to)
    except FileNotFoundError:
        return os.path.lexists(to)
    except FileExistsError:
        if not one(own, to):
            return False
    with suppress(FileNotFoundError):
        os.unlink(own)
    return True


def one(first: Path, second: Path) -> bool:
    """Whether both names are one file's (who moved it back died before it took the other name away), or the first is gone."""
    try:
        return os.path.samefile(first, second)
    except FileNotFoundError:
        return not os.path.lexists(first)
