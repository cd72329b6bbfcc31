"""The stand-in's HTTP edge: which path does what, who may, and which trap is where (numbers: scicat-contract.md)."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from archiver.catalogue.standin.schema import (
    LIFECYCLE_DEFAULTS,
    NEEDED,
    NEEDED_RAW,
    PLURALS,
    Problem,
    bad,
    check,
    check_create_job,
    check_lifecycle,
    dataset_fields,
)
from archiver.catalogue.standin.store import Document, Raw, Store, matches, ordered

MAX_BODY = 16 * 2**20
NESTED_LIMIT = 100
V3_LIMIT = 100
V4_LIMIT = 10
EXACT = 2**53
"""Integers above it lose their last digits, as all numbers are doubles there (3.1)."""


@dataclass
class Account:
    """A user. ``admin``: ADMIN_GROUPS, ``archivemanager``: SciCat's classic role for archives (4), ``deletes``: DELETE_GROUPS.

    All others may read what is of their ``groups``.
    """

    name: str
    password: str
    groups: tuple[str, ...] = ()
    admin: bool = False
    archivemanager: bool = False
    deletes: bool = True


@dataclass
class Fault:
    """What befalls the next ``times`` calls that match: an error instead, or the call done and its answer lost.

    With ``hang_seconds`` the call's own answer comes late; with ``raw`` any bytes come instead of it.
    """

    method: str
    path: str
    times: int = 1
    status: int = 500
    body: Any = None
    execute: bool = False
    hang_seconds: float = 0
    raw: bytes | None = None


@dataclass
class StandInSettings:
    """How the stand-in is set up."""

    db: str = ":memory:"
    accounts: list[Account] = field(default_factory=lambda: [Account("archiver", "archiver", admin=True)])
    token_seconds: float = 3600
    pid_prefix: str = "20.500.12345"
    job_types: tuple[str, ...] = ("archive", "retrieve", "public")
    webhook_url: str = ""
    webhook_auth: str = ""


class StandIn:
    """State and behaviour; ``log``, ``faults`` and ``mails`` are for tests."""

    def __init__(self, settings: StandInSettings) -> None:
        self.settings = settings
        self.store = Store(settings.db)
        self.accounts = {account.name: account for account in settings.accounts}
        self.tokens: dict[str, tuple[str, float]] = {}
        self.log: list[tuple[str, str, int]] = []
        self.faults: list[Fault] = []
        self.mails: list[tuple[str, str]] = []
        """Job id and status code of every update: SciCat runs its update actions (mails) at each (1.2, 9.1)."""

    # --- who ------------------------------------------------------------------------------------------------------------

    def account(self, request: Request) -> Account | None:
        """A bad or expired token is not refused: the request is anonymous (4)."""
        header = request.headers.get("authorization", "")
        token = header.removeprefix("Bearer ") if header.startswith("Bearer ") else ""
        name, until = self.tokens.get(token, ("", 0.0))
        return self.accounts.get(name) if time.time() < until else None

    def may_read(self, account: Account | None, document: Document, kind: str = "datasets") -> bool:
        """Admins read all, archive managers all but origdatablocks, others what is of their groups, the anonymous nothing."""
        if account is None:
            return False
        groups = {document.get("ownerGroup"), *(document.get("accessGroups") or [])}
        manages = account.archivemanager and kind != "origdatablocks"
        return account.admin or manages or bool(groups & set(account.groups))

    def may_read_job(self, account: Account, job: Document) -> bool:
        """Those who may update any, and who made it or is of its group (1.7)."""
        mine = job["createdBy"] == account.name or job.get("ownerGroup") in account.groups
        return account.admin or account.archivemanager or mine

    def login(self, body: Any) -> tuple[int, Any]:
        """3 fields that matter, and 201 (4)."""
        account = self.accounts.get(str(body.get("username"))) if isinstance(body, dict) else None
        given = str(body.get("password")) if isinstance(body, dict) else ""
        if account is None or not secrets.compare_digest(account.password.encode(), given.encode("utf-8", "replace")):
            return 401, {"message": "Unauthorized", "statusCode": 401}
        token = secrets.token_urlsafe(32)
        self.tokens[token] = (account.name, time.time() + self.settings.token_seconds)
        life = self.settings.token_seconds
        return 201, {
            "access_token": token,
            "id": token,
            "expires_in": life,
            "ttl": life,
            "created": now(),
            "userId": account.name,
            "user": {"username": account.name},
        }


Handler = Callable[[StandIn, Request, Any], Awaitable[tuple[int, Any]]]


def now() -> str:
    """ISO 8601 UTC with milliseconds and Z (1.2)."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def object_id() -> str:
    """A 24-digit id like Mongo's: grows with time."""
    return f"{int(time.time()):08x}{secrets.token_hex(8)}"


def forbidden() -> Problem:
    """403, also for the anonymous: there is no 401 (4)."""
    return Problem(403, {"message": "Forbidden resource", "error": "Forbidden", "statusCode": 403})


def query_of(request: Request, *known: str) -> dict[str, Any]:
    """The ``filter`` parameter; of ``known`` top-level keys only, if any are given."""
    text = request.query_params.get("filter")
    try:
        query = json.loads(text) if text else {}
    except ValueError:
        query = None
    if not isinstance(query, dict) or not all(isinstance(query.get(key) or {}, dict) for key in ("where", "limits")):
        raise bad("Invalid JSON in filter")
    if known and (unknown := sorted(set(query) - set(known))):
        raise bad(f"property {unknown[0]} should not exist")
    return {"where": {}, "limits": {}} | {key: value for key, value in query.items() if value is not None}


def number(limits: dict[str, Any], key: str, default: int) -> int:
    """A limit."""
    value = limits.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise bad(f"{key} must be a number")
    return value


# --- jobs -----------------------------------------------------------------------------------------------------------------


async def create_job(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """1.2, 1.3, 1.5: v4 or v3 shape; the webhook is called inside, and its failure leaves the job behind (1.8)."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    v4 = request.path_params["version"] == "v4"
    fields = check_create_job(body, v4=v4, types=app.settings.job_types)
    listed = fields["jobParams"].get("datasetList", [])
    groups = []
    for entry in listed:
        dataset = app.store.get("datasets", entry["pid"])
        if dataset is None:
            raise Problem(400, {"status": 400, "message": f"Dataset with pid {entry['pid']} does not exist."})
        if not app.may_read(account, dataset):
            raise forbidden()
        groups.append(dataset["ownerGroup"])
        blocks = app.store.all("origdatablocks", entry["pid"])[:NESTED_LIMIT] if entry["files"] else []
        paths = {file.get("path") for block in blocks for file in block["dataFileList"]}
        if missing := [path for path in entry["files"] if path not in paths]:
            raise Problem(
                400, {"status": 400, "message": "At least one requested file could not be found.", "error": missing}
            )
    if not v4 and groups:
        fields.setdefault("ownerGroup", groups[0])
    check_owner(account, fields)
    if not account.admin and len({entry["pid"] for entry in listed}) < len(listed):
        raise forbidden()
    job_id = str(uuid4())
    job = {
        "id": job_id,
        "_id": job_id,
        "statusCode": "jobSubmitted",
        "statusMessage": "Job submitted.",
        "jobResultObject": {},
        "configVersion": "v1.0",
        "createdBy": account.name,
        "updatedBy": account.name,
        "createdAt": now(),
        "updatedAt": now(),
        "accessGroups": [],
        "isPublished": False,
        "__v": 0,
        **fields,
    }
    app.store.insert("jobs", job_id, job)
    if app.settings.webhook_url:
        await call_webhook(app, job)
    return 201, job if v4 else v3_job(job)


def check_owner(account: Account, fields: Document) -> None:
    """1.2: whose the job is. An admin must name someone too; a user names a group of his own."""
    if account.admin:
        if not any(fields.get(name) for name in ("ownerUser", "ownerGroup", "contactEmail")):
            raise Problem(400, {"status": 400, "message": "Invalid new job. Owner or contact should be specified."})
    elif not fields.get("ownerGroup"):
        raise Problem(400, {"status": 400, "message": "Invalid new job. Owner group should be specified."})
    elif fields["ownerGroup"] not in account.groups:
        raise forbidden()


async def call_webhook(app: StandIn, job: Document) -> None:
    """1.8: no retry; a failure is the caller's answer, and the job stays."""
    settings = app.settings
    headers = {"Authorization": settings.webhook_auth} if settings.webhook_auth else {}
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=300) as http:
            answer = await http.post(settings.webhook_url, json={"id": job["id"], "type": job["type"]}, headers=headers)
    except httpx.HTTPError as error:
        raise Problem(400, {"status": 400, "message": f"A remote URL call failed: {type(error).__name__}"}) from None
    if not answer.is_success:
        text = f"A remote URL call failed with response: {answer.status_code}"
        raise Problem(answer.status_code, {"status": answer.status_code, "message": text})


def v3_job(job: Document) -> Document:
    """1.5."""
    params = dict(job["jobParams"])
    listed = params.pop("datasetList", [])
    return {
        "id": job["id"],
        "type": job["type"],
        "creationTime": job["createdAt"],
        "jobStatusMessage": job["statusCode"],
        "emailJobInitiator": job.get("contactEmail"),
        "datasetList": listed,
        "executionTime": params.get("executionTime"),
        "jobParams": {**params, "username": job.get("ownerUser")},
        "jobResultObject": job["jobResultObject"],
    }


def job_or_400(app: StandIn, request: Request) -> tuple[Account, Document]:
    """The caller and the job he may read. An unknown job is a 400, not a 404 (1.2)."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    job = app.store.get("jobs", request.path_params["id"])
    if job is None:
        raise Problem(400, {"status": 400, "message": "Invalid job id."})
    if not app.may_read_job(account, job):
        raise forbidden()
    return account, job


async def get_job(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """1.1."""
    _, job = job_or_400(app, request)
    return 200, job if request.path_params["version"] == "v4" else v3_job(job)


async def patch_job(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """1.2: any transition goes, the result object is replaced, and every write runs the update actions again."""
    account, job = job_or_400(app, request)
    if not account.admin and not account.archivemanager:
        raise forbidden()
    v4 = request.path_params["version"] == "v4"
    if v4:
        needed = {"statusCode": str, "statusMessage": str}
        fields = check(body, needed=needed, optional={"jobResultObject": dict})
    else:
        optional: dict[str, Any] = {"jobStatusMessage": str, "jobResultObject": dict, "executionTime": str}
        fields = check(body, needed={}, optional=optional)
        if "jobStatusMessage" in fields:
            fields["statusCode"] = fields["statusMessage"] = fields.pop("jobStatusMessage")
        if "executionTime" in fields:
            fields["jobParams"] = job["jobParams"] | {"executionTime": fields.pop("executionTime")}
    if v4 and merges(request) and fields.get("jobResultObject"):
        fields["jobResultObject"] = job["jobResultObject"] | fields["jobResultObject"]
    fields = {key: value for key, value in fields.items() if value is not None}
    job |= fields | {"updatedAt": now(), "updatedBy": account.name}
    app.store.put("jobs", job["id"], job)
    app.mails.append((job["id"], job["statusCode"]))
    return 200, job if v4 else v3_job(job)


def merges(request: Request) -> bool:
    """Whether the body is to be merged into what is there."""
    return request.headers.get("content-type", "").startswith("application/merge-patch+json")


async def list_jobs(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """1.6: v4 limits before it skips, ignores limits.sort, takes a top-level sort; v3 refuses where and limits."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    v4 = request.path_params["version"] == "v4"
    query = query_of(request, "where", "fields", "include", "limits", "sort")
    if not v4 and (query["where"] or query["limits"]):
        raise bad("property where should not exist")
    found = [job for job in app.store.all("jobs") if app.may_read_job(account, job) and matches(job, query["where"])]
    found = ordered(found, query.get("sort"))
    limits = query["limits"]
    found = found[: number(limits, "limit", len(found))][number(limits, "skip", 0) :]
    if not v4:
        return 200, [v3_job(job) for job in found]
    return 200, [only(job, query.get("fields")) for job in found]


def only(document: Document, fields: Any) -> Document:
    """These fields of it, and always its ``_id``."""
    return {key: value for key, value in document.items() if key in fields or key == "_id"} if fields else document


# --- datasets ---------------------------------------------------------------------------------------------------------------


async def create_dataset(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """2.1: the pid is the server's, or the caller's where it may give one; a property not in the DTO is refused (1.2)."""
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
        "datasetlifecycle": LIFECYCLE_DEFAULTS | (given.get("datasetlifecycle") or {}),
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


async def list_datasets(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """4: without rights 200 and an empty list on v3, 403 on v4."""
    account = app.account(request)
    v4 = request.path_params["version"] == "v4"
    if account is None and v4:
        raise forbidden()
    query = query_of(request)
    found = [one for one in app.store.all("datasets") if app.may_read(account, one) and matches(one, query["where"])]
    return 200, [only(shaped(one, request), query.get("fields")) for one in page(found, query, v4=v4)]


async def patch_dataset(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """2.3: with plain JSON a datasetlifecycle given here replaces the whole, refilled with defaults; 4: admins only."""
    account = app.account(request)
    dataset = dataset_or_404(app, request)
    if account is None or not account.admin:
        raise forbidden()
    v4 = request.path_params["version"] == "v4"
    fields = check(body, needed={}, optional=dataset_fields(v4=v4))
    if not fields:
        raise bad("body must not be empty")
    for single, plural in PLURALS.items():
        if single in fields:
            fields[plural] = [fields.pop(single)]
    if "datasetlifecycle" in fields:
        kept = dataset["datasetlifecycle"] if merges(request) and v4 else LIFECYCLE_DEFAULTS
        fields["datasetlifecycle"] = kept | check_lifecycle(fields["datasetlifecycle"])
    dataset |= fields | {"updatedAt": now()}
    app.store.put("datasets", dataset["pid"], dataset)
    return 200, shaped(dataset, request)


async def patch_lifecycle(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """2.3: any subset, flat; null is the default; owners may, if they may create datasets (here: never).

    It reads the whole dataset, merges, and writes the whole: what another call writes between is lost.
    """
    account = app.account(request)
    dataset = dataset_or_404(app, request)
    if account is None or not (account.admin or account.archivemanager):
        raise forbidden()
    lifecycle = dataset["datasetlifecycle"]
    for key, value in check_lifecycle(body).items():
        if value is None and key not in LIFECYCLE_DEFAULTS:
            lifecycle.pop(key, None)
        else:
            lifecycle[key] = LIFECYCLE_DEFAULTS[key] if value is None else value
    await asyncio.sleep(0)
    app.store.put("datasets", dataset["pid"], dataset | {"updatedAt": now()})
    return 200, lifecycle


# --- origdatablocks and datablocks ----------------------------------------------------------------------------------------------

_DATAFILE = {"path": str, "size": (int, float), "time": str}
_DATAFILE_MORE = {"chk": str, "uid": str, "gid": str, "perm": str, "type": str}
"""Not ``metadata``: backend 5 knows it, 4.27 refuses it."""
_GROUPS = {"chkAlg": str, "ownerGroup": str, "accessGroups": list, "instrumentGroup": str}


def check_files(listed: Any) -> None:
    """3.1."""
    if not isinstance(listed, list) or not listed:
        raise bad("dataFileList should not be empty")
    for entry in listed:
        check(entry, needed=_DATAFILE, optional=_DATAFILE_MORE)
        try:
            datetime.fromisoformat(entry["time"])
        except ValueError:
            raise bad("time must be a valid ISO 8601 date string") from None


async def create_origdatablock(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """3.1; 2.6: the dataset's size is then summed over its first 100 blocks only."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    needed = {"datasetId": str, "size": int, "dataFileList": list}
    fields = check(body, needed=needed, optional=_GROUPS | {"isPublished": bool})
    check_files(fields["dataFileList"])
    dataset = app.store.get("datasets", fields["datasetId"])
    if dataset is None:
        raise bad("Invalid datasetId")
    if not app.may_read(account, dataset, "origdatablocks"):
        raise forbidden()
    block = stored_block(fields, dataset)
    app.store.insert("origdatablocks", block["_id"], block, parent=dataset["pid"])
    first = app.store.heads("origdatablocks", dataset["pid"])[:NESTED_LIMIT]
    dataset["size"] = sum(one["size"] for one in first)
    dataset["numberOfFiles"] = sum(app.store.counts("origdatablocks", dataset["pid"])[:NESTED_LIMIT])
    app.store.put("datasets", dataset["pid"], dataset)
    return 201, block


def stored_block(fields: Document, dataset: Document | None) -> Document:
    """A block as SciCat stores it: ids for itself and each file (3.1)."""
    key = object_id()
    groups = {name: (dataset or {}).get(name) for name in ("ownerGroup", "accessGroups")}
    files = [{**entry, "_id": (made := object_id()), "id": made} for entry in fields["dataFileList"]]
    return {**groups, **fields, "dataFileList": files, "_id": key, "id": key, "createdAt": now(), "updatedAt": now()}


def page(found: list[Document], query: dict[str, Any], *, v4: bool) -> list[Document]:
    """3.3: silently stops at the default limit; v4 sorts by ``limits.sort``, v3 by ``limits.order``."""
    limits = query["limits"]
    found = ordered(found, limits.get("sort" if v4 else "order"))
    return found[number(limits, "skip", 0) :][: number(limits, "limit", V4_LIMIT if v4 else V3_LIMIT)]


async def list_blocks(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """3.3: without rights 200 and an empty list, also for the anonymous; limits of 100 (v3) and 10 (v4)."""
    collection, v4 = request.path_params["blocks"], request.path_params["version"] == "v4"
    try:
        query = query_of(request, *(("where", "fields", "include", "limits") if v4 else ()))
    except Problem:
        # 5: a malformed filter of v3 origdatablocks is a 500.
        raise (
            Problem(500, "Internal server error") if collection == "origdatablocks" and not v4 else bad("filter")
        ) from None
    account, where = app.account(request), query["where"]
    if isinstance(where.get("archiveId"), str):
        heads = app.store.tagged(collection, where["archiveId"])
    else:
        heads = app.store.heads(collection, where["datasetId"] if isinstance(where.get("datasetId"), str) else None)
    found = page([one for one in heads if app.may_read(account, one, collection) and matches(one, where)], query, v4=v4)
    fields = query.get("fields")
    if fields and "dataFileList" not in fields:
        return 200, [only(one, fields) for one in found]
    return 200, app.store.whole(collection, found)


async def nested_blocks(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """3.3: no paging, silently stops at 100; 403 without rights."""
    collection = request.path_params["blocks"]
    dataset = dataset_or_404(app, request, collection)
    return 200, app.store.whole(collection, app.store.heads(collection, dataset["pid"])[:NESTED_LIMIT])


async def count_blocks(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """3.3: the only true number."""
    collection = request.path_params["blocks"]
    dataset = dataset_or_404(app, request, collection)
    return 200, {"count": len(app.store.counts(collection, dataset["pid"]))}


async def create_block(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """POST at top level, of either kind."""
    if request.path_params["blocks"] == "origdatablocks":
        return await create_origdatablock(app, request, body)
    return await create_datablock(app, request, body, nested=False)


async def create_nested_datablock(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """3.1: the nested form has neither datasetId nor groups; 3.5: a duplicate is a 500 here."""
    if request.path_params["blocks"] != "datablocks":
        raise not_found(request)
    for name in ("datasetId", "ownerGroup", "accessGroups", "instrumentGroup"):
        if isinstance(body, dict) and name in body:
            raise bad(f"property {name} should not exist")
    dataset = dataset_or_404(app, request)
    return await create_datablock(app, request, {**(body or {}), "datasetId": dataset["pid"]}, nested=True)


async def create_datablock(app: StandIn, request: Request, body: Any, *, nested: bool) -> tuple[int, Any]:
    """3.5: archiveId is unique over all; the dataset need not exist; its counters lose updates, not being atomic (2.6)."""
    account = app.account(request)
    if account is None or not account.admin:
        raise forbidden()
    needed = {"datasetId": str, "archiveId": str, "size": int, "packedSize": int, "version": str, "dataFileList": list}
    fields = check(body, needed=needed, optional=_GROUPS)
    check_files(fields["dataFileList"])
    dataset = app.store.get("datasets", fields["datasetId"])
    block = stored_block(fields, dataset)
    if not app.store.insert("datablocks", block["_id"], block, parent=fields["datasetId"], tag=fields["archiveId"]):
        if nested:
            raise Problem(500, "Internal server error")
        raise Problem(409, {"message": "archiveId must be unique", "error": "Conflict", "statusCode": 409})
    if dataset is not None:
        book(dataset, block["packedSize"], len(block["dataFileList"]))
        await asyncio.sleep(0)
        app.store.put("datasets", dataset["pid"], dataset)
    return 201, block


def book(dataset: Document, packed: int, files: int) -> None:
    """More, or less, in the dataset's counters."""
    dataset["packedSize"] = (dataset.get("packedSize") or 0) + packed
    dataset["numberOfFilesArchived"] = (dataset.get("numberOfFilesArchived") or 0) + files


async def one_block(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """GET of a datablock by id returns a wrong document (3.3); DELETE corrects the counters (3.6)."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    collection, key = request.path_params["blocks"], request.path_params["id"]
    if request.method == "GET" and collection == "datablocks":
        return 200, next(iter(app.store.all("datablocks")), None)
    block = app.store.get(collection, key)
    if block is None:
        raise Problem(404, {"message": f"{collection[:-1]} {key} not found", "error": "Not Found", "statusCode": 404})
    if request.method == "GET":
        if not app.may_read(account, block, collection):
            raise forbidden()
        return 200, block
    if not (account.admin or account.archivemanager) or not account.deletes:
        raise forbidden()
    app.store.delete(collection, key)
    dataset = app.store.get("datasets", block["datasetId"])
    if collection == "datablocks" and dataset is not None:
        book(dataset, -block["packedSize"], -len(block["dataFileList"]))
        app.store.put("datasets", dataset["pid"], dataset)
    return 200, block


# --- account and health -----------------------------------------------------------------------------------------------


async def login(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """4."""
    return app.login(body)


async def old_login(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """4: answers 201 with an empty body."""
    return 201, None


async def whoami(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """4: 200 and an empty body for the anonymous."""
    account = app.account(request)
    if account is None:
        return 200, None
    groups = [*account.groups, *(("admin", "archivemanager") if account.admin else ())]
    return 200, {"username": account.name, "currentGroups": groups}


async def health(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """5."""
    return 200, {
        "status": "ok",
        "info": {"mongodb": {"status": "up"}},
        "error": {},
        "details": {"mongodb": {"status": "up"}},
    }


def not_found(request: Request) -> Problem:
    """As the framework says it, also for an unencoded slash in a pid (2.1)."""
    text = f"Cannot {request.method} {request.url.path}"
    return Problem(404, {"message": text, "error": "Not Found", "statusCode": 404})


_P = "/api/{version}"
_ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/api/v3/health", health),
    ("POST", "/api/v3/auth/login", login),
    ("POST", "/api/v3/auth/ldap", login),
    ("POST", "/api/v3/auth/msad", login),
    ("GET", "/api/v3/auth/whoami", whoami),
    ("POST", "/api/v3/users/login", old_login),
    ("POST", _P + "/jobs", create_job),
    ("GET", _P + "/jobs", list_jobs),
    ("GET", _P + "/jobs/{id}", get_job),
    ("PATCH", _P + "/jobs/{id}", patch_job),
    ("POST", _P + "/datasets", create_dataset),
    ("GET", _P + "/datasets", list_datasets),
    ("GET", _P + "/datasets/{pid}", get_dataset),
    ("PATCH", _P + "/datasets/{pid}", patch_dataset),
    ("PATCH", _P + "/datasets/{pid}/datasetlifecycle", patch_lifecycle),
    ("GET", "/api/v3/datasets/{pid}/{blocks}/count", count_blocks),
    ("GET", "/api/v3/datasets/{pid}/{blocks}", nested_blocks),
    ("POST", "/api/v3/datasets/{pid}/{blocks}", create_nested_datablock),
    ("POST", _P + "/{blocks}", create_block),
    ("GET", _P + "/{blocks}", list_blocks),
    ("GET", _P + "/{blocks}/{id}", one_block),
    ("DELETE", _P + "/{blocks}/{id}", one_block),
]
_COMPILED = [
    (method, re.compile("(?i)" + re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern) + "/?$"), handler)
    for method, pattern, handler in _ROUTES
]


def create_app(settings: StandInSettings | None = None) -> Starlette:
    """The ASGI application; ``app.state.standin`` is its ``StandIn``."""
    standin = StandIn(settings or StandInSettings())

    async def serve(request: Request) -> Response:
        # Percent-encoded slashes must stay inside a segment, so the raw path is matched (2.1).
        path = request.scope.get("raw_path", b"").split(b"?")[0].decode("ascii", "replace") or request.url.path
        answer = await _answer(standin, request, path)
        standin.log.append((request.method, unquote(path), answer.status_code))
        return answer

    application = Starlette(routes=[Route("/{path:path}", serve, methods=["GET", "POST", "PATCH", "DELETE", "PUT"])])
    application.state.standin = standin
    return application


async def _answer(standin: StandIn, request: Request, path: str) -> Response:
    data = await request.body()
    fault = next(
        (one for one in standin.faults if one.method == request.method and re.search(one.path, unquote(path))), None
    )
    if fault is None:
        return await _do(standin, request, path, data)
    fault.times -= 1
    if fault.times <= 0:
        standin.faults.remove(fault)
    done = await _do(standin, request, path, data) if fault.execute else None
    await asyncio.sleep(fault.hang_seconds)
    if fault.raw is not None:
        return Response(fault.raw, status_code=fault.status, media_type="text/html")
    if fault.hang_seconds:
        return done or await _do(standin, request, path, data)
    return _response(fault.status, fault.body if fault.body is not None else "Internal server error")


async def _do(standin: StandIn, request: Request, path: str, data: bytes) -> Response:
    try:
        if len(data) > MAX_BODY:
            raise Problem(500, "Internal server error")
        body = json.loads(data, parse_int=_double, parse_constant=_no_json) if data else None
        for method, pattern, handler in _COMPILED:
            match = pattern.fullmatch(path)
            if method == request.method and match:
                found = {key: unquote(value) for key, value in match.groupdict().items()}
                found["version"] = found.get("version", "v3").lower()
                if "blocks" in found:
                    found["blocks"] = found["blocks"].lower()
                    if found["blocks"] not in ("datablocks", "origdatablocks"):
                        continue
                    if found["blocks"] == "datablocks" and found["version"] == "v4":
                        continue
                if found["version"] not in ("v3", "v4"):
                    continue
                request.scope["path_params"] = found
                return _response(*await handler(standin, request, body))
        raise not_found(request)
    except Problem as problem:
        return _response(problem.status, problem.body)
    except (ValueError, OverflowError, RecursionError):
        return _response(400, {"message": "Unexpected token in JSON", "error": "Bad Request", "statusCode": 400})
    except (TypeError, KeyError, AttributeError):
        logging.getLogger(__name__).exception("%s %s", request.method, path)
        return _response(500, "Internal server error")


def _double(digits: str) -> int:
    value = int(digits)
    return value if abs(value) <= EXACT else int(float(value))


def _no_json(name: str) -> Any:
    raise ValueError(name)


def _response(status: int, body: Any) -> Response:
    if body is None:
        return PlainTextResponse("", status_code=status)
    text = body.text if isinstance(body, Raw) else json.dumps(body)
    return Response(text, status_code=status, media_type="application/json")
