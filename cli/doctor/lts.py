"""The long-term storage: marker, writing, fsync, publishing, reservation, reading past the cache, lock, space, leftovers.

All that is written lies below ``.archiver/doctor/`` of the LTS, and is removed at the end of the run; what a killed run left,
by the next. Nothing is written without the marker.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from archiver.direct_io import PastCacheReader
from archiver.errors import LtsFault, LtsMarkerMissing
from archiver.progress import Silent
from archiver.storage.direct_write import publish, reserve, sync_folder, write_stream
from archiver.storage.lock import ExclusiveLock
from archiver.storage.lts import OWN
from archiver.storage.lts_directory import FileSystemLts
from cli.doctor.check import Check, Finding, fail, in_thread, not_checked, ok, warn
from cli.doctor.ground import Ground

SLOW_FSYNC_SECONDS = 30.0
OLD_SECONDS = 86400.0
SAMPLE_BYTES = 3 * 2**20 + 17
"""Neither a multiple of a buffer nor of a block."""


async def marker(ground: Ground) -> Finding:
    settings = ground.settings.lts

    def work() -> Finding:
        try:
            FileSystemLts(settings).check_marker()
        except LtsMarkerMissing as missing:
            if not settings.root.is_dir():
                return fail(f"{settings.root} is no directory", "mount the LTS there, or correct lts.root")
            return fail(f"{settings.root}: {missing.found}, expected {settings.identity!r}")
        return ok(f"{settings.root} is {settings.identity!r}")

    return await in_thread(work)


async def write(ground: Ground) -> Finding:
    """Also removes what killed runs left."""

    def work() -> Finding:
        home = ground.scratch.parent
        removed = 0
        if home.is_dir():
            for old in list(home.iterdir()):
                if ground.gone(old.name, time.time() - old.stat().st_mtime):
                    shutil.rmtree(old, ignore_errors=True)
                    removed += 1
        ground.scratch.mkdir(parents=True)
        path = ground.scratch / "write"
        path.write_bytes(b"archiver doctor")
        if path.read_bytes() != b"archiver doctor":
            return fail("what was written was not read back", "see the health of the LTS")
        path.unlink()
        return ok(f"below {home}" + (f" ({removed} left by a killed doctor removed)" if removed else ""))

    words = {
        errno.EROFS: "mount the LTS read-write",
        errno.EACCES: "give this user the right to write there",
        errno.EPERM: "give this user the right to write there",
        errno.ENOSPC: "free space on the LTS",
        errno.EDQUOT: "free space on the LTS, or raise the quota",
        errno.ESTALE: "mount the LTS again",
    }
    return await _try(work, words)


async def fsync(ground: Ground) -> Finding:
    def work() -> Finding:
        path = ground.scratch / "fsync"
        began = time.monotonic()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, b"archiver doctor")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        whole = sync_folder(ground.scratch)
        took = time.monotonic() - began
        if took > SLOW_FSYNC_SECONDS:
            return warn(
                f"file and directory took {took:.1f} s", "see the load of the LTS: each datablock takes six of them"
            )
        if not whole:
            return warn(
                "of files, not of directories: a name may be lost with the server's power",
                "see that the LTS's server keeps names by itself, as CIFS and some tape front ends do",
            )
        return ok(f"file and directory, {took * 1000:.0f} ms")

    return await _try(work)


async def publishing(ground: Ground) -> Finding:
    """As datablocks get their final names: a name that is taken must not be taken over (P3)."""

    def work() -> Finding:
        first, second, final = (ground.scratch / name for name in ("publish-1", "publish-2", "published"))
        first.write_bytes(b"first")
        second.write_bytes(b"second")
        publish(first, final)
        try:
            publish(second, final)
        except FileExistsError:
            pass
        if final.read_bytes() != b"first":
            return fail("a file that was there was overwritten")
        linked = final.stat().st_nlink > 1 or first.exists()
        try:
            lacks = FileSystemLts(ground.settings.lts).probe()
        except LtsFault as fault:
            return fail(fault.what, fault.next_step or "")
        if lacks:
            return warn(f"the file system lacks what is of use: it neither {' nor '.join(lacks)}")
        return ok("link, without clobbering" if linked else "rename, without clobbering")

    return await _try(work)


async def past_cache(ground: Ground) -> Finding:
    """Written and read as datablocks are; the verification is worth what this reading is worth."""
    wanted = ground.settings.lts.direct_io

    def work() -> Finding:
        path = ground.scratch / "direct"
        data = os.urandom(SAMPLE_BYTES)
        write_stream(
            path,
            [data],
            size=len(data),
            direct_io=wanted != "never",
            reserved=lambda done: None,
            progress=Silent(),
        )
        reader = PastCacheReader(path, wanted)
        digest = hashlib.sha256()
        for chunk in reader:
            digest.update(chunk)
        path.unlink()
        if digest.hexdigest() != hashlib.sha256(data).hexdigest():
            return fail("other bytes were read than were written", "see the health of the LTS")
        if reader.level == "cache":
            return warn("this file system lies in memory: what is read from it proves nothing", "use a disk as LTS")
        if reader.how != "O_DIRECT" and wanted != "never":
            return warn(f"no O_DIRECT here: read back by {reader.how}, which trusts this host more")
        return ok(reader.how)

    return await _try(work)


async def reservation(ground: Ground) -> Finding:
    def work() -> Finding:
        path = ground.scratch / "reserve"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            done = reserve(descriptor, 2**20)
        finally:
            os.close(descriptor)
            path.unlink()
        if not done:
            return warn("no fallocate here: two copies at once may find the LTS full in their midst, and wait")
        return ok("fallocate")

    return await _try(work)


async def lock(ground: Ground) -> Finding:
    """Where the LTS workers lock: a second lock on the same file must be refused (P12)."""
    settings = ground.settings
    folder = settings.lock_dir()
    path = folder / f".doctor-{ground.run}.lock"

    def work() -> Finding:
        try:
            with ExclusiveLock(path):
                try:
                    with ExclusiveLock(path):
                        return fail(f"two locks on one file in {folder}: this file system does not lock")
                except LtsFault:
                    return ok(f"exclusive, in {folder}")
        finally:
            with suppress(OSError):
                path.unlink()
            for old in folder.glob(".doctor-*.lock"):
                name = old.name.removeprefix(".doctor-").removesuffix(".lock")
                if ground.gone(name, time.time() - old.stat().st_mtime):
                    old.unlink(missing_ok=True)

    return await _try(work)


async def space(ground: Ground) -> Finding:
    settings = ground.settings

    def work() -> Finding:
        now = FileSystemLts(settings.lts).space()
        if now is None:
            return warn("the file system tells nothing of its space: a full LTS is seen when it is written to")
        usable = now.free - now.reserve - now.promised
        text = f"{_size(now.free)} of {_size(now.total)} free, {_size(now.reserve)} reserve, {_size(now.promised)} promised"
        if now.reserve >= now.total:
            return fail(f"{text}: the reserve is larger than the LTS", "lower lts.reserve")
        if usable <= 0:
            return fail(f"{text}: every copy waits")
        if usable < settings.datablock.target_bytes:
            return warn(f"{text}: a datablock of {_size(settings.datablock.target_bytes)} would wait")
        return ok(text)

    return await _try(work)


async def leftovers(ground: Ground) -> Finding:
    """Names only; a large LTS takes long, so without ``--deep`` it is looked at for a part of the time limit."""
    root = ground.settings.lts.root
    until = time.monotonic() + (float("inf") if ground.deep else ground.seconds / 2)

    def work() -> Finding:
        old: list[str] = []
        seen = 0
        folders = [root]
        while folders:
            if time.monotonic() > until:
                return _told(old, f"looked at {seen} names in {ground.seconds / 2:g} s, not at all", whole=False)
            with suppress(FileNotFoundError, PermissionError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name != OWN:
                            folders.append(Path(entry.path))
                    elif entry.name.endswith(".partial"):
                        with suppress(FileNotFoundError):
                            if time.time() - entry.stat(follow_symlinks=False).st_mtime > OLD_SECONDS:
                                old.append(entry.path.removeprefix(f"{root}/"))
        return _told(old, f"none in {seen} names", whole=True)

    return await _try(work)


def _told(old: list[str], otherwise: str, *, whole: bool) -> Finding:
    if old:
        return warn(f"{len(old)} .partial files older than a day hold space, the first {min(old)!a:.200}")
    return ok(otherwise) if whole else not_checked(otherwise, "archiver doctor --deep  looks at all of it")


async def _try(work: Callable[[], Finding], words: dict[int, str] | None = None) -> Finding:
    try:
        return await in_thread(work)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return fail(f"{error.strerror or error}{where}"[:300], (words or {}).get(error.errno or 0, ""))


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _mounted(ground: Ground) -> bool:
    """Whether the LTS is a file system; what a bucket is asked, ``lts_bucket`` says."""
    return ground.settings.lts.bucket is None


HERE = ("lts marker",)
WRITES = ("lts write",)
CHECKS = (
    Check(
        "lts marker",
        "lts.root carries the marker of lts.identity",
        "mount the LTS; a new one is prepared by  archiver setup  (never by doctor --fix: a lost mount has no marker either)",
        marker,
        wanted=_mounted,
    ),
    Check(
        "lts write",
        "writes, reads and removes a file; removes what a killed doctor left below .archiver/doctor/",
        "see the mount of the LTS and the rights of this user",
        write,
        HERE,
        wanted=_mounted,
    ),
    Check(
        "lts fsync",
        "of a file and of its directory",
        "mount an LTS that makes fsync durable",
        fsync,
        WRITES,
        wanted=_mounted,
    ),
    Check(
        "lts publish",
        "a finished file gets its final name by link or rename, a taken name is left alone, files move there and back (P3)",
        "mount an LTS that has link(2) or renameat2(RENAME_NOREPLACE), and tells small letters from large ones",
        publishing,
        WRITES,
        wanted=_mounted,
    ),
    Check(
        "lts direct io",
        "writes and reads past this host's page cache",
        "use a file system with O_DIRECT, or set lts.direct_io to never",
        past_cache,
        WRITES,
        wanted=_mounted,
    ),
    Check(
        "lts reservation",
        "reserves space by fallocate(2)",
        "use a file system with fallocate (NFS: 4.2), or set slots.lts_copy to 1",
        reservation,
        WRITES,
        wanted=_mounted,
    ),
    Check(
        "lts lock",
        "a second lock on one file, where the LTS workers lock, is refused (P12)",
        "set worker.lock_dir to a directory on a local disk that all LTS workers share",
        lock,
        WRITES,
        wanted=_mounted,
    ),
    Check(
        "lts space",
        "free space, less reserve and promises, holds a datablock",
        "free space on the LTS, or lower lts.reserve",
        space,
        HERE,
        wanted=_mounted,
    ),
    Check(
        "lts leftovers",
        "no .partial file is older than a day (on a large LTS only a part is looked at, unless --deep)",
        "archiver sweep",
        leftovers,
        HERE,
        patience=1000,
        wanted=_mounted,
    ),
)
