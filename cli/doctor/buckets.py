"""Buckets: list, put, get, multipart upload, abort, delete, and what others left. Nothing stays behind.

Deleting and aborting are tried first, on what does not exist: where they are refused nothing is put that could not be removed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import httpx
from botocore.exceptions import BotoCoreError, ClientError

from archiver.errors import SystemFault
from archiver.storage.objects import Bucket
from cli.doctor.check import Check, Finding, fail, in_thread, ok, warn
from cli.doctor.clocks import ask, date_of
from cli.doctor.ground import Ground, now

OLD = timedelta(days=1)
AGAIN_SECONDS = 0.2
BUCKETS = ("staging", "retrieval")
KNOWN = ("AccessDenied", "AllAccessDisabled", "MethodNotAllowed", "NotImplemented", "403")
"""What servers say to an account that they know and that may not list buckets; all else is of the account itself."""


async def server(ground: Ground) -> Finding:
    s3 = ground.settings.s3
    url = str(s3.endpoint) if s3.endpoint else f"https://s3.{s3.region}.amazonaws.com/"
    try:
        tls = url.startswith("https:")
        async with httpx.AsyncClient(timeout=ground.seconds / 2, trust_env=False, verify=tls) as http:
            answer = await ask(http, url, ground, "s3")
    except httpx.HTTPError as error:
        return fail(f"{url}: {type(error).__name__} {error}"[:300])
    if answer.status_code >= 500:
        return fail(f"{url} answers {answer.status_code}", "see the log of the S3 server")
    return ok(url)


async def account(ground: Ground) -> Finding:
    """Listing buckets is a right that our account need not have; that its keys are true shows all the same."""
    bucket = ground.bucket("staging")
    try:
        await in_thread(bucket.boto.list_buckets)
    except ClientError as error:
        if (code := _code(error)) not in KNOWN:
            return fail(code)
    except BotoCoreError as error:
        return fail(str(error)[:300], "set s3.access_key and s3.secret_key")
    ground.s3_knows_us = True
    return ok(ground.settings.s3.access_key or "keys of the environment")


async def clock(ground: Ground) -> Finding:
    return await date_of("s3", ground)


async def listing(which: str, ground: Ground) -> Finding:
    """And removes what a doctor that was killed left here."""
    bucket = ground.bucket(which)

    def work() -> Finding:
        try:
            bucket.boto.list_objects_v2(Bucket=bucket.name, MaxKeys=1)
        except ClientError as error:
            if _code(error) in ("NoSuchBucket", "404"):
                return fail(f"no bucket {bucket.name}", "archiver setup  makes it, or correct its name in the settings")
            return fail(f"{bucket.name}: {_code(error)}")
        except BotoCoreError as error:
            return fail(f"{bucket.name}: {error}"[:300])
        removed = 0 if which == "landing" else _remove_dead(bucket, which, ground)
        return ok(bucket.name + (f" ({removed} left by a killed doctor removed)" if removed else ""))

    return await in_thread(work)


def _remove_dead(bucket: Bucket, which: str, ground: Ground) -> int:
    """Quietly: a right that is missing for it is told by its own check."""
    own, removed = ground.own(which), 0
    try:
        for page in bucket.boto.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=own):
            for entry in page.get("Contents", []):
                if ground.gone(entry["Key"].removeprefix(own), _age(entry["LastModified"])):
                    bucket.boto.delete_object(Bucket=bucket.name, Key=entry["Key"])
                    removed += 1
        for upload in _uploads(bucket, own):
            if ground.gone(upload["Key"].removeprefix(own), _age(upload["Initiated"])):
                bucket.boto.abort_multipart_upload(Bucket=bucket.name, Key=upload["Key"], UploadId=upload["UploadId"])
                removed += 1
    except (ClientError, BotoCoreError):
        pass
    return removed


async def deleting(which: str, ground: Ground) -> Finding:
    """Objects that do not exist: S3 deletes them with success, and refuses them to who may not delete."""
    bucket = ground.bucket(which)
    keys = [f"{ground.own(which)}{ground.run}/none-{n}" for n in (1, 2)]

    def work() -> Finding:
        refused = []
        try:
            bucket.boto.delete_object(Bucket=bucket.name, Key=keys[0])
        except ClientError as error:
            refused.append(f"DeleteObject: {_code(error)}")
        try:
            objects: Any = [{"Key": key} for key in keys]
            answer = bucket.boto.delete_objects(Bucket=bucket.name, Delete={"Objects": objects, "Quiet": True})
            refused += [f"DeleteObjects: {error.get('Code')}" for error in answer.get("Errors", [])[:1]]
        except ClientError as error:
            refused.append(f"DeleteObjects: {_code(error)}")
        return fail(f"{bucket.name}: {', '.join(refused)}") if refused else ok(f"{bucket.name}: one, and many at once")

    return await in_thread(work)


async def putting(which: str, ground: Ground) -> Finding:
    bucket = ground.bucket(which)
    put = with_object(bucket, f"{ground.own(which)}{ground.run}/put")
    return await in_thread(partial(put, lambda key, data: ok(f"{bucket.name}: {len(data)} B, and removed again")))


async def getting(which: str, ground: Ground) -> Finding:
    bucket = ground.bucket(which)

    def same(key: str, data: bytes) -> Finding:
        try:
            found = bucket.get(key)
            entry = bucket.head(key)
        except SystemFault as fault:
            return fail(f"{bucket.name}: {fault.found or fault.what}")
        if found != data or entry is None or entry.size != len(data):
            return fail(
                f"{bucket.name}: {len(data)} B were put, other bytes were read", "see the S3 server's log and disks"
            )
        if not entry.version or not entry.modified:
            return fail(f"{bucket.name}: the store tells no ETag, or no time, of an object", "use another S3 server")
        if bucket.proof(key) != (len(data), hashlib.sha256(data).hexdigest()):
            return fail(f"{bucket.name}: an object's metadata is not read as it was put", "use another S3 server")
        return ok(f"{bucket.name}: the bytes and the metadata that were put")

    return await in_thread(partial(with_object(bucket, f"{ground.own(which)}{ground.run}/get"), same))


def with_object(bucket: Bucket, key: str) -> Callable[[Callable[[str, bytes], Finding]], Finding]:
    """Put an object, look, and remove it, whatever was seen."""

    def work(see: Callable[[str, bytes], Finding]) -> Finding:
        data = hashlib.sha256(key.encode()).hexdigest().encode() * 16
        for last in (False, False, True):
            try:
                bucket.put(key, data)
                break
            except SystemFault as fault:
                if last:
                    return fail(f"{bucket.name}: {fault.found or fault.what}")
                # On a server that keeps folders, another doctor's delete may have taken ours away; workers try again too.
                time.sleep(AGAIN_SECONDS)
        try:
            finding = see(key, data)
        finally:
            try:
                bucket.boto.delete_object(Bucket=bucket.name, Key=key)
            except (ClientError, BotoCoreError) as error:
                finding = fail(f"{key} could not be removed from {bucket.name}: {error}"[:300], f"delete {key}")
        return finding

    return work


async def multipart(which: str, ground: Ground) -> Finding:
    bucket = ground.bucket(which)
    key = f"{ground.own(which)}{ground.run}/multipart"
    boto = bucket.boto

    def work() -> Finding:
        step = "AbortMultipartUpload"
        try:
            try:
                boto.abort_multipart_upload(
                    Bucket=bucket.name, Key=key, UploadId="00000000-0000-0000-0000-000000000000"
                )
            except ClientError as error:
                if _code(error) not in ("NoSuchUpload", "404"):
                    raise
            step = "CreateMultipartUpload"
            upload = boto.create_multipart_upload(Bucket=bucket.name, Key=key)["UploadId"]
            try:
                step = "UploadPart"
                boto.upload_part(Bucket=bucket.name, Key=key, UploadId=upload, PartNumber=1, Body=b"archiver doctor")
            finally:
                try:
                    boto.abort_multipart_upload(Bucket=bucket.name, Key=key, UploadId=upload)
                except ClientError:
                    step = "AbortMultipartUpload"
                    raise
            step = "ListMultipartUploads"
            if any(one["UploadId"] == upload for one in _uploads(bucket, key)):
                return fail(f"{bucket.name}: an upload that was aborted is still there", "see the log of the S3 server")
        except ClientError as error:
            return fail(f"{bucket.name}: {step}: {_code(error)}")
        return ok(f"{bucket.name}: begun, a part, aborted")

    return await in_thread(work)


async def leftovers(which: str, ground: Ground) -> Finding:
    bucket = ground.bucket(which)

    def work() -> Finding:
        try:
            old = [one for one in _uploads(bucket, "") if now() - one["Initiated"] > OLD]
        except ClientError as error:
            return fail(f"{bucket.name}: ListMultipartUploads: {_code(error)}")
        if not old:
            return ok(f"{bucket.name}: no upload older than a day")
        first = min(old, key=lambda one: one["Initiated"])
        what = f"the first {first['Key']!a:.120} of {first['Initiated']:%Y-%m-%d}"
        return warn(f"{bucket.name}: {len(old)} uploads older than a day hold space, {what}")

    return await in_thread(work)


def _uploads(bucket: Bucket, prefix: str) -> Iterator[Any]:
    for page in bucket.boto.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name, Prefix=prefix):
        yield from page.get("Uploads", [])


def _age(moment: datetime) -> float:
    return (now() - moment).total_seconds()


def _code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code", "?"))


def _of(which: str) -> tuple[Check, ...]:
    name = f"{which}.bucket"
    there = (f"{which} list",)
    return (
        Check(
            f"{which} list",
            f"lists the bucket; removes there what a doctor that was killed left below {'.archiver-doctor/'}",
            f"give our S3 account s3:ListBucket on {name}",
            partial(listing, which),
            ("s3 account",),
        ),
        Check(
            f"{which} delete",
            "deletes objects that do not exist, one and many at once",
            f"give our S3 account s3:DeleteObject on {name}",
            partial(deleting, which),
            there,
        ),
        Check(
            f"{which} put",
            "puts a small object and removes it",
            f"give our S3 account s3:PutObject on {name}",
            partial(putting, which),
            (f"{which} list", f"{which} delete"),
        ),
        Check(
            f"{which} get",
            "puts a small object, reads it, compares, removes it",
            f"give our S3 account s3:GetObject on {name}",
            partial(getting, which),
            (f"{which} put",),
        ),
        Check(
            f"{which} multipart",
            "aborts an upload that does not exist; begins one, sends a part, aborts it, and sees that it is gone",
            f"give our S3 account s3:PutObject, s3:AbortMultipartUpload and s3:ListBucketMultipartUploads on {name}",
            partial(multipart, which),
            there,
        ),
        Check(
            f"{which} leftover uploads",
            "no multipart upload is older than a day",
            "archiver sweep; or a lifecycle rule AbortIncompleteMultipartUpload on the bucket",
            partial(leftovers, which),
            there,
        ),
    )


CHECKS = (
    Check("s3 server", "the endpoint answers", "start the S3 server, or correct s3.endpoint", server),
    Check(
        "s3 account", "the server knows our keys", "correct s3.access_key and s3.secret_key", account, ("s3 server",)
    ),
    Check(
        "s3 clock",
        "the Date of its answers, against this machine's",
        "let NTP set the clocks of both machines",
        clock,
        ("s3 server",),
    ),
    *(check for which in BUCKETS for check in _of(which)),
)
