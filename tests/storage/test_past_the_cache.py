"""Disks that change their mind and power that goes: what was told durable is there, what rotted is seen."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.direct_io import BUFFER_BYTES, PastCacheReader
from archiver.errors import ArchiverError, IntegrityMismatch
from archiver.progress import Silent
from archiver.storage.lts_directory import FileSystemLts
from tests.storage.conftest import Disk, new_lts
from tests.storage.test_crash_points import BAG, DATA, MANIFEST, PAYLOAD, WHOLE, found
from tests.storage.test_lts import PID, copy

STEPS: list[Callable[[FileSystemLts], object]] = [
    lambda lts: copy(lts, DATA),
    lambda lts: lts.put_small(PID, "data/1.manifest.jsonl.gz", MANIFEST, "run-1"),
    lambda lts: lts.publish_bag(PID, BAG, "p1", "run-9-1", Silent()),
]
TOLD = [dict(list(WHOLE.items())[:1]), {f"{PID}/{name}": data for name, data in PAYLOAD.items()}, WHOLE]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("direct_io", ["auto", "never"])
def test_p5_what_was_told_durable_is_there_after_a_power_cut(
    disk: Callable[..., Disk], steps: int, direct_io: str
) -> None:
    one = disk()
    lts = new_lts(one.folder, direct_io=direct_io)
    for step in STEPS[:steps]:
        step(lts)
    one.cut_power()
    assert found(one.folder) == TOLD[steps - 1]


def test_p5_power_may_go_at_any_instant_and_the_next_run_ends_right(
    disk: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = disk()
    real, instants = os.fsync, 0
    while True:
        lts = new_lts(one.folder)
        instants += 1
        calls = told = 0

        def fsync(descriptor: int, instant: int = instants) -> None:
            nonlocal calls
            calls += 1
            if calls == instant:
                one.shut_down()
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            try:
                for step in STEPS:
                    step(lts)
                    told += 1
            except ArchiverError:
                pass
        if calls < instants:
            break
        one.remount()
        there = found(one.folder)
        finals = {name: data for name, data in there.items() if not name.endswith(".partial")}
        assert finals.items() <= WHOLE.items(), f"instant {instants}"
        assert told == 0 or TOLD[told - 1].items() <= finals.items(), f"instant {instants}"
        for step in STEPS:
            step(lts)
        assert found(one.folder) == WHOLE, f"instant {instants}"
        for name in WHOLE:
            (one.folder / name).unlink()
    assert instants > 20


def rot(one: Disk, path: Path, data: bytes) -> None:
    """Change a bit of the file beneath the file system, which goes on saying what it has in its cache."""
    assert path.read_bytes() == data
    where = one.image.read_bytes().index(data[:4096])
    with one.image.open("r+b") as image:
        image.seek(where)
        image.write(bytes([data[0] ^ 1]))
    assert path.read_bytes() == data, "the cache was to give the old bytes: else this test proves nothing"


@pytest.mark.parametrize("direct_io", ["auto", "never"])
def test_p2_a_copy_that_rotted_on_the_disk_is_not_taken_for_done_by_a_second_attempt(
    disk: Callable[..., Disk], direct_io: str
) -> None:
    one = disk()
    lts = new_lts(one.folder, direct_io=direct_io)
    data = os.urandom(300_000)
    copy(lts, data)
    rot(one, one.folder / PID / "data/1.tar.gz", data)
    with pytest.raises(IntegrityMismatch, match="is there already with other bytes"):
        copy(lts, data, attempt="run-1-2")


def test_p2_a_small_file_is_read_from_the_disk_and_not_from_the_cache(disk: Callable[..., Disk]) -> None:
    one = disk()
    lts = new_lts(one.folder)
    data = os.urandom(10_000)
    lts.put_small(PID, "data/1.manifest.jsonl.gz", data, "1")
    rot(one, one.folder / PID / "data/1.manifest.jsonl.gz", data)
    assert lts.get_small(PID, "data/1.manifest.jsonl.gz") == bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize("direct_io", ["auto", "never"])
def test_a_read_error_is_told_after_the_bytes_before_it_and_never_as_an_end(
    disk: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch, direct_io: str
) -> None:
    path = disk().folder / "file"
    path.write_bytes(bytes(3 * BUFFER_BYTES))
    real = os.preadv

    def preadv(descriptor: int, buffers: list[mmap.mmap], offset: int) -> int:
        if offset >= 2 * BUFFER_BYTES:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    chunks = iter(PastCacheReader(path, direct_io))
    assert [len(next(chunks)), len(next(chunks))] == [BUFFER_BYTES, BUFFER_BYTES]
    with pytest.raises(OSError, match="Input/output error"):
        next(chunks)


def test_a_file_cut_short_while_it_is_read_is_an_error(disk: Callable[..., Disk]) -> None:
    path = disk(64).folder / "file"
    path.write_bytes(bytes(10 * BUFFER_BYTES))
    chunks = iter(PastCacheReader(path))
    next(chunks)
    os.truncate(path, BUFFER_BYTES)
    with pytest.raises(OSError, match="the file ends at"):
        list(chunks)


def test_a_reader_that_is_left_early_leaves_no_thread_and_no_open_file(disk: Callable[..., Disk]) -> None:
    one = disk(64)
    path = one.folder / "file"
    path.write_bytes(bytes(10 * BUFFER_BYTES))
    chunks = iter(PastCacheReader(path))
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert [thread for thread in threading.enumerate() if thread.name == "read-past-cache"] == []
    one.unmount()
    one.mount()
