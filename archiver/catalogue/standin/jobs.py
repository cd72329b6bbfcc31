"""Jobs at the stand-in: two shapes, a webhook within, and no memory of transitions."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from uuid import uuid4

import httpx
from starlette.requests import Request

from archiver.catalogue.standin.filters import NESTED_LIMIT, ascending, number, only, query_of
from archiver.catalogue.standin.schema import (
    Problem,
    bad,
    check,
    check_create_job,
    wrong_list,
)
from archiver.catalogue.standin.state import (
    Account,
    StandIn,
    forbidden,
    merges,
    now,
)
from archiver.catalogue.standin.store import Document, matches, ordered


async def create_job(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """In v4 or v3 shape; the webhook is called inside, whose failure nobody is told of."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    v4 = request.path_params["version"] == "v4"
    fields = check_create_job(body, v4=v4, types=app.settings.job_types)
    listed = checked_list(app, fields["jobParams"].get("datasetList"))
    groups = []
    for entry in listed:
        dataset = app.store.get("datasets", entry["pid"])
        if dataset is None or not app.may_read(account, dataset):
            raise forbidden()
        groups.append(dataset["ownerGroup"])
        check_config(app, fields["type"], entry, dataset)
    if not v4:
        fields.setdefault("ownerGroup", groups[0])
    check_owner(account, fields)
    if len({entry["pid"] for entry in listed}) < len(listed):
        raise no_dataset([entry["pid"] for entry in listed])
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


def checked_list(app: StandIn, listed: Any) -> list[Document]:
    """The job's datasets, of which SciCat finds at most 100, with files of theirs. Else 422, or 400 until 4.27."""
    wrong, found, more = wrong_list(listed), [], {}
    if not wrong:
        asked = [entry["pid"] for entry in listed]
        found = [pid for pid in dict.fromkeys(asked) if app.store.has("datasets", pid)][:NESTED_LIMIT]
        if missing := [pid for pid in asked if pid not in found]:
            wrong = f"Datasets with pid {','.join(missing)} do not exist."
    for entry in () if wrong else listed:
        blocks = app.store.all("origdatablocks", entry["pid"])[:NESTED_LIMIT] if entry["files"] else []
        paths = {file.get("path") for block in blocks for file in block["dataFileList"]}
        if missing := [path for path in entry["files"] if path not in paths]:
            wrong = "At least one requested file could not be found."
            more = {"error": json.dumps([{"pid": entry["pid"], "nonExistFiles": missing}])}
    if wrong:
        status = 400 if app.settings.version == "4.27" else 422
        raise Problem(status, {"status": status, "message": wrong, **more})
    checked: list[Document] = listed
    return checked


def check_config(app: StandIn, job_type: str, entry: Document, dataset: Document) -> None:
    """What the validate action of deploy/scicat/jobConfig.yaml refuses is a 400, before the job is there."""
    wrong = ""
    if job_type == "archive" and entry["files"]:
        wrong = "jobParams.datasetList"
    if job_type == "retrieve" and app.settings.only_retrievable and not dataset["datasetlifecycle"].get("retrievable"):
        wrong = "datasetlifecycle.retrievable"
    if wrong:
        raise Problem(400, {"status": 400, "message": f"Invalid request. Invalid value for '{wrong}'"})


def check_owner(account: Account, fields: Document) -> None:
    """Whose the job is. An admin must name someone too; a user names a group of his own."""
    if account.admin:
        if not any(fields.get(name) for name in ("ownerUser", "ownerGroup", "contactEmail")):
            raise Problem(400, {"status": 400, "message": "Invalid new job. Owner or contact should be specified."})
    elif fields.get("ownerGroup") not in account.groups:
        raise forbidden()


def no_dataset(pids: list[str]) -> Problem:
    """What SciCat says when it does not find as many datasets as a job names."""
    text = f"Unable to get a dataset. ({json.dumps(pids, separators=(',', ':'))})"
    return Problem(404, {"message": text, "error": "Not Found", "statusCode": 404})


async def call_webhook(app: StandIn, job: Document) -> None:
    """No retry, and ``ignoreErrors``: whoever submits a job is not told that nobody heard of it."""
    settings = app.settings
    headers = {"Authorization": settings.webhook_auth} if settings.webhook_auth else {}
    with contextlib.suppress(httpx.HTTPError):
        async with httpx.AsyncClient(trust_env=False, timeout=300) as http:
            await http.post(settings.webhook_url, json={"id": job["id"], "type": job["type"]}, headers=headers)


def v3_job(job: Document) -> Document:
    """The job in the shape of v3."""
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
    """The caller and the job he may read. An unknown job is a 400, not a 404."""
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
    """In the shape of its version."""
    _, job = job_or_400(app, request)
    return 200, job if request.path_params["version"] == "v4" else v3_job(job)


async def patch_job(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """Any transition goes, the result object is replaced, and every write runs the update actions again."""
    caller = app.account(request)
    if caller is None or not (caller.admin or caller.archivemanager):
        raise forbidden()  # SciCat's guards come before all else, and the body before the record
    v4 = request.path_params["version"] == "v4"
    if v4:
        needed = {"statusCode": str, "statusMessage": str}
        fields = check(body, needed=needed, optional={"jobResultObject": dict})
    else:
        optional: dict[str, Any] = {"jobStatusMessage": str, "jobResultObject": dict, "executionTime": str}
        fields = check(body, needed={}, optional=optional)
    account, job = job_or_400(app, request)
    if not v4 and "jobStatusMessage" in fields:
        fields["statusCode"] = fields["statusMessage"] = fields.pop("jobStatusMessage")
    if not v4 and "executionTime" in fields:
        fields["jobParams"] = job["jobParams"] | {"executionTime": fields.pop("executionTime")}
    if v4 and merges(request) and fields.get("jobResultObject"):
        fields["jobResultObject"] = job["jobResultObject"] | fields["jobResultObject"]
    fields = {key: value for key, value in fields.items() if value is not None}
    check_datasets_are_there(app, job)
    job |= fields | {"updatedAt": now(), "updatedBy": account.name}
    app.store.put("jobs", job["id"], job)
    app.mails.append((job["id"], job["statusCode"]))
    return 200, job if v4 else v3_job(job)


def check_datasets_are_there(app: StandIn, job: Document) -> None:
    """SciCat reads a job's datasets before every update of it: once one was deleted, no update goes, whoever asks."""
    listed = job["jobParams"].get("datasetList")
    entries = listed if isinstance(listed, list) else []
    pids = [entry["pid"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("pid"), str)]
    if not all(app.store.has("datasets", pid) for pid in pids):
        raise no_dataset(pids)


async def delete_job(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """DELETE_JOB_GROUPS; a job that is not there is a 400."""
    account = app.account(request)
    if account is None or not account.admin or not account.deletes:
        raise forbidden()
    _, job = job_or_400(app, request)
    app.store.delete("jobs", job["id"])
    return 200, job


async def list_jobs(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """In v4 a list is limited before it is skipped, and sorted as its version does; v3 refuses where and limits."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    v4 = request.path_params["version"] == "v4"
    query = query_of(request, "jobs")
    if not v4 and (query["where"] or query["limits"]):
        raise bad("property where should not exist")
    limits, named = query["limits"], query["where"].get("id")
    # As Mongo does by its index: of many jobs those that are named need not be searched for.
    keys = named["$in"] if isinstance(named, dict) and isinstance(named.get("$in"), list) else None
    jobs = app.store.all("jobs") if keys is None else app.store.some("jobs", [str(key) for key in keys])
    found = [job for job in jobs if app.may_read_job(account, job) and matches(job, query["where"])]
    if app.settings.version == "4.27":
        found = ordered(found, query.get("sort"))
    else:
        found = ordered(ordered(found, {"createdAt": 1}), ascending(limits.get("sort")))
    found = found[: number(limits, "limit", len(found))][number(limits, "skip", 0) :]
    if not v4:
        return 200, [v3_job(job) for job in found]
    return 200, [only(job, query.get("fields")) for job in found]
