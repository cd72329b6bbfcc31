"""The LTS of the settings: a mounted file system, or a bucket."""

from __future__ import annotations

from archiver.errors import LtsFault
from archiver.settings import Settings
from archiver.storage.lts import Lts


def open_lts(settings: Settings) -> Lts:
    """Connects to nothing; to be closed."""
    # What is not used is not loaded: a command is to answer at once.
    bucket = settings.lts.bucket
    if bucket is None:
        from archiver.storage.lts_directory import FileSystemLts

        return FileSystemLts(settings.lts, verifications=settings.slots.lts_verify)
    from archiver.storage.lts_bucket import BucketLts
    from archiver.storage.objects import Bucket

    return BucketLts(Bucket(bucket.name, bucket.s3 or settings.s3, LtsFault), bucket, settings.lts.identity)
