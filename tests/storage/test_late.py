"""P3, P6: an attempt stopped right before any change it makes on the LTS, and continued after, or while, another job archived
the dataset, harms nothing of it; one that dies there leaves what the next run or a sweep puts right.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from archiver.datablock.bag import bag_files
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.record import DatablockRecord
from archiver.errors import ArchiverError, IntegrityMismatch, Refused, Stopped
from archiver.model import Event
from archiver.progress import Silent
from archiver.settings import LtsSettings
from archiver.storage.lts_directory import FileSystemLts
from tests.datablock.making import packed
from tests.storage.conftest import new_lts

PID = "20.500.1/a"
BLOCK, MANIFEST = "data/1.tar.gz", "data/1.manifest.jsonl.gz"
STRIDE = 5
CALLS = ("rename", "replace", "link", "unlink", "rmdir", "mkdir")
NEW, MADE = packed({"a": b"new" * 1000})
OLD, MADE_OLD = packed({"a": b"old" * 1000})


def plan(made: Any) -> str:
    return ManifestReader([made.manifest]).header.plan


def bag(data: bytes, made: Any, dataset: dict[str, Any], day: str = "2026-11-28") -> dict[str, bytes]:
    record = DatablockRecord(
        n=1,
        plan_id=plan(made),
        size_bytes=made.result.size_bytes,
        packed_bytes=len(data),
        files=1,
        sha256=made.result.sha256,
        manifest_sha256=hashlib.sha256(made.manifest).hexdigest(),
        manifest_bytes=len(made.manifest),
        level="host",
        how_read="",
        verified_at="",
    )
    return bag_files(pid=PID, plan_id=plan(made), format="tar.gz", records=[record], dataset=dataset, bagging_date=day)


NEW_BAG, OLD_BAG = bag(NEW, MADE, {"pid": PID, "of": "new"}), bag(OLD, MADE_OLD, {"pid": PID, "of": "old"})
OTHER_DAY = bag(NEW, MADE, {"pid": PID, "of": "new"}, "2026-11-27")


class Dead(BaseException):
    """The process is dead."""


class Late(Silent):
    """Progress of an attempt that is told, at its next beat, that another has taken over."""

    late = False

    def note(self, text: str) -> None:
        if self.late:
            raise Stopped("stood still: another attempt has taken over")

    def advance(self, size_bytes: int = 0, files: int = 0) -> None:
        self.note("")


class Calls:
    """The changes that one thread makes on the file system: ``at`` is called right before the n-th; dead, it makes no more."""

    def __init__(self, at: Callable[[int], None]) -> None:
        self.count = 0
        self.dead = False
        self._at = at

    def before(self) -> None:
        if self.dead:
            raise Dead
        self.count += 1
        self._at(self.count)


_of_thread: dict[int, Calls] = {}


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every such call of a thread that is listed goes through its ``Calls``; a call that would do nothing is none."""

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if (calls := _of_thread.get(threading.get_ident())) is not None:
                calls.before()
            return real(*given, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    yield
    _of_thread.clear()


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory: thousands of datasets are archived here, each with forty fsyncs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else tmp_path) as folder:
        yield Path(folder)


@contextmanager
def watching(calls: Calls) -> Iterator[None]:
    _of_thread[threading.get_ident()] = calls
    try:
        yield
    finally:
        _of_thread.pop(threading.get_ident(), None)


def lts_in(root: Path) -> FileSystemLts:
    """As another process sees it."""
    return FileSystemLts(LtsSettings(root=root, reserve="0B"))


def event(text: str) -> Event:
    return Event(time="2026-11-28T00:00:00Z", type="t", event=text, agent="a", object=PID)


# --- the second job: all that the activities do on the LTS, in their order --------------------------------------------


def once(lts: FileSystemLts, attempt: str) -> None:
    survey = lts.survey(PID, plan(MADE), 1, attempt)
    if survey.complete and survey.plan_id != plan(MADE):
        raise Refused("the first job was through: its archive is never replaced")
    if not survey.reusable:
        lts.wait_for_space(f"{PID}/1", len(NEW), Silent())
        sha256 = MADE.result.sha256
        given: dict[str, Any] = {"size": len(NEW), "sha256": sha256, "attempt": attempt, "promise": f"{PID}/1"}
        lts.copy_in(PID, BLOCK, iter([NEW]), progress=Silent(), **given)
    if not survey.complete:
        there = lts.size_of(PID, BLOCK) is not None
        if not there or lts._digest(lts.path_of(PID, BLOCK)) != MADE.result.sha256:
            raise IntegrityMismatch("the datablock does not verify", retryable=False)
        lts.put_small(PID, MANIFEST, MADE.manifest, attempt)
        if lts.size_of(PID, BLOCK) is None:
            raise IntegrityMismatch("the datablock is gone", retryable=False)
    lts.record_events(PID, [event("second: archived")], attempt, Silent())
    lts.publish_bag(PID, NEW_BAG, plan(MADE), attempt, Silent())
    lts.record_events(PID, [event("second: registered")], attempt, Silent())


def archive(lts: FileSystemLts) -> None:
    """With what Temporal and the workflow do about failures: tried again; what does not match is taken away and made anew."""
    told = []
    for attempt in range(8):
        try:
            once(lts, f"second-1-{attempt}")
            return
        except IntegrityMismatch as mismatch:
            told.append(mismatch.one_line())
            for name in (BLOCK, MANIFEST):
                lts.quarantine(PID, name, "did not verify", f"second-2-{attempt}")
        except Refused:
            return
        except ArchiverError as error:
            if not error.retryable:
                raise
            told.append(error.one_line())
    raise AssertionError(f"the second job does not come to its end: {told}")


def assert_whole(root: Path, *, clean: bool = True) -> None:
    """By independent means; with ``clean``, nothing else lies in the dataset."""
    folder, files, data, manifest = root / PID, NEW_BAG, NEW, MADE.manifest
    info = (folder / "bag-info.txt").read_bytes()
    # A first job that had got so far has archived the dataset.
    if first := info == OLD_BAG["bag-info.txt"]:
        files, data, manifest = OLD_BAG, OLD, MADE_OLD.manifest
    elif info == OTHER_DAY["bag-info.txt"]:
        files = OTHER_DAY
    for listing in ("manifest-sha256.txt", "tagmanifest-sha256.txt"):
        done = subprocess.run(["sha256sum", "-c", "--quiet", listing], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert ((folder / BLOCK).read_bytes(), (folder / MANIFEST).read_bytes()) == (data, manifest)
    events = (folder / "events.jsonl").read_text()
    assert first or ("second: archived" in events and "second: registered" in events)
    if clean:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert names == {*files, BLOCK, MANIFEST, "events.jsonl"}


# --- what the first job, cancelled or failed, does on the LTS, and what it finds there ---------------------------------


def lay(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = root / PID / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def unverified(root: Path, data: bytes = OLD) -> None:
    """A killed run was here."""
    lay(
        root,
        {
            BLOCK: data,
            "data/.1.tar.gz.dead-1-1.partial": b"part",
            "data/.1.manifest.jsonl.gz.dead-2-1.partial": b"part",
            ".bag-info.txt.dead-3-1.partial": b"part",
        },
    )


def unverified_same(root: Path) -> None:
    unverified(root, NEW)


def other_plan(root: Path) -> None:
    lay(root, {BLOCK: OLD, MANIFEST: MADE_OLD.manifest})


def half_a_bag(root: Path) -> None:
    """Killed while it wrote the bag of another state."""
    other_plan(root)
    tags = {name: data for name, data in OLD_BAG.items() if name != "tagmanifest-sha256.txt"}
    lay(root, {**tags, "dataset.json": b"{}", "events.jsonl": b'{"event": "of before"}\n'})


def half_a_bag_same(root: Path) -> None:
    lay(root, {BLOCK: NEW, MANIFEST: MADE.manifest, "bag-info.txt": b"of another day\n", "dataset.json": b"{}"})


def roll_back(lts: FileSystemLts, progress: Silent) -> None:
    lts.remove_unverified(PID, "first-1-1", progress)
    lts.release_all(PID)


def survey(lts: FileSystemLts, progress: Silent) -> None:
    lts.survey(PID, "f" * 32, 1, "first-1-1", progress)


def quarantine(lts: FileSystemLts, progress: Silent) -> None:
    for name in (BLOCK, MANIFEST):
        lts.quarantine(PID, name, "did not verify", "first-1-1", progress)


def publish_old(lts: FileSystemLts, progress: Silent) -> None:
    lts.publish_bag(PID, OLD_BAG, plan(MADE_OLD), "first-1-1", progress)


def publish_same(lts: FileSystemLts, progress: Silent) -> None:
    lts.publish_bag(PID, OTHER_DAY, plan(MADE), "first-1-1", progress)


def tell(lts: FileSystemLts, progress: Silent) -> None:
    lts.record_events(PID, [event("first: cancelled")], "first-1-1", progress)


def copy(lts: FileSystemLts, progress: Silent) -> None:
    given: dict[str, Any] = {"size": len(OLD), "sha256": MADE_OLD.result.sha256, "attempt": "dead-1-2", "promise": "p"}
    lts.copy_in(PID, BLOCK, iter([OLD]), progress=progress, **given)


def copy_one_more(lts: FileSystemLts, progress: Silent) -> None:
    given: dict[str, Any] = {"size": len(OLD), "sha256": MADE_OLD.result.sha256, "attempt": "first-1-1", "promise": "p"}
    lts.copy_in(PID, "data/2.tar.gz", iter([OLD]), progress=progress, **given)
    lts.put_small(PID, "data/2.manifest.jsonl.gz", MADE_OLD.manifest, "first-2-1")


CASES: dict[str, tuple[Callable[[Path], None], Callable[[FileSystemLts, Silent], None]]] = {
    "roll-back": (unverified, roll_back),
    "roll-back of the same bytes": (unverified_same, roll_back),
    "survey of leftovers": (unverified, survey),
    "survey of another plan": (other_plan, survey),
    "quarantine": (other_plan, quarantine),
    "bag of another plan": (half_a_bag, publish_old),
    "bag of the same plan": (half_a_bag_same, publish_same),
    "receipt": (half_a_bag, tell),
    "copy of a datablock more": (lambda root: None, copy_one_more),
    "copy": (lambda root: lay(root, {"data/.1.tar.gz.dead-1-1.partial": b"part"}), copy),
}


def made(tmp_path: Path, name: str, state: Callable[[Path], None]) -> Path:
    root = tmp_path / name
    root.mkdir()
    new_lts(root)
    state(root)
    return root


def first_job(
    root: Path, work: Callable[[FileSystemLts, Silent], None], number: int, *, deaf: bool
) -> tuple[threading.Thread, threading.Event, threading.Event, Calls]:
    """The first job in a thread, stopped right before its change ``number``. Returns also: that it is there, or at its end;
    and what lets it go on.
    """
    reached, go_on, progress = threading.Event(), threading.Event(), Late()

    def at(count: int) -> None:
        if count == number:
            reached.set()
            assert go_on.wait(60)
            progress.late = not deaf

    calls = Calls(at)

    def run() -> None:
        with watching(calls), suppress(ArchiverError, Dead):
            work(lts_in(root), progress)
        reached.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(60)
    return thread, reached, go_on, calls


@pytest.mark.parametrize("deaf", [False, True], ids=["hears", "deaf"])
@pytest.mark.parametrize("case", CASES)
def test_p3_a_late_change_of_any_clean_up_harms_nothing_that_another_job_archived(
    tmp_path: Path, case: str, deaf: bool
) -> None:
    """``deaf``: it does not even notice that it was late, and goes on to its end."""
    state, work = CASES[case]
    number = 0
    while True:
        number += 1
        root = made(tmp_path, str(number), state)
        thread, _, go_on, calls = first_job(root, work, number, deaf=deaf)
        if calls.count < number:
            thread.join(60)
            break
        archive(lts_in(root))
        assert_whole(root)
        go_on.set()
        thread.join(60)
        try:
            assert_whole(root, clean=False)
            archive(lts_in(root))
            assert_whole(root)
        except (AssertionError, FileNotFoundError) as error:
            raise AssertionError(f"change {number}: {error}") from None
    assert number > 3


@pytest.mark.parametrize("case", CASES)
def test_p5_killed_before_any_change_of_a_clean_up_the_next_run_and_a_sweep_put_it_right(
    tmp_path: Path, case: str
) -> None:
    state, work = CASES[case]
    number = 0
    while True:
        number += 1
        root = made(tmp_path, str(number), state)

        calls = Calls(lambda count: None)

        def at(count: int, last: int = number, calls: Calls = calls) -> None:
            if count == last:
                calls.dead = True
                raise Dead

        calls._at = at
        with watching(calls), suppress(ArchiverError, Dead):
            work(lts_in(root), Silent())
        if not calls.dead:
            break
        if number % 2:
            lts_in(root).remove_unverified(PID, "sweep-1-1")
            left = [path.name for path in (root / PID).rglob("*") if path.name.endswith((".quarantine", ".partial"))]
            assert left == [], f"change {number}"
        archive(lts_in(root))
        try:
            assert_whole(root)
        except (AssertionError, FileNotFoundError) as error:
            raise AssertionError(f"change {number}: {error}") from None


@pytest.mark.parametrize("case", CASES)
def test_p3_late_and_then_killed_at_once_is_found_by_a_sweep_and_put_right(tmp_path: Path, case: str) -> None:
    """The one change is made after the other job is through, and nothing more: what it took lies in quarantine."""
    state, work = CASES[case]
    number, broken = 0, 0
    while True:
        number += 1
        root = made(tmp_path, str(number), state)
        thread, _, go_on, calls = first_job(root, work, number, deaf=True)
        if calls.count < number:
            thread.join(60)
            break
        archive(lts_in(root))
        calls._at = lambda count: (_ for _ in ()).throw(Dead)  # the next one kills it
        go_on.set()
        thread.join(60)
        calls.dead = True
        lts = lts_in(root)
        try:
            try:
                assert_whole(root)
            except (AssertionError, FileNotFoundError):
                broken += 1
                (found,) = lts.leftovers(Silent())
                assert found.dataset == PID
                lts.remove_unverified(PID, "sweep-1-1")
            assert_whole(root)
            assert list(lts.leftovers(Silent())) == []
        except (AssertionError, FileNotFoundError) as error:
            raise AssertionError(f"change {number}: {error}") from None
    if case in ("roll-back", "survey of another plan", "quarantine"):
        assert broken, "the moment that this test is about was not met"


@pytest.mark.parametrize("case", CASES)
def test_p3_a_late_change_in_the_midst_of_another_jobs_work_harms_nothing(tmp_path: Path, case: str) -> None:
    """Each change of the first job, made before every fifth of the second's."""
    state, work = CASES[case]
    number = 0
    while True:
        number += 1
        moment = number % STRIDE + 1 - STRIDE
        reached_end = False
        while not reached_end:
            moment += STRIDE
            root = made(tmp_path, f"{number}-{moment}", state)
            thread, _, go_on, calls = first_job(root, work, number, deaf=False)
            if calls.count < number:
                thread.join(60)
                return

            def let_go(
                count: int, last: int = moment, thread: threading.Thread = thread, go_on: threading.Event = go_on
            ) -> None:
                if count == last:
                    go_on.set()
                    thread.join(60)

            with watching(Calls(let_go)):
                archive(lts_in(root))
            reached_end = not go_on.is_set()
            go_on.set()
            thread.join(60)
            try:
                assert_whole(root, clean=False)
                archive(lts_in(root))
                assert_whole(root)
            except (AssertionError, FileNotFoundError) as error:
                raise AssertionError(f"change {number} before the other's {moment}: {error}") from None
            subprocess.run(["rm", "-rf", str(root)], check=True)


def test_a_file_system_without_links_moves_back_without_clobbering_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    test_p3_a_late_change_of_any_clean_up_harms_nothing_that_another_job_archived(tmp_path, "survey of leftovers", True)
