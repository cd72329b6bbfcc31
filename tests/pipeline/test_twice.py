"""P6: every activity run twice in a row gives the same result, and leaves everything as the first run left it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from archiver import model as m
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import MIB, dataset_workflow, full_lts, noise, on_lts, stage, until
from tests.pipeline.oracle import assert_archived, landing, nothing_left
from tests.pipeline.retrieving import fetched, retrieve
from tests.pipeline.system import System
from workflows import steps

TWO_DATABLOCKS = {"a.bin": noise(MIB, 1), "b.bin": noise(MIB, 2)}
SETTINGS = {
    "archive": {"datablocks_at_once": 1},
    "datablock": {"target_bytes": MIB},
    "worker": {"heartbeat_timeout_seconds": 60.0},
}

DONE_ALREADY: dict[str, set[str]] = {
    "wait-for-lts-space": {"waited_seconds"},
    "survey-lts": {"superseded", "removed"},
    "register-datablocks": {"created"},
    "delete-sources": {"files", "kept"},
    "verify-in-lts": {"event"},
    "clean-staging": {"what"},
    "roll-back-lts": {"what"},
    "fail-dataset": {"what"},
}
"""What a second run may say otherwise: how long it waited, when it read, and how much was left for it to do."""


class Twice(Interceptor):
    """Runs every activity twice and compares results and state. ``after`` is called once both runs of a step ended.

    One activity runs at a time, so that what lies there before and after is its own doing.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.one = asyncio.Lock()
        self.seen: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.differences: list[str] = []
        self.after: dict[tuple[str, int], Callable[[], None]] = {}

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Twice(next, self)

    def compare(self, name: str, runs: list[Any], states: list[Any]) -> None:
        """Note what differs."""
        if any(isinstance(run, Exception) for run in runs):
            first, second = (f"{type(run).__name__} {run}" for run in runs)
            self.failed[name] += 1
        else:
            first, second = (_but(run, DONE_ALREADY.get(name, set())) for run in runs)
        if first != second:
            self.differences.append(f"{name} says {first!r}, then {second!r}")
        for where in states[0]:
            if states[0][where] != states[1][where]:
                self.differences.append(f"{name} leaves other {where}: {_unlike(states[0][where], states[1][where])}")
        self.seen[name] += 1


class _Twice(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, twice: Twice) -> None:
        super().__init__(next)
        self._twice = twice

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        async with self._twice.one:
            runs, states = [], []
            for _ in range(2):
                try:
                    runs.append(await self.next.execute_activity(input))
                except ApplicationError as error:
                    runs.append(error)
                states.append(state(self._twice.system))
        name = activity.info().activity_type
        self._twice.compare(name, runs, states)
        if todo := self._twice.after.pop((name, getattr(input.args[0], "n", 0)), None):
            todo()
        if isinstance(runs[0], Exception):
            raise runs[0]
        return runs[0]


def _unlike(first: Any, second: Any) -> str:
    if isinstance(first, dict):
        return str(
            {key: (first.get(key), second.get(key)) for key in {*first, *second} if first.get(key) != second.get(key)}
        )
    return f"{first}, then {second}"


def _but(result: BaseModel, fields: set[str]) -> dict[str, Any]:
    return result.model_dump(exclude=fields)


def state(system: System) -> dict[str, Any]:
    """All that the system keeps: the LTS, both buckets, SciCat, and the mails that SciCat sent."""
    lts = {
        str(path.relative_to(system.lts)): (path.stat().st_ino, path.stat().st_size)
        for path in system.lts.rglob("*")
        if path.is_file() and path.parent.name != "locks" and path.suffix != ".json"
    }
    promises = {path.read_text() for path in (system.lts / ".archiver" / "promises").glob("*.json")}
    staging = {
        entry["Key"]: entry["Size"] if entry["Key"].endswith(".record.json") else entry["ETag"]
        for entry in system.boto.list_objects_v2(Bucket=system.staging_bucket).get("Contents", [])
    }
    store = system.standin.store
    scicat = {kind: _without_times(store.all(kind)) for kind in ("jobs", "datasets", "datablocks")}
    sources = {entry["Key"] for entry in system.boto.list_objects_v2(Bucket=system.landing_bucket).get("Contents", [])}
    return {
        "lts": lts,
        "promises": promises,
        "staging": staging,
        **scicat,
        "sources": sources,
        "mails": len(system.standin.mails),
    }


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if key not in ("updatedAt", "since", "when")}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


async def test_p6_every_activity_may_be_run_twice(make_system: MakeSystem) -> None:
    system = await make_system(SETTINGS)
    twice = Twice(system)

    async with system.workers(overrides={"landing": {"delete_after_archive": True}}, interceptors=[twice]):
        pid = await system.dataset(TWO_DATABLOCKS)
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
        await assert_archived(system, pid, TWO_DATABLOCKS)
        assert landing(system, pid) == {}
        assert (await system.archive(pid)).counts == m.Counts(already_archived=1)

    async with system.workers(interceptors=[twice]):
        # Stopped with one datablock verified, then archived with it.
        pid = await system.dataset(TWO_DATABLOCKS)
        with full_lts(system, now=False) as fill:
            twice.after["verify-in-lts", 1] = fill
            handle = await system.start_job(await system.job(pid))
            await until(lambda: _at(system, pid, 2, "wait for LTS space"))
            await dataset_workflow(system, pid).signal("cancel", m.StopRequest(reason="test", who="test"))
            assert (await handle.result()).counts == m.Counts(cancelled=1)
        kept = on_lts(system, pid)
        assert kept.keys() == {"1.tar.gz", "1.manifest.jsonl.gz"}
        nothing_left(system, pid)
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
        await assert_archived(system, pid, TWO_DATABLOCKS)
        assert on_lts(system, pid).items() >= kept.items(), "reused"

        # A byte turns over on the LTS between copy and verification.
        pid = await system.dataset(TWO_DATABLOCKS)
        twice.after["copy-to-lts", 1] = lambda: _flip(system, pid)
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
        await assert_archived(system, pid, TWO_DATABLOCKS)
        assert twice.failed["verify-in-lts"] == 1

        # The source holds other bytes than the catalogue says: found while packing the second datablock.
        files = {**TWO_DATABLOCKS, "b.bin": noise(MIB, 3)}
        listed = [system.entry(path, data) for path, data in TWO_DATABLOCKS.items()]
        pid = await system.dataset(files, listed=listed)
        assert (await system.archive(pid)).counts == m.Counts(content_errors=1)
        nothing_left(system, pid)

        # Brought back: whole, and then a file that it does not have.
        pid = await system.dataset(TWO_DATABLOCKS)
        assert (await system.archive(pid)).counts == m.Counts(archived=1)
        job, result = await retrieve(system, pid)
        assert result.counts == m.Counts(retrieved=1)
        assert await fetched(system, job) == TWO_DATABLOCKS
        _, result = await retrieve(system, pid, files=["not there"])
        assert result.counts == m.Counts(content_errors=1)

    assert twice.differences == []
    # A further page is read only by jobs of more datasets than their beginning lists; sweeps have a test of their own.
    # Restores are of buckets only: tests/storage/test_lts_bucket.py asks for them again and again.
    others = {*steps.SWEEPS, *steps.CHECKS, steps.READ_JOB_PAGE, steps.READ_RETRIEVE_PAGE, steps.RECALL}
    assert set(twice.seen) == {step.name for step in steps.ALL if step not in others}


async def _at(system: System, pid: str, n: int, name: str) -> bool:
    return await stage(system, pid, n) == name


def _flip(system: System, pid: str) -> None:
    with (system.lts / pid / "data" / "1.tar.gz").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
