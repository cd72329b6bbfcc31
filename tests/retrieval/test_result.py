"""What a requester is given: links and a script, bounded, and the two say the same."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from archiver import model as m
from archiver.catalogue import payloads
from archiver.retrieval.delivered import Delivered
from archiver.retrieval.result import MAX_SHOWN_BYTES, links, places
from tests.retrieval.shelf import Shelf, shelf
from tests.retrieval.test_script import Folder, packed

PID, OTHER = "20.500.12345/demo-1", "20.500.12345/demo-2"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
DAY = 86400


@pytest.fixture
def server() -> Iterator[Shelf]:
    with shelf() as found:
        yield found


class Store:
    """A retrieval bucket on a shelf: keys, presigned URLs, and what was put there."""

    def __init__(self, server: Shelf) -> None:
        self.server = server
        self.keys: dict[str, str] = {}
        self.signed = 0

    def deliver(self, pid: str, name: str, data: bytes, *, unpack: bool = False) -> Delivered:
        key = f"{pid}/{name}"
        self.put(key, [data])
        return Delivered(name, key, len(data), hashlib.sha256(data).hexdigest(), f"{pid}/data/1.tar.gz", unpack)

    def put(self, key: str, chunks: Iterable[bytes]) -> None:
        data = b"".join(chunks)
        if key in self.keys:
            self.server.files[self.path(self.keys[key])] = data
        else:
            self.keys[key] = self.server.put("", data).url

    def presign(self, key: str) -> str:
        self.signed += 1
        return self.keys[key]

    def links(self, *datasets: tuple[str, list[Delivered]], **how: Any) -> dict[str, Any]:
        read = [(pid, partial(iter, items)) for pid, items in datasets]
        given: dict[str, Any] = {"at": "told/", "life_seconds": 7 * DAY, "max_listed": 5, "run": "r", "now": NOW, **how}
        return links(read, presign=self.presign, put=self.put, **given)

    def told(self, name: str) -> str:
        """The URL of what is told beside the data."""
        (key,) = (key for key in self.keys if key.startswith("told/") and key.endswith(f"/{name}"))
        return self.keys[key]

    def data(self, url: str) -> bytes:
        return self.server.files[self.path(url)]

    @staticmethod
    def path(url: str) -> str:
        return re.sub(r"^http://[^/]*|\?.*", "", url)


@pytest.fixture
def store(server: Shelf) -> Store:
    return Store(server)


def test_each_file_is_an_entry_of_exactly_the_fields_that_others_read(store: Store) -> None:
    one, two = store.deliver(PID, "a/x.h5", b"x"), store.deliver(OTHER, "y", b"yy")
    given = store.links((PID, [one]), (OTHER, [two]))
    urls = store.keys
    assert given["result"] == [
        {
            "datasetId": PID,
            "name": "a/x.h5",
            "size": 1,
            "archiveId": f"{PID}/data/1.tar.gz",
            "url": urls[f"{PID}/a/x.h5"],
        },
        {"datasetId": OTHER, "name": "y", "size": 2, "archiveId": f"{OTHER}/data/1.tar.gz", "url": urls[f"{OTHER}/y"]},
    ]
    assert (given["run"], given["validUntil"]) == ("r", "2026-12-01T12:00:00Z")
    assert store.signed == 2, "script and entry have the same link"


def test_the_scripts_files_are_those_of_the_entries(store: Store, tmp_path: Path) -> None:
    block = packed({"in/a": b"a"})
    given = store.links(
        (PID, [store.deliver(PID, "x y", b"x"), store.deliver(PID, "1.tar.gz", block, unpack=True)]),
        (OTHER, [store.deliver(OTHER, "z", b"")]),
    )
    folder = Folder(tmp_path)
    code, said = folder.run(given["downloadScript"])
    assert code == 0, said
    assert folder.files() == {"x y": b"x", "in/a": b"a"}
    assert folder.files(OTHER) == {"z": b""}


@pytest.mark.parametrize("count", [5, 6, 1200])
def test_more_files_than_are_to_be_shown_stand_in_a_list_and_a_script_of_their_own(
    store: Store, tmp_path: Path, count: int
) -> None:
    items = [store.deliver(PID, f"run/{n:04}", b"%d" % n) for n in range(count)]
    given = store.links((PID, items))
    if count == 5:
        assert len(given["result"]) == 5
        assert not [key for key in store.keys if key.startswith("told/")]
        return
    (entry,) = given["result"]
    assert entry == {
        "datasetId": PID,
        "name": "files.jsonl",
        "size": len(store.data(entry["url"])),
        "archiveId": "",
        "url": store.told("files.jsonl"),
    }
    listed = [json.loads(line) for line in store.data(entry["url"]).splitlines()]
    assert [(one["name"], one["sha256"], one["url"]) for one in listed] == [
        (item.name, item.sha256, store.keys[item.key]) for item in items
    ]
    assert len(json.dumps(given)) < 20_000
    folder = Folder(tmp_path)
    if count == 6:
        code, said = folder.run(given["downloadScript"])
        assert code == 0, said
        assert folder.files() == {item.name: b"%d" % n for n, item in enumerate(items)}
    else:
        assert store.data(store.told("download.sh")).count(b"\nget ") == count


def test_few_files_of_very_long_names_stand_in_a_list_too(store: Store) -> None:
    names = [f"{n}/" + "/".join(["\x01" * 250] * 15) for n in range(60)]
    given = store.links((PID, [store.deliver(PID, name, b"") for name in names]), max_listed=1000)
    assert [one["name"] for one in given["result"]] == ["files.jsonl"]
    assert len(json.dumps(given)) < MAX_SHOWN_BYTES


def test_of_several_datasets_the_list_is_nobodys(store: Store) -> None:
    many = [store.deliver(PID, f"{n}", b"") for n in range(6)]
    given = store.links((PID, many), (OTHER, [store.deliver(OTHER, "x", b"")]))
    assert given["result"][0]["datasetId"] == ""
    listed = [json.loads(line)["datasetId"] for line in store.data(given["result"][0]["url"]).splitlines()]
    assert listed == [PID] * 6 + [OTHER]


def test_nothing_delivered_is_nothing_given(store: Store) -> None:
    given = store.links((PID, []), (OTHER, []))
    assert given == {"result": [], "run": "r", "validUntil": "2026-12-01T12:00:00Z"}


def test_p6_the_same_files_given_twice_are_the_same_result(store: Store) -> None:
    items = [store.deliver(PID, f"{n}", b"%d" % n) for n in range(4)]
    assert store.links((PID, items)) == store.links((PID, items))


def test_p6_the_script_of_an_earlier_try_still_does_what_scicat_was_told(store: Store, tmp_path: Path) -> None:
    items = [store.deliver(PID, f"{n}", b"%d" % n) for n in range(9)]
    first = store.links((PID, items))
    sign = store.presign
    store.presign = lambda key: f"{sign(key)}&another=time"  # type: ignore[method-assign]
    assert store.links((PID, items))["downloadScript"] != first["downloadScript"]
    folder = Folder(tmp_path)
    code, said = folder.run(first["downloadScript"])
    assert code == 0, said
    assert len(folder.files()) == 9


def test_p10_a_long_list_is_written_piece_by_piece(store: Store) -> None:
    item = store.deliver(PID, "x", b"x")
    sizes: dict[str, list[int]] = {}

    def put(key: str, chunks: Iterable[bytes]) -> None:
        sizes[key.rpartition("/")[2]] = [len(chunk) for chunk in chunks]
        store.put(key, [b""])

    def read() -> Iterator[Delivered]:
        return (item for _ in range(20_000))

    links([(PID, read)], presign=store.presign, put=put, at="t/", life_seconds=DAY, max_listed=9, run="r", now=NOW)
    for key in ("files.jsonl", "download.sh"):
        assert len(sizes[key]) > 5
        assert max(sizes[key]) < 300_000


def test_datasets_in_directories_are_told_by_their_directories(store: Store) -> None:
    given = places([(PID, 10), (OTHER, 20)], lambda pid: f"/shared/ü x/{pid}", max_listed=1)
    name = f"/shared/ü x/{PID}"
    url = f"file:///shared/%C3%BC%20x/{PID}"
    assert given["result"] == [{"datasetId": PID, "name": name, "size": 10, "archiveId": "", "url": url}]


def test_the_links_stand_in_a_result_object_behind_its_summary(store: Store) -> None:
    given = store.links((PID, [store.deliver(PID, "x", b"x")]))
    request = m.FinishJobRequest(job_id="j", total=1, counts=m.Counts(retrieved=1), outcomes=[])
    result = payloads.job_result("said", request) | given
    assert next(iter(result)) == "summary"
    assert {"result", "downloadScript"} <= set(result)


@pytest.mark.parametrize("wrong", [{"name": "../x"}, {"sha256": "no"}])
@pytest.mark.parametrize("max_listed", [1, 5])
def test_p8_no_error_and_no_log_line_tells_a_url(
    store: Store, wrong: dict[str, str], max_listed: int, caplog: pytest.LogCaptureFixture
) -> None:
    good = store.deliver(PID, "x", b"x")
    fields = {"name": "y", "key": good.key, "size": 1, "sha256": good.sha256, "archive_id": "", **wrong}
    with caplog.at_level(logging.DEBUG), pytest.raises(Exception) as error:
        store.links((PID, [good, Delivered(**fields)]), max_listed=max_listed)
    assert "canary" not in f"{error.value!r}{error.value}{caplog.text}"
