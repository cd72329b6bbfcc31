"""A bucket as LTS: marker, what the store must keep and refuse, restores, and the lock of this host.

What is written lies below ``.archiver/probe/`` of the LTS, and is removed at once.
"""

from __future__ import annotations

from botocore.exceptions import ClientError

from archiver.errors import LtsFault
from archiver.settings import LtsBucketSettings
from archiver.storage.lts_bucket import RESTORED_FIRST, BucketLts
from archiver.storage.objects import Bucket
from cli.doctor import lts
from cli.doctor.check import Check, Finding, fail, in_thread, ok, warn
from cli.doctor.ground import Ground


def is_bucket(ground: Ground) -> bool:
    """Whether the LTS of the settings is one."""
    return ground.settings.lts.bucket is not None


def _settings(ground: Ground) -> LtsBucketSettings:
    bucket = ground.settings.lts.bucket
    assert bucket is not None  # noqa: S101  wanted
    return bucket


def _bucket(ground: Ground) -> Bucket:
    settings = _settings(ground)
    return Bucket(settings.name, settings.s3 or ground.settings.s3, LtsFault, seconds=ground.seconds / 2)


def _lts(ground: Ground) -> BucketLts:
    return BucketLts(_bucket(ground), _settings(ground), ground.settings.lts.identity)


async def marker(ground: Ground) -> Finding:
    found = _lts(ground)
    await in_thread(found.check_marker)
    return ok(f"{found.where()} is {ground.settings.lts.identity!r}")


async def store(ground: Ground) -> Finding:
    found = _lts(ground)
    if lacks := await in_thread(found.probe):
        return warn(
            f"the store lacks what is of use: {', '.join(lacks)}",
            "docs/lts-bucket.md, Deletes, says what that leaves; versioning of the bucket closes it",
        )
    return ok(f"keeps SHA-256, overwrites nothing, has class {_settings(ground).storage_class}")


async def restore(ground: Ground) -> Finding:
    """On what does not exist: the store says so to who may restore, and refuses it to who may not."""
    settings, bucket = _settings(ground), _bucket(ground)

    def work() -> Finding:
        key = f"{settings.prefix}.archiver/probe/none-{ground.run}"
        try:
            bucket.boto.restore_object(Bucket=bucket.name, Key=key, RestoreRequest={"Days": 1})
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code not in ("NoSuchKey", "404"):
                return fail(f"RestoreObject: {code}")
        return ok(f"may be asked for: {settings.restore_tier}, for {settings.restore_days} days")

    return await in_thread(work)


NAME = "lts bucket"
CHECKS = (
    Check(
        NAME,
        "the bucket of lts.bucket carries the marker of lts.identity",
        "correct lts.bucket; a new one is prepared by  archiver setup",
        marker,
        wanted=is_bucket,
    ),
    Check(
        "lts store",
        "uploads in parts with SHA-256 in the class of the settings, is refused to overwrite (P3), and deletes",
        "use a store that keeps SHA-256 checksums and knows If-None-Match, or correct lts.bucket.storage_class",
        store,
        (NAME,),
        wanted=is_bucket,
    ),
    Check(
        "lts restore",
        "asks for the restore of an object that does not exist",
        "give our account the right s3:RestoreObject",
        restore,
        (NAME,),
        wanted=lambda ground: is_bucket(ground) and _settings(ground).storage_class in RESTORED_FIRST,
    ),
    Check(
        "lts bucket lock",
        "a second lock on one file in worker.lock_dir is refused (P12)",
        "set worker.lock_dir to a directory on a local disk that all LTS workers share",
        lts.lock,
        wanted=is_bucket,
    ),
)
