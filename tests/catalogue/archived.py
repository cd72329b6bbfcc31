"""Datasets as they lie on an LTS once they are archived: packed, with manifests, bag and receipt; and their record in SciCat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from archiver import model as m
from archiver.datablock.bag import bag_files
from archiver.datablock.events import EVENTS, line
from archiver.datablock.files import PlannedFile, read_lines
from archiver.datablock.pack import pack
from archiver.datablock.plan import make_plan
from archiver.datablock.record import DatablockRecord
from archiver.pids import pid_path
from archiver.progress import Silent
from archiver.settings import LtsSettings
from archiver.storage.lts_directory import FileSystemLts
from tests.catalogue.place import record
from tests.datablock.making import catalogue, limits, source

JOB = "3f1c2a52-8f0f-4a55-9d0c-0a8e1c5c7a11"
FILES = {
    "a.txt": b"text",
    "raw/b c.bin": bytes(range(256)) * 5000,
    "raw/ü.bin": b"\0" * 10**6,
    "z": b"",
}
"""Two datablocks of two files each, with ``MAX_FILES``."""
MAX_FILES = 2


def lts_in(root: Path) -> FileSystemLts:
    """An LTS of one's own, with its marker."""
    root.mkdir(parents=True, exist_ok=True)
    lts = FileSystemLts(LtsSettings.model_validate({"root": root, "identity": "test", "reserve": "0B"}))
    lts.setup()
    return lts


def archived(root: Path, pid: str, files: Mapping[str, bytes] = FILES, *, level: str = "host", job: str = JOB) -> Path:
    """The dataset's directory, as the pipeline leaves it."""
    stored: dict[int, list[PlannedFile]] = {}

    def sink(n: int, chunks: Iterator[bytes]) -> None:
        stored[n] = list(read_lines(chunks, PlannedFile))

    listed = catalogue(dict(files), mode=0o640, uid="1000", gid="staff")
    bounds = limits(max_files=MAX_FILES)
    plan = make_plan(
        listed, source(dict(files)), pid=pid, limits=bounds, surplus="refuse", sink=sink, progress=Silent()
    )
    folder = root / pid_path(pid)
    (folder / "data").mkdir(parents=True)
    records, events = [], []
    for n, planned in stored.items():
        packed = pack(((file, [files[file.path]]) for file in planned), plan=plan, n=n, progress=Silent())
        data = b"".join(packed)
        (folder / "data" / f"{n}.tar.gz").write_bytes(data)
        (folder / "data" / f"{n}.manifest.jsonl.gz").write_bytes(packed.manifest)
        done = packed.result
        records.append(
            DatablockRecord(
                n=n,
                plan_id=plan.plan_id,
                size_bytes=done.size_bytes,
                packed_bytes=len(data),
                files=done.files,
                sha256=done.sha256,
                manifest_sha256=hashlib.sha256(packed.manifest).hexdigest(),
                manifest_bytes=len(packed.manifest),
                level=level,
                how_read="O_DIRECT",
                verified_at="2026-01-01T00:00:00+00:00",
            )
        )
        detail: dict[str, Any] = {"level": level, "sha256": done.sha256}
        name = f"{pid_path(pid)}/data/{n}.tar.gz"
        events.append(m.Event(time=f"{n}", type="fixity check", event="read back", object=name, job=job, detail=detail))
    events.append(m.Event(time="9", type="ingestion end", event="archived", object=pid, job=job))
    made = bag_files(
        pid=pid,
        plan_id=plan.plan_id,
        format="tar.gz",
        records=records,
        dataset=record(pid=pid),
        bagging_date="2026-01-01",
    )
    for name, content in made.items():
        (folder / name).write_bytes(content)
    (folder / EVENTS).write_bytes(b"".join(line(event) for event in events))
    return folder
