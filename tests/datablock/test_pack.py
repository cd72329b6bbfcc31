"""Packed datablocks, held against GNU tar, gzip, zstd and Python's tarfile."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import psutil
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver import errors
from archiver.datablock import tar
from archiver.datablock.files import CatalogueFile, PlannedFile
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.members import gzip_member
from archiver.datablock.pack import pack
from archiver.progress import Silent
from tests.counts import often
from tests.datablock.making import TIME, catalogue, packed, planned, source

RNG = random.Random(20261124)
NAMES = [
    "plain.dat",
    "with space/and 'quotes\".dat",
    "-rf",
    "--help",
    "new\nline\ttab",
    "é/ü.dat",
    "e\u0301/combining.dat",
    "日本語/データ.h5",
    "n" * 200,
    "s/" * 60 + "deep.dat",
    "d" * 100 + "/" + "f" * 90,
    "d" * 155 + "/" + "f" * 100,
    "d" * 156 + "/" + "f" * 100,
    "back\\slash",
    "*?[x]",
    "emoji😀",
    "CAPS",
    "caps",
    ".hidden",
    "#12#3",
    "\u202eright-to-left",
]


def some_files() -> dict[str, bytes]:
    sizes = [0, 1, 511, 512, 513, 70_000, 200_000]
    return {name: RNG.randbytes(sizes[k % len(sizes)]) for k, name in enumerate(NAMES)}


def test_gnu_tar_unpacks_every_name_and_byte(tmp_path: Path) -> None:
    files = some_files()
    data, _ = packed(files)
    (tmp_path / "1.tar.gz").write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["gzip", "-t", "1.tar.gz"], cwd=tmp_path, check=True)
    unpacked = subprocess.run(["tar", "-xzf", "../1.tar.gz"], cwd=out, capture_output=True, text=True)
    assert (unpacked.returncode, unpacked.stderr) == (0, "")
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == files


def test_tarfile_reads_the_same_facts() -> None:
    files = some_files()
    listed = catalogue(files, mode=0o100640, uid="1234", gid="staff")
    data, _ = packed(files, listed=listed)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [file.path for file in listed]
        for member in members:
            assert (member.mode, member.uid, member.gname, member.mtime) == (0o640, 1234, "staff", 1772600767)
            body = archive.extractfile(member)
            assert body is not None
            assert body.read() == files[member.name]


def test_gnu_tar_lists_a_file_of_8_gib_and_its_owner_as_planned(tmp_path: Path) -> None:
    """Only the headers: GNU tar reads over the bytes of a sparse file."""
    size = 8 * 2**30
    file = PlannedFile("big \u00e9", size, TIME, "v", mode=0o4751, uid="3000000000", gid="gr\u00fcn")
    with (tmp_path / "a.tar").open("wb") as out:
        out.write(tar.header(file))
        out.seek(size, os.SEEK_CUR)
        out.write(tar.END_OF_ARCHIVE)
    listed = subprocess.run(
        ["tar", "-tvf", "a.tar", "--numeric-owner", "--utc", "--full-time", "--quoting-style=literal"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert listed == ["-rwsr-x--x", "3000000000/0", str(size), "2026-03-04", "05:06:07", "big", "é"]


name_strategy = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 255)


@settings(max_examples=often(150), deadline=None)
@given(
    st.lists(name_strategy, min_size=1, max_size=6).map("/".join),
    st.integers(0, 2**40),
    st.one_of(st.none(), st.integers(0, 0o7777)),
    st.one_of(
        st.none(),
        st.text(st.characters(), max_size=40),
        st.sampled_from(["a b", "ü", "\ud800", "\0", "9" * 30]),
        st.integers(0, 2**33).map(str),
    ),
)
def test_every_header_says_to_tarfile_what_was_meant(path: str, size: int, mode: int | None, owner: str | None) -> None:
    file = PlannedFile(path, size, TIME, "v", mode=mode, uid=owner, gid=owner)
    block = tar.header(file)
    assert len(block) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(block + tar.END_OF_ARCHIVE)) as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size, member.type) == (path, size, tarfile.REGTYPE)
    assert member.mode == (0o644 if mode is None else mode)
    if owner and not owner.isprintable():
        assert (member.uid, member.uname) == (0, "")
    elif owner and owner.isascii() and owner.isdigit() and int(owner) < 2**32 - 1:
        assert (member.uid, member.gid, member.uname) == (int(owner), int(owner), "")
    else:
        assert (member.uid, member.uname, member.gname) == (0, owner or "", owner or "")


@pytest.mark.parametrize("path", ["a", "d" * 100, "d" * 60 + "/" + "f" * 60])
def test_our_own_header_is_the_one_that_tarfile_writes(path: str) -> None:
    file = PlannedFile(path, 1234, TIME, "v", mode=0o600, uid="12", gid="34")
    info = tarfile.TarInfo(path)
    info.size, info.mode, info.mtime, info.uid, info.gid = 1234, 0o600, tar.seconds(TIME), 12, 34
    assert tar.header(file) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("1970-01-01T00:00:01.900Z", 1),
        ("2026-01-01T01:00:00+01:00", 1767225600),
        ("2026-01-01T00:00:00", 1767225600),
        ("", 0),
        ("yesterday", 0),
        ("1960-01-01T00:00:00Z", 0),
    ],
)
def test_times_are_whole_seconds_of_utc(time: str, expected: int) -> None:
    assert tar.seconds(time) == expected


@pytest.mark.parametrize("format", ["tar", "tar.gz", "tar.zst"])
def test_every_format_holds_the_same_tar(format: str) -> None:
    files = some_files()
    data, making = packed(files, format=format)
    if format == "tar.gz":
        plain = gzip.decompress(data)
    elif format == "tar.zst":
        plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
    else:
        plain = data
    reference, _ = packed(files, format="tar")
    assert plain == reference
    assert making.result.sha256 == hashlib.sha256(data).hexdigest()


def test_the_same_plan_and_bytes_give_the_same_datablock_however_they_arrive() -> None:
    files = some_files()
    one, first = packed(files, chunk=10_000)
    two, second = packed(files, chunk=7)
    assert one == two
    assert first.manifest == second.manifest


def test_the_tar_of_a_known_plan_is_the_one_it_always_was() -> None:
    """If this changes, ``PLAN_VERSION`` must: a plan's id stands for its bytes."""
    listed = [
        CatalogueFile("a", 3, TIME, mode=0o640, uid="1234", gid="staff"),
        CatalogueFile("d" * 100 + "/" + "f" * 90, 3, TIME),
        CatalogueFile("e\u0301/" + "n" * 200, 3, TIME, uid="3000000000"),
    ]
    data, _ = packed({file.path: b"xyz" for file in listed}, listed=listed, format="tar")
    assert hashlib.sha256(data).hexdigest() == "dc85576e3e5639f07087e883ea2d3202007290c7e201c3f404a7ad5e9ffbbf1a"


def test_the_manifest_says_where_every_file_lies() -> None:
    files = some_files()
    data, making = packed(files)
    reader = ManifestReader([making.manifest])
    listed = list(reader.files())
    footer, sizes = reader.footer, list(reader.member_sizes)
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    assert (footer.files, footer.packed_bytes, footer.members) == (len(files), len(data), len(sizes))
    assert len(sizes) > 5
    for file in listed:
        assert file.sha256 == hashlib.sha256(files[file.path]).hexdigest()
        # From the member named, and on, the file's header is found at its offset.
        plain = gzip.decompress(data[starts[file.member] :])
        at = file.offset - file.member * reader.header.member_bytes
        with tarfile.open(fileobj=io.BytesIO(plain[at:])) as archive:
            member = archive.next()
        assert member is not None
        assert member.name == file.path


def test_the_documented_way_to_have_one_file_gives_its_bytes(tmp_path: Path) -> None:
    files = some_files()
    data, making = packed(files)
    (tmp_path / "1.tar.gz").write_bytes(data)
    (tmp_path / "1.manifest.jsonl.gz").write_bytes(making.manifest)
    page = (Path(__file__).parents[2] / "docs/manifest.md").read_text("utf-8")
    script = page.split("<<'END'\n")[1].split("END\n")[0]
    for name, body in files.items():
        done = subprocess.run(
            [sys.executable, "-", "1", name], input=script.encode(), cwd=tmp_path, capture_output=True
        )
        assert done.stdout == body, done.stderr


def test_a_lone_surrogate_beside_the_path_survives_in_the_manifest() -> None:
    listed = [CatalogueFile("a", 1, TIME, chk="\ud800", chk_alg="none", uid="\udfff")]
    _, making = packed({"a": b"x"}, listed=listed)
    (file,) = ManifestReader([making.manifest]).files()
    assert (file.chk, file.uid) == ("\ud800", "\udfff")


def test_p4_a_file_that_gives_other_bytes_than_planned_is_named() -> None:
    files = {"a": b"1" * 100, "b": b"2" * 100}
    plan, blocks = planned(catalogue(files), source(files))
    for wrong in (b"2" * 99, b"2" * 101, b""):
        parts = [(file, [files["a"] if file.path == "a" else wrong]) for file in blocks[1]]
        with pytest.raises(errors.SourceChanged, match="'b'"):
            list(pack(iter(parts), plan=plan, n=1, progress=Silent()))


@pytest.mark.parametrize("algorithm", ["sha256", "SHA-256", "md5", "sha1", "blake2b", "SHA512", "SHA3-256"])
def test_p4_the_catalogues_checksum_is_compared_where_hashlib_has_it(algorithm: str) -> None:
    files = {"a": b"payload"}
    name = {"SHA3-256": "sha3_256"}.get(algorithm, algorithm.lower().replace("-", ""))
    right = hashlib.new(name, files["a"]).hexdigest()
    packed(files, listed=[CatalogueFile("a", 7, TIME, chk=right.upper(), chk_alg=algorithm)])
    with pytest.raises(errors.ChecksumDiffers, match="'a'") as raised:
        packed(files, listed=[CatalogueFile("a", 7, TIME, chk="0" * len(right), chk_alg=algorithm)])
    assert right in raised.value.one_line()


@pytest.mark.parametrize("algorithm", ["adler-rot13", "crc32c", "md4", "shake_128"])
def test_a_checksum_that_hashlib_does_not_have_everywhere_is_kept_but_not_compared(algorithm: str) -> None:
    _, making = packed({"a": b"x"}, listed=[CatalogueFile("a", 1, TIME, chk="zz", chk_alg=algorithm)])
    (file,) = ManifestReader([making.manifest]).files()
    assert (file.chk, file.chk_alg) == ("zz", algorithm)


def test_p5_who_stops_taking_leaves_no_thread_behind() -> None:
    files = {f"{k}": os.urandom(200_000) for k in range(20)}
    plan, blocks = planned(catalogue(files), source(files))
    before = threading.active_count()
    taking = iter(pack(((file, [files[file.path]]) for file in blocks[1]), plan=plan, n=1, progress=Silent()))
    next(taking)
    taking.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_error_of_the_source_reaches_the_one_who_takes() -> None:
    files = {"a": b"1", "b": b"2"}
    plan, blocks = planned(catalogue(files), source(files))

    def broken():  # type: ignore[no-untyped-def]
        yield blocks[1][0], [b"1"]
        raise errors.SourceFault("gone")

    before = threading.active_count()
    with pytest.raises(errors.SourceFault, match="gone"):
        list(pack(broken(), plan=plan, n=1, progress=Silent()))
    assert threading.active_count() == before


def test_p5_a_stop_ends_packing_at_the_next_chunk_and_closes_the_source() -> None:
    class StopThen(Silent):
        def advance(self, size_bytes: int = 0, files: int = 0) -> None:
            if files:
                raise errors.Stopped("now")

    files = {f"{k}": b"1" for k in range(10)}
    plan, blocks = planned(catalogue(files), source(files))
    opened: list[str] = []
    closed: list[bool] = []

    def parts():  # type: ignore[no-untyped-def]
        try:
            for file in blocks[1]:
                opened.append(file.path)
                yield file, [b"1"]
        finally:
            closed.append(True)

    with pytest.raises(errors.Stopped):
        list(pack(parts(), plan=plan, n=1, progress=StopThen()))
    assert (opened, closed) == (["0"], [True])


@settings(max_examples=often(60), deadline=None)
@given(st.binary(max_size=300_000), st.booleans())
def test_a_gzip_member_is_what_gzip_reads_and_never_grows_much(data: bytes, noisy: bool) -> None:
    data = random.Random(len(data)).randbytes(len(data)) if noisy else data
    member = gzip_member(memoryview(data), 1)
    assert gzip.decompress(member) == data
    assert len(member) <= len(data) + len(data) // 1000 + 64


def test_p10_memory_does_not_grow_with_the_size_of_the_files() -> None:
    """Resident memory of this process while 64 MiB and while 1 GiB is packed, the heap warmed up by a first round."""
    process, peaks = psutil.Process(), []
    body = RNG.randbytes(2**20)
    for count in (64, 64, 1024):
        plan, _ = planned(catalogue({"a": b""}), source({"a": b""}), member_bytes=4 * 2**20)
        file = PlannedFile("a", count * 2**20, TIME, "v")
        making = pack([(file, (body for _ in range(count)))], plan=plan, n=1, progress=Silent())
        peaks.append(max(process.memory_info().rss for _ in making))
    assert peaks[2] - peaks[1] < 32 * 2**20


def test_p10_memory_does_not_grow_with_the_number_of_files() -> None:
    """Resident memory of this process while 1,000 and while 50,000 files, the most in a datablock, are packed."""
    process, peaks = psutil.Process(), []
    body = bytes(100)
    for count in (1_000, 50_000):
        listed = [CatalogueFile(f"dir/{k:08}", 100, TIME) for k in range(count)]
        plan, _ = planned(listed[:1], source({listed[0].path: body}), max_files=50_000)
        files = ((PlannedFile.of(file, "v"), [body]) for file in listed)
        making = iter(pack(files, plan=plan, n=1, progress=Silent()))
        peak = 0
        for _ in making:
            peak = max(peak, process.memory_info().rss)
        peaks.append(peak)
        del listed
    assert peaks[1] - peaks[0] < 40 * 2**20
