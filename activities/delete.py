"""Queue ``archiver-delete``: the only activity that removes source files, and only on a proof it makes itself (P1)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping

from temporalio import activity

from activities.catalogue import catalogue_contents
from activities.running import Beat, beating, in_thread, told_async
from archiver import model as m
from archiver.catalogue import payloads
from archiver.catalogue.client import SciCat
from archiver.datablock.bag import read_bag_info, read_manifest_sha256
from archiver.datablock.contents import Counting
from archiver.datablock.files import PlannedFile, read_lines
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.plan import Plan
from archiver.errors import IntegrityMismatch, Refused, StagedLost
from archiver.pids import pid_path
from archiver.settings import Settings
from archiver.storage.landing import open_landing
from archiver.storage.lts import Lts
from archiver.storage.objects import Bucket
from archiver.storage.staging import Staged, StagingKeys, archive_id, datablock_name, manifest_name


class DeleteActivities:
    """Removes archived source files. May be repeated: what is gone is gone, what changed is kept."""

    def __init__(self, settings: Settings, staging: Bucket, lts: Lts, scicat: SciCat) -> None:
        self._settings = settings
        self._staging = staging
        self._lts = lts
        self._scicat = scicat

    @activity.defn(name="delete-sources")
    @told_async
    async def delete_sources(self, request: m.DatasetRef) -> m.DeleteResult:
        """Prove from SciCat and the LTS that the dataset is archived, then remove exactly its files that are unchanged.

        Raises ``Refused`` if the settings forbid it or the proof fails; nothing was removed then.
        """
        if not self._settings.landing.delete_after_archive:
            raise Refused(
                "source files are not to be removed here",
                expected="landing.delete_after_archive = true where this queue is served",
                found="false",
            )
        await self._prove_registered(request)
        async with beating("comparing with the origdatablocks") as say:
            listed = await catalogue_contents(self._scicat, request.pid, say)
        return await in_thread(self._prove_and_delete, request, listed, Beat(loop=asyncio.get_running_loop()))

    async def _prove_registered(self, request: m.DatasetRef) -> None:
        dataset = await self._scicat.dataset(request.pid)
        status = dataset.lifecycle.archive_status_message if dataset else "no such dataset"
        if dataset is None or not dataset.lifecycle.retrievable or status != payloads.ARCHIVED:
            raise self._no_proof(request, f"SciCat says {payloads.ARCHIVED}", status or "nothing")
        registered = {block.archive_id for block in await self._scicat.datablocks(request.pid)}
        for n in range(1, request.datablocks + 1):
            wanted = archive_id(request.pid, n, request.format)
            if wanted not in registered:
                raise self._no_proof(request, f"datablock {wanted} registered in SciCat", "no record of it")

    def _prove_and_delete(self, request: m.DatasetRef, listed: m.Contents, beat: Beat) -> m.DeleteResult:
        sums = read_manifest_sha256(self._small(request, "manifest-sha256.txt"))
        info = read_bag_info(self._small(request, "bag-info.txt"))
        level = info.get("Archiver-Verification-Level", "")
        least = self._settings.landing.delete_least_level
        if level not in m.LEVELS or m.LEVELS.index(level) < m.LEVELS.index(least):
            raise self._no_proof(request, f"verification level {least} or better", level or "none")
        if info.get("Archiver-Plan") != request.plan_id:
            raise self._no_proof(request, f"a bag of plan {request.plan_id}", info.get("Archiver-Plan") or "none")
        if sums.keys() != {f"data/{name}" for n in self._all(request) for name in _names(n, request.format)}:
            raise self._no_proof(request, f"a bag of {request.datablocks} datablocks", f"{len(sums)} payload files")
        plan = self._plan(request)
        counting = Counting()
        for n in self._all(request):
            self._proved(request, n, sums, counting)
            self._planned(request, plan, n)
        if not counting.contents.same(listed):
            found = counting.contents.in_words()
            raise self._no_proof(request, f"manifests of the {listed.in_words()} that SciCat lists", found)
        deleted = kept = 0
        for n in self._all(request):
            archived = self._proved(request, n, sums, Counting())
            planned = (
                (entry, archived[entry.path][1])
                for entry in self._planned(request, plan, n)
                if archived.get(entry.path, (-1, ""))[0] == entry.size
            )
            landing = open_landing(self._settings.landing, self._settings.s3, request.source)
            removed = landing.delete(planned, beat)
            deleted, kept = deleted + removed, kept + len(archived) - removed
        return m.DeleteResult(files=deleted, kept=kept)

    def _proved(
        self, request: m.DatasetRef, n: int, sums: Mapping[str, str], counting: Counting
    ) -> dict[str, tuple[int, str]]:
        """Path, size and SHA-256 of the files of datablock ``n``, by a manifest and a datablock that are the bag's. Counts."""
        name = datablock_name(n, request.format)
        manifest = self._small(request, f"data/{manifest_name(n)}")
        found = hashlib.sha256(manifest).hexdigest()
        if found != sums[f"data/{manifest_name(n)}"]:
            raise self._no_proof(request, f"manifest {n} with the bag's SHA-256", found)
        footer = ManifestReader(iter([manifest])).read_footer()
        size = self._lts.size_of(pid_path(request.pid), f"data/{name}")
        if size != footer.packed_bytes or footer.sha256 != sums[f"data/{name}"]:
            raise self._no_proof(request, f"datablock {n} of {footer.packed_bytes} bytes", f"{size} bytes")
        files = {}
        for entry in ManifestReader(iter([manifest])).files():
            counting.add(entry)
            files[entry.path] = (entry.size, entry.sha256)
        return files

    def _plan(self, request: m.DatasetRef) -> Plan:
        """The plan by which this run read the sources, from staging, by the digest that the run kept of it."""
        try:
            return Plan.from_json(self._staged(request).get("plan", request.plan_index))
        except StagedLost as error:
            raise self._no_proof(request, f"plan {request.plan_id} in staging", error.found or "nothing") from None

    def _planned(self, request: m.DatasetRef, plan: Plan, n: int) -> Iterator[PlannedFile]:
        """The files as they were planned, with the versions that were read."""
        try:
            data = self._staged(request).get("plan", plan.lists[n - 1])
        except StagedLost as error:
            found = error.found or "nothing"
            raise self._no_proof(request, f"the plan of datablock {n} in staging", found) from None
        return read_lines(iter([data]), PlannedFile)

    def _staged(self, request: m.DatasetRef) -> Staged:
        return Staged(self._staging, StagingKeys(self._settings.staging.prefix, request.pid, request.run))

    def _small(self, request: m.DatasetRef, name: str) -> bytes:
        data = self._lts.get_small(pid_path(request.pid), name)
        if data is None:
            raise self._no_proof(request, f"{name} on the LTS", "nothing")
        return data

    def _all(self, request: m.DatasetRef) -> range:
        return range(1, request.datablocks + 1)

    def _no_proof(self, request: m.DatasetRef, expected: str, found: str) -> IntegrityMismatch:
        return IntegrityMismatch(
            f"no proof that dataset {request.pid} is archived: its source files stay",
            expected=expected,
            found=found,
            next_step="archiver status and the LTS tell which; nothing was removed",
            dataset=request.pid,
            retryable=False,
        )


def _names(n: int, extension: str) -> tuple[str, str]:
    return datablock_name(n, extension), manifest_name(n)
