"""What the stand-in accepts: as strict as the backend, which refuses every property it does not know (1.2)."""

from __future__ import annotations

from typing import Any

LIFECYCLE: dict[str, Any] = {
    "archivable": bool,
    "retrievable": bool,
    "publishable": bool,
    "archiveStatusMessage": str,
    "retrieveStatusMessage": str,
    "archiveReturnMessage": (dict, str),
    "retrieveReturnMessage": (dict, str),
    "retrieveIntegrityCheck": bool,
    "isOnCentralDisk": bool,
    "storageLocation": str,
    "exportedTo": str,
    "dateOfDiskPurging": str,
    "archiveRetentionTime": str,
    "dateOfPublishing": str,
    "publishedOn": str,
}
LIFECYCLE_DEFAULTS: dict[str, Any] = {
    "archivable": True,
    "retrievable": False,
    "publishable": False,
    "archiveStatusMessage": "datasetCreated",
    "retrieveStatusMessage": "",
    "archiveReturnMessage": {},
    "retrieveReturnMessage": {},
    "retrieveIntegrityCheck": False,
    "isOnCentralDisk": True,
}


class Problem(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


def bad(message: str) -> Problem:
    """400 as the validation pipe says it (5, shape a)."""
    return Problem(400, {"message": [message], "error": "Bad Request", "statusCode": 400})


def check(body: Any, *, needed: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
    """The body, if it has all needed and no unknown properties, each of its type. Raises ``Problem``."""
    if not isinstance(body, dict):
        raise bad("body must be an object")
    for key in body:
        if key not in needed and key not in optional:
            raise bad(f"property {key} should not exist")
    for key, kind in needed.items():
        if key not in body or not _is(body[key], kind):
            raise bad(f"{key} must be {_name(kind)}")
    for key, kind in optional.items():
        if body.get(key) is not None and not _is(body[key], kind):
            raise bad(f"{key} must be {_name(kind)}")
    return dict(body)


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind)


def _name(kind: Any) -> str:
    return " or ".join(one.__name__ for one in kind) if isinstance(kind, tuple) else str(kind.__name__)


def check_lifecycle(body: Any) -> dict[str, Any]:
    """2.3: any subset of the fields, flat; empty, unknown and wrong are 400; null is allowed."""
    if not isinstance(body, dict) or not body:
        raise bad("body must not be empty")
    return check(body, needed={}, optional=LIFECYCLE)


def check_create_job(body: Any, *, v4: bool, types: tuple[str, ...]) -> dict[str, Any]:
    """1.2 and 1.5: a job in v4 or v3 shape, as the v4 fields that are stored."""
    if v4:
        optional: dict[str, Any] = {"ownerUser": str, "ownerGroup": str, "contactEmail": str}
        fields = check(body, needed={"type": str, "jobParams": dict}, optional=optional)
    else:
        optional = {"jobParams": dict, "emailJobInitiator": str, "executionTime": str, "jobStatusMessage": str}
        given = check(body, needed={"type": str, "datasetList": list}, optional=optional)
        params = {**(given.get("jobParams") or {}), "datasetList": given["datasetList"]}
        if given.get("executionTime"):
            params["executionTime"] = given["executionTime"]
        fields = {"type": given["type"], "jobParams": params, "ownerGroup": params.get("ownerGroup", "v3")}
        if given.get("emailJobInitiator"):
            fields["contactEmail"] = given["emailJobInitiator"]
    if fields["type"] not in types:
        raise bad(f"Invalid job type: {fields['type']}")
    if "datasetList" in fields["jobParams"]:
        _check_list(fields["jobParams"]["datasetList"])
    return fields


def _check_list(listed: Any) -> None:
    """1.3."""
    if not isinstance(listed, list) or not listed:
        raise Problem(400, {"status": 400, "message": "List of passed datasets is empty."})
    for entry in listed:
        if not isinstance(entry, dict) or set(entry) != {"pid", "files"} or not isinstance(entry["files"], list):
            raise Problem(400, {"status": 400, "message": "Each dataset needs exactly pid and files."})
