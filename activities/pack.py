"""Queue ``archiver-pack``: plan a dataset, pack a datablock into staging, clean staging up."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time

from temporalio import activity

from activities.connection import answering
from activities.running import Beat, in_thread, told, told_async
from archiver import model as m
from archiver.datablock.files import CatalogueFile, PlannedFile, read_lines
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.pack import pack
from archiver.datablock.plan import Plan, make_plan, merge_sorted
from archiver.errors import ChecksumDiffers, IntegrityMismatch, SourceChanged
from archiver.patience import patiently
from archiver.retrieval.keys import dead, works
from archiver.settings import Settings
from archiver.storage.landing import Landing, open_landing
from archiver.storage.objects import Bucket, OpenUpload
from archiver.storage.staging import Staged, StagingKeys

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
        staged = Staged(self._staging, self._keys(request))
        landing = self._landing(request.source)
        limits = self._settings.datablock
        sorted_lists: list[str] = json.loads(staged.get("listing", request.listing))
        plan = make_plan(
            merge_sorted(read_lines([staged.get("listing", one)], CatalogueFile) for one in sorted_lists),
            # A listing that stands still is not a deaf step: a stop is heard within a second.
            patiently(
                landing.list(),
                lambda seconds: beat.note(f"{landing.where} has answered nothing for {seconds:.0f} s"),
                batch=500,
            ),
            pid=request.pid,
            limits=limits,
            surplus=self._settings.landing.surplus,
            sink=lambda n, chunks: staged.put("plan", b"".join(chunks)),
            progress=beat,
            where=landing.where,
        )
        return m.PlanResult(
            plan_id=plan.plan_id,
            index=staged.put("plan", plan.to_json()),
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

        Raises ``SourceChanged`` and ``ChecksumDiffers`` if the source differs twice, ``SourceFault``, ``StagingFault``,
        ``StagedLost`` for a plan that cannot be read any more.
        """
        keys = self._keys(request)
        if not request.fresh and (done := self._staged(keys, request)) is not None:
            return done
        staged = Staged(self._staging, keys)
        plan = Plan.from_json(staged.get("plan", request.plan_index))
        listed = staged.get("plan", plan.lists[request.n - 1])
        beat = Beat(plan.largest_bytes)
        if activity.info().attempt > 1:
            self._staging.abort_uploads(keys.datablock(request.plan_id, request.n, request.format))
        for reading in range(1, m.PACK_READS + 1):
            try:
                return self._pack(request, plan, listed, beat)
            except (ChecksumDiffers, SourceChanged):
                # Once it may be the network's doing: the source is to blame only if it differs again.
                if reading == m.PACK_READS:
                    raise
                beat.note(f"datablock {request.n} is read again: a source file differs")
        raise AssertionError

    def _pack(self, request: m.PackRequest, plan: Plan, listed: bytes, beat: Beat) -> m.PackResult:
        keys, limits = self._keys(request), self._settings.datablock
        files = self._landing(request.source).fetch(
            read_lines([listed], PlannedFile),
            ahead_bytes=limits.fetch_bytes,
            ahead_objects=limits.fetch_objects,
            progress=beat,
        )
        packed = pack(files, plan=plan, n=request.n, progress=beat)
        # An upload has at most 10,000 parts, so those of one very large file must be larger.
        self._staging.put_stream(
            keys.datablock(request.plan_id, request.n, request.format),
            iter(packed),
            size_hint=plan.largest_bytes,
            ours=beat.advance,
            waiting=beat.note,
        )
        self._staging.put(keys.manifest(request.plan_id, request.n), packed.manifest)
        result = packed.result
        return m.PackResult(
            size_bytes=result.size_bytes,
            packed_bytes=result.packed_bytes,
            files=result.files,
            sha256=result.sha256,
            manifest_sha256=hashlib.sha256(packed.manifest).hexdigest(),
        )

    @activity.defn(name="clean-staging")
    @told_async
    async def clean_staging(self, request: m.PidRequest) -> m.Done:
        """Remove everything that is staged for the dataset, and abort its uploads. Sources and LTS are elsewhere.

        Only while the asking run is still the last of its workflow's: what was seen before that was asked is its own, or that
        of runs before it, which Temporal does not let run beside it. A late clean-up removes nothing, and what a late step of
        an ended run still stores, under that run's name, goes with the next clean-up.

        For a sweep, which saw that nothing of the dataset runs, also what retrievals left whose workflows were terminated.
        """
        beat = Beat(loop=asyncio.get_running_loop())
        prefix = StagingKeys(self._settings.staging.prefix, request.pid).dataset
        uploads = await in_thread(lambda: [*self._staging.open_uploads(prefix)])
        keys = await in_thread(lambda: [entry.key for entry in self._staging.list(prefix)])
        if not await _asker_is_last():
            return m.Done(what="nothing removed: a later run of the dataset has begun")
        beat.note("removing staged objects")
        await in_thread(self._remove, keys, uploads)
        what = f"{len(keys)} staged objects removed, {len(uploads)} uploads aborted"
        if activity.info().workflow_type == SWEEP:
            left = await in_thread(self._dead_retrievals, request.pid)
            await in_thread(self._staging.delete, left)
            what += f", {len(left)} objects of retrievals removed" if left else ""
        return m.Done(what=what)

    def _remove(self, keys: list[str], uploads: list[OpenUpload]) -> None:
        for upload in uploads:
            self._staging.abort_upload(upload.key, upload.upload_id)
        self._staging.delete(keys)

    def _dead_retrievals(self, pid: str) -> list[str]:
        # By age: a retrieval may begin at any moment.
        before = time.time() - self._settings.sweep.leftovers_after_hours * 3600
        listed = self._staging.list(works(self._settings.staging.prefix, pid))
        return [*dead(((entry.key, entry.modified) for entry in listed), before)]

    def _staged(self, keys: StagingKeys, request: m.PackRequest) -> m.PackResult | None:
        """The result of an earlier attempt that finished, if what it staged is there in full."""
        manifest = self._staging.raw(keys.manifest(request.plan_id, request.n))
        if manifest is None:
            return None
        try:
            reader = ManifestReader(iter([manifest]))
            footer = reader.read_footer()
        except IntegrityMismatch:
            return None
        entry = self._staging.head(keys.datablock(request.plan_id, request.n, request.format))
        ours = (request.pid, request.n, request.plan_id, request.format)
        if (reader.header.pid, reader.header.datablock, reader.header.plan, reader.header.format) != ours:
            return None
        if entry is None or entry.size != footer.packed_bytes:
            return None
        return m.PackResult(
            size_bytes=footer.size_bytes,
            packed_bytes=footer.packed_bytes,
            files=footer.files,
            sha256=footer.sha256,
            manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        )

    def _keys(self, request: m.PlanRequest | m.PackRequest) -> StagingKeys:
        return StagingKeys(self._settings.staging.prefix, request.pid, request.run)

    def _landing(self, source: dict[str, str]) -> Landing:
        return open_landing(self._settings.landing, self._settings.s3, source, buckets=self._buckets)


async def _asker_is_last() -> bool:
    """Whether no later run of the asking workflow has begun."""
    info = activity.info()
    with answering():
        described = await activity.client().get_workflow_handle(str(info.workflow_id)).describe()
    return described.run_id == info.workflow_run_id
