"""The LTS queues: wait for space (1), copy (2), verify (1), and the small work on bags and surveys."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from temporalio import activity

from activities.running import Beat, told
from archiver import model as m
from archiver.datablock.bag import bag_files, least_level
from archiver.datablock.contents import contents_of
from archiver.datablock.events import agent, in_order, stamp
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.record import DatablockRecord
from archiver.errors import IntegrityMismatch, LtsFault
from archiver.pids import pid_path
from archiver.settings import Settings
from archiver.storage.lts import Chunks, Lts
from archiver.storage.objects import Bucket
from archiver.storage.staging import (
    READS,
    Staged,
    StagingKeys,
    archive_id,
    datablock_name,
    lost_object,
    manifest_name,
)


class LtsActivities:
    """What touches the LTS. Every method may be repeated (P6)."""

    def __init__(self, settings: Settings, staging: Bucket, lts: Lts) -> None:
        self._settings = settings
        self._staging = staging
        self._lts = lts

    @activity.defn(name="wait-for-lts-space", no_thread_cancel_exception=True)
    @told
    def wait_for_lts_space(self, request: m.SpaceRequest) -> m.SpaceResult:
        """Return when the LTS has room beside reserve and promises; the room is then promised to this datablock."""
        started = time.monotonic()
        self._lts.wait_for_space(self._promise(request), request.need_bytes, Beat(request.need_bytes))
        return m.SpaceResult(waited_seconds=round(time.monotonic() - started, 3))

    @activity.defn(name="copy-to-lts", no_thread_cancel_exception=True)
    @told
    def copy_to_lts(self, request: m.CopyRequest) -> m.CopyResult:
        """Staging -> LTS under its final name, hashed on the way, durable when it returns. Not verified yet."""
        key = self._keys(request).datablock(request.plan_id, request.n, request.format)
        entry = self._staging.head(key)
        if entry is None or entry.size != request.packed_bytes:
            found = "nothing" if entry is None else f"{entry.size} B"
            expected = f"{request.packed_bytes} B"
            raise lost_object(key, expected, found, request.pid, lost="datablock", datablock=request.n)
        beat = Beat(request.packed_bytes)
        for reading in range(1, m.COPY_READS + 1):
            try:
                self._lts.copy_in(
                    pid_path(request.pid),
                    f"data/{datablock_name(request.n, request.format)}",
                    self._staging.stream(key, size=entry.size, version=entry.version),
                    size=request.packed_bytes,
                    sha256=request.sha256,
                    attempt=attempt_name(),
                    promise=self._promise(request),
                    progress=beat,
                )
                break
            except IntegrityMismatch as error:
                if not error.retryable:
                    raise
                # Other bytes may be the network's doing once or twice; after that the workflow has it packed anew.
                if reading == m.COPY_READS:
                    expected, found = error.expected or "", error.found or ""
                    raise lost_object(
                        key, expected, found, request.pid, lost="datablock", datablock=request.n
                    ) from None
                beat.note(f"staged datablock {request.n} is read again: it gave other bytes than were packed")
        return m.CopyResult(archive_id=archive_id(request.pid, request.n, request.format))

    @activity.defn(name="verify-in-lts", no_thread_cancel_exception=True)
    @told
    def verify_in_lts(self, request: m.VerifyRequest) -> m.VerifyResult:
        """Read the datablock back in another process, past the page cache, to each file; then publish its manifest.

        Raises ``IntegrityMismatch`` (not retried: the workflow takes the datablock into quarantine and makes it anew).
        """
        keys, path = self._keys(request), pid_path(request.pid)
        name = f"data/{datablock_name(request.n, request.format)}"
        manifest_file = f"data/{manifest_name(request.n)}"
        if request.manifest_sha256:
            staged_objects = Staged(self._staging, keys)
            manifest = staged_objects.manifest(request.plan_id, request.n, request.manifest_sha256, lost="manifest")
        else:
            manifest = self._on_lts(request.pid, request.n)
        manifest_sha256 = hashlib.sha256(manifest).hexdigest()
        self._there(request, name)
        staged = self._staged(request) if request.manifest_sha256 else None
        result = self._lts.prove(path, name, manifest, staged=staged, progress=Beat(request.packed_bytes))
        info = activity.info()
        event = m.Event(
            time=stamp(),
            type="fixity check",
            event=f"Datablock {request.n}{'' if request.manifest_sha256 else ', which was there already,'} was read back from "
            f"the LTS and unpacked: all {result.files} files are those of its manifest",
            agent=agent(),
            object=archive_id(request.pid, request.n, request.format),
            job=request.job_id,
            workflow=str(info.workflow_id),
            run=str(info.workflow_run_id),
            detail={"files": result.files, "level": result.level, "read": result.how_read, "sha256": result.sha256},
        )
        record = DatablockRecord(
            n=request.n,
            plan_id=request.plan_id,
            size_bytes=result.size_bytes,
            packed_bytes=result.packed_bytes,
            files=result.files,
            sha256=result.sha256,
            manifest_sha256=manifest_sha256,
            manifest_bytes=len(manifest),
            level=result.level,
            how_read=result.how_read,
            verified_at=datetime.now(UTC).isoformat(timespec="seconds"),
            events=[one.model_dump() for one in (*request.events, event)],
        )
        attempt = attempt_name()
        self._lts.put_small(path, manifest_file, manifest, attempt)
        # A late clean-up may have taken it before it could see that there is a manifest beside it.
        self._there(request, name)
        if not request.manifest_sha256:
            self._staging.put(keys.manifest(request.plan_id, request.n), manifest)
        self._staging.put(keys.verified(request.plan_id, request.n), record.to_json())
        # What was verified is what is counted against the catalogue: all files of this manifest were found in the datablock.
        holds = contents_of(ManifestReader([manifest]).files())
        return m.VerifyResult(
            **holds.model_dump(),
            level=result.level,
            how_read=result.how_read,
            packed_bytes=result.packed_bytes,
            sha256=result.sha256,
            event=event,
        )

    @activity.defn(name="survey-lts", no_thread_cancel_exception=True)
    @told
    def survey_lts(self, request: m.SurveyRequest) -> m.SurveyResult:
        """What of this plan lies verified on the LTS; what an earlier, dead try left is removed or taken into quarantine."""
        survey = self._lts.survey(pid_path(request.pid), request.plan_id, request.datablocks, attempt_name(), Beat())
        if survey.complete and survey.plan_id != request.plan_id:
            raise LtsFault(
                f"the LTS holds a complete archive of {request.pid} from another state of its files",
                expected=f"plan {request.plan_id}",
                found=f"a complete bag of plan {survey.plan_id}",
                next_step="compare dataset.json in the bag with SciCat; an archive that exists is never replaced",
                dataset=request.pid,
                retryable=False,
            )
        return m.SurveyResult(
            reusable=survey.reusable,
            complete=survey.complete,
            superseded=survey.superseded,
            removed=survey.removed,
        )

    @activity.defn(name="publish-bag", no_thread_cancel_exception=True)
    @told
    def publish_bag(self, request: m.DatasetRef) -> m.BagResult:
        """Write the bag's files beside ``data/``, the tag manifest last: with it the bag is complete (P11)."""
        beat = Beat()
        keys, path = self._keys(request), pid_path(request.pid)
        staged = Staged(self._staging, keys)
        dataset = staged.get("record", request.record)
        records: list[DatablockRecord] = []
        holds = m.Contents()
        for n in self._all(request):
            beat.note(f"datablock {n} of {request.datablocks}: record and manifest are compared")
            manifest = self._on_lts(request.pid, n)
            records.append(self._record(request, n, manifest))
            holds = holds.plus(contents_of(ManifestReader([manifest]).files()))
            if request.restage:
                self._staging.put(keys.manifest(request.plan_id, n), manifest)
        if not holds.same(request.verified):
            raise IntegrityMismatch(
                f"the manifests of dataset {request.pid} on the LTS are not those that verified",
                expected=request.verified.in_words(),
                found=holds.in_words(),
                next_step="see who changes the LTS, then submit the job again; nothing was registered",
                dataset=request.pid,
                retryable=False,
            )
        of_datablocks = [m.Event.model_validate(event) for record in records for event in record.events]
        self._lts.record_events(path, in_order([*request.events, *of_datablocks]), attempt_name(), beat)
        files = bag_files(
            pid=request.pid,
            plan_id=request.plan_id,
            format=request.format,
            records=records,
            at_most=request.level,
            dataset=json.loads(dataset),
            bagging_date=datetime.now(UTC).date().isoformat(),
        )
        self._lts.publish_bag(path, files, plan_id=request.plan_id, attempt=attempt_name(), progress=beat)
        index = staged.put("bag", b"".join(record.to_index() for record in records))
        return m.BagResult(files=2 * len(records), level=least_level(records, request.level), index=index)

    @activity.defn(name="roll-back-lts", no_thread_cancel_exception=True)
    @told
    def roll_back_lts(self, request: m.DatasetRef) -> m.Done:
        """Remove partial and unverified files of the dataset and its promises. Verified datablocks stay (P3)."""
        beat, path = Beat(), pid_path(request.pid)
        removed = self._lts.remove_unverified(path, attempt_name(), beat)
        self._lts.release_all(path)
        # Where nothing verified stays, nothing is left to tell of.
        if request.events and any(
            self._lts.size_of(path, f"data/{manifest_name(n)}") is not None for n in self._all(request)
        ):
            self._lts.record_events(path, in_order(request.events), attempt_name(), beat)
        return m.Done(what=f"{removed} unverified files removed")

    @activity.defn(name="record-events", no_thread_cancel_exception=True)
    @told
    def record_events(self, request: m.DatasetRef) -> m.Done:
        """Add to the receipt beside the bag what came after it: registration, the last status, deletion of sources."""
        self._lts.record_events(pid_path(request.pid), request.events, attempt_name(), Beat())
        return m.Done(what=f"{len(request.events)} events")

    @activity.defn(name="quarantine-datablock", no_thread_cancel_exception=True)
    @told
    def quarantine_datablock(self, request: m.DatablockRef) -> m.Done:
        """Move a datablock that did not verify, and its manifest, out of the dataset's directory, unchanged."""
        beat, path = Beat(), pid_path(request.pid)
        # The manifest last: a datablock left without one would be removed as unverified.
        for name in (datablock_name(request.n, request.format), manifest_name(request.n)):
            self._lts.quarantine(path, f"data/{name}", "did not verify", attempt_name(), beat)
        return m.Done(what=f"datablock {request.n} is in quarantine")

    def _there(self, request: m.VerifyRequest, name: str) -> None:
        """Raises ``IntegrityMismatch`` if the datablock is gone: it is made anew."""
        if self._lts.size_of(pid_path(request.pid), name) is None:
            raise IntegrityMismatch(
                f"datablock {request.n} is not on the LTS any more",
                expected=name,
                found="nothing",
                next_step="it is made anew; see who else works on the LTS",
                dataset=request.pid,
                datablock=request.n,
                retryable=False,
            )

    def _staged(self, request: m.VerifyRequest) -> Chunks:
        """The bytes that were copied, for an LTS that cannot be read back."""
        key = self._keys(request).datablock(request.plan_id, request.n, request.format)

        def read() -> Iterator[memoryview]:
            entry = self._staging.head(key)
            if entry is None:
                expected = f"{request.packed_bytes} B"
                raise lost_object(key, expected, "nothing", request.pid, lost="datablock", datablock=request.n)
            return map(memoryview, self._staging.stream(key, size=entry.size, version=entry.version))

        return read

    def _on_lts(self, pid: str, n: int) -> bytes:
        """The manifest that lies beside datablock ``n``."""
        manifest = self._lts.get_small(pid_path(pid), f"data/{manifest_name(n)}")
        if manifest is None:
            raise IntegrityMismatch(
                f"datablock {n} has no manifest on the LTS any more",
                expected=f"data/{manifest_name(n)}",
                found="nothing",
                dataset=pid,
                datablock=n,
                retryable=False,
            )
        return manifest

    def _record(self, request: m.DatasetRef, n: int, manifest: bytes) -> DatablockRecord:
        """What verification noted of datablock ``n``, compared with its manifest and its size on the LTS."""
        reader = ManifestReader([manifest])
        footer, header = reader.read_footer(), reader.header
        size = self._lts.size_of(pid_path(request.pid), f"data/{datablock_name(n, request.format)}")
        ours = (request.pid, n, request.plan_id, request.format, footer.packed_bytes)
        if (header.pid, header.datablock, header.plan, header.format, size) != ours:
            raise IntegrityMismatch(
                f"datablock {n} on the LTS is not the one that verified",
                expected=f"plan {request.plan_id}, {footer.packed_bytes} B",
                found=f"plan {header.plan} of datablock {header.datablock}, {size or 0} B",
                next_step="see who changes the LTS, then submit the job again; nothing was registered",
                dataset=request.pid,
                datablock=n,
                retryable=False,
            )
        key = self._keys(request).verified(request.plan_id, n)
        proved = (
            *(n, request.plan_id, footer.size_bytes, footer.packed_bytes, footer.files, footer.sha256),
            *(hashlib.sha256(manifest).hexdigest(), len(manifest)),
        )
        found = "nothing"
        for _ in range(READS):
            if (data := self._staging.raw(key)) is None:
                continue
            record = DatablockRecord.read(data)
            if (
                record is not None
                and record.proved == proved
                and record.level in m.LEVELS
                and _are_events(record.events)
            ):
                return record
            found = f"{len(data)} B that do not say so"
        raise lost_object(
            key, "a record of the datablock on the LTS", found, request.pid, lost="verification", datablock=n
        )

    def _keys(self, request: m.DatablockRef | m.DatasetRef) -> StagingKeys:
        return StagingKeys(self._settings.staging.prefix, request.pid, request.run)

    def _promise(self, ref: m.DatablockRef) -> str:
        return f"{pid_path(ref.pid)}/{ref.n}"

    def _all(self, request: m.DatasetRef) -> range:
        return range(1, request.datablocks + 1)


def _are_events(listed: list[dict[str, Any]]) -> bool:
    try:
        return all(m.Event.model_validate(one) for one in listed)
    except ValidationError:
        return False


def attempt_name() -> str:
    """The name under which this attempt writes."""
    info = activity.info()
    return f"{str(info.workflow_run_id)[:8]}-{info.activity_id}-{info.attempt}"
