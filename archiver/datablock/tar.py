"""Tar headers (POSIX.1-2017, pax): our own from a template where ustar fits, ``tarfile``'s PAX where it must be PAX.

Ustar fits: a printable name of at most 100 ASCII bytes (or one that splits at a slash into a prefix of at most 155 and
a name of at most 100), sizes below 8 GiB, owner names of at most 31 ASCII bytes. Times are whole seconds.
"""

from __future__ import annotations

import tarfile
from datetime import datetime

from archiver.datablock.files import PlannedFile

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
USTAR_SIZE_LIMIT = 8 * 2**30
DEFAULT_MODE = 0o644
_OWNER_LIMIT = 0o7777777
_PAX_OWNER_LIMIT = 2**32 - 2
"""The largest user id of Linux; a longer number is a name."""
_TIME_LIMIT = 0o77777777777
_ZEROS = tuple(bytes(k) for k in range(101))
_TAIL = bytes(12)


def padding(size: int) -> bytes:
    """The zeros that fill the last block of ``size`` bytes."""
    return bytes(-size % BLOCK)


def seconds(time: str) -> int:
    """An ISO 8601 time as whole seconds since 1970, UTC where it names no zone; 0 if it is none or before."""
    try:
        parsed = datetime.fromisoformat(time.replace("Z", "+00:00"))
        if parsed.tzinfo is None:
            parsed = datetime.fromisoformat(parsed.isoformat() + "+00:00")
        return min(max(0, int(parsed.timestamp())), _TIME_LIMIT)
    except (ValueError, AttributeError, OverflowError):
        return 0


def header(file: PlannedFile) -> bytes:
    """The header block (or PAX blocks and header block) of ``file``; the same facts give the same bytes."""
    mode = (DEFAULT_MODE if file.mode is None else file.mode) & 0o7777
    uid, uname = _owner(file.uid)
    gid, gname = _owner(file.gid)
    mtime = seconds(file.time)
    split = _split(file.path)
    if split is None or file.size >= USTAR_SIZE_LIMIT or uname is None or gname is None:
        info = tarfile.TarInfo(file.path)
        info.size, info.mode, info.mtime, info.uid, info.gid = file.size, mode, mtime, uid, gid
        info.uname = (file.uid or "") if uname is None and not uid else uname or ""
        info.gname = (file.gid or "") if gname is None and not gid else gname or ""
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")
    prefix, name = split
    block = b"%b%b%07o\0%07o\0%07o\0%011o\0%011o\0        0%bustar\x0000%b%b%b%b%b%b%b" % (
        name,
        _ZEROS[100 - len(name)],
        mode,
        uid,
        gid,
        file.size,
        mtime,
        _ZEROS[100],
        uname.encode().ljust(32, b"\0"),
        gname.encode().ljust(32, b"\0"),
        _ZEROS[8],
        _ZEROS[8],
        prefix,
        bytes(155 - len(prefix)),
        _TAIL,
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _split(path: str) -> tuple[bytes, bytes] | None:
    if not path.isascii() or not path.isprintable():
        return None
    data = path.encode("ascii")
    if len(data) <= 100:
        return b"", data
    if len(data) > 256:
        return None
    # The first slash that leaves a name of at most 100 bytes: the shortest prefix.
    cut = data.find(b"/", len(data) - 101)
    if cut < 1 or cut > 155 or cut == len(data) - 1:
        return None
    return data[:cut], data[cut + 1 :]


def _owner(value: str | None) -> tuple[int, str | None]:
    """A numeric id, or a name; None as the name if ustar cannot say it. What is not printable is left to the manifest."""
    if not value or not value.isprintable():
        return 0, ""
    if value.isascii() and value.isdigit() and (number := int(value[:20])) <= _PAX_OWNER_LIMIT:
        return number, "" if number <= _OWNER_LIMIT else None
    return 0, value if value.isascii() and not value.isdigit() and len(value) <= 31 else None
