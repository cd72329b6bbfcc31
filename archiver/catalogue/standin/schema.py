"""What the stand-in accepts: as strict as the backend, which refuses every property it does not know."""

from __future__ import annotations

import re
from typing import Any

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+[.][^@\s]+")

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
    "retrieveIntegrityCheck": False,
    "isOnCentralDisk": True,
}
"""Of a fresh lifecycle, which also has dates (``fresh_lifecycle``), and no ReturnMessage at all."""

DATASET = [
    "accessGroups",
    "instrumentGroup",
    "owner",
    "ownerEmail",
    "orcidOfOwner",
    "contactEmail",
    "sourceFolder",
    "sourceFolderHost",
    "size",
    "packedSize",
    "numberOfFiles",
    "numberOfFilesArchived",
    "creationTime",
    "validationStatus",
    "keywords",
    "description",
    "datasetName",
    "classification",
    "license",
    "isPublished",
    "techniques",
    "sharedWith",
    "relationships",
    "datasetlifecycle",
    "scientificMetadata",
    "scientificMetadataSchema",
    "scientificMetadataValid",
    "comment",
    "dataQualityMetrics",
    "startTime",
    "endTime",
    "creationLocation",
    "dataFormat",
    "inputDatasets",
    "usedSoftware",
    "jobParameters",
    "jobLogData",
    "runNumber",
]
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("size", "packedSize", "numberOfFiles", "numberOfFilesArchived"), int),
    **dict.fromkeys(("accessGroups", "keywords", "sharedWith"), list),
    **dict.fromkeys(("datasetlifecycle", "scientificMetadata"), dict),
    **dict.fromkeys(("owner", "contactEmail", "sourceFolder", "creationTime", "datasetName", "creationLocation"), str),
    "isPublished": bool,
}
PLURALS = {
    "principalInvestigator": "principalInvestigators",
    "proposalId": "proposalIds",
    "sampleId": "sampleIds",
    "instrumentId": "instrumentIds",
}
"""Fields of a dataset that are one value in v3 and a list in v4, as SciCat stores them."""


_ALWAYS = ("ownerGroup", "contactEmail", "sourceFolder", "creationTime", "datasetName", "type")
NEEDED = {True: _ALWAYS, False: (*_ALWAYS, "owner")}
"""Fields without which no dataset is made, in v4 and not."""
NEEDED_RAW = ("principalInvestigator", "creationLocation")
"""And no raw one in v3."""


def dataset_fields(*, v4: bool) -> dict[str, Any]:
    """What a dataset's DTO knows, beside what only ``create`` may give."""
    kinds: dict[str, Any] = {name: _KINDS.get(name, object) for name in DATASET}
    return kinds | {"ownerGroup": str} | dict.fromkeys(PLURALS.values() if v4 else PLURALS, list if v4 else str)


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
    if kind is object:
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind)


def _name(kind: Any) -> str:
    return " or ".join(one.__name__ for one in kind) if isinstance(kind, tuple) else str(kind.__name__)


def fresh_lifecycle(now: str) -> dict[str, Any]:
    """A lifecycle that nobody wrote to yet. Its dates mean nothing."""
    return LIFECYCLE_DEFAULTS | dict.fromkeys(
        ("dateOfDiskPurging", "archiveRetentionTime", "dateOfPublishing", "publishedOn"), now
    )


def check_lifecycle(body: Any) -> dict[str, Any]:
    """Any subset of the fields, flat; empty, unknown and wrong are 400; null is allowed."""
    if not isinstance(body, dict) or not body:
        raise bad("body must not be empty")
    return check(body, needed={}, optional=LIFECYCLE)


def check_create_job(body: Any, *, v4: bool, types: tuple[str, ...]) -> dict[str, Any]:
    """A job in v4 or v3 shape, as the v4 fields that are stored; a v3 one has no owner group yet."""
    if v4:
        optional: dict[str, Any] = {"ownerUser": str, "ownerGroup": str, "contactEmail": str}
        fields = check(body, needed={"type": str, "jobParams": dict}, optional=optional)
    else:
        optional = {"jobParams": dict, "emailJobInitiator": str, "executionTime": str, "jobStatusMessage": str}
        given = check(body, needed={"type": str, "datasetList": list}, optional=optional)
        params = {**(given.get("jobParams") or {}), "datasetList": given["datasetList"]}
        if given.get("executionTime"):
            params["executionTime"] = given["executionTime"]
        fields = {"type": given["type"], "jobParams": params}
        for name, value in (
            ("contactEmail", given.get("emailJobInitiator")),
            ("ownerUser", params.pop("username", None)),
            ("ownerGroup", params.pop("ownerGroup", None)),
        ):
            if value:
                fields[name] = value
    if fields.get("contactEmail") and not _EMAIL.fullmatch(fields["contactEmail"]):
        raise bad("contactEmail must be an email")
    if fields["type"] not in types:
        raise bad(f"Invalid job type: {fields['type']}")
    return fields


def wrong_list(listed: Any) -> str:
    """What is wrong with a job's dataset list, as SciCat says it; "": nothing."""
    if not isinstance(listed, list):
        return "Invalid dataset list"
    if not listed:
        return "List of passed datasets is empty."
    for entry in listed:
        if not isinstance(entry, dict) or set(entry) != {"pid", "files"}:
            return "Dataset list is expected to contain sets of pid and files."
        if not isinstance(entry["pid"], str):
            return "In datasetList each 'pid' field should be a string."
        if not isinstance(entry["files"], list) or not all(isinstance(one, str) for one in entry["files"]):
            return "In datasetList each 'files' field should be an array."
    return ""
