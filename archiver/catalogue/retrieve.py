"""What becomes of a SciCat job that brings data back: which files of which datasets go where, or a refusal in words.

The counterpart of ``admission`` for retrieve jobs; what both kinds of job carry is decided there. A name in ``files`` is one of
the dataset's own list, as SciCat itself demands: relative, whole, and exactly so. A name with a leading ``/`` or
with the dataset's source folder in front is not guessed at: in two datasets it can mean two files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from archiver.catalogue.admission import (
    Admission,
    admit,
    refuse_foreign_type,
    refuse_no_datasets,
    refuse_wishes,
    start_time,
)
from archiver.catalogue.records import Job
from archiver.datablock.files import check_path
from archiver.errors import HostilePath, Refused
from archiver.retrieval.wire import Destination
from archiver.settings import RetrievalSettings, Settings

ALWAYS_SENT = "/archive/retrieve"
"""A ``destinationPath`` that SciCat's web UI and scicat-cli put into every retrieve job, whatever the user chose: it counts only
where nothing else is said, and then as the settings map it."""
FIRST = 10
"""Names that a message tells."""
MAX_TOLD = 60
"""Characters of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveAdmission(Admission):
    """A retrieve job that is to be done: each dataset once, with the names of the wanted files (none: all of them)."""

    entries: list[tuple[str, tuple[str, ...]]]
    destination: Destination


def admit_retrieve(job: Job, settings: Settings, *, now: datetime, pids: list[str] | None = None) -> RetrieveAdmission:
    """Decide on a retrieve job from its own record; of ``pids``, where an operator gave some, only these datasets.

    Raises ``ForeignJob`` if it is another program's (nothing of it is ours to write), ``Refused`` if it is ours and asks for what
    is not done here. Names are not looked at: they are their dataset's affair (P7, ``refuse_hostile_names``).
    """
    archive = settings.archive
    refuse_foreign_type(job, archive, archive.retrieve_job_type)
    refuse_wishes(job, archive)
    if pids is None:
        refuse_no_datasets(job)
    wanted = _wanted(job)
    entries = [(pid, wanted.get(pid, ())) for pid in dict.fromkeys(wanted if pids is None else pids)]
    return RetrieveAdmission(
        pids=[pid for pid, _ in entries],
        not_before=start_time(job, now),
        entries=entries,
        destination=destination_of(job, settings.retrieval),
    )


def admit_any(job: Job, settings: Settings, *, now: datetime) -> Admission:
    """Decide on a job of either type. Raises as ``admission.admit`` and ``admit_retrieve`` do."""
    if is_retrieval(job.type, settings):
        return admit_retrieve(job, settings, now=now)
    refuse_foreign_type(job, settings.archive)
    return admit(job, settings.archive, now=now)


def is_retrieval(job_type: str, settings: Settings) -> bool:
    """Whether jobs of this type bring data back."""
    return job_type == settings.archive.retrieve_job_type


def _wanted(job: Job) -> dict[str, tuple[str, ...]]:
    """The names wanted of each dataset; a dataset listed twice is wanted once, whole if one of its entries says so."""
    names: dict[str, dict[str, None]] = {}
    whole: set[str] = set()
    for entry in job.datasets:
        names.setdefault(entry.pid, {}).update(dict.fromkeys(entry.files))
        if not entry.files:
            whole.add(entry.pid)
    return {pid: () if pid in whole else tuple(some) for pid, some in names.items()}


def refuse_hostile_names(job_id: str, pid: str, names: Iterable[str]) -> None:
    """Raises ``HostilePath`` naming the first of them and their number, if no dataset can have files of these names.

    Asked when the dataset is begun: the others of the job are retrieved all the same.
    """
    hostile = [name for name in names if not _can_be(name)]
    if hostile:
        told = ", ".join(ascii(name[:MAX_TOLD]) for name in hostile[:FIRST])
        raise HostilePath(
            f"job {job_id} lists {_number(len(hostile), 'name')} that no file of a dataset can have",
            expected="names as SciCat lists them: below the dataset, without a leading '/', '.', '..' or empty segments",
            found=told + (f" and {len(hostile) - FIRST} more" if len(hostile) > FIRST else ""),
            next_step="submit the job with the names that SciCat shows in the dataset's list of files",
            dataset=pid,
        )


def _can_be(path: str) -> bool:
    try:
        check_path(path)
    except HostilePath:
        return False
    return True


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count != 1 else ''}"


# --- where to ----------------------------------------------------------------------------------------------------------------


def destination_of(job: Job, retrieval: RetrievalSettings) -> Destination:
    """Where the job wants its data, in any of the three spellings. Raises ``Refused`` if that is not to be had."""
    option, chosen, path = (_text(job, name) for name in ("option", "retrieveDestination", "destinationPath"))
    location = _text(job, "location")
    said: dict[str, Destination] = {}
    if option:
        said["option"] = _resolve(job, option, retrieval, location)
    elif location:
        said["location"] = _resolve(job, location, retrieval)
    if chosen:
        said["retrieveDestination"] = _resolve(job, chosen, retrieval)
    if path and not (said and path.rstrip("/") == ALWAYS_SENT):
        always = path.rstrip("/") == ALWAYS_SENT and path not in retrieval.destinations
        said["destinationPath"] = _resolve(job, ALWAYS_SENT if always else path, retrieval)
    if len(set(said.values())) > 1:
        raise Refused(
            f"job {job.id} names more than one destination",
            expected="one, in jobParams.option, retrieveDestination or destinationPath",
            found=", ".join(f"{name} {str(job.params[name])[:MAX_TOLD]!r}" for name in said),
            next_step="submit the job with one of them",
        )
    return next(iter(said.values()), None) or _target(retrieval.default_destination, retrieval)


def _text(job: Job, name: str) -> str:
    value = job.params.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _refused(job, f"jobParams.{name} that is no text", "a text", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _refused(job, f"jobParams.{name} that is no text", "a text", ascii(value)) from None
    return value.strip()


def _resolve(job: Job, value: str, retrieval: RetrievalSettings, location: str = "") -> Destination:
    """The destination that a value of a job means; ``location`` is the place in it that the user wrote."""
    known = retrieval.destinations.get(value)
    if known is None and value == ALWAYS_SENT:
        known = retrieval.default_destination
    if known is None and retrieval.root_of(value) is None:
        places = [*retrieval.destinations, *(f"{root}/..." for root in retrieval.roots)]
        raise _refused(
            job,
            "a destination that is not known here",
            f"one of {', '.join(repr(one) for one in places[:FIRST])}" if places else "none: data is given as links",
            value,
        )
    target = _target(known if known is not None else value, retrieval)
    if location:
        if target.kind != "directory":
            raise _refused(job, f"a location, and destination {value[:MAX_TOLD]!r} has links only", "none", location)
        base = f"{target.root}/{target.path}".rstrip("/")
        full = location if location.startswith("/") else f"{base}/{location}"
        if full.rstrip("/") != base and not full.startswith(f"{base}/"):
            raise _refused(job, f"a location outside of destination {value[:MAX_TOLD]!r}", f"{base}/...", location)
        target = _target(full, retrieval)
    if target.path:
        try:
            check_path(target.path)
        except HostilePath:
            raise _refused(
                job, "a destination that is no plain path", "no '.', '..' or empty segments", value
            ) from None
    return target


def _target(value: str, retrieval: RetrievalSettings) -> Destination:
    if value == "files":
        return Destination(kind="files")
    if value == "datablocks":
        return Destination(kind="datablocks")
    root, path = retrieval.root_of(value) or ("", "")
    return Destination(kind="directory", root=root, path=path)


def _refused(job: Job, what: str, expected: str, found: object) -> Refused:
    return Refused(
        f"job {job.id} has {what}",
        expected=expected,
        found=repr(found)[:100],
        next_step="submit the job with another destination, or with none; see retrieval.destinations and retrieval.roots",
    )
