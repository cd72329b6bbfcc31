"""SciCat: reachable, our account, its clock, and each right that we need, without changing anything.

How a right is tried: SciCat's guards look at the caller before it looks at the body, and at the body before the record. So a
write of a record that does not exist, with a body that can never be accepted, is a 403 for who may not, and a 400 or a 404
for who may, and two reasons keep it from ever being done. What such a call cannot show is whether the right holds for the
records of *all* groups; that only an admin's does, and only an admin can read another group's origdatablocks, which is tried
by reading. A DELETE has no body that could stop it, so none is ever sent.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx

from archiver.catalogue import payloads, queries
from archiver.catalogue.client import SciCat
from archiver.catalogue.records import JobHead
from archiver.catalogue.session import Session, authorities, words
from cli.doctor.check import Check, Finding, fail, not_checked, ok, warn
from cli.doctor.clocks import ask, date_of
from cli.doctor.ground import Ground, now

NEVER_ACCEPTED = {"archiverDoctorProbe": True}
"""A property that no DTO of SciCat's knows: 400 for whoever may call at all."""
SAMPLE = 50
"""Newest datasets among which one of a foreign group is looked for."""
WAITING = timedelta(minutes=10)
REFUSED = (401, 403)
UNDONE = (400, 404, 422)


async def server(ground: Ground) -> Finding:
    settings = ground.settings.scicat
    # To read all authorities takes a tenth of a second, so only where they are asked.
    verify = authorities(settings.ca_file) if settings.url.scheme == "https" else False
    url = f"{str(settings.url).rstrip('/')}/api/v3/health"
    try:
        async with httpx.AsyncClient(timeout=ground.seconds / 2, trust_env=False, verify=verify) as http:
            answer = await ask(http, url, ground, "scicat")
    except httpx.HTTPError as error:
        return fail(f"{settings.url}: {type(error).__name__} {error}"[:300])
    if answer.status_code == 200:
        return ok(str(settings.url))
    found = f"{url} answers {answer.status_code}"
    return fail(found, "see SciCat's log: its database does not answer" if answer.status_code == 503 else "")


async def login(ground: Ground) -> Finding:
    quick = {"connect_timeout_seconds": ground.seconds / 2, "read_timeout_seconds": ground.seconds}
    ground.session = Session(ground.settings.scicat.model_copy(update=quick))
    account = await ground.session.whoami()
    listed = account.get("currentGroups")
    ground.groups = frozenset(str(group) for group in listed) if isinstance(listed, list) else frozenset()
    return ok(f"{account.get('username') or 'the token'}, of {', '.join(sorted(ground.groups)) or 'no group'}")


async def read_origdatablocks(ground: Ground) -> Finding:
    """Of another group's dataset, count and list: an account without the right is shown an empty list and a 403 count."""
    session = _session(ground)
    if ground.dataset is not None:
        status, body = await session.call("GET", f"/api/v4/datasets/{_segment(ground.dataset)}", allow=(*REFUSED, 404))
        if status != 200:
            return fail(f"dataset {ground.dataset}: status {status} {words(body)}"[:300], _groups("ADMIN_GROUPS"))
        found = [body]
    else:
        found = await _newest(session)
    foreign = [one for one in found if _is_foreign(one, ground)]
    if not foreign:
        why = "SciCat shows none" if not found else f"all {len(found)} newest are of our own groups"
        return not_checked(
            f"no dataset of another group to try it on: {why}", "try one:  archiver doctor --dataset PID"
        )
    for one in foreign:
        pid = str(one.get("pid"))
        path = f"/api/v3/datasets/{_segment(pid)}/origdatablocks/count"
        status, body = await session.call("GET", path, allow=(*REFUSED, 404))
        if status in REFUSED:
            return fail(f"of {pid} (group {one.get('ownerGroup')}): status {status} {words(body)}"[:300])
        count = body.get("count") if isinstance(body, dict) else None
        if status != 200 or not isinstance(count, int):
            return fail(f"of {pid}: status {status} {words(body)}"[:300], "see SciCat's log")
        if not count:
            continue
        query = queries.origdatablock_ids(pid, limit=1)
        _, listed = await session.call("GET", query.path, params=query.params, allow=REFUSED)
        if not isinstance(listed, list) or not listed:
            return fail(f"of {pid} (group {one.get('ownerGroup')}): {count} counted, none shown")
        ground.reads_all = True
        return ok(f"{count} of {pid}, which is of group {one.get('ownerGroup')}")
    return not_checked("no dataset of another group has origdatablocks", "try one:  archiver doctor --dataset PID")


async def read_datablocks(ground: Ground) -> Finding:
    session = _session(ground)
    found = [one for one in await _newest(session) if _is_foreign(one, ground)]
    if not found:
        return not_checked("no dataset of another group to try it on", "try one:  archiver doctor --dataset PID")
    pid = str(found[0].get("pid"))
    status, body = await session.call(
        "GET", f"/api/v3/datasets/{_segment(pid)}/datablocks/count", allow=(*REFUSED, 404)
    )
    if status == 200:
        return ok(f"of {pid}, which is of group {found[0].get('ownerGroup')}")
    return fail(f"of {pid}: status {status} {words(body)}"[:300])


async def lists(ground: Ground) -> Finding:
    """Each list that is ever asked for, by the functions that make it for whoever asks: SciCat refuses what it does not know."""
    archive, sweep = ground.settings.archive, ground.settings.sweep
    types = (archive.job_type, archive.retrieve_job_type)
    asked = queries.all_lists(types, sweep.submitted_code, payloads.IN_PROGRESS, payloads.STARTED)
    newest = [one for one in await _newest(_session(ground)) if isinstance(one.get("pid"), str)]
    if newest:
        asked += queries.lists_of_a_dataset(str(newest[0]["pid"]))
    refused: dict[str, str] = {}
    for who, query in asked:
        status, body = await _session(ground).call(
            "GET", query.path, params=query.params, allow=(*REFUSED, *UNDONE, 500, 501)
        )
        if status != 200 or not isinstance(body, list):
            refused.setdefault(who, f"{query.path}: status {status} {words(body)}")
    if refused:
        who, why = next(iter(refused.items()))
        more = f" (and what {len(refused) - 1} others ask for)" if len(refused) > 1 else ""
        return fail(f"SciCat refuses what {who} asks for{more}: {why}"[:400])
    left_out = "" if newest else "; SciCat shows no dataset to ask for blocks of"
    return ok(f"{len(asked)} lists, as the sweeps, the bridge and the steps ask for them{left_out}")


async def read_jobs(ground: Ground) -> Finding:
    """Also those that nobody took: a webhook tells once."""
    archive, code = ground.settings.archive, ground.settings.sweep.submitted_code
    found: list[JobHead] = []
    async with SciCat.over(_session(ground)) as scicat:
        for job_type in (archive.job_type, archive.retrieve_job_type):
            found += await scicat.jobs(job_type, code)
    made = [moment for head in found if (moment := _moment(head.created_at))]
    late = [moment for moment in made if now() - moment > WAITING]
    if late:
        oldest = (now() - min(late)).total_seconds()
        return warn(
            f"{len(late)} jobs were submitted more than 10 min ago and not taken, the oldest {oldest / 3600:.1f} h"
        )
    return ok(f"{len(found)} of types {archive.job_type} and {archive.retrieve_job_type} wait to be taken")


async def write(method: str, path: str, right: str, only_for: str, ground: Ground) -> Finding:
    """A call that SciCat's guards refuse to who may not, and its validation to all others."""
    path = path.format(pid=_segment(f"archiver-doctor/{uuid4()}"), job=str(uuid4()))
    status, body = await _session(ground).call(
        method, path, json_body=NEVER_ACCEPTED, allow=(*REFUSED, *UNDONE, 409, 412, 500)
    )
    if status in REFUSED:
        found = f"status {status} {words(body)}"[:300]
        return warn(f"{found}; only {only_for} needs it", _groups(right)) if only_for else fail(found, _groups(right))
    if status not in UNDONE:
        return fail(
            f"status {status} to a body that SciCat must refuse: {words(body)}"[:300], "SciCat 4.27 or later is needed"
        )
    if not ground.reads_all:
        return not_checked(
            "not refused, but whether it holds for every group cannot be seen without an admin's reading"
        )
    return ok(f"not refused (an unacceptable body gets {status}), and the account reads what only admins read")


async def delete(ground: Ground) -> Finding:
    return not_checked(
        "never tried: a DELETE is not sent to a catalogue for a test. Archiving removes no record; a person putting right may"
    )


async def clock(ground: Ground) -> Finding:
    return await date_of("scicat", ground)


async def _newest(session: Session) -> list[dict[str, Any]]:
    """The newest datasets; SciCat's pids tell no time, so by their creation in SciCat."""
    query = queries.newest_datasets(SAMPLE)
    status, body = await session.call("GET", query.path, params=query.params, allow=(*REFUSED, 400))
    return [one for one in body if isinstance(one, dict)] if status == 200 and isinstance(body, list) else []


def _is_foreign(dataset: Any, ground: Ground) -> bool:
    """Whether nothing but a right over all groups lets our account at its blocks."""
    if not isinstance(dataset, dict):
        return False
    shared = dataset.get("accessGroups")
    groups = {dataset.get("ownerGroup"), *(shared if isinstance(shared, list) else ())}
    return not groups & ground.groups and not dataset.get("isPublished")


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _session(ground: Ground) -> Session:
    assert ground.session is not None  # noqa: S101
    return ground.session


def _segment(text: str) -> str:
    return quote(text, safe="")


def _groups(right: str) -> str:
    return f"add a group of the archiver's account to SciCat's {right} (docs/scicat.md)"


def _right(name: str, method: str, path: str, right: str, only_for: str = "") -> Check:
    return Check(
        f"scicat {name}",
        f"{method} {path.replace('{pid}', '(no dataset)').replace('{job}', '(no job)')} with a body that SciCat must refuse: "
        "403 without the right, 400 or 404 with it; that it holds for all groups is told by scicat read origdatablocks",
        _groups(right),
        partial(write, method, path, right, only_for),
        ("scicat login",),
        ("scicat read origdatablocks",),
    )


LOGGED_IN = ("scicat login",)
CHECKS = (
    Check(
        "scicat server",
        "GET /api/v3/health says that it and its database are up",
        "start SciCat, or correct scicat.url",
        server,
    ),
    Check(
        "scicat login",
        "logs in, and SciCat names our account",
        "check scicat.username and scicat.password, or renew scicat.token",
        login,
        ("scicat server",),
    ),
    Check(
        "scicat clock",
        "the Date of its answers, against this machine's",
        "let NTP set the clocks of both machines",
        clock,
        ("scicat server",),
    ),
    Check(
        "scicat read origdatablocks",
        "counts and lists those of a dataset of a foreign group (given by --dataset, or one of the newest)",
        _groups("ADMIN_GROUPS"),
        read_origdatablocks,
        LOGGED_IN,
    ),
    Check(
        "scicat read datablocks",
        "counts those of a dataset of a foreign group",
        _groups("ADMIN_GROUPS"),
        read_datablocks,
        LOGGED_IN,
    ),
    Check(
        "scicat lists",
        "asks for every list that the sweeps, the bridge and the steps ask for, in each form, by the same code",
        "see docs/scicat.md for the versions that this archiver knows, and update it or SciCat; "
        "until then lost webhooks and terminated jobs are not taken up",
        lists,
        LOGGED_IN,
    ),
    Check(
        "scicat jobs",
        "lists submitted jobs; none waits longer than 10 minutes",
        "see that the bridge runs and that SciCat's jobConfig calls it; then  archiver sweep  starts them",
        read_jobs,
        (*LOGGED_IN, "scicat lists"),
    ),
    _right(
        "update lifecycle",
        "PATCH",
        "/api/v4/datasets/{pid}/datasetlifecycle",
        "ADMIN_GROUPS (or UPDATE_DATASET_LIFECYCLE_GROUPS)",
    ),
    _right("update dataset", "PATCH", "/api/v4/datasets/{pid}", "ADMIN_GROUPS"),
    _right("create datablock", "POST", "/api/v3/datablocks", "ADMIN_GROUPS (or CREATE_DATASET_PRIVILEGED_GROUPS)"),
    _right("update job", "PATCH", "/api/v4/jobs/{job}", "ADMIN_GROUPS (or UPDATE_JOB_PRIVILEGED_GROUPS)"),
    _right(
        "create job",
        "POST",
        "/api/v4/jobs",
        "ADMIN_GROUPS (or CREATE_JOB_PRIVILEGED_GROUPS)",
        "the command archiver archive",
    ),
    Check(
        "scicat delete datablock",
        "never tried, because only a real DELETE would tell; archiving itself needs none",
        _groups("DELETE_GROUPS"),
        delete,
    ),
)
