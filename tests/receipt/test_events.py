"""``events.jsonl`` beside the bag: what happened to a dataset, in order, however often and with whatever falling out."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from archiver import model as m
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
    assert {event["agent"] for event in found} == {f"scicat-archiver 0.1.0 on {socket.gethostname()}"}
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
