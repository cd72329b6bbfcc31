"""What people see of a workflow: typed search attributes, the Markdown of current details, and errors in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from temporalio import workflow
from temporalio.common import SearchAttributeKey, SearchAttributePair, SearchAttributeUpdate, TypedSearchAttributes
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError, FailureError, TimeoutError

with workflow.unsafe.imports_passed_through():
    from pydantic import ValidationError

    from archiver import model as m
    from archiver.text import cut, keyword, table_cell

MAX_MESSAGE = 1500
"""Characters of a failure's message that are handed on."""
MAX_CELL = 600
"""Characters of a value in the table of current details."""
M = TypeVar("M", bound=m.Wire)

JOB_ID = SearchAttributeKey.for_keyword("ScicatJobId")
PID = SearchAttributeKey.for_keyword("DatasetPid")
OWNER_GROUP = SearchAttributeKey.for_keyword("OwnerGroup")
OPERATION = SearchAttributeKey.for_keyword("Operation")
STAGE = SearchAttributeKey.for_keyword("Stage")
BYTES_TOTAL = SearchAttributeKey.for_int("BytesTotal")
DATABLOCK_COUNT = SearchAttributeKey.for_int("DatablockCount")
WELL = "finishedSuccessful"
"""Stage of a job that ended well: its status code in SciCat."""
UNTOLD = "not told"
"""Stage of a job of which SciCat refuses the end."""
FAILED, SINCE, WAS_GOOD = "failed", "since", "was good"
"""In the memo of a sweep: so many looks in a row failed, since when, and whether one before them in this run was good."""
MESSAGE = "message"
"""In the memo of a job that did not end well: why."""


def attributes(
    *, job_id: str, pid: str = "", owner_group: str = "", stage: str = "started", operation: str = "archive"
) -> TypedSearchAttributes:
    """Search attributes to start a workflow with."""
    pairs: list[SearchAttributePair[str]] = [
        SearchAttributePair(OPERATION, operation),
        SearchAttributePair(STAGE, stage),
    ]
    for key, value in ((JOB_ID, job_id), (PID, pid), (OWNER_GROUP, owner_group)):
        if value:
            pairs.append(SearchAttributePair(key, keyword(value)))
    return TypedSearchAttributes(pairs)


def show(
    stage: str, rows: Iterable[tuple[str, object]], *more: SearchAttributeUpdate[str] | SearchAttributeUpdate[int]
) -> None:
    """Set the Stage search attribute (one event) and the table that the Web UI shows as current details (no event)."""
    workflow.upsert_search_attributes([STAGE.value_set(stage), *more])
    details(stage, rows)


def details(stage: str, rows: Iterable[tuple[str, object]]) -> None:
    """Set the Markdown table that the Web UI shows as current details."""
    table = [f"**{stage}**", "", "| | |", "|---|---|"]
    table += [f"| {label} | {table_cell(str(value), MAX_CELL)} |" for label, value in rows]
    workflow.set_current_details("\n".join(table))


def size(count: int) -> str:
    """A size for people: 1.2 GiB."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1023.95 and len(units) > 1:  # 1024.0 is said in the next unit
        value /= 1024
        units.pop(0)
    return f"{count} B" if count < 1024 else f"{value:.1f} {units[0]}"


def quoted(text: str) -> str:
    """``text`` within the quotes of a visibility query."""
    return text.replace("\\", "\\\\").replace("'", "\\'")


def heard(kind: type[M], given: tuple[object, ...]) -> M | None:
    """What a signal carries, or None if that is something else: then nobody is stopped, and nothing is stuck.

    Handlers take whatever comes. One that the SDK cannot call, for an input too few or too many, fails the workflow's task,
    and that is tried again for ever.
    """
    try:
        return kind.model_validate({} if given[0] is None else given[0]) if given else None
    except ValidationError:
        workflow.logger.warning("a signal with a payload that is no %s was dropped", kind.__name__)
        return None


def explain(error: BaseException) -> m.ErrorInfo:
    """The cause of a failed activity or child as SciCat, the operator and the job's result will read it."""
    cause: BaseException = error
    while isinstance(cause, (ActivityError, ChildWorkflowError)) and cause.cause is not None:
        cause = cause.cause
    where = error.activity_type if isinstance(error, ActivityError) else ""
    if isinstance(error, ChildWorkflowError) and isinstance(error.cause, ActivityError):
        where = error.cause.activity_type
    if isinstance(cause, ApplicationError):
        if cause.details and isinstance(cause.details[0], dict):
            info = m.ErrorInfo.model_validate(cause.details[0])
            return info.model_copy(update={"where": info.where or where})
        return m.ErrorInfo(type=cause.type or "Unknown", kind="system", message=cause.message, where=where)
    if isinstance(cause, TimeoutError):
        text = f"step {where or '?'} gave no sign of life in time ({cause.message}); next: see that its worker runs"
        return m.ErrorInfo(type="Timeout", kind="system", message=text, where=where)
    message = cause.message if isinstance(cause, FailureError) else str(cause)
    return m.ErrorInfo(type=type(cause).__name__, kind="system", message=cut(message, MAX_MESSAGE), where=where)


def as_failure(info: m.ErrorInfo) -> ApplicationError:
    """``info`` as the failure of a workflow that is not to be retried."""
    return ApplicationError(info.message, info.model_dump(), type=info.type, non_retryable=True)
