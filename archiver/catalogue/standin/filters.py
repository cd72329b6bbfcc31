"""Filters at the stand-in: which property each list knows, and what a page of it is. What is not known is refused."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from archiver.catalogue.standin.schema import DATASET, LIFECYCLE, PLURALS, Problem, bad
from archiver.catalogue.standin.store import Document, ordered

NESTED_LIMIT = 100
V3_LIMIT = 100
V4_LIMIT = 10

_RECORD = ("ownerGroup", "accessGroups", "instrumentGroup", "isPublished")
_MADE = ("createdBy", "updatedBy", "createdAt", "updatedAt")
_FILE = ("path", "size", "time", "chk", "uid", "gid", "perm", "type")
KNOWN: dict[str, frozenset[str]] = {
    "jobs": frozenset(
        {
            *("id", "type", "statusCode", "statusMessage", "jobParams", "jobResultObject", "configVersion"),
            *("ownerUser", "ownerGroup", "contactEmail", *_MADE),
        }
    ),
    "datasets": frozenset(
        {*DATASET, *PLURALS.values(), "ownerGroup", "pid", "type", "version", *_MADE, "id", *LIFECYCLE, "name"}
    ),
    "origdatablocks": frozenset({"_id", "datasetId", "size", "chkAlg", "dataFileList", *_RECORD, *_MADE, *_FILE}),
    "datablocks": frozenset(
        {"_id", "datasetId", "archiveId", "size", "packedSize", "chkAlg", "version", "dataFileList", *_RECORD, *_MADE}
    ),
}
"""Properties of the records of each list. A job's ``_id`` is none of them, in any version; its ``id`` is."""
ANYTHING_BELOW = frozenset({"scientificMetadata", "jobParameters", "jobParams", "jobResultObject"})
_WORDS = frozenset(
    {
        *("where", "include", "fields", "limits", "limit", "skip", "sort", "$in", "$or", "$and", "$nor", "$match"),
        *("$eq", "$gt", "$gte", "$lt", "$lte", "$ne", "$nin", "$not", "$exists", "$regex", "$options"),
    }
)


def query_of(request: Request, collection: str) -> dict[str, Any]:
    """The ``filter`` parameter, if it names nothing that this list does not know. Raises ``Problem``."""
    text = request.query_params.get("filter")
    try:
        query = json.loads(text) if text else {}
    except ValueError:
        query = None
    if not isinstance(query, dict) or not all(isinstance(query.get(key) or {}, dict) for key in ("where", "limits")):
        raise bad("Invalid JSON in filter")
    known = _WORDS | KNOWN[collection] | ({"order"} if request.path_params["version"] == "v3" else set())
    for path in _paths(query):
        if (found := unknown(path, known)) is not None:
            text = f"Property {'.'.join(found)} should not exist in the filter object"
            raise Problem(400, {"message": text, "error": "Bad Request", "statusCode": 400})
    return {"where": {}, "limits": {}} | {key: value for key, value in query.items() if value is not None}


def unknown(path: list[str], known: frozenset[str] | set[str]) -> list[str] | None:
    """The path if a part of it is not known, wherever it stands: SciCat looks at names, not at places."""
    for part in path:
        if part not in known:
            return path
        if part in ANYTHING_BELOW:
            break
    return None


def _paths(value: dict[str, Any], above: tuple[str, ...] = ()) -> list[list[str]]:
    """Every path of names to a value; lists are values."""
    found: list[list[str]] = []
    for key, inner in value.items():
        path = (*above, *key.split("."))
        found += _paths(inner, path) if isinstance(inner, dict) else [list(path)]
    return found


def only(document: Document, fields: Any) -> Document:
    """These fields of it: not its ``_id`` unless that is named."""
    return {key: value for key, value in document.items() if key in fields} if fields else document


def number(limits: dict[str, Any], key: str, default: int) -> int:
    """A limit; 0 is the default."""
    value = limits.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise bad(f"{key} must be a number")
    return value or default


def ascending(sort: Any) -> dict[str, int]:
    """``limits.sort`` as SciCat reads it: ``asc`` is upwards, everything else, ``1`` too, is downwards."""
    return {key: 1 if direction == "asc" else -1 for key, direction in (sort or {}).items()}


def page(found: list[Document], query: dict[str, Any], *, v4: bool) -> list[Document]:
    """A page that stops at the default limit without a word; v4 sorts by ``limits.sort``, v3 by ``limits.order``."""
    limits = query["limits"]
    found = ordered(found, ascending(limits.get("sort")) if v4 else limits.get("order"))
    return found[number(limits, "skip", 0) :][: number(limits, "limit", V4_LIMIT if v4 else V3_LIMIT)]
