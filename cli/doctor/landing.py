"""The landing zone: readable, and with ``--dataset`` the files of one dataset, all of them, as the catalogue lists them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from archiver.catalogue.client import SciCat
from archiver.datablock.files import PlannedFile
from archiver.storage.landing import Landing, open_landing
from cli.doctor.buckets import listing
from cli.doctor.check import Check, Finding, fail, in_thread, not_checked, ok
from cli.doctor.ground import Ground

SHOWN = 3


async def root(ground: Ground) -> Finding:
    template = ground.settings.landing.url_template
    if template.startswith("s3://"):
        if not ground.landing_bucket:
            return not_checked(
                "each dataset has a bucket of its own in landing.url_template",
                "try one:  archiver doctor --dataset PID",
            )
        if ground.settings.landing.s3 is None and not ground.s3_knows_us:
            return not_checked("needs: s3 account")
        return await listing("landing", ground)
    fixed = template.removeprefix("file://").partition("{")[0]
    folder = Path(fixed[: fixed.rfind("/") + 1] or "/")

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


async def deleting(ground: Ground) -> Finding:
    """Only in a bucket without versions, where a delete of nothing does nothing."""
    if not ground.landing_bucket:
        return not_checked(
            "a directory: only a real removal would tell", "see that the worker of the queue delete may write"
        )
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
        "landing delete",
        "only with landing.delete_after_archive: deletes an object that does not exist",
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
