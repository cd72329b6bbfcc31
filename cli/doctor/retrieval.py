"""Where requesters fetch what was retrieved: links that work as they reach the server, and directories that take files.

What is written lies below ``.archiver-doctor/`` in the bucket or the root, and is removed; what a killed run left, by the next.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx

from archiver.storage.direct_write import publish
from archiver.storage.retrieval_bucket import RetrievalBucket
from archiver.storage.retrieval_directory import MARKER, NO_SUCH_NAME, is_marked
from cli.doctor.buckets import with_object
from cli.doctor.check import Check, Finding, Outcome, fail, in_thread, ok, warn
from cli.doctor.ground import OWN, Ground
from workflows.visible import size

LINK_SECONDS = 60
UNUSUAL = ':*?"<>|\\ \u00fc\u65e5'
"""Characters that some file systems refuse in names: those that Windows reserves, a space, and some beyond ASCII."""
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
WORDS = {
    errno.ENOENT: "mount it, or correct retrieval.roots",
    errno.ENOTDIR: "correct retrieval.roots",
    errno.EROFS: "mount it read-write",
    errno.EACCES: "give the user of the LTS worker the right to write there",
    errno.EPERM: "give the user of the LTS worker the right to write there",
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.ESTALE: "mount it again",
}


async def links(ground: Ground) -> Finding:
    """A link is a signature of the server's name too: a proxy that changes it, or a mistyped one, breaks them all."""
    settings = ground.settings
    bucket = RetrievalBucket(ground.bucket("retrieval"), settings.retrieval)
    where = str(settings.retrieval.public_endpoint or settings.s3.endpoint or "the S3 server")

    def fetch(key: str, data: bytes) -> Finding:
        # The link itself is a credential, and is told nowhere (P8).
        try:
            with httpx.Client(timeout=ground.seconds / 2, trust_env=False) as http:
                answer = http.get(bucket.presign(key, LINK_SECONDS))
        except httpx.HTTPError as error:
            return warn(f"{where} cannot be reached from here: {type(error).__name__}")
        if answer.status_code != 200:
            code = _CODE.search(answer.text[:2000])
            return fail(f"{where} answers {answer.status_code}" + (f" {code[1]}" if code else ""))
        if answer.content != data:
            return fail(f"{where} gives other bytes than were put", "see what stands before the S3 server")
        return ok(where)

    return await in_thread(partial(with_object(bucket.bucket, f"{ground.own('retrieval')}{ground.run}/link"), fetch))


async def roots(ground: Ground) -> Finding:
    """Each of them, as the worker writes there: a file gets its final name only where nothing has it."""
    return await _each(ground, partial(_write, ground))


async def space(ground: Ground) -> Finding:
    """What is free for us, less the reserve."""
    settings = ground.settings.retrieval

    def work(root: Path) -> Finding:
        found = os.statvfs(root)
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        if not total:
            return ok(f"{root}: the file system does not say how large it is; a full one is met by writing")
        reserve = settings.reserve_bytes(total)
        text = f"{root}: {size(free)} of {size(total)} free, {size(reserve)} reserve"
        if reserve >= total:
            return fail(f"{text}: the reserve is larger than the file system", "lower retrieval.reserve")
        return fail(f"{text}: every retrieval waits") if free <= reserve else ok(text)

    return await _each(ground, work)


def _write(ground: Ground, root: Path) -> Finding:
    if not is_marked(root):
        # Also says that nothing is there at all.
        os.stat(root)
        return fail(f"{root}: no {MARKER}", "mount it; a new one is prepared by  archiver setup")
    home = root / OWN.rstrip("/")
    own = home / ground.run
    _remove_dead(ground, home)
    try:
        _make(own)
        first, second, final = (own / name for name in ("first", "second", "final"))
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        descriptor = os.open(first, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        lacking = _lacking(own)
        publish(first, final)
        with suppress(FileExistsError):
            publish(second, final)
        if final.read_bytes() != b"first":
            return fail(f"{root}: a file that was there was overwritten", "use a file system that has link(2)")
        if lacking:
            remedy = "retrieve what needs them to another directory, or by links; without modes and times files are whole too"
            return warn(f"{root}: {', '.join(lacking)}", remedy)
        return ok(str(root))
    finally:
        shutil.rmtree(own, ignore_errors=True)
        with suppress(OSError):
            home.rmdir()


def _lacking(own: Path) -> list[str]:
    """What retrieved files will not have there: names with some characters, modes."""
    refused = [character for character in UNUSUAL if not _takes(own / f"a{character}b")]
    refused += [
        words for words, name in {"a dot at the end": "a.", "255 bytes": "n" * 255}.items() if not _takes(own / name)
    ]
    (own / "case").touch()
    lacking = [f"names with {' '.join(refused)} cannot be written"] if refused else []
    if (own / "CASE").exists():
        lacking.append("names that differ only in upper and lower case are the same")
    try:
        os.chmod(own / "second", 0o640)
        os.utime(own / "second", (1, 1))
        kept = (own / "second").stat()
        if (kept.st_mode & 0o777, int(kept.st_mtime)) != (0o640, 1):
            lacking.append("modes or times are not kept")
    except OSError as error:
        lacking.append(f"modes or times are not kept ({error.strerror})")
    return lacking


def _takes(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except OSError as error:
        if error.errno in NO_SUCH_NAME:
            return False
        raise
    path.unlink()
    return True


def _make(own: Path) -> None:
    """The run's own folder. Not with its root: one that is not there is told, and never made."""
    for last in (False, False, True):
        own.parent.mkdir(exist_ok=True)
        try:
            return own.mkdir()
        except FileNotFoundError:
            # Another doctor that has ended just took the folder above with it.
            if last:
                raise


def _remove_dead(ground: Ground, home: Path) -> None:
    with suppress(OSError):
        for old in list(home.iterdir()):
            if ground.gone(old.name, time.time() - old.stat().st_mtime):
                shutil.rmtree(old, ignore_errors=True)


async def _each(ground: Ground, work: Callable[[Path], Finding]) -> Finding:
    """All roots, side by side; what is wrong with one hides no other."""

    def one(root: Path) -> Finding:
        try:
            return work(root)
        except OSError as error:
            return fail(f"{root}: {error.strerror or error}"[:300], WORDS.get(error.errno or 0, ""))

    found = await asyncio.gather(
        *(in_thread(partial(one, root)) for root in dict.fromkeys(ground.settings.retrieval.roots))
    )
    wrong = [one for one in found if one.outcome != Outcome.OK]
    if not wrong:
        return ok(", ".join(one.found for one in found))
    verdict = warn if all(one.outcome == Outcome.WARN for one in wrong) else fail
    first = next(one for one in wrong if verdict is warn or one.outcome == Outcome.FAIL)
    return verdict("; ".join(one.found for one in wrong), first.remedy)


def _has_roots(ground: Ground) -> bool:
    return bool(ground.settings.retrieval.roots)


CHECKS = (
    Check(
        "retrieval links",
        "puts a small object, fetches it by a presigned link, as its requester would (retrieval.public_endpoint), removes it",
        "correct retrieval.public_endpoint; the server there must see the host name of the link as it is (try it from where "
        "requesters are)",
        links,
        ("retrieval put",),
    ),
    Check(
        "retrieval roots",
        "only with retrieval.roots: each has its marker; writes a file there, gives it its name without clobbering, "
        "tries unusual names and modes, removes all",
        "mount it, or give the user of the LTS worker the right to write there",
        roots,
        wanted=_has_roots,
    ),
    Check(
        "retrieval space",
        "only with retrieval.roots: free space in each, less retrieval.reserve",
        "free space there, or lower retrieval.reserve",
        space,
        ("retrieval roots",),
        wanted=_has_roots,
    ),
)
