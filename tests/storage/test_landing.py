"""Landing zones: what lies there is said exactly or refused by name, and not a byte comes from outside (P4)."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from archiver.datablock.files import PlannedFile, SourceFile, path_key
from archiver.errors import CatalogueRecordInvalid, HostilePath, SourceChanged, SourceFault
from archiver.progress import Silent
from archiver.settings import LandingSettings, S3Settings
from archiver.storage.landing import Landing, open_landing
from tests.storage.conftest import new_bucket

SECRET = b"secret of another: not a byte of this may be read"
NAMES = [
    "plain.txt",
    "a-b",
    "a/b",
    "a/c#1",
    "a0",
    "deep/er/and/deeper",
    "100%2Fpercent",
    "two  spaces ",
    "-rf",
    "tab\tname",
    "\u00e9",
    "e\u0301",
    "Case",
    "case",
    "\uff5e",
    "\U0001f600",
    "n" * 255,
    ".hidden",
]


def opened(template: str, fields: dict[str, str], s3: S3Settings | None = None, **settings: object) -> Landing:
    """The landing zone of that template."""
    landing = LandingSettings.model_validate({"url_template": template, **settings})
    return open_landing(landing, s3 or S3Settings(), fields)


class Zone:
    """One dataset's folder of a landing zone, as those see it who write there."""

    def __init__(self, landing: Landing, write: Callable[[str, bytes], None], remove: Callable[[str], None]) -> None:
        self.landing, self.write, self.remove = landing, write, remove

    def planned(self) -> list[PlannedFile]:
        return [planned(file) for file in self.landing.list()]

    def fetch(self, files: Iterable[PlannedFile]) -> dict[str, bytes]:
        parts = self.landing.fetch(files, ahead_bytes=2**20, ahead_objects=4)
        return {file.path: b"".join(bytes(chunk) for chunk in chunks) for file, chunks in parts}

    def delete(self, files: Iterable[PlannedFile], archived: bytes = b"x" * 1000) -> int:
        return self.landing.delete([(file, hashlib.sha256(archived).hexdigest()) for file in files], Silent())

    def left(self) -> list[str]:
        return [file.path for file in self.landing.list()]


def planned(file: SourceFile) -> PlannedFile:
    return PlannedFile(file.path, file.size, "2026-01-01T00:00:00Z", file.version)


def bucket_zone(s3: S3Settings) -> Zone:
    bucket = new_bucket(s3)
    bucket.put("p/other", b"outside the prefix")
    bucket.put("p/x2/neighbour", b"of a neighbour")
    landing = opened(f"s3://{bucket.name}/{{pid}}/", {"pid": "p/x"}, s3)
    return Zone(
        landing, lambda path, data: bucket.put(f"p/x/{path}", data), lambda path: bucket.delete([f"p/x/{path}"])
    )


def folder_zone(folder: Path, **settings: object) -> Zone:
    def write(path: str, data: bytes) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)

    root, pid = folder.parent.parent, f"{folder.parent.name}/{folder.name}"
    landing = opened(f"file://{root}/{{pid}}/", {"pid": pid}, **settings)
    return Zone(landing, write, lambda path: (folder / path).unlink())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of one dataset, with neighbours."""
    path = tmp_path / "data" / "p" / "x"
    path.mkdir(parents=True)
    (path.parent / "x2").mkdir()
    (path.parent / "x2" / "neighbour").write_bytes(SECRET)
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(SECRET)
    return path


@pytest.fixture(params=["versitygw", "moto", "directory"])
def zone(request: pytest.FixtureRequest) -> Zone:
    """Each kind of landing zone in turn."""
    if request.param == "directory":
        return folder_zone(request.getfixturevalue("folder"))
    return bucket_zone(request.getfixturevalue({"versitygw": "s3", "moto": "moto"}[request.param]))


# --- all kinds --------------------------------------------------------------------------------------------------------


def test_p4_every_file_is_listed_once_in_the_order_of_bytes_and_read_as_it_is(zone: Zone) -> None:
    there = {name: secrets.token_bytes(n) for n, name in enumerate(NAMES)}
    for name, data in there.items():
        zone.write(name, data)
    files = zone.planned()
    assert [file.path for file in files] == sorted(there, key=path_key)
    assert [file.size for file in files] == [len(there[file.path]) for file in files]
    assert zone.fetch(files) == there
    assert list(zone.fetch(reversed(files))) == [file.path for file in reversed(files)]


def test_a_landing_zone_without_the_dataset_is_empty(zone: Zone) -> None:
    assert zone.planned() == []


def grown(zone: Zone) -> None:
    zone.write("b", b"x" * 1001)


def cut(zone: Zone) -> None:
    zone.write("b", b"x" * 999)


def replaced(zone: Zone) -> None:
    zone.write("b", b"y" * 1000)


def vanished(zone: Zone) -> None:
    zone.remove("b")


CHANGES = [grown, cut, replaced, vanished]


@pytest.mark.parametrize("change", CHANGES)
def test_p4_a_file_that_changed_after_the_plan_is_named_and_not_archived(
    zone: Zone, change: Callable[[Zone], None]
) -> None:
    for name in "abc":
        zone.write(name, b"x" * 1000)
    files = zone.planned()
    change(zone)
    with pytest.raises(SourceChanged) as caught:
        zone.fetch(files)
    assert caught.value.file == "'b'"


@pytest.mark.parametrize("change", CHANGES)
def test_p1_exactly_the_files_that_are_unchanged_are_deleted(zone: Zone, change: Callable[[Zone], None]) -> None:
    for name in ("a", "b", "c/d", "kept"):
        zone.write(name, b"x" * 1000)
    files = [file for file in zone.planned() if file.path != "kept"]
    change(zone)
    assert zone.delete(files) == 2
    assert zone.left() == (["kept"] if change is vanished else ["b", "kept"])
    assert zone.delete(files) == 0


def test_p1_hostile_names_are_deleted_by_their_own_bytes(zone: Zone) -> None:
    for name in NAMES:
        zone.write(name, b"x")
    files = zone.planned()
    spared = {"e\u0301", "case", "a/b"}
    assert zone.delete((file for file in files if file.path not in spared), b"x") == len(files) - 3
    assert set(zone.left()) == spared


# --- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/lead", "d//e", "x/./y", "x/../y", "\x01"], ids=ascii)
def test_p4_a_key_that_no_folder_can_hold_is_listed_and_left_to_the_plan_to_refuse(moto: S3Settings, path: str) -> None:
    zone = bucket_zone(moto)
    zone.write(path, b"data")
    assert zone.fetch(zone.planned()) == {path: b"data"}


def test_folders_that_tools_leave_as_empty_keys_are_no_files(moto: S3Settings) -> None:
    zone = bucket_zone(moto)
    zone.write("", b"")
    zone.write("sub/", b"")
    zone.write("sub/file", b"x")
    assert zone.left() == ["sub/file"]


def test_a_file_without_a_name_is_listed_and_no_fault_of_the_server(moto: S3Settings) -> None:
    zone = bucket_zone(moto)
    zone.write("", b"data")
    zone.write("a", b"x")
    assert zone.left() == ["", "a"]


def test_a_server_that_does_not_list_in_order_is_refused(s3: S3Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = bucket_zone(s3)
    for name in "abc":
        zone.write(name, b"x")
    bucket = zone.landing._bucket  # type: ignore[attr-defined]
    entries = list(bucket.list("p/x/"))
    monkeypatch.setattr(bucket, "list", lambda prefix: iter(reversed(entries)))
    with pytest.raises(SourceFault, match="not listed in the order of its keys") as caught:
        zone.planned()
    assert not caught.value.retryable


# --- directories ------------------------------------------------------------------------------------------------------


def link_to_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "secret")


def link_to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "outside")


def link_to_nothing(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "not there")


def link_within(path: Path, outside: Path) -> None:
    (path.parent / "a").write_bytes(b"x")
    path.symlink_to("a")


def fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def socket_file(path: Path, outside: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path, outside: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero: endless


SPECIAL = [link_to_file, link_to_folder, link_to_nothing, link_within, fifo, socket_file, device]


@pytest.mark.parametrize("make", SPECIAL)
def test_p4_whatever_is_no_regular_file_is_a_content_error_that_names_it(
    folder: Path, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    make(folder / "b", tmp_path)
    with pytest.raises(HostilePath) as caught:
        folder_zone(folder).planned()
    assert caught.value.file == "'b'"


@pytest.mark.parametrize("make", SPECIAL)
@pytest.mark.parametrize("at", ["b", "d/b"])
def test_not_a_byte_comes_through_what_was_put_in_a_files_place_after_the_plan(
    folder: Path, tmp_path: Path, make: Callable[[Path, Path], None], at: str
) -> None:
    zone = folder_zone(folder)
    zone.write(at, SECRET)
    files = zone.planned()
    (folder / at).unlink()
    make(folder / at, tmp_path)
    with pytest.raises(SourceChanged):
        zone.fetch(files)
    assert zone.delete(files) == 0
    assert (tmp_path / "secret").read_bytes() == SECRET


def test_not_a_byte_comes_through_a_folder_that_became_a_link_after_the_plan(folder: Path, tmp_path: Path) -> None:
    zone = folder_zone(folder)
    zone.write("d/file", SECRET)
    files = zone.planned()
    (folder / "d").rename(tmp_path / "moved")
    (folder / "d").symlink_to(tmp_path / "moved")
    with pytest.raises(SourceChanged):
        zone.fetch(files)
    assert zone.delete(files) == 0
    assert (tmp_path / "moved" / "file").read_bytes() == SECRET


def test_a_hard_link_is_a_file_as_any_other(folder: Path) -> None:
    zone = folder_zone(folder)
    zone.write("a", b"data")
    os.link(folder / "a", folder / "b")
    assert zone.fetch(zone.planned()) == {"a": b"data", "b": b"data"}


def test_a_name_that_is_no_utf_8_is_listed_in_order_and_never_lost(folder: Path) -> None:
    for name in (b"\xff", b"\xc3\xa9", b"z\x80/in", b"\xed\x95\x9c", b"\xf0\x9f\x98\x80"):
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(b"x")
    paths = [file.path for file in folder_zone(folder).landing.list()]
    assert len(paths) == 5
    assert paths == sorted(paths, key=path_key)
    assert "\udcff" in paths


def mtime_put_back(path: Path) -> None:
    before = path.stat()
    path.write_bytes(b"y" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def truncated(path: Path) -> None:
    os.truncate(path, 100)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(3 * 2**20)
        file.write(b"y")


def swapped(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.write_bytes(b"y" * (4 * 2**20))


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [appended, truncated, overwritten, mtime_put_back, swapped, gone])
def test_p4_a_file_that_changes_while_it_is_read_is_never_a_mixture(
    folder: Path, change: Callable[[Path], None]
) -> None:
    old = b"x" * (4 * 2**20)
    (folder / "a").write_bytes(old)
    zone = folder_zone(folder)
    parts = zone.landing.fetch(zone.planned(), ahead_bytes=2**20, ahead_objects=4)
    _, chunks = next(parts)
    got = bytes(next(chunks))
    change(folder / "a")
    try:
        got += b"".join(bytes(chunk) for chunk in chunks)
    except SourceChanged:
        return
    assert got == old


def test_a_fifo_never_blocks_whoever_waits_for_a_writer(folder: Path, tmp_path: Path) -> None:
    zone = folder_zone(folder)
    zone.write("b", b"x")
    files = zone.planned()
    (folder / "b").unlink()
    os.mkfifo(folder / "b")
    outcome: list[str] = []

    def fetch() -> None:
        try:
            zone.fetch(files)
        except SourceChanged:
            outcome.append("refused")

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(30)
    assert outcome == ["refused"]


@pytest.fixture
def deep(folder: Path) -> Iterator[Callable[[str, int], None]]:
    """Makes folders in folders, deeper than one path can say, and takes them away again."""

    def make(name: str, levels: int) -> None:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(levels):
            os.mkdir(name, dir_fd=at)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        os.close(at)

    yield make
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_folders_may_be_a_thousand_levels_deep(folder: Path, deep: Callable[[str, int], None]) -> None:
    deep("d", 1500)
    files = folder_zone(folder).planned()
    assert [file.path for file in files] == ["d/" * 1500 + "file"]
    assert folder_zone(folder).fetch(files) == {files[0].path: b""}


def test_folders_deeper_than_a_path_can_say_are_a_content_error(folder: Path, deep: Callable[[str, int], None]) -> None:
    deep("d" * 100, 60)
    with pytest.raises(HostilePath, match="cannot be archived"):
        folder_zone(folder).planned()


def test_the_version_of_a_file_is_the_same_on_every_host(folder: Path) -> None:
    # Device and inode may be numbers of one host or one mount: a plan made on one is packed on another.
    (folder / "a").write_bytes(b"x")
    found = (folder / "a").stat()
    [file] = folder_zone(folder).landing.list()
    assert file.version == f"{found.st_mtime_ns}:{found.st_ctime_ns}:1"


def test_an_unmounted_landing_zone_is_the_sources_fault_and_no_missing_files(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    for base in ("mount", "not there"):
        landing = opened(f"file://{tmp_path}/{base}/{{pid}}", {"pid": "p/x"})
        with pytest.raises(SourceFault) as caught:
            list(landing.list())
        assert caught.value.retryable


# --- where it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["file://{root}/data{{source_folder}}", "file://{root}/data/{{source_folder}}/"])
@pytest.mark.parametrize("source_folder", ["/p/x", "/p/x/"])
def test_a_source_folder_is_found_below_what_the_template_says(
    folder: Path, tmp_path: Path, template: str, source_folder: str
) -> None:
    (folder / "a").write_bytes(b"x")
    landing = opened(template.format(root=tmp_path), {"pid": "x", "source_folder": source_folder})
    assert [file.path for file in landing.list()] == ["a"]


@pytest.mark.parametrize(
    ("template", "where"),
    [
        *(("s3://landing/{source_folder}", "data/p1/x/"), ("s3://landing/{source_folder}/", "data/p1/x/")),
        *(
            ("s3://landing/raw/{source_folder}", "raw/data/p1/x/"),
            ("s3://landing/raw{source_folder}/", "raw/data/p1/x/"),
        ),
        *(("s3://landing/{pid}/{source_folder}/in", "a/b/data/p1/x/in/"), ("s3://landing/{{x}}/{pid}", "{x}/a/b/")),
    ],
)
@pytest.mark.parametrize("source_folder", ["/data/p1/x", "/data/p1/x/", "data/p1/x"])
def test_a_source_folder_is_a_prefix_without_a_slash_too_many(template: str, where: str, source_folder: str) -> None:
    fields = {"pid": "a/b", "source_folder": source_folder}
    if template == "s3://landing/raw{source_folder}/" and not source_folder.startswith("/"):
        with pytest.raises(CatalogueRecordInvalid, match="cannot be named"):
            opened(template, fields)
        return
    assert opened(template, fields).where == f"s3://landing/{where}"


@pytest.mark.parametrize("source_folder", ["/", "//", ""])
def test_a_source_folder_that_is_the_whole_bucket_is_refused(source_folder: str) -> None:
    with pytest.raises(CatalogueRecordInvalid, match="cannot be named"):
        opened("s3://landing/{source_folder}", {"pid": "a/b", "source_folder": source_folder})


def test_files_of_scicats_usual_source_folder_are_found_in_a_bucket(s3: S3Settings) -> None:
    bucket = new_bucket(s3)
    bucket.put("data/p1/x/a", b"x")
    landing = opened(f"s3://{bucket.name}/{{source_folder}}", {"pid": "a/b", "source_folder": "/data/p1/x"}, s3)
    assert [file.path for file in landing.list()] == ["a"]


@pytest.mark.parametrize("source_folder", ["/../outside", "/p/../../outside", "/..", "/p/x\0"])
def test_a_source_folder_that_climbs_is_refused(folder: Path, tmp_path: Path, source_folder: str) -> None:
    with pytest.raises(CatalogueRecordInvalid, match="no folder that may be read"):
        opened(f"file://{tmp_path}/data{{source_folder}}", {"source_folder": source_folder})


def test_a_source_folder_does_not_lengthen_the_templates_own_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data2").mkdir()
    (tmp_path / "data2" / "secret").write_bytes(SECRET)
    with pytest.raises(CatalogueRecordInvalid, match="cannot be named"):
        opened(f"file://{tmp_path}/data{{source_folder}}", {"source_folder": "2"})


@pytest.mark.parametrize("link", ["p", "p/x"])
def test_not_a_byte_comes_through_a_link_in_the_source_folder(folder: Path, tmp_path: Path, link: str) -> None:
    at = tmp_path / "data" / "users" / link
    at.parent.mkdir(parents=True)
    at.symlink_to(tmp_path / ("data/p" if link == "p" else "outside"))
    for end in ("", "/"):
        where = f"file://{tmp_path}/data{{source_folder}}{end}"
        landing = opened(where, {"source_folder": "/users/p/x"})
        with pytest.raises(HostilePath, match="symbolic link"):
            list(landing.list())


def test_links_of_the_operator_before_the_first_field_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    landing = opened(f"file://{tmp_path}/link/{{pid}}", {"pid": "p/x"})
    assert [file.path for file in landing.list()] == ["a"]


def test_a_source_folder_that_is_a_file_is_a_content_error(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_bytes(b"x")
    landing = opened(f"file://{tmp_path}/data{{source_folder}}", {"source_folder": "/p/x/a"})
    with pytest.raises(CatalogueRecordInvalid):
        list(landing.list())


@pytest.mark.parametrize("template", ["s3://landing/{owner_group}/{pid}/", "file:///data/{owner_group}/{pid}"])
def test_a_record_without_a_field_of_the_template_is_a_content_error(template: str) -> None:
    with pytest.raises(CatalogueRecordInvalid, match="cannot be named") as caught:
        opened(template, {"pid": "p/x"})
    assert "owner_group" in str(caught.value.expected)


def test_a_folder_of_the_dataset_that_vanished_after_the_plan_is_a_change(folder: Path) -> None:
    zone = folder_zone(folder)
    zone.write("a", b"x")
    files = zone.planned()
    zone.remove("a")
    folder.rmdir()
    with pytest.raises(SourceChanged):
        zone.fetch(files)
    assert zone.delete(files) == 0


def test_a_folder_that_cannot_be_read_is_the_sources_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = folder_zone(folder)
    zone.write("a", b"x")

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    files = zone.planned()
    monkeypatch.setattr(os, "read", broken)
    with pytest.raises(SourceFault, match="cannot be read: Input/output error"):
        zone.fetch(files)
