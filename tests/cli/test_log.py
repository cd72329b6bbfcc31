"""Log lines: one for each dataset's end, one without a traceback for a failure on purpose, none that a name could forge."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from archiver import log
from tests.operators.conftest import served, system
from tests.pipeline.moments import until
from tests.pipeline.system import System

__all__ = ["served", "system"]


def written(kind: Any, record: logging.LogRecord) -> str:
    """The line of a record, as our handler writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(kind)
    handler.addFilter(log.Expected())
    handler.handle(record)
    return stream.getvalue()


def failed(error: BaseException) -> logging.LogRecord:
    """As the SDK logs an attempt that failed."""
    record = logging.LogRecord(
        "temporalio.activity",
        logging.WARNING,
        "x.py",
        1,
        "Completing activity as failed",
        (),
        (type(error), error, None),
    )
    record.temporal_activity = {"activity_type": "plan-dataset", "attempt": 3, "workflow_id": "archive-dataset/a/b"}
    return record


def fault(kind: str) -> ApplicationError:
    """What a step of ours fails with."""
    return ApplicationError("3 files missing; next: re-ingest them", {"kind": kind}, type="MissingFiles")


@pytest.mark.parametrize(("kind", "level"), [("content", "INFO"), ("refused", "INFO"), ("system", "WARNING")])
def test_a_failure_on_purpose_is_one_line_of_its_own_level(kind: str, level: str) -> None:
    text = written(log._Text("%(levelname)s %(message)s"), failed(fault(kind)))
    assert text.count("\n") == 1
    assert text.startswith(f"{level} plan-dataset of archive-dataset/a/b, try 3: ")
    assert "3 files missing; next: re-ingest them" in text
    data = json.loads(written(log._Json(), failed(fault(kind))))
    assert (data["level"], "exception" in data) == (level.lower(), False)


def test_an_unexpected_error_keeps_its_traceback() -> None:
    text = written(log._Text("%(levelname)s %(message)s"), failed(KeyError("x")))
    assert text.startswith("WARNING Completing activity as failed\n")
    assert "KeyError" in text


def test_a_name_begins_no_line_of_its_own_and_steers_no_terminal() -> None:
    record = logging.LogRecord("a", logging.INFO, "x.py", 1, "dataset %s", ("a\nWARNING forged\x1b[2J",), None)
    assert written(log._Text("%(levelname)s %(message)s"), record) == "INFO dataset a\\nWARNING forged\\x1b[2J\n"


async def test_each_dataset_and_each_job_that_ends_is_a_line(served: System, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = await served.dataset({"a.txt": b"text"}), await served.dataset({"a.txt": b"text"}, landed=False)
    with caplog.at_level(logging.INFO, "archiver.catalogue"):
        result = await served.archive(good, bad)
        lines: list[str] = []

        async def told() -> bool:
            lines[:] = [record.getMessage() for record in caplog.records if record.name == "archiver.catalogue"]
            return len([line for line in lines if result.job_id in line]) >= 3

        await until(told)
    assert f"dataset {good} archived: 1 files, 4 bytes in 1 datablocks, job {result.job_id}" in lines
    assert any(line.startswith(f"dataset {bad} not archived, job {result.job_id}: ") for line in lines)
    assert any(line.startswith(f"job {result.job_id} ended, finishedWithDatasetErrors: 2 datasets") for line in lines)
