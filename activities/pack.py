"""Queue ``archiver-pack``: plan a dataset, pack a datablock into staging, clean staging up."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

from temporalio import activity

from activities.running import Beat, told
from archiver import model as m
from archiver.datablock.files import CatalogueFile, PlannedFile, read_lines
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.pack import pack
from archiver.datablock.plan import Plan, make_plan, merge_sorted
from archiver.errors import ChecksumDiffers, OwnFault, SourceChanged, StagingFault
from archiver.patience import patiently
from archiver.retrieval.keys import dead, works
from archiver.settings import Settings
from archiver.storage.landing import Landing, open_landing
from archiver.storage.objects import Bucket
from archiver.storage.staging import StagingKeys

SWEEP = "SweepDataset"
"""The workflow that clears what terminated runs left."""


class PackActivities:
    """Reads the landing zone, writes the staging bucket. Every method may be repeated (P6)."""

    def __init__(self, settings: Settings, staging: Bucket) -> None:
        self._settings = settings
        self._staging = staging
        self._buckets: dict[str, Bucket] = {}

    @activity.defn(name="plan-dataset", no_thread_cancel_exception=True)
    @told
    def plan_dataset(self, request: m.PlanRequest) -> m.PlanResult:
        """Compare the catalogue with the landing zone, cut datablocks, store the plan. One pass, constant memory.

        Raises the content errors of ``make_plan``.
        """
        beat = Beat()
        keys = self._keys(request.pid)
        landing = self._landing(request.source)
        limits = self._settings.datablock

        def runs() -> Iterator[Iterator[CatalogueFile]]:
            for k in range(request.runs):
                yield self._lines(keys.run(k), CatalogueFile)

        plan = make_plan(
            merge_sorted(runs()),
            # A listing that stands still is not a deaf step: a stop is heard within a second.
            patiently(
                landing.list(),
                lambda seconds: beat.note(f"{landing.where} has answered nothing for {seconds:.0f} s"),
                batch=500,
            ),
            pid=request.pid,
            limits=limits,
            surplus=self._settings.landing.surplus,
            sink=lambda n, chunks: self._staging.put_stream(keys.files(n), chunks),
            progress=beat,
        )
        self._staging.put(keys.plan, plan.to_json())
        return m.PlanResult(
            plan_id=plan.plan_id,
            format=plan.format,
            datablocks=plan.datablocks,
            files=plan.files,
            size_bytes=plan.size_bytes,
            largest_bytes=plan.largest_bytes,
        )

    @activity.defn(name="pack-datablock", no_thread_cancel_exception=True)
    @told
    def pack_datablock(self, request: m.PackRequest) -> m.PackResult:
        """Landing zone -> tar -> gzip -> staging, in one pass; its manifest then makes the staged datablock count.

        Raises ``SourceChanged``, ``ChecksumDiffers``, ``SourceFault``, ``StagingFault``.
        """
        keys = self._keys(request.pid)
        datablock_key = keys.datablock(request.plan_id, request.n, request.format)
        manifest_key = keys.manifest(request.plan_id, request.n)
        if not request.fresh and (done := self._staged(datablock_key, manifest_key)) is not None:
            return done
        plan = Plan.from_json(self._needed(keys.plan))
        if plan.plan_id != request.plan_id:
            raise OwnFault(
                f"the plan in staging is not the one of this run (dataset {request.pid})",
                expected=f"plan {request.plan_id}",
                found=f"plan {plan.plan_id}",
                next_step="submit the job again",
                retryable=False,
            )
        beat = Beat(plan.largest_bytes)
        if activity.info().attempt > 1:
            self._staging.abort_uploads(datablock_key)
        limits = self._settings.datablock
        files = self._landing(request.source).fetch(
            self._lines(keys.files(request.n), PlannedFile),
            ahead_bytes=limits.fetch_bytes,
            ahead_objects=limits.fetch_objects,
            progress=beat,
        )
        packed = pack(files, plan=plan, n=request.n, progress=beat)
        try:
            # An upload has at most 10,000 parts, so those of one very large file must be larger.
            self._staging.put_stream(
                datablock_key, iter(packed), size_hint=plan.largest_bytes, ours=beat.advance, waiting=beat.note
            )
        except (ChecksumDiffers, SourceChanged) as error:
            # Once it may be the network's doing: the source is to blame only if it differs again.
            error.retryable = activity.info().attempt == 1
            raise
        self._staging.put(manifest_key, packed.manifest)
        result = packed.result
        return m.PackResult(
            size_bytes=result.size_bytes,
            packed_bytes=result.packed_bytes,
            files=result.files,
            sha256=result.sha256,
            manifest_sha256=hashlib.sha256(packed.manifest).hexdigest(),
        )

    @activity.defn(name="clean-staging", no_thread_cancel_exception=True)
    @told
    def clean_staging(self, request: m.PidRequest) -> m.Done:
        """Remove everything that is staged for the dataset, and abort its uploads. Sources and LTS are elsewhere.

        For a sweep, which saw that nothing of the dataset runs, also what retrievals left whose workflows were terminated.
        """
        beat = Beat()
        prefix = self._keys(request.pid).dataset
        uploads = self._staging.abort_uploads(prefix)
        beat.note("removing staged objects")
        keys = [entry.key for entry in self._staging.list(prefix)]
        self._staging.delete(keys)
        what = f"{len(keys)} staged objects removed, {uploads} uploads aborted"
        if activity.info().workflow_type == SWEEP:
            # By age: a retrieval may begin at any moment.
            before = time.time() - self._settings.sweep.leftovers_after_hours * 3600
            listed = self._staging.list(works(self._settings.staging.prefix, request.pid))
            left = dead(((entry.key, entry.modified) for entry in listed), before)
            self._staging.delete(left)
            what += f", {len(left)} objects of retrievals removed" if left else ""
        return m.Done(what=what)

    def _staged(self, datablock_key: str, manifest_key: str) -> m.PackResult | None:
        """The result of an earlier attempt that finished, if what it staged is there in full."""
        manifest = self._staging.get(manifest_key)
        if manifest is None:
            return None
        footer = ManifestReader(iter([manifest])).read_footer()
        entry = self._staging.head(datablock_key)
        if entry is None or entry.size != footer.packed_bytes:
            return None
        return m.PackResult(
            size_bytes=footer.size_bytes,
            packed_bytes=footer.packed_bytes,
            files=footer.files,
            sha256=footer.sha256,
            manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        )

    def _keys(self, pid: str) -> StagingKeys:
        return StagingKeys(self._settings.staging.prefix, pid)

    def _landing(self, source: dict[str, str]) -> Landing:
        return open_landing(self._settings.landing, self._settings.s3, source, buckets=self._buckets)

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

    def _lines(self, key: str, kind: type) -> Iterator:  # type: ignore[type-arg]
        entry = self._staging.head(key)
        if entry is None:
            self._needed(key)
            raise StagingFault(f"object {key} vanished from the staging bucket while it was read")
        yield from read_lines(self._staging.stream(key, size=entry.size, version=entry.version), kind)
