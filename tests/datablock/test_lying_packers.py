"""Packers that are wrong and agree with themselves: each is caught by one check of the verifier.

Turned round: a verifier that lacks the check passes the lie, and the test fails. So each test kills a mutant.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import random
import struct
import tarfile
import zlib
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from archiver import errors
from archiver.datablock import manifest as manifest_module
from archiver.datablock import members as members_module
from archiver.datablock import pack as pack_module
from archiver.datablock import tar
from archiver.datablock.files import PlannedFile
from archiver.datablock.verify import verify
from tests.counts import often
from tests.datablock.making import TIME, packed

RNG = random.Random(11)
FILES = {f"f{k:02}": RNG.randbytes(30_000 + k) for k in range(12)}


def refused(data: bytes, manifest: bytes) -> str:
    """Why the verifier refuses."""
    with pytest.raises(errors.IntegrityMismatch) as raised:
        verify(lambda: [memoryview(data)], manifest, progress=lambda _: None)
    return str(raised.value.found or raised.value)


def test_the_honest_packer_passes() -> None:
    data, making = packed(FILES)
    assert verify(lambda: [memoryview(data)], making.manifest, progress=lambda _: None).files == 12


def lie(monkeypatch: pytest.MonkeyPatch, change: Callable[[memoryview], bytes]) -> None:
    """Every member is made from changed bytes."""

    def lying(format: str, level: int) -> members_module.Compress:
        honest = members_module.compressor(format, level)
        return lambda data: honest(memoryview(change(data)))

    monkeypatch.setattr(pack_module, "compressor", lying)


def test_p2_a_byte_that_flips_between_source_and_encoder_is_found_by_the_files_hash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flip(data: memoryview) -> bytes:
        wrong = bytearray(data)
        wrong[len(wrong) // 3] ^= 1
        return bytes(wrong)

    lie(monkeypatch, flip)
    data, making = packed(FILES)
    assert "'f00' with SHA-256" in refused(data, making.manifest)


def test_p2_a_member_that_decodes_too_short_is_found_by_its_plain_size(monkeypatch: pytest.MonkeyPatch) -> None:
    lie(monkeypatch, lambda data: bytes(data[:-1]))
    data, making = packed(FILES)
    assert "65536 B expected in member 1, found 65535 B" in refused(data, making.manifest)


def test_p2_a_member_that_decodes_too_long_is_found_by_its_plain_size(monkeypatch: pytest.MonkeyPatch) -> None:
    lie(monkeypatch, lambda data: bytes(data) + b"\0")
    data, making = packed(FILES)
    assert "at most 65536 B expected in member 1" in refused(data, making.manifest)


def test_p2_a_change_that_decoding_does_not_see_is_found_by_the_hash_of_the_whole() -> None:
    data, making = packed(FILES)
    other = bytearray(data)
    other[9] ^= 0xFF  # the operating system in the gzip header (RFC 1952 2.3.1)
    assert gzip.decompress(bytes(other)) == gzip.decompress(data)
    assert making.result.sha256 in refused(bytes(other), making.manifest)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (b"", "end-of-archive blocks expected"),
        (bytes(512), "end-of-archive blocks expected"),
        (bytes(1536), "nothing expected behind the end of the archive"),
        (bytes(1024) + b"x" * 512, "end-of-archive expected"),
    ],
)
def test_p2_an_archive_with_another_end_is_found(monkeypatch: pytest.MonkeyPatch, end: bytes, words: str) -> None:
    monkeypatch.setattr(tar, "END_OF_ARCHIVE", end)
    data, making = packed(FILES)
    assert words in refused(data, making.manifest)


def test_p2_padding_that_holds_something_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "padding", lambda size: b"\xff" * (-size % 512))
    data, making = packed(FILES)
    assert "zeros expected behind a file" in refused(data, making.manifest)


def header_with(**changes: Any) -> Callable[[PlannedFile], bytes]:
    honest = tar.header

    def header(file: PlannedFile) -> bytes:
        return honest(dataclasses.replace(file, **changes)) if file.path == "f05" else honest(file)

    return header


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"path": "f5"}, "'f05' of 30005 B"), ({"size": 30_004}, "found 'f05' of 30004 B"), ({"path": "f04"}, "'f04'")],
)
def test_p2_a_header_that_says_something_else_is_found(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(tar, "header", header_with(**changes))
    data, making = packed(FILES)
    assert words in refused(data, making.manifest)


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"5", b"6", b"L", b"S", b"g", b"\0"])
def test_p2_a_member_that_is_no_regular_file_is_found(monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    honest = tar.header

    def header(file: PlannedFile) -> bytes:
        block = honest(file)[:148] + b" " * 8 + kind + honest(file)[157:]
        return block[:148] + b"%06o\0 " % sum(block) + block[156:]

    monkeypatch.setattr(tar, "header", header)
    data, making = packed(FILES)
    assert "a regular file expected" in refused(data, making.manifest)


def test_p2_a_pax_header_that_asks_for_more_than_name_size_and_owner_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def header(file: PlannedFile) -> bytes:
        info = tarfile.TarInfo(file.path)
        info.size, info.pax_headers = file.size, {"GNU.sparse.major": "1"}
        return info.tobuf(tarfile.PAX_FORMAT)

    monkeypatch.setattr(tar, "header", header)
    data, making = packed(FILES)
    assert "GNU.sparse.major" in refused(data, making.manifest)


def retold(manifest: bytes, change: Callable[[list[dict[str, Any]]], None]) -> bytes:
    """The manifest with its lines changed, well formed again."""
    lines = [json.loads(line) for line in gzip.decompress(manifest).splitlines()]
    change(lines)
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())


def drop(lines: list[dict[str, Any]]) -> None:
    del lines[5]


def swap(lines: list[dict[str, Any]]) -> None:
    lines[5], lines[6] = lines[6], lines[5]


def double(lines: list[dict[str, Any]]) -> None:
    lines.insert(5, lines[5])


def add(lines: list[dict[str, Any]]) -> None:
    lines.insert(13, {**lines[12], "path": "g"})
    lines[-1]["files"] += 1
    lines[-1]["size_bytes"] += lines[12]["size"]


def move(lines: list[dict[str, Any]]) -> None:
    lines[5]["offset"] += 512


def border(lines: list[dict[str, Any]]) -> None:
    lines[-2]["sizes"][0] += 1
    lines[-2]["sizes"][1] -= 1


def fewer_members(lines: list[dict[str, Any]]) -> None:
    sizes = lines[-2]["sizes"]
    sizes[-2:] = [sum(sizes[-2:])]
    lines[-1]["members"] -= 1


def an_empty_member(lines: list[dict[str, Any]]) -> None:
    lines[-2]["sizes"].insert(3, 0)
    lines[-1]["members"] += 1


def other_total(lines: list[dict[str, Any]]) -> None:
    lines[-1]["size_bytes"] += 1


def other_tar(lines: list[dict[str, Any]]) -> None:
    lines[-1]["tar_bytes"] += 512


def other_format(lines: list[dict[str, Any]]) -> None:
    lines[0]["format"] = "zip"


def wrong_type(lines: list[dict[str, Any]]) -> None:
    lines[5]["size"] = str(lines[5]["size"])


def missing_field(lines: list[dict[str, Any]]) -> None:
    del lines[5]["sha256"]


def sizes_that_are_none(lines: list[dict[str, Any]]) -> None:
    lines[-2]["sizes"][0] = -1


def other_version(lines: list[dict[str, Any]]) -> None:
    lines[0]["version"] = 2


@pytest.mark.parametrize(
    "change",
    [
        drop,
        swap,
        double,
        add,
        move,
        border,
        fewer_members,
        an_empty_member,
        other_total,
        other_tar,
        other_format,
        wrong_type,
        missing_field,
        sizes_that_are_none,
        other_version,
    ],
)
def test_p2_a_manifest_that_tells_it_differently_is_refused(change: Callable[[list[dict[str, Any]]], None]) -> None:
    data, making = packed(FILES)
    assert verify(lambda: [memoryview(data)], retold(making.manifest, lambda lines: None), progress=lambda _: None)
    assert refused(data, retold(making.manifest, change))


def test_p2_equal_sized_members_that_changed_places_are_found_even_if_the_hash_of_the_whole_were_right() -> None:
    """As if the swap had happened before the datablock was hashed."""
    data, making = packed(FILES, format="tar")
    reader = manifest_module.ManifestReader([making.manifest])
    reader.read_footer()
    one, two = reader.member_sizes[:2]
    assert one == two
    swapped = data[one : one + two] + data[:one] + data[one + two :]

    def rehash(lines: list[dict[str, Any]]) -> None:
        lines[-1]["sha256"] = hashlib.sha256(swapped).hexdigest()

    assert "header" in refused(swapped, retold(making.manifest, rehash))


def test_p2_a_stored_block_that_lies_about_its_length_is_found() -> None:
    data, making = packed(FILES, member_bytes=2**17)
    wrong = bytearray(data)
    assert data[10] == 0, "a stored block that is not the last (RFC 1951 3.2.3)"
    length = struct.unpack_from("<H", wrong, 11)[0]
    struct.pack_into("<HH", wrong, 11, length - 1, (length - 1) ^ 0xFFFF)
    assert "member 1" in refused(bytes(wrong), making.manifest)


def test_an_older_datablock_of_the_same_files_is_not_taken_for_this_one() -> None:
    older, _ = packed({**FILES, "f07": bytes(30_007)}, format="tar")
    _, making = packed(FILES, format="tar")
    assert "'f07'" in refused(older, making.manifest)


def test_no_manifest_makes_the_verifier_stumble_instead_of_answering() -> None:
    """Fuzz: any JSON in any line is a damaged manifest, never another exception."""
    data, making = packed(FILES)
    rng = random.Random(3)
    values: list[Any] = [None, -1, 0, 2**70, 1.5, "x", [], {}, [1], True, "\ud800"]
    for _ in range(often(300)):

        def spoil(lines: list[dict[str, Any]]) -> None:
            line = rng.choice(lines)
            line[rng.choice(list(line))] = rng.choice(values)

        told = retold(making.manifest, spoil)
        try:
            verify(lambda: [memoryview(data)], told, progress=lambda _: None)
        except errors.IntegrityMismatch:
            continue
        # Only what is not compared with the datablock may say something else.
        changed = [
            (key, one[key])
            for one, other in zip(_lines(told), _lines(making.manifest), strict=True)
            for key in one
            if one[key] != other.get(key)
        ]
        assert all(key not in ("path", "size", "sha256", "offset", "sizes", "files") for key, _ in changed), changed


def _lines(manifest: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in zlib.decompress(manifest, 31).splitlines()]


def test_the_manifest_writer_and_reader_agree_on_every_field() -> None:
    header = manifest_module.ManifestHeader("20.500.1/ä\n", 3, "0" * 32, "tar.gz", 1, 65536)
    writer = manifest_module.ManifestWriter(header)
    planned = PlannedFile("e\u0301 \U0001f600\n", 5, TIME, "v", "abc", "md5", 0o640, "u", "g")
    for k in range(2500):
        writer.add(planned, f"{k:064x}", 512 * k, k // 3)
    sizes = array("Q", range(1, 2502))
    footer = manifest_module.ManifestFooter(2500, 12_500, 9, sum(sizes), len(sizes), "f" * 64)
    reader = manifest_module.ManifestReader([writer.finish(sizes, footer)])
    files = list(reader.files())
    assert (reader.header, reader.footer, reader.member_sizes) == (header, footer, sizes)
    assert [(f.offset, f.member, f.sha256) for f in files] == [(512 * k, k // 3, f"{k:064x}") for k in range(2500)]
    last = files[-1]
    assert (last.path, last.chk, last.chk_alg, last.mode, last.uid, last.gid) == (
        planned.path,
        "abc",
        "md5",
        0o640,
        "u",
        "g",
    )
