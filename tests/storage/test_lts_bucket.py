"""A bucket as LTS, on a real S3 server and on one that has Glacier's classes: nothing overwritten, nothing believed unread."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from pydantic import AnyHttpUrl

from archiver.datablock.bag import TAG_MANIFEST
from archiver.datablock.manifest import ManifestReader
from archiver.errors import IntegrityMismatch, LtsFault, LtsMarkerMissing, NotRecalled, Stopped
from archiver.model import Event
from archiver.progress import Silent
from archiver.settings import LtsBucketSettings, S3Settings
from archiver.storage import lts_bucket, multipart
from archiver.storage.lts_bucket import BucketLts
from archiver.storage.objects import Bucket
from tests.datablock.making import packed
from tests.pipeline.faulty_s3 import FaultyS3, S3Fault
from tests.storage.glacier import Restores, restores

PID = "20.500.1/x"
BLOCK = "data/1.tar.gz"
MANIFEST = "data/1.manifest.jsonl.gz"
MIB = 2**20
FILES = {"a/one": os.urandom(6 * MIB + 77), "b": b"two", "c/deep/er": os.urandom(5 * MIB)}
BYTES, MADE = packed(FILES)
PLAN = ManifestReader([MADE.manifest]).header.plan
ARCHIVE = {"storage_class": "GLACIER"}


class Lts:
    """An LTS bucket, what is done to it, and what lies in it."""

    def __init__(self, s3: S3Settings, **settings: object) -> None:
        self.bucket = Bucket(f"test-{secrets.token_hex(6)}", s3, LtsFault)
        given = {"name": self.bucket.name, "prefix": "in/", "part_bytes": 5 * MIB, **settings}
        self.settings = LtsBucketSettings.model_validate(given)
        self.lts = BucketLts(self.bucket, self.settings, "test")
        self.lts.setup()

    def copy(self, data: bytes = BYTES, **more: object) -> None:
        """Copy a datablock in."""
        given: dict[str, Any] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **more}
        chunks = given.pop("chunks", None) or pieces(data)
        progress = given.pop("progress", Silent())
        self.lts.copy_in(PID, BLOCK, chunks, attempt="r-1-1", promise="p", progress=progress, **given)

    def prove(self, *, staged: bytes | None = BYTES) -> Any:
        """Verify it, with what was staged or without."""
        chunks = None if staged is None else lambda: map(memoryview, pieces(staged))
        return self.lts.prove(PID, BLOCK, MADE.manifest, staged=chunks, progress=Silent())

    def archived(self) -> None:
        """Copy, verify, publish the manifest."""
        self.copy()
        self.prove()
        self.lts.put_small(PID, MANIFEST, MADE.manifest, "r-1-1")

    def listed(self) -> list[str]:
        """Every key but the marker and the proofs."""
        found = [entry.key.removeprefix("in/") for entry in self.bucket.list("")]
        return [key for key in found if not key.startswith((".archiver-lts", ".archiver/proofs"))]

    def raw(self, key: str = f"{PID}/{BLOCK}") -> bytes:
        """An object's bytes."""
        return bytes(self.bucket.boto.get_object(Bucket=self.bucket.name, Key=f"in/{key}")["Body"].read())

    def overwrite(self, key: str, data: bytes, **more: Any) -> None:
        """As a stranger would."""
        self.bucket.boto.put_object(Bucket=self.bucket.name, Key=f"in/{key}", Body=data, **more)

    def storage_class(self, key: str = f"{PID}/{BLOCK}") -> str:
        """As the store says."""
        head = self.bucket.boto.head_object(Bucket=self.bucket.name, Key=f"in/{key}")
        return head.get("StorageClass") or "STANDARD"


def pieces(data: bytes) -> Iterator[bytes]:
    for i in range(0, len(data), 1_000_003):
        yield data[i : i + 1_000_003]


@pytest.fixture
def lts(server: S3Settings) -> Lts:
    """An LTS of the usual class, on each server."""
    return Lts(server)


@pytest.fixture
def glacier(moto: S3Settings) -> Lts:
    """An LTS of an archive class."""
    return Lts(moto, **ARCHIVE)


@pytest.fixture
def restoring() -> Iterator[Restores]:
    """Restores that last until they are ended."""
    with restores() as found:
        yield found


def test_p2_a_datablock_is_copied_read_back_and_proved_by_the_stores_checksum(lts: Lts) -> None:
    lts.copy()
    assert lts.raw() == BYTES
    result = lts.prove()
    assert (result.level, result.how_read, result.files, result.packed_bytes) == ("host", "GET", 3, len(BYTES))
    lts.lts.put_small(PID, MANIFEST, MADE.manifest, "r-1-1")
    assert lts.listed() == [f"{PID}/{MANIFEST}", f"{PID}/{BLOCK}"]
    assert b"".join(lts.lts.read(PID, BLOCK)) == BYTES
    assert b"".join(lts.lts.part(PID, BLOCK, 4_000_000, 3_000_000)) == BYTES[4_000_000:7_000_000]
    assert b"".join(lts.lts.part(PID, BLOCK, len(BYTES) - 5, 100)) == BYTES[-5:]
    assert b"".join(lts.lts.part(PID, BLOCK, len(BYTES), 100)) == b""


def test_p6_a_copy_made_again_changes_nothing(lts: Lts) -> None:
    lts.copy()
    before = lts.bucket.head(f"in/{PID}/{BLOCK}")
    lts.copy()
    assert lts.bucket.head(f"in/{PID}/{BLOCK}") == before
    lts.prove()
    assert lts.prove().files == 3


@pytest.mark.parametrize("there", ["other", "same length", "plain put of the same bytes"])
def test_p3_what_lies_under_the_final_name_is_never_overwritten(lts: Lts, there: str) -> None:
    data = {"other": b"x", "same length": bytes(len(BYTES)), "plain put of the same bytes": BYTES}[there]
    lts.overwrite(f"{PID}/{BLOCK}", data)
    with pytest.raises(IntegrityMismatch, match="is there already with other bytes") as caught:
        lts.copy()
    assert not caught.value.retryable
    assert lts.raw() == data


def test_p3_of_two_copies_at_once_the_first_stays_and_the_second_is_told(lts: Lts) -> None:
    def meanwhile() -> Iterator[bytes]:
        yield from pieces(BYTES)
        lts.overwrite(f"{PID}/{BLOCK}", b"somebody else's")

    with pytest.raises(LtsFault, match="appeared while it was written") as caught:
        lts.copy(chunks=meanwhile())
    assert caught.value.retryable
    assert lts.raw() == b"somebody else's"
    assert list(lts.bucket.open_uploads("")) == []


@pytest.mark.parametrize("spoil", ["other", "short", "long"])
def test_other_bytes_than_were_packed_never_appear(lts: Lts, spoil: str) -> None:
    data = {"other": BYTES[:-1] + b"!", "short": BYTES[:-1], "long": BYTES + b"x"}[spoil]
    with pytest.raises(IntegrityMismatch, match="staging gave other bytes") as caught:
        lts.copy(chunks=pieces(data))
    assert caught.value.retryable
    assert lts.listed() == []
    assert list(lts.bucket.open_uploads("")) == []


def test_a_copy_that_is_stopped_leaves_nothing(lts: Lts) -> None:
    class Stop(Silent):
        def advance(self, size_bytes: int = 0, files: int = 0) -> None:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        lts.copy(progress=Stop())
    assert lts.listed() == []
    assert list(lts.bucket.open_uploads("")) == []


def test_the_store_refuses_a_part_whose_bytes_changed_on_the_way(
    s3: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lts = Lts(s3)
    honest = multipart.base64_of
    monkeypatch.setattr(multipart, "base64_of", lambda digest: honest(bytes(32)))
    with pytest.raises(LtsFault, match="BadDigest"):
        lts.copy()
    assert lts.listed() == []


@pytest.mark.parametrize("work", ["copy", "quarantine"])
def test_a_store_that_needs_long_to_put_the_parts_together_is_waited_for(s3: S3Settings, work: str) -> None:
    lts = Lts(s3)
    proxy = FaultyS3(str(s3.endpoint)).start()
    by_way = s3.model_copy(update={"endpoint": AnyHttpUrl(proxy.url)})
    slow = BucketLts(Bucket(lts.bucket.name, by_way, LtsFault, seconds=2), lts.settings, "test")
    told: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    digest = hashlib.sha256(BYTES).hexdigest()
    if work == "quarantine":
        lts.copy()
    proxy.faults.append(S3Fault("POST", r"1\.tar\.gz[^?]*\?uploadId=", before=lambda: time.sleep(4)))
    try:
        if work == "copy":
            given = {"size": len(BYTES), "sha256": digest, "attempt": "r-1", "promise": "p"}
            slow.copy_in(PID, BLOCK, pieces(BYTES), progress=Noting(), **given)  # type: ignore[arg-type]
        else:
            slow.quarantine(PID, BLOCK, "a test", progress=Noting())
    finally:
        proxy.stop()
    (key,) = [key for key in lts.listed() if "1.tar.gz" in key and not key.endswith(".why.json")]
    assert (lts.raw(key), key.startswith(".archiver/quarantine/")) == (BYTES, work == "quarantine")
    # Whoever heartbeats by it is alive.
    assert told.count("waiting for the LTS") >= 3


def test_a_killed_copy_is_cleared_by_the_next(lts: Lts) -> None:
    lts.bucket.boto.create_multipart_upload(Bucket=lts.bucket.name, Key=f"in/{PID}/{BLOCK}")
    lts.copy()
    assert list(lts.bucket.open_uploads("")) == []


@pytest.mark.parametrize("spoil", ["flipped", "truncated", "another"])
def test_p2_what_is_not_what_was_packed_is_not_proved(lts: Lts, spoil: str) -> None:
    lts.copy()
    data = bytearray(BYTES)
    data[len(data) // 2] ^= 4
    if spoil == "truncated":
        del data[-1:]
    elif spoil == "another":
        data = bytearray(packed({"other": b"file"})[0])
    length = str(5 * MIB)
    lts.overwrite(f"{PID}/{BLOCK}", bytes(data), Metadata={"part-bytes": length})
    with pytest.raises(IntegrityMismatch) as caught:
        lts.prove()
    assert not caught.value.retryable


def test_a_store_whose_checksum_is_another_is_not_believed(lts: Lts, monkeypatch: pytest.MonkeyPatch) -> None:
    lts.copy()
    monkeypatch.setattr(multipart.Parts, "checksum", property(lambda self: "AAAA"))
    with pytest.raises(IntegrityMismatch, match="keeps another checksum") as caught:
        lts.prove()
    assert not caught.value.retryable


def test_another_bucket_is_not_the_lts(lts: Lts) -> None:
    other = BucketLts(lts.bucket, lts.settings, "another")
    with pytest.raises(LtsMarkerMissing, match="is not the LTS 'another'"):
        other.copy_in(PID, BLOCK, [b""], size=0, sha256="", attempt="a", promise="p", progress=Silent())
    empty = BucketLts(lts.bucket, LtsBucketSettings(name=lts.bucket.name, prefix="out/"), "test")
    with pytest.raises(LtsMarkerMissing, match="no marker"):
        empty.size_of(PID, BLOCK)
    with pytest.raises(LtsMarkerMissing):
        other.setup()
    assert lts.lts.setup() is False


def test_setup_refuses_a_store_without_the_class(s3: S3Settings) -> None:
    with pytest.raises(LtsFault, match="has no class GLACIER"):
        Lts(s3, **ARCHIVE)


def test_setup_says_what_it_would_do_and_does_not(server: S3Settings) -> None:
    bucket = Bucket(f"test-{secrets.token_hex(6)}", server, LtsFault)
    lts = BucketLts(bucket, LtsBucketSettings(name=bucket.name), "test")
    assert lts.setup(dry_run=True)
    with pytest.raises(LtsFault):
        bucket.get(".archiver-lts.json")
    assert lts.setup()
    assert [entry.key for entry in bucket.list("")] == [".archiver-lts.json"]


def test_p3_small_files_are_written_once(lts: Lts) -> None:
    lts.lts.put_small(PID, MANIFEST, b"one", "a")
    lts.lts.put_small(PID, MANIFEST, b"one", "b")
    with pytest.raises(IntegrityMismatch, match="already with other content"):
        lts.lts.put_small(PID, MANIFEST, b"two", "c")
    assert lts.raw(f"{PID}/{MANIFEST}") == b"one"


def bag(plan: str = PLAN, data: bytes = BYTES, manifest: bytes = MADE.manifest) -> dict[str, bytes]:
    """A bag of one datablock."""
    sums = "".join(
        f"{hashlib.sha256(each).hexdigest()}  {name}\n" for name, each in ((BLOCK, data), (MANIFEST, manifest))
    ).encode()
    info = f"Archiver-Plan: {plan}\n".encode()
    tags = f"{hashlib.sha256(sums).hexdigest()}  manifest-sha256.txt\n".encode()
    return {"bag-info.txt": info, "manifest-sha256.txt": sums, TAG_MANIFEST: tags}


def test_p11_a_bag_is_complete_with_its_last_file_and_then_stays(lts: Lts) -> None:
    lts.archived()
    lts.lts.publish_bag(PID, bag(), PLAN, "run-9-1", Silent())
    lts.lts.publish_bag(PID, bag(), PLAN, "run-9-1", Silent())
    with pytest.raises(LtsFault, match="a complete bag lies in") as caught:
        lts.lts.publish_bag(PID, bag("other"), "other", "run-9-1", Silent())
    assert not caught.value.retryable
    survey = lts.lts.survey(PID, PLAN, 1)
    assert (survey.complete, survey.reusable) == (True, [1])
    assert lts.lts.survey(PID, "other", 1).plan_id == PLAN
    before = lts.listed()
    lts.overwrite(f"{PID}/data/2.tar.gz", b"strange, but not ours to remove")
    assert lts.lts.remove_unverified(PID) == 0
    assert lts.listed() == sorted([*before, f"{PID}/data/2.tar.gz"])


def test_p11_no_bag_is_complete_that_lacks_a_file(lts: Lts) -> None:
    lts.archived()
    lts.bucket.delete([f"in/{PID}/{MANIFEST}"])
    with pytest.raises(IntegrityMismatch, match="no longer on the LTS"):
        lts.lts.publish_bag(PID, bag(), PLAN, "run-9-1", Silent())
    assert lts.lts.plan_of_bag(PID) is None


def test_a_survey_keeps_what_is_verified_removes_what_is_not_and_loses_nothing(lts: Lts) -> None:
    lts.archived()
    lts.overwrite(f"{PID}/data/2.tar.gz", b"left")
    lts.bucket.boto.create_multipart_upload(Bucket=lts.bucket.name, Key=f"in/{PID}/data/3.tar.gz")
    survey = lts.lts.survey(PID, PLAN, 3)
    assert (survey.reusable, survey.removed, survey.superseded) == ([1], 2, 0)
    assert list(lts.bucket.open_uploads("")) == []
    assert lts.lts.survey(PID, "f" * 32, 3).superseded == 1
    there = [key for key in lts.listed() if not key.endswith(".why.json")]
    assert [lts.raw(key) for key in there] == [MADE.manifest, BYTES]
    assert all(key.startswith(".archiver/quarantine/") for key in there)
    whys = [json.loads(lts.raw(key)) for key in lts.listed() if key.endswith(".why.json")]
    assert {why["was"] for why in whys} == {f"{PID}/{BLOCK}", f"{PID}/{MANIFEST}"}


def test_leftovers_are_found_and_a_complete_bag_is_none(lts: Lts) -> None:
    lts.archived()
    assert list(lts.lts.leftovers(Silent())) == []
    lts.overwrite("20.500.1/y/data/1.tar.gz", b"left")
    lts.overwrite("20.500.1/y.z/data/1.tar.gz", b"left")
    lts.overwrite("pid=odd/data/1.tar.gz", b"left")
    lts.overwrite("pid=odd/" + TAG_MANIFEST, b"complete")
    upload = lts.bucket.boto.create_multipart_upload(Bucket=lts.bucket.name, Key="in/20.500.1/w/data/1.tar.gz")
    # S3 lists an upload only by what was sent of it at some servers.
    assert upload["UploadId"]
    found = {left.dataset: left for left in lts.lts.leftovers(Silent())}
    assert set(found) == {"20.500.1/y", "20.500.1/y.z", "20.500.1/w"}
    assert all(left.newest > 0 for left in found.values() if "upload" not in left.what)
    assert set(lts.lts.datasets()) == {PID, "20.500.1/y", "20.500.1/y.z", "pid=odd"}


def test_p11_the_receipt_only_grows(lts: Lts, monkeypatch: pytest.MonkeyPatch) -> None:
    def event(text: str) -> Event:
        return Event(time="2026-11-28T01:02:03Z", type="packing", event=text, agent="a", object="o", job="j")

    lts.lts.record_events(PID, [event("one")], "a", Silent())
    lts.lts.record_events(PID, [event("one"), event("two")], "b", Silent())
    lines = lts.raw(f"{PID}/events.jsonl").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["one", "two"]


# --- archive classes ------------------------------------------------------------------------------------------------------


def test_glacier_is_read_back_before_it_changes_class_and_small_files_stay_readable(glacier: Lts) -> None:
    glacier.copy()
    assert glacier.storage_class() == "STANDARD"
    assert (glacier.prove().level, glacier.storage_class()) == ("host", "GLACIER")
    glacier.lts.put_small(PID, MANIFEST, MADE.manifest, "r-1-1")
    glacier.lts.publish_bag(PID, bag(), PLAN, "run-9-1", Silent())
    classes = {key: glacier.storage_class(key) for key in glacier.listed()}
    assert {key for key, found in classes.items() if found != "STANDARD"} == {f"{PID}/{BLOCK}"}
    assert glacier.lts.size_of(PID, BLOCK) == len(BYTES)
    assert glacier.lts.get_small(PID, MANIFEST) == MADE.manifest


def test_glacier_p6_verified_again_without_a_restore(glacier: Lts) -> None:
    glacier.archived()
    assert (glacier.prove(staged=BYTES).level, glacier.prove(staged=None).level) == ("host", "host")
    glacier.bucket.delete([f"in/.archiver/proofs/{PID}/{BLOCK}.json"])
    assert glacier.prove(staged=BYTES).level == "cache"
    assert glacier.prove(staged=None).level == "cache"


def test_glacier_a_class_that_is_changed_over_another_version_is_no_success(
    glacier: Lts, monkeypatch: pytest.MonkeyPatch
) -> None:
    glacier.copy()
    complete = multipart.Upload._complete

    def late(upload: multipart.Upload, size: int, over: str) -> None:
        if over:
            raise multipart.There
        complete(upload, size, over)

    monkeypatch.setattr(multipart.Upload, "_complete", late)
    with pytest.raises(LtsFault, match="was changed while it was copied") as caught:
        glacier.prove()
    assert caught.value.retryable
    assert glacier.raw() == BYTES
    assert list(glacier.bucket.open_uploads("")) == []


@pytest.mark.parametrize("spoil", ["no proof", "another checksum", "another manifest"])
def test_glacier_what_nothing_proves_is_not_believed(glacier: Lts, spoil: str) -> None:
    glacier.archived()
    proof = f".archiver/proofs/{PID}/{BLOCK}.json"
    if spoil == "no proof":
        glacier.bucket.delete([f"in/{proof}"])
    else:
        note = json.loads(glacier.raw(proof))
        note["checksum" if spoil == "another checksum" else "sha256"] = "other"
        glacier.overwrite(proof, json.dumps(note).encode())
    with pytest.raises(IntegrityMismatch, match="nothing proves"):
        glacier.prove(staged=None)


def test_glacier_without_read_back_the_staged_bytes_are_unpacked_and_the_level_says_so(moto: S3Settings) -> None:
    lts = Lts(moto, **ARCHIVE, read_back=False)
    lts.copy()
    assert lts.storage_class() == "GLACIER"
    other = packed({"other": b"file"})[0]
    with pytest.raises(IntegrityMismatch):
        lts.prove(staged=other)
    result = lts.prove()
    assert (result.level, result.how_read, result.files) == ("cache", "the store's SHA-256, and the staged bytes", 3)


def test_glacier_is_restored_when_asked_and_read_then(glacier: Lts, restoring: Restores) -> None:
    glacier.archived()
    assert not glacier.lts.readable(PID, BLOCK)
    for read in (
        lambda: b"".join(glacier.lts.read(PID, BLOCK)),
        lambda: b"".join(glacier.lts.part(PID, BLOCK, 0, 10)),
        lambda: glacier.lts.check(PID, BLOCK, MADE.manifest, Silent()),
    ):
        with pytest.raises(NotRecalled) as caught:
            read()
        assert not caught.value.retryable
    assert not glacier.lts.recall(PID, BLOCK)
    assert not glacier.lts.readable(PID, BLOCK)
    restoring.ended = True
    assert b"".join(glacier.lts.read(PID, BLOCK)) == BYTES
    assert b"".join(glacier.lts.part(PID, BLOCK, 5, 10)) == BYTES[5:15]
    assert glacier.lts.check(PID, BLOCK, MADE.manifest, Silent()).level == "host"
    assert glacier.lts.recall(PID, BLOCK)


def test_glacier_a_restore_that_is_under_way_is_not_asked_for_again(
    glacier: Lts, restoring: Restores, monkeypatch: pytest.MonkeyPatch
) -> None:
    glacier.archived()
    assert not any(glacier.lts.recall(PID, BLOCK) for _ in range(3))
    assert restoring.asked == [(f"in/{PID}/{BLOCK}", 10)]
    # Two at once: the second is told so, which is no fault.
    answer: Any = {"Error": {"Code": "RestoreAlreadyInProgress"}}

    def already(**given: Any) -> Any:
        raise ClientError(answer, "RestoreObject")

    monkeypatch.setattr(glacier.bucket.boto, "restore_object", already)
    glacier.lts._restore("in/x")
    answer["Error"]["Code"] = "GlacierExpeditedRetrievalNotAvailable"
    with pytest.raises(LtsFault, match="GlacierExpeditedRetrievalNotAvailable") as caught:
        glacier.lts._restore("in/x")
    assert caught.value.retryable


def test_a_restored_copy_that_ends_within_a_day_is_asked_for_again(moto: S3Settings, restoring: Restores) -> None:
    lts = Lts(moto, **ARCHIVE, restore_days=1)
    restoring.ended = True
    lts.archived()
    assert lts.lts.recall(PID, BLOCK)
    assert lts.lts.recall(PID, BLOCK)
    assert len(restoring.asked) == 2


def test_glacier_what_another_plan_left_is_restored_before_it_goes_into_quarantine(
    glacier: Lts, restoring: Restores
) -> None:
    glacier.archived()
    before = glacier.listed()
    with pytest.raises(LtsFault, match="is to be taken into quarantine") as caught:
        glacier.lts.survey(PID, "f" * 32, 1)
    assert caught.value.retryable
    assert glacier.listed() == before
    restoring.ended = True
    assert glacier.lts.survey(PID, "f" * 32, 1).superseded == 1
    quarantined = [key for key in glacier.listed() if not key.endswith(".why.json")]
    assert [glacier.storage_class(key) for key in quarantined] == ["STANDARD", "GLACIER"]
    assert all(key.startswith(".archiver/quarantine/") for key in quarantined)


def test_other_archive_tiers_are_told_by_the_store(glacier: Lts, monkeypatch: pytest.MonkeyPatch) -> None:
    glacier.archived()
    head = glacier.bucket.boto.head_object

    def tiered(**given: Any) -> Any:
        return {**head(**given), "StorageClass": "INTELLIGENT_TIERING", "ArchiveStatus": "ARCHIVE_ACCESS"}

    monkeypatch.setattr(glacier.bucket.boto, "head_object", tiered)
    assert not glacier.lts.readable(PID, BLOCK)


def test_the_marker_is_looked_for_again_after_a_while(lts: Lts, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lts.lts.size_of(PID, BLOCK) is None
    lts.bucket.delete(["in/.archiver-lts.json"])
    assert lts.lts.size_of(PID, BLOCK) is None
    monkeypatch.setattr(lts_bucket, "MARKER_SECONDS", 0.0)
    with pytest.raises(LtsMarkerMissing):
        lts.lts.size_of(PID, BLOCK)
