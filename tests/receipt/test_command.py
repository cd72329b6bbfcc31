"""``archiver receipt``: from the receipt beside the bag, or of what SciCat and Temporal still know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archiver import model as m
from archiver.settings import Settings
from cli import exits
from cli.receipt import receipt
from tests.operators.conftest import Run
from tests.pipeline.moments import full_lts, until
from tests.pipeline.system import System

TEXT = {"a.txt": b"text"}
NOBODY = "127.0.0.1:9"
"""Nobody listens there."""


def elsewhere(settings: Settings, **sections: dict[str, Any]) -> Settings:
    """The settings of a machine where some things are not."""
    return settings.model_copy(
        update={name: getattr(settings, name).model_copy(update=fields) for name, fields in sections.items()}
    )


def said(data: dict[str, Any], source: str) -> list[str]:
    return [event["event"] for event in data["events"] if event["source"] == source]


async def test_an_archived_dataset_has_its_receipt_from_the_lts_alone(served: System, run: Run) -> None:
    pid = await served.dataset(TEXT)
    await served.archive(pid)
    alone = elsewhere(served.settings, scicat={"url": f"http://{NOBODY}"}, temporal={"address": NOBODY})
    text, data = await receipt(alone, pid)
    path = served.lts / pid / "events.jsonl"
    assert data["sources"] == {"lts": str(path)}
    assert data["events"] == [{**json.loads(line), "source": "lts"} for line in path.read_text().splitlines()]
    lines = text.splitlines()
    assert len(lines) == 2 + len(data["events"]), "one line per event"
    for line, event in zip(lines[2:], data["events"], strict=True):
        assert line.startswith(f"{event['time']}  lts       {event['type']}")
        assert event["event"] in line
        assert all(f"{name} {value}" in line for name, value in event.get("detail", {}).items())
    ended = await run(served, "--json", "receipt", pid)
    assert (ended.returncode, json.loads(ended.stdout)) == (0, {"version": 1, **data})


async def test_where_the_lts_is_not_seen_scicat_and_temporal_tell_what_they_know(
    served: System, tmp_path: Path
) -> None:
    pid = await served.dataset(TEXT)
    await served.archive(pid)
    text, data = await receipt(elsewhere(served.settings, lts={"root": tmp_path}), pid)
    assert data["sources"]["lts"].startswith("missing: ")
    assert f"Datablock {pid}/data/1.tar.gz was registered" in said(data, "scicat")
    assert "Datablock 1 lies on the LTS and was verified" in said(data, "temporal")
    assert said(data, "temporal")[-1].startswith("The run ended, archived: 1 files in 1 datablocks, verified (")
    times = [event["time"] for event in data["events"]]
    assert times == sorted(times)
    assert all(line[26:34].strip() in ("scicat", "temporal") for line in text.splitlines()[4:])


async def test_a_dataset_that_was_not_archived_says_why(served: System) -> None:
    pid = await served.dataset({}, listed=[served.entry("gone.txt", b"gone")])
    await served.archive(pid)
    text, data = await receipt(served.settings, pid)
    assert data["sources"]["lts"] == f"none: there is no {served.lts / pid / 'events.jsonl'}"
    failures = [event for event in data["events"] if event["outcome"] == "failure"]
    assert {event["source"] for event in failures} == {"scicat", "temporal"}
    assert all("gone.txt" in event["event"] for event in failures)
    assert text.count("FAILED: ") == len(failures)


async def test_a_run_under_way_is_told_so_far(served: System) -> None:
    pid = await served.dataset(TEXT)
    with full_lts(served):
        handle = await served.start_job(await served.job(pid))
        await served.pending("wait-for-lts-space", "archive-datablock", pid, "1")
        _, data = await receipt(served.settings, pid)
    await handle.result()
    assert [event["type"] for event in data["events"] if event["source"] == "temporal"] == [
        "ingestion start",
        "validation",
    ]
    assert any(text.startswith("SciCat shows the dataset as started") for text in said(data, "scicat"))


async def test_a_terminated_run_is_told(served: System) -> None:
    pid = await served.dataset(TEXT)
    with full_lts(served):
        handle = await served.start_job(await served.job(pid))
        await served.pending("wait-for-lts-space", "archive-datablock", pid, "1")
        dataset = served.client.get_workflow_handle(f"archive-dataset/{pid}")
        await dataset.terminate(reason="a test")
        _, data = await receipt(served.settings, pid)
        await handle.cancel()
        await until(lambda: _closed(served, pid), "its datablock has stopped")
    assert said(data, "temporal")[-1] == "The run was terminated: a test"


async def _closed(system: System, pid: str) -> bool:
    described = await system.client.get_workflow_handle(f"archive-datablock/{pid}/1").describe()
    return described.close_time is not None


async def test_an_unknown_pid_is_not_found_and_steers_no_terminal(served: System, run: Run) -> None:
    ended = await run(served, "receipt", "it's/no\x1b[31m\\'\u202e")
    assert (ended.returncode, ended.stdout) == (exits.NOT_FOUND, "")
    assert "nothing is known of dataset" in ended.stderr
    assert "\x1b" not in ended.stderr


@pytest.mark.parametrize("pid", ["x" * 5000, "a\x00b", ""])
async def test_what_cannot_be_a_pid_is_not_found(served: System, pid: str) -> None:
    with pytest.raises(exits.NotFound):
        await receipt(served.settings, pid)


async def test_with_nobody_to_ask_it_says_who_does_not_answer(served: System) -> None:
    pid = await served.dataset(TEXT)
    alone = elsewhere(served.settings, temporal={"address": NOBODY})
    _, data = await receipt(alone, pid)
    assert said(data, "scicat") == [
        "The dataset was registered in SciCat",
        "SciCat shows the dataset as datasetCreated",
    ]
    assert data["sources"]["temporal"].startswith("missing: Temporal does not answer at 127.0.0.1:9")


async def test_a_line_that_is_damaged_hides_no_other_and_control_characters_are_shown(served: System) -> None:
    pid = await served.dataset(TEXT)
    assert (await served.archive(pid)).counts == m.Counts(archived=1)
    path = served.lts / pid / "events.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    strange = json.dumps({"version": 9, "event": "\x1b[2Jnew\nline", "outcome": "success"}).encode() + b"\n"
    path.write_bytes(b"".join([first, b'{"half\xff\n', b"[]\n", strange, *others]))
    text, data = await receipt(served.settings, pid)
    assert len(text.splitlines()) == 2 + len(others) + 4
    assert "line 2 of the receipt cannot be read" in text
    assert "\\x1b[2Jnew\\nline" in text
    assert data["events"][4:] == [{**json.loads(line), "source": "lts"} for line in others]
