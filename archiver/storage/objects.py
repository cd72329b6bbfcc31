"""A bucket: obstore moves the bytes, boto3 does the rest.

obstore cannot say every S3 key exactly, so such a key is read and written with boto3. Neither
lengths nor checksums are trusted to a library: lengths are counted here, checksums are the caller's.
"""

from __future__ import annotations

import base64
import contextvars
import hashlib
import html
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cache, cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

import boto3
import botocore.session
import botocore.utils
import obstore
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from obstore import exceptions as obstore_errors
from obstore.store import S3Store

from archiver.errors import Stopped, SystemFault
from archiver.progress import Progress
from archiver.settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Buffer: TypeAlias = bytes | bytearray | memoryview
T = TypeVar("T")
_Read: TypeAlias = "tuple[Buffer, ObjectVersion]"

GET_PART_BYTES = 2 * 2**20
"""Size of a ranged GET: it decides how much memory a copy takes."""
PUT_PART_BYTES = 8 * 2**20
"""Size of an uploaded part; up to 10,000 parts, so it grows for datablocks above 78 GiB."""
MAX_PARTS = 10_000
PUT_CONCURRENCY = 2
THREADS = 16
SMALL_BYTES = 64 * 2**10
SMALL_AT_ONCE = 8
"""So many small objects are read by one thread one after another: to hand each over for itself costs as much as it."""
SLOWEST_BYTES = 5 * 2**20
"""Bytes a second that a store puts together which is alive (the same as of copies: ``workflows/steps.py``)."""
LOOK_SECONDS = 1.0
STANDS_STILL = 3
"""After so many times as long as a request is waited for an upload that asks for nothing more stands still."""
PUTTING_TOGETHER = "waiting for the store to put the parts together"
RETRY_SECONDS = 60
"""How long one request is retried here; Temporal retries the rest."""
ATTEMPTS = 4
"""The same for boto3, which counts."""
_OTHER_VERSION = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404")
_NO_RIGHT = ("AccessDenied", "AllAccessDisabled", "MethodNotAllowed", "403", "405")
_NO_CONDITIONS = ("NotImplemented", "501", "InvalidRequest", "InvalidArgument", "400")
"""What stores answer to ``If-Match`` in a delete that they do not know."""
NO_BATCHES = ("NotImplemented", "501", "MissingContentMD5", "InvalidRequest", "MalformedXML", "MethodNotAllowed", "405")
"""What stores answer to DeleteObjects that do not have it, or want it otherwise."""
REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401", "403")
"""Codes that speak of our account and its rights."""
LASTING = {
    "KeyTooLongError": "give it a shorter name: S3 keys have at most 1,024 bytes",
    "InvalidObjectState": "it lies in an archive class: have the store restore it, then submit the job again",
    "NotImplemented": "the store lacks what we need of it:  archiver doctor  says what",
    "InvalidStorageClass": "the store has no such class: correct the settings",
    "EntityTooLarge": "the store takes no object of this size",
    "InvalidBucketName": "correct the bucket's name in the settings",
}
"""What no waiting mends, and what does."""
_CODE = re.compile("<Code>([^<]{1,80})</Code>")
_MESSAGE = re.compile("<Message>([^<]{1,400})</Message>")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
DIGEST = "sha256"
"""Metadata of the small objects that we put: the SHA-256 of their bytes, which no store or library compares."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object as listed; ``version`` is its ETag, with quotes. ``modified``: seconds since 1970, 0 where it is not known."""

    key: str
    size: int
    version: str
    modified: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """All that a store tells of an object's version. What it does not tell is empty, and proves nothing.

    ``etag`` with its quotes; ``modified``: seconds since 1970; ``version_id``: of a bucket that keeps versions.
    """

    etag: str = ""
    modified: float = 0.0
    version_id: str = ""

    def same_object(self, other: ObjectVersion) -> bool:
        """Whether ETags and version ids are equal, as far as both are known. A proxy may make an ETag a weak one."""
        etags = {one.etag.removeprefix("W/") for one in (self, other) if one.etag}
        return len(etags) < 2 and len({one.version_id for one in (self, other) if one.version_id}) < 2

    def same_time(self, other: ObjectVersion) -> bool:
        """Whether both were modified in the same second, as far as that is known: headers have no fractions."""
        return not (self.modified and other.modified) or abs(self.modified - other.modified) < 1

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.modified, UTC).isoformat(timespec="milliseconds") if self.modified else "?"
        return f"version {self.etag or 'without ETag'} of {when}" + (f", id {self.version_id}" * bool(self.version_id))


@dataclass(frozen=True)
class OpenUpload:
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    begun: float = field(default=0.0, compare=False)


class ObjectChanged(Exception):
    """An object is not in the version, or not of the size, that was demanded; ``found`` says what is there."""

    def __init__(self, key: str, expected: str, found: str) -> None:
        super().__init__(f"{key}: expected {expected}, found {found}")
        self.key, self.expected, self.found = key, expected, found


def part_bytes(size: int) -> int:
    """Size of the parts of an upload of ``size`` bytes, with one in a hundred parts to spare for framing."""
    return max(PUT_PART_BYTES, -(-size // (MAX_PARTS - 100)))


def plain_key(key: str) -> bool:
    """Whether obstore names ``key`` exactly: no empty, ``.`` or ``..`` segment, no control character."""
    return all(segment not in ("", ".", "..") for segment in key.split("/")) and not any(
        ord(char) < 0x20 or ord(char) == 0x7F for char in key
    )


def _told(text: str) -> tuple[str, str]:
    """Code and message of S3 in what a library makes of its answer; empty where there are none."""
    code, message = _CODE.search(text), _MESSAGE.search(text)
    return (code[1] if code else ""), (html.unescape(message[1]) if message else "")


def named(metadata: Mapping[str, str]) -> dict[str, str]:
    """An object's metadata, names in small letters: headers have no case, and stores answer with one of their own."""
    return {name.lower(): value for name, value in metadata.items()}


_making = threading.Lock()
"""Sessions may not make two clients at once."""


@cache
def _session() -> boto3.session.Session:
    """One for all buckets, as it keeps S3's description: reading that takes ten times as long as making a client."""
    core = botocore.session.get_session()
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    return boto3.session.Session(botocore_session=core)


def _content_md5(params: dict[str, Any], **_: object) -> None:
    """Add the header of that name to a request that is about to be signed."""
    body = params["body"]
    data = body if isinstance(body, bytes) else bytes(body, "utf-8")
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


def _timestamp(text: str) -> datetime:
    """S3's usual form at a twentieth of what botocore's own parser costs: two thirds of reading a long listing."""
    try:
        return datetime.fromisoformat(text)
    except (ValueError, TypeError):
        pass
    try:
        return botocore.utils.parse_timestamp(text)
    except ValueError as error:
        raise ResponseParserError(str(error)) from None


class Bucket:
    """One bucket. ``side`` is the class of its faults. Thread-safe; connects when first used.

    ``seconds``: how long one request is tried, and waited for.
    """

    def __init__(self, name: str, s3: S3Settings, side: type[SystemFault], *, seconds: float = RETRY_SECONDS) -> None:
        self.name = name
        self._s3 = s3
        self._side = side
        self._seconds = seconds
        self._boto: S3Client | None = None
        self._batches = True
        """Whether the store deletes many at once."""

    # --- control plane: boto3 ---------------------------------------------------------------------------------------

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """The objects whose keys begin with ``prefix``, in the server's order (S3: by the UTF-8 bytes of the key).

        Only those behind the key ``after``, where it is given.
        """
        start: Any = {"StartAfter": after} if after else {}
        with self._boto_faults(prefix):
            for page in self.boto.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix, **start):
                for entry in page.get("Contents", []):
                    modified = _seconds(entry.get("LastModified"))
                    yield ObjectInfo(entry["Key"], entry["Size"], entry.get("ETag", ""), modified)

    def head(self, key: str) -> ObjectInfo | None:
        """The object, or None if there is none."""
        if plain_key(key):
            with self._obstore_faults(key):
                try:
                    meta = obstore.head(self._store, key)
                except (obstore_errors.NotFoundError, FileNotFoundError) as error:
                    self._confirm_missing(key, str(error))
                    return None
                return ObjectInfo(key, meta["size"], meta["e_tag"] or "", _seconds(meta["last_modified"]))
        with self._boto_faults(key):
            try:
                answer = self.boto.head_object(Bucket=self.name, Key=key)
            except ClientError as error:
                if (code := error.response["Error"]["Code"]) in ("404", "NoSuchKey", "NotFound"):
                    self._confirm_missing(key, code)
                    return None
                raise
            return ObjectInfo(
                key, answer["ContentLength"], answer.get("ETag", ""), _seconds(answer.get("LastModified"))
            )

    def proof(self, key: str) -> tuple[int, str | None] | None:
        """Size of an object and the SHA-256 in its metadata, which we write; None if there is none. Reads no bytes."""
        if plain_key(key):
            with self._obstore_faults(key):
                try:
                    found = obstore.get(self._store, key, options={"head": True})
                except (obstore_errors.NotFoundError, FileNotFoundError) as error:
                    self._confirm_missing(key, str(error))
                    return None
                return found.meta["size"], found.attributes.get(DIGEST)
        with self._boto_faults(key):
            try:
                answer = self.boto.head_object(Bucket=self.name, Key=key)
            except ClientError as error:
                if (code := error.response["Error"]["Code"]) in ("404", "NoSuchKey", "NotFound"):
                    self._confirm_missing(key, code)
                    return None
                raise
            return answer["ContentLength"], named(answer["Metadata"]).get(DIGEST)

    def holds(self, key: str, size: int, sha256: str, progress: Progress) -> bool:
        """Whether an object's bytes are these: by what is kept with it, and then by reading them.

        What the store says of an object it has said since it was put, whatever became of its bytes. One that cannot be read
        is not these bytes. Raises what ``progress`` raises.
        """
        try:
            if size <= GET_PART_BYTES:
                found = self._get(key) if plain_key(key) else self._get_boto(key)
                return (
                    found is not None
                    and found[1] == sha256
                    and len(found[0]) == size
                    and hashlib.sha256(found[0]).hexdigest() == sha256
                )
            info = self.head(key) if self.proof(key) == (size, sha256) else None
            if info is None:
                return False
            digest = hashlib.sha256()
            for chunk in self.stream(key, size=size, version=info.version):
                digest.update(chunk)
                progress.note(f"reading {key[-100:]!a}, which is there already")
            return digest.hexdigest() == sha256
        except SystemFault:
            return False

    def delete(self, keys: Iterable[str]) -> None:
        """Delete these objects, a thousand a request; those that are gone are no error."""
        batch: list[str] = []
        for key in chain(keys, [None]):
            if key is not None and _NOT_XML.search(key):
                self._delete_one(key)
            elif key is not None:
                batch.append(key)
            if batch and (key is None or len(batch) == 1000):
                if self._batches:
                    self._delete_batch(batch)
                else:
                    for one in batch:
                        self._delete_one(one)
                batch = []

    def is_still(self, key: str, size: int, version: ObjectVersion) -> bool:
        """Whether the object is there in this version, of this size, now."""
        info = self.head(key)
        if info is None or info.size != size:
            return False
        seen = ObjectVersion(info.version, info.modified)
        return version.same_object(seen) and (version.same_time(seen) or self._listed_as(key, size, version))

    def delete_version(self, key: str, etag: str) -> bool:
        """Delete the object if it has this ETag (any, if empty); returns False if it has another, or is gone.

        Stores that know no conditional deletes delete whatever has the key: look at it right before (``is_still``).
        """
        with self._boto_faults(key):
            try:
                condition: Any = {"IfMatch": etag} if etag else {}
                self.boto.delete_object(Bucket=self.name, Key=key, **condition)
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code in _OTHER_VERSION:
                    return False
                if code in _NO_RIGHT:
                    raise self._side(
                        f"object {key[:200]!a} in bucket {self.name} cannot be deleted",
                        expected="the right s3:DeleteObject for our S3 account, and no lock",
                        found=f"the server answers {code}",
                        next_step="delete what is to go by hand; for the next time give our account that right",
                        retryable=False,
                    ) from None
                if not etag or code not in _NO_CONDITIONS:
                    raise
                self.boto.delete_object(Bucket=self.name, Key=key)
        return True

    def server_time(self) -> float:
        """Seconds since 1970 by the server's clock; by ours where it tells none."""
        with self._boto_faults(""):
            answer = self.boto.list_objects_v2(Bucket=self.name, Prefix="", MaxKeys=1)
        try:
            return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
        except (KeyError, ValueError):
            return time.time()

    def _delete_one(self, key: str) -> None:
        with self._boto_faults(key):
            self.boto.delete_object(Bucket=self.name, Key=key)

    def _delete_batch(self, batch: Sequence[str]) -> None:
        """Raises the side's fault for what stays; a store that does not know the request, or not so, is asked one by one."""
        objects: Any = [{"Key": key} for key in batch]
        with self._boto_faults(batch[0]):
            try:
                answer = self.boto.delete_objects(Bucket=self.name, Delete={"Objects": objects, "Quiet": True})
            except ClientError as error:
                if error.response["Error"]["Code"] not in NO_BATCHES:
                    raise
                answer = None
        if answer is None:
            for key in batch:
                self._delete_one(key)
            # Not before they are gone: one that refuses them too has another reason.
            self._batches = False
            return
        if errors := answer.get("Errors"):
            code = errors[0].get("Code")
            raise self._side(
                f"{code}: object {ascii(errors[0].get('Key'))[:200]} in bucket {self.name} cannot be deleted",
                expected="an answer that it is deleted",
                found=f"{code}: {errors[0].get('Message', '')}, {len(errors)} of {len(batch)} objects"[:300],
                next_step="retried; "
                + ("see the rights of our S3 account" if code in REFUSED else "see the S3 server"),
            )

    def open_uploads(self, prefix: str) -> Iterator[OpenUpload]:
        """Multipart uploads under way, or left over, for keys that begin with ``prefix``."""
        with self._boto_faults(prefix):
            for page in self.boto.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix):
                for upload in page.get("Uploads", []):
                    yield OpenUpload(upload["Key"], upload["UploadId"], _seconds(upload.get("Initiated")))

    def abort_uploads(self, prefix: str) -> int:
        """Abort them; returns how many."""
        return self._abort(self.open_uploads(prefix))

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Abort this one; that it is gone already is no error."""
        with self._boto_faults(key):
            try:
                self.boto.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id)
            except ClientError as error:
                if error.response["Error"]["Code"] != "NoSuchUpload":
                    raise

    def _abort(self, uploads: Iterable[OpenUpload]) -> int:
        aborted = 0
        for upload in [*uploads]:
            self.abort_upload(upload.key, upload.upload_id)
            aborted += 1
        return aborted

    def ensure(self, *, dry_run: bool = False) -> bool:
        """Create the bucket if it is not there; returns whether it was (or, dry, would be) created."""
        with self._boto_faults(""):
            try:
                self.boto.head_bucket(Bucket=self.name)
                return False
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
                    raise
            if not dry_run:
                self.boto.create_bucket(Bucket=self.name)
            return True

    # --- data plane: obstore ----------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        """A small object whole, or None if there is none. Its bytes are those that ``put`` was given, or a fault."""
        found = self._found(key)
        if found is None:
            return None
        data, digest = found
        if digest and digest != hashlib.sha256(data).hexdigest():
            raise self._side(
                f"object {key[:200]!a} in bucket {self.name} does not read as it was written",
                expected=f"SHA-256 {digest}",
                found=f"SHA-256 {hashlib.sha256(data).hexdigest()} of {len(data)} B",
                next_step="retried; if it lasts, look at the S3 server's disks and memory",
            )
        return data

    def raw(self, key: str) -> bytes | None:
        """As ``get``, for who knows better than the object's own metadata what its bytes must be."""
        found = self._found(key)
        return found[0] if found is not None else None

    def _found(self, key: str) -> tuple[bytes, str | None] | None:
        return self._get(key) if plain_key(key) else self._get_boto(key)

    def _get(self, key: str) -> tuple[bytes, str | None] | None:
        with self._obstore_faults(key):
            try:
                answer = obstore.get(self._store, key)
                if not answer.meta["e_tag"]:
                    raise self._not_whole(key, "an object with an ETag", f"{answer.meta['size']} B without")
                return bytes(answer.bytes()), answer.attributes.get(DIGEST)
            except (obstore_errors.NotFoundError, FileNotFoundError) as error:
                self._confirm_missing(key, str(error))
                return None

    def _get_boto(self, key: str) -> tuple[bytes, str | None] | None:
        with self._boto_faults(key):
            try:
                answer = self.boto.get_object(Bucket=self.name, Key=key)
                if not answer.get("ETag"):
                    raise self._not_whole(key, "an object with an ETag", f"{answer['ContentLength']} B without")
                return answer["Body"].read(), named(answer["Metadata"]).get(DIGEST)
            except ClientError as error:
                if (code := error.response["Error"]["Code"]) in ("404", "NoSuchKey"):
                    self._confirm_missing(key, code)
                    return None
                raise

    def _confirm_missing(self, key: str, answer: str) -> None:
        """A 404 may also speak of the bucket, or of our account. Raises the side's fault if it does."""
        if "NoSuchKey" not in answer:
            with self._boto_faults(key):
                self.boto.head_bucket(Bucket=self.name)

    def put(self, key: str, data: bytes) -> None:
        """A small object whole; replaces what was there. The store compares what it got with its SHA-256, and keeps that."""
        digest = hashlib.sha256(data)
        metadata = {DIGEST: digest.hexdigest()}
        if plain_key(key):
            with self._obstore_faults(key):
                obstore.put(self._checked, key, data, use_multipart=False, attributes=metadata)
            return
        checksum = base64.b64encode(digest.digest()).decode()
        with self._boto_faults(key):
            self.boto.put_object(Bucket=self.name, Key=key, Body=data, Metadata=metadata, ChecksumSHA256=checksum)

    def put_stream(
        self,
        key: str,
        chunks: Iterable[bytes],
        *,
        size_hint: int = 0,
        ours: Callable[[], object] = lambda: None,
        waiting: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Upload a stream in parts; whole or not at all. What ``chunks`` raises is raised, and nothing stays behind.

        A server on disks may take minutes to put the parts of a large object together; ``waiting`` is told so every second.
        One that takes no more bytes for as long as a request is waited for is a fault.

        Except after ``Stopped``, from ``chunks`` or, once it failed, from ``ours``: whoever goes on with the work aborts
        what is open, and may have an upload of this key under way by now, which is not ours to abort.
        """
        part = part_bytes(size_hint)
        source = iter(chunks)
        first: list[bytes] = []
        held = 0
        for chunk in source:
            first.append(chunk)
            held += len(chunk)
            if held > part:
                break
        else:
            self.put(key, b"".join(first))
            return
        if not plain_key(key):
            raise self._side(
                f"object {key[:200]!a} in bucket {self.name} cannot be uploaded in parts",
                expected="a key without empty, '.' or '..' segments and control characters",
                next_step="choose another key",
                retryable=False,
            )
        sending = _Sending(first, source, self._seconds)
        # In a thread: it asks for the chunks, and may stand still with a server that stands still.
        work = partial(
            obstore.put,
            self._uploads(size_hint),
            key,
            sending.body(),
            use_multipart=True,
            chunk_size=part,
            max_concurrency=PUT_CONCURRENCY,
        )
        try:
            with self._obstore_faults(key):
                sending.watch(work, waiting)
        except BaseException as error:
            if not any(isinstance(one, Stopped) for one in (error, sending.failed)):
                ours()
                self._abort_quietly(key)
            if sending.failed is not None:
                raise sending.failed from None
            raise

    def _uploads(self, size: int) -> S3Store:
        """For an upload of so many bytes: a server on disks needs long to put its parts together, and is waited for."""
        if size < SLOWEST_BYTES * self._seconds:
            return self._store
        patience = self._seconds + size / SLOWEST_BYTES
        return self._obstore(self._s3.endpoint, path_style=self._s3.path_style, patience=patience)

    def stream(self, key: str, *, size: int, version: str, span: tuple[int, int] | None = None) -> Iterator[Buffer]:
        """The bytes of one object in this version, fetched ahead in parts; of ``span`` only, from its first to before its
        second. Raises the side's fault if the object is another.
        """
        with_item = self.read_many(
            [(None, key, size, ObjectVersion(version))], ahead_bytes=8 * GET_PART_BYTES, ahead_requests=4, span=span
        )
        try:
            for _, chunks in with_item:
                yield from chunks
        except ObjectChanged as changed:
            raise self._side(
                f"object {key} in bucket {self.name} is not what it was",
                expected=changed.expected,
                found=changed.found,
                next_step="retried; see who else writes to this bucket",
            ) from None

    def read_many(
        self,
        wanted: Iterable[tuple[T, str, int, ObjectVersion]],
        *,
        ahead_bytes: int,
        ahead_requests: int,
        span: tuple[int, int] | None = None,
    ) -> Iterator[tuple[T, Iterator[Buffer]]]:
        """Objects as ``(item, key, size, version)``, delivered in order, fetched ahead in parallel.

        Each is to be read to its end (that of ``span``, if given) before the next is asked for. At most ``ahead_bytes`` and
        ``ahead_requests`` are in flight. Raises ``ObjectChanged`` where an answer is of another version or size than was
        demanded, or two answers are of two versions, and the side's fault.
        """
        pending: deque[tuple[list[_Part[T]], Future[list[_Read | Exception]]]] = deque()
        ready: deque[tuple[_Part[T], _Read | Exception]] = deque()
        in_flight = 0
        held = 0
        most = max(1, min(SMALL_AT_ONCE, ahead_requests // THREADS))
        batches = _batches(_parts(wanted, span), most, min(SMALL_BYTES, ahead_bytes // SMALL_AT_ONCE))
        pool = ThreadPoolExecutor(max_workers=min(ahead_requests, THREADS), thread_name_prefix=f"get-{self.name}")

        def fill() -> None:
            nonlocal in_flight, held
            while held < ahead_requests and (in_flight < ahead_bytes or not pending):
                batch = next(batches, None)
                if batch is None:
                    return
                pending.append((batch, pool.submit(_read_all, self._read_part, batch)))
                in_flight += sum(part.length for part in batch)
                held += len(batch)

        def chunks() -> Iterator[Buffer]:
            nonlocal in_flight, held
            last = False
            first: ObjectVersion | None = None
            while not last:
                if not ready:
                    batch, future = pending.popleft()
                    ready.extend(zip(batch, future.result(), strict=False))
                    in_flight -= sum(part.length for part in batch)
                    held -= len(batch)
                part, read = ready.popleft()
                if isinstance(read, Exception):
                    raise read
                data, seen = read
                first = first or seen
                if not (first.same_object(seen) and first.modified == seen.modified):
                    raise ObjectChanged(part.key, f"all of it in {first}", f"bytes from {part.start} on in {seen}")
                fill()
                last = part.start + part.length >= part.end
                if part.length:
                    yield data

        try:
            fill()
            while ready or pending:
                body = chunks()
                yield (ready[0][0] if ready else pending[0][0][0]).item, body
                for _ in body:
                    pass
        finally:
            # Not waited for: whoever stops is not to hang with a server that hangs.
            pool.shutdown(wait=False, cancel_futures=True)

    def _read_part(self, key: str, size: int, version: ObjectVersion, start: int, length: int) -> _Read:
        if not plain_key(key):
            return self._read_part_boto(key, size, version, start, length)
        options: Any = {"if_match": version.etag} if version.etag else {}
        if length != size:
            options["range"] = (start, start + length)
        with self._obstore_faults(key):
            try:
                answer = obstore.get(self._store, key, options=options)
                meta = answer.meta
                data = answer.bytes() if meta["size"] == size else b""
            except (obstore_errors.NotFoundError, FileNotFoundError) as error:
                self._confirm_missing(key, str(error))
                raise ObjectChanged(key, f"{size} B in {version}", "nothing") from None
            except obstore_errors.PreconditionError:
                raise ObjectChanged(key, f"{size} B in {version}", "another version") from None
            except obstore_errors.GenericError as error:
                if "status code: 416" in str(error):
                    raise ObjectChanged(key, f"{size} B in {version}", f"less than {start + length} B") from None
                raise
        seen = ObjectVersion(meta["e_tag"] or "", _seconds(meta["last_modified"]), meta["version"] or "")
        self._demanded(key, version, seen, (length, size), (len(data), meta["size"]))
        return data, seen  # type: ignore[return-value]

    def _read_part_boto(self, key: str, size: int, version: ObjectVersion, start: int, length: int) -> _Read:
        if not size:
            info = self.head(key)
            if info is None:
                raise ObjectChanged(key, f"{size} B in {version}", "nothing")
            seen = ObjectVersion(info.version, info.modified)
            self._demanded(key, version, seen, (0, 0), (info.size, info.size))
            return b"", seen
        condition: Any = {"IfMatch": version.etag} if version.etag else {}
        with self._boto_faults(key):
            try:
                answer = self.boto.get_object(
                    Bucket=self.name, Key=key, Range=f"bytes={start}-{start + length - 1}", **condition
                )
                data = answer["Body"].read()
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code in ("NoSuchKey", "404", "PreconditionFailed", "412", "InvalidRange", "416"):
                    if code == "404":
                        self._confirm_missing(key, code)
                    raise ObjectChanged(key, f"{size} B in {version}", code) from None
                raise
        total = answer.get("ContentRange", "").rpartition("/")[2]
        seen = ObjectVersion(
            answer.get("ETag", ""), _seconds(answer.get("LastModified")), answer.get("VersionId") or ""
        )
        self._demanded(key, version, seen, (length, size), (len(data), int(total) if total.isdecimal() else -1))
        return data, seen

    def _demanded(
        self, key: str, version: ObjectVersion, seen: ObjectVersion, wanted: tuple[int, int], got: tuple[int, int]
    ) -> None:
        """Raises ``ObjectChanged`` if the answer is of another version, and the side's fault if it is not whole.

        ``wanted`` and ``got``: bytes of this answer, and of the object.
        """
        expected, found = (f"{length} of {size} B" for length, size in (wanted, got))
        other = not version.same_object(seen) or (not version.etag and got[1] != wanted[1])
        # Listed afresh: a store may tell one time when it lists and another when it reads.
        if other or not (version.same_time(seen) or self._listed_as(key, wanted[1], version)):
            raise ObjectChanged(key, f"{expected} in {version}", f"{found} in {seen}")
        if version.etag and not seen.etag:
            raise self._not_whole(key, f"{expected} in {version}", f"{found} without an ETag")
        if got != wanted:
            raise self._not_whole(key, expected, found)

    def _listed_as(self, key: str, size: int, version: ObjectVersion) -> bool:
        """Whether the object is listed in exactly this version now."""
        entry = next(self.list(key), None)
        return entry is not None and (entry.key, entry.size, entry.version, entry.modified) == (
            key,
            size,
            version.etag,
            version.modified,
        )

    def _not_whole(self, key: str, expected: str, found: str) -> SystemFault:
        return self._side(
            f"bucket {self.name}, object {key[:200]!a}: the server's answer is not whole, or not S3's",
            expected=expected,
            found=found,
            next_step="retried; see the S3 server and what lies before it",
        )

    # --- clients and faults -----------------------------------------------------------------------------------------

    @property
    def unsigned_payload(self) -> bool:
        """Whether bodies are sent unsigned."""
        return self._s3.unsigned_payload

    @property
    def _patient(self) -> bool:
        return self._seconds >= RETRY_SECONDS

    @property
    def boto(self) -> S3Client:
        """The boto3 client, made when first used."""
        with _making:
            if self._boto is None:
                self._boto = self._client(self._s3.endpoint, {})
            return self._boto

    def client(self, endpoint: object = None, **config: Any) -> S3Client:
        """A client of its own, with more of botocore's ``Config``, for the server's other name ``endpoint`` if given."""
        with _making:
            return self._client(endpoint or self._s3.endpoint, config)

    def completing(self, size: int) -> S3Client:
        """A client for the request that completes an upload of so many bytes: a server on disks needs long for it.

        Not tried again by itself where that takes long: a second request may find no upload any more.
        """
        if size < SLOWEST_BYTES * self._seconds:
            return self.boto
        return self.client(read_timeout=self._seconds + size / SLOWEST_BYTES, retries={"total_max_attempts": 1})

    def faults(self, key: str) -> AbstractContextManager[None]:
        """What a client raises in this context becomes the side's fault."""
        return self._boto_faults(key)

    def _client(self, endpoint: object, config: dict[str, Any]) -> S3Client:
        s3 = self._s3
        usual: dict[str, Any] = {
            "s3": {"addressing_style": "path" if s3.path_style else "auto", **config.pop("s3", {})},
            "retries": {"mode": "standard", "max_attempts": ATTEMPTS if self._patient else 1},
            "connect_timeout": min(10, self._seconds),
            "read_timeout": self._seconds,
            "max_pool_connections": THREADS,
        }
        client = _session().client(
            "s3",
            endpoint_url=str(endpoint) if endpoint else None,
            aws_access_key_id=s3.access_key,
            aws_secret_access_key=s3.secret_key.get_secret_value() if s3.secret_key else None,
            region_name=s3.region,
            config=Config(**{**usual, **config}),
        )
        # Stores of before S3's newer checksums demand it of this request; the others take both.
        client.meta.events.register("before-call.s3.DeleteObjects", _content_md5)
        return client

    def signer(self, endpoint: object = None) -> S3Store:
        """For presigned URLs in path style, for the server's other name ``endpoint`` if given; of plain keys only."""
        return self._obstore(endpoint or self._s3.endpoint, path_style=True)

    @cached_property
    def _store(self) -> S3Store:
        return self._obstore(self._s3.endpoint, path_style=self._s3.path_style)

    @cached_property
    def _checked(self) -> S3Store:
        """For objects put whole: sends their SHA-256 beside them. In parts of large ones that would cost 0.7 cpu-s a GiB."""
        return self._obstore(self._s3.endpoint, path_style=self._s3.path_style, checksum_algorithm="SHA256")

    def _obstore(self, endpoint: object, *, path_style: bool, patience: float = 0, **keys: Any) -> S3Store:
        s3 = self._s3
        if endpoint:
            keys["endpoint"] = str(endpoint).rstrip("/")
        if s3.access_key and s3.secret_key:
            keys["access_key_id"] = s3.access_key
            keys["secret_access_key"] = s3.secret_key.get_secret_value()
        return S3Store(
            self.name,
            region=s3.region,
            virtual_hosted_style_request=not path_style,
            unsigned_payload=s3.unsigned_payload,
            client_options={
                "allow_http": True,
                "connect_timeout": timedelta(seconds=min(10, self._seconds)),
                "timeout": timedelta(seconds=patience or self._seconds),
            },
            retry_config={"max_retries": 6 if self._patient else 0, "retry_timeout": timedelta(seconds=self._seconds)},
            **keys,
        )

    def _abort_quietly(self, key: str) -> None:
        """After a failed upload: the upload's own error is the one to tell, and a sweep takes what this leaves."""
        try:
            self._abort(upload for upload in self.open_uploads(key) if upload.key == key)
        except SystemFault:
            pass

    @contextmanager
    def _obstore_faults(self, key: str) -> Iterator[None]:
        try:
            yield
        except (obstore_errors.BaseError, OSError) as error:
            text = str(error).strip()
            code, message = _told(text)
            refused = (obstore_errors.UnauthenticatedError, obstore_errors.PermissionDeniedError, PermissionError)
            if not code and isinstance(error, refused):
                code = "403"
            lines = text.splitlines() or [type(error).__name__]
            raise self._fault(key, code, message or lines[0], "the server does not do as asked") from None

    @contextmanager
    def _boto_faults(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            told = error.response["Error"]
            code = told.get("Code", "?")
            if code in ("NoSuchBucket", "404"):
                raise self._fault(key, code, told.get("Message", ""), "no such bucket for our account") from None
            raise self._fault(key, code, told.get("Message", ""), "the server does not do as asked") from None
        except ResponseParserError as error:
            raise self._fault(key, "", str(error), "the server's answer is not S3's") from None
        except BotoCoreError as error:
            raise self._fault(key, "", str(error), "the server does not answer") from None

    def _fault(self, key: str, code: str, message: str, what: str) -> SystemFault:
        """The store's own code comes first: it says more than anything that we could, and is not to be cut off."""
        what = "the server refuses our account" if code in REFUSED else what
        lasts = LASTING.get(code, "")
        advice = lasts or (
            "check our keys and their rights"
            if code in REFUSED
            else "check that the S3 server runs, its bucket, our keys"
        )
        lines = message.strip().splitlines() or ["no further word"]
        return self._side(
            f"{code}: {what}: bucket {self.name}, object {key[:200]!a}"
            if code
            else f"bucket {self.name}, object {key[:200]!a}: {what}",
            expected=f"S3 at {self._s3.endpoint or 'AWS'}",
            found=lines[0][:300],
            next_step=advice if lasts else f"retried; {advice}",
            retryable=not lasts,
        )


class _Sending:
    """The chunks of an upload that goes on in a thread, and what becomes of it."""

    def __init__(self, first: list[bytes], rest: Iterator[bytes], seconds: float) -> None:
        self.failed: BaseException | None = None
        """What the chunks raised."""
        self._first, self._rest = first, rest
        self._seconds = seconds
        self._given = 0.0
        """Since when the store has something to send; 0 while it waits for us."""
        self._all_sent = False
        self._left = False

    def body(self) -> Iterator[bytes]:
        """The chunks."""
        try:
            for chunk in chain(iter(lambda: self._first.pop(0) if self._first else None, None), self._rest):
                self._given = time.monotonic()
                yield chunk
                self._given = 0.0
                if self._left:
                    # Not an end of the chunks: that would complete the upload, cut short.
                    raise TimeoutError("nobody waits for this upload any more")
        except BaseException as error:
            self.failed = error
            raise
        self._all_sent = True

    def watch(self, work: Callable[[], object], waiting: Callable[[str], object]) -> None:
        """Do ``work`` in a thread, to its end. Raises what it raises; ``Stopped`` as ``waiting`` does, once the work has ended
        or was given as long as a request; ``OSError`` for a server that takes nothing more, whose thread is left to it.
        """
        raised: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  carried to who waits
                raised.append(error)

        # With the context of who asks: an activity's heartbeat is known by it.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="put-stream", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            since = self._given
            if self._all_sent and thread.is_alive():
                try:
                    waiting(PUTTING_TOGETHER)
                except Stopped:
                    thread.join(self._seconds)
                    raise
            elif since and time.monotonic() - since > STANDS_STILL * self._seconds:
                self._left = True
                raise TimeoutError(f"the server has taken nothing for {time.monotonic() - since:.0f} s")
        if raised:
            raise raised[0]


def _seconds(when: datetime | None) -> float:
    """Seconds since 1970; 0 where the server does not say."""
    return when.timestamp() if when is not None else 0.0


class _Part(NamedTuple, Generic[T]):
    """A range of an object that is read by one request."""

    item: T
    key: str
    size: int
    version: ObjectVersion
    start: int
    length: int
    end: int
    """Of what is wanted of the object."""


def _parts(wanted: Iterable[tuple[T, str, int, ObjectVersion]], span: tuple[int, int] | None) -> Iterator[_Part[T]]:
    for item, key, size, version in wanted:
        first, end = span or (0, size)
        for start in range(first, end or 1, GET_PART_BYTES):
            yield _Part(item, key, size, version, start, min(GET_PART_BYTES, end - start), end)


def _read_all(
    read: Callable[[str, int, ObjectVersion, int, int], _Read], batch: list[_Part[T]]
) -> list[_Read | Exception]:
    """One after another, up to the first that fails, which is raised when its turn comes."""
    done: list[_Read | Exception] = []
    for part in batch:
        try:
            done.append(read(part.key, part.size, part.version, part.start, part.length))
        except Exception as error:  # noqa: BLE001  carried to the thread that reads
            done.append(error)
            break
    return done


def _batches(parts: Iterator[_Part[T]], most: int, small_bytes: int) -> Iterator[list[_Part[T]]]:
    """Up to ``most`` small objects at a time, any other part alone."""
    batch: list[_Part[T]] = []
    for part in parts:
        if part.size > small_bytes:
            if batch:
                yield batch
            yield [part]
            batch = []
            continue
        batch.append(part)
        if len(batch) == most:
            yield batch
            batch = []
    if batch:
        yield batch
