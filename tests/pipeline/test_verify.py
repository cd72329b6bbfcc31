"""``archiver verify`` and ``archiver ls``: what lies on the LTS is read again, or listed; nothing is changed by either."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from archiver.settings import S3Settings
from archiver.storage.lts import MARKER
from cli import exits
from cli.ls import ls
from cli.verify import CODES, lines, verify
from tests.pipeline.moments import noise, until
from tests.pipeline.system import System

FILES = {"a.txt": b"text", "b.bin": noise(2**20, 1), "c.bin": noise(2**20, 2)}


@pytest.fixture(scope="module")
async def served(
    tmp_path_factory: pytest.TempPathFactory, temporal_address: str, s3: S3Settings
) -> AsyncIterator[System]:
    """Datasets of two datablocks."""
    two = {"datablock": {"target_bytes": 2**20 + 2**10}}
    made = System(tmp_path_factory.mktemp("system"), temporal_address, s3, two)
    try:
        await made.start()
        async with made.workers():
            yield made
    finally:
        await made.stop()


def everything(system: System, pid: str) -> dict[str, tuple[bytes, int]]:
    """The dataset's files on the LTS, with their times."""
    folder = system.lts / pid
    return {
        str(one): (one.read_bytes(), one.stat().st_mtime_ns)
        for one in folder.rglob("*")
        if one.is_file() and one.name != "events.jsonl"
    }


def last_event(system: System, pid: str) -> dict[str, Any]:
    """The end of the dataset's receipt."""
    return dict(json.loads((system.lts / pid / "events.jsonl").read_text().splitlines()[-1]))


def spoil(path: Path, at: int) -> None:
    """Turn one bit over."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


async def test_what_is_as_it_was_is_good_and_nothing_is_touched(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    before = everything(served, pid), await served.record(pid)
    done = await verify(served.client, served.settings, pid)
    assert (done.outcome, done.datablocks, done.files, done.catalogue) == ("good", 2, 3, "same")
    assert "the files are those of SciCat's origdatablocks" in lines(done)
    assert done.size_bytes == sum(map(len, FILES.values()))
    assert (everything(served, pid), await served.record(pid)) == before
    assert CODES[done.outcome] == 0
    event = last_event(served, pid)
    assert (event["type"], event["outcome"], event["object"]) == ("fixity check", "success", pid)
    assert event["detail"] == {
        "outcome": "good",
        "datablocks": 2,
        "files": 3,
        "bytes": done.size_bytes,
        "level": done.level,
        "catalogue": "same",
    }


@pytest.mark.parametrize("change", ["a file more", "a file less", "another size", "another name"])
async def test_p4_an_archive_that_is_whole_but_not_what_the_catalogue_lists_is_bad(served: System, change: str) -> None:
    pid = await served.dataset(FILES, files_per_block=1)
    await served.archive(pid)
    store = served.standin.store
    first = min(store.all("origdatablocks", pid), key=lambda block: str(block["dataFileList"][0]["path"]))
    entry, (path, data) = dict(first["dataFileList"][0]), min(FILES.items())
    assert entry["path"] == path
    if change == "a file more":
        new = {**first, "_id": f"more-{pid}", "dataFileList": [served.entry("more", b"")]}
        assert store.insert("origdatablocks", new["_id"], new, parent=pid)
    else:
        store.delete("origdatablocks", first["_id"])
        changed = {"another size": {"size": len(data) + 1}, "another name": {"path": "A.txt"}}.get(change)
        if changed:
            new = {**first, "_id": f"new-{pid}", "dataFileList": [{**entry, **changed}]}
            assert store.insert("origdatablocks", new["_id"], new, parent=pid)
    done = await verify(served.client, served.settings, pid)
    assert (done.outcome, done.bad, done.unknown, done.catalogue) == ("bad", [], [], "differs")
    assert "list other files than were archived" in done.messages[0]
    assert "SciCat's records are NOT those of the archive" in lines(done)


@pytest.mark.parametrize("lost", ["the dataset", "its datablocks", "one datablock"])
async def test_an_archive_that_is_whole_but_has_no_record_in_scicat_is_told_as_both(served: System, lost: str) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    store = served.standin.store
    if lost == "the dataset":
        (await served.http.delete(f"/api/v3/datasets/{pid.replace('/', '%2F')}")).raise_for_status()
    else:
        for block in store.all("datablocks", pid)[: 1 if lost == "one datablock" else None]:
            store.delete("datablocks", block["_id"])
    done = await verify(served.client, served.settings, pid)
    assert (done.outcome, done.bad, done.unknown, done.catalogue) == ("bad", [], [], "differs")
    assert CODES[done.outcome] == 8
    said = lines(done)
    assert f"{pid}  good on the LTS, BAD in SciCat  2 datablocks read" in said
    assert ("SciCat has no dataset" if lost == "the dataset" else "archiver rebuild  registers what is missing") in said


@pytest.mark.parametrize("name", ["2.tar.gz", "2.manifest.jsonl.gz"])
async def test_p3_a_flipped_bit_is_bad_and_the_other_datablocks_are_read_all_the_same(
    served: System, name: str
) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    spoil(served.lts / pid / "data" / name, 60)
    before = everything(served, pid), await served.record(pid)
    done = await verify(served.client, served.settings, pid)
    assert (done.outcome, done.bad, done.unknown) == ("bad", [2], [])
    assert "datablock 2" in done.messages[0]
    assert "made anew;" not in done.messages[0]
    assert "nothing was changed" in done.messages[0], "verify sets nothing aside and makes nothing anew"
    event = last_event(served, pid)
    assert (event["outcome"], event["detail"]["outcome"]) == ("failure", "bad")
    assert "datablock 2" in event["event"]
    assert (everything(served, pid), await served.record(pid)) == before, "neither quarantined nor told"
    assert (CODES[done.outcome], "BAD" in lines(done)) == (8, True)


@pytest.mark.parametrize("name", ["bagit.txt", "bag-info.txt", "dataset.json", "tagmanifest-sha256.txt"])
async def test_p3_a_flipped_bit_in_what_no_retrieval_reads_is_bad_too(served: System, name: str) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    spoil(served.lts / pid / name, 10)
    done = await verify(served.client, served.settings, pid)
    assert (done.outcome, done.bad, done.unknown) == ("bad", [], [])
    assert (done.datablocks, len(done.messages)) == (2, 1)
    assert pid in done.messages[0]


@pytest.mark.parametrize("name", ["1.tar.gz", "2.tar.gz", "1.manifest.jsonl.gz"])
async def test_a_file_that_is_missing_is_bad_within_seconds_and_the_others_are_read(served: System, name: str) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    (served.lts / pid / "data" / name).rename(served.folder / f"gone-{pid.partition('/')[2]}")
    started = time.monotonic()
    done = await verify(served.client, served.settings, pid)
    assert time.monotonic() - started < 30
    assert (done.outcome, done.bad, done.unknown, done.datablocks) == ("bad", [int(name[0])], [], 2)
    assert f"data/{name} of dataset {pid} is missing on the LTS" in done.messages[0]
    assert CODES[done.outcome] == 8


async def test_what_cannot_be_read_could_not_be_checked_and_is_told_while_it_is_tried(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    said: list[str] = []
    marker = served.lts / MARKER
    hidden = marker.rename(served.folder / "marker")
    running = asyncio.create_task(verify(served.client, served.settings, pid, said.append))
    try:
        await until(lambda: any("try 2 of reading" in line for line in said))
    finally:
        hidden.rename(marker)
    assert (await running).outcome == "good"


async def test_what_was_never_archived_is_not_found(served: System) -> None:
    pid = await served.dataset(FILES)
    for one, found in ((pid, "SciCat says"), ("20.500.12345/nope", "SciCat knows no such dataset")):
        with pytest.raises(exits.NotFound) as error:
            await verify(served.client, served.settings, one)
        assert found in str(error.value.found)
        assert exits.exit_code(error.value) == 5


async def test_a_dataset_that_scicat_calls_archived_and_the_lts_does_not_have_is_bad(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    (served.lts / pid).rename(served.folder / f"lost-{pid.partition('/')[2]}")
    done = await verify(served.client, served.settings, pid)
    assert done.outcome == "bad"
    assert "SciCat says datasetOnArchiveDisk, and the LTS has no bag of it" in done.messages[0]


async def test_ls_shows_the_catalogue_the_lts_and_the_manifests_side_by_side(served: System) -> None:
    pid = await served.dataset(FILES)
    await served.archive(pid)
    text, data, code = await ls(served.settings, pid, files=True)
    assert (code, data["problems"]) == (0, [])
    listed = {one["path"]: one["size"] for block in data["datablocks"] for one in block["listed"]}
    assert listed == {path: len(content) for path, content in FILES.items()}
    for block in data["datablocks"]:
        assert block["scicat_bytes"] == block["lts_bytes"] == block["packed_bytes"]
    assert "datasetOnArchiveDisk, retrievable" in text
    assert hashlib.sha256(FILES["b.bin"]).hexdigest() in text


async def test_ls_names_what_does_not_agree(served: System) -> None:
    pid = await served.dataset(FILES)
    _, data, code = await ls(served.settings, pid, files=False)
    assert (code, data["datablocks"]) == (0, [])
    await served.archive(pid)
    first, second = sorted(served.datablocks(pid), key=lambda block: block["archiveId"])
    served.standin.store.delete("datablocks", first["_id"])
    block = served.lts / pid / "data" / "2.tar.gz"
    block.chmod(0o644)
    block.write_bytes(block.read_bytes()[:-1])
    _, data, code = await ls(served.settings, pid, files=False)
    assert code == 8
    assert len(data["problems"]) == 2
    assert f"{first['archiveId']} lies on the LTS, without a record in SciCat" in data["problems"]
    packed = second["packedSize"]
    sizes = f"{packed} B in SciCat, {packed - 1} B on the LTS, {packed} B in its manifest"
    assert f"{second['archiveId']}: {sizes}" in data["problems"]


async def test_ls_of_an_unknown_dataset_is_not_found(served: System) -> None:
    with pytest.raises(exits.NotFound):
        await ls(served.settings, "20.500.12345/none", files=False)
