"""The LTS in a bucket of any storage class: ``Lts`` of objects (docs/architecture.md, "A bucket as LTS").

An object appears under its final name whole or not at all, and never over another (``If-None-Match: *``). Every part of a
datablock is sent with its SHA-256, which the store verifies and keeps; what it keeps is the SHA-256 over those of the parts,
and is compared again whenever the datablock is. Where the class is one that must be restored before it is read (Glacier), a
datablock is read back first and changes its class then; manifests, the bag's files and our own stay readable at once.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import groupby
from typing import Any

from botocore.exceptions import ClientError

from archiver import model as m
from archiver.datablock.bag import TAG_MANIFEST
from archiver.datablock.events import EVENTS, added
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.verify import VerifyResult, verify
from archiver.errors import IntegrityMismatch, LtsFault, LtsMarkerMissing, NotRecalled
from archiver.progress import SILENT, Progress
from archiver.settings import LtsBucketSettings
from archiver.storage.lts import (
    BY_HAND,
    DATABLOCK,
    LONG_AGO,
    MANIFEST,
    MARKER,
    OWN,
    QUARANTINE,
    WHY,
    Bags,
    Chunks,
    Leftover,
    Space,
    check_copied,
    new_marker,
    of_staging,
    other_bytes,
    other_content,
    pairs,
    read_marker,
)
from archiver.storage.multipart import Parts, There, base64_of, there, uploading
from archiver.storage.objects import DIGEST, Bucket, Buffer, ObjectInfo, OpenUpload, named, part_bytes

RESTORED_FIRST = ("GLACIER", "DEEP_ARCHIVE")
"""Classes whose objects must be restored before they can be read (S3 user guide, "Restoring an archived object")."""
READABLE = "STANDARD"
MARKER_SECONDS = 60.0
"""For so long a marker that was seen is believed: a bucket does not lose its mount."""
PART_BYTES = "part-bytes"
"""Metadata of a datablock: the length of its parts, without which the store's checksum says nothing."""
RENEW = timedelta(days=1)
"""A restored copy that ends sooner is asked for again."""
SPREAD_BYTES = 2**20
"""Parts are longer by up to so much, by chance: a store tells two uploads of the same bytes apart by the ends of their parts,
and so a condition on what is to be deleted."""
_KEPT = re.compile(r"(.+)\.\d{8}T\d{6}\.\d{6}\.[0-9a-f]{8}")
_FIELD = re.compile(r"([A-Za-z-]+)\s*=\s*(?:\"([^\"]*)\"|([^,;\"]*(?:,\s*\d[^,;\"]*)?))")
"""Of ``x-amz-restore``; a date without quotes has a comma of its own."""


def restore_fields(header: str) -> dict[str, str]:
    """Names, in small letters, and values of S3's ``x-amz-restore``, however a store writes them."""
    return {name.lower(): (quoted or plain).strip() for name, quoted, plain in _FIELD.findall(header)}


@dataclass(frozen=True)
class Stored:
    """A datablock as the store tells of it. ``checksum``: the SHA-256 over its parts', base64, or empty."""

    size: int
    version: str
    sha256: str
    part_bytes: int
    checksum: str
    storage_class: str
    archived: bool
    restore: str
    """S3's ``x-amz-restore``: whether one is under way, or until when the restored copy lasts."""
    modified: float

    @property
    def restoring(self) -> bool:
        """Whether a restore is under way."""
        return restore_fields(self.restore).get("ongoing-request", "").lower() == "true"

    @property
    def ends(self) -> datetime | None:
        """When the restored copy ends."""
        try:
            found = parsedate_to_datetime(restore_fields(self.restore).get("expiry-date", ""))
        except (ValueError, TypeError):
            return None
        return found if found.tzinfo else found.replace(tzinfo=UTC)


class BucketLts(Bags):
    """``Lts`` in a bucket. ``bucket`` raises ``LtsFault``."""

    def __init__(self, bucket: Bucket, settings: LtsBucketSettings, identity: str) -> None:
        self._bucket = bucket
        self._settings = settings
        self._identity = identity
        self._seen = -MARKER_SECONDS

    def where(self, dataset: str = "") -> str:
        """As ``Lts``."""
        return f"s3://{self._bucket.name}/{self._settings.prefix}{dataset}"

    def close(self) -> None:
        """As ``Lts``: nothing runs beside."""

    # --- identity -----------------------------------------------------------------------------------------------------

    def setup(self, *, dry_run: bool = False) -> bool:
        """As ``Lts``: creates the bucket, sees that the store keeps what we rely on, and writes the marker.

        Raises ``LtsFault`` for a store that overwrites, keeps no SHA-256, or has no such class.
        """
        new = self._bucket.ensure(dry_run=dry_run)
        if not (new and dry_run):
            found = self._read_marker()
            if found == self._identity:
                return False
            if found is not None:
                raise self._no_marker(found)
        if not dry_run:
            self.probe()
            self._put_new(self._key(MARKER), new_marker(self._identity))
        return True

    def probe(self) -> list[str]:
        """Write, refuse to overwrite, and remove an object; raises ``LtsFault`` if the store does not as it must.

        Returns what it lacks that is of use, and can be done without.
        """
        dataset, name, data = f"{OWN}/probe", secrets.token_hex(8), b"probe"
        key = self._key(dataset, name)
        lacks = []
        try:
            digest = hashlib.sha256(data).hexdigest()
            sent = self._upload(
                key, [data], len(data), SILENT, sha256=digest, storage_class=self._settings.storage_class
            )
            stored = self._needed(dataset, name)
            self._same_checksum(stored, sent, f"{dataset}/{name}")
            if (stored.sha256, stored.part_bytes) != (digest, sent.length):
                raise self._unfit("does not keep an object's metadata as it was given")
            if not stored.version or not stored.modified:
                raise self._unfit("tells no ETag, or no time, of an object")
            if (found := stored.storage_class) != self._settings.storage_class:
                raise self._unfit(f"has no class {self._settings.storage_class}: an object of it is {found}")
            try:
                self._upload(key, [b"other"], 5, SILENT)
            except There:
                pass
            else:
                raise self._unfit("does not refuse to overwrite (If-None-Match: *)")
            self._bucket.delete_version(key, '"of another object"')
            if self._head(key) is None:
                lacks.append("deletes on condition (If-Match)")
        finally:
            self._bucket.delete([key])
        return lacks

    def _unfit(self, what: str) -> LtsFault:
        return LtsFault(
            f"the store of {self.where()} {what}",
            expected="an S3 store that keeps SHA-256 checksums and metadata, never overwrites when told so, and has the class",
            found=f"one that {what}",
            next_step="use another store, or correct lts.bucket.storage_class",
            retryable=False,
        )

    def check_marker(self) -> None:
        """As ``Lts``."""
        now = time.monotonic()
        if now - self._seen < MARKER_SECONDS:
            return
        if (found := self._read_marker()) != self._identity:
            raise self._no_marker(found)
        self._seen = now

    def _no_marker(self, found: str | None) -> LtsMarkerMissing:
        return LtsMarkerMissing(
            f"{self.where()} is not the LTS {self._identity!r}",
            expected=f"marker {MARKER} of identity {self._identity!r}",
            found="no marker" if found is None else f"identity {found!r}",
            next_step="correct lts.bucket; a new LTS is prepared by  archiver setup",
        )

    def _read_marker(self) -> str | None:
        data = self._bucket.get(self._key(MARKER))
        return None if data is None else read_marker(data)

    # --- space: a bucket has no end that could be asked for ----------------------------------------------------------------

    def space(self) -> Space | None:
        """As ``Lts``."""
        self.check_marker()
        return None

    def wait_for_space(self, key: str, need_bytes: int, progress: Progress) -> None:
        """As ``Lts``: a store that is full says so when it is written to, which is retried."""
        self.check_marker()

    def release(self, key: str) -> None:
        """As ``Lts``."""

    def release_all(self, dataset: str) -> None:
        """As ``Lts``."""

    # --- datablocks ---------------------------------------------------------------------------------------------------

    def copy_in(
        self,
        dataset: str,
        name: str,
        chunks: Iterable[Buffer],
        *,
        size: int,
        sha256: str,
        attempt: str,
        promise: str,
        progress: Progress,
    ) -> None:
        """As ``Lts``: uploaded in parts, each with its SHA-256, and completed only where nothing is."""
        self.check_marker()
        key = self._key(dataset, name)
        if (found := self._head(key)) is not None:
            self._same(dataset, name, found, chunks, size, sha256, progress)
            return
        # What killed tries of this work left open: nobody sees it, and it is paid for.
        self._bucket.abort_uploads(key)
        called = f"{dataset}/{name}"
        try:
            sent = self._upload(key, of_staging(chunks), size, progress, sha256=sha256, called=called)
        except There:
            raise LtsFault(
                f"{name} of {dataset} appeared while it was written",
                expected="nothing under its name",
                found="an object",
                next_step="retried: it is then compared with what was packed",
            ) from None
        self._same_checksum(self._needed(dataset, name), sent, called)

    def _upload_class(self) -> str:
        """The class in which a datablock is written: a readable one, if it is to be read back."""
        wanted = self._settings.storage_class
        return READABLE if self._settings.read_back and wanted in RESTORED_FIRST else wanted

    def _upload(
        self,
        key: str,
        chunks: Iterable[Buffer],
        size: int,
        progress: Progress,
        *,
        sha256: str = "",
        called: str = "",
        storage_class: str = "",
    ) -> Parts:
        """Upload under ``key``, if nothing is there (raises ``There``); whole or not at all, of these bytes or not."""
        parts = Parts(max(self._settings.part_bytes, part_bytes(size)) + secrets.randbelow(SPREAD_BYTES))
        metadata = {PART_BYTES: str(parts.length), **({DIGEST: sha256} if sha256 else {})}
        with uploading(self._bucket, key, storage_class or self._upload_class(), metadata) as upload:
            upload.send(chunks, parts, size, progress)
            if sha256:
                check_copied(called, (size, sha256), (parts.size, parts.sha256))
            upload.complete(parts.size, progress)
        return parts

    def _same(
        self,
        dataset: str,
        name: str,
        there: Stored,
        chunks: Iterable[Buffer],
        size: int,
        sha256: str,
        progress: Progress,
    ) -> None:
        """An earlier attempt completed it: the same bytes, by the store's checksum, or somebody else's."""
        called = f"{name} of {dataset}"
        if (there.size, there.sha256) != (size, sha256) or not there.part_bytes:
            raise other_bytes(
                called, f"{size} B, SHA-256 {sha256}", f"{there.size} B, SHA-256 {there.sha256 or 'unknown'}"
            )
        progress.note("was copied by an earlier attempt: comparing it with what is staged")
        parts = Parts(there.part_bytes)
        for chunk in parts.over(of_staging(chunks)):
            progress.advance(len(chunk))
        check_copied(called, (size, sha256), (parts.size, parts.sha256))
        if there.checksum and there.checksum != parts.checksum:
            raise other_bytes(called, f"checksum {parts.checksum}", f"checksum {there.checksum}")
        self._same_checksum(there, parts, called)

    def _same_checksum(self, stored: Stored, parts: Parts, called: str) -> None:
        """Raises ``IntegrityMismatch`` unless the store keeps the checksum of these parts."""
        if not stored.checksum:
            raise self._unfit("keeps no SHA-256 checksum of an object uploaded in parts")
        if (stored.size, stored.checksum) != (parts.size, parts.checksum):
            raise IntegrityMismatch(
                f"the store keeps another checksum of {called} than that of what was sent",
                expected=f"{parts.size} B, SHA-256 over its parts {parts.checksum}",
                found=f"{stored.size} B, {stored.checksum}",
                next_step="it is taken into quarantine and made anew; see the health of the store",
                retryable=False,
            )

    def prove(
        self, dataset: str, name: str, manifest: bytes, *, staged: Chunks | None, progress: Progress
    ) -> VerifyResult:
        """As ``Lts``: read back and unpacked, or what is staged unpacked, and the store's checksum compared with the same
        bytes' own; then it goes into its class. What an earlier run proved stands in a small object of ours.
        """
        self.check_marker()
        stored = self._needed(dataset, name)
        if not stored.part_bytes:
            raise other_bytes(
                f"{name} of {dataset}", "an object of ours, in parts of a length that is known", "another"
            )
        called = f"{dataset}/{name}"
        chunks: Chunks
        if self._settings.read_back and self._can_read(self._key(dataset, name), stored):
            chunks, level, how = self._chunks(dataset, name), "host", "GET"
        elif (proved := self._proved(dataset, name, manifest, stored)) is not None:
            return proved
        elif staged is not None:
            chunks, level, how = staged, "cache", "the store's SHA-256, and the staged bytes"
        else:
            raise IntegrityMismatch(
                f"nothing proves that {called} is what its manifest says, and it cannot be read at once",
                expected=f"a proof of the store's checksum {stored.checksum or '-'}",
                found="none, or one of another",
                next_step="it is taken into quarantine and made anew",
                retryable=False,
            )
        last = Parts(stored.part_bytes)

        def read() -> Generator[memoryview]:
            nonlocal last
            last = Parts(stored.part_bytes)
            yield from last.over(chunks())

        result = verify(read, manifest, progress=progress.advance)
        self._same_checksum(stored, last, called)
        # Before it can no longer be read: whoever goes on after a crash finds what was proved.
        note = {"checksum": last.checksum, "sha256": result.sha256, "level": level, "how_read": how}
        self._bucket.put(self._proof(dataset, name), json.dumps(note).encode())
        if stored.storage_class != self._settings.storage_class and not stored.archived:
            progress.note(f"changing its class to {self._settings.storage_class}")
            self._change_class(dataset, name, stored, last, progress)
        return replace(result, level=level, how_read=how)

    def _proved(self, dataset: str, name: str, manifest: bytes, stored: Stored) -> VerifyResult | None:
        """What was proved before, if the store still keeps the checksum that was proved then."""
        footer = ManifestReader([manifest]).read_footer()
        data = self._bucket.get(self._proof(dataset, name))
        note = json.loads(data) if data is not None else {}
        if (note.get("checksum"), note.get("sha256"), footer.packed_bytes) != (
            stored.checksum,
            footer.sha256,
            stored.size,
        ):
            return None
        return VerifyResult(
            note["level"], note["how_read"], footer.size_bytes, footer.packed_bytes, footer.files, footer.sha256
        )

    def check(self, dataset: str, name: str, manifest: bytes, progress: Progress) -> VerifyResult:
        """As ``Lts``, fetched from the store anew."""
        self.check_marker()
        result = verify(self._chunks(dataset, name), manifest, progress=progress.advance)
        return replace(result, level="host", how_read="GET")

    def read(self, dataset: str, name: str) -> Iterator[memoryview]:
        """As ``Lts``, once."""
        return self._chunks(dataset, name)()

    def part(self, dataset: str, name: str, offset: int, size: int) -> Iterator[memoryview]:
        """As ``Lts``."""
        return self._chunks(dataset, name, (offset, offset + size))()

    def _chunks(
        self, dataset: str, name: str, span: tuple[int, int] | None = None
    ) -> Callable[[], Generator[memoryview]]:
        def read() -> Generator[memoryview]:
            stored = self._needed(dataset, name)
            if not self._can_read(self._key(dataset, name), stored):
                raise NotRecalled(
                    f"{dataset}/{name} is in class {stored.storage_class} and is not restored",
                    expected="a restored copy",
                    found="none, or one that has ended",
                    next_step="it is asked for again",
                    retryable=False,
                )
            within = None if span is None else (span[0], min(span[1], stored.size))
            if within is not None and within[0] >= within[1]:
                return
            key = self._key(dataset, name)
            for chunk in self._bucket.stream(key, size=stored.size, version=stored.version, span=within):
                yield memoryview(chunk)

        return read

    # --- classes --------------------------------------------------------------------------------------------------------

    def readable(self, dataset: str, name: str) -> bool:
        """As ``Lts``."""
        self.check_marker()
        return self._can_read(self._key(dataset, name), self._needed(dataset, name))

    def _can_read(self, key: str, stored: Stored) -> bool:
        """Whether its bytes can be read now: of an archive class a byte is read, as what headers say is not always so."""
        if not stored.archived or not stored.size:
            return True
        with self._bucket.faults(key):
            try:
                answer = self._bucket.boto.get_object(
                    Bucket=self._bucket.name, Key=key, Range="bytes=0-0", IfMatch=stored.version
                )
                return len(answer["Body"].read()) == 1
            except ClientError as error:
                if error.response["Error"]["Code"] in ("InvalidObjectState", "403", "AccessDenied"):
                    return False
                raise

    def recall(self, dataset: str, name: str) -> bool:
        """As ``Lts``: asks for a restore, unless one is under way or its copy lasts."""
        self.check_marker()
        stored = self._needed(dataset, name)
        if not stored.archived:
            return True
        key = self._key(dataset, name)
        readable = self._can_read(key, stored)
        lasts = readable and (stored.ends is None or stored.ends > datetime.now(UTC) + RENEW)
        if not lasts and not stored.restoring:
            self._restore(key)
            stored = self._needed(dataset, name)
            readable = self._can_read(key, stored)
        return readable

    def _restore(self, key: str) -> None:
        wanted: Any = {
            "Days": self._settings.restore_days,
            "GlacierJobParameters": {"Tier": self._settings.restore_tier},
        }
        with self._bucket.faults(key):
            try:
                self._bucket.boto.restore_object(Bucket=self._bucket.name, Key=key, RestoreRequest=wanted)
            except ClientError as error:
                if error.response["Error"]["Code"] != "RestoreAlreadyInProgress":
                    raise

    def _change_class(self, dataset: str, name: str, stored: Stored, parts: Parts, progress: Progress) -> None:
        """Copy onto itself, by the store, in the same parts: then it must keep the same checksum. Raises as ``prove``."""
        key = self._key(dataset, name)
        self._copy(key, stored, key, self._settings.storage_class, progress)
        self._same_checksum(self._needed(dataset, name), parts, f"{dataset}/{name}")

    def _copy(self, source: str, stored: Stored, target: str, storage_class: str, progress: Progress) -> None:
        """Within the store, whatever the size. ``target`` is replaced only if it is the source itself, in this version."""
        length = stored.part_bytes or self._settings.part_bytes
        metadata = {DIGEST: stored.sha256, PART_BYTES: str(length)}
        onto_itself = source == target
        # versitygw 1.8 gives wrong checksums of copied parts, and refuses them then; what is in quarantine needs none.
        with uploading(self._bucket, target, storage_class, metadata, checksum=onto_itself) as upload:
            upload.copy(source, stored.version, stored.size, length, progress)
            try:
                upload.complete(stored.size, progress, over=stored.version if onto_itself else "")
            except There:
                raise LtsFault(
                    f"{source} was changed while it was copied",
                    expected=f"version {stored.version}",
                    found="another",
                    next_step="retried, from what is there then; see who else writes to the LTS",
                ) from None

    # --- what is there ------------------------------------------------------------------------------------------------

    def size_of(self, dataset: str, name: str) -> int | None:
        """As ``Lts``."""
        self.check_marker()
        found = self._bucket.head(self._key(dataset, name))
        return None if found is None else found.size

    def names(self, dataset: str) -> list[str]:
        """As ``Bags``."""
        folder = self._key(dataset, "data/")
        return sorted(entry.key.removeprefix(folder) for entry in self._bucket.list(folder))

    def _head(self, key: str) -> Stored | None:
        with self._bucket.faults(key):
            try:
                found = self._bucket.boto.head_object(Bucket=self._bucket.name, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                    self._bucket.boto.head_bucket(Bucket=self._bucket.name)
                    return None
                raise
        metadata = named(found["Metadata"])
        storage_class: str = found.get("StorageClass") or READABLE
        length = metadata.get(PART_BYTES, "")
        return Stored(
            size=found["ContentLength"],
            version=found.get("ETag", ""),
            sha256=metadata.get(DIGEST, ""),
            part_bytes=int(length) if length.isdecimal() else 0,
            # S3 adds the number of parts to the checksum over them.
            checksum=found.get("ChecksumSHA256", "").partition("-")[0],
            storage_class=storage_class,
            archived=storage_class in RESTORED_FIRST or bool(found.get("ArchiveStatus")),
            restore=found.get("Restore", ""),
            modified=found["LastModified"].timestamp() if "LastModified" in found else 0.0,
        )

    def _needed(self, dataset: str, name: str) -> Stored:
        stored = self._head(self._key(dataset, name))
        if stored is None:
            raise LtsFault(
                f"{dataset}/{name} is not in {self.where()}",
                expected="the datablock",
                found="nothing",
                next_step="see who removes objects from the LTS",
                retryable=False,
            )
        return stored

    def _key(self, *names: str) -> str:
        return self._settings.prefix + "/".join(names)

    def _proof(self, dataset: str, name: str) -> str:
        return self._key(OWN, "proofs", dataset, name) + ".json"

    # --- small files --------------------------------------------------------------------------------------------------

    def get_small(self, dataset: str, name: str) -> bytes | None:
        """As ``Lts``; compared with the SHA-256 that was stored with it."""
        self.check_marker()
        return self._bucket.get(self._key(dataset, name))

    def put_small(self, dataset: str, name: str, data: bytes, attempt: str) -> None:
        """As ``Lts``."""
        self.check_marker()
        self._put_new(self._key(dataset, name), data)

    def _put_new(self, key: str, data: bytes) -> None:
        """No-clobber, and read back; the same bytes there already are a success. Raises ``IntegrityMismatch`` for others."""
        try:
            self._put(key, data, IfNoneMatch="*")
        except There:
            pass
        if self._bucket.get(key) != data:
            raise other_content(key)

    def _put(self, key: str, data: bytes, **condition: str) -> str:
        """Put a small object that the store verifies; returns its version. Raises ``There`` if the condition does not hold."""
        digest = hashlib.sha256(data)
        with self._bucket.faults(key):
            try:
                answer = self._bucket.boto.put_object(
                    Bucket=self._bucket.name,
                    Key=key,
                    Body=data,
                    ChecksumSHA256=base64_of(digest.digest()),
                    Metadata={DIGEST: digest.hexdigest()},
                    **condition,  # type: ignore[arg-type]
                )
            except ClientError as error:
                raise there(error) from None
        return answer.get("ETag", "")

    def publish_bag(
        self, dataset: str, files: dict[str, bytes], plan_id: str, attempt: str, progress: Progress
    ) -> None:
        """As ``Lts``. A complete bag of this plan stays as it is; the files of an incomplete one are replaced."""
        if self.bag_is_there(dataset, files, plan_id, attempt, progress):
            return
        *tags, last = files
        for name in tags:
            progress.note(f"writing {name}")
            self._replace_tag(dataset, name, files[name])
        progress.note(f"writing {last}")
        try:
            self._put_new(self._key(dataset, last), files[last])
        except IntegrityMismatch as mismatch:
            # Published by a late attempt over our files: the next try sees that, and takes it out of the way.
            mismatch.retryable = True
            raise
        self.bag_stands(dataset, files, attempt, progress)

    def _replace_tag(self, dataset: str, name: str, data: bytes) -> None:
        """Put a bag's file; what was read there, and nothing else, is replaced, and nothing of a complete bag."""
        key = self._key(dataset, name)
        before, version = self._replace(key, lambda before: None if before == data else data)
        if self._bucket.get(key) != data:
            raise other_content(f"{dataset}/{name}")
        if version and self.size_of(dataset, TAG_MANIFEST) is not None:
            # We were late: another has completed the bag over the same old file.
            if before is not None:
                self._put(key, before, IfMatch=version)
            raise self._changed(key, version)

    def _replace(self, key: str, new: Callable[[bytes | None], bytes | None]) -> tuple[bytes | None, str]:
        """Give a small object the content that ``new`` makes of the old one, or leave it (None), if it is still what was read.

        Returns the old content, and the new version if there is one. Raises ``LtsFault``, to be retried.
        """
        old = found.version if (found := self._bucket.head(key)) is not None else ""
        before = self._bucket.get(key)
        after = new(before)
        if after is None:
            return before, ""
        condition = {"IfMatch": old} if old else {"IfNoneMatch": "*"}
        try:
            return before, self._put(key, after, **condition)
        except There:
            raise self._changed(key, old) from None

    def _changed(self, key: str, version: str) -> LtsFault:
        return LtsFault(
            f"{key} was changed while it was written",
            expected=f"version {version or 'none'}",
            found="another",
            next_step="retried, from what is there now",
        )

    def record_events(self, dataset: str, events: list[m.Event], attempt: str, progress: Progress) -> None:
        """As ``Lts``. The one object beside a complete bag that is ever replaced; no manifest of the bag names it."""
        self.check_marker()

        def new(before: bytes | None) -> bytes | None:
            after = added(before or b"", events)
            progress.note(f"writing {EVENTS}")
            return None if after == (before or b"") else after

        self._replace(self._key(dataset, EVENTS), new)

    # --- clearing -------------------------------------------------------------------------------------------------------

    def remove_unverified(self, dataset: str, attempt: str = BY_HAND, progress: Progress = SILENT) -> int:
        """As ``Lts``: datablocks without a manifest, and uploads that were never completed."""
        self.check_marker()
        self.put_back(dataset, attempt, progress)
        if self.size_of(dataset, TAG_MANIFEST) is not None:
            return 0
        folder = self._key(dataset, "data/")
        found = {entry.key.removeprefix(folder): entry for entry in self._bucket.list(folder)}
        kept = {name for pair in pairs(found) for name in pair}
        removed = 0
        for name, entry in found.items():
            if DATABLOCK.fullmatch(name) and name not in kept:
                progress.note(f"removing {name} of {dataset}")
                removed += self._remove(dataset, f"data/{name}", entry, attempt, progress)
        progress.note(f"aborting uploads of {dataset}")
        return removed + self._bucket.abort_uploads(self._key(dataset) + "/")

    def _remove(self, dataset: str, name: str, seen: ObjectInfo, attempt: str, progress: Progress) -> bool:
        """Remove an object that is nobody's; one that was replaced or verified meanwhile stays.

        Right before, it is looked at once more, and its version is the condition of the delete. Two uploads of the same bytes
        in one part have one version: of such an object a copy is made first, which goes back if it is seen to be needed.
        """
        key = self._key(dataset, name)
        stored = self._head(key)
        if stored is None or (stored.version, int(stored.modified)) != (seen.version, int(seen.modified)):
            return False
        copy = ""
        if stored.size <= (stored.part_bytes or stored.size) and self._can_read(key, stored):
            copy = self._copy_aside(dataset, name, stored, "a copy, made before it is removed", attempt, progress)
        if not self._vouched_for(dataset, name):
            # Raises if another attempt has taken over meanwhile.
            progress.note(f"removing {name} of {dataset}")
            gone = self._bucket.delete_version(key, stored.version) or self._head(key) is None
            if gone and copy and self._vouched_for(dataset, name):
                # Whoever is late may do this still.
                self.put_back(dataset, attempt)
                return False
        else:
            gone = False
        if copy:
            self._bucket.delete([copy, copy + WHY])
        return gone

    def _vouched_for(self, dataset: str, name: str) -> bool:
        """Whether a datablock is one of a complete bag, or has a manifest beside it."""
        match = DATABLOCK.fullmatch(name.rpartition("/")[2])
        manifest = f"data/{match[1]}.manifest.jsonl.gz" if match else name
        return any(self.size_of(dataset, one) is not None for one in (manifest, TAG_MANIFEST))

    def leftovers(self, progress: Progress) -> Iterator[Leftover]:
        """As ``Lts``: one listing of the bucket, a dataset's objects at a time."""
        self.check_marker()
        aside = self._key(OWN, QUARANTINE, "")
        held = {entry.key.removeprefix(aside).rpartition("/")[0] for entry in self._bucket.list(aside)}
        for upload in self._bucket.open_uploads(self._settings.prefix):
            if (dataset := self._dataset(upload)) is not None:
                yield Leftover(dataset, "an upload that was never completed", upload.begun)
        for dataset, entries in self._listed():
            progress.note(f"looking at {dataset}")
            times: dict[str, float] = {}
            complete = False
            names = set()
            for entry in entries:
                name = entry.key.removeprefix(self._key(dataset) + "/")
                names.add(name)
                complete = complete or name == TAG_MANIFEST
                if name.startswith("data/"):
                    times[name.removeprefix("data/")] = entry.modified
            kept = {name for pair in pairs(times) for name in pair}
            dead = [when for name, when in times.items() if DATABLOCK.fullmatch(name) and name not in kept]
            if dead and not complete:
                yield Leftover(dataset, f"{len(dead)} unverified files", max(dead))
            if complete and dataset in held and (missing := self.listed(dataset).keys() - names):
                yield Leftover(dataset, f"{len(missing)} files missing in its bag, and files in quarantine", LONG_AGO)

    def datasets(self) -> Iterator[str]:
        """As ``Lts``."""
        self.check_marker()
        return (dataset for dataset, _ in self._listed())

    def _listed(self) -> Iterator[tuple[str, Iterator[ObjectInfo]]]:
        """All objects, by dataset: S3 lists what begins alike together."""
        grouped = groupby(self._bucket.list(self._settings.prefix), key=self._dataset)
        return ((dataset, entries) for dataset, entries in grouped if dataset is not None)

    def _dataset(self, entry: ObjectInfo | OpenUpload) -> str | None:
        """The dataset an object is of: ``a/b/...``, or ``pid=.../...`` (``pid_path``)."""
        first, *rest = entry.key.removeprefix(self._settings.prefix).split("/")
        if first.startswith(".") or not rest:
            return None
        if first.startswith("pid="):
            return first
        return f"{first}/{rest[0]}" if len(rest) > 1 else None

    def quarantine(
        self, dataset: str, name: str, reason: str, attempt: str = BY_HAND, progress: Progress = SILENT
    ) -> None:
        """As ``Lts``: copied by the store to ``.archiver/quarantine/<dataset>``, the reason beside it, then removed. An object
        that is gone is no error. One that must be restored first is asked for: raises ``LtsFault``, to be retried.
        """
        self.check_marker()
        key = self._key(dataset, name)
        if (stored := self._head(key)) is None:
            return
        progress.note(f"taking {name} of {dataset} into quarantine")
        if not self.recall(dataset, name):
            raise LtsFault(
                f"{dataset}/{name} is in class {stored.storage_class} and is to be taken into quarantine",
                expected="an object that can be copied",
                found="one that is being restored",
                next_step="retried until it is restored, which may take days",
            )
        if name != TAG_MANIFEST and self.size_of(dataset, TAG_MANIFEST) is not None:
            return
        copy = self._copy_aside(dataset, name, stored, reason, attempt, progress)
        progress.note(f"taking {name} of {dataset} into quarantine")
        if not self._bucket.delete_version(key, stored.version) and self._head(key) is not None:
            self._bucket.delete([copy, copy + WHY])
            return
        self._bucket.delete([self._proof(dataset, name)])
        if self.size_of(dataset, TAG_MANIFEST) is not None:
            # We were late: the bag was completed with this object in it.
            self.put_back(dataset, attempt)

    def _copy_aside(
        self, dataset: str, name: str, stored: Stored, reason: str, attempt: str, progress: Progress
    ) -> str:
        """Let the store copy an object to a name of this attempt's own in quarantine, the reason beside it; returns its key."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        base = name.rpartition("/")[2]
        target = self._key(OWN, QUARANTINE, dataset, f"{base}.{stamp}.{secrets.token_hex(4)}")
        note = {"was": f"{dataset}/{name}", "reason": reason, "when": stamp, "attempt": attempt}
        self._put(target + WHY, json.dumps(note).encode())
        storage_class = self._settings.storage_class if DATABLOCK.fullmatch(base) else READABLE
        self._copy(self._key(dataset, name), stored, target, storage_class, progress)
        copied = self._bucket.head(target)
        if copied is None or copied.size != stored.size:
            raise LtsFault(
                f"{target} is not a copy of {dataset}/{name}",
                expected=f"{stored.size} B",
                found="nothing" if copied is None else f"{copied.size} B",
                next_step="retried; nothing was removed",
            )
        return target

    def put_back(self, dataset: str, attempt: str = BY_HAND, progress: Progress = SILENT) -> int:
        """As ``Lts``: by the digest stored with it; what it lay under before is taken by nothing else."""
        self.check_marker()
        aside = self._key(OWN, QUARANTINE, dataset, "")
        found = [entry.key for entry in self._bucket.list(aside) if not entry.key.endswith(WHY)]
        if not found:
            return 0
        complete = self.size_of(dataset, TAG_MANIFEST) is not None
        listed = self.listed(dataset) if complete else {}
        done = 0
        for copy in found:
            if (match := _KEPT.fullmatch(copy.removeprefix(aside))) is None:
                continue
            base = match[1]
            name = f"data/{base}" if DATABLOCK.fullmatch(base) or MANIFEST.fullmatch(base) else base
            wanted = listed.get(name) if complete else self._told(dataset, base)
            if not wanted or self.size_of(dataset, name) is not None:
                continue
            stored = self._head(copy)
            if stored is None or stored.sha256 != wanted:
                continue
            if not self.recall(*copy.removeprefix(self._settings.prefix).rsplit("/", 1)):
                raise LtsFault(
                    f"{copy} belongs to the bag of {dataset} and is being restored",
                    expected="an object that can be copied",
                    found=f"one in class {stored.storage_class}",
                    next_step="retried until it is restored, which may take days",
                )
            progress.note(f"putting back {name} of {dataset}")
            done += self._give_back(self._key(dataset, name), copy, stored, progress)
        return done

    def _told(self, dataset: str, base: str) -> str:
        """The SHA-256 of a datablock by the manifest that lies where it is missing."""
        match = DATABLOCK.fullmatch(base)
        data = self.get_small(dataset, f"data/{match[1]}.manifest.jsonl.gz") if match else None
        try:
            return ManifestReader([data]).read_footer().sha256 if data else ""
        except IntegrityMismatch:
            return ""

    def _give_back(self, key: str, copy: str, stored: Stored, progress: Progress) -> bool:
        """Upload it again under its name, if nothing is there, as it was; through us, so that the store keeps its checksum."""
        try:
            if stored.part_bytes and DATABLOCK.fullmatch(key.rpartition("/")[2]):
                chunks = self._bucket.stream(copy, size=stored.size, version=stored.version)
                self._upload(
                    key,
                    chunks,
                    stored.size,
                    progress,
                    sha256=stored.sha256,
                    called=key,
                    storage_class=stored.storage_class,
                )
            else:
                self._put(key, self._bucket.get(copy) or b"", IfNoneMatch="*")
        except There:
            return False
        self._bucket.delete([copy, copy + WHY])
        return True
