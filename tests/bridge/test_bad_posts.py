"""Bodies that are malformed, huge, slow or unauthorised: a clear 4xx each, and a bridge that goes on."""

from __future__ import annotations

import asyncio
import base64
import json
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bridge.edge import BEARER, PASSWORD, TOKEN, USER, Bridge, is_problem
from tests.pipeline.system import System

GOOD = b'{"id": "7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11", "type": "archive"}'


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"id": NaN',
        b"\xff\xfe\x00",
        b'{"id": "\xff"}',
        b"[" * 100_000,
        GOOD + b"}",
        b'{"id": "\\ud800"}',
        json.dumps({"id": str(uuid4())}).encode("utf-16"),
    ],
    ids=lambda body: repr(body[:12]),
)
async def test_what_is_no_json_is_a_400_that_shows_what_is_expected(bridge: Bridge, body: bytes) -> None:
    told = is_problem(await bridge.http.post("/api/v1/jobs", content=body), 400, '"expected"', '"found"', '"next"')
    assert told["type"] == "urn:archiver:BadRequest"


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "id",
        7,
        {},
        {"type": "archive"},
        {"id": None},
        {"id": 7},
        {"id": ["7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11"]},
        {"id": "../../etc/passwd"},
        {"id": "{7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11}"},
        {"id": "7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11\n"},
        {"id": "7b7e4bd21c394f3d9a581e0f9e3b5a11"},
        {"id": "7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11", "type": 7},
        {"id": "7b7e4bd2-1c39-4f3d-9a58-1e0f9e3b5a11", "type": {"$ne": "x"}},
    ],
    ids=repr,
)
async def test_json_that_names_no_job_is_a_422(bridge: Bridge, body: object) -> None:
    answer = await bridge.http.post("/api/v1/jobs", content=json.dumps(body))
    is_problem(answer, 422, "names no job", "UUID")


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "_id", "type", "x"]), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
async def test_no_body_whatever_is_more_than_a_4xx(bridge: Bridge, body: bytes) -> None:
    answer = await bridge.http.post("/api/v1/jobs", content=body)
    assert answer.status_code in (400, 422), (body, answer.text)
    assert answer.json()["request_id"]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        basic(f"{USER}:wrong"),
        basic(f"other:{PASSWORD}"),
        basic(f"{USER}{PASSWORD}"),
        "Bearer " + basic(f"{USER}:{PASSWORD}").removeprefix("Basic "),
        "Basic !!!",
        "Digest x",
    ],
    ids=range(13),
)
async def test_who_is_not_known_gets_a_401_and_scicat_is_not_asked(system: System, bridge: Bridge, header: str) -> None:
    calls = len(system.standin.log)
    answer = await bridge.http.post("/api/v1/jobs", content=GOOD, headers={"Authorization": header})
    is_problem(answer, 401, "Bearer")
    assert "Bearer" in answer.headers["www-authenticate"]
    assert len(system.standin.log) == calls


async def raw(bridge: Bridge, head: str, body: bytes = b"", *, authorised: bool = True) -> bytes:
    """What the bridge says to these bytes, until it hangs up; the sending end stays open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    try:
        lines = [
            "POST /api/v1/jobs HTTP/1.1",
            "Host: bridge",
            *([f"Authorization: {BEARER}"] if authorised else []),
            head,
        ]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


@pytest.mark.parametrize("authorised", [True, False])
async def test_a_body_announced_as_huge_is_refused_before_it_is_sent(bridge: Bridge, authorised: bool) -> None:
    said = await raw(bridge, "Content-Length: 99999999999", authorised=authorised)
    assert said.startswith(b"HTTP/1.1 413" if authorised else b"HTTP/1.1 401")


async def test_a_huge_body_of_no_announced_length_is_refused_once_it_passes_the_limit(bridge: Bridge) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    said = await raw(bridge, "Transfer-Encoding: chunked", chunk * 80)
    assert said.startswith(b"HTTP/1.1 413")
    assert b"bridge.max_body_bytes" in said


async def test_a_whole_job_of_ten_thousand_datasets_is_not_too_large(bridge: Bridge) -> None:
    listed = [{"pid": f"20.500.12345/{uuid4()}", "files": []} for _ in range(10_000)]
    job = {"id": str(uuid4()), "type": "archive", "jobParams": {"datasetList": listed}}
    answer = await bridge.http.post("/api/v1/jobs", content=json.dumps(job, indent=2))
    is_problem(answer, 404)


async def test_slow_bodies_are_given_up_and_others_are_answered_meanwhile(system: System) -> None:
    bridge = Bridge(system, body_seconds=1.0)
    try:
        bridge.start()
        slow = [asyncio.create_task(raw(bridge, "Content-Length: 70", GOOD[:20])) for _ in range(20)]
        assert (await bridge.http.get("/health/live")).status_code == 200
        is_problem(await bridge.post({"id": str(uuid4())}), 404)
        for said in await asyncio.gather(*slow):
            assert said.startswith(b"HTTP/1.1 408")
            assert b"did not come in time" in said
    finally:
        await bridge.stop()


async def test_a_caller_who_hangs_up_in_the_middle_harms_nobody(bridge: Bridge) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", bridge.port)
    head = f"POST /api/v1/jobs HTTP/1.1\r\nHost: b\r\nAuthorization: {BEARER}\r\nContent-Length: 70\r\n\r\n"
    writer.write(head.encode() + GOOD[:20])
    await writer.drain()
    writer.transport.abort()
    is_problem(await bridge.post({"id": str(uuid4())}), 404)
    assert "Traceback" not in bridge.log


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/api/v1/jobs", 405), ("POST", "/api/v1/jobs/", 404), ("GET", "/", 404), ("POST", "/api/v2/jobs", 404)],
)
async def test_other_addresses_and_methods_are_problems_too(
    bridge: Bridge, method: str, path: str, status: int
) -> None:
    is_problem(await bridge.http.request(method, path), status)


@pytest.mark.parametrize(
    ("given_id", "kept"),
    [
        ("abc-123", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("a b", False),
        ("a\tb", False),
        ("-x", False),
        ("", False),
    ],
)
async def test_a_sane_request_id_is_kept_and_any_other_is_replaced(bridge: Bridge, given_id: str, kept: bool) -> None:
    answer = await bridge.http.post("/api/v1/jobs", content=b"{", headers={"X-Request-ID": given_id})
    said = is_problem(answer, 400)["request_id"]
    assert (said == given_id) is kept
    assert f"request={said}" in bridge.log


async def test_p8_no_credential_comes_into_the_log_or_an_answer(bridge: Bridge) -> None:
    wrong = basic(f"{USER}:{PASSWORD}x")
    answers = [
        await bridge.http.post("/api/v1/jobs", content=GOOD, headers={"Authorization": wrong}),
        await bridge.http.post(f"/api/v1/jobs/{TOKEN[:0]}?token={TOKEN}", content=GOOD),
        await bridge.http.post("/api/v1/jobs", content=b'{"id": "' + TOKEN.encode() + b'"}'),
        await bridge.http.get("/openapi.json"),
    ]
    texts = [bridge.log, *(answer.text for answer in answers)]
    for secret in (TOKEN, PASSWORD, wrong.removeprefix("Basic ")):
        assert not any(secret in text for text in texts)


async def test_the_openapi_document_tells_of_the_post_its_errors_and_who_may_call(bridge: Bridge) -> None:
    async with httpx.AsyncClient(base_url=bridge.url, trust_env=False) as anybody:
        document = (await anybody.get("/openapi.json")).raise_for_status().json()
    post = document["paths"]["/api/v1/jobs"]["post"]
    assert post["security"] == [{"bearer": []}, {"basic": []}]
    assert set(post["responses"]) == {"201", "202", "400", "401", "404", "408", "413", "422", "503"}
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["id"]
    assert set(document["paths"]) == {"/api/v1/jobs", "/health/live", "/health/ready"}
