"""A bucket as retrieval target: a dataset's files below ``<prefix><pid>/``, presigned URLs, and their end.

What is there carries its SHA-256 as metadata and was complete before it was visible, so size and SHA-256 tell whether it
is what is wanted. How long data is wanted stands in one small object per dataset and selection below ``<prefix>.archiver/``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from itertools import groupby, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any

import obstore
from botocore.exceptions import ClientError
from obstore.store import S3Store
from zlib_ng import zlib_ng

from archiver.datablock.files import check_path, path_key
from archiver.datablock.manifest import ManifestFile
from archiver.errors import SystemFault, TargetFault, TargetFull
from archiver.pids import pid_path
from archiver.progress import Progress
from archiver.settings import RetrievalSettings
from archiver.storage.objects import DIGEST, PUT_PART_BYTES, SMALL_BYTES, Bucket, ObjectInfo, part_bytes, plain_key
from archiver.storage.targets import Delivered, Together, check_length

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MARKS = ".archiver/"
"""No dataset's: a pid's path does not begin with a dot."""
AHEAD_BYTES = 32 * 2**20
"""Bytes on their way to the bucket, per sink."""
THREADS = 8
SMALL_AT_ONCE = 8
"""So many small files are put by one thread one after another, as they are read (``objects.SMALL_AT_ONCE``)."""
MAX_KEY_BYTES = 1024
PAGE = 1000
"""Keys that one listing shows."""
IDLE_SECONDS = 3600.0
"""An upload that got no part for so long belongs to a process that is dead."""
DAY = 86400.0


class RetrievalBucket:
    """Implements ``Target``. ``bucket`` raises ``TargetFault``; ``clock`` gives seconds since 1970."""

    def __init__(self, bucket: Bucket, settings: RetrievalSettings, *, clock: Callable[[], float] = time.time) -> None:
        self.bucket = bucket
        self.prefix = settings.prefix
        self.where = f"s3://{bucket.name}/{settings.prefix}"
        self._settings = settings
        self._clock = clock

    def dataset(self, pid: str) -> str:
        """Everything of this dataset lies below this prefix, and nothing of another.

        It is the raw pid where that has SciCat's usual form; another could lie within a neighbour's (``pids.pid_path``).
        """
        return f"{self.prefix}{pid_path(pid)}/"

    def key(self, pid: str, name: str) -> str:
        """The key of a file of the dataset."""
        return self.dataset(pid) + name

    def refuses(self, pid: str, name: str) -> str:
        """As ``Target``: S3 has keys of up to 1,024 bytes."""
        length = len(path_key(self.key(pid, name)))
        return "" if length <= MAX_KEY_BYTES else f"its key would have {length} bytes, of at most {MAX_KEY_BYTES}"

    def check_space(self, need_bytes: int) -> None:
        """As ``Target``: what lies below the prefix and what is needed must be within the quota, if one is set."""
        quota = self._settings.quota
        if not quota:
            return
        held = sum(entry.size for entry in self.bucket.list(self.prefix))
        if held + need_bytes > quota:
            raise TargetFull(
                f"{self.where} has no room for what is to be retrieved",
                expected=f"{need_bytes} B more within {quota} B (retrieval.quota)",
                found=f"{held} B there",
                next_step="waits until data there expires" if need_bytes <= quota else "raise retrieval.quota",
                retryable=need_bytes <= quota,
            )

    def sink(self, pid: str, selection: str, attempt: str, progress: Progress, *, piece: str) -> BucketSink:
        """As ``Target``. What is delivered is wanted for the days of the settings from now on."""
        self.renew(pid, selection)
        self.tidy(pid)
        return BucketSink(self, pid, progress)

    def tidy(self, pid: str, *, idle_seconds: float = IDLE_SECONDS) -> int:
        """Abort the uploads that dead processes left open for this dataset; returns how many. Nobody sees such uploads."""
        return self._abort_idle(self.dataset(pid), idle_seconds)

    def renew(self, pid: str, selection: str, until: float | None = None) -> None:
        """The dataset's data is wanted until then (seconds since 1970), by default for the days of the settings."""
        until = self._clock() + self._settings.expire_days * DAY if until is None else until
        key = self._mark(pid, selection)
        if (
            (data := self.bucket.get(key)) is not None
            and (mark := _read_mark(data)) is not None
            and mark.until >= until
        ):
            return
        self.bucket.put(key, json.dumps({"pid": pid, "selection": selection, "until": until}).encode())

    def delivered(self, pid: str, files: Iterable[ManifestFile]) -> Iterator[Delivered]:
        """As ``Target``, by the bucket's own listing."""
        window = Window(self.bucket, self.dataset(pid))
        for file in files:
            key = self.key(pid, file.path)
            if window.size(key) != file.size:
                raise TargetFault(
                    f"file {file.path[:200]!a} is not in {self.where} any more",
                    expected=f"{file.size} B",
                    found="nothing, or another size",
                    next_step="retried; see who else writes to or deletes from this bucket",
                    dataset=pid,
                    file=ascii(file.path[:200]),
                )
            yield Delivered(file.path, key, file.size, file.sha256)

    def presign(self, key: str, seconds: int) -> str:
        """A URL that gives the object to whoever has it, for so long: a credential, never to be logged (P8)."""
        if plain_key(key):
            # 50 times cheaper than boto3 (0.75 ms): a dataset may have a million links.
            signed: str = obstore.sign(self._signer, "GET", key, timedelta(seconds=seconds))
            return signed
        url: str = self._public.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket.name, "Key": key}, ExpiresIn=seconds
        )
        return url

    @cached_property
    def _signer(self) -> S3Store:
        return self.bucket.signer(self._settings.public_endpoint)

    @cached_property
    def _public(self) -> S3Client:
        # Path style whatever the settings say of ours: who reads these URLs expects the pid behind the bucket.
        return self.bucket.client(
            self._settings.public_endpoint, signature_version="s3v4", s3={"addressing_style": "path"}
        )

    @cached_property
    def parts(self) -> S3Client:
        """For parts of uploads: without the library's own checksums, which cost more than all else (our SHA-256 guards)."""
        signing: dict[str, Any] = {"payload_signing_enabled": not self.bucket.unsigned_payload}
        return self.bucket.client(s3=signing, request_checksum_calculation="when_required")

    def _mark(self, pid: str, selection: str) -> str:
        return f"{self._marks(pid)}{_digest(selection)}.json"

    def _marks(self, pid: str) -> str:
        return f"{self.prefix}{MARKS}{_digest(pid)}/"

    def _abort_idle(self, prefix: str, idle_seconds: float) -> int:
        aborted = 0
        for upload in [*self.bucket.open_uploads(prefix)]:
            with self.bucket.faults(upload.key):
                try:
                    pages = self.parts.get_paginator("list_parts").paginate(
                        Bucket=self.bucket.name, Key=upload.key, UploadId=upload.upload_id
                    )
                    stored = [part["LastModified"].timestamp() for page in pages for part in page.get("Parts", [])]
                except ClientError as error:
                    if error.response["Error"]["Code"] != "NoSuchUpload":
                        raise
                    continue
            if self._clock() - max([upload.begun, *stored]) >= idle_seconds:
                self.bucket.abort_upload(upload.key, upload.upload_id)
                aborted += 1
        return aborted

    # --- the end of what was retrieved --------------------------------------------------------------------------------

    def expire(self, now: float, keep: Callable[[str], bool], progress: Progress) -> Expired:
        """Remove the datasets that nobody wants any more at ``now``, and uploads of dead processes.

        ``keep`` says of a pid whether it is in use, and is asked again before every thousand objects. What has no mark,
        or one that cannot be read, is left alone: somebody else put it there.
        """
        done = Expired()
        for folder, entries in groupby(
            self.bucket.list(self.prefix + MARKS), lambda entry: entry.key.rpartition("/")[0]
        ):
            marks = [*entries]
            progress.advance()
            found = [_read_mark(self.bucket.get(entry.key) or b"") for entry in marks]
            pids = {mark.pid for mark in found if mark is not None}
            if None in found or len(pids) != 1 or self._marks(pid := pids.pop()) != folder + "/":
                done.unreadable += 1
            elif max(mark.until for mark in found if mark is not None) > now or not self._remove(
                pid, marks, keep, done
            ):
                done.kept += 1
        done.uploads = self._abort_idle(self.prefix, IDLE_SECONDS)
        return done

    def _remove(self, pid: str, marks: list[ObjectInfo], keep: Callable[[str], bool], done: Expired) -> bool:
        """The dataset's objects, then its marks: whoever is killed between goes on the next time."""
        listed = self.bucket.list(self.dataset(pid))
        while True:
            batch = [*islice(listed, PAGE)]
            if keep(pid) or [*self.bucket.list(self._marks(pid))] != marks:
                return False
            self.bucket.delete(entry.key for entry in batch)
            done.objects += len(batch)
            done.size_bytes += sum(entry.size for entry in batch)
            if len(batch) < PAGE:
                break
        self.bucket.delete(mark.key for mark in marks)
        done.datasets += 1
        return True


@dataclass
class Expired:
    """What ``expire`` did: removed datasets, objects and bytes; datasets kept, or left alone because of a mark."""

    datasets: int = 0
    objects: int = 0
    size_bytes: int = 0
    kept: int = 0
    unreadable: int = 0
    uploads: int = 0


@dataclass(frozen=True)
class _Mark:
    pid: str
    until: float


def _read_mark(data: bytes) -> _Mark | None:
    try:
        fields = json.loads(data)
        return _Mark(str(fields["pid"]), float(fields["until"]))
    except (ValueError, KeyError, TypeError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Window:
    """Sizes of a dataset's objects by key, from one page of its listing at a time: cheap where keys are asked in order."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix
        self._sizes: dict[str, int] = {}
        self._first: bytes | None = None
        self._last = b""

    def size(self, key: str) -> int | None:
        """The object's size, or None if there is none."""
        at = path_key(key)
        if self._first is None or not self._first < at <= self._last:
            self._load(key)
        if at <= self._last:
            return self._sizes.get(key)
        found = self._bucket.head(key)
        return found.size if found else None

    def _load(self, key: str) -> None:
        # Listings begin behind a key: of those that may be named so, the nearest before this one.
        after = key[:-1]
        page = [*islice(self._bucket.list(self._prefix, after), PAGE)]
        self._sizes = {entry.key: entry.size for entry in page}
        self._first = path_key(after)
        # A short page is the listing's end: what is behind it is known not to be there.
        self._last = path_key(page[-1].key) if len(page) == PAGE else b"\xff"


@dataclass
class _Upload:
    """A multipart upload of the file in work."""

    key: str
    upload_id: str
    parts: list[Future[object]] = field(default_factory=list)
    """Of each part what completing needs of it."""


class BucketSink:
    """Implements ``TargetSink``: small files are put when their bytes are known to be right, large ones completed then."""

    def __init__(self, target: RetrievalBucket, pid: str, progress: Progress) -> None:
        self.files = self.skipped = 0
        self._target, self._pid = target, pid
        self._bucket = target.bucket
        self._progress = progress
        self._window = Window(target.bucket, target.dataset(pid))
        self._together = Together("put", threads=THREADS, most_bytes=AHEAD_BYTES, most=4 * THREADS, progress=progress)
        self._small: list[tuple[str, bytes]] = []
        self._free: list[bytearray] = []
        self._open: dict[str, _Upload] = {}
        self._file: ManifestFile | None = None
        self._key = ""
        self._chunks: list[bytes] = []
        self._buffer = bytearray()
        self._filled = 0
        self._written = 0
        self._part = PUT_PART_BYTES
        self._upload: _Upload | None = None

    def __enter__(self) -> BucketSink:
        return self

    def begin(self, file: ManifestFile) -> bool:
        """As ``FileSink``."""
        check_path(file.path)
        key = self._target.key(self._pid, file.path)
        if self._target.refuses(self._pid, file.path):
            self.skipped += 1  # told by name when the rest is there
            return False
        if self._window.size(key) == file.size and self._bucket.holds(key, file.size, file.sha256, self._progress):
            self.skipped += 1
            return False
        self._file, self._key = file, key
        self._part = part_bytes(file.size)
        self._written = self._filled = 0
        self._chunks = []
        self._upload = None
        return True

    def data(self, chunk: memoryview) -> None:
        """As ``FileSink``."""
        assert self._file is not None  # noqa: S101
        self._written += len(chunk)
        check_length(self._file, self._written)
        if self._file.size <= self._part:
            self._chunks.append(bytes(chunk))
            return
        while len(chunk):
            if not self._filled:
                self._buffer = self._new_buffer()
            piece = chunk[: self._part - self._filled]
            memoryview(self._buffer)[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            chunk = chunk[len(piece) :]
            if self._filled == self._part:
                self._send()

    def commit(self) -> None:
        """As ``FileSink``. The file is there when the context is left, or earlier."""
        assert self._file is not None  # noqa: S101
        check_length(self._file, self._written, done=True)
        if self._upload is not None:
            if self._filled:
                self._send()
            # Ours to abort until it is handed over.
            self._together.submit(0, self._complete, self._upload, self._file.size, self._file.sha256)
            self._upload = None
        else:
            self._put(self._key, b"".join(self._chunks))
        self._forget()
        self.files += 1

    def abort(self) -> None:
        """As ``FileSink``."""
        self._forget()
        upload, self._upload = self._upload, None
        if upload is not None:
            self._together.give_up(upload.parts)
            self._abort(upload)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._together.drain()
        finally:
            self._together.close()
            for upload in [*self._open.values()]:
                self._abort(upload)

    def _forget(self) -> None:
        self._file, self._chunks, self._buffer, self._filled = None, [], bytearray(), 0

    def _put(self, key: str, data: bytes) -> None:
        if len(data) > SMALL_BYTES:
            self._together.submit(len(data), self._bucket.put, key, data)
            return
        self._small.append((key, data))
        if len(self._small) == SMALL_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        small, self._small = self._small, []
        if small:
            self._together.submit(sum(len(data) for _, data in small), self._put_all, small)

    def _put_all(self, small: list[tuple[str, bytes]]) -> None:
        for key, data in small:
            self._bucket.put(key, data)

    def _new_buffer(self) -> bytearray:
        """Of a part. One that was sent is filled again: fresh memory costs as much as what is done with it."""
        while self._free:
            if len(buffer := self._free.pop()) == self._part:
                return buffer
        return bytearray(self._part)

    def _send(self) -> None:
        assert self._file is not None  # noqa: S101
        if self._upload is None:
            with self._bucket.faults(self._key):
                made = self._target.parts.create_multipart_upload(
                    Bucket=self._bucket.name,
                    Key=self._key,
                    Metadata={DIGEST: self._file.sha256},
                    ChecksumAlgorithm="CRC32",
                )
            self._upload = self._open[made["UploadId"]] = _Upload(self._key, made["UploadId"])
        upload, buffer = self._upload, self._buffer
        data = buffer if self._filled == len(buffer) else buffer[: self._filled]
        self._buffer, self._filled = bytearray(), 0
        number = len(upload.parts) + 1
        upload.parts.append(self._together.submit(len(data), self._send_part, upload, number, data))

    def _send_part(self, upload: _Upload, number: int, data: bytearray) -> dict[str, object]:
        """The store compares what it got with the part's CRC-32, which costs nothing on either side (docs/decisions.md)."""
        checksum = base64.b64encode(zlib_ng.crc32(data).to_bytes(4, "big")).decode()
        with self._bucket.faults(upload.key):
            # The bytes as they lie: what is like a file is copied, or asked for by 16 KiB.
            answer = self._target.parts.upload_part(
                Bucket=self._bucket.name,
                Key=upload.key,
                UploadId=upload.upload_id,
                PartNumber=number,
                Body=data,  # type: ignore[arg-type]  # botocore takes it; its stubs do not
                ChecksumCRC32=checksum,
            )
        self._free.append(data)
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": checksum}

    def _complete(self, upload: _Upload, size: int, sha256: str) -> None:
        """Runs in a thread: its parts were handed over before it, so they are in work or done."""
        listed: Any = [part.result() for part in upload.parts]
        with self._bucket.faults(upload.key):
            try:
                self._bucket.completing(size).complete_multipart_upload(
                    Bucket=self._bucket.name,
                    Key=upload.key,
                    UploadId=upload.upload_id,
                    MultipartUpload={"Parts": listed},
                )
            except ClientError as error:
                # Done already, by a request whose answer was lost: what is there decides.
                if error.response["Error"]["Code"] != "NoSuchUpload":
                    raise
        if (found := self._bucket.proof(upload.key)) != (size, sha256):
            raise TargetFault(
                f"object {upload.key[:200]!a} in {self._target.where} is not what was put there",
                expected=f"{size} B with SHA-256 {sha256}",
                found=f"{found[0]} B with SHA-256 {found[1]}" if found else "nothing",
                next_step="retried; see who else writes to this bucket",
            )
        self._open.pop(upload.upload_id, None)

    def _abort(self, upload: _Upload) -> None:
        """The error that led here is the one to tell; what this leaves is taken by ``tidy`` and ``expire``."""
        self._open.pop(upload.upload_id, None)
        try:
            self._bucket.abort_upload(upload.key, upload.upload_id)
        except SystemFault:
            pass
