"""Account, tries and answers: what the client makes of a SciCat, or a proxy, that refuses, expires, lies or falls silent."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from archiver.catalogue import payloads, session
from archiver.catalogue.client import SciCat
from archiver.catalogue.payloads import Counters
from archiver.catalogue.session import QUICK_TRIES
from archiver.catalogue.standin.app import Account, Fault
from archiver.errors import ArchiverError, CatalogueFault, SettingsInvalid
from tests.catalogue.place import (
    MANAGER,
    PASSWORD,
    USER,
    Break,
    Place,
    answering,
    at,
    datablock,
    scicat_settings,
)

LOGIN = "/auth/login"

# --- the account ------------------------------------------------------------------------------------------------------


async def test_a_static_token_is_used_and_nobody_logs_in(place: Place) -> None:
    async with place.scicat(token=place.token()) as scicat:
        assert (await scicat.whoami())["username"] == "archiver"
    assert place.line.count("POST", LOGIN) == 0


async def test_many_callers_at_once_share_one_login(place: Place) -> None:
    pid = await place.dataset()
    async with place.scicat() as scicat:
        assert all(await asyncio.gather(*(scicat.dataset(pid) for _ in range(20))))
    assert place.line.count("POST", LOGIN) == 1


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(session, "time", made)
    return made


async def test_a_token_is_renewed_at_80_percent_of_its_life_and_not_before(clock: Clock) -> None:
    place = Place(token_seconds=1000)
    async with place.scicat() as scicat:
        await scicat.whoami()
        clock.now += 799
        await scicat.whoami()
        assert place.line.count("POST", LOGIN) == 1
        clock.now += 2
        await scicat.whoami()
        assert place.line.count("POST", LOGIN) == 2


@pytest.mark.parametrize("life", ["null", '"3600"', "true", "-1", "0", "1e999", "NaN", "[]"])
async def test_a_login_whose_lifetime_is_no_number_of_seconds_is_trusted_for_ten_minutes(
    clock: Clock, life: str
) -> None:
    place = Place()
    body = f'{{"access_token": "{place.token()}", "expires_in": {life}}}'.encode()
    place.standin.faults.append(Fault("POST", LOGIN, status=201, raw=body, times=9))
    async with place.scicat() as scicat:
        for _ in range(3):
            await scicat.whoami()
        assert place.line.count("POST", LOGIN) == 1
        clock.now += 600
        await scicat.whoami()
        assert place.line.count("POST", LOGIN) == 2


CALLS: dict[str, Callable[[SciCat, str, str], Awaitable[Any]]] = {
    "job": lambda scicat, pid, job: scicat.job(job),
    "dataset": lambda scicat, pid, job: scicat.dataset(pid),
    "update_job": lambda scicat, pid, job: scicat.update_job(job, payloads.job_update("inProgress", "m")),
    "patch_lifecycle": lambda scicat, pid, job: scicat.patch_lifecycle(pid, {"archivable": False}),
    "patch_counters": lambda scicat, pid, job: scicat.patch_counters(pid, Counters(1, 1, 1, 1)),
    "create_datablock": lambda scicat, pid, job: scicat.create_datablock(datablock(pid)),
    "datablocks": lambda scicat, pid, job: scicat.datablocks(pid),
    "create_job": lambda scicat, pid, job: scicat.create_job("archive", [pid], owner_group="p1"),
    "whoami": lambda scicat, pid, job: scicat.whoami(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_a_token_that_expired_in_the_middle_costs_one_login_and_no_error(
    place: Place, call: Callable[[SciCat, str, str], Awaitable[Any]]
) -> None:
    pid = await place.dataset(blocks=1)
    job = await place.job(pid)
    async with place.scicat() as scicat:
        await scicat.whoami()
        place.standin.expire_tokens()
        await call(scicat, pid, job)
    assert place.line.count("POST", LOGIN) == 2


STRANGER = "stranger"
RIGHTS: list[tuple[str, str, Callable[[SciCat, str, str], Awaitable[Any]]]] = [
    (USER, "UPDATE_JOB_PRIVILEGED_GROUPS", lambda s, pid, job: s.update_job(job, payloads.job_update("a", "b"))),
    (STRANGER, "UPDATE_DATASET_LIFECYCLE_GROUPS", lambda s, pid, job: s.patch_lifecycle(pid, {"archivable": False})),
    (MANAGER, "CREATE_DATASET_PRIVILEGED_GROUPS", lambda s, pid, job: s.create_datablock(datablock(pid))),
    (MANAGER, "ADMIN_GROUPS", lambda s, pid, job: s.patch_counters(pid, Counters(1, 1, 1, 1))),
    (MANAGER, "ADMIN_GROUPS", lambda s, pid, job: anext(s.origdatablocks(pid))),
]


@pytest.mark.parametrize(("name", "right", "call"), RIGHTS)
async def test_a_403_logs_in_once_more_and_then_names_the_right_that_is_missing(
    place: Place, name: str, right: str, call: Callable[[SciCat, str, str], Awaitable[Any]]
) -> None:
    place.standin.accounts[STRANGER] = Account(STRANGER, PASSWORD, groups=("p9",))
    pid = await place.dataset(blocks=1)
    job = await place.job(pid)
    async with place.scicat(username=name, password=PASSWORD) as scicat:
        with pytest.raises(CatalogueFault) as caught:
            await call(scicat, pid, job)
    assert right in str(caught.value.expected)
    assert not caught.value.retryable
    assert "docs/scicat.md" in str(caught.value.next_step)
    assert place.line.count("POST", LOGIN) == 2


async def test_a_403_of_a_static_token_is_told_at_once(place: Place) -> None:
    pid = await place.dataset()
    async with place.scicat(token="expired") as scicat:
        with pytest.raises(CatalogueFault, match=r"renew scicat\.token") as caught:
            await scicat.dataset(pid)
    assert not caught.value.retryable
    assert len(place.line.sent) == 1


async def test_a_wrong_password_is_told_and_never_retried(place: Place) -> None:
    async with place.scicat(username=USER, password="wr0ng-canary") as scicat:
        with pytest.raises(CatalogueFault, match="refuses the login of 'someone'") as caught:
            await scicat.whoami()
    assert not caught.value.retryable
    assert "wr0ng-canary" not in caught.value.lines() + caught.value.one_line()
    assert len(place.line.sent) == 1


async def test_a_login_that_fails_for_a_moment_is_tried_again(place: Place) -> None:
    place.standin.faults.append(Fault("POST", LOGIN, status=503, times=2))
    async with place.scicat() as scicat:
        assert await scicat.whoami()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'"token"',
        b'{"access_token": null}',
        b'{"access_token": "a\\nb"}',
        b'{"access_token": "\xc3\xa9"}',
    ],
)
async def test_a_login_that_gives_no_usable_token_is_a_fault_that_may_pass(place: Place, body: bytes) -> None:
    place.standin.faults.append(Fault("POST", LOGIN, status=201, raw=body, times=9))
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match="login gives no token") as caught:
            await scicat.whoami()
    assert caught.value.retryable


async def test_no_account_at_all_is_a_fault_of_the_settings(place: Place) -> None:
    settings = scicat_settings().model_copy(update={"username": None, "password": None})
    async with SciCat(settings, transport=place.line) as scicat:
        with pytest.raises(SettingsInvalid, match=r"scicat\.token"):
            await scicat.dataset("a/b")


@pytest.mark.parametrize("token", ["two words", "Bearer abc", "tökén", "a\nb", " "])
async def test_a_token_that_no_header_can_carry_is_refused_at_start_and_not_shown(token: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"scicat\.token") as caught:
        SciCat(scicat_settings(token=token))
    assert token.strip() == "" or token not in caught.value.lines()


async def test_a_token_from_a_file_may_end_with_a_newline(place: Place) -> None:
    async with place.scicat(token=place.token() + "\n") as scicat:
        assert await scicat.whoami()


async def test_whoami_of_a_bad_static_token_says_what_to_renew(place: Place) -> None:
    async with place.scicat(token="expired") as scicat:
        with pytest.raises(CatalogueFault, match="does not know our account") as caught:
            await scicat.whoami()
    assert "scicat.token" in str(caught.value.next_step)
    assert not caught.value.retryable


# --- tries ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_a_status_that_may_pass_is_tried_again_quickly_and_then_left_to_temporal(status: int) -> None:
    place = Place()
    pid = await place.dataset()
    place.standin.faults.append(Fault("GET", "/datasets", status=status, times=QUICK_TRIES - 1))
    async with place.scicat() as scicat:
        assert await scicat.dataset(pid)
        place.standin.faults.append(Fault("GET", "/datasets", status=status, times=QUICK_TRIES))
        with pytest.raises(CatalogueFault, match=f"status {status}") as caught:
            await scicat.dataset(pid)
    assert caught.value.retryable
    assert place.standin.faults == []


@pytest.mark.parametrize("status", [400, 405, 409, 412, 413, 418, 422])
async def test_a_status_that_will_not_pass_is_told_at_once(place: Place, status: int) -> None:
    pid = await place.dataset()
    place.standin.faults.append(Fault("GET", "/datasets", status=status, times=9))
    async with place.scicat() as scicat:
        with pytest.raises(CatalogueFault, match=f"status {status}") as caught:
            await scicat.dataset(pid)
    assert not caught.value.retryable
    assert place.line.count("GET", "/datasets") == 1


@pytest.mark.parametrize(
    "error", [httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadTimeout, httpx.RemoteProtocolError]
)
async def test_a_line_that_breaks_is_tried_again_and_the_message_says_where_and_what(
    place: Place, error: type[httpx.TransportError]
) -> None:
    pid = await place.dataset()
    async with place.scicat() as scicat:
        place.line.breaks += [Break("GET", "/datasets", error, done=False) for _ in range(QUICK_TRIES - 1)]
        assert await scicat.dataset(pid)
        place.line.breaks += [Break("GET", "/datasets", error, done=False) for _ in range(QUICK_TRIES)]
        with pytest.raises(CatalogueFault, match="http://scicat:3000") as caught:
            await scicat.dataset(pid)
    assert error.__name__ in str(caught.value.found)
    assert caught.value.retryable


# --- answers ----------------------------------------------------------------------------------------------------------

SHAPES = {
    "message": (b'{"message": "the cause", "error": "Bad", "statusCode": 400}', "the cause"),
    "messages": (b'{"message": ["one cause", "another"], "statusCode": 400}', "one cause; another"),
    "job code": (b'{"status": 400, "message": "the cause", "error": {"a": 1}}', "the cause"),
    "error only": (b'{"error": "the cause"}', "the cause"),
    "bare string": (b'"Internal server error"', "Internal server error"),
    "html": (b"<html><h1>the cause</h1></html>", "<html><h1>the cause</h1></html>"),
    "nothing": (b"", "status 400"),
    "other types": (b'{"message": [{"a": 1}, null]}', "status 400"),
    "no unicode": (b'{"message": "\\ud800 the cause"}', "the cause"),
    "bad utf-8": (b"\xff\xfe the cause", "the cause"),
    "a number": (b"7", "7"),
}


@pytest.mark.parametrize(("body", "said"), SHAPES.values(), ids=SHAPES.keys())
async def test_an_error_body_of_any_shape_is_said_in_words(body: bytes, said: str) -> None:
    async with answering((400, body)) as scicat:
        with pytest.raises(CatalogueFault) as caught:
            await scicat.dataset("a/b")
    assert said in str(caught.value.found)
    caught.value.one_line().encode()


async def test_a_redirect_is_not_followed_and_points_to_the_address(place: Place) -> None:
    there = httpx.Response(302, headers={"Location": "http://elsewhere/login"})
    async with answering(there) as scicat:
        with pytest.raises(CatalogueFault, match=r"check scicat\.url") as caught:
            await scicat.dataset("a/b")
    assert not caught.value.retryable


async def test_an_answer_too_large_is_refused_while_it_comes() -> None:
    async with answering((200, b'["' + b"a" * 2000 + b'"]'), max_answer_bytes=1000) as scicat:
        with pytest.raises(CatalogueFault, match=r"raise scicat\.max_answer_bytes") as caught:
            await scicat.dataset("a/b")
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "body",
    [
        b"<html>sign in</html>",
        b'{"pid": "a/b", "ownerGro',
        b"",
        b"   ",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"a": ' + b"1" * 5000 + b"}",
    ],
    ids=["html", "cut", "empty", "blank", "deep", "bad utf-8", "endless number"],
)
async def test_an_answer_of_200_that_is_no_json_is_a_fault_that_may_pass(body: bytes) -> None:
    calls: list[Callable[[SciCat], Awaitable[Any]]] = [
        lambda scicat: scicat.dataset("a/b"),
        lambda scicat: scicat.job("j"),
        lambda scicat: scicat.datablocks("a/b"),
        lambda scicat: scicat.patch_lifecycle("a/b", {"archivable": False}),
    ]
    for call in calls:
        async with answering((200, body)) as scicat:
            with pytest.raises(CatalogueFault) as caught:
                await call(scicat)
        assert caught.value.retryable


async def test_a_url_with_a_path_is_kept_before_every_call() -> None:
    asked: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode())
        return httpx.Response(200, json={"pid": "a/b"})

    settings = scicat_settings(url="https://site.example/scicat/", token="t")
    async with SciCat(settings, transport=httpx.MockTransport(answer)) as scicat:
        await scicat.dataset("a/b")
    assert asked == ["/scicat/api/v4/datasets/a%2Fb"]


async def test_healthy_says_whether_scicat_and_its_database_are_up(place: Place) -> None:
    async with place.scicat() as scicat:
        assert await scicat.healthy()
        place.standin.faults.append(Fault("GET", "/health", status=503))
        assert not await scicat.healthy()
        place.line.breaks.append(Break("GET", "/health", httpx.ConnectError))
        assert not await scicat.healthy()


# --- secrets ----------------------------------------------------------------------------------------------------------

CANARY = "canary-t0ken." + "x" * 300 + ".end"


def echo(shape: str, status: int, more: str) -> httpx.MockTransport:
    """A server that answers with all that it was sent and more, in one of the shapes of errors."""

    def answer(request: httpx.Request) -> httpx.Response:
        sent = f"{request.headers.get('authorization')} {request.content.decode('utf-8', 'replace')} {more}"
        if shape == "login" and request.url.path.endswith("/login"):
            return httpx.Response(201, json={"access_token": CANARY, "expires_in": 3600})
        if shape == "html":
            return httpx.Response(status, content=f"<p>{sent}</p>".encode())
        if shape == "string":
            return httpx.Response(status, json=sent)
        return httpx.Response(status, json={"message": [sent, sent], "statusCode": status})

    return httpx.MockTransport(answer)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 409, 500])
@pytest.mark.parametrize("shape", ["object", "string", "html", "login"])
@pytest.mark.parametrize("account", ["token", "password"])
async def test_p8_no_secret_is_in_any_message_even_if_a_server_echoes_it(
    shape: str, status: int, account: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = scicat_settings(**({"token": CANARY} if account == "token" else {}))
    known = f"{PASSWORD} {quote(PASSWORD, safe='')}" if account == "password" else CANARY
    calls: list[Callable[[SciCat], Awaitable[Any]]] = [
        lambda s: s.whoami(),
        lambda s: s.job("j"),
        lambda s: s.dataset("a/b"),
        lambda s: s.create_job("archive", ["a/b"], owner_group="p1"),
        lambda s: s.update_job("j", payloads.job_update("a", "b")),
        lambda s: s.patch_lifecycle("a/b", {"archivable": False}),
        lambda s: s.create_datablock(datablock("a/b")),
        lambda s: s.datablocks("a/b"),
    ]
    seen = 0
    for call in calls:
        async with SciCat(settings, transport=echo(shape, status, known)) as scicat:
            try:
                await call(scicat)
            except ArchiverError as error:
                seen += 1
                said = "".join(traceback.format_exception(error)) + error.lines() + repr(vars(error))
                for secret in ("canary", "xxxxxxxx"):
                    assert secret not in said
    assert seen
    assert "canary" not in caplog.text


async def test_p8_a_token_that_was_renewed_is_still_a_secret(place: Place) -> None:
    async with place.scicat() as scicat:
        await scicat.whoami()
        (old,) = place.standin.tokens
        place.standin.expire_tokens()
        await scicat.whoami()
        place.standin.faults.append(Fault("GET", "/datasets", status=400, body={"message": f"was {old}"}))
        with pytest.raises(CatalogueFault) as caught:
            await scicat.dataset("a/b")
    assert old not in caught.value.lines()
    assert "***" in caught.value.lines()


async def test_a_pid_is_one_segment_however_it_looks(place: Place) -> None:
    for pid in ("a/b", "..", ".", "a b?c#d%2Fe", "ä\u0308", "a//b", "x/../y"):
        await place.dataset(pid=pid)
        async with place.scicat() as scicat:
            dataset = await scicat.dataset(pid)
        assert dataset is not None
        assert dataset.pid == pid
    assert (await place.ask("GET", at("a/b"))).status_code == 200


async def test_p5_a_write_on_its_way_is_waited_for_by_a_cancel_and_a_reading_is_not(place: Place) -> None:
    pid = await place.dataset()
    arrived, go = asyncio.Event(), asyncio.Event()
    through = place.line.handle_async_request

    async def slow(request: httpx.Request) -> httpx.Response:
        if "datasets" in request.url.path:
            arrived.set()
            await go.wait()
        return await through(request)

    place.line.handle_async_request = slow  # type: ignore[method-assign]
    async with place.scicat() as scicat:
        reading = asyncio.ensure_future(scicat.dataset(pid))
        await arrived.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        arrived.clear()
        writing = asyncio.ensure_future(scicat.patch_lifecycle(pid, {"archiveStatusMessage": "started"}))
        await arrived.wait()
        writing.cancel()
        await asyncio.sleep(0.05)
        assert not writing.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await writing
    dataset = place.standin.store.get("datasets", pid)
    assert dataset is not None
    assert dataset["datasetlifecycle"]["archiveStatusMessage"] == "started"
