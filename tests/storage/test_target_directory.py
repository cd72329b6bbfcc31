"""Retrieved data in a directory: confined, never over what differs, seen only whole and right, with times and modes."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archiver.errors import DestinationRefused, HostilePath, IntegrityMismatch, TargetDiffers, TargetFault, TargetFull
from archiver.progress import Silent
from archiver.settings import RetrievalSettings
from archiver.storage import retrieval_directory
from archiver.storage.retrieval_directory import MARKER, RetrievalDirectory, mark
from tests.needs import run
from tests.storage.conftest import Disk
from tests.storage.delivering import HOSTILE, PID, SELECTION, deliver, file, give, pieces

LARGE = os.urandom(5 * 2**20 + 12345)
WHEN = 1706933106
"""``delivering.TIME`` in whole seconds."""


def new_target(root: Path, path: str = "group/p1", **settings: object) -> RetrievalDirectory:
    given = {"roots": [root], "reserve": "0B", **settings}
    return RetrievalDirectory(str(root), path, RetrievalSettings.model_validate(given))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A configured root, with something outside that must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"untouched")
    path = tmp_path / "root"
    path.mkdir()
    mark(path, dry_run=False)
    return path


@pytest.fixture
def target(root: Path) -> Iterator[RetrievalDirectory]:
    """A destination below it; nothing outside was touched."""
    yield new_target(root)
    assert everything(root.parent / "outside") == {"secret": b"untouched"}


@pytest.fixture
def folder(root: Path) -> Path:
    """The dataset's folder there, made."""
    path = root / "group/p1" / PID
    path.mkdir(parents=True)
    return path


def everything(folder: Path) -> dict[str, bytes]:
    """Every file by its path, also temporary ones; but the root's marker."""
    found = {}
    for place, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            if os.fsdecode(name) == MARKER:
                continue
            path = os.path.join(place, name)
            found[os.fsdecode(os.path.relpath(path, os.fsencode(folder)))] = Path(os.fsdecode(path)).read_bytes()
    return found


def marked(one: Disk) -> Disk:
    """A disk that is a root for retrieved data."""
    mark(one.folder, dry_run=False)
    return one


def facts(path: Path) -> tuple[int, ...]:
    """What reading does not change."""
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink


def test_p4_files_lie_below_the_pid_under_their_exact_names(target: RetrievalDirectory, folder: Path) -> None:
    files = {name: b"bytes of " + name.encode() for name in HOSTILE}
    assert deliver(target, files.items()) == (len(files), 0)
    assert everything(folder) == files
    assert deliver(target, files.items(), attempt="2") == (0, len(files))


@pytest.mark.parametrize(
    ("given", "mode"),
    [(None, 0o644), (0o640, 0o640), (0o100755, 0o755), (0o107777, 0o777), (0o400, 0o400)],
)
def test_times_and_modes_are_the_manifests_and_never_those_that_give_rights(
    target: RetrievalDirectory, folder: Path, given: int | None, mode: int
) -> None:
    with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
        give(sink, file("d/f", b"data", mode=given), b"data")
    found = (folder / "d/f").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime, found.st_uid) == (mode, WHEN, os.getuid())
    assert found.st_nlink == 1


@pytest.mark.parametrize("time", ["", "no time", "1969-01-01T00:00:00Z"])
def test_a_time_that_is_none_leaves_the_time_of_writing(target: RetrievalDirectory, folder: Path, time: str) -> None:
    with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
        give(sink, file("f", b"data", time=time), b"data")
    assert (folder / "f").stat().st_mtime > WHEN


def test_p2_a_file_is_not_seen_before_its_bytes_are_proved(target: RetrievalDirectory, folder: Path) -> None:
    with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
        assert sink.begin(file("f", LARGE))
        for piece in pieces(LARGE):
            sink.data(piece)
        assert not (folder / "f").exists()
        sink.commit()
    assert everything(folder) == {"f": LARGE}


def test_p2_nothing_of_an_aborted_file_stays_and_the_others_are_there(target: RetrievalDirectory, folder: Path) -> None:
    with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
        give(sink, file("a", b"good"), b"good")
        assert sink.begin(file("b", LARGE))
        sink.data(memoryview(LARGE[:100]))
        sink.abort()
        give(sink, file("c", LARGE), LARGE)
    assert everything(folder) == {"a": b"good", "c": LARGE}


@pytest.mark.parametrize("found", [LARGE[:-1], LARGE + b"!"], ids=["short", "long"])
def test_p2_bytes_of_another_length_are_never_seen(target: RetrievalDirectory, folder: Path, found: bytes) -> None:
    with (
        pytest.raises(IntegrityMismatch),
        target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink,
    ):
        give(sink, file("f", LARGE), found)
    assert everything(folder) == {}


# --- what lies there already -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [b"other", b"datA", b""], ids=["size", "bytes", "empty"])
def test_p3_a_file_with_other_bytes_is_named_and_stays(target: RetrievalDirectory, folder: Path, other: bytes) -> None:
    (folder / "f").write_bytes(other)
    with pytest.raises(TargetDiffers, match="'f'") as caught:
        deliver(target, [("a", b"a"), ("f", b"data")])
    assert not caught.value.retryable
    assert everything(folder)["f"] == other
    assert set(everything(folder)) <= {"a", "f"}


def test_p6_a_file_with_the_same_bytes_is_a_success_and_stays_as_it_is(
    target: RetrievalDirectory, folder: Path
) -> None:
    (folder / "f").write_bytes(LARGE)
    before = facts(folder / "f")
    assert deliver(target, [("f", LARGE)]) == (0, 1)
    assert facts(folder / "f") == before


IN_THE_WAY: dict[str, Callable[[Path, Path], object]] = {
    "folder": lambda path, outside: path.mkdir(),
    "link to the same bytes": lambda path, outside: path.symlink_to(outside / "secret"),
    "broken link": lambda path, outside: path.symlink_to(outside / "new"),
    "FIFO": lambda path, outside: os.mkfifo(path),
    "device": lambda path, outside: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_p3_what_is_no_regular_file_is_named_and_never_followed_or_replaced(
    target: RetrievalDirectory, folder: Path, kind: str
) -> None:
    IN_THE_WAY[kind](folder / "f", folder.parents[4] / "outside")
    before = facts(folder / "f")
    with pytest.raises(TargetDiffers, match="'f'"):
        deliver(target, [("f", b"untouched")])
    assert facts(folder / "f") == before
    assert os.listdir(folder) == ["f"]


@pytest.mark.parametrize("kind", ["a file", "a link"])
def test_p3_a_folder_of_the_dataset_that_is_something_else_is_named(
    target: RetrievalDirectory, folder: Path, kind: str
) -> None:
    if kind == "a file":
        (folder / "d").write_bytes(b"x")
    else:
        (folder / "d").symlink_to(folder.parents[4] / "outside")
    with pytest.raises(TargetDiffers, match="'d/e/f'"):
        deliver(target, [("d/e/f", b"data")])
    assert os.listdir(folder) == ["d"]


def test_p3_a_file_that_comes_while_ours_is_written_is_not_clobbered(target: RetrievalDirectory, folder: Path) -> None:
    def meanwhile(found: bytes) -> None:
        with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
            assert sink.begin(file("f", b"data"))
            sink.data(memoryview(b"data"))
            (folder / "f").write_bytes(found)
            sink.commit()

    with pytest.raises(TargetDiffers):
        meanwhile(b"user")
    assert everything(folder) == {"f": b"user"}
    (folder / "f").unlink()
    meanwhile(b"data")
    assert everything(folder) == {"f": b"data"}


# --- confined ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../outside", "a/../../outside", "a/..", "a\0b"], ids=ascii)
def test_a_destination_that_climbs_is_refused(root: Path, path: str) -> None:
    with pytest.raises(DestinationRefused):
        new_target(root, path)


def test_a_root_without_its_marker_is_an_unmounted_one(target: RetrievalDirectory, root: Path) -> None:
    (root / MARKER).unlink()
    for work in (
        lambda: target.check_space(1),
        lambda: target.sink(PID, SELECTION, "1", Silent(), piece="1"),
        lambda: list(target.delivered(PID, [file("a", b"")])),
    ):
        with pytest.raises(TargetFault, match="is not marked as a directory for retrieved data") as caught:
            work()
        assert caught.value.retryable
    assert list(root.iterdir()) == []
    assert mark(root, dry_run=True)
    assert mark(root, dry_run=False)
    assert not mark(root, dry_run=False)
    with pytest.raises(TargetFault, match="cannot be marked: No such file") as caught:
        mark(root / "none", dry_run=False)
    assert not caught.value.retryable


def test_a_root_that_is_not_configured_is_refused(root: Path) -> None:
    with pytest.raises(DestinationRefused, match=r"retrieval\.roots"):
        RetrievalDirectory(str(root.parent / "outside"), "a", RetrievalSettings.model_validate({"roots": [root]}))


@pytest.mark.parametrize("at", ["group", "group/p1", f"group/p1/{PID.split('/')[0]}", f"group/p1/{PID}"])
@pytest.mark.parametrize("kind", ["link outside", "link inside", "file"])
def test_a_destination_through_a_link_or_a_file_is_refused(
    target: RetrievalDirectory, root: Path, at: str, kind: str
) -> None:
    (root / at).parent.mkdir(parents=True, exist_ok=True)
    (root / "inside").mkdir()
    if kind == "file":
        (root / at).write_bytes(b"")
    else:
        (root / at).symlink_to(root.parent / "outside" if kind == "link outside" else root / "inside")
    with pytest.raises(DestinationRefused):
        deliver(target, [("f", b"data")])
    assert [*(root / "inside").iterdir()] == []


def test_a_root_that_the_operator_made_a_link_is_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    deliver(new_target(tmp_path / "link"), [("f", b"data")])
    assert everything(root / "group/p1" / PID) == {"f": b"data"}


@pytest.mark.parametrize("path", ["../f", "/etc/f", "a/../../f", "a//f", "./f", "", "a\0b"], ids=ascii)
def test_a_manifests_path_that_climbs_writes_nothing(target: RetrievalDirectory, root: Path, path: str) -> None:
    with pytest.raises(HostilePath):
        deliver(target, [(path, b"data")])
    assert everything(root) == {}


@pytest.mark.parametrize("at", ["d", "."])
def test_a_folder_swapped_for_a_link_while_we_write_leads_nowhere(
    target: RetrievalDirectory, folder: Path, root: Path, at: str
) -> None:
    outside = root.parent / "outside"
    swapped = folder / at if at != "." else folder
    with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
        give(sink, file("d/1", b"one"), b"one")
        assert sink.begin(file("d/2", LARGE))
        sink.data(memoryview(LARGE[:1000]))
        shutil.move(str(swapped), str(root / "moved"))
        swapped.symlink_to(outside)
        sink.data(memoryview(LARGE[1000:]))
        sink.commit()
    assert everything(outside) == {"secret": b"untouched"}
    with pytest.raises((TargetDiffers, DestinationRefused)):
        deliver(target, [("d/3", b"three")], attempt="2")
    with pytest.raises((TargetDiffers, DestinationRefused)):
        list(target.delivered(PID, [file("d/2", LARGE)]))


def test_links_swapped_in_all_the_time_lead_nowhere(target: RetrievalDirectory, folder: Path, root: Path) -> None:
    """A race for its own sake: whatever it wins, nothing is written, made or read outside."""
    outside, over = root.parent / "outside", threading.Event()

    def swap() -> None:
        while not over.is_set():
            try:
                os.rename(folder / "d", root / f"moved-{secrets.token_hex(4)}")
                os.symlink(outside, folder / "d")
                os.unlink(folder / "d")
            except OSError:
                continue

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for n in range(60):
            try:
                deliver(target, [(f"d/e{n}/{k}", b"x" * k) for k in range(5)], attempt=str(n))
            except (TargetDiffers, TargetFault):
                continue
    finally:
        over.set()
        thread.join(60)
    assert everything(outside) == {"secret": b"untouched"}
    assert os.listdir(outside) == ["secret"]


# --- death, neighbours, space -----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from archiver.progress import Silent
from archiver.settings import RetrievalSettings
from archiver.storage.retrieval_directory import RetrievalDirectory
from tests.storage.delivering import PID, SELECTION, file, give

root, where = sys.argv[1:]
target = RetrievalDirectory(root, "group/p1", RetrievalSettings(roots=(root,), reserve="0B"))
real, calls = os.fsync, []

def fsync(descriptor):
    calls.append(descriptor)
    if where == "fsync" and len(calls) > 3:
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)

os.fsync = fsync
with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
    for n in range(3):
        give(sink, file(f"d/{n}", b"data" * n), b"data" * n)
    sink.begin(file("d/large", bytes(10**7)))
    sink.data(memoryview(bytes(10**6)))
    if where == "data":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("where", ["data", "fsync"])
def test_p5_a_killed_process_leaves_no_half_file_and_the_next_run_clears_its_temporaries(
    target: RetrievalDirectory, folder: Path, root: Path, where: str
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), where], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    right = {f"d/{n}": b"data" * n for n in range(3)} | {"d/large": bytes(10**7)}
    found = everything(folder)
    assert any("/.archiver." in name for name in found)
    assert all(data == right[name] for name, data in found.items() if "/.archiver." not in name)
    deliver(target, [("d/other", b"o")], piece="2")
    assert any("/.archiver." in name for name in everything(folder)), "the work of another piece is not ours to clear"
    deliver(target, right.items(), attempt="2")
    assert everything(folder) == right | {"d/other": b"o"}


def test_p5_an_attempt_whose_place_was_taken_publishes_nothing(target: RetrievalDirectory, folder: Path) -> None:
    def stale() -> None:
        with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
            assert sink.begin(file("f", LARGE))
            sink.data(memoryview(LARGE))
            deliver(target, [("other", b"of the next attempt")], attempt="2")
            sink.commit()

    with pytest.raises(TargetFault):
        stale()
    assert everything(folder) == {"other": b"of the next attempt"}


def test_two_overlapping_selections_at_once_both_end_right(target: RetrievalDirectory, folder: Path) -> None:
    files = [(f"{n % 3}/f{n:02}", os.urandom(1000 * n)) for n in range(60)] + [("large", LARGE)]
    start, outcomes = threading.Barrier(2), {}

    def work(name: str, mine: list[tuple[str, bytes]]) -> None:
        start.wait()
        outcomes[name] = sum(deliver(target, mine, selection=name))

    both = (("first", files[:50] + files[-1:]), ("rest", files[10:]))
    threads = [threading.Thread(target=work, args=args) for args in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert outcomes == {"first": 51, "rest": 51}
    assert everything(folder) == dict(files)


def test_more_folders_than_are_held_open_are_all_synced_after_their_last_file(
    target: RetrievalDirectory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval_directory, "OPEN_FOLDERS", 3)
    done: list[str] = []
    real_fsync, real_publish = os.fsync, retrieval_directory.publish

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        done.append("sync " + os.readlink(f"/proc/self/fd/{descriptor}"))

    def publish(partial: Path, final: Path, at: int) -> None:
        time.sleep(0.01)  # so that a folder that does not wait for its files is synced before them
        real_publish(partial, final, at)
        done.append("file in " + os.readlink(f"/proc/self/fd/{at}"))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(retrieval_directory, "publish", publish)
    files = {f"{n % 10}/{n}": b"%d" % n for n in range(60)}
    before = len(os.listdir("/proc/self/fd"))
    assert deliver(target, files.items()) == (60, 0)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert everything(folder) == files
    last = {what: n for n, what in enumerate(done)}
    for n in range(10):
        assert last[f"sync {folder}/{n}"] > last[f"file in {folder}/{n}"]


def test_thousands_of_files_in_one_folder_sync_it_once(
    target: RetrievalDirectory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert deliver(target, ((f"{n:04}", b"%d" % n) for n in range(5000))) == (5000, 0)
    assert synced.count(str(folder)) == 1
    assert len(os.listdir(folder)) == 5000


def test_after_a_failed_fsync_the_file_is_given_up(
    target: RetrievalDirectory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(TargetFault) as caught:
        deliver(target, [("f", b"data")])
    assert caught.value.retryable
    assert everything(folder) == {}


def test_a_file_system_without_hard_links_is_published_on_all_the_same(
    target: RetrievalDirectory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    deliver(target, [("d/f", b"data")])
    assert everything(folder) == {"d/f": b"data"}


def test_a_full_disk_is_a_wait_that_leaves_nothing_half(disk: Callable[..., Disk]) -> None:
    one = marked(disk(16))
    target = new_target(one.folder)
    with pytest.raises(TargetFull, match="full") as caught:
        deliver(target, [("small", b"data"), ("large", bytes(30 * 2**20))])
    assert caught.value.retryable
    with pytest.raises(TargetFull):
        deliver(target, ((f"{n:05}", os.urandom(60_000)) for n in range(1000)), attempt="2")
    place = one.folder / "group/p1" / PID
    found = everything(place)
    assert {len(data) for name, data in found.items() if name != "small"} <= {60_000}
    assert not [name for name in found if ".archiver" in name]
    for name in found:
        (place / name).unlink()
    assert deliver(target, [("small", b"data")], attempt="3") == (1, 0)


def test_room_is_what_is_free_beside_the_reserve(disk: Callable[..., Disk]) -> None:
    one = marked(disk(32))
    free = os.statvfs(one.folder).f_bavail * os.statvfs(one.folder).f_frsize
    new_target(one.folder).check_space(free)
    with pytest.raises(TargetFull) as never:
        new_target(one.folder).check_space(40 * 2**20)
    assert not never.value.retryable
    (one.folder / "held").write_bytes(bytes(8 * 2**20))
    with pytest.raises(TargetFull) as waits:
        new_target(one.folder).check_space(free)
    assert waits.value.retryable
    with pytest.raises(TargetFull):
        new_target(one.folder, reserve="20MiB").check_space(10 * 2**20)


def test_a_read_only_file_system_is_the_targets_fault(disk: Callable[..., Disk]) -> None:
    one = marked(disk())
    run("mount", "-o", "remount,ro", str(one.folder))
    with pytest.raises(TargetFault, match="Read-only file system") as caught:
        deliver(new_target(one.folder), [("f", b"data")])
    assert caught.value.retryable


def test_a_root_that_is_not_there_is_the_targets_fault_and_is_not_made(root: Path) -> None:
    target = new_target(root)
    shutil.rmtree(root)
    with pytest.raises(TargetFault) as caught:
        deliver(target, [("f", b"data")])
    assert caught.value.retryable
    assert not root.exists()
    with pytest.raises(TargetFault):
        target.check_space(1)


def test_p5_what_was_told_durable_is_there_after_a_power_cut(disk: Callable[..., Disk]) -> None:
    one = marked(disk())
    files = {f"{n % 4}/deep/{n}": os.urandom(5000) for n in range(40)}
    deliver(new_target(one.folder), files.items())
    one.cut_power()
    assert everything(one.folder / "group/p1" / PID) == files


def test_what_was_delivered_is_told_with_its_path_and_its_absence_is_no_success(
    target: RetrievalDirectory, folder: Path
) -> None:
    files = [("a", b"a"), ("b/c", LARGE)]
    deliver(target, files)
    told = [*target.delivered(PID, (file(*one) for one in files))]
    assert [(one.name, one.where) for one in told] == [(name, f"group/p1/{PID}/{name}") for name, _ in files]
    (folder / "a").unlink()
    with pytest.raises(TargetFault):
        list(target.delivered(PID, (file(*one) for one in files)))
