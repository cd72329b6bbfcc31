"""An S3 server, or what lies before it, that does wrong: never a wrong success, and nothing left that no sweep takes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archiver.datablock.files import PlannedFile, read_lines
from archiver.datablock.pack import pack
from archiver.datablock.plan import make_plan
from archiver.errors import ArchiverError, ChecksumDiffers, IntegrityMismatch, SourceChanged, SourceFault, StagingFault
from archiver.progress import Silent
from archiver.settings import S3Settings
from archiver.storage import objects
from archiver.storage.landing import S3Landing
from archiver.storage.lts_directory import FileSystemLts
from archiver.storage.objects import GET_PART_BYTES, Bucket
from tests.datablock.making import catalogue, limits
from tests.storage.conftest import new_bucket
from tests.storage.test_lts import PID, copy, everything
from tests.storage.wrong_s3 import Asked, WrongS3

DATA = os.urandom(2 * GET_PART_BYTES + 77_777)
PART = 5 * 2**20
BIG = os.urandom(PART + 1_077_777)
BODIES = ["flip", "cut", "short"]
CONNECTIONS = ["reset", "503", "200 with HTML"]


@pytest.fixture(scope="module")
def _proxy(s3: S3Settings) -> Iterator[WrongS3]:
    made = WrongS3(s3)
    yield made
    made.stop()


@pytest.fixture
def wrong(_proxy: WrongS3) -> Iterator[WrongS3]:
    """The proxy, doing right so far."""
    _proxy.do("", times=0)
    yield _proxy
    _proxy.do("", times=0)


@pytest.fixture
def honest(s3: S3Settings) -> Bucket:
    """A bucket as it is."""
    return new_bucket(s3)


@pytest.fixture
def seen(honest: Bucket, wrong: WrongS3, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The same bucket through the proxy."""
    monkeypatch.setattr(objects, "RETRY_SECONDS", 1)
    monkeypatch.setattr(objects, "PUT_PART_BYTES", PART)
    monkeypatch.setattr(objects, "ATTEMPTS", 2)
    return Bucket(honest.name, wrong.s3, StagingFault)


def gets(asked: Asked) -> bool:
    return asked.method == "GET"


def copied(lts: FileSystemLts, bucket: Bucket) -> None:
    """Staging to LTS, as the activity does it."""
    info = bucket.head("d")
    assert info is not None
    copy(lts, DATA, chunks=iter(bucket.stream("d", size=info.size, version=info.version)))  # type: ignore[arg-type]


def error_of(call: Callable[[], object]) -> ArchiverError | None:
    """How it ended: None is well."""
    try:
        call()
    except ArchiverError as error:
        return error
    return None


@pytest.mark.parametrize("times", [1, 10**9])
@pytest.mark.parametrize("spoil", BODIES + CONNECTIONS)
def test_p2_a_copy_is_the_staged_bytes_or_a_fault(
    lts: FileSystemLts, root: Path, honest: Bucket, seen: Bucket, wrong: WrongS3, spoil: str, times: int
) -> None:
    honest.put("d", DATA)
    wrong.do(spoil, gets, times)
    error = error_of(lambda: copied(lts, seen))
    if error is None:
        assert times == 1
    else:
        assert isinstance(error, IntegrityMismatch if spoil == "flip" else StagingFault)
        assert error.retryable
        assert everything(root) == {}
    assert wrong.done > 0
    wrong.do("", times=0)
    copied(lts, seen)
    assert everything(root) == {f"{PID}/data/1.tar.gz": DATA}


def test_whoever_stops_does_not_hang_with_a_server_that_hangs(honest: Bucket, wrong: WrongS3) -> None:
    honest.put("d", DATA)
    info = honest.head("d")
    assert info is not None
    through = Bucket(honest.name, wrong.s3, StagingFault)
    wrong.do("hang", lambda asked: gets(asked) and "bytes=0-" not in asked.range)
    chunks = iter(through.stream("d", size=info.size, version=info.version))
    next(chunks)
    stopping = threading.Thread(target=chunks.close, daemon=True)  # type: ignore[attr-defined]
    stopping.start()
    stopping.join(30)
    hangs = stopping.is_alive()
    wrong.released.set()
    stopping.join(60)
    assert wrong.done > 0
    assert not hangs


@pytest.mark.parametrize("key", ["small", "d\tsmall"], ids=ascii)
@pytest.mark.parametrize("times", [1, 10**9])
@pytest.mark.parametrize("spoil", BODIES + CONNECTIONS)
def test_a_small_object_is_what_was_put_or_a_fault(
    honest: Bucket, seen: Bucket, wrong: WrongS3, spoil: str, times: int, key: str
) -> None:
    honest.put(key, DATA[:50_000])
    wrong.do(spoil, gets, times)
    got: list[bytes | None] = []
    error = error_of(lambda: got.append(seen.get(key)))
    if error is None:
        assert (got, times) == ([DATA[:50_000]], 1)
    else:
        assert isinstance(error, StagingFault)
        assert error.retryable
    assert wrong.done > 0
    wrong.do("", times=0)
    assert seen.get(key) == DATA[:50_000]


@pytest.mark.parametrize("spoil", ["cut", "short", "200 with HTML", "200 with an error"])
def test_a_listing_is_whole_or_a_fault(honest: Bucket, seen: Bucket, wrong: WrongS3, spoil: str) -> None:
    for key in "abc":
        honest.put(key, b"x")
    wrong.do(spoil, gets)
    with pytest.raises(StagingFault) as caught:
        assert [entry.key for entry in seen.list("")] == ["a", "b", "c"]
    assert caught.value.retryable


def stage(bucket: Bucket) -> None:
    bucket.put_stream("d", (BIG[i : i + 1_000_003] for i in range(0, len(BIG), 1_000_003)))


def parts(asked: Asked) -> bool:
    return asked.uploads_part


def completing(asked: Asked) -> bool:
    return asked.completes


def creating(asked: Asked) -> bool:
    return asked.method == "POST" and "uploads" in asked.path


@pytest.mark.parametrize("times", [1, 10**9])
@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        *((spoil, where) for spoil in ("reset", "503", "do it and drop") for where in (creating, parts, completing)),
        ("200 with an error", creating),
        ("200 with an error", completing),
        ("200 with HTML", completing),
        ("lost", parts),
    ],
)
def test_an_upload_is_whole_or_a_fault_and_a_sweep_takes_the_rest(
    honest: Bucket, seen: Bucket, wrong: WrongS3, spoil: str, where: Callable[[Asked], bool], times: int
) -> None:
    wrong.do(spoil, where, times)
    error = error_of(lambda: stage(seen))
    if error is None:
        assert honest.head("d") is not None, "told as done, and not there"
    else:
        assert isinstance(error, StagingFault)
        assert error.retryable
    assert wrong.done > 0
    info = honest.head("d")
    if info is not None:
        assert b"".join(bytes(c) for c in honest.stream("d", size=info.size, version=info.version)) == BIG
    wrong.do("", times=0)
    seen.abort_uploads("d")
    assert list(honest.open_uploads("")) == []
    stage(seen)
    info = honest.head("d")
    assert info is not None
    assert info.size == len(BIG)


def test_p2_what_was_flipped_on_the_way_to_staging_is_seen_by_the_copy(
    lts: FileSystemLts, root: Path, honest: Bucket, seen: Bucket, wrong: WrongS3
) -> None:
    wrong.do("flip what is sent", lambda asked: asked.method == "PUT", 1)
    error = error_of(lambda: seen.put("d", DATA)) or error_of(lambda: copied(lts, seen))
    assert wrong.done == 1
    assert isinstance(error, (StagingFault, IntegrityMismatch)), "refused by the server, or found by the copy"
    assert everything(root) == {}
    seen.put("d", DATA)
    copied(lts, seen)


def test_a_small_object_flipped_on_the_way_to_staging_is_a_fault_when_it_is_read(seen: Bucket, wrong: WrongS3) -> None:
    wrong.do("flip what is sent", lambda asked: asked.method == "PUT", 1)
    error = error_of(lambda: seen.put("plan.json", b'{"datablocks": 12}')) or error_of(lambda: seen.get("plan.json"))
    assert wrong.done == 1
    assert isinstance(error, StagingFault)


@pytest.mark.parametrize("times", [1, 10**9])
@pytest.mark.parametrize("spoil", BODIES + CONNECTIONS)
def test_p4_a_source_file_is_packed_as_the_catalogue_says_or_not_at_all(
    honest: Bucket, seen: Bucket, wrong: WrongS3, spoil: str, times: int
) -> None:
    files = {f"f{n}": os.urandom(100_000 + n) for n in range(5)}
    listed = []
    for path, data in files.items():
        honest.put(f"x/{path}", data)
        listed += catalogue({path: data}, chk=hashlib.sha256(data).hexdigest(), chk_alg="sha256")
    kept: list[list[bytes]] = []
    landing = S3Landing(honest, "x/")
    plan = make_plan(
        listed,
        landing.list(),
        pid="20.500.1/x",
        limits=limits(),
        surplus="refuse",
        sink=lambda n, chunks: kept.append(list(chunks)),
        progress=Silent(),
    )

    def packed(bucket: Bucket) -> bytes:
        fetched = S3Landing(bucket, "x/").fetch(read_lines(kept[0], PlannedFile), ahead_bytes=2**20, ahead_objects=2)
        return b"".join(pack(fetched, plan=plan, n=1, progress=Silent()))

    right = packed(honest)
    through = Bucket(honest.name, wrong.s3, SourceFault)
    wrong.do(spoil, lambda asked: gets(asked) and "list-type" not in asked.path, times)
    got: list[bytes] = []
    error = error_of(lambda: got.append(packed(through)))
    if error is None:
        assert (got, times) == ([right], 1)
    else:
        # Fresh files are read twice: a single flip is seen there, before the checksum is compared.
        assert isinstance(error, (ChecksumDiffers, SourceChanged) if spoil == "flip" else SourceFault)
    assert wrong.done > 0
    wrong.do("", times=0)
    assert packed(through) == right
