"""Corrupted bytes never reach the requester, whatever the mode."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import random
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import pytest

from archiver import errors
from archiver.datablock.extract import extract, extract_files, pass_through
from archiver.datablock.manifest import ManifestReader
from tests.counts import often
from tests.datablock.extracting import Sink, Source, hand_on, nothing, same_lines, take, take_all
from tests.datablock.making import packed

SEED = 20261124
RNG = random.Random(11)
FILES = {
    **{f"f{k:02}": RNG.randbytes(30_000 + k) for k in range(6)},
    **{f"g{k:02}": b"%d " % k * 6_000 for k in range(6)},
    "empty": b"",
}
WANTED = ["empty", "f03", "g01", "g05"]
FORMATS = ["tar.gz", "tar.zst", "tar"]


@pytest.fixture(scope="module", params=FORMATS)
def block(request: pytest.FixtureRequest) -> tuple[bytes, bytes]:
    data, making = packed(FILES, format=request.param)
    return data, making.manifest


def only_right(sink: Sink) -> None:
    assert all(sink.committed[path] == FILES[path] for path in sink.committed)
    assert not sink.left_open


def whole_is_refused(data: bytes, manifest: bytes) -> None:
    """Taken apart or handed on: refused, and what was committed before is right."""
    sink = Sink()
    with pytest.raises(errors.IntegrityMismatch) as raised:
        extract(Source(data).whole, manifest, sink, progress=nothing)
    assert not raised.value.retryable
    only_right(sink)
    with pytest.raises(errors.IntegrityMismatch):
        hand_on(data, manifest)


def few_are_right(data: bytes, manifest: bytes) -> bool:
    """By file: what is committed is right, and everything that is wanted is there unless it was refused. Was it?"""
    sink = Sink()
    try:
        extract_files(Source(data).range, manifest, WANTED.__contains__, sink, progress=nothing)
    except errors.IntegrityMismatch:
        only_right(sink)
        return False
    assert sink.committed == {path: FILES[path] for path in WANTED}
    return True


def test_p2_many_single_bit_flips_are_found_and_none_is_delivered(block: tuple[bytes, bytes]) -> None:
    data, manifest = block
    rng = random.Random(SEED)
    _, _, source = take(data, manifest, WANTED)
    read = [range(offset, offset + size) for offset, size in source.ranges]
    seen = unseen = outside = 0
    for _ in range(often(200)):
        at, bit = rng.randrange(len(data) + len(manifest)), 1 << rng.randrange(8)
        both = bytearray(data + manifest)
        both[at] ^= bit
        wrong, told = bytes(both[: len(data)]), bytes(both[len(data) :])
        if at >= len(data) and _says_the_same(told, manifest):
            # Time stamp and system in the manifest's gzip header: nothing is different, nothing is delivered wrong.
            assert take_all(wrong, told)[0].committed == FILES
            assert few_are_right(wrong, told)
            unseen += 1
            continue
        whole_is_refused(wrong, told)
        if at < len(data) and not any(at in one for one in read):
            assert few_are_right(wrong, told), "what is not read cannot be wrong"
            outside += 1
        elif not few_are_right(wrong, told):
            seen += 1
        else:
            assert at < len(data), "a flip in the manifest"
            unseen += 1
    assert seen + unseen + outside == often(200)
    assert seen > often(30)
    assert outside > often(20)


def _says_the_same(manifest: bytes, original: bytes) -> bool:
    try:
        return same_lines(manifest, original)
    except Exception:
        return False


def test_p2_no_manifest_makes_extraction_stumble_or_deliver_wrong_bytes() -> None:
    """Fuzz: any JSON in any line is a refused manifest, or one that says as much as before of what is delivered."""
    files = {f"{k}": bytes([k]) * 9_000 * k for k in range(9)}
    data, making = packed(files)
    original = [json.loads(line) for line in gzip.decompress(making.manifest).splitlines()]
    rng = random.Random(SEED)
    values: list[Any] = [None, -1, 0, 1, 512, 2**31, 2**62, 2**64, 2**70, 1.5, "x", "../x", [], {}, [1], True, "\ud800"]
    for _ in range(often(500)):
        lines = copy.deepcopy(original)
        for _ in range(rng.randrange(1, 3)):
            line = rng.choice(lines)
            line[rng.choice(list(line))] = rng.choice(values)
        told = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
        for delivered in _both_ways(data, told, {"0", "4", "7"}):
            assert all(files[path] == content for path, content in delivered.items()), lines


def _both_ways(data: bytes, manifest: bytes, wanted: set[str]) -> Iterator[dict[str, bytes]]:
    for mode in (lambda sink: take_all(data, manifest, sink), lambda sink: take(data, manifest, wanted, sink)):
        sink = Sink()
        with contextlib.suppress(errors.IntegrityMismatch):
            mode(sink)
        assert not sink.left_open
        yield sink.committed


def test_p2_every_bit_of_the_manifest_is_found_or_says_nothing() -> None:
    data, making = packed({"a": b"abc", "b": b"d" * 1000})
    manifest = making.manifest
    silent = set()
    for at in range(len(manifest) * 8):
        told = bytearray(manifest)
        told[at // 8] ^= 1 << at % 8
        sink = Sink()
        try:
            extract_files(Source(data).range, bytes(told), lambda path: path == "b", sink, progress=nothing)
        except errors.IntegrityMismatch:
            assert not sink.begun, "a manifest is read whole before anything is delivered"
        else:
            assert same_lines(bytes(told), manifest)
            assert sink.committed == {"b": b"d" * 1000}
            silent.add(at // 8)
    spare = len(manifest) - 9
    assert silent <= {3, 4, 5, 6, 7, 8, 9, spare}, "flags, time, system (RFC 1952 2.3.1), bits behind the last block"


@pytest.mark.parametrize("format", FORMATS)
def test_p2_a_gzip_headers_time_stamp_is_found_by_the_hash_of_the_whole_though_every_file_is_right(format: str) -> None:
    """In a plain tar the same byte is a file's name; in a zstd frame, part of its content's size."""
    data, making = packed(FILES, format=format)
    wrong = bytearray(data)
    wrong[5] ^= 1
    whole_is_refused(bytes(wrong), making.manifest)
    few_are_right(bytes(wrong), making.manifest)
    if format == "tar.gz":
        sink = Sink()
        with pytest.raises(errors.IntegrityMismatch, match=making.result.sha256):
            extract(Source(bytes(wrong)).whole, making.manifest, sink, progress=nothing)
        assert sink.committed == FILES


def test_p2_a_datablock_cut_off_at_any_kind_of_border_is_refused(block: tuple[bytes, bytes]) -> None:
    data, manifest = block
    reader = ManifestReader([manifest])
    offsets = [file.offset for file in reader.files()]
    members = [0, *accumulate(reader.member_sizes)]
    assert members[-1] == len(data)
    cuts = {0, 1, len(data) - 1, len(data) - 512, len(data) - 1024, len(data) // 2}
    cuts |= {border + near for border in members for near in (-1, 0, 1, 9, 10)}
    if reader.header.format == "tar":
        cuts |= {offset + near for offset in offsets for near in (0, 256, 512, 513)}
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(data)):
        whole_is_refused(data[:cut], manifest)
        few_are_right(data[:cut], manifest)


def test_p2_something_behind_the_datablock_is_refused(block: tuple[bytes, bytes]) -> None:
    data, manifest = block
    for more in (b"\0", bytes(1024), data):
        whole_is_refused(data + more, manifest)


def test_p2_members_dropped_doubled_or_swapped_are_refused(block: tuple[bytes, bytes]) -> None:
    data, manifest = block
    reader = ManifestReader([manifest])
    reader.read_footer()
    borders = [0, *accumulate(reader.member_sizes)]
    parts = [data[start:end] for start, end in pairwise(borders)]
    for k in range(len(parts) - 1):
        for wrong in (
            [*parts[:k], *parts[k + 1 :]],
            [*parts[:k], parts[k], *parts[k:]],
            [*parts[:k], parts[k + 1], parts[k], *parts[k + 2 :]],
        ):
            whole_is_refused(b"".join(wrong), manifest)
            few_are_right(b"".join(wrong), manifest)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("other", [{**FILES, "more": b"x"}, {**FILES, "g01": bytes(12_000)}, {"f03": b"other"}])
def test_p2_another_valid_datablock_in_its_place_is_refused(format: str, other: dict[str, bytes]) -> None:
    """The last two hold another file under a wanted name."""
    data, _ = packed(other, format=format)
    _, making = packed(FILES, format=format)
    whole_is_refused(data, making.manifest)
    for name in WANTED:
        sink = Sink()
        try:
            take(data, making.manifest, [name], sink)
        except errors.IntegrityMismatch:
            pass
        only_right(sink)


def test_p2_a_range_that_gives_more_or_less_than_it_was_asked_for_is_refused(block: tuple[bytes, bytes]) -> None:
    data, manifest = block
    source = Source(data)
    for more in (-1, 1):
        sink = Sink()
        with pytest.raises(errors.IntegrityMismatch, match="from 0 on expected"):
            extract_files(
                lambda offset, size, more=more: source.range(offset, size + more),  # type: ignore[misc]
                manifest,
                lambda path: path == "empty",
                sink,
                progress=nothing,
            )
        only_right(sink)
        assert source.closed


def test_a_mismatch_names_dataset_datablock_and_file() -> None:
    data, making = packed(FILES, format="tar")
    wrong = bytearray(data)
    wrong[data.index(FILES["f03"])] ^= 1
    for mode in (
        lambda: take_all(bytes(wrong), making.manifest),
        lambda: take(bytes(wrong), making.manifest, ["f03"]),
        lambda: pass_through(Source(bytes(wrong)).whole, making.manifest, lambda _: None, progress=nothing),
    ):
        with pytest.raises(errors.IntegrityMismatch, match="'f03' with SHA-256") as raised:
            mode()
        assert (raised.value.dataset, raised.value.datablock, raised.value.file) == ("20.500.1/x", 1, "'f03'")
        assert "archiver verify" in str(raised.value)
