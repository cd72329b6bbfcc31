"""P3, P6 in a bucket: a request of a clean-up, held back right before it is sent until another job has archived the dataset,
harms nothing of it; what a process that died then has taken is put back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from archiver.errors import ArchiverError, Stopped
from archiver.progress import Silent
from archiver.settings import S3Settings
from archiver.storage.lts_bucket import BucketLts
from tests.datablock.making import packed
from tests.storage.test_late import Dead, Late
from tests.storage.test_lts_bucket import BLOCK, MANIFEST, MIB, PID, Lts
from tests.storage.test_lts_bucket import bag as any_bag
from tests.storage.test_lts_bucket_crashes import BAG, BYTES, MADE, again, archive

SMALL, MADE_SMALL = packed({"one": b"of one part"})
OTHER, MADE_OTHER = packed({"other": b"x" * MIB})
CHANGES = ("DeleteObject", "DeleteObjects", "PutObject", "CompleteMultipartUpload", "AbortMultipartUpload")


class Held:
    """The requests of one client that change something; ``at`` is called right before the n-th is sent."""

    def __init__(self, lts: BucketLts, at: Callable[[int], None]) -> None:
        self.count = 0
        self.dead = False
        self._at = at
        lts._bucket.boto.meta.events.register("before-send.s3", self._before)

    def _before(self, *, event_name: str, **given: Any) -> None:
        if self.dead:
            raise Dead
        if event_name.rpartition(".")[2] in CHANGES:
            self.count += 1
            self._at(self.count)


def whole(lts: Lts, data: bytes, made: Any, files: dict[str, bytes]) -> None:
    """All objects of the bag, and nothing beside."""
    there = {key: lts.raw(key) for key in lts.listed() if not key.startswith(".archiver/quarantine/")}
    wanted = {f"{PID}/{name}": data for name, data in {BLOCK: data, MANIFEST: made.manifest, **files}.items()}
    assert there == wanted


def other_left(lts: Lts) -> None:
    """Another plan's, verified."""
    lts.copy(OTHER)
    lts.lts.put_small(PID, MANIFEST, MADE_OTHER.manifest, "r-0")


CASES: dict[str, tuple[Callable[[Lts], object], Callable[[BucketLts, Silent], object]]] = {
    "roll-back": (lambda lts: lts.copy(OTHER), lambda one, p: one.remove_unverified(PID, "first", p)),
    "roll-back of the same bytes": (lambda lts: lts.copy(BYTES), lambda one, p: one.remove_unverified(PID, "first", p)),
    "survey of another plan": (other_left, lambda one, p: one.survey(PID, "f" * 32, 1, "first", p)),
    "quarantine": (
        other_left,
        lambda one, p: [one.quarantine(PID, name, "no match", "first", p) for name in (BLOCK, MANIFEST)],
    ),
    "quarantine of the same bytes": (
        lambda lts: (lts.copy(BYTES), lts.lts.put_small(PID, MANIFEST, MADE.manifest, "r-0")),
        lambda one, p: [one.quarantine(PID, name, "no match", "first", p) for name in (BLOCK, MANIFEST)],
    ),
    "bag of another plan": (
        lambda lts: (other_left(lts), lts.overwrite(f"{PID}/bag-info.txt", b"of before")),
        lambda one, p: one.publish_bag(PID, any_bag("other", OTHER, MADE_OTHER.manifest), "other", "first", p),
    ),
}


def work_late(lts: Lts, work: Callable[[BucketLts, Silent], object], number: int, then: Callable[[], None]) -> Held:
    """The first job in a thread, held before its change ``number`` until ``then`` is done; it hears of it at its next beat."""
    reached, go_on, progress = threading.Event(), threading.Event(), Late()
    first = again(lts)

    def at(count: int) -> None:
        if count == number:
            reached.set()
            assert go_on.wait(120)
            progress.late = True

    held = Held(first, at)

    def run() -> None:
        with suppress(ArchiverError, Dead):
            work(first, progress)
        reached.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(120)
    if held.count >= number:
        then()
    go_on.set()
    thread.join(120)
    return held


@pytest.mark.parametrize("case", CASES)
def test_p3_a_late_request_of_any_clean_up_harms_nothing_that_another_job_archived(s3: S3Settings, case: str) -> None:
    state, work = CASES[case]
    number = 0
    while True:
        number += 1
        lts = Lts(s3)
        state(lts)
        done = []

        def second(lts: Lts = lts, done: list[bool] = done) -> None:
            with suppress(ArchiverError):
                archive(again(lts))
                whole(lts, BYTES, MADE, BAG)
                done.append(True)

        held = work_late(lts, work, number, second)
        if held.count < number:
            break
        if not done:
            # The first was through before: its archive stays.
            assert case == "bag of another plan", number
            whole(lts, OTHER, MADE_OTHER, any_bag("other", OTHER, MADE_OTHER.manifest))
            continue
        whole(lts, BYTES, MADE, BAG)
        archive(again(lts))
        assert again(lts).check(PID, BLOCK, MADE.manifest, Silent()).files == 2, number
    assert number > 1


def test_p3_a_late_delete_of_a_datablock_in_one_part_is_undone_from_the_copy_made_before(s3: S3Settings) -> None:
    """Its ETag is the same, whoever uploads it. Killed right after, the copy is put back by a sweep."""
    files = any_bag("small", SMALL, MADE_SMALL.manifest)

    for killed in (False, True):
        lts = Lts(s3)
        lts.copy(SMALL)

        def second(lts: Lts = lts) -> None:
            lts.bucket.boto.delete_object(Bucket=lts.bucket.name, Key=f"in/{PID}/{BLOCK}")  # the second's own clean-up
            lts.copy(SMALL)
            lts.lts.put_small(PID, MANIFEST, MADE_SMALL.manifest, "second")
            lts.lts.publish_bag(PID, files, "small", "second", Silent())

        first = again(lts)
        seen: list[str] = []

        def before(
            lts: Lts = lts, killed: bool = killed, seen: list[str] = seen, *, event_name: str, **given: Any
        ) -> None:
            if seen and killed:
                raise Dead
            if event_name.endswith(".DeleteObject") and not seen:
                second(lts)
                seen.append(event_name)

        first._bucket.boto.meta.events.register("before-send.s3", before)
        with suppress(Dead):
            first.remove_unverified(PID, "first", Silent())
        assert seen
        if killed:
            assert lts.lts.size_of(PID, BLOCK) is None, "or else this test is of nothing"
            assert [left.dataset for left in again(lts).leftovers(Silent())] == [PID]
            again(lts).remove_unverified(PID, "sweep")
        whole(lts, SMALL, MADE_SMALL, files)
        assert list(again(lts).leftovers(Silent())) == []


def test_two_uploads_of_the_same_bytes_are_two_versions(s3: S3Settings) -> None:
    """Or else a condition on what is to be deleted would not tell them apart."""
    lts, versions = Lts(s3), set()
    for _ in range(3):
        lts.copy(BYTES)
        versions.add(lts.lts._needed(PID, BLOCK).version)
        assert lts.raw() == BYTES
        lts.bucket.delete([f"in/{PID}/{BLOCK}"])
    assert len(versions) == 3


def test_p6_an_attempt_that_was_late_removes_nothing_more(s3: S3Settings) -> None:
    lts = Lts(s3)
    lts.copy(OTHER)
    late = Late()
    late.late = True
    with pytest.raises(Stopped):
        lts.lts.remove_unverified(PID, "first", late)
    assert lts.raw() == OTHER
