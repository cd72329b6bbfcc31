"""``archiver rebuild --from-lts``: what SciCat lost is registered again from the bags, and what it has stays as it is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w

from archiver.catalogue import payloads
from archiver.catalogue.rebuild import Rebuilding, Rebuilt, differences
from archiver.catalogue.standin.app import Account, Fault, StandIn, StandInSettings
from archiver.errors import (
    CatalogueFault,
    IntegrityMismatch,
    LtsFault,
    LtsMarkerMissing,
    NoBag,
    Refused,
    UnknownDataset,
)
from archiver.settings import ArchiveSettings, S3Settings, load
from archiver.storage.bags import read_bag
from archiver.storage.lts import MARKER
from archiver.storage.objects import Bucket
from archiver.storage.open import open_lts
from cli import rebuild as command
from cli.servers import free_port
from tests.catalogue.archived import FILES, JOB, archived, lts_in
from tests.catalogue.place import PASSWORD, Break, Place, at
from tests.catalogue.test_payloads import DATABLOCK, LIFECYCLE, PATCH, SDK, ask
from tests.operators.inside import Ended, inside
from tests.pipeline.system import StandInServer

PID = "20.500.12345/one"
ODD = "a pid/with spaces?"
ELSEWHERE = {"storageLocation": "elsewhere"}
WRITES = ("POST", "PATCH", "PUT", "DELETE")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of an LTS."""
    lts_in(tmp_path / "lts")
    return tmp_path / "lts"


async def rebuilt(place: Place, root: Path, path: str = PID, *, apply: bool = True) -> Rebuilt:
    """The dataset in this directory, by the domain's own code."""
    async with place.scicat() as scicat:
        work = Rebuilding(scicat, lts_in(root), ArchiveSettings(storage_location="here"), apply=apply)
        return await work.dataset(path)


def said(place: Place, pid: str = PID) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All that SciCat has of the dataset, but for ids and times of its own."""
    dataset = place.standin.store.get("datasets", pid)
    assert dataset is not None
    own = {"_id", "id", "createdAt", "updatedAt"}
    blocks = []
    for block in place.standin.store.all("datablocks", pid):
        files = [one if not isinstance(one, dict) else _without(one, own) for one in block.get("dataFileList") or []]
        blocks.append(_without(block, own) | {"dataFileList": files})
    return _without(dataset, own), sorted(blocks, key=lambda one: str(one["archiveId"]))


def _without(document: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


def everything(root: Path) -> dict[str, tuple[bytes, int]]:
    """The LTS, file by file, with times."""
    return {str(one): (one.read_bytes(), one.stat().st_mtime_ns) for one in root.rglob("*") if one.is_file()}


def writes(place: Place) -> list[tuple[str, str]]:
    """What was asked of SciCat that changes it."""
    return [(method, path) for method, path in place.line.sent if method in WRITES and not path.endswith("/login")]


# --- what is right --------------------------------------------------------------------------------------------------------


async def test_records_counters_and_state_are_those_of_an_archived_dataset(place: Place, root: Path) -> None:
    await place.dataset(pid=PID, accessGroups=["readers"])
    folder = archived(root, PID)
    before = everything(root)
    done = await rebuilt(place, root)
    dataset, blocks = said(place)
    names = [f"{PID}/data/{n}.tar.gz" for n in (1, 2)]
    assert [block["archiveId"] for block in blocks] == done.missing == names
    listed = {one["path"]: one for block in blocks for one in block["dataFileList"]}
    assert {path: one["chk"] for path, one in listed.items()} == {
        path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()
    }
    assert {path: one["size"] for path, one in listed.items()} == {path: len(data) for path, data in FILES.items()}
    assert {(one["uid"], one["gid"], one["perm"]) for one in listed.values()} == {("1000", "staff", "100640")}
    packed = []
    for n, block in enumerate(blocks, 1):
        data = (folder / "data" / f"{n}.tar.gz").read_bytes()
        packed.append(len(data))
        assert block["packedSize"] == len(data)
        assert block["size"] == sum(one["size"] for one in block["dataFileList"])
        assert block["version"] == f"tar.gz/1 sha256:{hashlib.sha256(data).hexdigest()} verified:host"
        assert (block["chkAlg"], block["ownerGroup"], block["accessGroups"]) == ("sha256", "p1", ["readers"])
    assert (dataset["packedSize"], dataset["numberOfFilesArchived"]) == (sum(packed), len(FILES))
    lifecycle = dataset["datasetlifecycle"]
    assert (lifecycle["archivable"], lifecycle["retrievable"]) == (False, True)
    assert (lifecycle["archiveStatusMessage"], lifecycle["storageLocation"]) == ("datasetOnArchiveDisk", "here")
    assert lifecycle["archiveReturnMessage"] == {
        "summary": "Archived: 4 files in 2 datablocks, verified at level 'host'.",
        "job": JOB,
        "datablocks": 2,
        "files": 4,
        "sizeBytes": sum(map(len, FILES.values())),
        "packedBytes": sum(packed),
        "verified": "host",
    }
    assert everything(root) == before, "the LTS is only read"


async def test_a_dry_run_tells_all_that_would_be_done_and_writes_nothing(place: Place, root: Path) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    before = said(place)
    dry = await rebuilt(place, root, apply=False)
    assert (writes(place), said(place)) == ([], before)
    assert dry == await rebuilt(place, root), "and what is done is what was told"
    assert dry.status == "datasetCreated"
    assert set(dry.counters) == {"size", "numberOfFiles", "packedSize", "numberOfFilesArchived"}


@pytest.mark.parametrize("zeroed", [("size", "numberOfFiles"), ("packedSize",), ("numberOfFilesArchived",)])
async def test_counters_that_were_zeroed_are_mended_and_none_is_set_to_0(
    place: Place, root: Path, zeroed: tuple[str, ...]
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    await rebuilt(place, root)
    right = place.standin.store.get("datasets", PID)
    assert right is not None
    assert all(right[name] for name in payloads.COUNTERS)
    place.standin.store.put("datasets", PID, right | dict.fromkeys(zeroed, 0))
    done = await rebuilt(place, root)
    assert done.counters == {name: (0, right[name]) for name in zeroed}
    now = place.standin.store.get("datasets", PID)
    assert now is not None
    assert {name: now[name] for name in payloads.COUNTERS} == {name: right[name] for name in payloads.COUNTERS}


@pytest.mark.parametrize("apply", [True, False])
async def test_p6_the_second_time_there_is_nothing_to_do_and_nothing_is_written(
    place: Place, root: Path, apply: bool
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    await rebuilt(place, root)
    before = said(place)
    place.line.sent.clear()
    done = await rebuilt(place, root, apply=apply)
    assert (done.changes, done.missing, done.datablocks) == (False, [], 2)
    assert (writes(place), said(place)) == ([], before)


async def test_only_what_is_missing_is_posted_and_the_counters_that_it_moves_are_put_right(
    place: Place, root: Path
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    await rebuilt(place, root)
    before = said(place)
    first = place.standin.store.all("datablocks", PID)[0]
    place.standin.store.delete("datablocks", first["_id"])  # the dataset's own record was not lost, nor its counters
    place.line.sent.clear()
    done = await rebuilt(place, root)
    assert (done.missing, done.counters, done.status) == ([first["archiveId"]], {}, None)
    assert said(place) == before
    assert [path.rpartition("/")[2] for _, path in writes(place)] == ["datablocks", PID.rpartition("/")[2]]


async def test_p3_an_archived_state_stays_as_it_is(place: Place, root: Path) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    theirs = {
        "archivable": False,
        "retrievable": True,
        "archiveStatusMessage": payloads.ARCHIVED,
        "archiveReturnMessage": {"summary": "said by others"},
        "retrieveStatusMessage": "datasetRetrieved",
        "retrieveIntegrityCheck": True,
    }
    await place.ask("PATCH", at(PID, more="/datasetlifecycle"), theirs)
    before = said(place)[0]["datasetlifecycle"]
    done = await rebuilt(place, root)
    assert (len(done.missing), done.status) == (2, None)
    assert said(place)[0]["datasetlifecycle"] == before


@pytest.mark.parametrize("status", ["scheduleArchiveJobFailed", "missingFilesError", "scheduledForArchiving", ""])
async def test_what_a_retrieval_said_stays_and_a_state_that_is_not_archived_becomes_so(
    place: Place, root: Path, status: str
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    fields = {"archiveStatusMessage": status, "retrieveStatusMessage": "datasetRetrieved", "publishable": True}
    await place.ask("PATCH", at(PID, more="/datasetlifecycle"), fields)
    assert (await rebuilt(place, root)).status == status
    lifecycle = said(place)[0]["datasetlifecycle"]
    assert lifecycle["archiveStatusMessage"] == payloads.ARCHIVED
    assert (lifecycle["retrieveStatusMessage"], lifecycle["publishable"]) == ("datasetRetrieved", True)


async def test_a_receipt_that_is_lost_costs_the_levels_of_single_datablocks_only(place: Place, root: Path) -> None:
    await place.dataset(pid=PID)
    folder = archived(root, PID, level="tape")
    await rebuilt(place, root)
    before = said(place)
    (folder / "events.jsonl").unlink()
    place.line.sent.clear()
    assert not (await rebuilt(place, root)).changes
    for block in place.standin.store.all("datablocks", PID):
        place.standin.store.delete("datablocks", block["_id"])
    await rebuilt(place, root)
    assert said(place) == before, "the bag's own level is that of its weakest"


@pytest.mark.parametrize("told", ["tape-read", "cache", "nonsense"])
async def test_a_receipts_level_counts_where_it_is_one_and_no_less_than_the_bags(
    place: Place, root: Path, told: str
) -> None:
    await place.dataset(pid=PID)
    folder = archived(root, PID, level="host")
    receipt = (folder / "events.jsonl").read_text().replace('"level": "host"', f'"level": "{told}"')
    (folder / "events.jsonl").write_text("no JSON\n[1]\n" + receipt)
    await rebuilt(place, root)
    level = "tape-read" if told == "tape-read" else "host"
    assert {block["version"].rpartition(":")[2] for block in said(place)[1]} == {level}


async def test_another_number_of_files_in_scicat_is_told_and_no_obstacle(place: Place, root: Path) -> None:
    await place.dataset(pid=PID, blocks=1, files=7)
    archived(root, PID)
    done = await rebuilt(place, root)
    assert "counts 7 files" in done.notes[0]
    assert len(said(place)[1]) == 2


async def test_every_payload_fits_the_generated_models_of_both_releases(
    place: Place, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.dataset(pid=PID, packedSize=7)
    archived(root, PID)
    sent: list[tuple[str, Any]] = []
    onwards = place.line.handle_async_request

    async def note(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if request.method in WRITES and not path.endswith("/login"):
            name = DATABLOCK if path.endswith("/datablocks") else LIFECYCLE if path.endswith("lifecycle") else PATCH
            sent.append((name, json.loads(await request.aread())))
        return await onwards(request)

    monkeypatch.setattr(place.line, "handle_async_request", note)
    await rebuilt(place, root)
    assert [name for name, _ in sent] == [DATABLOCK, DATABLOCK, PATCH, LIFECYCLE]
    for complaints in await asyncio.gather(*(asyncio.to_thread(ask, sent, version) for version in SDK)):
        assert complaints == [[], [], [], []]


# --- what dies in between -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


# Where the counters were not lost, SciCat has added to them at each post: a fourth write puts them right.
@pytest.mark.parametrize(
    ("counters", "write"), [("lost too", n) for n in range(3)] + [("not lost", n) for n in range(4)]
)
@pytest.mark.parametrize("done", [False, True], ids=["before it", "after it"])
async def test_p5_killed_at_any_write_the_next_run_ends_as_if_it_had_not_been(
    place: Place, root: Path, monkeypatch: pytest.MonkeyPatch, write: int, done: bool, counters: str
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    await rebuilt(place, root)
    right = said(place)
    for block in place.standin.store.all("datablocks", PID):
        place.standin.store.delete("datablocks", block["_id"])
    dataset = place.standin.store.get("datasets", PID)
    assert dataset is not None
    if counters == "lost too":
        dataset |= {"packedSize": 0, "numberOfFilesArchived": 0}
    dataset["datasetlifecycle"] |= {"archiveStatusMessage": "datasetCreated", "retrievable": False, "archivable": True}
    place.standin.store.put("datasets", PID, dataset)
    onwards, seen = place.line.handle_async_request, 0

    async def kill(request: httpx.Request) -> httpx.Response:
        nonlocal seen
        if request.method in WRITES and not request.url.path.endswith("/login"):
            seen += 1
            if seen == write + 1:
                if done:
                    await onwards(request)
                raise Killed
        return await onwards(request)

    with monkeypatch.context() as patch:
        patch.setattr(place.line, "handle_async_request", kill)
        with pytest.raises(Killed):
            await rebuilt(place, root)
    await rebuilt(place, root)
    assert said(place) == right
    assert not (await rebuilt(place, root)).changes


@pytest.mark.parametrize("path", ["/datablocks$", f"/datasets/{PID}$", "/datasetlifecycle$"])
async def test_an_answer_that_is_lost_hides_no_write_and_doubles_none(place: Place, root: Path, path: str) -> None:
    await place.dataset(pid=PID, packedSize=7)
    archived(root, PID)
    place.line.breaks.append(Break("POST" if "datablocks" in path else "PATCH", path))
    await rebuilt(place, root)
    assert place.line.breaks == []
    dataset, blocks = said(place)
    assert len(blocks) == 2
    assert dataset["packedSize"] == sum(block["packedSize"] for block in blocks)
    assert not (await rebuilt(place, root)).changes


async def test_a_counter_that_scicat_loses_is_written_again(
    place: Place, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    onwards, lost = place.line.handle_async_request, 0

    async def lose(request: httpx.Request) -> httpx.Response:
        nonlocal lost
        answer = await onwards(request)
        if request.method == "PATCH" and request.url.path.endswith("lifecycle") and not lost:
            # Another writer of the whole document had read it before the counters were set.
            lost += 1
            dataset = place.standin.store.get("datasets", PID)
            assert dataset is not None
            place.standin.store.put("datasets", PID, dataset | {"packedSize": 1})
        return answer

    monkeypatch.setattr(place.line, "handle_async_request", lose)
    await rebuilt(place, root)
    dataset, blocks = said(place)
    assert lost == 1
    assert dataset["packedSize"] == sum(block["packedSize"] for block in blocks)


async def test_an_archiving_that_begins_meanwhile_has_the_right_of_way(
    place: Place, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    onwards = place.line.handle_async_request

    async def begin(request: httpx.Request) -> httpx.Response:
        answer = await onwards(request)
        if request.method == "POST" and request.url.path.endswith("/datablocks"):
            dataset = place.standin.store.get("datasets", PID)
            assert dataset is not None
            dataset["datasetlifecycle"]["archiveStatusMessage"] = payloads.STARTED
            place.standin.store.put("datasets", PID, dataset)
        return answer

    monkeypatch.setattr(place.line, "handle_async_request", begin)
    with pytest.raises(Refused, match="is in work"):
        await rebuilt(place, root)
    dataset, blocks = said(place)
    assert (len(blocks), dataset["datasetlifecycle"]["archiveStatusMessage"]) == (1, payloads.STARTED)


# --- what does not agree --------------------------------------------------------------------------------------------------


def of_file(change: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Changes the first file of a record."""
    return lambda block: block["dataFileList"][0].update(change)


CONFLICTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another size": (lambda block: block.update(packedSize=1), "packedSize 1 in SciCat"),
    "other bytes": (lambda block: block.update(version="tar.gz/1 sha256:00 verified:host"), "version"),
    "less proved": (lambda block: block.update(version=block["version"].replace("host", "cache")), "verified:cache"),
    "another algorithm": (lambda block: block.update(chkAlg="md5"), "chkAlg 'md5' in SciCat"),
    "a file less": (lambda block: block["dataFileList"].pop(), "files 1 in SciCat, 2 in the bag"),
    "another file": (of_file({"path": "other"}), "does not list 'a.txt'"),
    "another digest": (of_file({"chk": "00"}), "chk '00' in SciCat"),
    "another mode": (of_file({"perm": "777"}), "perm '777' in SciCat, '100640' in the bag"),
    "another time": (of_file({"time": "2027-01-01T00:00:00Z"}), "time '2027"),
    "no list at all": (lambda block: block.update(dataFileList=None), "files 0 in SciCat"),
    "a list of nonsense": (lambda block: block.update(dataFileList=[1, {"path": ["x"]}]), "does not list 'a.txt'"),
}


@pytest.mark.parametrize("name", CONFLICTS)
async def test_p3_a_record_that_says_something_else_is_told_and_nothing_of_its_dataset_is_changed(
    place: Place, root: Path, name: str
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    await rebuilt(place, root)
    change, told = CONFLICTS[name]
    one, two = sorted(place.standin.store.all("datablocks", PID), key=lambda block: str(block["archiveId"]))
    change(one)
    for block in (one, two):
        place.standin.store.delete("datablocks", block["_id"])
    place.standin.store.insert("datablocks", one["_id"], one, parent=PID, tag=one["archiveId"])
    before = said(place)
    place.line.sent.clear()
    with pytest.raises(IntegrityMismatch, match="say something else") as caught:
        await rebuilt(place, root)
    assert told in str(caught.value.found)
    assert (writes(place), said(place)) == ([], before)


async def test_a_time_as_scicat_gives_it_back_is_the_same_time() -> None:
    def block(time: str) -> dict[str, Any]:
        entry = {"path": "a", "size": 1, "chk": "x", "time": time}
        return {"archiveId": "a", "datasetId": "d", "size": 1, "packedSize": 1, "chkAlg": "sha256"} | {
            "version": "tar/1 sha256:x verified:host",
            "dataFileList": [entry],
        }

    def same(there: str, ours: str) -> bool:
        return differences(block(there), block(ours), "host") == []

    assert same("2026-01-01T11:00:00.123Z", "2026-01-01T12:00:00.123456+01:00")
    assert same("2026-01-01T11:00:00.000Z", "2026-01-01T12:00:00"), "a zone that only the server knows"
    assert not same("2026-01-01T11:00:00.124Z", "2026-01-01T12:00:00.123+01:00")
    assert not same("no time", "2026-01-01T12:00:00Z")


async def test_a_record_without_its_datablock_and_a_name_that_another_dataset_has_are_conflicts(
    place: Place, root: Path
) -> None:
    other = await place.dataset()
    await place.dataset(pid=PID)
    archived(root, PID)
    await place.datablocks(PID, 4)  # 0 and 3 are in no bag; 1 and 2 are other datablocks of these names
    with pytest.raises(IntegrityMismatch) as caught:
        await rebuilt(place, root)
    assert f"{PID}/data/3.tar.gz has a record in SciCat, and is not in the bag" in str(caught.value.found)
    for block in place.standin.store.all("datablocks", PID):
        place.standin.store.delete("datablocks", block["_id"])
        if block["archiveId"].endswith("1.tar.gz"):
            moved = block | {"datasetId": other}
            place.standin.store.insert("datablocks", block["_id"], moved, parent=other, tag=block["archiveId"])
    with pytest.raises(IntegrityMismatch) as caught:
        await rebuilt(place, root)
    assert f"datasetId '{other}' in SciCat" in str(caught.value.found)
    assert said(place)[1] == []


# --- damaged bags ---------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Turn a bit over in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


TAG = "tagmanifest-sha256.txt"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"a bit of {name}": (lambda folder, name=name: flip(folder / name), "")
        for name in (
            "bagit.txt",
            "bag-info.txt",
            "dataset.json",
            "manifest-sha256.txt",
            TAG,
            "data/2.manifest.jsonl.gz",
        )
    },
    "a datablock cut short": (lambda folder: (folder / "data/2.tar.gz").write_bytes(b"x"), "1"),
    "a datablock gone": (lambda folder: (folder / "data/1.tar.gz").unlink(), "no such file"),
    "a manifest gone": (lambda folder: (folder / "data/1.manifest.jsonl.gz").unlink(), "not on the LTS"),
    "a tag file gone": (lambda folder: (folder / "dataset.json").unlink(), "no such file"),
    "a name that climbs": (lambda folder: (folder / TAG).write_text(f"{'0' * 64}  ../../secret\n"), "../../secret"),
    "no text": (lambda folder: (folder / TAG).write_bytes(b"\xff\xfe"), "nothing"),
}


@pytest.mark.parametrize("name", DAMAGE)
async def test_a_damaged_bag_is_told_and_nothing_of_it_is_registered(place: Place, root: Path, name: str) -> None:
    await place.dataset(pid=PID)
    folder = archived(root, PID)
    damage, told = DAMAGE[name]
    damage(folder)
    with pytest.raises(IntegrityMismatch) as caught:
        await rebuilt(place, root)
    assert PID in str(caught.value)
    assert told in str(caught.value.found)
    assert (writes(place), said(place)[1]) == ([], [])


def retag(folder: Path, **changed: bytes) -> None:
    """Other tag files, with digests that fit: what no flipped bit makes."""
    for name, data in changed.items():
        (folder / name).write_bytes(data)
    names = ("bagit.txt", "bag-info.txt", "dataset.json", "manifest-sha256.txt")
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / TAG).write_text("".join(sums))


async def test_the_bag_of_another_dataset_is_not_registered_under_this_name(place: Place, root: Path) -> None:
    other = "20.500.12345/two"
    for pid in (PID, other):
        await place.dataset(pid=pid)
    folder = archived(root, PID)
    folder.rename(folder.with_name("two"))
    with pytest.raises(IntegrityMismatch, match="another dataset"):
        await rebuilt(place, root, other)
    assert writes(place) == []


async def test_a_manifest_of_another_datablock_is_found_out_though_every_digest_fits(place: Place, root: Path) -> None:
    await place.dataset(pid=PID)
    folder = archived(root, PID)
    first, second = (folder / "data" / f"{n}.manifest.jsonl.gz" for n in (1, 2))
    second.write_bytes(first.read_bytes())
    sums = (folder / "manifest-sha256.txt").read_text().splitlines()
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    sums = [f"{digest}  data/2.manifest.jsonl.gz" if line.endswith("2.manifest.jsonl.gz") else line for line in sums]
    retag(folder, **{"manifest-sha256.txt": ("\n".join(sums) + "\n").encode()})
    with pytest.raises(IntegrityMismatch, match="damaged") as caught:
        await rebuilt(place, root)
    assert caught.value.datablock == 2


@pytest.mark.parametrize("record", [b"[]", b"nonsense", b"[" * 10**5, b'{"pid": 7}'])
async def test_a_record_in_the_bag_that_is_none_is_damage_and_no_crash(place: Place, root: Path, record: bytes) -> None:
    await place.dataset(pid=PID)
    retag(archived(root, PID), **{"dataset.json": record})
    with pytest.raises(IntegrityMismatch, match="damaged"):
        await rebuilt(place, root)


async def test_a_bag_that_was_never_completed_is_no_bag(place: Place, root: Path) -> None:
    await place.dataset(pid=PID)
    (archived(root, PID) / TAG).unlink()
    with pytest.raises(NoBag):
        await rebuilt(place, root)
    assert writes(place) == []


# --- datasets that are not ours to write ------------------------------------------------------------------------------------


async def test_a_dataset_that_scicat_does_not_have_is_told_and_not_made(place: Place, root: Path) -> None:
    archived(root, PID)
    with pytest.raises(UnknownDataset, match="datasets are not made here"):
        await rebuilt(place, root)
    assert writes(place) == []


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"storageLocation": "elsewhere"}, "belongs to another archive"),
        ({"archiveStatusMessage": payloads.STARTED}, "is in work"),
        ({"archiveStatusMessage": "filesNotYetAvailable"}, "is in work"),
    ],
)
async def test_what_another_archive_has_or_somebody_works_on_is_left_alone(
    place: Place, root: Path, fields: dict[str, Any], told: str
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    await place.ask("PATCH", at(PID, more="/datasetlifecycle"), fields)
    before = said(place)
    with pytest.raises(Refused, match=told):
        await rebuilt(place, root)
    assert (writes(place), said(place)) == ([], before)


async def test_a_pid_that_is_no_path_is_read_from_its_bag(place: Place, root: Path) -> None:
    await place.dataset(pid=ODD)
    folder = archived(root, ODD)
    assert read_bag(lts_in(root), folder.name).pid == ODD
    await rebuilt(place, root, folder.name)
    assert len(said(place, ODD)[1]) == 2


async def test_a_token_that_expires_at_any_call_makes_nothing_missing(
    place: Place, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    await rebuilt(place, root)
    onwards = place.line.handle_async_request

    async def expire(request: httpx.Request) -> httpx.Response:
        if "datablocks" in request.url.path:
            place.standin.expire_tokens()
        return await onwards(request)

    monkeypatch.setattr(place.line, "handle_async_request", expire)
    place.line.sent.clear()
    with pytest.raises(CatalogueFault):  # every list is empty, and none is believed
        await rebuilt(place, root)
    assert writes(place) == []


async def test_a_scicat_that_shows_other_things_than_it_was_sent_is_a_fault(
    place: Place, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.dataset(pid=PID)
    archived(root, PID)
    onwards = place.line.handle_async_request

    async def drop(request: httpx.Request) -> httpx.Response:
        answer = await onwards(request)
        if request.method == "POST" and request.url.path.endswith("/datablocks"):
            (block,) = place.standin.store.all("datablocks", PID)
            place.standin.store.delete("datablocks", block["_id"])
        return answer

    monkeypatch.setattr(place.line, "handle_async_request", drop)
    with pytest.raises(CatalogueFault, match="as it was registered"):
        await rebuilt(place, root)
    lifecycle = said(place)[0]["datasetlifecycle"]
    assert lifecycle["archiveStatusMessage"] == "datasetCreated", "P2: not before it is true"


# --- the command --------------------------------------------------------------------------------------------------------------


class Site:
    """A SciCat over HTTP, an LTS, and the command with settings for both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "lts"
        lts_in(self.root)
        self.server = StandInServer(free_port(), StandInSettings(accounts=[Account("archiver", PASSWORD, admin=True)]))
        self.server.start()
        self.config = self.settings("archiver.toml")

    @property
    def standin(self) -> StandIn:
        return self.server.standin

    def settings(self, name: str, *, lts: dict[str, Any] | None = None, **scicat: Any) -> Path:
        """A settings file."""
        account = {} if "token" in scicat else {"username": "archiver", "password": PASSWORD}
        tables = {
            "scicat": {"url": self.server.url, **account, **scicat},
            "lts": {"root": str(self.root), "identity": "test", **(lts or {})},
        }
        path = self.folder / name
        path.write_text(tomli_w.dumps(tables))
        path.chmod(0o600)
        return path

    def dataset(self, pid: str) -> None:
        """The dataset's record."""
        fields = {"pid": pid, "ownerGroup": "p1", "packedSize": 0, "numberOfFilesArchived": 0}
        self.standin.store.insert("datasets", pid, {**fields, "_id": pid, "datasetlifecycle": {"archivable": True}})

    async def rebuild(self, *arguments: str, config: Path | None = None) -> Ended:
        """``archiver rebuild --from-lts ...``."""
        return await inside(config or self.config, "rebuild", "--from-lts", *arguments)

    def records(self) -> int:
        return len(self.standin.store.heads("datablocks"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.server.stop()


async def test_the_whole_lts_is_gone_through_and_each_dataset_fails_alone(site: Site) -> None:
    pids = [f"20.500.12345/{name}" for name in ("a", "b", "c", "d", "e")]
    good, damaged, unknown, unfinished, other = pids
    for pid in pids:
        folder = archived(site.root, pid)
        if pid == damaged:
            flip(folder / "bag-info.txt")
        if pid == unfinished:
            (folder / TAG).unlink()
        if pid != unknown:
            site.dataset(pid)
    (site.root / "no dataset" / "of ours").mkdir(parents=True)
    (site.root / "pid=%zz").mkdir()
    dry = await site.rebuild()
    assert (dry.code, site.records()) == (8, 0)
    assert "dry run, nothing was changed; --apply does it" in dry.out.splitlines()[-1]
    assert dry.err.splitlines() == ["passed over: 'pid=%zz' is no dataset's directory"], "others' folders are not told"
    ended = await site.rebuild("--apply", "--json")
    assert ended.code == 8
    told = [json.loads(line) for line in ended.out.splitlines()]
    outcomes = {one["pid"]: one["outcome"] for one in told[:-1]}
    assert outcomes == {good: "good", damaged: "bad", unknown: "bad", unfinished: "bad", other: "good"}
    assert {one["version"] for one in told} == {1}
    assert {one["pid"]: one["error"]["type"] for one in told[:-1] if "error" in one} == {
        damaged: "IntegrityMismatch",
        unknown: "UnknownDataset",
        unfinished: "NoBag",
    }
    assert told[-1] == {
        "version": 1,
        "apply": True,
        "datasets": 5,
        "good": 2,
        "bad": 3,
        "unknown": 0,
        "rebuilt": 2,
        "records": 4,
    }
    assert site.records() == 4
    again = await site.rebuild("--apply")
    assert f"{good}  as it is  2 datablocks" in again.out.splitlines()
    assert "5 datasets: 2 as they are, 3 not rebuilt" in again.out


async def test_one_dataset_and_no_other(site: Site) -> None:
    for name in ("a", "b"):
        archived(site.root, f"20.500.12345/{name}")
        site.dataset(f"20.500.12345/{name}")
    dry = await site.rebuild("20.500.12345/b")
    assert dry.code == 0
    assert dry.out.splitlines()[:3] == [
        "20.500.12345/b  TO REBUILD  2 of 2 datablocks without a record",
        "    20.500.12345/b/data/1.tar.gz",
        "    20.500.12345/b/data/2.tar.gz",
    ]
    assert "    archiveStatusMessage - -> datasetOnArchiveDisk" in dry.out.splitlines()
    ended = await site.rebuild("20.500.12345/b", "--apply")
    assert (ended.code, site.records()) == (0, 2)
    assert "1 dataset: 1 rebuilt (2 records)" in ended.out


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda site, folder: site.standin.store.delete("datasets", PID), 5),
        (lambda site, folder: (folder / TAG).unlink(), 5),
        (lambda site, folder: flip(folder / "dataset.json"), 8),
        (lambda site, folder: site.standin.store.put("datasets", PID, {"pid": PID, "packedSize": "much"}), 4),
        (lambda site, folder: site.standin.store.put("datasets", PID, {"pid": PID, "datasetlifecycle": ELSEWHERE}), 6),
        (lambda site, folder: site.standin.faults.append(Fault("GET", "/datasets/", times=99, status=502)), 7),
    ],
    ids=["no dataset", "no bag", "damaged", "a record that is none", "another archive's", "SciCat ill"],
)
async def test_a_single_dataset_that_fails_has_its_own_exit_code(
    site: Site, spoil: Callable[[Site, Path], object], code: int
) -> None:
    site.dataset(PID)
    spoil(site, archived(site.root, PID))
    assert (await site.rebuild(PID, "--apply")).code == code
    assert site.records() == 0


@pytest.mark.parametrize("pid", ["20.500.12345/none", "", "x" * 300])
async def test_an_unknown_pid_is_not_found(site: Site, pid: str) -> None:
    assert (await site.rebuild(pid)).code == 5


async def test_what_is_well_and_what_is_not_is_partly(site: Site) -> None:
    for name in ("a", "b"):
        archived(site.root, f"20.500.12345/{name}")
    site.dataset("20.500.12345/a")
    assert (await site.rebuild("--apply")).code == 3


async def test_an_empty_lts_is_said_to_be_empty(site: Site) -> None:
    ended = await site.rebuild()
    assert (ended.code, ended.out) == (0, "0 datasets: no bag on the LTS; dry run, nothing was changed\n")


async def test_an_lts_without_its_marker_is_not_believed(site: Site) -> None:
    archived(site.root, PID)
    (site.root / MARKER).unlink()
    ended = await site.rebuild("--apply")
    assert (ended.code, ended.in_lines()) == (7, True)
    assert LtsMarkerMissing.__name__ not in ended.out
    assert "is not the LTS" in ended.err


async def test_an_lts_that_is_unmounted_in_the_midst_ends_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "DATASETS_AT_ONCE", 1)
    for name in ("a", "b"):
        archived(site.root, f"20.500.12345/{name}")
        site.dataset(f"20.500.12345/{name}")
    before = Rebuilding.dataset

    async def unmount(self: Rebuilding, path: str) -> Rebuilt:
        done = await before(self, path)
        (site.root / MARKER).rename(site.folder / "gone")
        return done

    monkeypatch.setattr(Rebuilding, "dataset", unmount)
    ended = await site.rebuild("--apply")
    assert ended.code == 7
    assert "20.500.12345/a  REBUILT" in ended.out
    assert "20.500.12345/b" not in ended.out


async def test_a_scicat_that_is_down_is_unreachable(site: Site) -> None:
    archived(site.root, PID)
    site.server.stop()
    ended = await site.rebuild("--apply")
    assert (ended.code, ended.in_lines()) == (7, True)


async def test_a_scicat_that_fails_for_one_dataset_after_another_is_given_up(site: Site) -> None:
    for n in range(30):
        archived(site.root, f"20.500.12345/{n}")
    site.standin.faults.append(Fault("GET", "/datasets/", times=999, status=503))
    ended = await site.rebuild("--apply")
    assert ended.code == 7
    assert command.FAULTS_IN_A_ROW <= ended.out.count("COULD NOT BE LOOKED AT") <= 2 * command.DATASETS_AT_ONCE


async def test_many_datasets_are_looked_at_at_a_time_and_each_once(site: Site) -> None:
    pids = [f"20.500.12345/{n}" for n in range(3 * command.DATASETS_AT_ONCE)]
    for pid in pids:
        archived(site.root, pid, {"a": pid.encode()})
        site.dataset(pid)
    ended = await site.rebuild("--apply", "--json")
    told = [json.loads(line) for line in ended.out.splitlines()]
    assert sorted(one["pid"] for one in told[:-1]) == sorted(pids)
    assert (ended.code, told[-1]["rebuilt"], site.records()) == (0, len(pids), len(pids))
    for pid in pids:
        (block,) = site.standin.store.all("datablocks", pid)
        dataset = site.standin.store.get("datasets", pid)
        assert dataset is not None
        assert (dataset["packedSize"], dataset["numberOfFilesArchived"]) == (block["packedSize"], 1)


@pytest.mark.parametrize("secret", [{"token": "bad-canary-token"}, {"password": "bad-canary-password"}])
async def test_an_account_that_scicat_refuses_is_told_without_its_secret(site: Site, secret: dict[str, str]) -> None:
    archived(site.root, PID)
    site.dataset(PID)
    ended = await site.rebuild("--apply", config=site.settings("bad.toml", **secret))
    assert (ended.code, site.records()) == (1, 0)
    assert "canary" not in ended.out + ended.err


async def test_a_bucket_of_an_archive_class_is_read_as_well_and_nothing_is_restored(
    site: Site, moto: S3Settings
) -> None:
    name, pids = f"lts-{secrets.token_hex(4)}", (PID, ODD)
    keys = {"access_key": "moto", "secret_key": "moto-secret"}
    bucket = {
        "name": name,
        "prefix": "lts/",
        "storage_class": "GLACIER",
        "s3": {"endpoint": str(moto.endpoint), **keys},
    }
    config = site.settings("bucket.toml", lts={"bucket": bucket})
    open_lts(load(config)).setup()
    boto = Bucket(name, moto, LtsFault).boto
    for pid in pids:
        site.dataset(pid)
        folder = archived(site.folder / "made", pid)
        for path in (path for path in folder.rglob("*") if path.is_file()):
            cold = {"StorageClass": "GLACIER"} if path.name.endswith(".tar.gz") else {}
            key = f"lts/{path.relative_to(site.folder / 'made')}"
            boto.put_object(Bucket=name, Key=key, Body=path.read_bytes(), **cold)
    ended = await site.rebuild("--apply", config=config)
    assert (ended.code, site.records()) == (0, 4), ended.out + ended.err
    assert "2 datasets: 2 rebuilt (4 records)" in ended.out
    listed = boto.list_objects_v2(Bucket=name, Prefix="lts/").get("Contents", [])
    for key in (entry["Key"] for entry in listed if entry["Key"].endswith(".tar.gz")):
        assert "Restore" not in boto.head_object(Bucket=name, Key=key)
    boto.delete_object(Bucket=name, Key=f"lts/{MARKER}")
    assert (await site.rebuild("--apply", config=config)).code == 7


async def test_it_must_be_told_from_what(site: Site) -> None:
    ended = await inside(site.config, "rebuild", PID)
    assert (ended.code, ended.in_lines()) == (2, True)
    assert "--from-lts" in ended.err


async def test_the_help_names_it(site: Site) -> None:
    assert "rebuild" in (await inside(site.config, "--help")).out
