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
from archiver.retrieval.result import links, places
from tests.pipeline.retrieving import in_script
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
        given: dict[str, Any] = {"at": "told/", "life_seconds": 7 * DAY, "room": 100_000, "run": "r", "now": NOW, **how}
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


LONG = "/".join(["\x01ü" * 60] * 15)


@pytest.mark.parametrize("pid", [PID, "20.500.12345/" + "p" * 200])
@pytest.mark.parametrize("files", [1, 2, 3, 100, 1200])
@pytest.mark.parametrize("datasets", [1, 100])
@pytest.mark.parametrize("name", ["run", LONG])
def test_the_whole_result_object_stays_below_4_kb_and_leads_to_every_file(
    store: Store, pid: str, files: int, datasets: int, name: str
) -> None:
    if files * datasets > 1200:
        files = 3
    wanted = [
        (f"{pid}{k}", [store.deliver(f"{pid}{k}", f"{name}/{n:04}", b"%d" % n) for n in range(files)])
        for k in range(datasets)
    ]
    given = store.links(*wanted, room=payloads.ROOM_FOR_LINKS)
    bad = [m.DatasetOutcome(pid=f"{pid}x{k}", outcome="failed", message="m" * 400) for k in range(datasets)]
    request = m.FinishJobRequest(
        job_id="j",
        total=2 * datasets,
        counts=m.Counts(retrieved=datasets, system_errors=datasets),
        outcomes=[*bad, *(m.DatasetOutcome(pid=one, outcome="retrieved", message="m" * 400) for one, _ in wanted)],
        stopped=m.StopRequest(reason="r" * 5000, who="w" * 5000),
    )
    result = payloads.job_result("s" * 1000, request, links=True) | given
    assert len(json.dumps(result)) < 4096
    assert result["datasets"][0]["outcome"] == "failed"
    assert len(result["datasets"]) + result["notShown"] == 2 * datasets
    keys = [item.key for _, items in wanted for item in items]
    if len(given["result"]) > 1 or given["result"][0]["name"] != "download.sh":
        assert [one["url"] for one in given["result"]] == [store.keys[key] for key in keys]
        return
    (entry,) = given["result"]
    script = store.data(entry["url"])
    assert entry["datasetId"] == (wanted[0][0] if datasets == 1 else "")
    assert entry["size"] == len(script)
    assert [url for _, _, url in in_script(script.decode())] == [store.keys[key] for key in keys]


def test_many_files_come_by_the_one_link(store: Store, tmp_path: Path) -> None:
    items = [store.deliver(PID, f"run/{n:04}", b"%d" % n) for n in range(60)]
    given = store.links((PID, items), room=payloads.ROOM_FOR_LINKS)
    (entry,) = given["result"]
    for text in (store.data(entry["url"]).decode(), given["downloadScript"]):
        (here := tmp_path / str(len(text))).mkdir()
        folder = Folder(here)
        code, said = folder.run(text)
        assert code == 0, said
        assert folder.files() == {item.name: b"%d" % n for n, item in enumerate(items)}


def test_nothing_delivered_is_nothing_given(store: Store) -> None:
    given = store.links((PID, []), (OTHER, []))
    assert given == {"result": [], "run": "r", "validUntil": "2026-12-01T12:00:00Z"}


def test_p6_the_same_files_given_twice_are_the_same_result(store: Store) -> None:
    items = [store.deliver(PID, f"{n}", b"%d" % n) for n in range(4)]
    one, other = (store.links((PID, items)) for _ in range(2))
    assert one["result"] == other["result"]
    assert one.keys() == other.keys()


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

    links([(PID, read)], presign=store.presign, put=put, at="t/", life_seconds=DAY, room=0, run="r", now=NOW)
    assert len(sizes["download.sh"]) > 5
    assert max(sizes["download.sh"]) < 300_000


def test_datasets_in_directories_are_told_by_their_directories(store: Store) -> None:
    given = places([(PID, 10)], lambda pid: f"/shared/ü x/{pid}", above="/shared/ü x", room=500)
    name = f"/shared/ü x/{PID}"
    url = f"file:///shared/%C3%BC%20x/{PID}"
    assert given["result"] == [{"datasetId": PID, "name": name, "size": 10, "archiveId": "", "url": url}]


@pytest.mark.parametrize("count", [5, 1000])
def test_more_datasets_in_directories_than_can_be_shown_are_told_by_the_directory_above(count: int) -> None:
    many = [(f"{PID}{n}", 10) for n in range(count)]
    given = places(many, lambda pid: f"/shared/{pid}", above="/shared", room=500)
    url = "file:///shared"
    assert given["result"] == [{"datasetId": "", "name": "/shared", "size": 0, "archiveId": "", "url": url}]


def test_the_links_stand_in_a_result_object_behind_its_summary(store: Store) -> None:
    given = store.links((PID, [store.deliver(PID, "x", b"x")]))
    request = m.FinishJobRequest(job_id="j", total=1, counts=m.Counts(retrieved=1), outcomes=[])
    result = payloads.job_result("said", request) | given
    assert next(iter(result)) == "summary"
    assert {"result", "downloadScript"} <= set(result)


@pytest.mark.parametrize("wrong", [{"name": "../x"}, {"sha256": "no"}])
@pytest.mark.parametrize("room", [0, 100_000])
def test_p8_no_error_and_no_log_line_tells_a_url(
    store: Store, wrong: dict[str, str], room: int, caplog: pytest.LogCaptureFixture
) -> None:
    good = store.deliver(PID, "x", b"x")
    fields = {"name": "y", "key": good.key, "size": 1, "sha256": good.sha256, "archive_id": "", **wrong}
    with caplog.at_level(logging.DEBUG), pytest.raises(Exception) as error:
        store.links((PID, [good, Delivered(**fields)]), room=room)
    assert "canary" not in f"{error.value!r}{error.value}{caplog.text}"
