"""Hostile datablocks and manifests: nothing of them is delivered, and memory stays bounded."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from archiver import errors
from archiver.datablock import decode, members, tar
from archiver.datablock.extract import extract, extract_files, pass_through, select
from archiver.datablock.files import PlannedFile
from archiver.settings import DatablockSettings
from tests.datablock.extracting import MEMBER_BYTES, Sink, Source, forge, nothing, take_all
from tests.datablock.making import TIME

BODY = b"innocent" * 100


def header(path: str, size: int, **fields: Any) -> bytes:
    """Any header that ``tarfile`` can write; without fields, our own."""
    if not fields:
        return tar.header(PlannedFile(path, size, TIME, "v"))
    info = tarfile.TarInfo(path)
    info.size = size
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.PAX_FORMAT if "pax_headers" in fields else tarfile.GNU_FORMAT)


def raw(block: bytes, **at: bytes) -> bytes:
    """A header with bytes written over it at given places (``p345``), its checksum right."""
    changed = bytearray(block)
    for place, value in at.items():
        changed[int(place[1:]) : int(place[1:]) + len(value)] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def member(head: bytes, body: bytes = BODY) -> bytes:
    return head + body + tar.padding(len(body))


def archive(*members: bytes) -> bytes:
    return b"".join(members) + tar.END_OF_ARCHIVE


def refused(data: bytes, manifest: bytes) -> tuple[str, Sink]:
    """Refused in every mode; only what the manifest names was begun, and only right bytes were committed."""
    sinks = [Sink(), Sink()]
    written: list[int] = []
    tries: list[Callable[[], object]] = [
        lambda: extract(Source(data).whole, manifest, sinks[0], progress=nothing),
        lambda: extract_files(Source(data).range, manifest, lambda _: True, sinks[1], progress=nothing),
        lambda: pass_through(Source(data).whole, manifest, lambda it: written.append(len(it)), progress=nothing),
    ]
    found = []
    for mode in tries:
        with pytest.raises(errors.IntegrityMismatch) as raised:
            mode()
        assert not raised.value.retryable
        found.append(str(raised.value))
    for sink in sinks:
        assert set(sink.begun) <= {"a", "b", "c"}
        assert all(content == BODY for content in sink.committed.values())
        assert not sink.left_open
    return found[0], sinks[0]


FIRST = member(header("a", len(BODY)))
SECOND = len(FIRST)

LIES = {
    "climbs": member(header("../b", len(BODY))),
    "climbs in the middle": member(header("b/../../b", len(BODY))),
    "absolute": member(header("/b", len(BODY))),
    "absolute by the prefix": member(raw(header("b", len(BODY)), p345=b"/etc")),
    "dot": member(header("./b", len(BODY))),
    "other name": member(header("c", len(BODY))),
    "first file again": member(header("a", len(BODY))),
    "symbolic link": member(header("b", 0, type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "hard link": member(header("b", 0, type=tarfile.LNKTYPE, linkname="a")),
    "hard link with bytes": member(raw(header("b", len(BODY)), p156=b"1", p157=b"../../x")),
    "folder": member(header("b", 0, type=tarfile.DIRTYPE)),
    "device": member(header("b", 0, type=tarfile.CHRTYPE)),
    "pipe": member(header("b", 0, type=tarfile.FIFOTYPE)),
    "GNU sparse": member(header("b", len(BODY), type=tarfile.GNUTYPE_SPARSE)),
    "GNU long name": member(header("b" * 200, len(BODY), type=tarfile.REGTYPE)),
    "PAX path": member(header("b", len(BODY), pax_headers={"path": "../b"})),
    "PAX absolute path": member(header("b", len(BODY), pax_headers={"path": "/b"})),
    "PAX empty path": member(header("c", len(BODY), pax_headers={"path": ""})),
    "PAX link": member(header("b", len(BODY), pax_headers={"linkpath": "/etc/passwd"})),
    "PAX size": member(header("b", len(BODY), pax_headers={"size": "1000000000000"})),
    "PAX size of nothing": member(header("b", len(BODY), pax_headers={"size": "0"})),
    "PAX size that is none": member(header("b", len(BODY), pax_headers={"size": "-1"})),
    "PAX sparse": member(header("b", len(BODY), pax_headers={"GNU.sparse.realsize": "1000000000000"})),
    "PAX sparse name": member(header("b", len(BODY), pax_headers={"GNU.sparse.name": "../b"})),
    "PAX of nobody": member(header("b", len(BODY), pax_headers={"hdrcharset": "BINARY"})),
    "PAX for all": member(raw(header("x", 13), p156=b"g"), b"13 path=../b\n"),
    "size of 8 GiB and more": member(raw(header("b", len(BODY)), p124=b"\x80" + b"\xff" * 11)),
    "negative size": member(raw(header("b", len(BODY)), p124=b"-0000000001\0")),
    "end of archive too early": bytes(1024) + FIRST,
    "zeros": bytes(1024),
    "checksum": bytes(100) + member(header("b", len(BODY)))[100:],
    "not in the manifest's order": member(header("c", len(BODY))) + member(header("b", len(BODY))),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("format", ["tar.gz", "tar"])
def test_a_hostile_member_is_refused_by_an_honest_manifest(lie: str, format: str) -> None:
    whole = archive(FIRST, LIES[lie])
    expected = [("a", len(BODY), 0, BODY), ("b", len(BODY), SECOND, BODY)]
    if lie.startswith("not in"):
        expected.append(("c", len(BODY), SECOND + len(FIRST), BODY))
    data, manifest = forge(whole, expected, format=format)
    _, sink = refused(data, manifest)
    assert list(sink.committed) == ["a"] or not sink.committed


def test_honest_members_made_by_the_same_hand_are_taken() -> None:
    """Else the tests beside this one would refuse for another reason."""
    parts = [FIRST, member(header("b", len(BODY))), member(header("c", len(BODY), pax_headers={"path": "c"}))]
    data, manifest = forge(
        archive(*parts),
        [("a", len(BODY), 0, BODY), ("b", len(BODY), SECOND, BODY), ("c", len(BODY), 2 * SECOND, BODY)],
    )
    assert take_all(data, manifest)[0].committed == {"a": BODY, "b": BODY, "c": BODY}


@pytest.mark.parametrize(
    "path",
    ["", "/a", "..", "../a", "a/../../b", "a/..", "./a", "a//b", "a/", "a\0b", "x" * 256, "a/" * 2100 + "a", "\ud800"],
)
def test_a_hostile_path_in_the_manifest_itself_is_refused_before_anything_is_read(path: str) -> None:
    head = header("a", len(BODY), pax_headers={"path": path.replace("\ud800", "?")})
    data, manifest = forge(archive(member(head)), [(path, len(BODY), 0, BODY)])
    source, sink = Source(data), Sink()
    for mode in (
        lambda: extract(source.whole, manifest, sink, progress=nothing),
        lambda: extract_files(source.range, manifest, lambda _: True, sink, progress=nothing),
        lambda: pass_through(source.whole, manifest, lambda _: None, progress=nothing),
        lambda: select(manifest),
    ):
        with pytest.raises(errors.IntegrityMismatch, match="a path that a file below a dataset can have"):
            mode()
    assert source.read_bytes == sink.calls == 0


def test_a_path_twice_in_tar_and_manifest_is_refused_before_anything_is_read() -> None:
    data, manifest = forge(archive(FIRST, FIRST), [("a", len(BODY), 0, BODY), ("a", len(BODY), SECOND, BODY)])
    _, sink = refused(data, manifest)
    assert not sink.begun


HONEST = archive(FIRST, member(header("b", len(BODY))))


@pytest.mark.parametrize(
    ("second", "footer"),
    [
        ({"size": len(BODY) + 1}, {}),
        ({"size": 10**15}, {}),
        ({"size": 2**70}, {}),
        ({"size": -1}, {}),
        ({"offset": SECOND + 512}, {}),
        ({"offset": SECOND + 1}, {}),
        ({"offset": 0}, {}),
        ({"offset": -512}, {}),
        ({"offset": 2**70, "member": 2**54}, {}),
        ({"member": 1}, {}),
        ({"sha256": "0" * 64}, {}),
        ({"sha256": ""}, {}),
        ({"path": "c"}, {}),
        ({}, {"files": 3}),
        ({}, {"size_bytes": 1}),
        ({}, {"tar_bytes": len(HONEST) + 512}),
        ({}, {"tar_bytes": 0}),
        ({}, {"tar_bytes": 2**70}),
        ({}, {"sha256": "0" * 64}),
    ],
)
def test_a_manifest_at_odds_with_the_tar_is_refused(second: dict[str, Any], footer: dict[str, Any]) -> None:
    data, manifest = forge(HONEST, [("a", len(BODY), 0, BODY), ("b", len(BODY), SECOND, BODY)])
    lines = [json.loads(line) for line in zlib.decompress(manifest, 31).splitlines()]
    lines[2].update(second)
    lines[-1].update(footer)
    told = zlib_gzip("".join(json.dumps(line) + "\n" for line in lines).encode())
    if set(footer) == {"sha256"}:
        # Nobody reads the whole for a few files.
        sink = Sink()
        extract_files(Source(data).range, told, lambda path: path == "b", sink, progress=nothing)
        assert sink.committed == {"b": BODY}
        with pytest.raises(errors.IntegrityMismatch):
            take_all(data, told)
        return
    refused(data, told)


def test_a_manifest_that_nests_without_end_is_refused() -> None:
    data, manifest = forge(HONEST, [("a", len(BODY), 0, BODY), ("b", len(BODY), SECOND, BODY)])
    first = zlib.decompress(manifest, 31).split(b"\n")[0]
    _, sink = refused(data, zlib_gzip(first + b"\n" + b"[" * 200_000 + b"\n"))
    assert not sink.begun


def zlib_gzip(plain: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(plain) + packer.flush()


@pytest.mark.parametrize("member_bytes", [0, -1, decode.MAX_MEMBER_BYTES + 1, 2**62])
def test_members_larger_than_the_settings_allow_are_refused_before_anything_is_read(member_bytes: int) -> None:
    data, manifest = forge(HONEST, [("a", len(BODY), 0, BODY), ("b", len(BODY), SECOND, BODY)], format="tar.zst")
    lines = [json.loads(line) for line in zlib.decompress(manifest, 31).splitlines()]
    lines[0]["member_bytes"] = member_bytes
    source = Source(data)
    with pytest.raises(errors.IntegrityMismatch, match="members of at most"):
        extract(
            source.whole, zlib_gzip("".join(json.dumps(it) + "\n" for it in lines).encode()), Sink(), progress=nothing
        )
    assert source.read_bytes == 0


def test_the_largest_members_that_settings_allow_can_be_read() -> None:
    assert DatablockSettings(member_bytes=decode.MAX_MEMBER_BYTES).member_bytes == decode.MAX_MEMBER_BYTES
    with pytest.raises(ValueError, match="less than or equal"):
        DatablockSettings(member_bytes=decode.MAX_MEMBER_BYTES + 1)


# --- bombs: in a process of their own, whose memory is looked at --------------------------------------------------------------

BOMB_BYTES = 2**28
GROWTH_BYTES = 96 * 2**20
CHILD = """
import resource, sys
from pathlib import Path
from archiver import errors
from archiver.datablock.extract import extract, extract_files
data, manifest = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes()
class Sink:
    def begin(self, file): return True
    def data(self, chunk): pass
    def commit(self): pass
    def abort(self): pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for run in (
    lambda: extract(lambda: [memoryview(data)], manifest, Sink(), progress=lambda _: None),
    lambda: extract_files(
        lambda at, size: [memoryview(data)[at:at + size]], manifest, lambda _: True, Sink(), progress=lambda _: None
    ),
):
    try:
        run()
    except errors.IntegrityMismatch as error:
        print("refused", error.found or error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def zeros_as_gzip(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20)) + packer.flush()


def zeros_as_zstd(size: int, *, told: bool) -> bytes:
    packer = zstandard.ZstdCompressor(level=1, write_content_size=told).compressobj(size=size if told else -1)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20)) + packer.flush()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "gzip": ("tar.gz", lambda: zeros_as_gzip(BOMB_BYTES)),
    "zstd that tells its size": ("tar.zst", lambda: zeros_as_zstd(BOMB_BYTES, told=True)),
    "zstd that does not": ("tar.zst", lambda: zeros_as_zstd(BOMB_BYTES, told=False)),
    "zstd that lies": ("tar.zst", lambda: _lying(zeros_as_zstd(BOMB_BYTES, told=True))),
}


def _lying(frame: bytes) -> bytes:
    """A frame whose header says 65,536 where ``BOMB_BYTES`` was said: four bytes of it (RFC 8878 3.1.1.1.4)."""
    at = frame.index(BOMB_BYTES.to_bytes(4, "little"), 0, 18)
    return frame[:at] + MEMBER_BYTES.to_bytes(4, "little") + frame[at + 4 :]


@pytest.mark.parametrize("kind", BOMBS)
def test_p10_a_decompression_bomb_is_stopped_at_the_size_of_a_member(tmp_path: Path, kind: str) -> None:
    """256 MiB of zeros in the place of 64 KiB; nothing that a member claims is believed."""
    format, make = BOMBS[kind]
    bomb = make()
    assert len(bomb) < BOMB_BYTES / 900
    honest = members.compressor(format, 1)
    big = b"i" * (3 * MEMBER_BYTES)
    data, manifest = forge(
        archive(member(header("a", len(big)), big)),
        [("a", len(big), 0, big)],
        format=format,
        compress=lambda k, piece: bomb if k == 1 else honest(piece),
    )
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "manifest").write_bytes(manifest)
    lines = _child(tmp_path)
    assert ["refused" in line and "member 2" in line for line in lines[:-1]] == [True, True]
    assert int(lines[-1]) < GROWTH_BYTES


def test_p10_a_manifest_that_decompresses_without_end_is_stopped(tmp_path: Path) -> None:
    data, manifest = forge(HONEST, [("a", len(BODY), 0, BODY), ("b", len(BODY), SECOND, BODY)])
    first = zlib.decompress(manifest, 31).split(b"\n")[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(first + b'\n{"kind":"file","path":"')]
    parts += [packer.compress(b"a" * 2**20) for _ in range(256)]
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "manifest").write_bytes(b"".join(parts) + packer.flush())
    lines = _child(tmp_path)
    assert [line.split()[0] for line in lines[:-1]] == ["refused", "refused"]
    assert int(lines[-1]) < GROWTH_BYTES


def _child(folder: Path) -> list[str]:
    command = [sys.executable, "-c", CHILD, str(folder / "data"), str(folder / "manifest")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_forged_tars_are_what_tarfile_would_follow() -> None:
    """They are tars: a reader that extracts what it sees would do as they say."""
    followed = {
        "climbs": "../b",
        "absolute": "/b",
        "PAX path": "../b",
        "PAX for all": "../b",
    }
    for lie, name in followed.items():
        more = member(header("b", len(BODY))) if lie == "PAX for all" else b""
        with tarfile.open(fileobj=io.BytesIO(archive(FIRST, LIES[lie], more))) as seen:
            assert seen.getmembers()[1].name == name
