"""The LTS on a file system: identity, space, durable copies without clobbering, and what is never touched (P3, P5)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archiver.errors import IntegrityMismatch, LtsFault, LtsFull, LtsMarkerMissing, StagingFault, Stopped
from archiver.progress import Silent
from archiver.settings import LtsSettings
from archiver.storage import direct_write
from archiver.storage import lts_directory as lts_module
from archiver.storage.lts_directory import FileSystemLts
from tests.datablock.making import packed
from tests.needs import run
from tests.storage.conftest import Disk, new_lts

PID = "20.500.1/a"
BLOCK = "data/1.tar.gz"
MANIFEST = "data/1.manifest.jsonl.gz"
DATA = os.urandom(9 * 2**20 + 12_345)
MIB = 2**20
BLOCK_BYTES, _MADE = packed({"a": b"x" * 1000})
MANIFEST_BYTES = _MADE.manifest


def copy(
    lts: FileSystemLts,
    data: bytes = DATA,
    *,
    chunks: Iterator[bytes] | None = None,
    attempt: str = "run-1-1",
    name: str = BLOCK,
    **more: object,
) -> None:
    given: dict[str, object] = {
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "attempt": attempt,
        "promise": f"{PID}/1",
        "progress": Silent(),
        **more,
    }
    lts.copy_in(PID, name, chunks or pieces(data), **given)  # type: ignore[arg-type]


def pieces(data: bytes) -> Iterator[bytes]:
    for i in range(0, len(data), 1_000_003):
        yield data[i : i + 1_000_003]


def everything(root: Path) -> dict[str, bytes]:
    """Every file below the root but the marker."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".archiver-lts.json"
    }


def promises(root: Path) -> list[Path]:
    return list((root / ".archiver" / "promises").iterdir())


# --- identity ---------------------------------------------------------------------------------------------------------


def unmounted(root: Path) -> None:
    (root / ".archiver-lts.json").unlink()


def another(root: Path) -> None:
    marker = root / ".archiver-lts.json"
    marker.write_text(marker.read_text().replace('"lts"', '"other"'))


def unreadable(root: Path) -> None:
    (root / ".archiver-lts.json").write_bytes(b"\0\xff no JSON")


BAG = {
    "bagit.txt": b"BagIt-Version: 1.0\n",
    "bag-info.txt": b"Archiver-Plan: p1\n",
    "dataset.json": b"{}",
    "manifest-sha256.txt": b"",
    "tagmanifest-sha256.txt": b"tags",
}
CALLS: dict[str, Callable[[FileSystemLts], object]] = {
    "space": lambda lts: lts.space(),
    "wait_for_space": lambda lts: lts.wait_for_space("k", 1, Silent()),
    "copy_in": copy,
    "path_of": lambda lts: lts.path_of(PID, BLOCK),
    "size_of": lambda lts: lts.size_of(PID, BLOCK),
    "get_small": lambda lts: lts.get_small(PID, MANIFEST),
    "put_small": lambda lts: lts.put_small(PID, MANIFEST, b"m", "1"),
    "publish_bag": lambda lts: lts.publish_bag(PID, BAG, "p1", "run-9-1", Silent()),
    "survey": lambda lts: lts.survey(PID, "p1", 1),
    "remove_unverified": lambda lts: lts.remove_unverified(PID),
    "quarantine": lambda lts: lts.quarantine(PID, BLOCK, "why"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("what", [unmounted, another, unreadable])
def test_what_is_not_our_lts_is_neither_written_nor_cleared(
    lts: FileSystemLts, root: Path, what: Callable[[Path], None], call: Callable[[FileSystemLts], object]
) -> None:
    (root / PID / "data").mkdir(parents=True)
    (root / PID / BLOCK).write_bytes(b"unverified")
    what(root)
    before = everything(root)
    with pytest.raises(LtsMarkerMissing, match="is not the LTS 'lts'"):
        call(lts)
    assert everything(root) == before


def test_not_a_byte_is_written_into_the_mount_point_of_an_lts_that_is_unmounted(disk: Callable[..., Disk]) -> None:
    one = disk()
    lts = new_lts(one.folder)
    one.unmount()
    for call in CALLS.values():
        with pytest.raises(LtsMarkerMissing):
            call(lts)
    assert list(one.folder.iterdir()) == []


def test_not_a_byte_is_left_in_the_mount_point_when_the_lts_goes_in_the_middle_of_a_copy(
    disk: Callable[..., Disk],
) -> None:
    one = disk()
    lts = new_lts(one.folder)

    def chunks() -> Iterator[bytes]:
        yield DATA[:MIB]
        run("umount", "-l", str(one.folder))
        yield DATA[MIB:]

    with pytest.raises(LtsFault):
        copy(lts, chunks=chunks())
    assert list(one.folder.iterdir()) == []


def test_setting_up_marks_the_lts_once_and_never_one_of_another_name(root: Path) -> None:
    lts = FileSystemLts(LtsSettings(root=root))
    assert lts.setup(dry_run=True)
    assert list(root.iterdir()) == []
    assert lts.setup()
    assert not lts.setup()
    with pytest.raises(LtsMarkerMissing, match="identity 'lts'"):
        FileSystemLts(LtsSettings(root=root, identity="tape")).setup()
    with pytest.raises(LtsFault, match="is no directory"):
        FileSystemLts(LtsSettings(root=root / "nothing")).setup()


# --- space ------------------------------------------------------------------------------------------------------------


class StopAfter:
    """Stops at the n-th call."""

    def __init__(self, calls: int) -> None:
        self.left, self.notes = calls, [""]

    def advance(self, size_bytes: int = 0, files: int = 0) -> None:
        self.left -= 1
        if self.left <= 0:
            raise Stopped("told to stop")

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.advance()


def fits(lts: FileSystemLts, key: str, need: int) -> bool:
    """Whether there is room at once."""
    try:
        lts.wait_for_space(key, need, StopAfter(1))
    except Stopped:
        return False
    return True


@pytest.mark.parametrize("reserve", ["10%", "8MiB"])
def test_the_reserve_is_left_free(disk: Callable[..., Disk], reserve: str) -> None:
    lts = new_lts(disk().folder, reserve=reserve)
    space = lts.space()
    assert space.reserve == (8 * MIB if reserve == "8MiB" else space.total // 10)
    assert not fits(lts, "k", space.free - space.reserve + MIB)
    assert fits(lts, "k", space.free - space.reserve - MIB)


def test_space_promised_to_one_is_not_promised_to_another_nor_counted_twice(disk: Callable[..., Disk]) -> None:
    root = disk().folder
    lts = new_lts(root)
    free = lts.space().free
    half = free // 2 + MIB
    assert fits(lts, "a", half)
    assert not fits(lts, "b", half)
    assert fits(lts, "a", half), "its own promise is replaced"
    assert fits(lts, "b", free - half - MIB)
    assert not fits(new_lts(root), "c", 2 * MIB), "a promise outlives the process"
    lts.release("a")
    lts.release("a")
    assert fits(lts, "c", half)


def test_a_promise_that_nobody_took_for_days_is_no_promise(lts: FileSystemLts, root: Path) -> None:
    lts.wait_for_space("dead", 1000, Silent())
    lts.wait_for_space("alive", 100, Silent())
    assert lts.space().promised == 1100
    [dead] = [path for path in promises(root) if "dead" in path.read_text()]
    old = time.time() - lts_module.PROMISE_SECONDS - 60
    os.utime(dead, (old, old))
    assert lts.space().promised == 100


@pytest.mark.parametrize("left", [b"", b'{"for": "x", "byt', b"[]", b'{"bytes": null}'])
def test_a_promise_cut_short_by_a_crash_counts_for_nothing(lts: FileSystemLts, root: Path, left: bytes) -> None:
    lts.wait_for_space("k", 1000, Silent())
    (root / ".archiver/promises/cut.json").write_bytes(left)
    (root / ".archiver/promises/killed.draft").write_text('{"for": "y", "bytes": 500}')
    assert lts.space().promised == 1000


def test_a_promise_given_back_while_they_are_counted_is_no_fault(
    lts: FileSystemLts, monkeypatch: pytest.MonkeyPatch
) -> None:
    lts.wait_for_space("k", 1000, Silent())
    stat = Path.stat

    def released(path: Path, **more: bool) -> os.stat_result:
        if path.suffix == ".json" and path.parent.name == "promises":
            path.unlink(missing_ok=True)
        return stat(path, **more)

    monkeypatch.setattr(Path, "stat", released)
    assert lts.space().promised == 0


def test_a_full_lts_is_waited_for_and_taken_when_freed(disk: Callable[..., Disk]) -> None:
    root = disk().folder
    lts = new_lts(root)
    lts.wait_for_space("other", lts.space().free - MIB, Silent())
    waiting = StopAfter(10**6)
    done = threading.Event()

    def wait() -> None:
        lts.wait_for_space("k", 4 * MIB, waiting)
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while len(waiting.notes) < 4:
        time.sleep(0.01)
    assert not done.is_set()
    assert "needs 4194304 B" in waiting.notes[-1]
    lts.release("other")
    assert done.wait(60)
    thread.join()
    assert lts.space().promised == 4 * MIB


def test_a_wait_for_space_stops_when_told(lts: FileSystemLts, root: Path) -> None:
    with pytest.raises(Stopped):
        lts.wait_for_space("k", 2**62, StopAfter(3))
    assert promises(root) == []


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct_io", ["auto", "never"])
@pytest.mark.parametrize("size", [0, 1, 4096, 4 * MIB, 4 * MIB + 1, len(DATA)])
def test_a_copy_has_the_bytes_and_nothing_else_is_left(root: Path, size: int, direct_io: str) -> None:
    lts = new_lts(root, direct_io=direct_io)
    lts.wait_for_space(f"{PID}/1", size, Silent())
    copy(lts, DATA[:size])
    assert everything(root) == {f"{PID}/{BLOCK}": DATA[:size]}
    assert lts.size_of(PID, BLOCK) == size


def test_p6_a_copy_made_again_is_read_back_and_changes_nothing(lts: FileSystemLts, root: Path) -> None:
    copy(lts)
    before = (root / PID / BLOCK).stat()
    lts.wait_for_space(f"{PID}/1", 1, Silent())
    copy(lts, chunks=iter([b"not even read"]), attempt="run-1-2")
    after = (root / PID / BLOCK).stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)
    assert promises(root) == []


@pytest.mark.parametrize("there", [b"other bytes", bytes(len(DATA)), DATA + b"x", b""])
def test_p3_what_lies_under_the_final_name_is_never_overwritten(lts: FileSystemLts, root: Path, there: bytes) -> None:
    (root / PID / "data").mkdir(parents=True)
    (root / PID / BLOCK).write_bytes(there)
    with pytest.raises(IntegrityMismatch) as caught:
        copy(lts)
    assert not caught.value.retryable
    assert everything(root) == {f"{PID}/{BLOCK}": there}


@pytest.mark.parametrize("same", [True, False])
def test_p3_of_two_attempts_at_once_the_first_to_publish_stays(lts: FileSystemLts, root: Path, same: bool) -> None:
    theirs = DATA if same else b"x" * len(DATA)

    def chunks() -> Iterator[bytes]:
        yield from pieces(DATA)
        copy(lts, theirs, attempt="run-2-1")

    try:
        copy(lts, chunks=chunks())
    except IntegrityMismatch:
        assert not same
    assert everything(root) == {f"{PID}/{BLOCK}": theirs}


def flipped() -> Iterator[bytes]:
    yield DATA[:-1] + bytes([DATA[-1] ^ 1])


def short() -> Iterator[bytes]:
    yield DATA[:-1]


def long() -> Iterator[bytes]:
    yield DATA
    yield b"x"


def endless() -> Iterator[bytes]:
    while True:
        yield bytes(MIB)


def broken() -> Iterator[bytes]:
    yield DATA[: 5 * MIB]
    raise ConnectionResetError("of staging")


def stopped() -> Iterator[bytes]:
    yield DATA[: 5 * MIB]
    raise Stopped("told to stop")


@pytest.mark.parametrize("chunks", [flipped, short, long, endless, broken, stopped])
def test_a_copy_that_does_not_come_to_its_end_leaves_nothing_but_the_partials_of_others(
    lts: FileSystemLts, root: Path, chunks: Callable[[], Iterator[bytes]]
) -> None:
    (root / PID / "data").mkdir(parents=True)
    theirs = root / PID / "data/.1.tar.gz.run-1-7.partial"
    theirs.write_bytes(b"of another attempt")
    kind = {broken: StagingFault, stopped: Stopped}.get(chunks, IntegrityMismatch)
    with pytest.raises(kind) as caught:
        copy(lts, chunks=chunks())
    assert chunks is stopped or caught.value.retryable
    assert everything(root) == {str(theirs.relative_to(root)): b"of another attempt"}
    copy(lts)


def test_a_copy_stops_in_the_middle_when_told(lts: FileSystemLts, root: Path) -> None:
    with pytest.raises(Stopped):
        copy(lts, progress=StopAfter(3))
    assert everything(root) == {}


def test_a_full_disk_is_a_wait_and_keeps_nothing_reserved(disk: Callable[..., Disk]) -> None:
    root = disk().folder
    lts = new_lts(root)
    free = lts.space().free
    data = bytes(free + MIB)
    with pytest.raises(LtsFull) as caught:
        copy(lts, data)
    assert caught.value.retryable
    assert "free space on the LTS" in str(caught.value.next_step)
    assert lts.space().free >= free - MIB, "a reservation that failed holds what it got"
    assert everything(root) == {}
    copy(lts)


def test_a_disk_that_fills_up_where_nothing_can_be_reserved_is_a_wait_too(
    disk: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = disk().folder
    lts = new_lts(root)
    monkeypatch.setattr(direct_write, "reserve", lambda descriptor, size: False)
    lts.wait_for_space(f"{PID}/1", MIB, Silent())
    free = lts.space().free
    with pytest.raises(LtsFull):
        copy(lts, bytes(free + MIB))
    assert lts.space().free >= free - MIB
    assert len(promises(root)) == 1, "what was not reserved stays promised"
    copy(lts)
    assert promises(root) == []


def test_an_lts_mounted_read_only_is_its_own_fault(disk: Callable[..., Disk]) -> None:
    one = disk()
    lts = new_lts(one.folder)
    copy(lts)
    run("mount", "-o", "remount,ro", str(one.folder))
    with pytest.raises(LtsFault, match="Read-only file system") as caught:
        copy(lts, b"other", name="data/2.tar.gz")
    assert "mount the LTS read-write" in str(caught.value.next_step)
    assert lts.size_of(PID, BLOCK) == len(DATA)


def test_an_lts_without_hard_links_is_published_on_all_the_same_and_nothing_clobbered(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    copy(lts)
    lts.put_small(PID, MANIFEST, b"m", "1")
    lts.put_small(PID, MANIFEST, b"m", "2")
    with pytest.raises(IntegrityMismatch):
        lts.put_small(PID, MANIFEST, b"other", "3")
    assert everything(root) == {f"{PID}/{BLOCK}": DATA, f"{PID}/{MANIFEST}": b"m"}


class FailingCalls:
    """Makes a system call of ``os`` fail the n-th time, and records on which files it was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, fail_at: int) -> None:
        self.real = getattr(os, name)
        self.fail_at, self.calls = fail_at, [""]
        monkeypatch.setattr(os, name, self)

    def __call__(self, descriptor: int, *more: int) -> object:
        self.calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if len(self.calls) - 1 == self.fail_at:
            if self.real is os.close:
                self.real(descriptor)
            raise OSError(errno.EIO, "Input/output error")
        return self.real(descriptor, *more)


def test_after_a_failed_fsync_the_file_is_given_up_and_is_never_tried_again_on_it(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / PID / "data").mkdir(parents=True)
    for _ in range(2):
        with monkeypatch.context() as patch:
            partial = str(root / PID / "data/.1.tar.gz.run-1-1.partial")
            before = FailingCalls(patch, "fsync", 0)
            copy(lts)
            at = before.calls.index(partial)
            (root / PID / BLOCK).unlink()
        with monkeypatch.context() as patch:
            failing = FailingCalls(patch, "fsync", at)
            with pytest.raises(LtsFault, match="Input/output error"):
                copy(lts)
            assert failing.calls.count(partial) == 1
        assert everything(root) == {}


def test_every_folder_on_the_way_is_made_durable_whoever_made_it(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Made by an attempt that died before it could fsync: nobody knows, so nobody may rely on it.
    (root / PID / "data").mkdir(parents=True)
    calls = FailingCalls(monkeypatch, "fsync", 0)
    copy(lts)
    file = calls.calls.index(str(root / PID / "data/.1.tar.gz.run-1-1.partial"))
    assert set(calls.calls[:file]) >= {str(root), str(root / "20.500.1"), str(root / PID)}
    assert str(root / PID / "data") in calls.calls[file:]


def test_space_that_a_copy_has_reserved_is_not_promised_as_well(lts: FileSystemLts, root: Path) -> None:
    lts.wait_for_space(f"{PID}/1", len(DATA), Silent())
    promised: list[int] = []

    def chunks() -> Iterator[bytes]:
        promised.append(lts.space().promised)
        yield from pieces(DATA)

    copy(lts, chunks=chunks())
    assert promised == [0]


def test_after_a_failed_close_the_file_is_given_up(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        calls = FailingCalls(patch, "close", 0)
        copy(lts)
        at = next(n for n, path in enumerate(calls.calls) if path.endswith(".partial"))
    (root / PID / BLOCK).unlink()
    with monkeypatch.context() as patch:
        FailingCalls(patch, "close", at)
        with pytest.raises(LtsFault, match="Input/output error"):
            copy(lts)
    assert everything(root) == {}


# --- small files, bags ------------------------------------------------------------------------------------------------


def test_p3_a_small_file_is_written_once_and_others_bytes_are_refused(lts: FileSystemLts, root: Path) -> None:
    assert lts.get_small(PID, MANIFEST) is None
    lts.put_small(PID, MANIFEST, b"m" * 100_000, "1")
    lts.put_small(PID, MANIFEST, b"m" * 100_000, "2")
    with pytest.raises(IntegrityMismatch, match="with other content"):
        lts.put_small(PID, MANIFEST, b"other", "3")
    assert lts.get_small(PID, MANIFEST) == b"m" * 100_000
    assert everything(root) == {f"{PID}/{MANIFEST}": b"m" * 100_000}


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_small_file_that_cannot_be_written_leaves_nothing(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (root / PID / "data").mkdir(parents=True)
    with monkeypatch.context() as patch:
        calls = FailingCalls(patch, call, 0)
        lts.put_small(PID, MANIFEST, b"m", "1")
        at = next(n for n, path in enumerate(calls.calls) if path.endswith(".partial"))
    (root / PID / MANIFEST).unlink()
    with monkeypatch.context() as patch:
        FailingCalls(patch, call, at)
        with pytest.raises(LtsFault, match="Input/output error"):
            lts.put_small(PID, MANIFEST, b"m", "1")
    assert everything(root) == {}


def test_a_small_file_that_does_not_read_back_is_not_published(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, b"\0" * len(data)))
    with pytest.raises(LtsFault, match="not read back as it was written"):
        lts.put_small(PID, MANIFEST, b"m", "1")
    assert everything(root) == {}


def bag(plan: str = "p1", data: bytes = BLOCK_BYTES, manifest: bytes = MANIFEST_BYTES) -> dict[str, bytes]:
    sums = {BLOCK: data, MANIFEST: manifest}
    return with_tags({**BAG, "bag-info.txt": f"Archiver-Plan: {plan}\n".encode(), "manifest-sha256.txt": listed(sums)})


def listed(files: dict[str, bytes]) -> bytes:
    """As ``sha256sum`` lists them."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()


def with_tags(files: dict[str, bytes]) -> dict[str, bytes]:
    """A bag's files with the tag manifest that they have."""
    tags = {name: data for name, data in files.items() if name != "tagmanifest-sha256.txt"}
    return {**tags, "tagmanifest-sha256.txt": listed(tags)}


def verified(
    root: Path, pid: str = PID, n: int = 1, data: bytes = BLOCK_BYTES, manifest: bytes = MANIFEST_BYTES
) -> None:
    folder = root / pid / "data"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{n}.tar.gz").write_bytes(data)
    (folder / f"{n}.manifest.jsonl.gz").write_bytes(manifest)


def test_p11_a_bag_is_complete_with_its_last_file_and_then_stays(lts: FileSystemLts, root: Path) -> None:
    verified(root)
    lts.publish_bag(PID, bag(), "p1", "run-9-1", Silent())
    before = everything(root)
    assert before == {
        f"{PID}/{BLOCK}": BLOCK_BYTES,
        f"{PID}/{MANIFEST}": MANIFEST_BYTES,
        **{f"{PID}/{name}": data for name, data in bag().items()},
    }
    lts.publish_bag(PID, {**bag(), "dataset.json": b"of another day"}, "p1", "run-9-1", Silent())
    with pytest.raises(LtsFault, match="a complete bag lies in") as caught:
        lts.publish_bag(PID, bag("p2"), "p2", "run-9-1", Silent())
    assert not caught.value.retryable
    assert everything(root) == before


def test_p11_an_incomplete_bag_is_written_over_and_what_killed_attempts_left_goes(
    lts: FileSystemLts, root: Path
) -> None:
    verified(root)
    (root / PID / "bag-info.txt").write_bytes(b"Archiver-Plan: p0\n")
    for left in ("data/.1.tar.gz.run-1-1.partial", ".bagit.txt.bag.partial", "data/2.tar.gz"):
        (root / PID / left).write_bytes(b"left")
    lts.publish_bag(PID, bag(), "p1", "run-9-1", Silent())
    assert sorted(everything(root)) == sorted(f"{PID}/{name}" for name in [*bag(), BLOCK, MANIFEST])
    assert (root / PID / "bag-info.txt").read_bytes() == b"Archiver-Plan: p1\n"


def test_p11_no_bag_is_said_to_be_complete_that_lacks_a_file(lts: FileSystemLts, root: Path) -> None:
    verified(root)
    (root / PID / MANIFEST).unlink()
    (root / PID / BLOCK).rename(root / "taken away")
    with pytest.raises(IntegrityMismatch, match="no longer on the LTS") as caught:
        lts.publish_bag(PID, bag(), "p1", "run-9-1", Silent())
    assert "2 missing" in str(caught.value.found)
    assert not (root / PID / "tagmanifest-sha256.txt").exists()


@pytest.mark.parametrize("file", [*BAG])
def test_a_bag_file_that_cannot_be_made_durable_leaves_the_bag_incomplete(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    verified(root)
    with monkeypatch.context() as patch:
        calls = FailingCalls(patch, "fsync", 0)
        lts.publish_bag(PID, bag(), "p1", "run-9-1", Silent())
        at = next(n for n, path in enumerate(calls.calls) if Path(path).name == f".{file}.run-9-1.partial")
    for name in BAG:
        (root / PID / name).unlink()
    with monkeypatch.context() as patch:
        FailingCalls(patch, "fsync", at)
        with pytest.raises(LtsFault, match="Input/output error"):
            lts.publish_bag(PID, bag(), "p1", "run-9-1", Silent())
    assert not (root / PID / "tagmanifest-sha256.txt").exists()
    assert [name for name in everything(root) if name.endswith(".partial")] == []
    lts.publish_bag(PID, bag(), "p1", "run-9-1", Silent())


# --- survey, removal, quarantine ------------------------------------------------------------------------------------


def made(root: Path, n: int = 1) -> str:
    """A datablock that verified, with its real manifest; returns its plan."""
    data, making = packed({"a": b"x" * 1000})
    verified(root, n=n, data=data, manifest=making.manifest)
    return making._plan.plan_id  # type: ignore[no-any-return,attr-defined]


def quarantined(root: Path) -> dict[str, bytes]:
    """By the name that it had."""
    folder = root / ".archiver" / "quarantine"
    notes = [(json.loads(path.read_text()), path) for path in folder.rglob("*.why.json")]
    assert all(note["reason"] for note, _ in notes)
    found = {note["was"]: Path(str(path).removesuffix(".why.json")).read_bytes() for note, path in notes}
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 2 * len(found), (
        "nothing without a reason, no reason without its file"
    )
    return found


def test_p3_a_survey_finds_what_is_verified_of_this_plan_and_keeps_it(lts: FileSystemLts, root: Path) -> None:
    plan = made(root)
    before = everything(root)
    survey = lts.survey(PID, plan, 1)
    assert (survey.reusable, survey.complete, survey.superseded, survey.removed) == ([1], False, 0, 0)
    assert everything(root) == before


@pytest.mark.parametrize("damage", ["other plan", "size", "manifest"])
def test_p3_what_another_plan_left_is_set_aside_and_not_a_byte_of_it_lost(
    lts: FileSystemLts, root: Path, damage: str
) -> None:
    plan = made(root)
    if damage == "size":
        (root / PID / BLOCK).write_bytes(b"short")
    elif damage == "manifest":
        (root / PID / MANIFEST).write_bytes(b"no manifest")
    before = {name: data for name, data in everything(root).items() if name.startswith(PID)}
    survey = lts.survey(PID, "f" * 32 if damage == "other plan" else plan, 1)
    assert (survey.reusable, survey.superseded, survey.removed) == ([], 1, 0)
    assert quarantined(root) == before
    assert lts.survey(PID, plan, 1).superseded == 0


def test_p3_a_crash_between_datablock_and_manifest_loses_nothing_that_was_verified(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(root)
    before = everything(root)
    rename, done = os.rename, [0]

    def once(path: Path, target: Path) -> None:
        done[0] += 1
        if done[0] > 2:
            raise KeyboardInterrupt
        rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", once)
        with pytest.raises(KeyboardInterrupt):
            lts.survey(PID, "f" * 32, 1)
    lts.survey(PID, "f" * 32, 1)
    assert quarantined(root) == before


def test_a_survey_removes_what_did_not_verify(lts: FileSystemLts, root: Path) -> None:
    plan = made(root)
    for name in ("2.tar.gz", "3.tar.zst", "10.tar", ".1.tar.gz.r-1.partial", ".2.manifest.jsonl.gz.r-1.partial"):
        (root / PID / "data" / name).write_bytes(b"left")
    survey = lts.survey(PID, plan, 10)
    assert (survey.reusable, survey.removed) == ([1], 5)
    assert sorted(everything(root)) == [f"{PID}/{MANIFEST}", f"{PID}/{BLOCK}"]


def test_a_manifest_whose_datablock_is_gone_does_not_vouch_for_another(lts: FileSystemLts, root: Path) -> None:
    plan = made(root)
    (root / PID / BLOCK).unlink()
    assert lts.survey(PID, plan, 1).reusable == []
    assert list(quarantined(root)) == [f"{PID}/{MANIFEST}"]


def test_p3_a_complete_bag_is_never_touched(lts: FileSystemLts, root: Path) -> None:
    verified(root)
    lts.publish_bag(PID, bag(), "p1", "run-9-1", Silent())
    (root / PID / "data/notes.txt").write_bytes(b"strange, and not ours by name")
    before = everything(root)
    survey = lts.survey(PID, "p1", 1)
    assert (survey.complete, survey.plan_id, survey.reusable, survey.removed) == (True, "p1", [1], 0)
    other = lts.survey(PID, "p2", 3)
    assert (other.complete, other.plan_id, other.reusable) == (True, "p1", [])
    assert lts.remove_unverified(PID) == 0
    assert everything(root) == before


NOT_OURS = [
    "data/notes.txt",
    "data/1.tar.gz.old",
    "data/x1.tar.gz",
    "data/.1.tar.gz.swp",
    "data/.nfs0001.partial",
    "data/photo.partial",
    "data/2.manifest.jsonl.gz",
    "README.md",
    ".rsync.partial",
]


def test_p3_nothing_is_removed_that_is_not_ours_by_name_nor_a_neighbours(lts: FileSystemLts, root: Path) -> None:
    (root / PID / "data").mkdir(parents=True)
    for name in NOT_OURS:
        (root / PID / name).write_bytes(b"theirs")
    neighbours = ["20.500.1/a0", "20.500.1/a.b", "20.500.10/a"]
    for pid in neighbours:
        (root / pid / "data").mkdir(parents=True)
        (root / pid / BLOCK).write_bytes(b"being verified")
        (root / pid / "data/.2.tar.gz.r.partial").write_bytes(b"being written")
    before = everything(root)
    (root / PID / "data/3.tar.gz").write_bytes(b"unverified")
    assert lts.remove_unverified(PID) == 1
    assert everything(root) == before


def test_folders_left_empty_go_but_never_the_one_that_datasets_share(lts: FileSystemLts, root: Path) -> None:
    (root / PID / "data").mkdir(parents=True)
    (root / PID / BLOCK).write_bytes(b"unverified")
    assert lts.remove_unverified(PID) == 1
    assert lts.remove_unverified(PID) == 0
    assert not (root / PID).exists()
    assert (root / PID).parent.is_dir()


def test_p3_what_is_in_quarantine_keeps_its_bytes_and_says_why(lts: FileSystemLts, root: Path) -> None:
    verified(root)
    for name in (BLOCK, MANIFEST, BLOCK, "data/7.tar.gz"):
        lts.quarantine(PID, name, "did not verify")
    assert quarantined(root) == {f"{PID}/{BLOCK}": BLOCK_BYTES, f"{PID}/{MANIFEST}": MANIFEST_BYTES}
    verified(root, data=b"again")
    lts.quarantine(PID, BLOCK, "did not verify again")
    assert b"again" in everything(root / ".archiver" / "quarantine").values()


@pytest.mark.parametrize("call", [name for name in CALLS if name not in ("space", "wait_for_space", "path_of")])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOTCONN])
def test_an_lts_that_breaks_is_its_own_fault_whatever_was_asked(
    lts: FileSystemLts, root: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    verified(root)
    real = os.stat

    def stat(path: object, *more: object, **named: object) -> os.stat_result:
        if PID in str(path):
            raise OSError(number, os.strerror(number))
        return real(path, *more, **named)  # type: ignore[arg-type]

    before = everything(root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        with pytest.raises(LtsFault) as caught:
            CALLS[call](lts)
    assert caught.value.retryable
    assert everything(root) == before
