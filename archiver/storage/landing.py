"""The landing zone: where a dataset's source files lie, behind one protocol; an S3 prefix here, a directory in ``directory``.

A *version* is all that a store tells of a file's state: ETag and LastModified of an object, size and times of a file. It is
*certain* if a change cannot leave it as it was. What has no certain version is read twice: two readings that agree are of
one state of the file, for each byte was the same before and after all others were read.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from string import Formatter
from typing import Any, Protocol
from urllib.parse import urlsplit

from archiver.datablock.files import PlannedFile, SourceFile, path_key
from archiver.errors import CatalogueRecordInvalid, HostilePath, SourceChanged, SourceFault
from archiver.progress import SILENT, Progress
from archiver.settings import LandingSettings, S3Settings
from archiver.storage.directory import FRESH_SECONDS, DirectoryLanding, changed_while_read, no_version
from archiver.storage.objects import GET_PART_BYTES, Bucket, Buffer, ObjectChanged, ObjectInfo, ObjectVersion

CLOCKS_DIFFER_SECONDS = 3600.0
"""At most so much, between the server's clock and ours: what is older is not fresh."""
DELETING_THREADS = 8
DELETING_AT_ONCE = 64


class Landing(Protocol):
    """One dataset's source files. All methods may be repeated."""

    where: str
    """Bucket and prefix, or directory, as a URL: errors say that we looked there."""

    def list(self) -> Iterator[SourceFile]:
        """Every file, in the order of the UTF-8 bytes of its path. Raises ``SourceFault``."""

    def certain(self, version: str) -> bool:
        """Whether a file cannot have changed where its version is this one still; else it is read twice, or refused."""

    def fetch(
        self, files: Iterable[PlannedFile], *, ahead_bytes: int, ahead_objects: int, progress: Progress = SILENT
    ) -> Iterator[tuple[PlannedFile, Iterator[Buffer]]]:
        """The files' bytes in the order given, fetched ahead, each of one state of its file and in the version planned.

        To be read to its end: what changed meanwhile is seen last. Raises ``SourceChanged``, ``SourceFault``, and what
        ``progress`` raises, which hears of what is read a second time.
        """

    def delete(self, files: Iterable[tuple[PlannedFile, str]], progress: Progress) -> int:
        """Remove exactly these files, each only if it is still what was planned and archived; returns how many.

        Each comes with its SHA-256 from the datablock's manifest. With ``landing.delete_check`` ``read``, and where its
        version is not certain, a file is read again right before: other bytes are never removed.
        """


def open_landing(
    settings: LandingSettings, s3: S3Settings, fields: Mapping[str, str], *, buckets: dict[str, Bucket] | None = None
) -> Landing:
    """The landing zone of the dataset whose catalogue record gave ``fields``. Nothing is connected yet.

    ``s3`` is the usual one; ``settings`` may name another. ``buckets`` keeps them, by name, for the next dataset: to make a
    client takes 0.3 s.

    Raises ``CatalogueRecordInvalid`` if the template names a field that the record does not have, or a source folder
    that is no path of its own where the template needs one.
    """
    template = settings.url_template
    fixed, brace, rest = template.partition("{")
    try:
        filled = (brace + rest).format_map(fields)
    except KeyError as error:
        raise _unnamed(template, fields, f"a value of {error.args[0]} in its record", "none") from None
    folder = fields.get("source_folder", "")
    if rest.startswith("source_folder}") and not fixed.endswith("/") and not folder.startswith("/"):
        # Else /data{source_folder} and "2" would be /data2.
        raise _unnamed(template, fields, "a sourceFolder that begins with /", ascii(folder[:200]))
    if fixed.startswith("file://"):
        return DirectoryLanding(fixed.removeprefix("file://"), filled, fields, settings)
    name = urlsplit(fixed).netloc
    prefix = _key_prefix(template.removeprefix(f"s3://{name}/"), fields)
    if not prefix:
        raise _unnamed(template, fields, "a sourceFolder that is more than /", ascii(folder[:200]))
    buckets = {} if buckets is None else buckets
    bucket = buckets.setdefault(name, Bucket(name, settings.s3 or s3, SourceFault))
    return S3Landing(bucket, prefix, settings)


def _key_prefix(template: str, fields: Mapping[str, str]) -> str:
    """What the keys begin with: ``{source_folder}`` is a path from a root, which keys have not, so no slash is doubled."""
    prefix = ""
    for literal, name, _, _ in Formatter().parse(template):
        prefix += literal
        value = fields[name] if name else ""
        if name == "source_folder":
            value = value.rstrip("/")
            value = value.lstrip("/") if not prefix or prefix.endswith("/") else value
        prefix += value
    return prefix if prefix.endswith("/") or not prefix else prefix + "/"


def _unnamed(template: str, fields: Mapping[str, str], expected: str, found: str) -> CatalogueRecordInvalid:
    return CatalogueRecordInvalid(
        f"the landing zone of dataset {fields.get('pid')} cannot be named",
        expected=f"{expected}, for landing.url_template {template}",
        found=found,
        next_step="complete the dataset's record in SciCat, or change the template",
        dataset=fields.get("pid"),
    )


class S3Landing:
    """A prefix in a bucket: a file's key is the prefix and its path. Implements ``Landing``."""

    def __init__(self, bucket: Bucket, prefix: str, settings: LandingSettings | None = None) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._settings = settings or LandingSettings()
        self._first_asked = 0.0
        """When the server was asked for its time, by its clock; no file is read before that is known."""
        self.where = f"s3://{bucket.name}/{prefix}"

    def list(self) -> Iterator[SourceFile]:
        """As ``Landing``. Keys that end in a slash and hold nothing are folders that some tools leave: no files."""
        last: bytes | None = None
        for entry in self._bucket.list(self._prefix):
            if entry.key.endswith("/") and entry.size == 0:
                continue
            path = entry.key[len(self._prefix) :]
            key = path_key(path)
            if "\ufffd" in path and self._bucket.head(entry.key) is None:
                # What XML cannot say, a control character, some stores list so; the sign may stand in a name too.
                raise HostilePath(
                    f"{path[:300]!a} in {self.where} stands for a name that the store cannot list as it is",
                    expected="names without control characters (below U+0020, and U+FFFE, U+FFFF)",
                    found="U+FFFD, the sign for what cannot be shown, and no object of that name",
                    next_step="give the object another name, in the catalogue too, then submit the job again",
                    file=ascii(path[:300]),
                )
            if last is not None and key <= last:
                raise SourceFault(
                    f"{self.where} is not listed in the order of its keys",
                    expected=f"a key after {last.decode('utf-8', 'replace')!a}, as S3 says",
                    found=ascii(path),
                    next_step="report it to the maker of the S3 server; such a server cannot be archived from",
                    retryable=False,
                )
            last = key
            file = SourceFile(path, entry.size, _text(entry))
            if self._settings.without_version == "refuse" and not self.certain(file.version):
                raise no_version(self.where, file, "an ETag, and none that is weak", entry.version or "no ETag")
            yield file

    def certain(self, version: str) -> bool:
        """As ``Landing``: whether it has a strong ETag. Some stores give none, ``W/"..."``, or zeros for every object."""
        etag = _version(version).etag
        return not etag.startswith("W/") and not set(etag.partition("-")[0]) <= set('"0')

    def fetch(
        self, files: Iterable[PlannedFile], *, ahead_bytes: int, ahead_objects: int, progress: Progress = SILENT
    ) -> Iterator[tuple[PlannedFile, Iterator[Buffer]]]:
        """As ``Landing``; the planned version is demanded of every answer. The files are listed again after the last byte:
        behind some gateways a file that is written in place keeps its ETag.
        """
        done: dict[str, tuple[int, str]] = {}
        again: list[tuple[PlannedFile, str]] = []
        # Whether a file is to be read twice is asked before it is read.
        wanted = (
            ((file, self._to_read_twice(file)), self._prefix + file.path, file.size, _version(file.version))
            for file in files
        )
        reads = self._bucket.read_many(wanted, ahead_bytes=ahead_bytes, ahead_requests=ahead_objects)
        try:
            for (file, twice), chunks in reads:
                digest = hashlib.sha256() if twice else None
                yield file, self._checked(file, chunks, digest)
                done[file.path] = file.size, file.version
                if digest is not None:
                    again.append((file, digest.hexdigest()))
        except ObjectChanged as changed:
            # A read fetched ahead: the file's own turn has not come, but the datablock cannot be made.
            raise self._changed(changed) from None
        finally:
            reads.close()  # type: ignore[attr-defined]
        self._read_again(again, ahead_bytes, ahead_objects, progress)
        self._check_unchanged(done, progress)

    def _to_read_twice(self, file: PlannedFile) -> bool:
        if not self.certain(file.version):
            return True
        modified = _version(file.version).modified
        if modified < time.time() - CLOCKS_DIFFER_SECONDS:
            return False
        if not self._first_asked:
            self._first_asked = self._bucket.server_time()
        # Times in headers are whole seconds.
        return modified > self._first_asked - FRESH_SECONDS

    def _checked(self, file: PlannedFile, chunks: Iterator[Buffer], digest: Any) -> Iterator[Buffer]:
        try:
            for chunk in chunks:
                if digest is not None:
                    digest.update(chunk)
                yield chunk
        except ObjectChanged as changed:
            raise self._changed(changed) from None

    def _read_again(
        self, files: Iterable[tuple[PlannedFile, str]], ahead_bytes: int, ahead_objects: int, progress: Progress
    ) -> None:
        """Raises ``SourceChanged`` if one of them, given with its SHA-256, is not read as it was."""
        wanted = ((one, self._prefix + one[0].path, one[0].size, _version(one[0].version)) for one in files)
        reads = self._bucket.read_many(wanted, ahead_bytes=ahead_bytes, ahead_requests=ahead_objects)
        try:
            for (file, first), chunks in reads:
                digest = hashlib.sha256()
                for chunk in chunks:
                    digest.update(chunk)
                    progress.note(f"reading {file.path[:200]!a} a second time")
                if digest.hexdigest() != first:
                    raise changed_while_read(self.where, file, first, digest.hexdigest())
        except ObjectChanged as changed:
            raise self._changed(changed) from None
        finally:
            reads.close()  # type: ignore[attr-defined]

    def _sha256(self, file: PlannedFile, progress: Progress) -> str:
        """Of the file as it is now. Raises ``ObjectChanged`` if it is not in the planned version."""
        digest = hashlib.sha256()
        wanted = [(None, self._prefix + file.path, file.size, _version(file.version))]
        for _, chunks in self._bucket.read_many(wanted, ahead_bytes=2 * GET_PART_BYTES, ahead_requests=2):
            for chunk in chunks:
                digest.update(chunk)
                progress.note(f"reading {file.path[:200]!a} once more")
        return digest.hexdigest()

    def _check_unchanged(self, files: dict[str, tuple[int, str]], progress: Progress) -> None:
        """Raises ``SourceChanged`` if one of them, given as size and version, is not listed as it was planned."""
        if not files:
            return
        last = max(map(path_key, files))
        # Listed from the first file on: a key's own beginning comes before it.
        for entry in self._bucket.list(self._prefix, after=(self._prefix + min(files, key=path_key))[:-1]):
            path = entry.key[len(self._prefix) :]
            planned = files.pop(path, None)
            if planned is not None and planned != (entry.size, _text(entry)):
                raise self._changed(ObjectChanged(entry.key, _state(*planned), _state(entry.size, _text(entry))))
            if path_key(path) >= last:
                break
            progress.note("looking whether the files have changed")
        for path, planned in files.items():
            raise self._changed(ObjectChanged(self._prefix + path, _state(*planned), "nothing"))

    def _changed(self, changed: ObjectChanged) -> SourceChanged:
        path = ascii(changed.key[len(self._prefix) :])
        return SourceChanged(
            f"file {path} in {self.where} changed or vanished after the dataset was planned",
            expected=changed.expected,
            found=changed.found,
            next_step="let the files rest, then submit the job again",
            file=path,
        )

    def delete(self, files: Iterable[tuple[PlannedFile, str]], progress: Progress) -> int:
        """As ``Landing``. Each object is looked at right before, and deleted on the condition of its ETag."""
        deleted = 0
        given = iter(files)
        with ThreadPoolExecutor(DELETING_THREADS, "delete-sources") as pool:
            while some := [*islice(given, DELETING_AT_ONCE)]:
                removing = [pool.submit(self._remove, file, sha256, progress) for file, sha256 in some]
                deleted += sum(one.result() for one in removing)
        return deleted

    def _remove(self, file: PlannedFile, sha256: str, progress: Progress) -> bool:
        key, version = self._prefix + file.path, _version(file.version)
        try:
            if (self._settings.delete_check == "read" or not self.certain(file.version)) and (
                self._sha256(file, progress) != sha256
            ):
                return False
        except ObjectChanged:
            return False
        if not self._bucket.is_still(key, file.size, version):
            return False
        # Raises ``Stopped`` in an attempt that stood still, which deletes nothing any more.
        progress.advance(files=1)
        return self._bucket.delete_version(key, version.etag)


def _text(entry: ObjectInfo) -> str:
    """The version as the plan has it. ETags have no spaces."""
    return f"{entry.version} {entry.modified:.3f}"


def _version(text: str) -> ObjectVersion:
    """The inverse of ``_text``."""
    etag, _, modified = text.rpartition(" ")
    return ObjectVersion(etag, float(modified))


def _state(size: int, version: str) -> str:
    return f"{size} B in {_version(version)}"
