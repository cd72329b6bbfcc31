"""What becomes of a SciCat job: started at once, started later, or refused in words. Those that bring data back: ``retrieve``.

The one place that decides it: the bridge asks before it starts a workflow, and the workflow's first step asks again, so that a
job started by hand meets the same answer. What a job carries is honoured or refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from archiver.catalogue.records import Job
from archiver.errors import ForeignJob, Refused
from archiver.settings import ArchiveSettings

LATEST_START = timedelta(days=366)
"""An ``executionTime`` further off than this is taken for a mistake."""
COPIES = {"one": 1, "two": 2, "1": 1, "2": 2}
"""``tapeCopies`` as clients write it."""
NOT_YET = frozenset({"origDatablocksNotYetCreated", "filesNotYetAvailable", "filesNotReadyYet"})
"""archiveStatusMessage of datasets whose ingest is not finished."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A job that is to be done: its datasets, each once, in the job's order; ``not_before`` is None: at once."""

    pids: list[str]
    not_before: datetime | None = None

    def delay(self, now: datetime) -> timedelta | None:
        """How long to wait from ``now`` on; None if its time has come."""
        return self.not_before - now if self.not_before is not None and self.not_before > now else None


def admit(job: Job, archive: ArchiveSettings, *, now: datetime, pids: list[str] | None = None) -> Admission:
    """Decide on a job from its own record; ``pids``, where an operator gave some, instead of its list.

    Raises ``ForeignJob`` if it is another program's (nothing of it is ours to write), ``Refused`` if it is ours and asks for
    what is not done here (it must be told so).
    """
    refuse_foreign_type(job, archive, archive.job_type)
    refuse_wishes(job, archive)
    return Admission(_pids(job) if pids is None else list(dict.fromkeys(pids)), start_time(job, now))


def refuse_foreign_type(job: Job, archive: ArchiveSettings, *types: str) -> None:
    """Raises ``ForeignJob`` for a job of none of these types (ours, if none is given), or one that names another archive."""
    types = types or (archive.job_type, archive.retrieve_job_type)
    if job.type not in types:
        raise ForeignJob(
            f"job {job.id} is not {'an archive job' if types == (archive.job_type,) else 'a job that we take'}",
            expected=f"type {' or '.join(map(repr, types))}",
            found=f"type {job.type[:100]!r}",
            next_step="nothing was changed; see archive.job_type and archive.retrieve_job_type in the settings",
        )
    named = job.params.get("storageLocation")
    if isinstance(named, str) and is_foreign(named, archive):
        raise _for_another(f"job {job.id} is for another archive", named, archive)


def refuse_foreign_datasets(job: Job, locations: Mapping[str, str | None], archive: ArchiveSettings) -> None:
    """Raises ``ForeignJob`` if every dataset of the job lies in another archive's ``storageLocation`` (as in ``locations``).

    Where only some do, the job is ours, and those datasets are refused one by one (P7).
    """
    foreign = {pid: where for pid, where in locations.items() if is_foreign(where, archive)}
    if job.datasets and all(entry.pid in foreign for entry in job.datasets):
        first = job.datasets[0].pid
        raise _for_another(f"the datasets of job {job.id} belong to another archive", foreign[first], archive)


def is_foreign(location: str | None, archive: ArchiveSettings) -> bool:
    """Whether a dataset of this ``storageLocation`` is another archive's."""
    return location not in (None, "", archive.storage_location)


def _for_another(what: str, found: str | None, archive: ArchiveSettings) -> ForeignJob:
    return ForeignJob(
        what,
        expected=f"storageLocation empty or {archive.storage_location!r}",
        found=repr((found or "")[:100]),
        next_step="send it to that archive; nothing was changed",
    )


def refuse_wishes(job: Job, archive: ArchiveSettings) -> None:
    """Raises ``Refused`` if the job of either type carries what is not honoured here."""
    _refuse_copies(job, archive)
    _refuse_landing_zone(job)


def _refuse_copies(job: Job, archive: ArchiveSettings) -> None:
    asked = job.params.get("tapeCopies")
    if asked in (None, ""):
        return
    if COPIES.get(str(asked).strip().lower()) != archive.tape_copies:
        raise Refused(
            f"job {job.id} asks for tapeCopies {str(asked)[:40]!r}",
            expected=f"{archive.tape_copies}: what this archive keeps of each datablock (archive.tape_copies)",
            found=repr(str(asked)[:40]),
            next_step="submit the job without tapeCopies, or to an archive that keeps as many",
        )


def _refuse_landing_zone(job: Job) -> None:
    asked = [job.params.get("landingZone"), *(entry.landing_zone for entry in job.datasets)]
    if given := [one for one in asked if one]:
        raise Refused(
            f"job {job.id} names a landingZone",
            expected="none: where source files lie is the archive's setting (landing.url_template)",
            found=repr(given[0])[:100],
            next_step="put the files into the archive's landing zone, and submit the job without landingZone",
        )


def start_time(job: Job, now: datetime) -> datetime | None:
    """When the job is to be started, None: at once. Raises ``Refused`` for a time that cannot be kept."""
    asked: Any = job.execution_time
    if asked in (None, ""):
        return None
    try:
        when = datetime.fromisoformat(asked)
        if when.tzinfo is None:
            raise ValueError("without an offset")
        when = when.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise _wrong_time(job, "a time as in RFC 3339, such as 2026-12-24T18:00:00Z", asked) from None
    if when - now > LATEST_START:
        raise _wrong_time(job, f"a time within the next {LATEST_START.days} days", asked)
    return when


def _wrong_time(job: Job, expected: str, asked: object) -> Refused:
    return Refused(
        f"job {job.id} has an executionTime that cannot be kept",
        expected=expected,
        found=repr(asked)[:60],
        next_step="submit the job with another executionTime, or with none",
    )


def refuse_no_datasets(job: Job) -> None:
    """Raises ``Refused`` for a job without a dataset."""
    if not job.datasets:
        raise Refused(
            f"job {job.id} names no dataset",
            expected="jobParams.datasetList or datasetList",
            found="none" if not job.has_list else "an empty list",
            next_step="submit a job with a dataset list",
        )


def _pids(job: Job) -> list[str]:
    refuse_no_datasets(job)
    if partial := [entry.pid for entry in job.datasets if entry.files]:
        raise Refused(
            f"job {job.id} lists single files of dataset {partial[0]}",
            expected="an empty files list: a dataset is archived whole",
            found="a list of files",
            next_step="submit the job with files: []",
        )
    return list(dict.fromkeys(entry.pid for entry in job.datasets))
