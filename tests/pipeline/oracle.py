"""The judge of every fault experiment: shares no code with the product.

Each dataset is either ARCHIVED (every source byte in a registered datablock that reads back right, each datablock once,
status right) or CLEAN (not registered, sources untouched, a terminal status with a message, nothing left behind).
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bagit
from temporalio.common import SearchAttributeKey

from tests.pipeline.system import System


async def assert_archived(system: System, pid: str, files: Mapping[str, bytes], *, bag: str | None = None) -> None:
    """ARCHIVED, by GNU tar, sha256sum, a bag validator, a listing with boto3, and SciCat's own records."""
    folder = system.lts / (bag or pid)
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "manifest-sha256.txt"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    bagit.Bag(str(folder)).validate()
    blocks = sorted(path for path in folder.glob("data/*") if not path.name.endswith(".manifest.jsonl.gz"))
    assert blocks
    with tempfile.TemporaryDirectory() as unpacked:
        for block in blocks:
            tar = subprocess.run(["tar", "-xf", str(block), "-C", unpacked], capture_output=True, text=True)
            assert tar.returncode == 0, tar.stderr
        found = {
            str(path.relative_to(unpacked)): path.read_bytes() for path in Path(unpacked).rglob("*") if path.is_file()
        }
    assert found == dict(files)
    registered = system.datablocks(pid)
    names = sorted(block["archiveId"] for block in registered)
    assert names == sorted(str(block.relative_to(system.lts)) for block in blocks), "each datablock once"
    listed = {file["path"]: file["size"] for block in registered for file in block["dataFileList"]}
    assert listed == {path: len(data) for path, data in files.items()}
    record = await system.record(pid)
    life = record["datasetlifecycle"]
    assert (life["archiveStatusMessage"], life["retrievable"], life["archivable"]) == (
        "datasetOnArchiveDisk",
        True,
        False,
    )
    assert life["storageLocation"] == "archive"
    assert record["numberOfFilesArchived"] == len(files)
    assert record["packedSize"] == sum(block.stat().st_size for block in blocks)
    nothing_left(system, pid, bag=bag)
    await nothing_runs(system, pid)


async def assert_clean(system: System, pid: str, status: str, *, files: Mapping[str, bytes] | None = None) -> str:
    """CLEAN with this archiveStatusMessage; returns the message that users read."""
    assert system.datablocks(pid) == []
    life = await system.lifecycle(pid)
    assert life["archiveStatusMessage"] == status
    assert not life["retrievable"]
    nothing_left(system, pid)
    await nothing_runs(system, pid)
    if files is not None:
        assert landing(system, pid) == {path: len(data) for path, data in files.items()}, "sources untouched"
    message: Any = life["archiveReturnMessage"]
    return str(message["summary"]) if isinstance(message, dict) and message else ""


def landing(system: System, pid: str) -> dict[str, int]:
    """What lies in the landing zone: path and size."""
    pages = system.boto.get_paginator("list_objects_v2").paginate(Bucket=system.landing_bucket, Prefix=f"{pid}/")
    return {entry["Key"][len(pid) + 1 :]: entry["Size"] for page in pages for entry in page.get("Contents", [])}


async def nothing_runs(system: System, pid: str) -> None:
    """No workflow of this dataset is open; Temporal's list may be a moment behind."""
    key = SearchAttributeKey.for_keyword("DatasetPid")
    for _ in range(900):
        listed = [one async for one in system.client.list_workflows("ExecutionStatus = 'Running'")]
        running = [one.id for one in listed if one.typed_search_attributes.get(key) == pid]
        if not running:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"still running: {running}")


def nothing_left(system: System, pid: str, *, bag: str | None = None) -> None:
    """No ``.partial``, no staged object, no open multipart upload, no promise of space, of this dataset."""
    name = bag or pid
    folder = system.lts / name
    partials = [str(path) for path in folder.rglob(".*.partial")] if folder.is_dir() else []
    assert partials == []
    boto, bucket, prefix = system.boto, system.staging_bucket, f"datasets/{name}/"
    assert boto.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", []) == []
    assert boto.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", []) == []
    promises = [path.read_text() for path in (system.lts / ".archiver" / "promises").glob("*.json")]
    assert [text for text in promises if f'"{name}/' in text] == []
