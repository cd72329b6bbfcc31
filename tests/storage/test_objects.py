"""A bucket on real S3 servers: order, exact names, exact bytes, whole or nothing, and the fault of the right side."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import AnyHttpUrl, SecretStr

from archiver.errors import SourceFault, StagingFault, Stopped
from archiver.settings import S3Settings
from archiver.storage import objects
from archiver.storage.objects import GET_PART_BYTES, PUT_PART_BYTES, Bucket, ObjectChanged, ObjectInfo, ObjectVersion
from cli.servers import free_port
from tests.pipeline.faulty_s3 import FaultyS3, S3Fault
from tests.storage.conftest import new_bucket

EVERYWHERE = [
    "a b",
    "a#1",
    "a%2Fb",
    "a+b",
    "a-b",
    "a/b",
    "a&b<c>'\"",
    "q?x=1",
    "back\\slash",
    "tab\tx",
    "\u00e9",
    "e\u0301",
    "\uff5e",
    "\U0001f600",
    "\x7f",
    "/".join(["k" * 199] * 5),
]
"""Keys that every server takes as they are."""
NOT_MOTO = ["line\nfeed"]
ONLY_S3 = ["/lead", "trail/", "d//e", "x/./y", "x/../y", "..", ".", "\x01", "cr\rx"]
"""Keys that S3 takes, and a server on directories cannot."""


def utf8(key: str) -> bytes:
    return key.encode()


def put_all(bucket: Bucket, keys: Iterable[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: bucket.put(key, key.encode()), keys))


def read(bucket: Bucket, info: ObjectInfo) -> bytes:
    return b"".join(bytes(chunk) for chunk in bucket.stream(info.key, size=info.size, version=info.version))


def test_keys_are_listed_in_the_order_of_their_bytes(bucket: Bucket) -> None:
    put_all(bucket, EVERYWHERE)
    assert [entry.key for entry in bucket.list("")] == sorted(EVERYWHERE, key=utf8)


def test_more_keys_than_a_page_holds_are_listed_each_once_and_in_order(s3: S3Settings) -> None:
    bucket = new_bucket(s3)
    keys = [*EVERYWHERE, *NOT_MOTO, *(f"many/{k:x}" for k in range(1100))]
    put_all(bucket, keys)
    assert [entry.key for entry in bucket.list("")] == sorted(keys, key=utf8)
    assert [entry.key for entry in bucket.list("a")] == sorted((k for k in keys if k[0] == "a"), key=utf8)


@pytest.mark.parametrize("key", EVERYWHERE, ids=ascii)
def test_a_key_is_the_same_bytes_in_every_call(bucket: Bucket, key: str) -> None:
    exact(bucket, key)


@pytest.mark.parametrize("key", NOT_MOTO, ids=ascii)
def test_a_line_feed_is_a_character_of_a_key(s3: S3Settings, key: str) -> None:
    exact(new_bucket(s3), key)


@pytest.mark.parametrize("key", ONLY_S3, ids=ascii)
def test_a_key_that_no_directory_can_hold_is_exact_where_the_server_takes_it(moto: S3Settings, key: str) -> None:
    exact(new_bucket(moto), key)


@pytest.mark.parametrize("key", ONLY_S3, ids=ascii)
def test_a_key_that_the_server_cannot_hold_is_never_given_as_another_keys_bytes(s3: S3Settings, key: str) -> None:
    bucket = new_bucket(s3)
    for near in ("lead", "trail", "d/e", "x/y", "y"):
        bucket.put(near, b"another")
    try:
        bucket.put(key, b"ours")
        found = bucket.get(key)
    except StagingFault:
        return
    assert found == b"ours"


def exact(bucket: Bucket, key: str) -> None:
    data = b"bytes of " + key.encode()
    bucket.put(key, data)
    info = bucket.head(key)
    assert info is not None
    assert list(bucket.list("")) == [info]
    assert (info.key, info.size) == (key, len(data))
    assert bucket.get(key) == data
    assert read(bucket, info) == data
    with pytest.raises(ObjectChanged):
        list(
            next(bucket.read_many([(0, key, len(data), ObjectVersion('"other"'))], ahead_bytes=1, ahead_requests=1))[1]
        )
    bucket.delete([key])
    assert bucket.head(key) is None
    assert list(bucket.list("")) == []


def test_what_is_not_there_is_none_and_what_is_put_again_is_replaced(bucket: Bucket) -> None:
    assert bucket.get("k") is None
    assert bucket.get("d//k") is None
    assert bucket.head("k") is None
    bucket.put("k", b"one")
    bucket.put("k", b"another")
    assert bucket.get("k") == b"another"


@pytest.mark.parametrize(
    "size", [0, 1, GET_PART_BYTES + 1, PUT_PART_BYTES, PUT_PART_BYTES + 1, 5 * PUT_PART_BYTES // 2]
)
def test_a_stream_of_any_size_is_stored_and_read_byte_for_byte(bucket: Bucket, size: int) -> None:
    data = os.urandom(size)
    bucket.put_stream("deep/k", (data[i : i + 1_000_003] for i in range(0, size, 1_000_003)))
    info = bucket.head("deep/k")
    assert info is not None
    assert info.size == size
    assert read(bucket, info) == data
    assert list(bucket.open_uploads("")) == []


class SourceDied(Exception):
    pass


@pytest.mark.parametrize("good", [0, 1000, PUT_PART_BYTES + 1, 3 * PUT_PART_BYTES])
def test_a_stream_that_breaks_leaves_no_object_and_no_open_upload(bucket: Bucket, good: int) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(0, good, 500_000):
            yield bytes(500_000)
        raise SourceDied

    with pytest.raises(SourceDied):
        bucket.put_stream("k", chunks())
    assert bucket.head("k") is None
    assert list(bucket.open_uploads("")) == []


def test_a_broken_stream_leaves_the_upload_of_a_neighbour_alone(bucket: Bucket) -> None:
    bucket.boto.create_multipart_upload(Bucket=bucket.name, Key="k1")

    def chunks() -> Iterator[bytes]:
        yield bytes(2 * PUT_PART_BYTES)
        raise SourceDied

    with pytest.raises(SourceDied):
        bucket.put_stream("k", chunks())
    assert [upload.key for upload in bucket.open_uploads("")] == ["k1"]


def test_what_cannot_be_uploaded_in_parts_under_its_own_name_is_refused(bucket: Bucket) -> None:
    with pytest.raises(StagingFault, match="cannot be uploaded in parts"):
        bucket.put_stream("d//k", iter([bytes(PUT_PART_BYTES + 1)]))
    assert list(bucket.list("")) == []


def test_many_objects_are_read_in_the_order_asked_for(bucket: Bucket) -> None:
    sizes = [0, 1, GET_PART_BYTES - 1, GET_PART_BYTES, GET_PART_BYTES + 1, 0, 3 * GET_PART_BYTES + 7, 5]
    there = {f"k{n}": os.urandom(size) for n, size in enumerate(sizes)}
    for key, data in there.items():
        bucket.put(key, data)
    wanted = [
        (entry.key, entry.key, entry.size, ObjectVersion(entry.version)) for entry in reversed(list(bucket.list("")))
    ]
    got = [
        (key, b"".join(bytes(chunk) for chunk in chunks))
        for key, chunks in bucket.read_many(wanted, ahead_bytes=4 * GET_PART_BYTES, ahead_requests=4)
    ]
    assert got == [(key, there[key]) for key in reversed(there)]


@pytest.mark.parametrize(("ahead_bytes", "ahead_requests", "most"), [(3_000, 100, 5), (10**9, 4, 6)])
def test_p10_no_more_is_fetched_ahead_than_was_allowed(
    bucket: Bucket, ahead_bytes: int, ahead_requests: int, most: int
) -> None:
    bucket.put("k", bytes(1000))
    version = ObjectVersion(next(bucket.list("")).version)
    asked = done = 0

    def wanted() -> Iterator[tuple[None, str, int, ObjectVersion]]:
        nonlocal asked
        while asked < 30:
            asked += 1
            yield None, "k", 1000, version

    for _, chunks in bucket.read_many(wanted(), ahead_bytes=ahead_bytes, ahead_requests=ahead_requests):
        assert asked - done <= most
        assert b"".join(bytes(chunk) for chunk in chunks) == bytes(1000)
        done += 1
    assert done == 30


def changed(bucket: Bucket, key: str) -> None:
    bucket.put(key, b"y" * 1000)


def vanished(bucket: Bucket, key: str) -> None:
    bucket.delete([key])


def shorter(bucket: Bucket, key: str) -> None:
    bucket.put(key, b"x" * 999)


def longer(bucket: Bucket, key: str) -> None:
    bucket.put(key, b"x" * 1001)


@pytest.mark.parametrize("key", ["plain", "d\tk"], ids=ascii)
@pytest.mark.parametrize("change", [changed, vanished, shorter, longer])
def test_only_the_version_that_was_seen_is_read(
    bucket: Bucket, key: str, change: Callable[[Bucket, str], None]
) -> None:
    bucket.put(key, b"x" * 1000)
    info = bucket.head(key)
    assert info is not None
    change(bucket, key)
    with pytest.raises(ObjectChanged):
        list(
            next(bucket.read_many([(None, key, 1000, ObjectVersion(info.version))], ahead_bytes=1, ahead_requests=1))[1]
        )
    with pytest.raises(StagingFault, match="is not what it was"):
        read(bucket, info)


@pytest.mark.parametrize("key", ["plain", "d\tk"], ids=ascii)
@pytest.mark.parametrize("said", [0, 1, 999, 1001, GET_PART_BYTES + 1000])
def test_an_object_of_another_size_than_was_said_is_not_read(bucket: Bucket, key: str, said: int) -> None:
    bucket.put(key, b"x" * 1000)
    info = bucket.head(key)
    assert info is not None
    with pytest.raises((ObjectChanged, StagingFault)):
        list(
            next(bucket.read_many([(None, key, said, ObjectVersion(info.version))], ahead_bytes=1, ahead_requests=1))[1]
        )


def test_thousands_are_deleted_and_what_is_gone_is_no_error(s3: S3Settings) -> None:
    bucket = new_bucket(s3)
    keys = [f"d/{k}" for k in range(1050)]
    put_all(bucket, [*keys, "other"])
    bucket.delete(iter([*keys, *keys[:10], "never there"]))
    assert [entry.key for entry in bucket.list("")] == ["other"]


def test_uploads_are_aborted_below_the_prefix_and_nowhere_else(bucket: Bucket) -> None:
    for key in ("a/1/x", "a/1/y", "a/1/y", "a/10/x", "b"):
        bucket.boto.create_multipart_upload(Bucket=bucket.name, Key=key)
    assert bucket.abort_uploads("a/1/") == 3
    assert sorted(upload.key for upload in bucket.open_uploads("")) == ["a/10/x", "b"]
    assert bucket.abort_uploads("a/1/") == 0


def test_a_bucket_is_made_once_and_not_at_all_when_dry(server: S3Settings) -> None:
    bucket = Bucket(f"made-{free_port()}-{os.getpid()}", server, StagingFault)
    assert bucket.ensure(dry_run=True)
    assert bucket.ensure()
    assert not bucket.ensure()


CALLS: dict[str, Callable[[Bucket], object]] = {
    "list": lambda bucket: list(bucket.list("")),
    "head": lambda bucket: bucket.head("k"),
    "head hostile": lambda bucket: bucket.head("d//k"),
    "get": lambda bucket: bucket.get("k"),
    "get hostile": lambda bucket: bucket.get("d//k"),
    "put": lambda bucket: bucket.put("k", b""),
    "put hostile": lambda bucket: bucket.put("d//k", b""),
    "put_stream": lambda bucket: bucket.put_stream("k", iter([bytes(PUT_PART_BYTES + 1)])),
    "stream": lambda bucket: list(bucket.stream("k", size=10, version='"v"')),
    "read_many": lambda bucket: list(
        next(bucket.read_many([(0, "k", 9, ObjectVersion("v"))], ahead_bytes=9, ahead_requests=1))[1]
    ),
    "read_many hostile": lambda bucket: list(
        next(bucket.read_many([(0, "d//k", 9, ObjectVersion("v"))], ahead_bytes=9, ahead_requests=1))[1]
    ),
    "delete": lambda bucket: bucket.delete(["k"]),
    "abort_uploads": lambda bucket: bucket.abort_uploads(""),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("wrong", ["secret", "account", "bucket", "server"])
def test_a_server_that_refuses_or_is_not_there_is_its_sides_fault_told_without_secrets(
    s3: S3Settings, wrong: str, call: Callable[[Bucket], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "RETRY_SECONDS", 1)
    monkeypatch.setattr(objects, "ATTEMPTS", 1)
    name = new_bucket(s3).name
    canary = "canary-secret-value"
    other: dict[str, object] = {
        "secret": {"secret_key": SecretStr(canary)},
        "account": {"access_key": "nobody", "secret_key": SecretStr(canary)},
        "bucket": {},
        "server": {"endpoint": f"http://127.0.0.1:{free_port()}", "secret_key": SecretStr(canary)},
    }[wrong]
    bucket = Bucket("not-there" if wrong == "bucket" else name, s3.model_copy(update=other), SourceFault)
    with pytest.raises(SourceFault) as caught:
        call(bucket)
    assert caught.value.retryable
    assert f"bucket {bucket.name}" in caught.value.what
    assert canary not in caught.value.one_line()


@pytest.fixture
def proxy(s3: S3Settings) -> Iterator[FaultyS3]:
    """Before the S3 server; faults may be added."""
    made = FaultyS3(str(s3.endpoint)).start()
    yield made
    made.stop()


def through(s3: S3Settings, proxy: FaultyS3, name: str) -> Bucket:
    """The same bucket by way of a proxy, impatient."""
    return Bucket(name, s3.model_copy(update={"endpoint": AnyHttpUrl(proxy.url)}), StagingFault, seconds=2)


def test_a_store_that_needs_long_to_put_the_parts_together_is_waited_for(s3: S3Settings, proxy: FaultyS3) -> None:
    bucket = new_bucket(s3)
    data = os.urandom(3 * PUT_PART_BYTES)
    bucket.put("k", b"of an earlier try")
    proxy.faults.append(S3Fault("POST", r"/k\?uploadId=", before=lambda: time.sleep(4)))
    told: list[str] = []
    through(s3, proxy, bucket.name).put_stream(
        "k",
        (data[i : i + 1_000_003] for i in range(0, len(data), 1_000_003)),
        size_hint=len(data),
        waiting=told.append,
    )
    assert bucket.get("k") == data
    assert list(bucket.open_uploads("")) == []
    # Whoever heartbeats by it is alive from the last part on.
    assert len(told) >= 2


def test_a_store_that_cannot_put_them_together_is_a_fault_that_leaves_nothing(s3: S3Settings, proxy: FaultyS3) -> None:
    bucket = new_bucket(s3)
    bucket.put("k", b"of an earlier try")
    proxy.faults.append(S3Fault("POST", r"/k\?uploadId=", status=500, times=100))
    with pytest.raises(StagingFault):
        through(s3, proxy, bucket.name).put_stream("k", iter([bytes(PUT_PART_BYTES)] * 3))
    assert bucket.get("k") == b"of an earlier try"
    assert list(bucket.open_uploads("")) == []


def test_who_is_stopped_while_the_store_puts_them_together_hears_it_when_that_has_ended(
    s3: S3Settings, proxy: FaultyS3
) -> None:
    bucket = new_bucket(s3)
    proxy.faults.append(S3Fault("POST", r"/k\?uploadId=", before=lambda: time.sleep(2)))

    def stop(text: str) -> None:
        raise Stopped("enough")

    data = [bytes(PUT_PART_BYTES)] * 3
    with pytest.raises(Stopped):
        through(s3, proxy, bucket.name).put_stream("k", iter(data), size_hint=3 * PUT_PART_BYTES, waiting=stop)
    # Nobody writes any more when the stop is told: what clears up after it is not raced.
    assert bucket.head("k") is not None


@pytest.mark.parametrize("size_hint", [0, 3 * PUT_PART_BYTES])
def test_a_server_that_takes_no_more_is_a_fault_and_not_waited_for_as_long_as_one_that_puts_together(
    s3: S3Settings, proxy: FaultyS3, monkeypatch: pytest.MonkeyPatch, size_hint: int
) -> None:
    monkeypatch.setattr(objects, "SLOWEST_BYTES", 1)
    bucket = new_bucket(s3)
    monkeypatch.setattr(Bucket, "_abort_quietly", lambda bucket, key: None)
    held = threading.Event()
    proxy.faults.append(S3Fault("PUT", r"/k\?.*partNumber=", times=100, before=lambda: held.wait(60)))
    asked = [0]

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            asked[0] += 1
            yield bytes(PUT_PART_BYTES)

    with pytest.raises(StagingFault):
        through(s3, proxy, bucket.name).put_stream("k", chunks(), size_hint=size_hint)
    before = asked[0]
    held.set()
    for thread in [one for one in threading.enumerate() if one.name == "put-stream"]:
        thread.join(60)
    # Also where what is open could not be aborted, the server being as it is: nothing cut short ever appears.
    assert before < 40
    assert bucket.head("k") is None
