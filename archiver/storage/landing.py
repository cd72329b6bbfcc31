"""The landing zone: where a dataset's source files lie, behind one protocol; an S3 prefix here, a directory in ``directory``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol
from urllib.parse import urlsplit

from archiver.datablock.files import PlannedFile, SourceFile, path_key
from archiver.errors import CatalogueRecordInvalid, SourceChanged, SourceFault
from archiver.progress import Progress
from archiver.settings import S3Settings
from archiver.storage.directory import DirectoryLanding
from archiver.storage.objects import Bucket, Buffer, ObjectChanged, ObjectInfo


class Landing(Protocol):
    """One dataset's source files. All methods may be repeated."""

    where: str

    def list(self) -> Iterator[SourceFile]:
        """Every file, in the order of the UTF-8 bytes of its path. Raises ``SourceFault``."""

    def fetch(
        self, files: Iterable[PlannedFile], *, ahead_bytes: int, ahead_objects: int
    ) -> Iterator[tuple[PlannedFile, Iterator[Buffer]]]:
        """The files' bytes in the order given, fetched ahead. Raises ``SourceChanged`` and ``SourceFault``."""

    def delete(self, files: Iterable[PlannedFile], progress: Progress) -> int:
        """Remove exactly these files, each only if it is still what was planned; returns how many."""


def open_landing(
    template: str, s3: S3Settings, fields: Mapping[str, str], *, buckets: dict[str, Bucket] | None = None
) -> Landing:
    """The landing zone of the dataset whose catalogue record gave ``fields``. Nothing is connected yet.

    ``buckets`` keeps them, by name, for the next dataset: to make a client takes 0.3 s.

    Raises ``CatalogueRecordInvalid`` if the template names a field that the record does not have, or a source folder
    that is no path of its own where the template needs one.
    """
    fixed, brace, rest = template.partition("{")
    try:
        filled = (brace + rest).format_map(fields)
    except KeyError as error:
        raise _unnamed(template, fields, f"a value of {error.args[0]} in its record", "none") from None
    folder = fields.get("source_folder", "")
    if rest.startswith("source_folder}") and not fixed.endswith("/") and not folder.startswith("/"):
        # Else /data{source_folder} and "2" would be /data2.
        raise _unnamed(template, fields, "a sourceFolder that begins with /", ascii(folder[:200]))
    url = fixed + filled
    if url.startswith("file://"):
        return DirectoryLanding(fixed.removeprefix("file://"), filled, fields)
    parts = urlsplit(template)
    prefix = url.removeprefix(f"s3://{parts.netloc}/")
    buckets = {} if buckets is None else buckets
    bucket = buckets.setdefault(parts.netloc, Bucket(parts.netloc, s3, SourceFault))
    return S3Landing(bucket, prefix if prefix.endswith("/") or not prefix else prefix + "/")


def _unnamed(template: str, fields: Mapping[str, str], expected: str, found: str) -> CatalogueRecordInvalid:
    return CatalogueRecordInvalid(
        f"the landing zone of dataset {fields.get('pid')} cannot be named",
        expected=f"{expected}, for landing.url_template {template}",
        found=found,
        next_step="complete the dataset's record in SciCat, or change the template",
        dataset=fields.get("pid"),
    )


class S3Landing:
    """A prefix in a bucket: a file's key is the prefix and its path."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self.where = f"s3://{bucket.name}/{prefix}"

    def list(self) -> Iterator[SourceFile]:
        """As ``Landing``. Keys that end in a slash and hold nothing are folders that some tools leave: no files."""
        last: bytes | None = None
        for entry in self._bucket.list(self._prefix):
            if entry.key.endswith("/") and entry.size == 0:
                continue
            path = entry.key[len(self._prefix) :]
            key = path_key(path)
            if last is not None and key <= last:
                raise SourceFault(
                    f"{self.where} is not listed in the order of its keys",
                    expected=f"a key after {last.decode('utf-8', 'replace')!a}, as S3 says",
                    found=ascii(path),
                    next_step="report it to the maker of the S3 server; such a server cannot be archived from",
                    retryable=False,
                )
            last = key
            yield SourceFile(path, entry.size, entry.version)

    def fetch(
        self, files: Iterable[PlannedFile], *, ahead_bytes: int, ahead_objects: int
    ) -> Iterator[tuple[PlannedFile, Iterator[Buffer]]]:
        """As ``Landing``; the version (ETag) of the plan is demanded of every read."""
        wanted = ((file, self._prefix + file.path, file.size, file.version) for file in files)
        reads = self._bucket.read_many(wanted, ahead_bytes=ahead_bytes, ahead_requests=ahead_objects)
        try:
            for file, chunks in reads:
                yield file, self._checked(file, chunks)
        except ObjectChanged as changed:
            # A read fetched ahead: the file's own turn has not come, but the datablock cannot be made.
            raise self._changed(changed) from None
        finally:
            reads.close()  # type: ignore[attr-defined]

    def _checked(self, file: PlannedFile, chunks: Iterator[Buffer]) -> Iterator[Buffer]:
        try:
            yield from chunks
        except ObjectChanged as changed:
            raise self._changed(changed) from None

    def _changed(self, changed: ObjectChanged) -> SourceChanged:
        path = ascii(changed.key[len(self._prefix) :])
        return SourceChanged(
            f"file {path} changed or vanished after the dataset was planned",
            expected=changed.expected,
            found=changed.found,
            next_step="let the files rest, then submit the job again",
            file=path,
        )

    def delete(self, files: Iterable[PlannedFile], progress: Progress) -> int:
        """As ``Landing``. What is there now is listed afresh, and only objects of the planned size and ETag are named."""
        there = self._bucket.list(self._prefix)
        current: ObjectInfo | None = next(there, None)
        doomed: list[str] = []
        deleted = 0
        for file in files:
            key = path_key(self._prefix + file.path)
            while current is not None and path_key(current.key) < key:
                current = next(there, None)
            planned = ObjectInfo(self._prefix + file.path, file.size, file.version)
            if current == planned:
                doomed.append(planned.key)
            if len(doomed) == 1000:
                self._bucket.delete(doomed)
                deleted, doomed = deleted + len(doomed), []
                progress.advance(files=1000)
        self._bucket.delete(doomed)
        return deleted + len(doomed)
