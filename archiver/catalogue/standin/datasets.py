"""Datasets and lifecycles at the stand-in."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from starlette.requests import Request

from archiver.catalogue.standin.filters import only, page, query_of
from archiver.catalogue.standin.schema import (
    LIFECYCLE_DEFAULTS,
    NEEDED,
    NEEDED_RAW,
    PLURALS,
    Problem,
    check,
    check_lifecycle,
    dataset_fields,
    fresh_lifecycle,
)
from archiver.catalogue.standin.state import (
    StandIn,
    forbidden,
    merges,
    now,
)
from archiver.catalogue.standin.store import Document, matches

ZEROED = ("size", "numberOfFiles", "packedSize")


async def create_dataset(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """The pid is the server's, or the caller's where it may give one; a property not in the DTO is refused."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    v4 = request.path_params["version"] == "v4"
    more = {"pid": str, "type": str} | ({} if v4 else {"version": str, "investigator": str})
    kinds = dataset_fields(v4=v4) | more
    raw = NEEDED_RAW if not v4 and isinstance(body, dict) and body.get("type") == "raw" else ()
    needed = {name: kinds[name] for name in (*NEEDED[v4], *raw)}
    given = check(body, needed=needed, optional=kinds)
    if not account.admin and (given["ownerGroup"] not in account.groups or given.get("pid")):
        raise forbidden()
    for single, plural in PLURALS.items():
        if single in given:
            given[plural] = [given.pop(single)]
    if given.get("datasetlifecycle"):
        check_lifecycle(given["datasetlifecycle"])
    pid = str(given.get("pid") or f"{app.settings.pid_prefix}/{uuid4()}")
    dataset = {
        "accessGroups": [],
        "numberOfFiles": 0,
        "size": 0,
        "packedSize": 0,
        "numberOfFilesArchived": 0,
        "createdAt": now(),
        "createdBy": account.name,
        **given,
        "pid": pid,
        "_id": pid,
        "updatedAt": now(),
        "datasetlifecycle": fresh_lifecycle(now()) | (given.get("datasetlifecycle") or {}),
    }
    if not app.store.insert("datasets", pid, dataset):
        raise Problem(409, {"message": f"A dataset with pid {pid} exists", "statusCode": 409})
    return 201, shaped(dataset, request)


def shaped(dataset: Document, request: Request) -> Document:
    """As v4 has it, or with the single values of v3."""
    if request.path_params["version"] == "v4":
        return dataset
    singles = {single: dataset[plural][0] for single, plural in PLURALS.items() if dataset.get(plural)}
    return {key: value for key, value in dataset.items() if key not in PLURALS.values()} | singles


def dataset_or_404(app: StandIn, request: Request, kind: str = "datasets") -> Document:
    """A dataset the caller may read, or whose blocks of that kind he may read."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    dataset = app.store.get("datasets", request.path_params["pid"])
    if dataset is None:
        raise Problem(404, {"message": "Dataset not found", "error": "Not Found", "statusCode": 404})
    if not app.may_read(account, dataset, kind):
        raise forbidden()
    return dataset


async def get_dataset(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """In the shape of its version."""
    return 200, shaped(dataset_or_404(app, request), request)


async def delete_dataset(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """Its blocks and the jobs that name it stay; those jobs can never be updated again."""
    account = app.account(request)
    if account is None or not (account.admin or account.archivemanager) or not account.deletes:
        raise forbidden()
    dataset = dataset_or_404(app, request)
    app.store.delete("datasets", dataset["pid"])
    return 200, shaped(dataset, request)


async def list_datasets(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """Without rights 200 and an empty list on v3, 403 on v4."""
    account = app.account(request)
    v4 = request.path_params["version"] == "v4"
    if account is None and v4:
        raise forbidden()
    query = query_of(request, "datasets")
    named = query["where"].get("pid")
    pids = named.get("$in") if isinstance(named, dict) else None
    # As an index would have it: thousands of jobs each ask for theirs.
    all_of_them = app.store.all("datasets") if pids is None else [app.store.get("datasets", pid) for pid in set(pids)]
    found = [one for one in all_of_them if one and app.may_read(account, one) and matches(one, query["where"])]
    return 200, [only(shaped(one, request), query.get("fields")) for one in page(found, query, v4=v4)]


async def patch_dataset(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """With plain JSON a datasetlifecycle given here replaces the whole, refilled with defaults.

    Until 5.2 every patch, an empty one too, sets those of the ``ZEROED`` counters to 0 that its body does not name.
    """
    dataset = _to_update(app, request)
    v4 = request.path_params["version"] == "v4"
    fields = check(body, needed={}, optional=dataset_fields(v4=v4))
    for single, plural in PLURALS.items():
        if single in fields:
            fields[plural] = [fields.pop(single)]
    if "datasetlifecycle" in fields:
        kept = dataset["datasetlifecycle"] if merges(request) and v4 else fresh_lifecycle(now())
        fields["datasetlifecycle"] = kept | check_lifecycle(fields["datasetlifecycle"])
    if app.settings.version != "master":
        fields = dict.fromkeys(ZEROED, 0) | fields
    dataset |= fields | {"updatedAt": now()}
    app.store.put("datasets", dataset["pid"], dataset)
    return 200, shaped(dataset, request)


def _to_update(app: StandIn, request: Request, *, lifecycle: bool = False) -> Document:
    """The dataset, if the caller may write to it. SciCat's guards come before all else."""
    account = app.account(request)
    dataset = app.store.get("datasets", request.path_params["pid"])
    if not app.may_update(account, dataset, lifecycle=lifecycle):
        raise forbidden()
    return dataset or dataset_or_404(app, request)


async def patch_lifecycle(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """Any subset, flat; null is the default.

    It reads the whole dataset, merges, and writes the whole: what another call writes between is lost.
    """
    dataset = _to_update(app, request, lifecycle=True)
    lifecycle = dataset["datasetlifecycle"]
    for key, value in check_lifecycle(body).items():
        if value is None and key not in LIFECYCLE_DEFAULTS:
            lifecycle.pop(key, None)
        else:
            lifecycle[key] = LIFECYCLE_DEFAULTS[key] if value is None else value
    await asyncio.sleep(0)
    app.store.put("datasets", dataset["pid"], dataset | {"updatedAt": now()})
    return 200, lifecycle
