"""Every list that we ask SciCat for: one function for each, and nobody else writes a filter.

SciCat answers 400 to a filter that names a property which the list does not know, sorts one list by the top-level ``sort``
and another by ``limits.sort``, and leaves out ``_id`` unless ``fields`` names it. So both sorts are sent, and ids are asked
for by both names. Whoever asks checks order and completeness, because SciCat and its proxies may honour neither sort nor
limit. ``doctor`` sends the same queries as the sweep and the bridge, made by the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PAGE = 100
"""Datasets, or ids of blocks, of one page."""
JOBS_AT_ONCE = 1000
"""Jobs of one page: an id, a status and two times each."""
BLOCKS_AT_ONCE = 2
"""Blocks read per call: each may be a few MB of JSON."""


@dataclass(frozen=True)
class Query:
    """A list of SciCat's and the filter that is put to it."""

    path: str
    filter: dict[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> dict[str, str]:
        """As the request carries it."""
        return {"filter": json.dumps(self.filter)}


def jobs(job_type: str, status_code: str, *, after: str = "", until: str = "", limit: int = JOBS_AT_ONCE) -> Query:
    """Heads of the jobs of this type and status whose id is beyond ``after`` and not beyond ``until``, by id.

    ``skip`` works in no version, and jobs change their status while pages are read: so pages go on from an id.
    """
    where = {"type": job_type, "statusCode": status_code, **_between("id", after, until)}
    fields = ["id", "_id", "type", "statusCode", "createdAt", "updatedAt"]
    limits = {"limit": limit, "sort": {"id": "asc"}}
    return Query("/api/v4/jobs", {"where": where, "fields": fields, "limits": limits, "sort": {"id": 1}})


def some_jobs(job_ids: Sequence[str]) -> Query:
    """These jobs, whole."""
    return Query("/api/v4/jobs", {"where": {"id": {"$in": list(job_ids)}}, "limits": {"limit": len(job_ids)}})


def pids(archive_status: str, *, after: str = "", until: str = "", limit: int = PAGE) -> Query:
    """Pids of the datasets with this archiveStatusMessage beyond ``after`` and not beyond ``until``, by pid."""
    where = {"datasetlifecycle.archiveStatusMessage": archive_status, **_between("pid", after, until)}
    limits = {"limit": limit, "skip": 0, "sort": {"pid": "asc"}}
    return Query("/api/v4/datasets", {"where": where, "fields": ["pid"], "limits": limits})


def storage_locations(pids: Sequence[str]) -> Query:
    """The lifecycles of these datasets, at most ``PAGE``: they stand in the URL."""
    limits = {"limit": len(pids), "skip": 0}
    return Query(
        "/api/v4/datasets",
        {"where": {"pid": {"$in": list(pids)}}, "fields": ["pid", "datasetlifecycle"], "limits": limits},
    )


def newest_datasets(limit: int) -> Query:
    """The datasets that came last, with their groups; SciCat's pids tell no time, so by their creation in SciCat."""
    limits = {"limit": limit, "skip": 0, "sort": {"createdAt": "desc"}}
    return Query("/api/v4/datasets", {"fields": ["pid", "ownerGroup", "accessGroups", "isPublished"], "limits": limits})


def origdatablock_ids(pid: str, *, skip: int = 0, limit: int = PAGE) -> Query:
    """Ids of a dataset's origdatablocks, from the ``skip``th on: a list without limits stops at 10 without a word."""
    limits = {"limit": limit, "skip": skip, "sort": {"_id": "asc"}}
    return Query("/api/v4/origdatablocks", {"where": {"datasetId": pid}, "fields": ["_id"], "limits": limits})


def origdatablocks(pid: str, ids: Sequence[str]) -> Query:
    """These origdatablocks of a dataset, whole."""
    where = {"datasetId": pid, "_id": {"$in": list(ids)}}
    return Query("/api/v4/origdatablocks", {"where": where, "limits": {"limit": len(ids), "skip": 0}})


def datablocks(pid: str, *, skip: int = 0, limit: int = BLOCKS_AT_ONCE) -> Query:
    """A dataset's datablocks from the ``skip``th on, whole; v4 has none."""
    limits = {"limit": limit, "skip": skip, "order": "_id:asc"}
    return Query("/api/v3/datablocks", {"where": {"datasetId": pid}, "limits": limits})


def datablocks_of_archive_id(archive_id: str) -> Query:
    """The datablocks with this archiveId: one or none."""
    return Query("/api/v3/datablocks", {"where": {"archiveId": archive_id}, "limits": {"limit": 2}})


def all_lists(job_types: Sequence[str], submitted: str, in_progress: str, started: str) -> list[tuple[str, Query]]:
    """Every list that is asked for without a dataset in hand, with who asks: small, and in each form that is ever sent."""
    asked: list[tuple[str, Query]] = []
    for bounds in ({}, {"after": "0"}, {"after": "0", "until": "f"}):
        for job_type in job_types:
            for code in (submitted, in_progress):
                asked.append((f"the sweep for jobs ({job_type}, {code})", jobs(job_type, code, limit=1, **bounds)))
        asked.append(("the sweep for leftovers", pids(started, limit=1, **bounds)))
    asked.append(("the bridge, and the sweep for leftovers", some_jobs(["00000000-0000-4000-8000-000000000000"])))
    asked.append(("the bridge, and the sweep for leftovers", storage_locations(["archiver-doctor/none"])))
    return asked


def lists_of_a_dataset(pid: str) -> list[tuple[str, Query]]:
    """Every list that is asked for about one dataset, with who asks."""
    return [
        ("archiving", origdatablock_ids(pid, limit=1)),
        ("archiving", origdatablocks(pid, ["archiver-doctor-none"])),
        ("archiving and retrieval", datablocks(pid, limit=1)),
        ("archiving", datablocks_of_archive_id(f"{pid}/archiver-doctor/none")),
    ]


def _between(key: str, after: str, until: str) -> dict[str, Any]:
    bounds = {**({"$gt": after} if after else {}), **({"$lte": until} if until else {})}
    return {key: bounds} if bounds else {}
