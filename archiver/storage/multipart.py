"""Upload in parts of which the store verifies and keeps the SHA-256; whole or not at all, and never over something else.

What a store keeps of such an object is the SHA-256 over those of its parts, so it can be compared only by who knows their length
(S3 user guide, "Checking object integrity", composite checksums).
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import ClientError

from archiver.errors import SystemFault
from archiver.progress import Progress
from archiver.storage.objects import Bucket, Buffer
from archiver.storage.targets import Together

PUT_THREADS = 2
COPY_THREADS = 8


class There(Exception):
    """The condition of a request does not hold: something is there, or not what was read before."""


def there(error: ClientError) -> Exception:
    """What the error of a conditional request becomes: ``There``, or itself."""
    code = error.response["Error"]["Code"]
    return There(code) if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409") else error


class Parts:
    """Cuts a stream into parts, and takes the SHA-256 of each, of all its bytes, and S3's over those of the parts."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._whole = hashlib.sha256()
        self._part = hashlib.sha256()
        self._digests: list[bytes] = []
        self._held = self.size = 0

    def add(self, chunk: Buffer) -> Iterator[memoryview]:
        """Take the next bytes; gives them back in pieces none of which goes over a part's end (``full``)."""
        data = memoryview(chunk).cast("B")
        self._whole.update(data)
        while len(data):
            piece, data = data[: self.length - self._held], data[self.length - self._held :]
            self._part.update(piece)
            self._held += len(piece)
            self.size += len(piece)
            yield piece
            if self.full:
                self.end_part()

    @property
    def full(self) -> bool:
        """Whether a part has just been filled."""
        return self._held == self.length

    def end_part(self) -> None:
        """The part is at its end."""
        self._digests.append(self._part.digest())
        self._part = hashlib.sha256()
        self._held = 0

    def over(self, chunks: Iterable[Buffer]) -> Iterator[memoryview]:
        """The same chunks, looked at as they pass."""
        for chunk in chunks:
            for _ in self.add(chunk):
                pass
            yield memoryview(chunk)

    @property
    def sha256(self) -> str:
        """Of all bytes, hexadecimal."""
        return self._whole.hexdigest()

    @property
    def checksum(self) -> str:
        """What the store must say of an object uploaded in these parts: SHA-256 of their SHA-256s, base64."""
        digests = [*self._digests, *([self._part.digest()] if self._held or not self._digests else [])]
        return base64_of(hashlib.sha256(b"".join(digests)).digest())


class Upload:
    """One upload in parts, under way."""

    def __init__(self, bucket: Bucket, key: str, upload_id: str) -> None:
        self.id = upload_id
        self._bucket = bucket
        self._key = key
        self._parts: list[Any] = []

    def send(self, chunks: Iterable[Buffer], parts: Parts, size: int, progress: Progress) -> None:
        """Send the parts; no more of ``chunks`` is taken than tells that it is longer than ``size``."""
        with _threads(PUT_THREADS, parts.length, progress) as threads:
            body = io.BytesIO()

            def send() -> None:
                data = body.getvalue()
                threads.submit(len(data), self._put, data, self._new_part())
                body.seek(0)
                body.truncate()

            for chunk in chunks:
                for piece in parts.add(chunk):
                    body.write(piece)
                    if body.tell() == parts.length:
                        send()
                progress.advance(len(chunk))
                if parts.size > size:
                    break
            if body.tell() or not self._parts:
                send()
            threads.drain()

    def copy(self, source: str, version: str, size: int, length: int, progress: Progress) -> None:
        """Let the store copy an object of the same bucket, in this version, in parts of so many bytes."""
        with _threads(COPY_THREADS, 0, progress) as threads:
            if not size:
                self._put(b"", self._new_part())
            for start in range(0, size, length):
                span = (start, min(start + length, size) - 1)
                threads.submit(0, self._copy, source, version, span, self._new_part())
            threads.drain()

    def _new_part(self) -> dict[str, Any]:
        self._parts.append({"PartNumber": len(self._parts) + 1})
        part: dict[str, Any] = self._parts[-1]
        return part

    def _put(self, data: bytes, part: dict[str, Any]) -> None:
        part["ChecksumSHA256"] = base64_of(hashlib.sha256(data).digest())
        with self._bucket.faults(self._key):
            answer = self._bucket.boto.upload_part(
                Bucket=self._bucket.name,
                Key=self._key,
                UploadId=self.id,
                PartNumber=part["PartNumber"],
                Body=data,
                ChecksumSHA256=part["ChecksumSHA256"],
            )
        part["ETag"] = answer["ETag"]

    def _copy(self, source: str, version: str, span: tuple[int, int], part: dict[str, Any]) -> None:
        with self._bucket.faults(self._key):
            answer = self._bucket.boto.upload_part_copy(
                Bucket=self._bucket.name,
                Key=self._key,
                UploadId=self.id,
                PartNumber=part["PartNumber"],
                CopySource={"Bucket": self._bucket.name, "Key": source},
                CopySourceRange=f"bytes={span[0]}-{span[1]}",
                CopySourceIfMatch=version,
            )["CopyPartResult"]
        part["ETag"] = answer["ETag"]
        if digest := answer.get("ChecksumSHA256"):
            part["ChecksumSHA256"] = digest

    def complete(self, size: int, progress: Progress, *, over: str = "") -> None:
        """Make the object of so many bytes visible, where nothing is, or over that version; ``progress`` is told meanwhile.

        Raises ``There`` if it is not so.
        """
        with _threads(1, 0, progress) as threads:
            threads.submit(0, self._complete, size, over)
            threads.drain()

    def _complete(self, size: int, over: str) -> None:
        condition: Any = {"IfMatch": over} if over else {"IfNoneMatch": "*"}
        with self._bucket.faults(self._key):
            try:
                self._bucket.completing(size).complete_multipart_upload(
                    Bucket=self._bucket.name,
                    Key=self._key,
                    UploadId=self.id,
                    MultipartUpload={"Parts": self._parts},
                    **condition,
                )
            except ClientError as error:
                raise there(error) from None


@contextmanager
def uploading(
    bucket: Bucket, key: str, storage_class: str, metadata: dict[str, str], *, checksum: bool = True
) -> Iterator[Upload]:
    """An upload, aborted when the context is left with an error. Without ``checksum`` the store keeps what it likes."""
    kept: Any = {"ChecksumAlgorithm": "SHA256"} if checksum else {}
    with bucket.faults(key):
        answer = bucket.boto.create_multipart_upload(
            Bucket=bucket.name,
            Key=key,
            **kept,
            StorageClass=storage_class,  # type: ignore[arg-type]  # stores have classes of their own
            Metadata=metadata,
        )
    upload = Upload(bucket, key, answer["UploadId"])
    try:
        yield upload
    except BaseException:
        # What failed is what is told; where even this fails, the next try or a sweep takes the rest.
        try:
            bucket.abort_upload(key, upload.id)
        except SystemFault:
            pass
        raise


@contextmanager
def _threads(number: int, length: int, progress: Progress) -> Iterator[Together]:
    """Parts on their way, at most ``number`` and one that waits."""
    threads = Together(
        "parts",
        threads=number,
        most_bytes=(number + 1) * max(length, 1),
        most=4 * number,
        progress=progress,
        waiting="waiting for the LTS",
    )
    try:
        yield threads
    finally:
        threads.close()


def base64_of(digest: bytes) -> str:
    """As S3 writes a checksum."""
    return base64.b64encode(digest).decode()
