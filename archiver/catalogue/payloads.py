"""Every payload we send to SciCat, made by pure functions; tests hold them against the generated SDK of two versions.

Field names and the strings of archiveStatusMessage are SciCat's own: the web UI derives its tabs from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from archiver import model as m
from archiver.catalogue import records
from archiver.catalogue.modes import perm_of
from archiver.catalogue.records import Dataset, Job
from archiver.datablock.manifest import ManifestFile
from archiver.datablock.record import DatablockRecord
from archiver.datablock.tar import seconds
from archiver.retrieval import wire as w
from archiver.text import cut

STARTED = "started"
ARCHIVED = records.ARCHIVED
FAILED = "scheduleArchiveJobFailed"
CONTENT = "missingFilesError"
STOPPED = "datasetCreated"
RETRIEVED = "datasetRetrieved"
NOT_RETRIEVED = "scheduleRetrieveJobFailed"
"""The one failure of a retrieval that SciCat's web UI shows as such."""
NOTHING_RETRIEVED = ""
IN_PROGRESS = "inProgress"
MAX_TEXT = 1000
DATASETS_PER_JOB = 100
"""SciCat refuses a job of more datasets when it is created: 422, in 4.27 400, whoever asks."""
MAX_RESULT_BYTES = 4000
"""Of a job's result object as JSON: SciCat's web UI prints it as it is in its table of jobs."""
ROOM_FOR_LINKS = 2400
"""Bytes of it that are kept for the links of a retrieve job."""
MAX_SUMMARY_BYTES = 700
MAX_OUTCOME_BYTES = 600
MAX_STOP_BYTES = 150
COUNTERS = ("size", "numberOfFiles", "packedSize", "numberOfFilesArchived")
"""SciCat's names of ``Counters``, in their order."""
SIGNED = ("result", "downloadScript", "validUntil")
"""What holds links. Each try signs them anew: of one and the same ``run`` of a job they are not compared, or users would get
a mail for each try."""
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})?")

Payload = dict[str, Any]


def create_job(
    job_type: str, pids: list[str], owner_group: str | None, *, files: list[str] | None = None, to: str = ""
) -> Payload:
    """``CreateJobDto``: whole datasets, or of each these ``files``; ``to``: the destination of a retrieve job."""
    params: Payload = {"datasetList": [{"pid": pid, "files": files or []} for pid in pids]}
    if to:
        params["destinationPath"] = to
    payload: Payload = {"type": job_type, "jobParams": params}
    if owner_group:
        payload["ownerGroup"] = owner_group
    return payload


def job_update(code: str, message: str, result: Payload | None = None) -> Payload:
    """``UpdateJobDto``; the result object replaces the old one."""
    payload: Payload = {"statusCode": code, "statusMessage": cut(message, MAX_TEXT)}
    if result is not None:
        payload["jobResultObject"] = result
    return payload


def job_result(message: str, request: m.FinishJobRequest, *, links: bool = False) -> Payload:
    """The job's result object: a human ``summary`` first, then counts, then outcomes of datasets, failures first.

    Below ``MAX_RESULT_BYTES``; with ``links``, so much below it that links find room. What is not shown is counted.
    """
    counts, stopped = request.counts, request.stopped
    result: Payload = {
        "summary": _fitting(message, MAX_SUMMARY_BYTES),
        "counts": counts.model_dump(),
        "total": request.total,
        "datasets": [],
        "notShown": counts.total,
        "stoppedBy": (
            {"reason": _fitting(stopped.reason, MAX_STOP_BYTES), "who": _fitting(stopped.who, MAX_STOP_BYTES)}
            if stopped
            else None
        ),
    }
    room = MAX_RESULT_BYTES - len(json.dumps(result)) - (ROOM_FOR_LINKS if links else 0)
    for outcome in sorted(request.outcomes, key=lambda outcome: outcome.outcome in m.GOOD)[: m.MAX_OUTCOMES]:
        entry = _outcome(outcome)
        room -= len(json.dumps(entry)) + 2
        if room < 0:
            break
        result["datasets"].append(entry)
    result["notShown"] = max(0, counts.total - len(result["datasets"]))
    return result


def _outcome(outcome: m.DatasetOutcome) -> Payload:
    entry: Payload = {"pid": outcome.pid, "outcome": outcome.outcome}
    if outcome.error is not None:
        entry["error"] = {"type": outcome.error.type[:100], "kind": outcome.error.kind}
    if outcome.datablocks:
        entry |= {
            "datablocks": outcome.datablocks,
            "files": outcome.files,
            "sizeBytes": outcome.size_bytes,
            "packedBytes": outcome.packed_bytes,
        }
    if outcome.level:
        entry["verified"] = outcome.level
    message = _fitting(outcome.message, max(100, MAX_OUTCOME_BYTES - len(json.dumps(entry))))
    return {"pid": outcome.pid, "outcome": outcome.outcome, "message": message, **entry}


def _fitting(text: str, most: int) -> str:
    """The text, cut in its middle until it takes at most so many bytes as JSON."""
    limit = min(len(text), most)
    while len(json.dumps(text := cut(text, limit))) > most and limit > 8:
        limit = limit * 3 // 4
    return text


def job_says(job: Job, payload: Payload) -> bool:
    """Whether the job already says what ``payload`` would write."""
    same: bool = job.status_code == payload["statusCode"] and job.status_message == payload["statusMessage"]
    if not same or "jobResultObject" not in payload:
        return same
    there, ours = _full(job.result), _full(payload["jobResultObject"])
    if ours.get("run") and there.get("run") == ours["run"]:
        there, ours = ({key: one for key, one in said.items() if key not in SIGNED} for said in (there, ours))
    equal: bool = there == ours
    return equal


def _full(value: Any) -> Any:
    """Without nulls and empty objects, which a document store may drop: their loss must not cause another mail."""
    if isinstance(value, dict):
        return {key: kept for key, one in value.items() if (kept := _full(one)) not in (None, {})}
    return [_full(one) for one in value] if isinstance(value, list) else value


def lifecycle_started(job_id: str) -> Payload:
    """Before anything else: SciCat itself no longer marks a dataset when its job is made."""
    return {
        "archivable": False,
        "archiveStatusMessage": STARTED,
        "archiveReturnMessage": {"summary": "Being archived.", "job": job_id, "since": _now()},
    }


def lifecycle_archived(request: m.FinishDatasetRequest, storage_location: str) -> Payload:
    """After everything is true (P2)."""
    summary = (
        f"Archived: {request.files} files in {request.datablocks} datablocks, verified at level {request.level!r}."
    )
    return {
        "archivable": False,
        "retrievable": True,
        "archiveStatusMessage": ARCHIVED,
        "storageLocation": storage_location,
        "archiveReturnMessage": {
            "summary": summary,
            "job": request.job_id,
            "datablocks": request.datablocks,
            "files": request.files,
            "sizeBytes": request.size_bytes,
            "packedBytes": request.packed_bytes,
            "verified": request.level,
        },
    }


def lifecycle_failed(request: m.FailDatasetRequest, *, archivable: bool) -> Payload:
    """Why it was not archived. A stopped dataset is archivable again and says who stopped it."""
    message: Payload = {"job": request.job_id, "when": _now()}
    if request.stopped is not None and request.error is None:
        message = {
            "summary": cut(f"Archiving was stopped by {request.stopped.who}: {request.stopped.reason}", MAX_TEXT),
            "stoppedBy": request.stopped.who,
            "reason": cut(request.stopped.reason, MAX_TEXT),
            **message,
        }
        return {"archivable": True, "archiveStatusMessage": STOPPED, "archiveReturnMessage": message}
    error = request.error or m.ErrorInfo()
    status = CONTENT if error.kind == "content" else FAILED
    message = {
        "summary": cut(error.message, MAX_TEXT),
        "error": {"type": error.type, "kind": error.kind, "step": error.where},
        **message,
    }
    return {"archivable": archivable, "archiveStatusMessage": status, "archiveReturnMessage": message}


def lifecycle_retrieve_started(job_id: str) -> Payload:
    """Before anything is read. What was checked at an earlier retrieval says nothing of this one; archive states stay."""
    return {
        "retrieveStatusMessage": STARTED,
        "retrieveIntegrityCheck": False,
        "retrieveReturnMessage": {"summary": "Being retrieved.", "job": job_id, "since": _now()},
    }


def lifecycle_retrieved(request: w.FinishRetrieveRequest) -> Payload:
    """After every byte was checked and lies at the destination (P2). Where that is stands in the job's result only (P8)."""
    files = f"{request.files} file{'s' if request.files != 1 else ''}"
    return {
        "retrieveStatusMessage": RETRIEVED,
        "retrieveIntegrityCheck": True,
        "retrieveReturnMessage": {
            "summary": f"Retrieved: {files}, every checksum right. The job's result says how to get at them.",
            "job": request.job_id,
            "files": request.files,
            "sizeBytes": request.size_bytes,
            "destination": request.destination.kind,
            "when": _now(),
        },
    }


def lifecycle_retrieve_failed(request: w.FailRetrieveRequest) -> Payload:
    """Why it was not retrieved, or who stopped it. It stays archived, and retrievable."""
    message: Payload = {"job": request.job_id, "when": _now()}
    status = NOT_RETRIEVED
    if request.stopped is not None and request.error is None:
        # As SciCat has it where nothing was retrieved: what a person stopped is no system error.
        status = NOTHING_RETRIEVED
        who, reason = request.stopped.who, request.stopped.reason
        message = {
            "summary": cut(f"Retrieving was stopped by {who}: {reason}", MAX_TEXT),
            "stoppedBy": cut(who, MAX_TEXT),
            "reason": cut(reason, MAX_TEXT),
            **message,
        }
    else:
        error = request.error or m.ErrorInfo()
        message = {
            "summary": cut(error.message, MAX_TEXT),
            "error": {"type": error.type, "kind": error.kind, "step": error.where},
            **message,
        }
    return {
        "retrieveStatusMessage": status,
        "retrieveIntegrityCheck": False,
        "retrieveReturnMessage": message,
    }


class Counters(NamedTuple):
    """A dataset's own sums: bytes and files of its origdatablocks, bytes and files of its datablocks."""

    size: int
    files: int
    packed_size: int
    files_archived: int

    @classmethod
    def of(cls, dataset: Dataset) -> Counters:
        """As SciCat has them; what it does not have is 0."""
        archived = (dataset.packed_size or 0, dataset.number_of_files_archived or 0)
        return cls(dataset.size or 0, dataset.number_of_files or 0, *archived)

    def payload(self) -> Payload:
        """All of them, always: SciCat sets to 0 what a patch of a dataset leaves out."""
        return dict(zip(COUNTERS, self, strict=True))


def version_text(record: DatablockRecord, format: str) -> str:
    """SciCat has no field for the datablock's own checksum and level, so they stand in ``version``."""
    return f"{format}/1 sha256:{record.sha256} verified:{record.level}"


def datablock(
    dataset: Dataset, record: DatablockRecord, files: Iterable[ManifestFile], *, archive_id: str, format: str
) -> Payload:
    """``CreateDatablockDto`` of a verified datablock; each file with the SHA-256 of its first read."""
    payload: Payload = {
        "datasetId": dataset.pid,
        "archiveId": archive_id,
        "size": record.size_bytes,
        "packedSize": record.packed_bytes,
        "chkAlg": "sha256",
        "version": version_text(record, format),
        "dataFileList": [_data_file(file) for file in files],
    }
    if dataset.owner_group:
        payload["ownerGroup"] = dataset.owner_group
    if dataset.access_groups:
        payload["accessGroups"] = dataset.access_groups
    if dataset.instrument_group:
        payload["instrumentGroup"] = dataset.instrument_group
    return payload


def _data_file(file: ManifestFile) -> Payload:
    entry: Payload = {
        "path": file.path,
        "size": file.size,
        "time": _time(file.time),
        "chk": file.sha256,
    }
    if file.uid is not None:
        entry["uid"] = file.uid
    if file.gid is not None:
        entry["gid"] = file.gid
    if file.mode is not None:
        entry["perm"] = perm_of(file.mode)
    return entry


def _time(text: str) -> str:
    """As the catalogue gives it; if SciCat would refuse it, as the tar has it."""
    if _TIME.fullmatch(text):
        try:
            datetime.fromisoformat(text.replace("Z", "+00:00"))
            return text
        except ValueError:
            pass
    return datetime.fromtimestamp(seconds(text), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def same_datablock(there: Payload, ours: Payload) -> bool:
    """Whether the registered datablock is the one we would register: sizes, owner dataset, and every file's digest."""
    if any(there.get(key) != ours[key] for key in ("datasetId", "archiveId", "size", "packedSize", "version")):
        return False
    listed = there.get("dataFileList")
    if not isinstance(listed, list) or len(listed) != len(ours["dataFileList"]):
        return False
    try:
        return {_identity(entry) for entry in listed} == {_identity(entry) for entry in ours["dataFileList"]}
    except TypeError:  # a list or an object where a text belongs
        return False


def _identity(entry: Any) -> tuple[Any, ...]:
    return tuple(entry.get(key) for key in ("path", "size", "chk")) if isinstance(entry, dict) else (entry,)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
