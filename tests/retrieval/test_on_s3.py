"""Links and script at a real S3 server: what was delivered there comes whole, and a link that is over says so."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from archiver.errors import TargetFault
from archiver.retrieval.delivered import Delivered
from archiver.retrieval.result import links
from archiver.settings import RetrievalSettings, S3Settings
from archiver.storage.objects import PUT_PART_BYTES, Bucket
from archiver.storage.retrieval_bucket import RetrievalBucket
from tests.pipeline.moments import until
from tests.retrieval.test_script import SHELLS, Folder
from tests.storage.delivering import HOSTILE, PID, deliver

FILES = {name: name.encode() * n for n, name in enumerate(HOSTILE)} | {"large": bytes(3_000_000)}


@pytest.fixture
def target(s3: S3Settings) -> RetrievalBucket:
    """A retrieval bucket that holds the files of a dataset."""
    settings = RetrievalSettings(bucket=f"test-{secrets.token_hex(6)}", prefix="for/users/")
    bucket = Bucket(settings.bucket, s3, TargetFault)
    bucket.ensure()
    target = RetrievalBucket(bucket, settings)
    deliver(target, sorted(FILES.items(), key=lambda item: item[0].encode()))
    return target


def given(target: RetrievalBucket, *, seconds: int = 3600, **how: Any) -> dict[str, Any]:
    """What a requester is given of them."""
    items = [
        Delivered(name, target.key(PID, name), len(data), hashlib.sha256(data).hexdigest(), f"{PID}/data/1.tar.gz")
        for name, data in FILES.items()
    ]
    return links(
        [(PID, partial(iter, items))],
        presign=lambda key: target.presign(key, seconds),
        put=target.bucket.put_stream,
        at=target.dataset(PID) + "told/",
        life_seconds=seconds,
        run="r",
        **{"room": 100_000, **how},
    )


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("room", [100_000, 0])
def test_what_was_delivered_comes_whole_by_the_script(
    target: RetrievalBucket, tmp_path: Path, shell: str, room: int
) -> None:
    folder = Folder(tmp_path, shell)
    told = given(target, room=room)
    if room == 0:
        (entry,) = told["result"]
        told["downloadScript"] = httpx.get(entry["url"], trust_env=False).raise_for_status().text
    code, said = folder.run(told["downloadScript"])
    assert code == 0, said
    assert folder.files(PID) == FILES


def test_each_link_gives_its_file_and_is_as_others_read_it(target: RetrievalBucket) -> None:
    entries = given(target)["result"]
    for entry in entries:
        answer = httpx.get(entry["url"], trust_env=False)
        assert (answer.status_code, answer.content) == (200, FILES[entry["name"]])
        assert f"/{target.bucket.name}/for/users/{PID}/" in entry["url"], "path style, the raw pid first"
        assert re.search(r"[?&]X-Amz-Date=\d{8}T\d{6}Z&", entry["url"])
        assert "X-Amz-Expires=3600" in entry["url"]


def test_a_script_that_is_uploaded_in_parts_is_made_from_what_lies_in_the_bucket(
    target: RetrievalBucket,
) -> None:
    count, key = 20_000, target.dataset(PID) + "delivered"
    target.bucket.put(key, b"read while the script is written")

    def read() -> Iterator[Delivered]:
        for n in range(count):
            if n % 1000 == 0:
                assert target.bucket.get(key)
            yield Delivered(f"run/{n:06}.bin", target.key(PID, f"run/{n:06}.bin"), n, "0" * 64, f"{PID}/data/1.tar.gz")

    told = links(
        [(PID, read)],
        presign=lambda key: target.presign(key, 3600),
        put=target.bucket.put_stream,
        at=target.dataset(PID) + "told/",
        life_seconds=3600,
        run="r",
        room=100_000,
    )
    (entry,) = told["result"]
    script = httpx.get(entry["url"], trust_env=False).raise_for_status().text
    assert len(script) == entry["size"] > PUT_PART_BYTES
    assert [int(line.split()[2]) for line in script.splitlines() if line.startswith("get ")] == [*range(count)]


async def test_a_link_whose_time_is_over_is_told_with_what_to_do(target: RetrievalBucket, tmp_path: Path) -> None:
    short = given(target, seconds=1)
    async with httpx.AsyncClient(trust_env=False) as http:

        async def over() -> bool:
            return (await http.get(short["result"][0]["url"])).status_code == 403

        await until(over)
    folder = Folder(tmp_path)
    code, said = folder.run(short["downloadScript"])
    assert (code, folder.files(PID)) == (1, {})
    assert f"links work until {short['validUntil']}); next: submit a new retrieve job" in said
