"""``events.jsonl`` beside the bag: what happened to a dataset, in order, however often and with whatever falling out."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from archiver import model as m
from archiver.datablock.events import added, in_order, line, read
from archiver.pids import pid_path
from archiver.progress import Silent
from archiver.settings import LtsSettings
from archiver.storage.lts_directory import FileSystemLts
from cli.receipt import receipt as receipt_of
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import MIB, dataset_workflow, full_lts, noise, stage, until
from tests.pipeline.oracle import assert_archived
from tests.pipeline.system import System

FILES = {"a.bin": noise(MIB, 1), "b.bin": noise(MIB, 2)}
SETTINGS = {"datablock": {"target_bytes": MIB}, "archive": {"datablocks_at_once": 1}}
BEGUN = [("ingestion start", "success"), ("validation", "success")]
MADE = [("packing", "success"), ("transfer", "success"), ("fixity check", "success")]
DONE = [
    ("information package creation", "success"),
    ("metadata modification", "success"),
    ("ingestion end", "success"),
]


def receipt(system: System, name: str) -> Path:
    return system.lts / name / "events.jsonl"


def events(system: System, name: str) -> list[dict[str, Any]]:
    """The events beside the bag in the directory ``name`` of the LTS."""
    data = receipt(system, name).read_bytes()
    assert data.isascii()
    assert data.endswith(b"\n")
    lines = data.splitlines()
    assert len(set(lines)) == len(lines), "each event once"
    return [json.loads(line) for line in lines]


def kinds(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["type"], event["outcome"]) for event in found]


async def test_a_receipt_tells_what_happened_in_order_and_harms_neither_bag_nor_checksums(served: System) -> None:
    pid = await served.dataset({"a.txt": b"text"})
    job = await served.job(pid)
    await (await served.start_job(job)).result()
    await assert_archived(served, pid, {"a.txt": b"text"})
    found = events(served, pid)
    assert kinds(found) == [*BEGUN, *MADE, *DONE]
    times = [event["time"] for event in found]
    assert times == sorted(times)
    assert {event["job"] for event in found} == {job}
    block = f"{pid}/data/1.tar.gz"
    assert [event["object"] for event in found] == [pid, pid, block, block, block, pid, pid, pid]
    workflows = {event["object"]: event["workflow"] for event in found}
    assert workflows == {pid: f"archive-dataset/{pid}", block: f"archive-datablock/{pid}/1"}
    assert all(event["run"] and event["version"] == 1 for event in found)
    assert {event["agent"] for event in found} == {
        f"scicat-archiver {version('scicat-archiver')} on {socket.gethostname()}"
    }
    sums = dict(
        reversed(line.split("  ")) for line in (served.lts / pid / "manifest-sha256.txt").read_text().splitlines()
    )
    for number in (2, 4):
        assert found[number]["detail"]["sha256"] == sums["data/1.tar.gz"]
    assert "events.jsonl" not in (served.lts / pid / "tagmanifest-sha256.txt").read_text(), "it grows after the bag"


async def test_p3_archiving_an_archived_dataset_leaves_its_receipt_as_it_is(served: System) -> None:
    pid = await served.dataset({"a.txt": b"text"})
    await served.archive(pid)
    before = receipt(served, pid).read_bytes(), receipt(served, pid).stat().st_ino
    assert (await served.archive(pid)).counts == m.Counts(already_archived=1)
    assert (receipt(served, pid).read_bytes(), receipt(served, pid).stat().st_ino) == before


async def test_a_stopped_run_is_told_before_the_one_that_uses_what_it_verified(make_system: MakeSystem) -> None:
    system = await make_system(SETTINGS)
    after = After()
    async with system.workers(interceptors=[after]):
        pid = await system.dataset(FILES)
        with full_lts(system, now=False) as fill:
            after.then["verify-in-lts"] = fill
            first = await system.job(pid)
            handle = await system.start_job(first)
            await until(lambda: _waits(system, pid, 2), "datablock 2 waits for space")
            await dataset_workflow(system, pid).signal("cancel", m.StopRequest(reason="beam time over", who="anna"))
            assert (await handle.result()).counts == m.Counts(cancelled=1)
        stopped = events(system, pid)
        assert kinds(stopped) == [*BEGUN, *MADE, ("ingestion end", "failure")]
        assert stopped[-1]["event"] == "The dataset was not archived: stopped by anna: beam time over"
        second = await system.job(pid)
        await (await system.start_job(second)).result()
    await assert_archived(system, pid, FILES)
    found = events(system, pid)
    assert found[: len(stopped)] == stopped, "what stood there stays in front"
    again = found[len(stopped) :]
    assert {event["job"] for event in stopped} == {first}
    assert {event["job"] for event in again} == {second}
    of = {n: [event for event in again if event["object"].endswith(f"/{n}.tar.gz")] for n in (1, 2)}
    assert kinds(of[1]) == [("fixity check", "success")]
    assert ", which was there already, was read back" in of[1][0]["event"]
    assert kinds(of[2]) == MADE
    assert kinds([event for event in again if event["object"] == pid]) == [*BEGUN, *DONE]


async def test_a_datablock_that_did_not_match_went_into_quarantine_and_was_made_anew_and_sources_were_deleted_last(
    make_system: MakeSystem,
) -> None:
    system = await make_system({**SETTINGS, "landing": {"delete_after_archive": True}})
    after = After()
    async with system.workers(interceptors=[after]):
        pid = await system.dataset({"a.bin": FILES["a.bin"]})
        after.then["copy-to-lts"] = lambda: _flip(system.lts / pid / "data" / "1.tar.gz")
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
    await assert_archived(system, pid, {"a.bin": FILES["a.bin"]})
    found = events(system, pid)
    wrong = [("packing", "success"), ("transfer", "success"), ("fixity check", "failure"), ("quarantine", "success")]
    assert kinds(found) == [*BEGUN, *wrong, *MADE, *DONE, ("deletion", "success")]
    assert found[-1]["detail"] == {"files": 1, "kept": 0}


async def test_a_pid_of_any_characters_has_a_receipt_of_whole_lines(served: System, tmp_path: Path) -> None:
    pid = "it's/a\\b \u202e\x1b[31m\u2028ü"
    await served.dataset({"a.txt": b"text"}, pid=pid)
    assert (await served.archive(pid)).counts == m.Counts(archived=1)
    found = events(served, pid_path(pid))
    assert kinds(found) == [*BEGUN, *MADE, *DONE]
    assert found[0]["object"] == pid
    await assert_archived(served, pid, {"a.txt": b"text"}, bag=pid_path(pid))
    nowhere = served.settings.lts.model_copy(update={"root": tmp_path})
    for settings in (served.settings, served.settings.model_copy(update={"lts": nowhere})):
        text, data = await receipt_of(settings, pid)
        assert len(text.split("\n")) == 1 + len(data["sources"]) + len(data["events"])
        assert text.replace("\n", "").isprintable()
    assert any(event["source"] == "temporal" for event in data["events"])


def test_p6_p5_what_is_recorded_twice_stands_there_once_and_a_killed_writer_leaves_the_old_receipt(
    tmp_path: Path,
) -> None:
    lts = FileSystemLts(LtsSettings(root=tmp_path, reserve="0B"))
    lts.setup()
    first, second = (m.Event(time=f"2026-01-0{n}", type="packing", event=f"{n}", object="a/b") for n in (1, 2))
    lts.record_events("a/b", [first], "run-1-1", Silent())
    path = tmp_path / "a" / "b" / "events.jsonl"
    before = path.read_bytes()

    class Killed(Silent):
        def note(self, text: str) -> None:
            raise KeyboardInterrupt

    draft = path.with_name(".events.jsonl.run-1-1.partial")
    draft.write_bytes(b"cut sho")
    with pytest.raises(KeyboardInterrupt):
        lts.record_events("a/b", [second], "run-2-1", Killed())
    assert path.read_bytes() == before
    for _ in range(2):
        lts.record_events("a/b", [first, second], "run-2-2", Silent())
        assert path.read_bytes() == before + line(second)
        assert [one.name for one in path.parent.iterdir()] == ["events.jsonl"]


def test_a_receipt_without_its_last_newline_is_kept_and_goes_on_in_a_line_of_its_own() -> None:
    event = m.Event(time="2026-01-01", type="packing", event="x")
    assert added(b'{"half', [event]) == b'{"half\n' + line(event)


def test_p10_a_full_receipt_counts_the_events_of_datablocks_and_still_tells_those_of_the_dataset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("archiver.datablock.events.MAX_BYTES", 1000)
    block = [m.Event(time=f"{n:04}", type="packing", event="x", object=f"a/b/data/{n}.tar.gz") for n in range(50)]
    end = m.Event(time="9", type="ingestion end", event="done", object="a/b")
    full = added(b"", [*block, end])
    assert [event["event"] for event in read(full)] == [
        "done",
        "50 events of single datablocks are not listed: this receipt is full",
    ]
    assert added(full, [*block, end]) == full


def test_events_stay_in_their_datablocks_order_where_clocks_differ() -> None:
    made = [("3", "a"), ("1", "a"), ("2", "b")]
    found = in_order(m.Event(time=time, type="packing", event="x", object=name) for time, name in made)
    assert [(event.time, event.object) for event in found] == [("2", "b"), ("3", "a"), ("1", "a")]


class After(Interceptor):
    """Does something once, after a step's next end, before its workflow hears of it."""

    def __init__(self) -> None:
        self.then: dict[str, Callable[[], None]] = {}

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        then = self.then

        class Then(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:
                result = await self.next.execute_activity(input)
                if todo := then.pop(activity.info().activity_type, None):
                    todo()
                return result

        return Then(next)


async def _waits(system: System, pid: str, n: int) -> bool:
    return await stage(system, pid, n) == "wait for LTS space"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
