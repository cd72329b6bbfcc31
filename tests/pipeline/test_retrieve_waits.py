"""What time can put right is waited for, in sight: an LTS that is away or stands still, a target that is full."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archiver import model as m
from archiver.retrieval import wire as w
from archiver.retrieval.keys import selection_of
from archiver.settings import S3Settings
from tests.pipeline.conftest import MakeSystem
from tests.pipeline.moments import MIB, noise, until
from tests.pipeline.retrieving import (
    assert_not_retrieved,
    assert_retrieved,
    delivered,
    ended,
    retrieve,
    start_retrieve,
    still_archived,
)
from tests.pipeline.system import System
from tests.storage.conftest import Disk, disk  # noqa: F401  a fixture

FILES = {"a.txt": b"text", "raw/b.bin": noise(9 * MIB, 1), "raw/c.bin": noise(100_000, 2)}
FEW = ["raw/c.bin"]
HEARTBEAT_SECONDS = 10.0


class Reads:
    """The reads of this process's workers: those of some files stand still, or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.standing: set[Path] = set()
        self.failing: set[Path] = set()
        self._go = threading.Event()
        monkeypatch.setattr(os, "preadv", self._before(os.preadv))
        monkeypatch.setattr(os, "pread", self._before(os.pread))

    def _before(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(descriptor: int, *more: Any) -> Any:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path in self.failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if path in self.standing:
                self._go.wait(3600)
            return read(descriptor, *more)

        return reading

    def go_on(self) -> None:
        """All that stands still goes on."""
        self.standing.clear()
        self._go.set()
        self._go = threading.Event()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    made = Reads(monkeypatch)
    yield made
    made.failing.clear()
    made.go_on()


@pytest.fixture(scope="module")
async def system(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    # A slot for each read that stands still.
    overrides = {
        "slots": {"pack": 2, "lts_read": 4},
        "worker": {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "graceful_shutdown_seconds": 5.0},
    }
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, overrides)
    try:
        yield await made.start()
    finally:
        await made.stop()


@pytest.fixture(scope="module")
async def served(system: System) -> AsyncIterator[System]:
    async with system.workers():
        yield system


async def archived(system: System, files: dict[str, bytes] = FILES) -> str:
    pid = await system.dataset(files)
    assert (await system.archive(pid)).counts == m.Counts(archived=1)
    return pid


def selection(files: list[str] | None = None, to: w.Destination | None = None) -> str:
    return selection_of(to or w.Destination(), files or ())


async def failure(system: System, step: str, kind: str, *parts: str, attempt: int = 2) -> tuple[str, str]:
    """Type and message of what this step waits for, as Temporal's Web UI shows it."""
    told = (await system.pending(step, kind, *parts, attempt=attempt)).last_failure
    return told.application_failure_info.type, told.message


async def test_a_read_that_stands_still_is_waited_for_in_sight_and_a_stop_is_heard_meanwhile(
    served: System, reads: Reads
) -> None:
    """A tape recall; and the token that we had of SciCat is worth nothing when it ends."""
    whole, few, stopped, listed = [await archived(served) for _ in range(4)]
    reads.standing |= {served.lts / pid / "data" / "1.tar.gz" for pid in (whole, few, stopped)}
    reads.standing.add(served.lts / listed / "data" / "1.manifest.jsonl.gz")
    started = {
        listed: await start_retrieve(served, listed),
        whole: await start_retrieve(served, whole),
        few: await start_retrieve(served, few, files=FEW),
        stopped: await start_retrieve(served, stopped),
    }

    async def waited(pid: str, files: list[str] | None = None) -> float:
        step, parts = "retrieve-datablock", ("retrieve-datablock", pid, selection(files), "1")
        if pid == listed:
            step, parts = "plan-retrieve", ("retrieve-dataset", pid, selection())
        one = await served.pending(step, *parts)
        assert one.attempt == 1, "a wait is no failure"
        note = str(json.loads(one.heartbeat_details.payloads[0].data)["note"]) if one.heartbeat_details.payloads else ""
        return float(note.partition(" for ")[2].partition(" s")[0]) if "LTS has given nothing for" in note else 0.0

    async def longer_than_a_dead_worker_is_waited_for() -> bool:
        return min(await waited(whole), await waited(few, FEW), await waited(listed)) > HEARTBEAT_SECONDS + 1

    await until(lambda: waited(stopped))
    _, handle = started[stopped]
    await handle.signal("cancel", m.StopRequest(reason="too long", who="anna"))
    assert (await ended(handle)).counts == m.Counts(cancelled=1)
    said = "Retrieving was stopped by anna: too long"
    await assert_not_retrieved(served, started[stopped][0], stopped, said, files=FILES)
    await until(longer_than_a_dead_worker_is_waited_for)
    assert (await served.lifecycle(whole))["retrieveStatusMessage"] == "started"
    assert delivered(served, whole) == delivered(served, few) == {}
    served.standin.expire_tokens()
    await served.log_in()
    reads.go_on()
    for pid, wanted in ((whole, FILES), (listed, FILES), (few, {name: FILES[name] for name in FEW})):
        job, handle = started[pid]
        assert (await ended(handle)).counts == m.Counts(retrieved=1)
        await assert_retrieved(served, job, pid, wanted, of=FILES)


async def test_an_lts_that_is_away_is_waited_for_and_named(served: System, reads: Reads) -> None:
    """Away before it was looked at; and breaking off in the middle of a read, then away."""
    before, amidst = await archived(served), await archived(served)
    block = served.lts / amidst / "data" / "1.tar.gz"
    reads.failing.add(block)
    job_amidst, handle_amidst = await start_retrieve(served, amidst)
    type_, message = await failure(served, "retrieve-datablock", "retrieve-datablock", amidst, selection(), "1")
    assert type_ == "LtsFault"
    for word in (amidst, "datablock 1", "Input/output error"):
        assert word in message
    away = served.lts.with_name("away")
    served.lts.rename(away)
    served.lts.mkdir()
    try:
        reads.failing.clear()
        job_before, handle_before = await start_retrieve(served, before)
        for where in (
            ("plan-retrieve", "retrieve-dataset", before, selection()),
            ("retrieve-datablock", "retrieve-datablock", amidst, selection(), "1"),
        ):
            pid = where[2]

            async def is_missed(where: tuple[str, ...] = where) -> str:
                type_, message = await failure(served, *where)
                return message if type_ == "LtsMarkerMissing" else ""

            message = await until(is_missed)
            for word in (pid, "is not the LTS 'test'", "mount the LTS"):
                assert word in message
            assert (await served.lifecycle(pid))["retrieveStatusMessage"] == "started"
            assert delivered(served, pid) == {}
        assert list(served.lts.iterdir()) == [], "nothing is written beside it"
    finally:
        served.lts.rmdir()
        away.rename(served.lts)
    for pid, job, handle in ((before, job_before, handle_before), (amidst, job_amidst, handle_amidst)):
        assert (await ended(handle)).counts == m.Counts(retrieved=1)
        await assert_retrieved(served, job, pid, FILES)


async def test_a_full_retrieval_bucket_is_waited_for_and_what_never_fits_is_told(make_system: MakeSystem) -> None:
    system = await make_system({"retrieval": {"quota": "1MiB"}})
    bucket = system.settings.retrieval.bucket
    small = {"a.bin": noise(2**19, 3)}
    async with system.workers():
        fits, never = await archived(system, small), await archived(system)
        system.boto.put_object(Bucket=bucket, Key="20.500.1/other/x", Body=bytes(2**20 - 2**18))
        job, handle = await start_retrieve(system, fits)
        type_, message = await failure(system, "plan-retrieve", "retrieve-dataset", fits, selection())
        assert type_ == "TargetFull"
        for word in (
            fits,
            f"{2**19} B more within {2**20} B",
            f"{2**20 - 2**18} B there",
            "waits until data there expires",
        ):
            assert word in message
        assert (await system.lifecycle(fits))["retrieveStatusMessage"] == "started"
        assert delivered(system, fits) == {}
        system.boto.delete_object(Bucket=bucket, Key="20.500.1/other/x")
        assert (await ended(handle)).counts == m.Counts(retrieved=1)
        await assert_retrieved(system, job, fits, small)
        job, result = await retrieve(system, never)
        assert result.counts == m.Counts(system_errors=1)
        await assert_not_retrieved(system, job, never, never, "raise retrieval.quota", files={}, error="TargetFull")


class Shared:
    """A directory on a small disk of its own, which others fill."""

    def __init__(self, one: Disk) -> None:
        self.root = one.folder / "shared"
        self.root.mkdir()
        self._filler = one.folder / "filler"

    def fill(self) -> None:
        """Leave 2 MiB."""
        space = os.statvfs(self.root)
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - 2 * MIB)

    def free(self) -> None:
        self._filler.unlink()

    def there(self, pid: str) -> dict[str, bytes]:
        """All that lies there of this dataset, temporary files too."""
        folder = self.root / pid
        return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


FOUR = {"a.txt": b"text", "raw/b.bin": noise(4 * MIB, 4), "raw/c.bin": noise(100_000, 5)}
"""Of which the disk holds three and the space that is kept free."""


async def test_a_full_file_system_is_waited_for_also_if_it_fills_up_in_the_middle(
    make_system: MakeSystem,
    disk: Callable[..., Disk],  # noqa: F811
) -> None:
    shared = Shared(disk(32))
    system = await make_system({"retrieval": {"roots": [str(shared.root)]}})
    to = {"destinationPath": str(shared.root)}
    into = selection(to=w.Destination(kind="directory", root=str(shared.root)))
    async with system.workers("workflows,catalogue,pack,lts-space,lts-copy,lts-verify,lts-bag"):
        early, late = await archived(system, FOUR), await archived(system, FOUR)
        shared.fill()
        job, handle = await start_retrieve(system, early, **to)
        type_, message = await failure(system, "plan-retrieve", "retrieve-dataset", early, into)
        assert type_ == "TargetFull"
        for word in (early, str(shared.root), "has no room", "waits until there is room"):
            assert word in message
        assert shared.there(early) == {}
        shared.free()
        await system.pending("retrieve-datablock", "retrieve-datablock", early, into, "1")
        shared.fill()
        async with system.workers("lts-read"):
            type_, message = await failure(system, "retrieve-datablock", "retrieve-datablock", early, into, "1")
            assert type_ == "TargetFull"
            for word in (early, "datablock 1", f"{shared.root}/ is full", "waits until there is room"):
                assert word in message
            assert {name: data for name, data in shared.there(early).items() if FOUR.get(name) != data} == {}
            shared.free()
            assert (await ended(handle)).counts == m.Counts(retrieved=1)
            assert shared.there(early) == FOUR
            life = await still_archived(system, early)
            assert (life["retrieveStatusMessage"], life["retrieveIntegrityCheck"]) == ("datasetRetrieved", True)
            assert (await system.job_record(job))["statusCode"] == "finishedSuccessful"

            # Something else lies where a file is to go; and a link that leads away.
            (shared.root / late / "raw").mkdir(parents=True)
            (shared.root / late / "raw" / "c.bin").write_bytes(b"somebody's own")
            job, handle = await start_retrieve(system, late, **to)
            result = await ended(handle)
            assert result.counts == m.Counts(content_errors=1)
            words = ("'raw/c.bin'", "something else lies there", "found a file of 14 B", "move it away")
            await assert_not_retrieved(system, job, late, late, *words, files={}, error="TargetDiffers")
            assert shared.there(late)["raw/c.bin"] == b"somebody's own"
            (elsewhere := shared.root.parent / "elsewhere").mkdir()
            (shared.root / "link").symlink_to(elsewhere)
            job, handle = await start_retrieve(system, late, destinationPath=f"{shared.root}/link")
            result = await ended(handle)
            assert result.counts == m.Counts(content_errors=1)
            await assert_not_retrieved(
                system, job, late, "no symbolic link below the root", files={}, error="DestinationRefused"
            )
            assert list(elsewhere.iterdir()) == []
