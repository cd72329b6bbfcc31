"""A file's mode from ``perm``, which is free text in SciCat: taken only where its digits or its form make it certain.

The rule, in this order (``docs/scicat.md`` says it to users):

1. ``-rw-r--r--`` or ``rw-r--r--``: as ``ls`` writes it.
2. ``0o644``, ``0644``, ``0100644``: octal, by its leading zero.
3. With the type bits of a regular file, read as octal (``100644``) or as decimal (``33188``, as Python's ``str(st_mode)``).
   No number is one in both readings.
4. Three or four octal digits without type bits: octal, if no file can have the decimal reading (``644``, ``4755``), or if
   people use it: the owner may read, the group nothing that the owner may not, others nothing that the group may not.
5. Three digits of which only the decimal reading is such a mode (``420`` is 0644, ``384`` is 0600).

Everything else is no mode: a wrong one could open a private file to everybody.
"""

from __future__ import annotations

import re
import stat

PERMISSIONS = 0o7777
_TRIPLETS = re.compile(r"-?([r-][w-][xsS-])([r-][w-][xsS-])([r-][w-][xtT-])[.+]?")
_OCTAL = re.compile(r"0o?[0-7]{3,7}")
_NUMBER = re.compile(r"[1-9][0-9]{2,5}")


def file_mode(perm: object) -> int | None:
    """Permission bits of a file (0 to 0o7777), or None if ``perm`` says none for certain."""
    if isinstance(perm, bool) or not isinstance(perm, (str, int)):
        return None
    text = str(perm)
    if symbolic := _TRIPLETS.fullmatch(text):
        return _symbolic(symbolic.groups())
    if _OCTAL.fullmatch(text):
        mode = int(text.removeprefix("0o"), 8)
        return mode & PERMISSIONS if mode <= PERMISSIONS or _regular(mode) else None
    return _number(text) if _NUMBER.fullmatch(text) else None


def perm_of(mode: int) -> str:
    """What we write: octal with the type bits of a regular file, so that every reader can be certain."""
    return f"{stat.S_IFREG | mode & PERMISSIONS:o}"


def _number(text: str) -> int | None:
    decimal = int(text)
    octal = int(text, 8) if not set(text) - set("01234567") else None
    for mode in (octal, decimal):
        if mode is not None and _regular(mode):
            return mode & PERMISSIONS
    if octal is not None and len(text) <= 4 and (decimal > 0o777 or _usual(octal)):
        return octal
    return decimal if _usual(decimal) else None


def _regular(mode: int) -> bool:
    return mode <= 0o177777 and stat.S_ISREG(mode)


def _usual(mode: int) -> bool:
    owner, group, others = mode >> 6, mode >> 3 & 7, mode & 7
    return mode <= 0o777 and bool(owner & 4) and group & ~owner == 0 and others & ~group == 0


def _symbolic(triplets: tuple[str, ...]) -> int:
    mode = 0
    for place, triplet in enumerate(triplets):
        bits = 4 * (triplet[0] == "r") + 2 * (triplet[1] == "w") + (triplet[2] in "xst")
        mode |= bits << 3 * (2 - place) | (0o4000 >> place if triplet[2] in "sStT" else 0)
    return mode
