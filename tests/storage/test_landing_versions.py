"""Versions of source files: what a store tells may be missing or stale, and then nothing is believed (P1, P4)."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from archiver.datablock.files import PlannedFile
from archiver.errors import SourceChanged, SourceFault
from archiver.progress import Silent
from archiver.settings import LandingSettings, S3Settings
from archiver.storage import directory
from archiver.storage.landing import Landing, S3Landing
from archiver.storage.objects import GET_PART_BYTES, Bucket, ObjectChanged, ObjectInfo, ObjectVersion
from tests.storage.conftest import Disk, new_bucket
from tests.storage.test_landing import opened, planned

OLD = b"o" * (3 * GET_PART_BYTES)
NEW = b"n" * len(OLD)


class Gateway:
    """A bucket of an S3 server on a directory, and that directory, which others write past the server."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        self.bucket, self.folder = bucket, folder / "s3" / bucket.name
        self.now = time.time()

    def landing(self, **settings: object) -> S3Landing:
        return S3Landing(self.bucket, "x/", LandingSettings.model_validate(settings))

    def write(self, name: str, data: bytes, age_seconds: float = 60) -> Path:
        """A file as another program writes it: without an ETag, or with the one that it had."""
        path = self.folder / "x" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(data)
        then = self.now - age_seconds
        os.utime(path, (then, then))
        return path

    def put(self, name: str, data: bytes) -> Path:
        """A file by way of the server, which gives it an ETag."""
        self.bucket.put(f"x/{name}", data)
        return self.folder / "x" / name


@pytest.fixture
def gateway(s3: S3Settings, s3_folder: Path) -> Gateway:
    return Gateway(new_bucket(s3), s3_folder)


def plan(landing: Landing) -> list[PlannedFile]:
    return [planned(file) for file in landing.list()]


def read_while(landing: Landing, change: Callable[[], object]) -> bytes:
    """All bytes of the only file, which is changed after its first two megabytes were read, and hardly more fetched."""
    parts = fetch(landing)
    _, chunks = next(parts)
    got = bytes(next(chunks))
    change()
    got += b"".join(bytes(chunk) for chunk in chunks)
    assert list(parts) == []
    return got


def fetch(landing: Landing) -> Iterator[tuple[PlannedFile, Iterator[Any]]]:
    return landing.fetch(plan(landing), ahead_bytes=1, ahead_objects=1)


def digests(files: list[PlannedFile], data: bytes) -> list[tuple[PlannedFile, str]]:
    return [(file, hashlib.sha256(data).hexdigest()) for file in files]


# --- answers --------------------------------------------------------------------------------------------------------


def read(gateway: Gateway, version: ObjectVersion, change: Callable[[], object] = lambda: None) -> bytes:
    """The object ``a``, changed after its first range was read."""
    wanted = [(None, "x/a", len(OLD), version)]
    parts = gateway.bucket.read_many(wanted, ahead_bytes=1, ahead_requests=1)
    _, chunks = next(parts)
    got = bytes(next(chunks))
    change()
    return got + b"".join(bytes(chunk) for chunk in chunks)


def test_p4_an_answer_of_another_time_than_was_planned_is_another_version(gateway: Gateway) -> None:
    gateway.put("a", OLD)
    gateway.write("a", OLD, 60)
    planned_as = next(gateway.bucket.list("x/"))
    version = ObjectVersion(planned_as.version, planned_as.modified)
    assert read(gateway, version) == OLD
    gateway.write("a", NEW, 58)
    with pytest.raises(ObjectChanged, match=r"expected 2097152 of 6291456 B in version .*, found .* in version"):
        read(gateway, version)
    gateway.write("a", NEW, 60)
    assert read(gateway, version) == NEW, "nothing tells of that"


def test_p4_answers_of_two_times_are_of_two_versions(gateway: Gateway) -> None:
    gateway.write("a", OLD, 60)
    with pytest.raises(ObjectChanged, match="expected all of it in version"):
        read(gateway, ObjectVersion(), lambda: gateway.write("a", NEW, 50))


def test_p4_answers_of_two_version_ids_are_of_two_versions(moto: S3Settings) -> None:
    bucket = new_bucket(moto)
    bucket.boto.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    bucket.put("x/a", OLD)
    gateway = Gateway(bucket, Path("/nowhere"))
    assert read(gateway, ObjectVersion()) == OLD
    with pytest.raises(ObjectChanged, match="expected all of it in version"):
        read(gateway, ObjectVersion(), lambda: bucket.put("x/a", OLD))


def test_p4_an_answer_without_the_etag_that_was_planned_is_not_believed(moto: S3Settings) -> None:
    bucket = Bucket("any", moto, SourceFault)
    with pytest.raises(SourceFault, match="without an ETag"):
        bucket._demanded("a", ObjectVersion('"x"'), ObjectVersion(), (1, 1), (1, 1))


# --- objects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age_seconds", [60, 59])
def test_p4_an_object_without_etag_that_is_changed_while_it_is_read_is_no_mixture(
    gateway: Gateway, age_seconds: float
) -> None:
    # With the same LastModified too: nothing at all tells of the change but the bytes.
    gateway.write("a", OLD)
    assert plan(gateway.landing())[0].version.startswith(" "), "the gateway knows no ETag"
    with pytest.raises(SourceChanged, match="changed") as caught:
        read_while(gateway.landing(), lambda: gateway.write("a", NEW, age_seconds))
    assert caught.value.file == "'a'"


def test_p4_an_object_that_is_written_in_place_keeps_its_etag_and_is_no_mixture(gateway: Gateway) -> None:
    path = gateway.put("a", OLD)
    os.utime(path, (then := time.time() - 60, then))
    with pytest.raises(SourceChanged, match="changed"):
        read_while(gateway.landing(), lambda: gateway.write("a", NEW, 56))


def test_p4_an_object_that_was_just_put_and_is_written_in_place_is_no_mixture(gateway: Gateway) -> None:
    # Within one second: neither ETag nor LastModified tells.
    gateway.put("a", OLD)
    with pytest.raises(SourceChanged, match="changed"):
        read_while(gateway.landing(), lambda: gateway.write("a", NEW, 0))


def test_p4_what_changed_after_its_own_reading_but_before_the_last_file_was_read_is_seen(gateway: Gateway) -> None:
    for name in "ab":
        os.utime(gateway.put(name, OLD), (then := time.time() - 60, then))
    parts = fetch(gateway.landing())
    for _, chunks in (next(parts), next(parts)):
        list(chunks)
    gateway.write("a", NEW, 50)
    with pytest.raises(SourceChanged, match=r"file 'a' in .* changed"):
        next(parts)


def test_an_object_without_etag_that_rests_is_read_twice_and_archived(gateway: Gateway) -> None:
    gateway.write("a", OLD)
    gateway.write("empty", b"")
    parts = gateway.landing().fetch(plan(gateway.landing()), ahead_bytes=2**20, ahead_objects=4)
    assert {file.path: b"".join(map(bytes, chunks)) for file, chunks in parts} == {"a": OLD, "empty": b""}


def test_what_is_read_twice_is_fetched_ahead_the_second_time_too(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(20):
        gateway.write(f"{n:02}", b"x" * 1000)
    running, most, lock = 0, 0, threading.Lock()
    read_part = gateway.bucket._read_part

    def counted(*given: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        try:
            return read_part(*given)
        finally:
            with lock:
                running -= 1

    landing = gateway.landing()
    parts = landing.fetch(plan(landing), ahead_bytes=2**20, ahead_objects=16)
    for _ in range(20):
        list(next(parts)[1])
    monkeypatch.setattr(gateway.bucket, "_read_part", counted)
    assert list(parts) == []
    assert most > 1


def test_an_object_without_etag_is_refused_by_name_where_the_settings_say_so(gateway: Gateway) -> None:
    gateway.put("a", OLD)
    gateway.write("b", OLD)
    with pytest.raises(SourceFault, match=f"file 'b' in s3://{gateway.bucket.name}/x/ has no version") as caught:
        plan(gateway.landing(without_version="refuse"))
    assert not caught.value.retryable
    assert "landing.without_version" in str(caught.value.next_step)


@pytest.mark.parametrize(
    ("etag", "certain"),
    [
        *(('"9dd4e461268c8034f5c8564e155c67a6"', True), ('"abc-12"', True), ("9dd4", True), ("", False), ('""', False)),
        *(('W/"9dd4"', False), ('"00000000000000000000000000000000-1"', False), (f'"{"0" * 32}"', False)),
    ],
)
def test_only_a_strong_etag_is_a_certain_version(gateway: Gateway, etag: str, certain: bool) -> None:
    assert gateway.landing().certain(f"{etag} 1795896279.000") is certain


def test_a_store_that_tells_another_time_when_it_reads_than_when_it_lists_is_archived_from(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.put("a", OLD)
    listed = gateway.bucket.list

    def an_hour_ago(prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        return (replace(entry, modified=entry.modified - 3600) for entry in listed(prefix, after))

    monkeypatch.setattr(gateway.bucket, "list", an_hour_ago)
    landing = gateway.landing()
    assert read_while(landing, lambda: None) == OLD
    assert landing.delete(digests(plan(landing), OLD), Silent()) == 1


@pytest.mark.parametrize("check", ["read", "version"])
def test_p1_an_object_that_was_written_in_place_after_it_was_archived_is_not_deleted(
    gateway: Gateway, check: str
) -> None:
    os.utime(gateway.put("a", OLD), (then := time.time() - 60, then))
    landing = gateway.landing(delete_check=check)
    files = plan(landing)
    path = gateway.write("a", NEW, 56)
    assert landing.delete(digests(files, OLD), Silent()) == 0
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("check", ["read", "version"])
def test_p1_bytes_that_are_not_the_manifests_are_not_deleted_whatever_the_store_tells(
    gateway: Gateway, check: str
) -> None:
    # Same size, same LastModified, no ETag, which is never believed; with one, by the default.
    if check == "read":
        gateway.put("a", OLD)
    path = gateway.write("a", OLD)
    landing = gateway.landing(delete_check=check)
    files = plan(landing)
    when = path.stat()
    gateway.write("a", NEW)
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert plan(landing) == files, "the store tells nothing"
    assert landing.delete(digests(files, OLD), Silent()) == 0
    assert path.read_bytes() == NEW
    assert landing.delete(digests(files, NEW), Silent()) == 1
    assert not path.exists()


def test_p1_an_object_that_is_put_anew_between_the_last_look_and_the_deletion_stays(
    server: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket(server)
    bucket.put("x/a", b"old")
    landing = S3Landing(bucket, "x/")
    files = plan(landing)
    looked = bucket.is_still

    def then_put(*given: Any) -> bool:
        still = looked(*given)
        bucket.put("x/a", b"new")
        return still

    monkeypatch.setattr(bucket, "is_still", then_put)
    assert landing.delete(digests(files, b"old"), Silent()) == 0
    assert bucket.get("x/a") == b"new"


def test_a_store_without_conditional_deletes_is_deleted_from_after_a_look(
    server: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket(server)
    for name in "ab":
        bucket.put(f"x/{name}", b"old")
    landing = S3Landing(bucket, "x/")
    files = plan(landing)
    bucket.put("x/b", b"new")
    plain = bucket.boto.delete_object

    def unconditional(**given: Any) -> Any:
        if "IfMatch" in given:
            raise ClientError({"Error": {"Code": "NotImplemented"}}, "DeleteObject")
        return plain(**given)

    monkeypatch.setattr(bucket.boto, "delete_object", unconditional)
    assert landing.delete(digests(files, b"old"), Silent()) == 1
    assert [entry.key for entry in bucket.list("")] == ["x/b"]


# --- directories ----------------------------------------------------------------------------------------------------


@pytest.fixture
def coarse(tmp_path: Path) -> Iterator[Path]:
    """A dataset's folder on a file system whose times are whole seconds."""
    disk = Disk(tmp_path / "image", tmp_path / "disk", 32 * 2**20, "-I", "128")
    (folder := tmp_path / "disk" / "p" / "x").mkdir(parents=True)
    yield folder
    disk.unmount()


def coarse_landing(folder: Path, **settings: object) -> Landing:
    return opened(f"file://{folder.parent.parent}/{{pid}}/", {"pid": "p/x"}, **settings)


def written(path: Path, data: bytes) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_p4_a_file_whose_times_are_whole_seconds_is_no_mixture(coarse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "FRESH_SECONDS", -60.0)
    (coarse / "a").write_bytes(OLD)
    landing = coarse_landing(coarse)
    assert not landing.certain(plan(landing)[0].version)
    with pytest.raises(SourceChanged, match="changed"):
        read_while(landing, lambda: written(coarse / "a", NEW))


@pytest.fixture
def beneath(coarse: Path) -> Callable[[], None]:
    """Changes a file ``a`` as another host does on a server: this host's cache keeps the old bytes, and no time tells."""
    marker = os.urandom(4096)
    (coarse / "a").write_bytes(marker + OLD[4096:])
    os.sync()

    def change() -> None:
        with (coarse.parents[2] / "image").open("r+b") as image:
            image.seek(image.read().index(marker))
            image.write(NEW[:4096])

    return change


def test_p4_the_second_reading_is_not_of_what_the_first_left_in_this_hosts_cache(
    coarse: Path, beneath: Callable[[], None]
) -> None:
    with pytest.raises(SourceChanged, match="changed while it was read"):
        read_while(coarse_landing(coarse), beneath)


def test_p1_what_is_read_before_it_is_deleted_is_not_this_hosts_cache(
    coarse: Path, beneath: Callable[[], None]
) -> None:
    landing, archived = coarse_landing(coarse), (coarse / "a").read_bytes()
    beneath()
    assert (coarse / "a").read_bytes() == archived, "it is in the cache"
    assert landing.delete(digests(plan(landing), archived), Silent()) == 0


def test_a_file_whose_times_are_whole_seconds_is_archived_where_it_rests_or_refused_by_a_setting(coarse: Path) -> None:
    (coarse / "a").write_bytes(OLD)
    assert read_while(coarse_landing(coarse), lambda: None) == OLD
    with pytest.raises(SourceFault, match=f"file 'a' in file://{coarse}/ has no version"):
        plan(coarse_landing(coarse, without_version="refuse"))


def test_p4_a_file_that_changes_within_one_tick_of_the_clock_is_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "p" / "x").mkdir(parents=True)
    (folder / "a").write_bytes(OLD)
    landing = coarse_landing(folder)
    version = plan(landing)[0].version
    monkeypatch.setattr(directory, "_version", lambda found: version)
    with pytest.raises(SourceChanged, match="changed while it was read"):
        read_while(landing, lambda: (folder / "a").write_bytes(NEW))


@pytest.mark.parametrize("check", ["read", "version"])
def test_p1_a_file_that_was_written_after_it_was_archived_is_not_deleted(coarse: Path, check: str) -> None:
    (coarse / "a").write_bytes(OLD)
    landing = coarse_landing(coarse, delete_check=check)
    files = plan(landing)
    written(coarse / "a", NEW)
    assert landing.delete(digests(files, OLD), Silent()) == 0
    assert (coarse / "a").read_bytes() == NEW
    assert landing.delete(digests(plan(landing), NEW), Silent()) == 1


@pytest.mark.parametrize("check", ["read", "version"])
def test_hard_links_are_all_deleted(tmp_path: Path, check: str) -> None:
    # Each removal moves the change time of the others.
    (folder := tmp_path / "p" / "x").mkdir(parents=True)
    (folder / "a").write_bytes(OLD)
    (folder / "d").mkdir()
    for name in ("b", "d/c"):
        os.link(folder / "a", folder / name)
    landing = coarse_landing(folder, delete_check=check)
    files = plan(landing)
    assert landing.delete(digests(files, OLD), Silent()) == 3
    assert plan(landing) == []


def test_p1_a_file_whose_bytes_are_right_but_which_was_touched_is_kept(tmp_path: Path) -> None:
    (folder := tmp_path / "p" / "x").mkdir(parents=True)
    (folder / "a").write_bytes(OLD)
    landing = coarse_landing(folder)
    files = plan(landing)
    os.utime(folder / "a", (1, 1))
    assert landing.delete(digests(files, OLD), Silent()) == 0
