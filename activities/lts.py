"""The LTS queues: wait for space (1), copy (2), verify (1), and the small work on bags and surveys."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from temporalio import activity

from activities.running import Beat, told
from archiver import model as m
from archiver.datablock.bag import bag_files, least_level
from archiver.datablock.events import agent, in_order, stamp
from archiver.datablock.record import DatablockRecord
from archiver.errors import IntegrityMismatch, LtsFault, OwnFault
from archiver.pids import pid_path
from archiver.settings import Settings
from archiver.storage.lts import Chunks, Lts
from archiver.storage.objects import Bucket
from archiver.storage.staging import StagingKeys, archive_id, datablock_name, manifest_name

READS = 3
"""Times a staged datablock is read before other bytes than were packed are taken for what lies there."""


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
        info = activity.info()
        key = self._keys(request.pid).datablock(request.plan_id, request.n, request.format)
        entry = self._staging.head(key)
        if entry is None or entry.size != request.packed_bytes:
            raise IntegrityMismatch(
                f"staged datablock {key} is not what was packed",
                expected=f"{request.packed_bytes} bytes",
                found="nothing" if entry is None else f"{entry.size} bytes",
                dataset=request.pid,
                datablock=request.n,
                retryable=False,
            )
        try:
            self._lts.copy_in(
                pid_path(request.pid),
                f"data/{datablock_name(request.n, request.format)}",
                self._staging.stream(key, size=entry.size, version=entry.version),
                size=request.packed_bytes,
                sha256=request.sha256,
                attempt=attempt_name(),
                promise=self._promise(request),
                progress=Beat(request.packed_bytes),
            )
        except IntegrityMismatch as error:
            # Other bytes may be the network's doing once or twice; after that the workflow has it packed anew.
            error.retryable = error.retryable and info.attempt < READS
            raise
        return m.CopyResult(archive_id=archive_id(request.pid, request.n, request.format))

    @activity.defn(name="verify-in-lts", no_thread_cancel_exception=True)
    @told
    def verify_in_lts(self, request: m.VerifyRequest) -> m.VerifyResult:
        """Read the datablock back in another process, past the page cache, to each file; then publish its manifest.

        Raises ``IntegrityMismatch`` (not retried: the workflow sets the datablock aside and makes it anew).
        """
        keys, path = self._keys(request.pid), pid_path(request.pid)
        name = f"data/{datablock_name(request.n, request.format)}"
        manifest_file = f"data/{manifest_name(request.n)}"
        if request.manifest_sha256:
            manifest = self._staging.get(keys.manifest(request.plan_id, request.n))
        else:
            manifest = self._lts.get_small(path, manifest_file)
        manifest_sha256 = hashlib.sha256(manifest or b"").hexdigest()
        if manifest is None or request.manifest_sha256 not in ("", manifest_sha256):
            raise IntegrityMismatch(
                f"the manifest of datablock {request.n} is not what was written",
                expected=f"SHA-256 {request.manifest_sha256 or 'of a manifest beside the datablock'}",
                found="no manifest" if manifest is None else f"SHA-256 {manifest_sha256}",
                dataset=request.pid,
                datablock=request.n,
                retryable=False,
            )
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
        if not request.manifest_sha256:
            self._staging.put(keys.manifest(request.plan_id, request.n), manifest)
        self._staging.put(keys.verified(request.plan_id, request.n), record.to_json())
        return m.VerifyResult(
            level=result.level,
            how_read=result.how_read,
            size_bytes=result.size_bytes,
            packed_bytes=result.packed_bytes,
            files=result.files,
            sha256=result.sha256,
            event=event,
        )

    @activity.defn(name="survey-lts", no_thread_cancel_exception=True)
    @told
    def survey_lts(self, request: m.SurveyRequest) -> m.SurveyResult:
        """What of this plan lies verified on the LTS; what an earlier, dead try left is removed or set aside."""
        survey = self._lts.survey(pid_path(request.pid), request.plan_id, request.datablocks, Beat())
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
        keys, path = self._keys(request.pid), pid_path(request.pid)
        records = [
            DatablockRecord.from_json(self._needed(keys.verified(request.plan_id, n))) for n in self._all(request)
        ]
        record = self._needed(keys.record)
        of_datablocks = [m.Event.model_validate(event) for record in records for event in record.events]
        self._lts.record_events(path, in_order([*request.events, *of_datablocks]), attempt_name(), beat)
        self._lts.publish_bag(
            path,
            bag_files(
                pid=request.pid,
                plan_id=request.plan_id,
                format=request.format,
                records=records,
                dataset=json.loads(record),
                bagging_date=datetime.now(UTC).date().isoformat(),
            ),
            plan_id=request.plan_id,
            progress=beat,
        )
        return m.BagResult(files=2 * len(records), level=least_level(records))

    @activity.defn(name="roll-back-lts", no_thread_cancel_exception=True)
    @told
    def roll_back_lts(self, request: m.DatasetRef) -> m.Done:
        """Remove partial and unverified files of the dataset and its promises. Verified datablocks stay (P3)."""
        beat, path = Beat(), pid_path(request.pid)
        removed = self._lts.remove_unverified(path)
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

    @activity.defn(name="condemn-datablock", no_thread_cancel_exception=True)
    @told
    def condemn_datablock(self, request: m.DatablockRef) -> m.Done:
        """Move a datablock that did not verify, and its manifest, out of the dataset's directory, unchanged."""
        beat, path = Beat(), pid_path(request.pid)
        # The manifest last: a datablock left without one would be removed as unverified.
        for name in (datablock_name(request.n, request.format), manifest_name(request.n)):
            self._lts.condemn(path, f"data/{name}", "did not verify", beat)
        return m.Done(what=f"datablock {request.n} set aside")

    def _staged(self, request: m.VerifyRequest) -> Chunks:
        """The bytes that were copied, for an LTS that cannot be read back."""
        key = self._keys(request.pid).datablock(request.plan_id, request.n, request.format)

        def read() -> Iterator[memoryview]:
            entry = self._staging.head(key)
            if entry is None:
                raise IntegrityMismatch(
                    f"staged datablock {key} is gone before it was verified",
                    expected=f"{request.packed_bytes} bytes",
                    found="nothing",
                    retryable=False,
                )
            return map(memoryview, self._staging.stream(key, size=entry.size, version=entry.version))

        return read

    def _keys(self, pid: str) -> StagingKeys:
        return StagingKeys(self._settings.staging.prefix, pid)

    def _promise(self, ref: m.DatablockRef) -> str:
        return f"{pid_path(ref.pid)}/{ref.n}"

    def _all(self, request: m.DatasetRef) -> range:
        return range(1, request.datablocks + 1)

    def _needed(self, key: str) -> bytes:
        data = self._staging.get(key)
        if data is None:
            raise OwnFault(
                f"object {key} is not in the staging bucket",
                expected="what an earlier step of this run stored there",
                found="nothing",
                next_step="see who removes objects from the staging bucket, then submit the job again",
                retryable=False,
            )
        return data


def attempt_name() -> str:
    """The name under which this attempt writes."""
    info = activity.info()
    return f"{str(info.workflow_run_id)[:8]}-{info.activity_id}-{info.attempt}"
