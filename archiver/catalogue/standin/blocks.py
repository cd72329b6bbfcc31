"""Origdatablocks and datablocks at the stand-in, with lists that stop in silence."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

from starlette.requests import Request

from archiver.catalogue.standin.datasets import dataset_or_404
from archiver.catalogue.standin.filters import NESTED_LIMIT, only, page, query_of
from archiver.catalogue.standin.schema import (
    Problem,
    bad,
    check,
)
from archiver.catalogue.standin.state import (
    StandIn,
    forbidden,
    not_found,
    now,
    object_id,
)
from archiver.catalogue.standin.store import Document, matches

MANY = 500
"""Files of one block that would keep other callers waiting."""
_DATAFILE = {"path": str, "size": (int, float), "time": str}
_DATAFILE_MORE = {"chk": str, "uid": str, "gid": str, "perm": str, "type": str}
"""Not ``metadata``: backend 5 knows it, 4.27 refuses it."""
_GROUPS = {"chkAlg": str, "ownerGroup": str, "accessGroups": list, "instrumentGroup": str}


async def checked_files(listed: list[Any]) -> list[Document]:
    """The files, if each is as the DTO says, with the ids that SciCat gives them. Many are looked at in a thread."""
    if not listed:
        raise bad("dataFileList should not be empty")
    return await asyncio.to_thread(_checked, listed) if len(listed) > MANY else _checked(listed)


def _checked(listed: list[Any]) -> list[Document]:
    for entry in listed:
        check(entry, needed=_DATAFILE, optional=_DATAFILE_MORE)
        try:
            datetime.fromisoformat(entry["time"])
        except ValueError:
            raise bad("time must be a valid ISO 8601 date string") from None
    return [{**entry, "_id": (made := object_id()), "id": made} for entry in listed]


async def create_origdatablock(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """The dataset's size is then summed over its first 100 blocks only."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    needed = {"datasetId": str, "size": int, "dataFileList": list}
    fields = check(body, needed=needed, optional=_GROUPS | {"isPublished": bool})
    fields["dataFileList"] = await checked_files(fields["dataFileList"])
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
    return 201, app.store.whole("origdatablocks", block)


def stored_block(fields: Document, dataset: Document | None) -> Document:
    """A block as SciCat stores it."""
    key = object_id()
    groups = {name: (dataset or {}).get(name) for name in ("ownerGroup", "accessGroups")}
    return {**groups, **fields, "_id": key, "id": key, "createdAt": now(), "updatedAt": now()}


async def list_blocks(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """Without rights 200 and an empty list; the anonymous 403, but on master's v3; limits of 100 (v3) and 10 (v4)."""
    collection, v4 = request.path_params["blocks"], request.path_params["version"] == "v4"
    try:
        query = query_of(request, collection)
    except Problem:
        if collection == "origdatablocks" and not v4:
            raise Problem(500, "Internal server error") from None
        raise
    account, where = app.account(request), query["where"]
    if account is None and (v4 or app.settings.version != "master"):
        raise forbidden()
    if isinstance(where.get("archiveId"), str):
        heads = app.store.tagged(collection, where["archiveId"])
    else:
        heads = app.store.heads(collection, where["datasetId"] if isinstance(where.get("datasetId"), str) else None)
    found = page([one for one in heads if app.may_read(account, one, collection) and matches(one, where)], query, v4=v4)
    fields = query.get("fields")
    if fields and "dataFileList" not in fields:
        return 200, [only(one, fields) for one in found]
    return 200, app.store.list_of(collection, found)


async def nested_blocks(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """No paging, silently stops at 100; 403 without rights."""
    collection = request.path_params["blocks"]
    dataset = dataset_or_404(app, request, collection)
    return 200, app.store.list_of(collection, app.store.heads(collection, dataset["pid"])[:NESTED_LIMIT])


async def count_blocks(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """The only true number."""
    collection = request.path_params["blocks"]
    dataset = dataset_or_404(app, request, collection)
    return 200, {"count": len(app.store.counts(collection, dataset["pid"]))}


async def create_block(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """POST at top level, of either kind."""
    if request.path_params["blocks"] == "origdatablocks":
        return await create_origdatablock(app, request, body)
    return await create_datablock(app, request, body, nested=False)


async def create_nested_datablock(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """The nested form has neither datasetId nor groups; a duplicate is a 500 here."""
    if request.path_params["blocks"] != "datablocks":
        raise not_found(request)
    for name in ("datasetId", "ownerGroup", "accessGroups", "instrumentGroup"):
        if isinstance(body, dict) and name in body:
            raise bad(f"property {name} should not exist")
    dataset = dataset_or_404(app, request)
    return await create_datablock(app, request, {**(body or {}), "datasetId": dataset["pid"]}, nested=True)


async def create_datablock(app: StandIn, request: Request, body: Any, *, nested: bool) -> tuple[int, Any]:
    """An archiveId is unique over all; the dataset's counters lose updates, not being atomic.

    Until 5.2 whoever has groups may register, for any dataset and for none; on master only admins, and the dataset must be there.
    """
    account, master = app.account(request), app.settings.version == "master"
    if account is None or not (account.admin or (account.groups and not master)):
        raise forbidden()
    needed = {"datasetId": str, "archiveId": str, "size": int, "packedSize": int, "version": str, "dataFileList": list}
    fields = check(body, needed=needed, optional=_GROUPS)
    fields["dataFileList"] = await checked_files(fields["dataFileList"])
    dataset = app.store.get("datasets", fields["datasetId"])
    if dataset is None and master:
        raise Problem(404, {"message": "Dataset not found", "error": "Not Found", "statusCode": 404})
    if not fields["archiveId"] or not all(entry["path"] for entry in fields["dataFileList"]):
        raise Problem(500, "Internal server error")
    block = stored_block(fields, dataset)
    if not app.store.insert("datablocks", block["_id"], block, parent=fields["datasetId"], tag=fields["archiveId"]):
        if nested:
            raise Problem(500, "Internal server error")
        raise Problem(409, {"message": "archiveId must be unique", "error": "Conflict", "statusCode": 409})
    if dataset is not None:
        book(dataset, block["packedSize"], len(block["dataFileList"]))
        await asyncio.sleep(0)
        app.store.put("datasets", dataset["pid"], dataset)
    return 201, app.store.whole("datablocks", block)


def book(dataset: Document, packed: int, files: int) -> None:
    """More, or less, in the dataset's counters."""
    dataset["packedSize"] = (dataset.get("packedSize") or 0) + packed
    dataset["numberOfFilesArchived"] = (dataset.get("numberOfFilesArchived") or 0) + files


async def one_block(app: StandIn, request: Request, body: Any) -> tuple[int, Any]:
    """GET of a datablock by id returns a wrong document; DELETE corrects the counters."""
    account = app.account(request)
    if account is None:
        raise forbidden()
    collection, key = request.path_params["blocks"], request.path_params["id"]
    block = app.store.get(collection, key)
    if block is None:
        raise Problem(404, {"message": f"{collection[:-1]} {key} not found", "error": "Not Found", "statusCode": 404})
    if request.method == "GET" and collection == "datablocks":
        return 200, next(iter(app.store.all("datablocks")))
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
