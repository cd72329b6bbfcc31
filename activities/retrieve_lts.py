"""Retrieval on the LTS: what is wanted of each datablock is planned (``archiver-lts-bag``), read, checked and delivered
(``archiver-lts-read``). Nothing on the LTS is changed."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import ParamSpec, TypeGuard, TypeVar

from temporalio import activity

from activities.lts import attempt_name
from activities.running import Beat, told
from archiver.datablock.contents import contents_of
from archiver.datablock.extract import Extracted, extract, extract_files, pass_through, select
from archiver.datablock.manifest import ManifestFile, ManifestReader
from archiver.errors import IntegrityMismatch, LtsFault, TargetFault
from archiver.log import scrub
from archiver.patience import patiently
from archiver.pids import pid_path
from archiver.retrieval import wire as w
from archiver.retrieval.delivered import Delivered, to_bytes
from archiver.retrieval.keys import RetrievalKeys
from archiver.settings import Settings
from archiver.storage import lts_read
from archiver.storage.bags import read_bag
from archiver.storage.lts import Lts
from archiver.storage.lts_read import Held
from archiver.storage.objects import Bucket
from archiver.storage.retrieval_bucket import RetrievalBucket
from archiver.storage.retrieval_directory import RetrievalDirectory
from archiver.storage.staging import archive_id, datablock_name, manifest_name, read_staged
from archiver.storage.targets import Delivered as Placed
from archiver.storage.targets import Target, stream, whole

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("archiver.activities")

FIRST = 10
"""Names that a message tells."""


class RetrieveLts:
    """Reads the LTS for requesters. Every method may be repeated (P6)."""

    def __init__(self, settings: Settings, staging: Bucket, lts: Lts) -> None:
        self._settings = settings
        self._staging = staging
        self._lts = lts
        self._bucket = RetrievalBucket(Bucket(settings.retrieval.bucket, settings.s3, TargetFault), settings.retrieval)

    @activity.defn(name="plan-retrieve", no_thread_cancel_exception=True)
    @told
    def plan_retrieve(self, request: w.Selection) -> w.PlanRetrieveResult:
        """Compare the catalogue's datablocks with the LTS, find the datablocks that hold what is wanted, look for room.

        Raises ``LtsFault`` naming what has a record and no file, or a file and no record, or a wanted file that no manifest
        has; ``IntegrityMismatch`` for a manifest that is not the bag's; ``TargetFull``, which is waited out.
        """
        beat = Beat()
        records = self._staged(request, request.records)
        blocks = _waited_for(beat, lts_read.held, self._lts, request.pid)
        _waited_for(beat, lts_read.compare, request.pid, json.loads(records), blocks, self._lts)
        wanted, target = self._wanted(request), self._target(request.destination)
        missing = set(wanted or ())
        refused: list[str] = []
        numbers: list[int] = []
        recall: list[int] = []
        files = size = packed = largest = 0
        for block in sorted(blocks.values(), key=lambda one: one.n):
            beat.note(f"looking at datablock {block.n} of {len(blocks)}")
            manifest = _waited_for(beat, self._manifest, request.pid, block)
            selected = select(manifest, wanted)
            if not selected.files:
                continue
            missing -= selected.found
            for file in _files(block, manifest, wanted, _as_it_is(request, wanted)):
                if why := target.refuses(request.pid, file.path):
                    refused.append(f"{file.path[:80]!a}... ({why})" if len(refused) < FIRST else "")
            numbers.append(block.n)
            if not self._lts.readable(pid_path(request.pid), _name(block)) and not self._is_there(
                target, request, block, manifest, wanted, beat
            ):
                recall.append(block.n)
            files, size = files + selected.files, size + selected.size_bytes
            packed += selected.read_bytes
            largest = max(largest, selected.footer.size_bytes)
        if missing:
            told_names = ", ".join(ascii(name[:100]) for name in sorted(missing)[:FIRST])
            raise LtsFault(
                f"SciCat lists files of dataset {request.pid} that no datablock on the LTS holds",
                expected="every file of the catalogue in one manifest",
                found=f"{len(missing)} in none: {told_names}",
                next_step="compare SciCat's origdatablocks with the manifests; nothing was delivered",
                retryable=False,
            )
        beat.note(f"looking for room in {target.where}")
        target.check_space(packed if request.destination.kind == "datablocks" else size)
        return w.PlanRetrieveResult(
            datablocks=numbers,
            files=files,
            size_bytes=size,
            packed_bytes=packed,
            largest_bytes=largest,
            recall=recall,
            refused=len(refused),
            refused_first=", ".join(name for name in refused if name),
        )

    @activity.defn(name="retrieve-datablock", no_thread_cancel_exception=True)
    @told
    def retrieve_datablock(self, request: w.RetrieveDatablockRequest) -> w.RetrieveDatablockResult:
        """Read what is wanted of a datablock once, check it, deliver it: a file is seen only when its own SHA-256 matched.

        Raises ``IntegrityMismatch``, ``LtsFault``, ``TargetFault``, ``TargetDiffers``, ``DestinationRefused``.
        """
        beat = Beat(request.largest_bytes)
        pid = request.pid
        block = _waited_for(beat, self._block, pid, request.n)
        manifest = _waited_for(beat, self._manifest, pid, block)
        wanted = self._wanted(request)
        target = self._target(request.destination)
        as_it_is = _as_it_is(request, wanted)
        selected = select(manifest, wanted)
        result = w.RetrieveDatablockResult(n=request.n, files=selected.files, size_bytes=selected.size_bytes)
        if self._is_there(target, request, block, manifest, wanted, beat):
            target.renew(pid, request.selection)
            logger.info("datablock %d of %s: all of it was delivered before, nothing read", request.n, pid)
            return result

        def advance(size_bytes: int) -> None:
            beat.advance(size_bytes)

        waiting = partial(_given_nothing, beat)

        def read() -> Iterator[memoryview]:
            return patiently(lts_read.whole(self._lts, pid, block), waiting)

        def read_range(offset: int, size: int) -> Iterator[memoryview]:
            return patiently(lts_read.part(self._lts, pid, block, offset, size), waiting)

        with target.sink(pid, request.selection, attempt_name(), beat, piece=str(request.n)) as sink:
            if as_it_is:
                with stream(sink, _as_file(block, manifest)) as write:
                    done = (
                        Extracted(0, 0, 0, 1)
                        if write is None
                        else pass_through(read, manifest, write, progress=advance)
                    )
            elif wanted is None:
                done = extract(read, manifest, sink, progress=advance)
            else:
                done = extract_files(read_range, manifest, wanted.__contains__, sink, progress=advance)
        if isinstance(target, RetrievalBucket):
            told = _files(block, manifest, wanted, as_it_is)
            files = (one for one in told if not target.refuses(pid, one.path))
            key = self._keys(request).delivered(target.dataset(pid), block.n)
            target.bucket.put(key, _list(request, block, target.delivered(pid, files), as_it_is))
        logger.info(
            "datablock %d of %s: %d files delivered, %d were there; %d bytes read",
            *(request.n, pid, done.files, done.skipped, done.read_bytes),
        )
        return result

    @activity.defn(name="find-held", no_thread_cancel_exception=True)
    @told
    def find_held(self, request: w.CheckDatasetRequest) -> w.HeldResult:
        """The datablocks of the dataset's bag. Raises ``LtsFault`` without a bag, ``IntegrityMismatch`` for a damaged one."""
        Beat()
        blocks, path, bad = lts_read.held(self._lts, request.pid).values(), pid_path(request.pid), ""
        try:
            read_bag(self._lts, path)
        except IntegrityMismatch as error:
            bad = scrub(error.one_line())
        sizes = {one.n: self._lts.size_of(path, _name(one)) for one in blocks}
        # One that is gone is told by the check of it.
        recall = [one.n for one in blocks if sizes[one.n] is not None and not self._lts.readable(path, _name(one))]
        return w.HeldResult(
            datablocks=sorted(sizes),
            packed_bytes=max((size or 0 for size in sizes.values()), default=0),
            recall=recall,
            bad=bad,
        )

    @activity.defn(name="recall-datablocks", no_thread_cancel_exception=True)
    @told
    def recall_datablocks(self, request: w.RecallRequest) -> w.RecallResult:
        """Ask the LTS to restore these, where that is neither done nor under way; tells which cannot be read yet."""
        beat, path = Beat(), pid_path(request.pid)
        names = {one.n: _name(one) for one in lts_read.held(self._lts, request.pid).values()}
        pending = []
        for n in request.datablocks:
            beat.note(f"asking for datablock {n}")
            if n in names and not self._lts.recall(path, names[n]):
                pending.append(n)
        return w.RecallResult(pending=pending)

    @activity.defn(name="check-datablock", no_thread_cancel_exception=True)
    @told
    def check_datablock(self, request: w.CheckRequest) -> w.CheckResult:
        """Read it again past the cache and compare with manifest and bag; a mismatch is a result, a read error is raised.

        What the bag lists and is not there is a mismatch too: no second look finds it.
        """
        try:
            block = self._block(request.pid, request.n)
            path, name = pid_path(request.pid), _name(block)
            for file in (name, f"data/{manifest_name(block.n)}"):
                if self._lts.size_of(path, file) is None:
                    raise IntegrityMismatch(
                        f"{file} of dataset {request.pid} is missing on the LTS",
                        expected=f"{path}/{file}, which its bag lists",
                        found="no such file",
                    )
            manifest = self._manifest(request.pid, block)
            found = self._lts.check(path, name, manifest, Beat(self._lts.size_of(path, name) or 0))
        except IntegrityMismatch as error:
            error.datablock = request.n
            # Those who archive set it aside and make it anew. Here nothing is changed.
            error.next_step = (
                "bring it back from another copy of the LTS, or, while its source files are there, have it archived anew "
                "(docs/operators.md); nothing was changed"
            )
            return w.CheckResult(bad=scrub(error.one_line()))
        # All files of this manifest were found in the datablock.
        holds = contents_of(ManifestReader([manifest]).files())
        return w.CheckResult(**holds.model_dump(), packed_bytes=found.packed_bytes, level=found.level)

    def _is_there(
        self,
        target: Target,
        request: w.Selection,
        block: Held,
        manifest: bytes,
        wanted: set[str] | None,
        beat: Beat,
    ) -> TypeGuard[RetrievalBucket]:
        """Whether an earlier retrieval delivered the same, and every object of it still proves itself by its SHA-256.

        A directory's files have no proof but their bytes: they are read, and so is the datablock.
        """
        if not isinstance(target, RetrievalBucket):
            return False
        told = target.bucket.get(self._keys(request).delivered(target.dataset(request.pid), block.n))
        if told is None:
            return False
        as_it_is = _as_it_is(request, wanted)
        files = [
            Placed(one.path, target.key(request.pid, one.path), one.size, one.sha256)
            for one in _files(block, manifest, wanted, as_it_is)
            if not target.refuses(request.pid, one.path)
        ]
        if told != _list(request, block, files, as_it_is):
            return False
        for one in files:
            beat.note(f"looking whether {one.name[:100]!a} is there")
            if not target.bucket.holds(one.where, one.size, one.sha256, beat):
                return False
        return True

    def _block(self, pid: str, n: int) -> Held:
        for block in lts_read.held(self._lts, pid).values():
            if block.n == n:
                return block
        raise LtsFault(
            f"datablock {n} of dataset {pid} is not in its bag on the LTS any more",
            expected="the datablock that was planned",
            found="none of that number",
            next_step="see who changes the LTS; nothing of this datablock was delivered",
            retryable=False,
        )

    def _manifest(self, pid: str, block: Held) -> bytes:
        """The bag's own manifest, which must be of the bag's own datablock."""
        manifest = lts_read.manifest(self._lts, pid, block)
        reader = ManifestReader([manifest])
        footer = reader.read_footer()
        if (reader.header.pid, reader.header.datablock, footer.sha256) != (pid, block.n, block.sha256):
            raise IntegrityMismatch(
                f"the manifest of datablock {block.n} of dataset {pid} is of another datablock",
                expected=f"dataset {pid}, datablock {block.n}, SHA-256 {block.sha256}",
                found=f"dataset {reader.header.pid}, datablock {reader.header.datablock}, SHA-256 {footer.sha256}",
                next_step="see the LTS's health; nothing of this datablock was delivered",
                retryable=False,
            )
        return manifest

    def _wanted(self, request: w.Selection) -> set[str] | None:
        """The wanted names; None: all. Raises ``StagedLost``: a list that is gone never means all."""
        if not request.wanted:
            return None
        return set(json.loads(gzip.decompress(self._staged(request, request.wanted))))

    def _staged(self, request: w.Selection, sha256: str) -> bytes:
        key = self._keys(request).staged(sha256)
        return read_staged(self._staging, key, sha256, request.pid, lost="selection")

    def _target(self, destination: w.Destination) -> Target:
        if destination.kind == "directory":
            return RetrievalDirectory(destination.root, destination.path, self._settings.retrieval)
        return self._bucket

    def _keys(self, request: w.Selection) -> RetrievalKeys:
        return RetrievalKeys(self._settings.staging.prefix, request.pid, request.selection)


def _name(block: Held) -> str:
    return f"data/{datablock_name(block.n, block.format)}"


def _as_it_is(request: w.Selection, wanted: set[str] | None) -> bool:
    return request.destination.kind == "datablocks" and wanted is None


def _as_file(block: Held, manifest: bytes) -> ManifestFile:
    footer = ManifestReader([manifest]).read_footer()
    return whole(datablock_name(block.n, block.format), footer.packed_bytes, footer.sha256)


def _files(block: Held, manifest: bytes, wanted: set[str] | None, as_it_is: bool) -> Iterator[ManifestFile]:
    if as_it_is:
        return iter([_as_file(block, manifest)])
    is_wanted: Callable[[str], bool] = (lambda path: True) if wanted is None else wanted.__contains__
    return (file for file in ManifestReader([manifest]).files() if is_wanted(file.path))


def _list(request: w.Selection, block: Held, files: Iterable[Placed], as_it_is: bool) -> bytes:
    """What lies in the bucket of a datablock, for the links of the job."""
    source = archive_id(request.pid, block.n, block.format)
    return to_bytes(Delivered(one.name, one.where, one.size, one.sha256, source, as_it_is) for one in files)


def _given_nothing(beat: Beat, seconds: float) -> None:
    beat.note(f"the LTS has given nothing for {seconds:.0f} s (a tape recall?)")


def _waited_for(beat: Beat, read: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What ``read`` returns: a bag's small files may lie on tape as well as its datablocks."""
    (result,) = patiently((read(*args, **kwargs) for _ in range(1)), partial(_given_nothing, beat))
    return result
