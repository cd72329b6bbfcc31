"""Seeing from outside where a dataset is: what lies on the LTS and in staging, what Temporal says is under way."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

from temporalio.client import WorkflowHandle
from temporalio.service import RPCError

from tests.pipeline.system import System

MIB = 2**20


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not shrink: as many packed as plain."""
    return Random(seed).randbytes(size)


async def until(
    condition: Callable[[], Any] | Callable[[], Awaitable[Any]], what: str = "", seconds: float = 90
) -> Any:
    """Wait until ``condition()`` is true, and return what it said."""
    end = time.monotonic() + seconds
    while True:
        said = condition()
        if inspect.isawaitable(said):
            said = await said
        if said:
            return said
        assert time.monotonic() < end, f"not so after {seconds} s: {what or inspect.getsource(condition).strip()}"
        await asyncio.sleep(0.02)


def partials(system: System, pid: str) -> list[Path]:
    """Files being written on the LTS for this dataset."""
    return sorted((system.lts / pid).rglob(".*.partial"))


def uploads(system: System, pid: str) -> list[str]:
    """Ids of the open multipart uploads of this dataset."""
    answer = system.boto.list_multipart_uploads(Bucket=system.staging_bucket, Prefix=f"datasets/{pid}/")
    return [upload["UploadId"] for upload in answer.get("Uploads", [])]


def staged(system: System, pid: str) -> list[str]:
    """Keys of the staged objects of this dataset."""
    answer = system.boto.list_objects_v2(Bucket=system.staging_bucket, Prefix=f"datasets/{pid}/")
    return [entry["Key"] for entry in answer.get("Contents", [])]


@contextmanager
def full_lts(system: System, *, now: bool = True) -> Iterator[Callable[[], None]]:
    """All of the LTS is promised to somebody else: ``now``, or when what is yielded is called."""
    path = system.lts / ".archiver" / "promises" / "0.json"

    def fill() -> None:
        path.write_text(json.dumps({"for": "somebody else", "bytes": 2**50}))

    if now:
        fill()
    try:
        yield fill
    finally:
        path.unlink(missing_ok=True)


def on_lts(system: System, pid: str) -> dict[str, int]:
    """Names below ``data/`` of this dataset's directory, with their inode numbers: another file has another."""
    folder, names, found = system.lts / pid / "data", [], {}
    with suppress(FileNotFoundError):
        names = os.listdir(folder)
    for name in names:
        # What is being written is gone under this name at any moment.
        with suppress(FileNotFoundError):
            found[name] = (folder / name).stat().st_ino
    return found


def miscounted(system: System, pid: str) -> None:
    """SciCat's own sums of the dataset are wrong: they must be put right."""
    dataset = system.standin.store.get("datasets", pid)
    assert dataset is not None
    system.standin.store.put("datasets", pid, {**dataset, "packedSize": 12345})


def dataset_workflow(system: System, pid: str) -> WorkflowHandle[Any, Any]:
    """The dataset's workflow."""
    return system.client.get_workflow_handle(f"archive-dataset/{pid}")


async def stage(system: System, pid: str, n: int = 1) -> str:
    """The stage that a datablock's workflow says it is in; empty where there is none."""
    try:
        return str((await system.client.get_workflow_handle(f"archive-datablock/{pid}/{n}").query("progress"))["stage"])
    except RPCError:
        return ""


async def activities(system: System, workflow_id: str) -> dict[str, int]:
    """Activities that are under way in a workflow, with their attempt."""
    described = await system.client.get_workflow_handle(workflow_id).describe()
    return {one.activity_type.name: one.attempt for one in described.raw_description.pending_activities}


def children(parent: int, name: str) -> list[int]:
    """Process ids of the children of a process whose command line holds ``name``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            father = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if father == parent and name in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(entry.name))
        except (OSError, IndexError, ValueError):
            continue  # it has just ended
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def verifier_of(worker_pid: int) -> int:
    """The process id of a worker's verifier, once it has one."""
    return int((await until(lambda: children(worker_pid, "archiver.datablock.verify"), "a verifier process"))[0])


def this_process() -> int:
    """Our own process id: workers served in this process have their verifiers here."""
    return os.getpid()
