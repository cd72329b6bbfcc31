"""Which activities are served on which queue, with what they need: clients, locks, threads, slots."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from activities.catalogue import CatalogueActivities
from activities.delete import DeleteActivities
from activities.groups import LTS_QUEUES
from activities.late_writes import LateWrites
from activities.lts import LtsActivities
from activities.pack import PackActivities
from activities.retrieve_catalogue import RetrieveCatalogue
from activities.retrieve_lts import RetrieveLts
from activities.sweep import JobSweep, LtsSweep, StagingSweep
from archiver.catalogue.client import SciCat
from archiver.errors import CatalogueFault, StagingFault
from archiver.settings import Settings
from archiver.storage.lock import ExclusiveLock
from archiver.storage.objects import Bucket
from archiver.storage.open import open_lts

LOGIN_SECONDS = 20.0

logger = logging.getLogger("archiver.worker")


async def _log_in(scicat: SciCat) -> None:
    """An account that SciCat refuses is told now, not by every job. A SciCat that does not answer is the jobs' to wait for.

    Raises ``CatalogueFault`` if it refuses our account, ``SettingsInvalid`` if there is none.
    """
    try:
        await asyncio.wait_for(scicat.whoami(), LOGIN_SECONDS)
    except CatalogueFault as fault:
        if not fault.retryable:
            raise
        logger.warning("serving without SciCat, until it answers: %s", fault.one_line())
    except TimeoutError:
        logger.warning("serving without SciCat, which gave no answer in %.0f s", LOGIN_SECONDS)


@dataclass(frozen=True)
class ActivityQueue:
    """One task queue of this process."""

    name: str
    activities: list[Callable[..., Any]]
    slots: int
    executor: ThreadPoolExecutor


class Service:
    """The clients and locks of one worker process. Entering it takes the locks; leaving it gives everything back."""

    def __init__(self, settings: Settings, queues: list[str]) -> None:
        self._settings = settings
        self._queues = queues
        self._stack = AsyncExitStack()
        self.activity_queues: list[ActivityQueue] = []

    async def __aenter__(self) -> Service:
        """Raises ``LtsFault`` if a lock is held or the LTS has no marker, ``CatalogueFault`` if SciCat refuses us."""
        settings, queues, slots = self._settings, set(self._queues), self._settings.slots
        async with AsyncExitStack() as stack:
            staging = Bucket(settings.staging.bucket, settings.s3, StagingFault)
            if queues & set(LTS_QUEUES):
                lts = open_lts(settings)
                stack.callback(lts.close)
                lts.check_marker()
                lock_dir = settings.lock_dir()
                for queue in LTS_QUEUES:
                    if queue in queues:
                        stack.enter_context(ExclusiveLock(lock_dir / f"{queue}.lock"))
                on_lts = LtsActivities(settings, staging, lts)
                on_read = RetrieveLts(settings, staging, lts)
                self._serve("lts-space", slots.lts_space, [on_lts.wait_for_lts_space])
                self._serve("lts-copy", slots.lts_copy, [on_lts.copy_to_lts])
                self._serve("lts-verify", slots.lts_verify, [on_lts.verify_in_lts, on_read.check_datablock])
                self._serve("lts-read", slots.lts_read, [on_read.retrieve_datablock])
                on_sweep = LtsSweep(settings, lts)
                bag: list[Callable[..., Any]] = [
                    on_lts.survey_lts,
                    on_lts.publish_bag,
                    on_lts.record_events,
                    on_lts.roll_back_lts,
                    on_lts.quarantine_datablock,
                    on_sweep.find_on_lts,
                    on_sweep.find_bag,
                    on_read.plan_retrieve,
                    on_read.find_held,
                    on_read.recall_datablocks,
                ]
                self._serve("lts-bag", slots.lts_bag, bag)
            if queues & {"catalogue", "delete"}:
                scicat = await stack.enter_async_context(SciCat(settings.scicat))
                await _log_in(scicat)
                on_catalogue = CatalogueActivities(settings, staging, scicat)
                retrieving = RetrieveCatalogue(settings, staging, scicat)
                late_writes = LateWrites(settings, scicat, on_catalogue, retrieving)
                sweep = JobSweep(settings, scicat, late_writes)
                all_of_it = [*on_catalogue.all(), *retrieving.all(), *late_writes.all(), *sweep.all()]
                self._serve("catalogue", slots.catalogue, all_of_it)
            if "delete" in queues:
                on_delete = DeleteActivities(settings, staging, lts, scicat)
                self._serve("delete", slots.delete, [on_delete.delete_sources])
            if "pack" in queues:
                on_pack = PackActivities(settings, staging)
                activities: list[Callable[..., Any]] = [
                    on_pack.plan_dataset,
                    on_pack.pack_datablock,
                    on_pack.clean_staging,
                    StagingSweep(settings, staging).find_staged,
                ]
                self._serve("pack", slots.pack, activities)
            self._stack = stack.pop_all()
        return self

    def _serve(self, queue: str, slots: int, activities: list[Callable[..., Any]]) -> None:
        if queue not in self._queues:
            return
        executor = ThreadPoolExecutor(max_workers=slots, thread_name_prefix=queue)
        self.activity_queues.append(ActivityQueue(f"archiver-{queue}", activities, slots, executor))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for queue in self.activity_queues:
            queue.executor.shutdown(wait=False, cancel_futures=True)
        await self._stack.aclose()
