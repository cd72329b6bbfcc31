"""Events of a dataset's receipt (docs/receipt.md), stamped with the workflow's time: replay makes the same again."""

from __future__ import annotations

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from archiver import model as m
    from archiver.pids import pid_path
    from archiver.text import cut


Detail = dict[str, int | float | str]


def event(
    type: str,
    text: str,
    *,
    pid: str,
    job: str,
    datablock: str = "",
    agent: str = "",
    failed: bool = False,
    detail: Detail | None = None,
) -> m.Event:
    """What has just happened to the dataset, or to its ``datablock`` (the file's name). ``type``: a PREMIS event type."""
    info = workflow.info()
    return m.Event(
        time=workflow.now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        type=type,
        event=cut(text, m.MAX_OUTCOME_MESSAGE),
        outcome="failure" if failed else "success",
        agent=agent,
        object=f"{pid_path(pid)}/data/{datablock}" if datablock else pid,
        job=job,
        workflow=info.workflow_id,
        run=info.run_id,
        detail=detail or {},
    )
