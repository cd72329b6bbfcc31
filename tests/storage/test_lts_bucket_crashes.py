"""P5, P6: a process that dies before or after any of its requests to the LTS bucket is followed by one that ends the work."""

from __future__ import annotations

import os
from typing import Any

import pytest

from archiver.datablock.manifest import ManifestReader
from archiver.progress import Silent
from archiver.settings import S3Settings
from archiver.storage.lts_bucket import BucketLts
from archiver.storage.objects import Bucket
from tests.datablock.making import packed
from tests.storage.test_lts_bucket import ARCHIVE, BLOCK, MANIFEST, MIB, PID, Lts, bag, pieces

BYTES, MADE = packed({"one": os.urandom(10 * MIB), "two": b"small"}, chunk=MIB)
"""Two parts."""
PLAN = ManifestReader([MADE.manifest]).header.plan
BAG = bag(PLAN, BYTES, MADE.manifest)


class Killed(BaseException):
    """The process is dead."""


class Death:
    """Comes before or after the ``number``-th request; whatever is asked later is never sent."""

    def __init__(self, lts: BucketLts, number: int, when: str) -> None:
        self.requests = 0
        self.dead = False
        self._number, self._when = number, when
        events = lts._bucket.boto.meta.events
        events.register("before-send.s3", self._before)
        events.register("after-call.s3", self._after)

    def _before(self, **given: Any) -> None:
        if self.dead:
            raise Killed
        self.requests += 1
        if self._when == "before" and self.requests == self._number:
            self.dead = True
            raise Killed

    def _after(self, **given: Any) -> None:
        if self._when == "after" and self.requests >= self._number:
            self.dead = True
            raise Killed


def archive(lts: BucketLts) -> None:
    """What a run does on the LTS, from its survey to the bag; staging has the datablock."""
    survey = lts.survey(PID, PLAN, 1)
    if survey.complete:
        return
    if survey.reusable:
        lts.prove(PID, BLOCK, MADE.manifest, staged=None, progress=Silent())
    else:
        lts.copy_in(
            PID,
            BLOCK,
            pieces(BYTES),
            size=len(BYTES),
            sha256=MADE.result.sha256,
            attempt="r-1",
            promise="p",
            progress=Silent(),
        )
        lts.prove(PID, BLOCK, MADE.manifest, staged=lambda: map(memoryview, pieces(BYTES)), progress=Silent())
        lts.put_small(PID, MANIFEST, MADE.manifest, "r-1")
    lts.publish_bag(PID, BAG, PLAN, "run-9-1", Silent())


def again(lts: Lts) -> BucketLts:
    """As another process would see it."""
    return BucketLts(Bucket(lts.bucket.name, lts.bucket._s3, lts.bucket._side), lts.settings, "test")


@pytest.mark.parametrize(("kind", "when"), [("glacier", "before"), ("glacier", "after"), ("real server", "after")])
def test_p5_a_death_at_any_request_is_mended_by_the_next_run(
    moto: S3Settings, s3: S3Settings, kind: str, when: str
) -> None:
    number, deaths = 0, 0
    while True:
        number += 1
        lts = Lts(moto, **ARCHIVE) if kind == "glacier" else Lts(s3)
        first = again(lts)
        death = Death(first, number, when)
        try:
            archive(first)
        except Killed:
            deaths += 1
        if not death.dead:
            break
        next_run = again(lts)
        archive(next_run)
        archive(next_run)
        where = f"{when} request {number}"
        assert lts.storage_class() == ("GLACIER" if kind == "glacier" else "STANDARD"), where
        assert list(lts.bucket.open_uploads("")) == [], where
        assert [key for key in lts.listed() if key.startswith(".archiver/quarantine")] == [], where
        assert sorted(lts.listed()) == sorted([f"{PID}/{name}" for name in (BLOCK, MANIFEST, *BAG)]), where
        if kind == "glacier":
            assert next_run.recall(PID, BLOCK), where
        assert next_run.check(PID, BLOCK, MADE.manifest, Silent()).files == 2, where
    # Survey, copy, proof, manifest and bag ask often; one that asked nothing would prove nothing.
    assert deaths >= 20
