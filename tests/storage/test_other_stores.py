"""S3 servers that answer otherwise than AWS, within what the protocol leaves open or what has been met."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from pydantic import AnyHttpUrl

from archiver.errors import ContentError, HostilePath, LtsFault, StagingFault, SystemFault
from archiver.progress import Silent
from archiver.settings import RetrievalSettings, S3Settings
from archiver.storage.landing import S3Landing
from archiver.storage.lts_bucket import BucketLts, Stored
from archiver.storage.objects import Bucket
from archiver.storage.retrieval_bucket import RetrievalBucket
from tests.storage.conftest import new_bucket
from tests.storage.delivering import file, give
from tests.storage.glacier import restores
from tests.storage.test_lts_bucket import ARCHIVE, BLOCK, BYTES, PID, Lts

ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{}</Message></Error>"


@dataclass
class Answer:
    """What the server answered to a request."""

    method: str
    path: str
    asked: dict[str, str]
    """Headers of the request, names in small letters."""
    body: bytes = b""
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    data: bytes = b""

    def refuse(self, status: int, code: str, message: str = "no") -> None:
        """Answer so instead."""
        self.status, self.headers = status, [("Content-Type", "application/xml")]
        self.data = b"" if self.method == "HEAD" else ERROR.format(code, message).encode()


@contextmanager
def otherwise(
    s3: S3Settings, change: Callable[[Answer], None], *, drop: tuple[str, ...] = (), instead: bool = False
) -> Iterator[S3Settings]:
    """The server, whose answers ``change`` changes; ``instead``: it may answer before the server is asked, by a status of its
    own. Headers of requests named in ``drop`` do not reach the server.
    """
    upstream = urlsplit(str(s3.endpoint))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = {name.lower(): value for name, value in self.headers.items()}
            answer = Answer(self.command, self.path, asked, body, status=0)
            if instead:
                change(answer)
            if not answer.status:
                line = http.client.HTTPConnection(upstream.hostname or "", upstream.port)
                kept = {name: value for name, value in self.headers.items() if name.lower() not in drop}
                line.request(self.command, self.path, body, kept)
                got = line.getresponse()
                answer.status, answer.headers, answer.data = got.status, got.getheaders(), got.read()
                line.close()
                if not instead:
                    change(answer)
            self.send_response(answer.status)
            length = None
            for name, value in answer.headers:
                if name.lower() == "content-length":
                    length = value
                elif name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            head = self.command == "HEAD" and length is not None
            self.send_header("Content-Length", str(length if head else len(answer.data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield s3.model_copy(update={"endpoint": AnyHttpUrl(f"http://127.0.0.1:{server.server_port}")})
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def through(bucket: Bucket, s3: S3Settings, side: type[SystemFault] = StagingFault) -> Bucket:
    return Bucket(bucket.name, s3, side, seconds=5)


# --- names of headers -------------------------------------------------------------------------------------------------


def shouting(answer: Answer) -> None:
    answer.headers = [
        ("X-Amz-Meta-" + name[11:].title() if name.lower().startswith("x-amz-meta-") else name.upper(), value)
        for name, value in answer.headers
    ]


def test_metadata_has_no_case_in_whatever_reads_it(s3: S3Settings) -> None:
    with otherwise(s3, shouting) as other:
        lts = Lts(other)
        lts.copy()
        lts.copy()  # compares what is there, by its metadata
        assert lts.lts._needed(PID, BLOCK).sha256 == hashlib.sha256(BYTES).hexdigest()
        assert lts.lts.probe() == []
        for key in ("plain", "with\ttab"):
            lts.bucket.put(key, b"small")
            assert lts.bucket.get(key) == b"small"
            assert lts.bucket.proof(key) == (5, hashlib.sha256(b"small").hexdigest())


# --- restored copies --------------------------------------------------------------------------------------------------


def stored(restore: str) -> Stored:
    return Stored(1, '"v"', "", 1, "", "GLACIER", True, restore, 0.0)


@pytest.mark.parametrize(
    ("header", "restoring", "ends"),
    [
        ("", False, None),
        ('ongoing-request="true"', True, None),
        ("ongoing-request=true", True, None),
        ('Ongoing-Request = "True"', True, None),
        ('ongoing-request="false"', False, None),
        (
            'ongoing-request="false", expiry-date="Fri, 21 Dec 2040 00:00:00 GMT"',
            False,
            datetime(2040, 12, 21, tzinfo=UTC),
        ),
        ("ongoing-request=false, expiry-date=Fri, 21 Dec 2040 00:00:00 GMT", False, datetime(2040, 12, 21, tzinfo=UTC)),
        (
            'expiry-date="Fri, 21 Dec 2040 00:00:00 GMT", ongoing-request="false"',
            False,
            datetime(2040, 12, 21, tzinfo=UTC),
        ),
        ('ongoing-request="false", expiry-date="soon"', False, None),
    ],
)
def test_a_restore_header_is_read_as_a_header(header: str, restoring: bool, ends: datetime | None) -> None:
    assert (stored(header).restoring, stored(header).ends) == (restoring, ends)


def saying(restore: str, asked: list[str]) -> Callable[[Answer], None]:
    def change(answer: Answer) -> None:
        if "restore" in answer.path.partition("?")[2]:
            asked.append(answer.path)
        if answer.method == "HEAD" and answer.path.endswith("1.tar.gz"):
            kept = [(name, value) for name, value in answer.headers if name.lower() != "x-amz-restore"]
            answer.headers = [*kept, ("x-amz-restore", restore)]

    return change


def test_what_a_header_calls_restored_and_cannot_be_read_is_asked_for(moto: S3Settings) -> None:
    lts, asked = Lts(moto, **ARCHIVE), []
    lts.archived()
    with otherwise(moto, saying('ongoing-request="false"', asked)) as other, restores() as restoring:
        late = BucketLts(through(lts.bucket, other, LtsFault), lts.settings, "test")
        assert not late.readable(PID, BLOCK)
        late.recall(PID, BLOCK)
        assert len(asked) == 1
        restoring.ended = True
        assert late.readable(PID, BLOCK)


def test_what_can_be_read_is_not_asked_for_again_however_its_header_is_written(moto: S3Settings) -> None:
    lts, asked = Lts(moto, **ARCHIVE), []
    lts.archived()
    with restores() as restoring:
        lts.lts.recall(PID, BLOCK)
        restoring.ended = True
        unquoted = "ongoing-request=false, expiry-date=Fri, 21 Dec 2040 00:00:00 GMT"
        with otherwise(moto, saying(unquoted, asked)) as other:
            late = BucketLts(through(lts.bucket, other, LtsFault), lts.settings, "test")
            for _ in range(3):
                assert late.recall(PID, BLOCK)
    assert asked == []


# --- deletes ----------------------------------------------------------------------------------------------------------


def demands_md5(answer: Answer) -> None:
    if answer.method == "POST" and answer.path.endswith("?delete"):
        wanted = base64.b64encode(hashlib.md5(answer.body, usedforsecurity=False).digest()).decode()
        if answer.asked.get("content-md5") != wanted:
            answer.refuse(400, "InvalidRequest", "Missing required header for this request: Content-MD5")


def has_no_batches(answer: Answer) -> None:
    if answer.method == "POST" and answer.path.endswith("?delete"):
        answer.refuse(501, "NotImplemented", "A header you provided implies functionality that is not implemented")


@pytest.mark.parametrize("change", [demands_md5, has_no_batches])
def test_many_are_deleted_on_stores_that_want_it_otherwise(s3: S3Settings, change: Callable[[Answer], None]) -> None:
    bucket = new_bucket(s3)
    for n in range(5):
        bucket.put(f"k{n}", b"x")
    with otherwise(s3, change, instead=True) as other:
        late = through(bucket, other)
        late.delete(f"k{n}" for n in range(4))
        late.delete(["k0", "k4"])
    assert list(bucket.list("")) == []


def test_a_store_that_refuses_to_delete_says_why_in_its_own_words(s3: S3Settings) -> None:
    def locked(answer: Answer) -> None:
        if answer.method == "POST":
            answer.status, answer.headers = 200, [("Content-Type", "application/xml")]
            error = b"<Error><Key>k</Key><Code>ObjectLocked</Code><Message>kept</Message></Error>"
            answer.data = b"<DeleteResult>" + error + b"</DeleteResult>"

    bucket = new_bucket(s3)
    with (
        otherwise(s3, locked, instead=True) as other,
        pytest.raises(StagingFault, match=r"^ObjectLocked: object 'k'") as caught,
    ):
        through(bucket, other).delete(["k"])
    assert "rights" not in str(caught.value)


def test_a_store_that_ignores_the_condition_of_a_delete_is_known_by_the_probe(moto: S3Settings) -> None:
    lts = Lts(moto)
    assert lts.lts.probe() == []
    with otherwise(moto, lambda answer: None, drop=("if-match",)) as other:
        late = BucketLts(through(lts.bucket, other, LtsFault), lts.settings, "test")
        assert late.probe() == ["deletes on condition (If-Match)"]


# --- listings ---------------------------------------------------------------------------------------------------------


def test_a_listing_without_etags_is_one_of_objects_without_a_version(s3: S3Settings) -> None:
    def bare(answer: Answer) -> None:
        answer.data = re.sub(rb"<ETag>[^<]*</ETag>|<LastModified>[^<]*</LastModified>", b"", answer.data)
        answer.headers = [(name, value) for name, value in answer.headers if name.lower() != "content-length"]

    bucket = new_bucket(s3)
    bucket.put("k", b"x")
    with otherwise(s3, bare) as other:
        (entry,) = through(bucket, other).list("")
    assert (entry.key, entry.size, entry.version, entry.modified) == ("k", 1, "", 0.0)


def test_p4_a_name_that_a_listing_cannot_show_is_told_by_what_it_shows(s3: S3Settings) -> None:
    def replaced(answer: Answer) -> None:
        if "list-type=2" in answer.path:
            answer.data = answer.data.replace(b"odd%01name", b"odd%EF%BF%BDname").replace(
                b"odd-name", "odd\ufffdname".encode()
            )
            answer.headers = [(name, value) for name, value in answer.headers if name.lower() != "content-length"]

    bucket = new_bucket(s3)
    for name in ("a", "odd-name"):
        bucket.put(f"in/{name}", b"x")
    with otherwise(s3, replaced) as other, pytest.raises(HostilePath, match=r"'odd\\ufffdname'") as caught:
        list(S3Landing(through(bucket, other), "in/").list())
    assert isinstance(caught.value, ContentError)
    bucket.put("in/odd\ufffdreally", b"x")
    assert [found.path for found in S3Landing(bucket, "in/").list()] == ["a", "odd-name", "odd\ufffdreally"]


# --- reasons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "lasts", "account"),
    [
        (403, "InvalidObjectState", True, False),
        (400, "KeyTooLongError", True, False),
        (501, "NotImplemented", True, False),
        (400, "InvalidRequest", False, False),
        (403, "AccessDenied", False, True),
        (403, "InvalidAccessKeyId", False, True),
        (403, "QuotaExceeded", False, False),
    ],
)
@pytest.mark.parametrize("key", ["deep/" * 60 + "plain", "deep/" * 60 + "with\ttab"])
def test_the_stores_own_code_comes_first_and_says_whether_time_can_mend_it(
    s3: S3Settings, key: str, status: int, code: str, lasts: bool, account: bool
) -> None:
    bucket = new_bucket(s3)
    with otherwise(s3, lambda answer: answer.refuse(status, code, "Unsupported header"), instead=True) as other:
        late = through(bucket, other)
        for call in (lambda: late.get(key), lambda: late.put(key, b"x"), lambda: [*late.list("deep/")]):
            with pytest.raises(StagingFault) as caught:
                call()
            fault = caught.value
            assert str(fault).startswith(f"{code}: ")
            assert fault.found == "Unsupported header"
            assert (not fault.retryable, "refuses our account" in str(fault)) == (lasts, account)


# --- what was retrieved -----------------------------------------------------------------------------------------------


def target(s3: S3Settings) -> RetrievalBucket:
    return RetrievalBucket(new_bucket(s3), RetrievalSettings())


@pytest.mark.parametrize("size", [10, 3 * 2**20])
def test_p4_what_was_damaged_in_the_bucket_is_delivered_anew_though_its_metadata_says_it_is_whole(
    s3: S3Settings, size: int
) -> None:
    to, data = target(s3), b"d" * size
    for damage in (b"D" + data[1:], None, data[:-1]):
        with to.sink(PID, "all", "1", Silent(), piece="1") as sink:
            give(sink, file("f", data), data)
        if damage is not None:
            sha256 = hashlib.sha256(data).hexdigest()
            to.bucket.boto.put_object(
                Bucket=to.bucket.name, Key=to.key(PID, "f"), Body=damage, Metadata={"sha256": sha256}
            )
        with to.sink(PID, "all", "2", Silent(), piece="1") as sink:
            give(sink, file("f", data), data)
        assert (sink.files, sink.skipped) == ((1, 0) if damage is not None else (0, 1))
        got = to.bucket.boto.get_object(Bucket=to.bucket.name, Key=to.key(PID, "f"))["Body"].read()
        assert got == data


def test_a_name_too_long_for_a_key_holds_back_no_other_file(s3: S3Settings) -> None:
    to = target(s3)
    long = "/".join(["d" * 200] * 6)
    room = 1024 - len(to.key(PID, ""))
    assert (to.refuses(PID, "x" * room), bool(to.refuses(PID, "x" * (room + 1)))) == ("", True)
    assert "of at most 1024" in to.refuses(PID, long)
    with to.sink(PID, "all", "1", Silent(), piece="1") as sink:
        for name in ("a", long, "z"):
            if sink.begin(file(name, b"x")):
                sink.data(memoryview(b"x"))
                sink.commit()
    assert [entry.key for entry in to.bucket.list(to.dataset(PID))] == [to.key(PID, "a"), to.key(PID, "z")]
