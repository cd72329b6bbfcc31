"""The landing zone: readable, and with ``--dataset`` the files of one dataset, all of them, as the catalogue lists them."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from archiver.catalogue.client import SciCat
from archiver.datablock.files import PlannedFile
from archiver.names import path_bytes, path_text
from archiver.settings import LandingSettings
from archiver.storage.directory import DirectoryLanding, has_openat2, version_beneath
from archiver.storage.landing import Landing, S3Landing, open_landing
from archiver.storage.objects import ObjectChanged, ObjectVersion
from cli.doctor.buckets import listing
from cli.doctor.check import Check, Finding, fail, in_thread, not_checked, ok, warn
from cli.doctor.ground import Ground

SHOWN = 3
LOOKED_AT = 1000
"""Entries, to find a file to try."""
AGAIN_SECONDS = 0.2
NO_FILE = "no file lies there yet that could be tried"


async def root(ground: Ground) -> Finding:
    template = ground.settings.landing.url_template
    if template.startswith("s3://"):
        if ground.settings.landing.s3 is None and not ground.s3_knows_us:
            return not_checked("needs: s3 account")
        return await listing("landing", ground)
    folder = _fixed(ground)

    def work() -> Finding:
        try:
            with os.scandir(folder) as entries:
                empty = next(entries, None) is None
        except OSError as error:
            return fail(f"{folder}: {error.strerror}")
        if empty:
            # The archiver takes it for unmounted, and waits.
            return fail(f"{folder} is empty: is it mounted?", "mount the landing zone")
        return ok(str(folder))

    return await in_thread(work)


async def files(ground: Ground) -> Finding:
    """Whether a change of a source file would show: in one file, the first that is found."""
    landing = ground.settings.landing
    if ground.landing_bucket:
        return await in_thread(partial(_object, S3Landing(ground.bucket("landing"), "", landing), ground))
    return await in_thread(partial(_file, _fixed(ground), landing))


def _object(place: S3Landing, ground: Ground) -> Finding:
    bucket = ground.bucket("landing")
    entry = next((entry for entry in islice(bucket.list(""), LOOKED_AT) if entry.size), None)
    if entry is None:
        return ok(NO_FILE)
    wanted = [(None, entry.key, entry.size, ObjectVersion(entry.version, entry.modified))]
    try:
        for _, chunks in bucket.read_many(wanted, ahead_bytes=1, ahead_requests=1, span=(0, 1)):
            list(chunks)
    except ObjectChanged as error:
        return warn(
            f"object {entry.key[:100]!a} is listed as {error.expected}, and read as {error.found}",
            "look again; if it lasts, the store tells two versions of one object, and nothing can be archived from it",
        )
    return _judged(entry.key, place.certain(f"{entry.version} 0"), "no strong ETag", ground.settings.landing)


def _file(folder: Path, landing: LandingSettings) -> Finding:
    base = path_bytes(str(folder))
    path = _first_file(base)
    if path is None:
        return ok(NO_FILE)
    name = path_text(path)
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        first = version_beneath(root, path)
        time.sleep(AGAIN_SECONDS)
        second = version_beneath(root, path)
    except OSError as error:
        return fail(f"{folder}/{name[:100]!a}: {error.strerror}", "let the workers' user read what lies there")
    finally:
        os.close(root)
    if first != second:
        return warn(
            f"{name[:100]!a} had other times or another size when it was opened again: {first}, then {second}",
            "look again; if nobody writes it, mount the landing zone without caches of attributes",
        )
    certain = DirectoryLanding(f"{folder}/", "", {}, landing).certain(first)
    found = _judged(name, certain, "change times of whole seconds", landing)
    slow = "" if has_openat2() else " (openat2 is refused here: folders are opened one by one)"
    return replace(found, found=found.found + slow)


def _judged(name: str, certain: bool, why: str, landing: LandingSettings) -> Finding:
    if certain:
        return ok(f"{name[:100]!a} has a version by which a change shows")
    if landing.without_version == "refuse":
        return fail(f"{name[:100]!a} has {why}: such files are refused", "set landing.without_version to read_twice")
    return warn(f"{name[:100]!a} has {why}: such files are read twice", "docs/landing.md says what a version needs")


def _first_file(base: bytes) -> bytes | None:
    """Path of a regular file below; None if there is none among the first entries."""
    looked = 0
    for place, _, names in os.walk(base):
        for name in names:
            path = os.path.join(place, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                return os.path.relpath(path, base)
        looked += 1 + len(names)
        if looked > LOOKED_AT:
            break
    return None


def _fixed(ground: Ground) -> Path:
    """The directory before the first field of the template."""
    fixed, _, rest = ground.settings.landing.url_template.removeprefix("file://").partition("{")
    # A source folder begins with a slash; another field may go on with a name that the template began.
    return Path(fixed if rest.startswith("source_folder}") else fixed[: fixed.rfind("/") + 1] or "/")


def _may_remove(folder: Path) -> Finding:
    path = _first_file(path_bytes(str(folder)))
    if path is None:
        return not_checked(NO_FILE, "see that the worker of the queue delete may write where files lie")
    parent = folder / path_text(path.rpartition(b"/")[0])
    if not os.access(parent, os.W_OK | os.X_OK):
        return fail(f"this user may not remove files in {parent}", "let the user of the queue delete write there")
    return ok(f"this user may remove files in {parent}")


async def deleting(ground: Ground) -> Finding:
    """Only in a bucket without versions, where a delete of nothing does nothing; of a directory, what its rights say."""
    if not ground.landing_bucket:
        return await in_thread(partial(_may_remove, _fixed(ground)))
    bucket = ground.bucket("landing")

    def work() -> Finding:
        try:
            if bucket.boto.get_bucket_versioning(Bucket=bucket.name).get("Status"):
                return not_checked(f"{bucket.name} keeps versions: even a delete of nothing would leave a mark")
        except (ClientError, BotoCoreError):
            return not_checked(f"whether {bucket.name} keeps versions cannot be seen")
        try:
            bucket.boto.delete_object(Bucket=bucket.name, Key=f"{ground.own('landing')}{ground.run}/none")
        except ClientError as error:
            return fail(f"{bucket.name}: {error.response['Error'].get('Code')}")
        return ok(bucket.name)

    return await in_thread(work)


async def dataset(ground: Ground) -> Finding:
    """All its files listed, of the catalogue's sizes, and the first byte of one read: that is a right of its own."""
    pid = ground.dataset
    assert pid is not None  # noqa: S101
    async with SciCat(ground.settings.scicat) as scicat:
        record = await scicat.dataset(pid)
        if record is None:
            return fail(f"SciCat knows no dataset {pid}", "check the pid")
        blocks = scicat.origdatablocks(pid)
        wanted = {file.path: file.size async for block in blocks for file in block.catalogue_files(pid)}
    if not wanted:
        return fail(f"SciCat lists no files of {pid}", "see whether its ingest is finished")
    known = {
        "pid": record.pid,
        "source_folder": record.source_folder,
        "owner_group": record.owner_group,
        "proposal_id": record.proposal_id,
    }
    fields = {name: value for name, value in known.items() if value}
    place = open_landing(ground.settings.landing, ground.settings.s3, fields)
    return await in_thread(partial(_seen, place, wanted))


def _seen(place: Landing, wanted: dict[str, int]) -> Finding:
    missing, one = dict(wanted), None
    for file in place.list():
        if missing.get(file.path) == file.size:
            del missing[file.path]
            if one is None or (one.size > file.size > 0):
                one = file
    if missing or one is None:
        first = ", ".join(f"{path!a}" for path in sorted(missing)[:SHOWN])
        return fail(
            f"{len(missing)} of {len(wanted)} files are not in {place.where}, or not of their size: {first}"[:400]
        )
    planned = PlannedFile(one.path, one.size, "", one.version)
    read = sum(
        len(chunk) for _, chunks in place.fetch([planned], ahead_bytes=2**22, ahead_objects=1) for chunk in chunks
    )
    if read != one.size:
        return fail(f"{one.path!a} has {one.size} B, {read} were read")
    return ok(f"{place.where}: all {len(wanted)} files, and one read")


CHECKS = (
    Check(
        "landing list",
        "lists the bucket, or the directory before the first field of landing.url_template, which is not empty",
        "correct landing.url_template, mount the landing zone, or let the worker's user read there",
        root,
        (),
        ("s3 account",),
    ),
    Check(
        "landing files",
        "the first file that is found is opened, and has a version by which a change would show (docs/landing.md)",
        "let the worker's user read what lies there, and see docs/landing.md",
        files,
        ("landing list",),
    ),
    Check(
        "landing delete",
        "only with landing.delete_after_archive: deletes an object that does not exist; of a directory, looks at its rights",
        "give our S3 account s3:DeleteObject on the landing bucket, or set landing.delete_after_archive to false",
        deleting,
        ("landing list",),
        wanted=lambda ground: ground.settings.landing.delete_after_archive,
    ),
    Check(
        "landing dataset",
        "only with --dataset: every file of its origdatablocks is there, of its size, and one is read",
        "see landing.url_template, and whether the dataset's files are still being written",
        dataset,
        ("landing list", "scicat login"),
        patience=60,
        wanted=lambda ground: ground.dataset is not None,
    ),
)
