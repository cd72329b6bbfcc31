"""Retrieved data in a bucket: seen only whole and right, not copied twice, fetched by link, and gone when nobody wants it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from botocore.exceptions import ClientError
from pydantic import AnyHttpUrl

from archiver.errors import HostilePath, IntegrityMismatch, Stopped, TargetFault, TargetFull
from archiver.progress import Silent
from archiver.settings import RetrievalSettings, S3Settings
from archiver.storage import retrieval_bucket
from archiver.storage.objects import PUT_PART_BYTES, Bucket
from archiver.storage.retrieval_bucket import DAY, MARKS, RetrievalBucket, Window
from archiver.storage.targets import stream, whole
from cli.servers import free_port
from tests.pipeline.faulty_s3 import FaultyS3, S3Fault
from tests.storage.delivering import HOSTILE, PID, SELECTION, deliver, file, give, pieces

LARGE = os.urandom(2 * PUT_PART_BYTES + 12345)
NOW = 1_800_000_000.0


class Clock:
    """Seconds since 1970, as told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def new_target(s3: S3Settings, *, clock: Callable[[], float] = time.time, **settings: object) -> RetrievalBucket:
    bucket = Bucket(f"test-{secrets.token_hex(6)}", s3, TargetFault)
    bucket.ensure()
    return RetrievalBucket(bucket, RetrievalSettings.model_validate({"prefix": "out/", **settings}), clock=clock)


@pytest.fixture
def target(s3: S3Settings) -> RetrievalBucket:
    """An empty retrieval bucket on a real server."""
    return new_target(s3)


def lying(target: RetrievalBucket) -> dict[str, bytes]:
    """Every object but the marks, by its key below the prefix."""
    keys = [entry.key for entry in target.bucket.list("")]
    return {
        key.removeprefix(target.prefix): target.bucket.get(key) or b""
        for key in keys
        if not key.startswith(target.prefix + MARKS)
    }


def written(target: RetrievalBucket) -> dict[str, float]:
    return {entry.key: entry.modified for entry in target.bucket.list(target.prefix + PID[:3])}


def open_uploads(target: RetrievalBucket) -> list[str]:
    return [upload.key for upload in target.bucket.open_uploads("")]


@pytest.mark.parametrize("server", ["versitygw", "moto"], indirect=True)
def test_p4_files_lie_below_the_raw_pid_under_their_exact_names(server: S3Settings) -> None:
    target = new_target(server)
    files = {name: b"bytes of " + name.encode() for name in HOSTILE}
    if "moto" in str(server.access_key):
        del files["line\nfeed"]  # moto forgets such an object (tests/storage/test_objects.py)
    assert deliver(target, files.items()) == (len(files), 0)
    assert lying(target) == {f"{PID}/{name}": data for name, data in files.items()}
    assert deliver(target, files.items()) == (0, len(files))


def test_p4_a_large_file_of_a_hostile_name_arrives_byte_for_byte(target: RetrievalBucket) -> None:
    assert deliver(target, [("tab\tline\nfeed", LARGE), ("plain", LARGE), ("empty", b"")]) == (3, 0)
    assert lying(target) == {f"{PID}/tab\tline\nfeed": LARGE, f"{PID}/plain": LARGE, f"{PID}/empty": b""}
    assert open_uploads(target) == []
    assert deliver(target, [("tab\tline\nfeed", LARGE), ("plain", LARGE), ("empty", b"")]) == (0, 3)


def test_p4_files_of_many_parts_keep_their_bytes_apart(target: RetrievalBucket) -> None:
    # More parts than may be on their way at once: what held one of them holds another later.
    files = {name: os.urandom(7 * PUT_PART_BYTES + 1) for name in ("a", "b")}
    assert deliver(target, files.items()) == (2, 0)
    assert lying(target) == {f"{PID}/{name}": data for name, data in files.items()}


@pytest.mark.parametrize("name", ["small", "tab\tx"])
def test_p2_a_small_file_was_compared_by_the_store_with_its_sha256(target: RetrievalBucket, name: str) -> None:
    deliver(target, [(name, b"bytes")])
    key = target.key(PID, name)
    kept = target.bucket.boto.head_object(Bucket=target.bucket.name, Key=key, ChecksumMode="ENABLED")
    assert base64.b64decode(kept["ChecksumSHA256"]) == hashlib.sha256(b"bytes").digest()


def test_a_store_that_needs_long_to_put_the_parts_together_is_waited_for(target: RetrievalBucket) -> None:
    proxy = FaultyS3(str(target.bucket._s3.endpoint)).start()
    proxy.faults.append(S3Fault("POST", r"/large\?uploadId=", before=lambda: time.sleep(4)))
    by_way = target.bucket._s3.model_copy(update={"endpoint": AnyHttpUrl(proxy.url)})
    bucket = Bucket(target.bucket.name, by_way, TargetFault, seconds=2)
    try:
        deliver(RetrievalBucket(bucket, target._settings), [("large", LARGE)])
    finally:
        proxy.stop()
    assert lying(target) == {f"{PID}/large": LARGE}
    assert open_uploads(target) == []


def test_p2_a_part_that_changes_on_its_way_is_refused_by_the_store(target: RetrievalBucket) -> None:
    changed = []

    def flip(request: Any, **_: object) -> None:
        if not changed:
            changed.append(len(request.data))
            request.data = bytes([request.data[0] ^ 1]) + bytes(request.data[1:])

    target.parts.meta.events.register("before-sign.s3.UploadPart", flip)
    with pytest.raises(TargetFault) as caught:
        deliver(target, [("f", LARGE)])
    assert "BadDigest" in caught.value.what
    assert changed == [PUT_PART_BYTES]
    assert lying(target) == {}
    assert open_uploads(target) == []


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
def test_p2_a_file_is_not_seen_before_its_bytes_are_proved(target: RetrievalBucket, data: bytes) -> None:
    with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
        assert sink.begin(file("f", data))
        for piece in pieces(data):
            sink.data(piece)
        assert lying(target) == {}
        sink.commit()
    assert lying(target) == {f"{PID}/f": data}


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
def test_p2_nothing_of_an_aborted_file_stays_and_the_others_are_there(target: RetrievalBucket, data: bytes) -> None:
    with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
        give(sink, file("a", b"good"), b"good")
        assert sink.begin(file("b", data))
        for piece in pieces(data):
            sink.data(piece)
        sink.abort()
        assert open_uploads(target) == []
        give(sink, file("c", LARGE), LARGE)
    assert lying(target) == {f"{PID}/a": b"good", f"{PID}/c": LARGE}
    assert open_uploads(target) == []


@pytest.mark.parametrize("found", [LARGE[:-1], LARGE + b"!"], ids=["short", "long"])
def test_p2_bytes_of_another_length_are_never_seen(target: RetrievalBucket, found: bytes) -> None:
    with (
        pytest.raises(IntegrityMismatch) as caught,
        target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink,
    ):
        give(sink, file("f", LARGE), found)
    assert not caught.value.retryable
    assert lying(target) == {}
    assert open_uploads(target) == []


class StopsAfter:
    """Progress that stops whoever waits, once told to."""

    def __init__(self) -> None:
        self.stopping = False

    def advance(self, size_bytes: int = 0, files: int = 0) -> None:
        self.note("")

    def note(self, text: str) -> None:
        if self.stopping:
            raise Stopped("told to stop")


def test_p5_a_stop_while_the_bucket_does_not_answer_leaves_nothing_half(
    target: RetrievalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = threading.Event(), threading.Event()
    real, progress = target.parts.upload_part, StopsAfter()

    def hangs(**part: object) -> object:
        progress.stopping = True
        asked.set()
        go_on.wait(60)
        return real(**part)  # type: ignore[arg-type]

    monkeypatch.setattr(target.parts, "upload_part", hangs)
    monkeypatch.setattr("archiver.storage.targets.STOP_SECONDS", 0.1)
    with pytest.raises(Stopped), target.sink(PID, SELECTION, "1", progress, piece="1") as sink:
        give(sink, file("f", LARGE), LARGE)
    go_on.set()
    assert asked.is_set()
    assert lying(target) == {}
    assert open_uploads(target) == []


KILLED = """
import json, os, signal, sys
from archiver.errors import TargetFault
from archiver.progress import Silent
from archiver.settings import RetrievalSettings, S3Settings
from archiver.storage.objects import Bucket
from archiver.storage.retrieval_bucket import RetrievalBucket
from tests.storage.delivering import PID, SELECTION, file, give, pieces

given = json.load(sys.stdin)
target = RetrievalBucket(
    Bucket(given["bucket"], S3Settings.model_validate(given["s3"]), TargetFault), RetrievalSettings(prefix="out/"))
data = bytes(given["size"])
with target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink:
    give(sink, file("whole", b"w"), b"w")
    sink._flush()
    sink._together.drain()
    sink.begin(file("large", data))
    for piece in pieces(data):
        sink.data(piece)
    sink._together.drain()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_p5_a_killed_process_leaves_no_half_object_and_the_next_run_clears_its_upload(
    target: RetrievalBucket, s3: S3Settings
) -> None:
    given = {
        "bucket": target.bucket.name,
        "size": len(LARGE),
        "s3": {**s3.model_dump(mode="json"), "secret_key": s3.secret_key.get_secret_value() if s3.secret_key else ""},
    }
    done = subprocess.run([sys.executable, "-c", KILLED], input=json.dumps(given), text=True, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert lying(target) == {f"{PID}/whole": b"w"}
    assert len(open_uploads(target)) == 1
    assert target.tidy(PID) == 0, "the upload may be another's, at work"
    assert target.tidy("20.500.11935/0e54", idle_seconds=0) == 0, "it is another dataset's"
    assert target.tidy(PID, idle_seconds=0) == 1
    assert open_uploads(target) == []
    assert deliver(target, [("whole", b"w"), ("large", LARGE)], attempt="2") == (1, 1)
    assert lying(target) == {f"{PID}/whole": b"w", f"{PID}/large": LARGE}


def test_p6_what_is_there_and_intact_is_not_written_again_and_its_expiry_is_renewed(s3: S3Settings) -> None:
    clock = Clock()
    target = new_target(s3, clock=clock, expire_days=10)
    files = [("a", b"a"), ("l", LARGE)]
    assert deliver(target, files) == (2, 0)
    before = written(target)
    clock.now += 9 * DAY
    assert deliver(target, files, attempt="2") == (0, 2)
    assert written(target) == before
    assert target.expire(NOW + 18 * DAY, lambda pid: False, Silent()).objects == 0
    assert target.expire(NOW + 20 * DAY, lambda pid: False, Silent()).objects == 2


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("wrong", ["bytes", "size", "unproved"])
def test_p6_what_is_there_and_is_not_what_is_wanted_is_written_again(
    target: RetrievalBucket, data: bytes, wrong: str
) -> None:
    key = target.key(PID, "f")
    if wrong == "unproved":
        target.bucket.boto.put_object(Bucket=target.bucket.name, Key=key, Body=data)
    else:
        target.bucket.put(key, bytes(len(data) + (wrong == "size")))
    assert deliver(target, [("f", data)]) == (1, 0)
    assert lying(target) == {f"{PID}/f": data}


def test_two_overlapping_selections_at_once_both_end_right(target: RetrievalBucket) -> None:
    files = [(f"f{n:02}", os.urandom(1000 * n)) for n in range(40)] + [("large", LARGE)]
    start, outcomes = threading.Barrier(2), {}

    def run(name: str, mine: list[tuple[str, bytes]]) -> None:
        start.wait()
        outcomes[name] = sum(deliver(target, mine, selection=name))

    threads = [
        threading.Thread(target=run, args=args) for args in (("first", files[:30] + files[-1:]), ("rest", files[10:]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert outcomes == {"first": 31, "rest": 31}
    assert lying(target) == {f"{PID}/{name}": data for name, data in files}
    assert open_uploads(target) == []


def test_a_datablock_as_it_is_is_seen_only_when_all_of_it_was_checked(target: RetrievalBucket) -> None:
    block = whole("1.tar.gz", len(LARGE), file("", LARGE).sha256)

    def once(fails: bool) -> bool:
        with (
            target.sink(PID, SELECTION, "1", Silent(), piece="1") as sink,
            stream(sink, block) as write,
        ):
            if write is None:
                return False
            for piece in pieces(LARGE):
                write(piece)
            assert lying(target) == {}
            if fails:
                raise IntegrityMismatch("a flipped bit")
        return True

    with pytest.raises(IntegrityMismatch):
        once(fails=True)
    assert (lying(target), open_uploads(target)) == ({}, [])
    assert once(fails=False)
    assert lying(target) == {f"{PID}/1.tar.gz": LARGE}
    assert not once(fails=False), "it is there: nothing is read from the LTS"


def test_p10_thousands_of_small_files_take_no_memory_that_grows(target: RetrievalBucket, s3: S3Settings) -> None:
    given = {
        "bucket": target.bucket.name,
        "s3": {**s3.model_dump(mode="json"), "secret_key": s3.secret_key.get_secret_value() if s3.secret_key else ""},
    }
    script = KILLED.split("data = bytes")[0] + (
        "import resource\n"
        "from tests.storage.delivering import deliver\n"
        "rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "data = os.urandom(20_000)\n"
        "deliver(target, ((f'warm/{n:05}', data) for n in range(500)))\n"
        "before = rss()\n"
        "done = deliver(target, ((f'{n % 7}/{n:05}', data) for n in range(5000)), piece='2')\n"
        "print(json.dumps([done, rss() - before]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(given), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    (files, skipped), grown_mib = json.loads(done.stdout)
    assert (files, skipped) == (5000, 0)
    assert grown_mib < 40, "100 MB went through"
    assert sum(1 for _ in target.bucket.list(target.dataset(PID))) == 5500


def test_a_file_that_is_not_there_costs_no_question_of_its_own(
    target: RetrievalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(key: str) -> None:
        raise AssertionError(f"{key} was asked for")

    monkeypatch.setattr(target.bucket, "head", asked)
    monkeypatch.setattr(target.bucket, "proof", asked)
    assert deliver(target, [(f"{n % 3}/{n}", b"small") for n in range(50)]) == (50, 0)


@pytest.mark.parametrize("path", ["../other/f", "/f", "a//f", "./f", "", "a\0b"], ids=ascii)
def test_a_manifests_path_that_climbs_writes_nothing(target: RetrievalBucket, path: str) -> None:
    with pytest.raises(HostilePath):
        deliver(target, [(path, b"data")])
    assert lying(target) == {}


@pytest.mark.parametrize("size", [2**20, 1000], ids=["bytes", "number"])
def test_p10_what_waits_for_a_bucket_that_hangs_is_bounded(
    target: RetrievalBucket, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    progress, go_on, taken = StopsAfter(), threading.Event(), []
    sink = target.sink(PID, SELECTION, "1", progress, piece="1")
    monkeypatch.setattr(target.bucket, "put", lambda key, data: go_on.wait(60))
    monkeypatch.setattr("archiver.storage.targets.STOP_SECONDS", 0.1)
    progress.stopping = True

    def give_all() -> None:
        one = file("f", bytes(size))
        with sink:
            for n in range(1000):
                give(sink, replace(one, path=f"{n}"), bytes(size))
                taken.append(n)

    with pytest.raises(Stopped):
        give_all()
    go_on.set()
    assert 16 <= len(taken) <= (33 if size == 2**20 else 33 * 8)


@pytest.mark.parametrize("page", [3, 1000])
def test_sizes_are_right_in_whatever_order_they_are_asked_for(
    target: RetrievalBucket, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(retrieval_bucket, "PAGE", page)
    there = {target.key(PID, name): n for n, name in enumerate(["a", "aa", "ab", "b", "bb/c", "caf\u00e9", "z"])}
    for key, size in there.items():
        target.bucket.put(key, bytes(size))
    asked = [*there, *(target.key(PID, name) for name in ["A", "aaa", "bb/b", "c", "zz"])]
    for order in (sorted(asked), sorted(asked, reverse=True), asked[::2] + asked[1::2]):
        window = Window(target.bucket, target.dataset(PID))
        assert {key: window.size(key) for key in order} == {key: there.get(key) for key in asked}


def test_what_was_delivered_is_told_with_its_key_and_its_absence_is_no_success(target: RetrievalBucket) -> None:
    files = [("a", b"a"), ("b/c", LARGE)]
    deliver(target, files)
    told = [*target.delivered(PID, (file(*one) for one in files))]
    assert [(one.name, one.where, one.size, one.sha256) for one in told] == [
        (name, f"out/{PID}/{name}", len(data), file(name, data).sha256) for name, data in files
    ]
    target.bucket.delete([target.key(PID, "a")])
    with pytest.raises(TargetFault, match="'a' is not in"):
        list(target.delivered(PID, (file(*one) for one in files)))


# --- space ----------------------------------------------------------------------------------------------------------------


def test_a_full_bucket_is_a_wait_and_a_quota_that_can_never_do_is_not(s3: S3Settings) -> None:
    target = new_target(s3, quota="1MiB")
    target.bucket.put(target.key(PID, "f"), bytes(600_000))
    target.bucket.put("another's", bytes(10_000_000))
    target.check_space(400_000)
    with pytest.raises(TargetFull, match="no room") as waits:
        target.check_space(500_000)
    assert waits.value.retryable
    assert waits.value.side == "target"
    with pytest.raises(TargetFull) as never:
        target.check_space(2_000_000)
    assert not never.value.retryable


def test_without_a_quota_everything_has_room(target: RetrievalBucket) -> None:
    target.check_space(2**60)


def test_a_bucket_that_does_not_answer_is_the_targets_fault(s3: S3Settings) -> None:
    gone = s3.model_copy(update={"endpoint": f"http://127.0.0.1:{free_port()}"})
    target = RetrievalBucket(Bucket("gone", gone, TargetFault, seconds=1), RetrievalSettings())
    with pytest.raises(TargetFault) as caught:
        deliver(target, [("a", b"a")])
    assert caught.value.retryable


def test_an_upload_that_is_lost_is_retried_and_not_reported(
    target: RetrievalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = target.bucket.boto.complete_multipart_upload

    def lost(**upload: object) -> object:
        target.bucket.abort_uploads("")
        return real(**upload)  # type: ignore[arg-type]

    monkeypatch.setattr(target.bucket.boto, "complete_multipart_upload", lost)
    with pytest.raises(TargetFault) as caught:
        deliver(target, [("l", LARGE)])
    assert caught.value.retryable
    assert lying(target) == {}


def test_an_upload_whose_completion_was_asked_for_twice_is_a_success(
    target: RetrievalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = target.bucket.boto.complete_multipart_upload

    def twice(**upload: object) -> object:
        real(**upload)  # type: ignore[arg-type]
        raise ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")

    monkeypatch.setattr(target.bucket.boto, "complete_multipart_upload", twice)
    assert deliver(target, [("l", LARGE)]) == (1, 0)
    assert lying(target) == {f"{PID}/l": LARGE}


# --- links ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*HOSTILE, "l"], ids=ascii)
def test_a_presigned_url_gives_the_bytes_to_a_plain_client(target: RetrievalBucket, name: str) -> None:
    data = LARGE if name == "l" else name.encode()
    deliver(target, [(name, data)])
    answer = httpx.get(target.presign(target.key(PID, name), 600))
    assert answer.status_code == 200
    assert answer.content == data


def test_a_presigned_url_is_path_style_with_the_raw_pid_and_tells_its_life(target: RetrievalBucket) -> None:
    url = urlsplit(target.presign(target.key(PID, "d/f"), 7 * 86400))
    assert url.path == f"/{target.bucket.name}/out/{PID}/d/f"
    query = parse_qs(url.query)
    assert query["X-Amz-Expires"] == ["604800"]
    assert len(query["X-Amz-Date"][0]) == len("20261124T000000Z")


def test_a_presigned_url_ends(target: RetrievalBucket) -> None:
    deliver(target, [("f", b"f")])
    url = target.presign(target.key(PID, "f"), 1)
    until = time.monotonic() + 60
    while (code := httpx.get(url).status_code) == 200 and time.monotonic() < until:
        time.sleep(0.2)
    assert code == 403


def test_a_presigned_url_names_the_server_as_requesters_reach_it(s3: S3Settings) -> None:
    target = new_target(s3, public_endpoint="https://data.example.org/")
    url = urlsplit(target.presign(target.key(PID, "f"), 60))
    assert (url.scheme, url.netloc) == ("https", "data.example.org")
    assert url.path == f"/{target.bucket.name}/out/{PID}/f"


# --- expiry ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def aging(s3: S3Settings) -> RetrievalBucket:
    """A bucket whose data is wanted for ten days from NOW on."""
    return new_target(s3, clock=Clock(), expire_days=10)


def test_expiry_removes_exactly_the_datasets_whose_time_is_over(aging: RetrievalBucket) -> None:
    for pid in (PID, PID + "b", "20.500.11935/0e5", PID + "/deeper"):
        deliver(aging, [("f", b"f"), ("g/h", b"h")], pid=pid)
    for pid in (PID + "b", "20.500.11935/0e5", PID + "/deeper"):
        aging.renew(pid, "another selection", NOW + 30 * DAY)
    aging.bucket.put("out/another's", b"x")
    before = lying(aging)
    assert aging.expire(NOW + 9 * DAY, lambda pid: False, Silent()).objects == 0
    assert lying(aging) == before
    done = aging.expire(NOW + 11 * DAY, lambda pid: False, Silent())
    assert (done.datasets, done.objects, done.size_bytes, done.kept) == (1, 2, 2, 3)
    assert lying(aging) == {
        key: data for key, data in before.items() if not key.startswith(PID + "/") or "deeper" in key
    }
    assert aging.expire(NOW + 31 * DAY, lambda pid: False, Silent()).datasets == 3
    assert lying(aging) == {"another's": b"x"}
    assert [*aging.bucket.list("out/" + MARKS)] == []


def test_expiry_leaves_alone_what_is_in_use(aging: RetrievalBucket) -> None:
    deliver(aging, [("f", b"f")])
    done = aging.expire(NOW + 99 * DAY, lambda pid: pid == PID, Silent())
    assert (done.datasets, done.kept) == (0, 1)
    assert lying(aging) == {f"{PID}/f": b"f"}


@pytest.mark.parametrize("how", ["in use", "renewed"])
def test_expiry_ends_at_once_when_a_dataset_is_wanted_again(
    aging: RetrievalBucket, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(retrieval_bucket, "PAGE", 2)
    deliver(aging, [(f"f{n}", b"f") for n in range(6)])
    asked: list[str] = []

    def keep(pid: str) -> bool:
        asked.append(pid)
        if how == "renewed" and len(asked) == 2:
            aging.renew(PID, "new", NOW + 200 * DAY)
        return how == "in use" and len(asked) == 2

    assert aging.expire(NOW + 99 * DAY, keep, Silent()).kept == 1
    assert [*lying(aging)] == [f"{PID}/f{n}" for n in (2, 3, 4, 5)]


@pytest.mark.parametrize("mark", [b"", b"{}", b"[1]", b'{"pid": "20.500.11935/other", "until": 0}', b'{"pid": 1}'])
def test_expiry_removes_nothing_by_a_mark_that_it_cannot_believe(aging: RetrievalBucket, mark: bytes) -> None:
    deliver(aging, [("f", b"f")])
    deliver(aging, [("f", b"f")], pid="20.500.11935/other")
    aging.renew("20.500.11935/other", SELECTION, NOW + 999 * DAY)
    (key,) = [
        entry.key for entry in aging.bucket.list("out/" + MARKS) if PID.encode() in (aging.bucket.get(entry.key) or b"")
    ]
    aging.bucket.put(key, mark)
    done = aging.expire(NOW + 99 * DAY, lambda pid: False, Silent())
    assert (done.unreadable, done.objects) == (1, 0)
    assert set(lying(aging)) == {f"{PID}/f", "20.500.11935/other/f"}


def test_renewing_never_shortens(aging: RetrievalBucket) -> None:
    deliver(aging, [("f", b"f")])
    aging.renew(PID, SELECTION, NOW + 1)
    assert aging.expire(NOW + 9 * DAY, lambda pid: False, Silent()).datasets == 0


def test_p8_what_a_failed_fetch_or_upload_says_holds_no_signature(
    s3: S3Settings, caplog: pytest.LogCaptureFixture
) -> None:
    gone = s3.model_copy(update={"endpoint": f"http://127.0.0.1:{free_port()}"})
    target = RetrievalBucket(Bucket("gone", gone, TargetFault, seconds=1), RetrievalSettings())
    url = target.presign(target.key(PID, "f"), 60)
    with pytest.raises(TargetFault) as caught:
        deliver(target, [("f", b"f")])
    signature = parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]
    for text in (str(caught.value), caplog.text):
        assert signature not in text
        assert "X-Amz-Signature" not in text
